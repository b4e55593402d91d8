// Reads every record of a store and compares its checksum. Plain JavaScript, since it runs without a loader.
// Status 0: whole. 3: not, with the reason on standard error. A signal: so damaged that lmdb itself fails.
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
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
  let found = 0
  for (const { key, value } of root.getRange({})) {
    found++
    // As records.ts writes them: the checksum of key and body before the body.
    const isWhole = value.length > 4 && crc32(value.subarray(4), crc32(key)) === value.readUInt32LE()
    // By its key too: a page that leads there may be damaged where a walk from record to record does not look.
    if (!isWhole || !root.doesExist(key))
      throw new Error(`record ${JSON.stringify(key.toString('latin1').slice(0, 200))}: the checksum does not match`)
  }
  const { entryCount } = root.getStats()
  if (found !== entryCount) throw new Error(`${found} records are left of ${entryCount}`)
  // Also what only writers touch: the list of free pages. Nothing of it stays.
  root.transactionSync(() => {
    root.put(Buffer.from('check'), Buffer.alloc(65_536))
    return ABORT
  })
  await root.close()
} catch (error) {
  process.stderr.write(`${error.message}\n`)
  process.exit(3)
}
