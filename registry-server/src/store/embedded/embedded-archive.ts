/** The embedded store at rest: read beside a registry that uses it, or created from records. */

import type { PortableRecord, StoreArchive, StoreIdentity, StoredRecord } from '../archive.ts'
import { damaged } from '../store.ts'
import { StoreMemory, type StateCounts } from '../store-state.ts'
import { reasonOf } from '../verification.ts'
import { readLmdb, type Database } from './lmdb-database.ts'
import { readMeta } from './store-loader.ts'
import { checkReadable, createStore, locationIn, refuseStoreIn } from './store-directory.ts'
import { decodeValue, encodeValues, FORMAT, META_KEY, type Meta } from './stored-values.ts'

/** Records in one commit while creating. */
const COMMIT_RECORDS = 10_000

const COUNTED: Readonly<Record<string, keyof StateCounts>> = {
  node: 'nodes',
  override: 'overrides',
  policy: 'policies',
  service: 'services',
  lease: 'leases',
}

export interface EmbeddedArchiveOptions {
  /** The data directory. */
  readonly directory: string
  /** A new name at each call, not guessable. */
  readonly identifier: () => string
}

export function embeddedArchive({ directory, identifier }: EmbeddedArchiveOptions): StoreArchive {
  const location = locationIn(directory)
  return {
    kind: 'embedded',
    location,
    async read() {
      await checkReadable(location)
      try {
        const stored = await readLmdb(location)
        const meta = readMeta({ get: (name) => stored.find(({ key }) => key === name)?.value })
        return { epoch: meta.epoch, revision: meta.revision, records: decoded(stored, meta) }
      } catch (error) {
        throw damaged(location, error)
      }
    },
    refuseUnlessEmpty: () => refuseStoreIn(directory),
    create: (identity, records) =>
      createStore({ directory, identifier, initialise: (database) => fill(database, identity, records) }),
  }
}

function* decoded(stored: readonly { key: string; value: Buffer }[], meta: Meta): Iterable<StoredRecord> {
  const counter = new Counter()
  for (const { key, value } of stored) {
    if (key === META_KEY) continue
    counter.count(key)
    yield read(key, value)
  }
  for (const [name, count] of Object.entries(counter.counts))
    if (count !== meta.counts[name as keyof StateCounts])
      yield { key: META_KEY, problem: `${count} ${name} are left of ${meta.counts[name as keyof StateCounts]}` }
}

function read(key: string, value: Buffer): StoredRecord {
  try {
    return { key, value: decodeValue(key, value) }
  } catch (error) {
    return { key, problem: reasonOf(key, error) }
  }
}

/** The first record last: without it nothing before it is a store. */
async function fill(database: Database, identity: StoreIdentity, records: Iterable<PortableRecord>): Promise<void> {
  const counter = new Counter()
  let batch: (readonly [string, unknown])[] = []
  for (const { key, value } of records) {
    counter.count(key)
    batch.push([key, value])
    if (batch.length < COMMIT_RECORDS) continue
    await database.commit(encodeValues(batch))
    batch = []
  }
  const meta: Meta = { format: FORMAT, ...identity, counts: counter.counts }
  await database.commit(encodeValues([...batch, [META_KEY, meta]]))
}

class Counter {
  readonly counts: StateCounts = new StoreMemory().counts

  count(key: string): void {
    const name = COUNTED[key.slice(0, key.indexOf('/'))]
    if (name) this.counts[name]++
  }
}
