/** The store on etcd at rest: read as of one of etcd's revisions, beside registries that use it, or created from records. */

import type { Clock } from '@holdfast/registry-client/clock'
import type { PortableRecord, StoreArchive, StoredProblem, StoreIdentity } from '../archive.ts'
import { encodeHistory, historyKey, HISTORY_PREFIX } from '../records.ts'
import { StoreRefused } from '../store.ts'
import { EtcdConnection, type EtcdAccess, type KeyValue, type Operation } from './etcd-connection.ts'
import { EtcdFailure } from './etcd-failure.ts'
import { findStore, LOG_PAGE, PAGE, pagesOf } from './etcd-loader.ts'
import { encodeMeta, FEED, IMPORT, locationOf, LOG, logKey, META, STATE } from './layout.ts'
import { decodeLogHead, encodeLogEntry, type LoggedText } from './log-entry.ts'

/** Of one request while creating. */
const CHUNK_OPERATIONS = 1_000
const CHUNK_BYTES = 524_288
/** Revisions in one entry of the log that stands for history alone. */
const ENTRY_REVISIONS = 500

export interface EtcdArchiveOptions {
  readonly endpoints: readonly string[]
  readonly access: EtcdAccess
  readonly prefix: string
  /** A new name at each call, not guessable. */
  readonly identifier: () => string
  readonly clock: Clock
}

export function etcdArchive(options: EtcdArchiveOptions): StoreArchive {
  const location = locationFor(options)
  return {
    kind: 'etcd',
    location,
    async read() {
      const connection = await connect(options)
      const { meta, revision } = await found(connection, location)
      return { ...meta, records: records(connection, revision), problems: [] }
    },
    async refuseUnlessEmpty() {
      const connection = await connect(options)
      try {
        await free(connection, location)
      } finally {
        connection.close()
      }
    },
    async create(identity, content) {
      const connection = await connect(options)
      try {
        await create(connection, options, identity, content)
      } catch (error) {
        throw error instanceof EtcdFailure ? new StoreRefused(`${location}: ${error.message}`, error) : error
      } finally {
        connection.close()
      }
    },
  }
}

/** The first member that answers. @throws StoreRefused that names them all */
async function connect(options: EtcdArchiveOptions): Promise<EtcdConnection> {
  const { endpoints, access, prefix, clock } = options
  const tried: string[] = []
  for (const endpoint of endpoints) {
    const connection = new EtcdConnection({ endpoint, access, prefix, clock })
    try {
      await connection.get(META)
      return connection
    } catch (error) {
      connection.close()
      tried.push(`${endpoint}: ${(error as Error).message}`)
    }
  }
  throw new StoreRefused(`${locationFor(options)} cannot be used: ${tried.join('; ')}`)
}

function locationFor({ endpoints, access, prefix }: EtcdArchiveOptions): string {
  return locationOf(endpoints, access.tls, prefix)
}

async function found(connection: EtcdConnection, location: string) {
  const store = await findStore(connection, location)
  if (store === undefined) throw new StoreRefused(`there is no store in ${location}`)
  return store
}

/** @returns etcd's revision of what an import that was cut off left behind; 0 where nothing is */
async function free(connection: EtcdConnection, location: string): Promise<number> {
  const left = await connection.get(IMPORT)
  if (left.item) return left.item.revision
  if (await findStore(connection, location))
    throw new StoreRefused(`there is a store in ${location} already: choose another --etcd-prefix`)
  return 0
}

/** History first, as its keys come before those of the state. */
async function* records(connection: EtcdConnection, at: number): AsyncIterable<PortableRecord | StoredProblem> {
  try {
    for await (const items of pagesOf(connection, LOG, at, LOG_PAGE)) for (const item of items) yield* historyOf(item)
    for await (const items of pagesOf(connection, STATE, at, PAGE)) for (const item of items) yield recordOf(item)
  } catch (error) {
    if (!(error instanceof EtcdFailure)) throw error
    throw new StoreRefused(`the store could not be read to its end: ${error.message}`, error)
  } finally {
    connection.close()
  }
}

function* historyOf({ key, value }: KeyValue): Iterable<PortableRecord | StoredProblem> {
  const byRevision = new Map<number, { time: string; entries: object[] }>()
  try {
    for (const { revision, time, ...entry } of decodeLogHead(key, value).history) {
      const kept = byRevision.get(revision)
      if (kept) kept.entries.push(entry)
      else byRevision.set(revision, { time, entries: [entry] })
    }
  } catch (error) {
    yield { key, problem: (error as Error).message }
  }
  for (const [revision, content] of byRevision) yield { key: historyKey(revision), value: content }
}

function recordOf({ key, value }: KeyValue): PortableRecord | StoredProblem {
  const record = key.slice(STATE.length)
  try {
    return { key: record, value: JSON.parse(value.toString()) as unknown }
  } catch {
    return { key: record, problem: 'is no JSON' }
  }
}

/**
 * Under a mark, which each request checks: two that create at the same time cannot mix, one that is cut off leaves no
 * store, and the next may begin again. The first record comes last, with the mark's removal.
 */
async function create(
  connection: EtcdConnection,
  options: EtcdArchiveOptions,
  identity: StoreIdentity,
  content: Iterable<PortableRecord>,
): Promise<void> {
  const location = locationFor(options)
  let mark = await free(connection, location)
  const write = async (success: readonly Operation[]) => {
    const answer = await connection.transact({
      compare: [
        { key: IMPORT, revision: mark },
        { key: META, revision: 0 },
      ],
      success,
      failure: [],
    })
    if (!answer.succeeded) throw new StoreRefused(`someone else creates a store in ${location} at this moment`)
    return answer.revision
  }
  mark = await write([{ put: IMPORT, value: Buffer.from(JSON.stringify({ import: options.identifier() })) }])
  await write([{ removeRange: [STATE, after(STATE)] }, { removeRange: [FEED, after(FEED)] }])
  let chunk: Operation[] = []
  let bytes = 0
  const put = async (key: string, value: Buffer) => {
    if (chunk.length === CHUNK_OPERATIONS || (bytes > 0 && bytes + value.length > CHUNK_BYTES)) {
      await write(chunk)
      chunk = []
      bytes = 0
    }
    chunk.push({ put: key, value })
    bytes += key.length + value.length
  }
  const history = new Map<number, LoggedText>()
  for (const { key, value } of content) {
    if (!key.startsWith(HISTORY_PREFIX)) await put(STATE + key, Buffer.from(JSON.stringify(value)))
    else {
      const { time, entries } = value as { time: string; entries: LoggedText['history'] }
      history.set(Number(key.slice(HISTORY_PREFIX.length)), { time, deeds: '[]', history: entries })
    }
  }
  for (const { first, value } of logOf(history, identity)) await put(logKey(first), value)
  await write(chunk)
  await write([{ put: META, value: encodeMeta(identity) }, { remove: IMPORT }])
}

/** The log has no gaps: revisions that changed no service are in it too. */
function* logOf(
  history: ReadonlyMap<number, LoggedText>,
  { epoch, revision: last }: StoreIdentity,
): Iterable<{ first: number; value: Buffer }> {
  if (history.size === 0) return
  const begin = Math.min(...history.keys())
  let time = history.get(begin)!.time
  let first = begin
  let transactions: LoggedText[] = []
  let bytes = 0
  for (let revision = begin; revision <= last; revision++) {
    const transaction = history.get(revision) ?? { time, deeds: '[]', history: [] }
    time = transaction.time
    transactions.push(transaction)
    bytes += JSON.stringify(encodeHistory(time, transaction.history)).length
    if (transactions.length < ENTRY_REVISIONS && bytes < CHUNK_BYTES / 2 && revision < last) continue
    yield { first, value: encodeLogEntry({ epoch, author: 'import', transactions }) }
    first = revision + 1
    transactions = []
    bytes = 0
  }
}

/** The end of a range of all keys that begin with a prefix of ours, which end with a slash. */
function after(prefix: string): string {
  return `${prefix.slice(0, -1)}0`
}
