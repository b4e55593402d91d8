/** The only lmdb: one ordered map from keys to bytes, with atomic durable commits. */

import { open, type RootDatabase } from 'lmdb'

/** What the embedded store needs of a disk. The seam at which tests let it fail. */
export interface Database {
  /** All or nothing; resolves once it is on the disk. A rejection leaves it unknown whether it is. */
  commit(writes: Iterable<readonly [key: string, value: Buffer | undefined]>): Promise<void>
  get(key: string): Buffer | undefined
  /** Up to `limit` records in the order of their keys, from the first after `after` that begins with `prefix`. */
  range(prefix: string, after: string | undefined, limit: number): { key: string; value: Buffer }[]
  close(): Promise<void>
}

const text = (key: string) => Buffer.from(key, 'latin1')

/** Opens the database in `directory`, which is created when missing. */
export function openLmdb(directory: string): Database {
  const root: RootDatabase<Buffer, Buffer> = open<Buffer, Buffer>({
    path: directory,
    noSubdir: false,
    encoding: 'binary',
    keyEncoding: 'binary',
    // With overlapping sync a commit is acknowledged before it is flushed: a power cut would lose acknowledged writes.
    overlappingSync: false,
    // Batches are ours; lmdb's own would make promises that nobody awaits, and whose rejection nobody handles.
    eventTurnBatching: false,
  })
  return {
    async commit(writes) {
      try {
        await root.batch(() => {
          for (const [key, value] of writes) {
            if (value === undefined) void root.remove(text(key))
            else void root.put(text(key), value)
          }
        })
      } catch (error) {
        // lmdb hangs the real reason on the error, as a promise that may also never settle.
        const { commitError } = error as { commitError?: Promise<never> }
        const reason = commitError?.catch((inner: unknown) => inner)
        const later = new Promise((resolve) => setImmediate(resolve, error))
        throw await Promise.race([reason ?? later, later])
      }
    },
    get(key) {
      return root.get(text(key))
    },
    range(prefix, after, limit) {
      const found: { key: string; value: Buffer }[] = []
      // Keys are ASCII, so 0xff ends every prefix.
      const end = Buffer.concat([text(prefix), Buffer.of(0xff)])
      const start = after === undefined ? text(prefix === '' ? '\x00' : prefix) : text(`${after}\x00`)
      for (const { key, value } of root.getRange({ start, end, limit })) {
        found.push({ key: key.toString('latin1'), value: Buffer.from(value) })
      }
      return found
    },
    close: () => root.close(),
  }
}
