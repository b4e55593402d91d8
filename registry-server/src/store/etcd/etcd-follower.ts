/**
 * Follows the log: what a replica knows is what the log says up to some revision.
 *
 * Whoever writes runs ahead of the log, in the same memory. Before anything else is taken it steps back, and from what
 * is taken it learns which of its commits have happened: see {@link LogAuthor}. So a commit of another replica, one of
 * this replica whose answer was lost, and what was missed while cut off come by the same door,
 * {@link EtcdFollower.#take}.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { changesOf, HistoryMarks, type HistoryBounds } from '../history-marks.ts'
import { redo, serviceKey, type StoreMemory } from '../store-state.ts'
import { StoreRefused, type Committed, type ServiceChange, type StoreListener, type StoreState } from '../store.ts'
import { operationsOf, type PreparedDraft } from './commit.ts'
import {
  EtcdFailure,
  type EtcdConnection,
  type FeedEvent,
  type KeyValue,
  type TransactionAnswer,
  type TransactionRequest,
} from './etcd-connection.ts'
import { ensureStore, loadState, LOG_PAGE, readMeta, type LoadedEntry, type SetAside } from './etcd-loader.ts'
import type { EtcdReplicas } from './etcd-replicas.ts'
import type { SessionFollower } from './etcd-session.ts'
import { encodeMeta, HEARD, LOG, logKey, META, REPLICA, STATE, type Meta } from './layout.ts'
import { authorOf, decodeLogEntry, type LogEntry, type LoggedTransaction } from './log-entry.ts'
import type { WriteTurn } from './write-turn.ts'

/** How long a beat waits for the watch to tell what is there. */
const CHECK_MS = 1_000
const RESTART = 'this replica serves what it knows; restart it to follow'

/** Whoever writes to the log, as its follower sees it: asked and told in the very turn in which the log goes on. */
export interface LogAuthor {
  /**
   * Whether the next entry is the commit that the memory holds already; then it has been published.
   * @param author of the entry, if it names one
   * @param metaRevision etcd's, of the entry
   */
  recognise(author: string | undefined, metaRevision: number): boolean
  /** Takes out of the memory what is not in the log. */
  withdraw(): void
  /** The next entry was taken. */
  taken(author: string): void
  /**
   * All was loaded anew, and the log has gone on meanwhile.
   * @param next the author of the first entry that was not known; undefined when it has left history
   */
  loaded(next: string | undefined): void
}

export interface EtcdFollowerOptions extends HistoryBounds {
  /** Of the store, for messages. */
  readonly location: string
  /** Gives the store a new identity. */
  readonly newEpoch: boolean
  readonly identifier: () => string
  readonly replicas: EtcdReplicas
  readonly turn: WriteTurn
  readonly clock: Clock
  readonly log: Log
}

/** The state of etcd is not the one that this replica has followed. Only a restart can follow another. */
class StoreReplaced extends Error {}

export class EtcdFollower implements SessionFollower {
  readonly #options: EtcdFollowerOptions
  readonly #listeners = new Set<StoreListener>()
  #author!: LogAuthor
  #epoch = ''
  #newEpoch: boolean
  #memory!: StoreMemory
  #history!: HistoryMarks
  /** What history holds, by commit, oldest first. */
  #entries: Pick<LoadedEntry, 'revision' | 'entries'>[] = []
  #revision = 0
  /** The commit that made the newest revision, where it is known: what etcd holds at that place must be the same. */
  #last: { readonly key: string; readonly author: string } | undefined
  /** Of etcd, when meta was last written. */
  #metaRevision = 0
  /** Of etcd, up to which the watch has told everything, or the reading before it. */
  #watched = 0
  #waiters: { readonly watched: number; readonly resolve: () => void }[] = []
  #setAside = new Map<string, SetAside>()

  constructor(options: EtcdFollowerOptions) {
    this.#options = options
    this.#newEpoch = options.newEpoch
  }

  /** Empty before the first session. */
  get epoch(): string {
    return this.#epoch
  }

  /** The state of the log's newest revision that is known; with more on top while a commit is under way. */
  get memory(): StoreMemory {
    return this.#memory
  }

  /** The newest that is known to be in the log. */
  get revision(): number {
    return this.#revision
  }

  get setAside(): readonly SetAside[] {
    return [...this.#setAside.values()]
  }

  /** Tells a listener the state, then what is taken after it. To be called while no commit is under way. */
  watch(listener: StoreListener): () => void {
    listener.load(this.#state())
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  // ---- For the author ----

  /** Before the first session. */
  attach(author: LogAuthor): void {
    this.#author = author
  }

  /**
   * What appends a commit, on the condition that the log still ends where it does here. Otherwise the answer brings
   * along what has come in between, for {@link overtaken}.
   * @param drafts none: only asks whether it does
   */
  appending(author: string, drafts: readonly PreparedDraft[]): TransactionRequest {
    const commit = { epoch: this.#epoch, author, drafts, history: this.#history }
    return {
      compare: [{ key: META, revision: this.#metaRevision }],
      success: drafts.length > 0 ? operationsOf(commit) : [],
      failure: this.#beyond(),
    }
  }

  /** What the memory holds beyond the known revision is in the log now, as one commit. Tells the listeners. */
  publish(transactions: readonly Committed[], metaRevision: number, author: string): void {
    this.#last = { key: logKey(transactions[0]!.revision), author }
    this.#revision = transactions.at(-1)!.revision
    this.#metaRevision = metaRevision
    const changes = transactions.reduce((sum, item) => sum + changesOf(item.changes), 0)
    this.#history.take(this.#history.plan([{ revision: this.#revision, changes }], this.#revision))
    this.#remember(transactions)
    if (this.#setAside.size > 0) {
      this.#setAside.delete(logKey(transactions[0]!.revision))
      for (const item of transactions) for (const key of keysOf(item)) this.#setAside.delete(STATE + key)
    }
    const { floor } = this.#history
    // One that comes during this is told as part of its state.
    for (const listener of [...this.#listeners]) if (this.#listeners.has(listener)) listener.apply(transactions, floor)
  }

  /**
   * Takes what has come in between.
   * @param known the revision that was known before it was asked for
   * @returns whether all that was there when etcd answered is known now
   * @throws Error when it cannot be followed
   */
  overtaken({ found }: TransactionAnswer, known: number): boolean {
    const [meta, log] = found
    const { item, newest } = this.#checkMeta(meta!.items[0], known)
    for (const entry of log!.items) if (!this.#takeLogged(entry, newest)) throw new Error(`cannot follow ${entry.key}`)
    // Someone wrote it again as it was, by hand.
    if (newest === this.#revision) this.#metaRevision = item.revision
    return newest <= this.#revision
  }

  // ---- For the session ----

  /** Everything that was missed; the whole state where the log does not reach back that far. */
  async catchUp(connection: EtcdConnection, firstAnswerMs?: number): Promise<number> {
    return (this.#watched = await this.#catchUp(connection, firstAnswerMs))
  }

  receive(events: readonly FeedEvent[]): void {
    const { replicas, turn } = this.#options
    for (const event of events) {
      if (replicas.receive(event) || turn.receive(event)) continue
      const { key, value, revision } = event
      // Entries leave history, which changes nothing.
      if (value === undefined) this.#setAside.delete(key)
      if (value === undefined || !key.startsWith(LOG)) continue
      if (!this.#takeLogged({ key, value, revision }))
        throw new EtcdFailure('unreachable', `${key} cannot follow on revision ${this.#revision}`)
    }
    this.#watched = Math.max(this.#watched, events.at(-1)?.revision ?? 0)
    this.#waiters = this.#waiters.filter(({ watched, resolve }) => {
      if (watched <= this.#watched) resolve()
      return watched > this.#watched
    })
  }

  /**
   * Whether the watch tells what it should. That this replica knows it is not enough: its own commits it knows from
   * their answers, and who comes and goes from the watch alone.
   */
  async check(connection: EtcdConnection): Promise<boolean> {
    const known = this.#revision
    const { item, newest } = this.#checkMeta((await connection.get(META)).item, known)
    if (this.#watched < item.revision)
      await new Promise<void>((resolve) => {
        const waiter = { watched: item.revision, resolve: () => (cancel(), resolve()) }
        const cancel = this.#options.clock.after(CHECK_MS, () => {
          this.#waiters = this.#waiters.filter((other) => other !== waiter)
          resolve()
        })
        this.#waiters.push(waiter)
      })
    return item.revision <= this.#watched && newest <= this.#revision
  }

  // ---- Reading what is there ----

  async #catchUp(connection: EtcdConnection, firstAnswerMs?: number): Promise<number> {
    const { location, identifier } = this.#options
    if (this.#epoch === '') await ensureStore(connection, location, identifier())
    else {
      // A small question finds out sooner when the member hangs.
      await connection.get(META, firstAnswerMs)
      const revision = await this.#readLog(connection)
      if (revision !== undefined) return revision
    }
    return this.#load(connection)
  }

  /** What is there, and the log from where it is known on. */
  #beyond() {
    // Keys name the first revision of an entry; one that begins at or before the last known is known.
    return [{ get: META }, { range: { prefix: LOG, after: logKey(this.#revision), limit: LOG_PAGE } }] as const
  }

  /** @returns etcd's revision of what is known then; undefined when the log begins later than what is known here */
  async #readLog(connection: EtcdConnection): Promise<number | undefined> {
    const { replicas } = this.#options
    for (;;) {
      const known = this.#revision
      const last = this.#last
      const { revision, found } = await connection.readTogether([
        ...this.#beyond(),
        { range: { prefix: REPLICA } },
        { range: { prefix: HEARD } },
        { range: { prefix: LOG, limit: 1, keysOnly: true } },
        { get: last?.key ?? META },
      ])
      const [meta, log, members, heard, oldest, there] = found
      const { item, newest } = this.#checkMeta(meta!.items[0], known)
      if (last && isReplaced(last, there!.items[0], oldest!.items[0]?.key))
        throw new StoreReplaced(goneBack(newest, known))
      for (const entry of log!.items) if (!this.#takeLogged(entry, newest)) return undefined
      if (this.#revision < newest) {
        if (log!.more && this.#revision > known) continue
        return undefined
      }
      this.#metaRevision = item.revision
      replicas.load(members!.items)
      // The last word of each, if it came while nobody listened here.
      for (const item of heard!.items) if (item.revision > this.#watched) replicas.receive(item)
      return revision
    }
  }

  async #load(connection: EtcdConnection): Promise<number> {
    const { location, replicas, log } = this.#options
    const loaded = await loadState(connection, location)
    const { meta, metaRevision, revision, memory, marks, history, setAside } = loaded
    const isFirst = this.#epoch === ''
    if (this.#newEpoch) return this.#renewEpoch(connection, meta, metaRevision)
    const known = this.#revision
    if (!isFirst) this.#checkSame(meta, known)
    this.#epoch = meta.epoch
    this.#author.withdraw()
    this.#memory = memory
    this.#history = new HistoryMarks(this.#options, marks, meta.revision)
    this.#entries = history
    this.#revision = meta.revision
    const newest = history.at(-1)
    this.#last = newest && { key: logKey(newest.first), author: newest.author }
    this.#metaRevision = metaRevision
    this.#setAside = new Map(setAside.map((item) => [item.key, item]))
    for (const { key, reason } of setAside.slice(0, 20))
      log.error({ key, reason }, 'a record cannot be read; set aside')
    if (setAside.length > 20) log.error({ records: setAside.length }, 'records cannot be read; all are in the status')
    if (!isFirst) {
      log.warn({ revision: meta.revision }, 'cut off for longer than history reaches back; loaded everything anew')
      for (const listener of [...this.#listeners]) if (this.#listeners.has(listener)) listener.load(this.#state())
    }
    if (meta.revision > known) this.#author.loaded(history.find(({ first }) => first === known + 1)?.author)
    replicas.load(loaded.replicas)
    // What was written since; the watch tells of what this cannot read.
    return (await this.#readLog(connection)) ?? revision
  }

  /** For a restored backup: its clients are ahead of it. */
  async #renewEpoch(connection: EtcdConnection, meta: Meta, metaRevision: number): Promise<number> {
    const { location, identifier, log } = this.#options
    const epoch = identifier()
    const { succeeded } = await connection.transact({
      compare: [{ key: META, revision: metaRevision }],
      success: [{ put: META, value: encodeMeta({ ...meta, epoch }) }],
      failure: [],
    })
    if (!succeeded) throw new StoreRefused(`${location} is in use: stop all its replicas before giving it a new epoch`)
    log.warn({ epoch, before: meta.epoch }, 'the store has a new epoch')
    this.#newEpoch = false
    return this.#load(connection)
  }

  // ---- Taking what comes ----

  /**
   * @param newest the last revision there is, where it is known: what lies beyond it in the log is no commit's
   * @returns false when it cannot be read, or is not the next
   */
  #takeLogged({ key, value, revision }: KeyValue, newest = Number.MAX_SAFE_INTEGER): boolean {
    const first = Number(key.slice(LOG.length))
    if (Number.isNaN(first)) {
      this.#setAside.set(key, { key, reason: 'no entry of the log' })
      return true
    }
    if (first <= this.#revision) return true
    if (key > logKey(newest)) {
      this.#setAside.set(key, { key, reason: `begins after revision ${newest}, which is the last` })
      return true
    }
    // Whatever is in it, it is here already.
    if (first === this.#revision + 1 && this.#author.recognise(authorOf(value), revision)) return true
    let entry: LogEntry
    try {
      entry = decodeLogEntry(key, value)
    } catch (error) {
      const reason = (error as Error).message
      this.#options.log.error({ key, reason }, 'an entry of the log cannot be read; the state is loaded anew')
      this.#setAside.set(key, { key, reason })
      return false
    }
    if (entry.first !== this.#revision + 1) return false
    if (entry.epoch !== this.#epoch) throw replacedBy(entry.epoch)
    this.#take(entry, revision)
    return true
  }

  /** The one door: the next entry of the log, whoever wrote it. */
  #take(entry: LogEntry, metaRevision: number): void {
    // Someone else was faster, or an earlier try of ours whose answer was lost.
    this.#author.withdraw()
    const transactions = entry.transactions.map((logged, index) => this.#redo(logged, entry.first + index))
    this.publish(transactions, metaRevision, entry.author)
    this.#author.taken(entry.author)
  }

  #redo({ time, deeds, history }: LoggedTransaction, revision: number): Committed {
    const { draft } = this.#memory.run((tx) => {
      for (const deed of deeds) redo(tx, deed)
    }, time)
    const committed = draft.committed ?? { revision, time, changes: [], leases: { put: [], removed: [] } }
    this.#memory.revision = revision
    const changed = new Set(committed.changes.map(({ namespace, service }) => serviceKey(namespace, service)))
    const missed = history.filter(({ namespace, service }) => !changed.has(serviceKey(namespace, service)))
    if (missed.length === 0) return committed
    // It took away what was set aside here. The service has this revision all the same, as everywhere.
    const changes = missed.map(({ namespace, service, items }): ServiceChange => {
      const { revision: after = 0, emptied } = this.#memory.service(namespace, service) ?? {}
      const value = Object.freeze({ revision, ...(emptied && { emptied }) })
      this.#memory.apply({ kind: 'service', namespace, service, value })
      return { namespace, service, after, put: [], remove: [], ...(emptied && { emptied }), items }
    })
    return { ...committed, changes: [...committed.changes, ...changes] }
  }

  #remember(transactions: readonly Committed[]): void {
    const entries = transactions.flatMap(({ revision, time, changes }) =>
      changes.map(({ namespace, service, after, items }) => ({ namespace, service, revision, time, after, items })),
    )
    this.#entries.push({ revision: this.#revision, entries })
    while (this.#entries[0] && this.#entries[0].revision <= this.#history.floor) this.#entries.shift()
  }

  #state(): StoreState {
    const { floor } = this.#history
    return {
      revision: this.#revision,
      floor,
      services: this.#memory.services(),
      leases: this.#memory.leases(),
      history: this.#entries.flatMap(({ entries }) => entries.filter(({ revision }) => revision > floor)),
    }
  }

  // ---- Whether it is still the same ----

  /**
   * @param known the revision that was known before `item` was asked for: the watch may be faster than the answer
   * @throws StoreReplaced
   */
  #checkMeta(item: KeyValue | undefined, known: number): { readonly item: KeyValue; readonly newest: number } {
    if (item === undefined)
      throw new StoreReplaced(
        'the store is gone from etcd: this replica serves what it knows; restore a backup before it is restarted, or it ' +
          'begins with an empty one',
      )
    const meta = readMeta(item, this.#options.location)
    this.#checkSame(meta, known)
    return { item, newest: meta.revision }
  }

  #checkSame({ epoch, revision }: Meta, known: number): void {
    if (epoch !== this.#epoch) throw replacedBy(epoch)
    if (revision < known) throw new StoreReplaced(goneBack(revision, known))
  }
}

function replacedBy(epoch: string): StoreReplaced {
  return new StoreReplaced(`etcd holds another store now, of epoch ${epoch}: ${RESTART}`)
}

/** Whether the log goes another way since then: at the place of a commit that was there, there is another, or none. */
function isReplaced(
  last: { readonly key: string; readonly author: string },
  there: KeyValue | undefined,
  oldest: string | undefined,
): boolean {
  if (there) return authorOf(there.value) !== last.author
  // What is older than all that is left may have left history.
  return oldest !== undefined && oldest <= last.key
}

function goneBack(revision: number, known: number): string {
  return (
    `etcd is at revision ${revision} and is not what it was at ${known}, as after restoring a backup: stop all ` +
    'replicas, start one with --new-epoch, then the others'
  )
}

/** The records that a transaction has written anew. */
function* keysOf({ changes, leases }: Committed): Iterable<string> {
  for (const { id } of leases.put) yield `lease/${id}`
  for (const id of leases.removed) yield `lease/${id}`
  for (const { namespace, service, items } of changes) {
    yield `service/${namespace}/${service}`
    for (const { kind, ids } of items)
      if (kind === 'policy') yield `policy/${namespace}/${service}`
      else for (const id of ids) yield `${kind}/${namespace}/${service}/${id}`
  }
}
