/** Reads the whole state from etcd, as of one of its revisions. */

import { changesOf, type HistoryMark } from '../history-marks.ts'
import { decodeRecord } from '../records.ts'
import { StoreMemory } from '../store-state.ts'
import { StoreRefused, type HistoryEntry } from '../store.ts'
import { EtcdFailure, type EtcdConnection, type KeyValue } from './etcd-connection.ts'
import { decodeMeta, encodeMeta, FEED, IMPORT, LOG, logKey, META, REPLICA, STATE, type Meta } from './layout.ts'
import { decodeLogHead } from './log-entry.ts'

/** Records in one answer. The largest node is some 25 KB, so that an answer stays far below what a process can hold. */
export const PAGE = 4_000
/** Entries of the log may be a megabyte each. */
export const LOG_PAGE = 200

export interface SetAside {
  readonly key: string
  readonly reason: string
}

/** What a commit left in the log. */
export interface LoadedEntry {
  readonly first: number
  /** Of its last transaction. */
  readonly revision: number
  readonly author: string
  readonly entries: readonly HistoryEntry[]
}

export interface LoadedState {
  readonly meta: Meta
  /** Of etcd, when `meta` was last written. */
  readonly metaRevision: number
  /** Of etcd, as of which all of this is. */
  readonly revision: number
  readonly memory: StoreMemory
  readonly marks: HistoryMark[]
  /** By commit, oldest first. */
  readonly history: LoadedEntry[]
  /** The keys of replicas. */
  readonly replicas: readonly KeyValue[]
  /** Records that cannot be read: left out, so that everything else works. */
  readonly setAside: readonly SetAside[]
}

/**
 * Makes an empty prefix a store; leaves one that is there alone.
 * @throws StoreRefused when something else is there
 */
export async function ensureStore(connection: EtcdConnection, location: string, epoch: string): Promise<void> {
  if (await findStore(connection, location)) return
  await connection.transact({
    compare: [{ key: META, revision: 0 }],
    success: [{ put: META, value: encodeMeta({ epoch, revision: 0 }) }],
    failure: [],
  })
}

/**
 * The store below a prefix; undefined where nothing is.
 * @throws StoreRefused when something else is there
 */
export async function findStore(connection: EtcdConnection, location: string) {
  const { item, revision } = await connection.get(META)
  if (item) return { meta: readMeta(item, location), revision }
  const { items } = await connection.range({ prefix: '', limit: 1, keysOnly: true })
  if (items[0] === undefined) return undefined
  // Another replica may have made it in between.
  const again = await connection.get(META)
  if (again.item) return { meta: readMeta(again.item, location), revision: again.revision }
  if ((await connection.get(IMPORT)).item)
    throw new StoreRefused(
      `an import into ${location} is under way or was cut off: let it end, or run it again with the same file`,
    )
  if (items[0].key.startsWith(FEED))
    throw new StoreRefused(
      `the store in ${location} was removed, and replicas of it still run or ended a moment ago: stop them, and try ` +
        'again in ten seconds',
    )
  throw new StoreRefused(
    `${location} holds ${JSON.stringify(items[0].key)} but no store of Holdfast: it belongs to another program. Choose ` +
      'another --etcd-prefix, or remove its keys.',
  )
}

/** @throws StoreRefused that names the key */
export function readMeta(item: KeyValue, location: string): Meta {
  try {
    return decodeMeta(item.value)
  } catch (error) {
    throw new StoreRefused(`${location}${META} cannot be used: ${(error as Error).message}`, error)
  }
}

/**
 * @param location for messages
 * @throws EtcdFailure, StoreRefused
 */
export async function loadState(connection: EtcdConnection, location: string): Promise<LoadedState> {
  const { item, revision } = await connection.get(META)
  if (item === undefined) throw new EtcdFailure('unreachable', `${location}${META} is gone`)
  const meta = readMeta(item, location)
  // All at once: each waits for etcd most of the time.
  const [state, log, replicas] = await Promise.all([
    loadRecords(connection, revision),
    loadLog(connection, revision, meta.revision),
    connection.range({ prefix: REPLICA, at: revision }),
  ])
  const { memory } = state
  const setAside = [...state.setAside, ...mend(memory, meta.revision), ...log.setAside]
  memory.revision = meta.revision
  const { marks, history } = log
  return { meta, metaRevision: item.revision, revision, memory, marks, history, setAside, replicas: replicas.items }
}

async function loadRecords(connection: EtcdConnection, at: number) {
  const setAside: SetAside[] = []
  const memory = new StoreMemory()
  for await (const items of pagesOf(connection, STATE, at, PAGE))
    for (const { key, value } of items) {
      try {
        const write = decodeRecord(key.slice(STATE.length), JSON.parse(value.toString()))
        if (write === undefined) throw new Error('of no known kind')
        memory.apply(write)
      } catch (error) {
        setAside.push({ key, reason: (error as Error).message })
      }
    }
  return { memory, setAside }
}

/** @param last the newest revision of the state */
async function loadLog(connection: EtcdConnection, at: number, last: number) {
  const setAside: SetAside[] = []
  let marks: HistoryMark[] = []
  let history: LoadedEntry[] = []
  let next: number | undefined
  /** Without this entry what came before it cannot be told. */
  const forget = (key: string, reason: string) => {
    setAside.push({ key, reason })
    marks = []
    history = []
    next = undefined
  }
  for await (const items of pagesOf(connection, LOG, at, LOG_PAGE))
    for (const { key, value } of items) {
      if (key > logKey(last)) {
        // Whoever put it there, no commit did.
        setAside.push({ key, reason: `begins after revision ${last}, which is the last` })
        continue
      }
      try {
        const head = decodeLogHead(key, value)
        if (next !== undefined && head.first !== next) throw new Error(`follows on revision ${next - 1}`)
        next = head.last + 1
        marks.push({ revision: head.last, changes: changesOf(head.history) })
        history.push({ first: head.first, revision: head.last, author: head.author, entries: head.history })
      } catch (error) {
        forget(key, (error as Error).message)
      }
    }
  if (next !== undefined && next !== last + 1)
    forget(LOG, `it ends at revision ${next - 1}, and the state is at ${last}`)
  return { marks, history, setAside }
}

/** Takes out what contradicts the rest, and says what. */
function* mend(memory: StoreMemory, revision: number): Iterable<SetAside> {
  for (const { ref, lease } of [...memory.leased()]) {
    if (memory.lease(lease)) continue
    memory.apply({ kind: 'node', ref, value: undefined })
    yield { key: `${STATE}node/${ref.namespace}/${ref.service}/${ref.id}`, reason: 'its lease is missing' }
  }
  for (const { namespace, service } of [...memory.unrecorded()]) {
    // As new as can be, so that whoever has seen any of it is told what there is now.
    memory.apply({ kind: 'service', namespace, service, value: Object.freeze({ revision }) })
    yield { key: `${STATE}service/${namespace}/${service}`, reason: 'missing, though the service has content' }
  }
}

/** All keys of a prefix in their order, as of one of etcd's revisions, in pages: a wait for each key would be felt. */
export async function* pagesOf(
  connection: EtcdConnection,
  prefix: string,
  at: number,
  limit: number,
): AsyncIterable<readonly KeyValue[]> {
  let page = connection.range({ prefix, limit, at })
  for (;;) {
    const { items, more } = await page
    const after = items.at(-1)?.key
    // The next one is on its way while this one is read.
    if (more && after !== undefined) page = connection.range({ prefix, limit, at, after })
    yield items
    if (!more) return
  }
}
