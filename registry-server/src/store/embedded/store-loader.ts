/** How a store's memory and its database become one another: the first record, and loading. */

import { changesOf, HistoryMarks, type HistoryBounds, type HistoryMark } from '../history-marks.ts'
import type { Database } from './lmdb-database.ts'
import { decodeHistory, decodeRecord, HISTORY_PREFIX, historyKey } from '../records.ts'
import { decodeValue, encodeValues, FORMAT, META_KEY, type Meta } from './stored-values.ts'
import { StoreMemory } from '../store-state.ts'
import type { HistoryEntry } from '../store.ts'

/** Records decoded in one turn of the event loop while loading: some 20 ms, so that health checks are answered. */
const LOAD_PAGE = 4_000

export interface Loaded {
  readonly epoch: string
  readonly memory: StoreMemory
  readonly history: HistoryMarks
}

/**
 * Reads everything into memory, checking every record.
 * @throws Error that says what is wrong
 */
export async function load(database: Database, bounds: HistoryBounds): Promise<Loaded> {
  const memory = new StoreMemory()
  const marks: HistoryMark[] = []
  const meta = readMeta(database)
  let newest = 0
  let after: string | undefined
  for (;;) {
    const page = database.range('', after, LOAD_PAGE)
    if (page.length === 0) break
    for (const { key, value } of page) {
      if (key === META_KEY) continue
      const decoded = decodeValue(key, value)
      if (key.startsWith(HISTORY_PREFIX)) {
        const entries = decodeHistory(key, decoded)
        const { revision } = entries[0]!
        marks.push({ revision, changes: changesOf(entries) })
        newest = Math.max(newest, revision)
      } else {
        const write = decodeRecord(key, decoded)
        if (write === undefined) throw new Error(`an unknown record ${JSON.stringify(key)}`)
        if (write.kind === 'node' && write.value?.lease !== undefined && !memory.lease(write.value.lease))
          throw new Error(`${key} is under a lease that is missing`)
        memory.apply(write)
        if (write.kind === 'service') newest = Math.max(newest, write.value?.revision ?? 0)
      }
    }
    after = page.at(-1)!.key
    await new Promise((resolve) => setImmediate(resolve))
  }
  for (const [name, count] of Object.entries(meta.counts))
    if (memory.counts[name as keyof typeof memory.counts] !== count)
      throw new Error(`${memory.counts[name as keyof typeof memory.counts]} ${name} are left of ${count}`)
  if (newest > meta.revision) throw new Error(`a record of revision ${newest} after the last, ${meta.revision}`)
  memory.revision = meta.revision
  return { epoch: meta.epoch, memory, history: new HistoryMarks(bounds, marks, meta.revision) }
}

/** Makes an empty database a store. */
export async function initialise(database: Database, epoch: string): Promise<void> {
  const { counts } = new StoreMemory()
  const meta: Meta = { format: FORMAT, epoch, revision: 0, counts }
  await database.commit(encodeValues([[META_KEY, meta]]))
}

/** Makes a store another one with the same content: cursors of the old one mean nothing to it. */
export async function changeEpoch(database: Database, epoch: string): Promise<void> {
  await database.commit(encodeValues([[META_KEY, { ...readMeta(database), epoch }]]))
}

/** @throws Error when it is missing, damaged or of another version */
export function readMeta(database: Pick<Database, 'get'>): Meta {
  const value = database.get(META_KEY)
  if (value === undefined) throw new Error('its first record is missing')
  const meta = decodeValue(META_KEY, value) as Meta
  if (meta.format !== FORMAT) throw new Error(`it has format ${meta.format}, this version reads ${FORMAT}`)
  return meta
}

export function* readHistory(database: Database, floor: number): Iterable<HistoryEntry> {
  let after: string | undefined = historyKey(floor)
  for (;;) {
    const page = database.range(HISTORY_PREFIX, after, 1000)
    if (page.length === 0) return
    for (const { key, value } of page) yield* decodeHistory(key, decodeValue(key, value))
    after = page.at(-1)!.key
  }
}
