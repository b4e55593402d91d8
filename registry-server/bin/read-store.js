// Writes every record of a store to standard output, as of one moment, while a registry may be writing: the length of the
// key (2 bytes) and of the value (4), the key, the value. Changes nothing.
// Status 0: all of it. 3: not, with the reason on standard error. A signal: so damaged that lmdb itself fails.
import { nameOf, withStore } from './with-store.js'

const CHUNK_BYTES = 1_048_576

await withStore({ readOnly: true }, async (root) => {
  // One for the whole walk. It ends soon whoever reads us: while a moment is held, the registry's file grows with every
  // write.
  const transaction = root.useReadTransaction()
  let chunk = []
  let size = 0
  for (const { key, value } of root.getRange({ transaction })) {
    const lengths = Buffer.alloc(6)
    lengths.writeUInt16LE(key.length)
    lengths.writeUInt32LE(value.length, 2)
    chunk.push(lengths, Buffer.from(key), Buffer.from(value))
    size += lengths.length + key.length + value.length
    // By its key too: a page that leads there may be damaged where a walk from record to record does not look.
    if (!root.doesExist(key, undefined, { transaction })) throw new Error(`${nameOf(key)} is not found by its key`)
    if (size < CHUNK_BYTES) continue
    await written(Buffer.concat(chunk))
    chunk = []
    size = 0
  }
  transaction.done()
  await written(Buffer.concat(chunk))
})

function written(bytes) {
  return new Promise((resolve, reject) => process.stdout.write(bytes, (error) => (error ? reject(error) : resolve())))
}
