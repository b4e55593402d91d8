/** The embedded store at rest: read beside a registry that uses it, or created from records. */

import type { PortableRecord, StoreArchive, StoredProblem, StoreIdentity } from '../archive.ts'
import { damaged } from '../store.ts'
import { StoreMemory, type StateCounts } from '../store-state.ts'
import { reasonOf } from '../verification.ts'
import type { Database } from './lmdb-database.ts'
import { readMeta } from './store-loader.ts'
import { createStore, locationIn, readRecords, refuseStoreIn } from './store-directory.ts'
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
      const stored = await readRecords(location)
      const meta = metaOf(stored, location)
      const records = stored.filter(({ key }) => key !== META_KEY)
      return {
        epoch: meta.epoch,
        revision: meta.revision,
        records: decoded(records),
        problems: [...contradictions(records, meta)],
      }
    },
    refuseUnlessEmpty: () => refuseStoreIn(directory),
    create: (identity, records) =>
      createStore({ directory, identifier, initialise: (database) => fill(database, identity, records) }),
  }
}

type Encoded = Awaited<ReturnType<typeof readRecords>>

/** @throws StoreRefused */
function metaOf(stored: Encoded, location: string): Meta {
  try {
    return readMeta({ get: (name) => stored.find(({ key }) => key === name)?.value })
  } catch (error) {
    throw damaged(location, error)
  }
}

function* decoded(stored: Encoded): Iterable<PortableRecord | StoredProblem> {
  for (const { key, value } of stored) yield read(key, value)
}

function read(key: string, value: Buffer): PortableRecord | StoredProblem {
  try {
    return { key, value: decodeValue(key, value) }
  } catch (error) {
    return { key, problem: reasonOf(key, error) }
  }
}

/** Where the records are not as many as the first one says. */
function* contradictions(stored: Encoded, meta: Meta): Iterable<StoredProblem> {
  const counter = new Counter()
  for (const { key } of stored) counter.count(key)
  for (const [name, count] of Object.entries(counter.counts)) {
    const expected = meta.counts[name as keyof StateCounts]
    if (count !== expected) yield { key: META_KEY, problem: `there are ${count} ${name}, not ${expected}` }
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
