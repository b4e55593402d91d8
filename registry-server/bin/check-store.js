// Reads every page of a store that its records need. Plain JavaScript, since it runs without a loader.
// Status 0: readable. 3: not, with the reason on standard error. A signal: so damaged that lmdb itself fails.
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { ABORT, open } from 'lmdb'

const [location] = process.argv.slice(2)
try {
  if (statSync(join(location, 'data.mdb')).size === 0) throw new Error('data.mdb is empty')
  const root = open({
    path: location,
    noSubdir: false,
    encoding: 'binary',
    keyEncoding: 'binary',
    overlappingSync: false,
    eventTurnBatching: false,
  })
  let bytes = 0
  for (const { value } of root.getRange({})) for (let at = 0; at < value.length; at += 4096) bytes += value[at]
  if (!Number.isFinite(bytes)) throw new Error('unreadable')
  // Also what only writers touch: the list of free pages. Nothing of it stays.
  root.transactionSync(() => {
    root.put(Buffer.from('check'), Buffer.alloc(16_384))
    return ABORT
  })
  await root.close()
} catch (error) {
  process.stderr.write(`${error.message}\n`)
  process.exit(3)
}
