// Reads every record of a store and compares its checksum.
// Status 0: whole. 3: not, with the reason on standard error. A signal: so damaged that lmdb itself fails.
import { crc32 } from 'node:zlib'
import { ABORT } from 'lmdb'
import { nameOf, withStore } from './with-store.js'

await withStore({}, (root) => {
  let found = 0
  for (const { key, value } of root.getRange({})) {
    found++
    // As records.ts writes them: the checksum of key and body before the body.
    const isWhole = value.length > 4 && crc32(value.subarray(4), crc32(key)) === value.readUInt32LE()
    // By its key too: a page that leads there may be damaged where a walk from record to record does not look.
    if (!isWhole || !root.doesExist(key)) throw new Error(`${nameOf(key)}: the checksum does not match`)
  }
  const { entryCount } = root.getStats()
  if (found !== entryCount) throw new Error(`${found} records are left of ${entryCount}`)
  // Also what only writers touch: the list of free pages. Nothing of it stays.
  root.transactionSync(() => {
    root.put(Buffer.from('check'), Buffer.alloc(65_536))
    return ABORT
  })
})
