// Reads every record of a store and compares its checksum. Plain JavaScript, since it runs without a loader.
// With the argument `beside`: reads only, as of one moment, since a registry may be writing; checksums are the caller's.
// Status 0: whole. 3: not, with the reason on standard error. A signal: so damaged that lmdb itself fails.
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { crc32 } from 'node:zlib'
import { ABORT, open } from 'lmdb'

const [location, beside] = process.argv.slice(2)
const readOnly = beside === 'beside'
try {
  if (statSync(join(location, 'data.mdb')).size === 0) throw new Error('data.mdb is empty')
  const root = open({
    path: location,
    noSubdir: false,
    encoding: 'binary',
    keyEncoding: 'binary',
    overlappingSync: false,
    eventTurnBatching: false,
    readOnly,
  })
  const transaction = root.useReadTransaction()
  let found = 0
  for (const { key, value } of root.getRange({ transaction })) {
    found++
    // As stored-values.ts writes them: the checksum of key and body before the body.
    const isWhole = value.length > 4 && crc32(value.subarray(4), crc32(key)) === value.readUInt32LE()
    const name = () => JSON.stringify(key.toString('latin1').slice(0, 200))
    if (!isWhole && !readOnly) throw new Error(`record ${name()}: the checksum does not match`)
    // By its key too: a page that leads there may be damaged where a walk from record to record does not look.
    if (!root.doesExist(key, undefined, { transaction })) throw new Error(`record ${name()} is not found by its key`)
  }
  transaction.done()
  if (!readOnly) {
    const { entryCount } = root.getStats()
    if (found !== entryCount) throw new Error(`${found} records are left of ${entryCount}`)
    // Also what only writers touch: the list of free pages. Nothing of it stays.
    root.transactionSync(() => {
      root.put(Buffer.from('check'), Buffer.alloc(65_536))
      return ABORT
    })
  }
  await root.close()
} catch (error) {
  process.stderr.write(`${error.message}\n`)
  process.exit(3)
}
