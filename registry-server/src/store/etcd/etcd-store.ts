/**
 * The store on etcd, for any number of replicas.
 *
 * Each replica holds the whole state in memory and follows one log, whose entries say what was done. To write, it runs
 * the waiting transactions on what it knows and offers the outcome to etcd as the next entry, on the condition that
 * nobody else was faster; then it reads what the faster one did, and runs them again. So every transaction is decided
 * on the newest state, revisions have no gaps, and what a replica knows is always what the log says up to some
 * revision: an own commit, one of another replica, and what was missed while cut off come by the same door,
 * {@link EtcdStore.#take}.
 *
 * One commit is under way at a time; those that wait meanwhile share the next. So etcd's latency bounds how long a
 * write takes, not how many there are.
 */

import { formatDuration, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { changesOf, HistoryMarks } from '../history-marks.ts'
import { redo, serviceKey, type Draft, type StoreMemory } from '../store-state.ts'
import {
  StoreRefused,
  StoreUnavailable,
  TransactionTooLarge,
  type Committed,
  type Outcome,
  type Replica,
  type ServiceChange,
  type Store,
  type StoreListener,
  type StoreReader,
  type StoreState,
  type StoreStatus,
  type Transaction,
} from '../store.ts'
import {
  EtcdConnection,
  EtcdFailure,
  MAX_OPERATIONS,
  type EtcdAccess,
  type FeedEvent,
  type KeyValue,
  type Operation,
  type TransactionAnswer,
  type TransactionRequest,
} from './etcd-connection.ts'
import { ensureStore, loadState, readMeta, type LoadedEntry, type SetAside } from './etcd-loader.ts'
import { bytesOf, FIXED_OPERATIONS, operationsOf, prepare, type PreparedDraft } from './commit.ts'
import { EtcdReplicas } from './etcd-replicas.ts'
import { EtcdSession } from './etcd-session.ts'
import { encodeMeta, HEARD, locationOf, LOG, logKey, META, REPLICA, STATE, TURN, type Meta } from './layout.ts'
import { authorOf, decodeLogEntry, type LogEntry, type LoggedTransaction } from './log-entry.ts'

/** Transactions that may wait. Each is a request that waits for its answer; more are refused at once. */
const MAX_PENDING = 20_000
/** How long a transaction waits for etcd: an election takes a second or two, a client gives up after five. */
const PATIENCE_MS = 4_000
/** Of one commit: more, and those behind it wait longer than they gain. */
const GROUP_WRITES = 1_500
const GROUP_BYTES = 786_432
/** Entries read at once. */
const LOG_PAGE = 200
/** For how long a refusal by etcd counts as its state; then the next commit finds out. */
const REFUSED_MS = 5_000
/** About the time of an election. */
const OFFER_AGAIN_MS = 1_000
/** Commits lost in a row to faster ones, after which a replica asks the others to let it write. */
const LOSSES = 3
/** How long they let it; it takes a few round trips of its own. */
const TURN_MS = 300
/** How long a beat waits for the watch to tell what is there. */
const CHECK_MS = 1_000
const RESTART = 'this replica serves what it knows; restart it to follow'

export interface EtcdStoreOptions {
  readonly endpoints: readonly string[]
  readonly access: EtcdAccess
  readonly prefix: string
  /** What etcd takes in one request: its `--max-request-bytes`. */
  readonly maxRequestBytes: number
  /** For how long to wait for etcd at the start; undefined: for ever. */
  readonly timeoutMs: number | undefined
  /** Ends the waiting. */
  readonly signal?: AbortSignal | undefined
  /** Gives the store a new identity. */
  readonly newEpoch: boolean
  /** Where this replica runs, for people. */
  readonly name: string
  readonly identifier: () => string
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly historyRevisions: number
  readonly historyChanges: number
  /** After each commit: how many transactions it held, and how long etcd took. */
  readonly onCommit?: (transactions: number, ms: number) => void
}

interface Pending {
  readonly body: (tx: Transaction) => unknown
  readonly deadlineMs: number
  resolve(outcome: Outcome<unknown>): void
  reject(error: unknown): void
}

/** What a transaction came to when it was run last. */
type Run = { readonly draft: Draft; readonly result: unknown } | { readonly error: unknown }

/** A commit on its way to etcd. */
interface Attempt {
  /** Empty when nothing is to be written, but only to be known that what was seen is the newest. */
  readonly author: string
  readonly pending: readonly Pending[]
  readonly runs: readonly Run[]
  readonly drafts: readonly PreparedDraft[]
  readonly request: TransactionRequest
  readonly startMs: number
  /** The revision that it was decided on. */
  readonly base: number
  /** Its drafts are part of the memory. */
  applied: boolean
  settled: boolean
}

/** The state of etcd is not the one that this replica has followed. Only a restart can follow another. */
class StoreReplaced extends Error {}

export class EtcdStore implements Store {
  readonly replicas: EtcdReplicas
  readonly #options: EtcdStoreOptions
  readonly #session: EtcdSession
  readonly #self: Replica
  readonly #listeners = new Set<StoreListener>()
  #epoch = ''
  #newEpoch: boolean
  #memory!: StoreMemory
  #history!: HistoryMarks
  /** What history holds, by commit, oldest first. */
  #entries: Pick<LoadedEntry, 'revision' | 'entries'>[] = []
  #durable = 0
  /** The commit that made the newest revision, where it is known: what etcd holds at that place must be the same. */
  #last: { readonly key: string; readonly author: string } | undefined
  /** Of etcd, when meta was last written. */
  #metaRevision = 0
  /** Of etcd, up to which the watch has told everything, or the reading before it. */
  #watched = 0
  #setAside = new Map<string, SetAside>()
  #queue: Pending[] = []
  #attempt: Attempt | undefined
  /** Commits whose answer was lost, all on the present revision: at most one of them has happened, or will. */
  #uncertain: Attempt[] = []
  #pumping = false
  #attempts = 0
  /** Of what a group may hold: less where etcd has refused as much. */
  #groupShare = 1
  /** In a row. */
  #losses = 0
  /** Of another replica; nothing is written here meanwhile. */
  #turn: { readonly of: string; readonly over: Promise<void>; readonly end: () => void } | undefined
  #waiters: { readonly watched: number; readonly resolve: () => void }[] = []
  #readers: (() => void)[] = []
  #closed: Promise<void> | undefined
  /** While closing: called once nothing waits any more. */
  #finished: (() => void) | undefined
  #commits = 0
  #failures = 0
  /** The last commit that etcd refused for a reason of its own, such as a full disk. */
  #refused: { readonly reason: string; readonly atMs: number } | undefined
  #sweep: { readonly atMs: number; readonly cancel: () => void } | undefined

  private constructor(options: EtcdStoreOptions) {
    this.#options = options
    this.#newEpoch = options.newEpoch
    const { clock, log, random, endpoints, access, prefix } = options
    this.#self = { id: options.identifier(), name: options.name, since: new Date(clock.wall()).toISOString() }
    this.replicas = new EtcdReplicas({ self: this.#self, clock, log })
    this.#session = new EtcdSession({
      endpoints,
      connect: (endpoint) => new EtcdConnection({ endpoint, access, prefix, clock }),
      clock,
      random,
      log,
      follower: {
        catchUp: async (...asked) => (this.#watched = await this.#catchUp(...asked)),
        receive: (events) => this.#receive(events),
        check: (connection) => this.#check(connection),
        opening: (connection) => this.replicas.join(connection),
        opened: () => this.#pump(),
        lost: () => this.#disconnected(),
      },
    })
  }

  /**
   * Waits for etcd, and loads.
   * @throws StoreRefused when what is there must not be used, or when it cannot be reached in time
   */
  static async open(options: EtcdStoreOptions): Promise<EtcdStore> {
    const store = new EtcdStore(options)
    const { clock, timeoutMs, signal } = options
    let cancel = () => {}
    const late = new Promise<never>((_, reject) => {
      const stopped = () => reject(new StoreRefused('stopped while waiting for etcd'))
      if (signal?.aborted === true) stopped()
      signal?.addEventListener('abort', stopped, { once: true })
      if (timeoutMs === undefined) return
      cancel = clock.after(timeoutMs, () =>
        reject(
          new StoreRefused(
            `${store.#location} could not be used within ${formatDuration(timeoutMs)}, as --store-timeout says: ` +
              `${store.#session.lost?.reason}`,
          ),
        ),
      )
    })
    try {
      await Promise.race([store.#session.open(finalFor(options.endpoints)), late])
      return store
    } catch (error) {
      await store.#session.close()
      await store.replicas.close()
      if (error instanceof EtcdFailure)
        throw new StoreRefused(`${store.#location} cannot be used: ${error.message}`, error)
      throw error
    } finally {
      cancel()
    }
  }

  get epoch(): string {
    return this.#epoch
  }

  get #location(): string {
    const { access, endpoints, prefix } = this.#options
    return locationOf(endpoints, access.tls, prefix)
  }

  transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    if (this.#closed) return Promise.reject(new StoreUnavailable('it is closing'))
    const lost = this.#lost
    if (lost !== undefined) return Promise.reject(new StoreUnavailable(lost))
    if (this.#queue.length >= MAX_PENDING)
      return Promise.reject(new StoreUnavailable(`${MAX_PENDING} transactions wait for etcd`))
    return new Promise((resolve, reject) => {
      const deadlineMs = this.#options.clock.now() + PATIENCE_MS
      this.#queue.push({ body, deadlineMs, resolve: resolve as Pending['resolve'], reject })
      this.#pump()
      this.#sweepLater()
    })
  }

  read<T>(body: (state: StoreReader) => T): Promise<T> {
    return new Promise((resolve, reject) => {
      const run = () => {
        try {
          resolve(body(this.#memory))
        } catch (error) {
          reject(error)
        }
      }
      // While a commit is under way the memory holds what may never be.
      if (this.#attempt?.applied === true) this.#readers.push(run)
      else run()
    })
  }

  /** Those that ask together, and those that write meanwhile, share one question to etcd. */
  async sync(): Promise<void> {
    await this.transact(() => {})
  }

  async watch(listener: StoreListener): Promise<() => void> {
    await this.read(() => {
      listener.load(this.#state())
      this.#listeners.add(listener)
    })
    return () => this.#listeners.delete(listener)
  }

  status(): StoreStatus {
    return {
      kind: 'etcd',
      location: this.#location,
      leases: this.#memory.counts.leases,
      overrides: this.#memory.counts.overrides,
      pending: this.#queue.length,
      commits: this.#commits,
      failures: this.#failures,
      ageMs: this.#session.ageMs,
      lost: this.#lost ?? this.#refusedLately,
      setAside: [...this.#setAside.values()],
    }
  }

  close(): Promise<void> {
    return (this.#closed ??= this.#close())
  }

  async #close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#finished = resolve
      this.#finishLater()
    })
    this.#sweep?.cancel()
    await this.replicas.close().catch((error: unknown) => {
      this.#options.log.debug({ error: String(error) }, 'the replica could not sign off; its time will run out')
    })
    await this.#session.close()
  }

  /** While closing: waits for what etcd can still answer, and for nothing else. */
  #finishLater(): void {
    if (this.#finished === undefined) return
    if (this.#session.connection === undefined) this.#refuse(this.#queue.splice(0), 'it is closing')
    if (this.#queue.length === 0 && this.#attempt === undefined) this.#finished()
  }

  /**
   * Only what lasts longer than transactions wait counts: an election is none of their business. From the last sign of
   * life on, not from when its lack was noticed: whoever was refused for it must not wait for it again.
   */
  get #lost(): string | undefined {
    const { lost, ageMs } = this.#session
    return lost && ageMs >= PATIENCE_MS ? lost.reason : undefined
  }

  get #refusedLately(): string | undefined {
    const refused = this.#refused
    return refused && this.#options.clock.now() - refused.atMs < REFUSED_MS ? refused.reason : undefined
  }

  // ---- Following the log ----

  /** Everything that was missed; the whole state where the log does not reach back that far. */
  async #catchUp(connection: EtcdConnection, firstAnswerMs?: number): Promise<number> {
    if (this.#epoch === '') await ensureStore(connection, this.#location, this.#options.identifier())
    else {
      // A small question finds out sooner when the member hangs.
      await connection.get(META, firstAnswerMs)
      const revision = await this.#readLog(connection)
      if (revision !== undefined) return revision
    }
    return this.#load(connection)
  }

  /** @returns etcd's revision of what is known then; undefined when the log begins later than what is known here */
  async #readLog(connection: EtcdConnection): Promise<number | undefined> {
    for (;;) {
      const known = this.#durable
      const last = this.#last
      const { revision, found } = await connection.readTogether([
        { get: META },
        { range: { prefix: LOG, after: this.#lastLogKey(), limit: LOG_PAGE } },
        { range: { prefix: REPLICA } },
        { range: { prefix: HEARD } },
        { range: { prefix: LOG, limit: 1, keysOnly: true } },
        { get: last?.key ?? META },
      ])
      const [meta, log, replicas, heard, oldest, there] = found
      const { item, newest } = this.#checkMeta(meta!.items[0], known)
      if (last && isReplaced(last, there!.items[0], oldest!.items[0]?.key))
        throw new StoreReplaced(goneBack(newest, known))
      for (const entry of log!.items) if (!this.#takeLogged(entry, newest)) return undefined
      if (this.#durable < newest) {
        if (log!.more && this.#durable > known) continue
        return undefined
      }
      this.#metaRevision = item.revision
      this.replicas.load(replicas!.items)
      // The last word of each, if it came while nobody listened here.
      for (const item of heard!.items) if (item.revision > this.#watched) this.replicas.receive(item)
      return revision
    }
  }

  async #load(connection: EtcdConnection): Promise<number> {
    const loaded = await loadState(connection, this.#location)
    const { meta, metaRevision, revision, memory, marks, history, setAside, replicas } = loaded
    const isFirst = this.#epoch === ''
    if (this.#newEpoch) return this.#renewEpoch(connection, meta, metaRevision)
    if (!isFirst) this.#checkSame(meta, this.#durable)
    this.#epoch = meta.epoch
    if (this.#attempt) this.#withdraw(this.#attempt)
    const uncertain = meta.revision > this.#durable ? this.#uncertain.splice(0) : []
    const next = history.find(({ first }) => first === this.#durable + 1)
    this.#memory = memory
    this.#history = new HistoryMarks(this.#options, marks, meta.revision)
    this.#entries = history
    this.#durable = meta.revision
    const newest = history.at(-1)
    this.#last = newest && { key: logKey(newest.first), author: newest.author }
    this.#metaRevision = metaRevision
    this.#setAside = new Map(setAside.map((item) => [item.key, item]))
    const { log } = this.#options
    for (const { key, reason } of setAside.slice(0, 20))
      log.error({ key, reason }, 'a record cannot be read; set aside')
    if (setAside.length > 20) log.error({ records: setAside.length }, 'records cannot be read; all are in the status')
    if (!isFirst) {
      log.warn({ revision: meta.revision }, 'cut off for longer than history reaches back; loaded everything anew')
      for (const listener of [...this.#listeners]) if (this.#listeners.has(listener)) listener.load(this.#state())
    }
    for (const attempt of uncertain) {
      if (next?.author === attempt.author) this.#settle(attempt)
      else if (next === undefined)
        this.#giveUp(attempt, new StoreUnavailable('cut off for so long that nobody knows whether it happened'))
    }
    this.replicas.load(replicas)
    // What was written since; the watch tells of what this cannot read.
    return (await this.#readLog(connection)) ?? revision
  }

  /** For a restored backup: its clients are ahead of it. */
  async #renewEpoch(connection: EtcdConnection, meta: Meta, metaRevision: number): Promise<number> {
    const epoch = this.#options.identifier()
    const { succeeded } = await connection.transact({
      compare: [{ key: META, revision: metaRevision }],
      success: [{ put: META, value: encodeMeta({ ...meta, epoch }) }],
      failure: [],
    })
    if (!succeeded)
      throw new StoreRefused(`${this.#location} is in use: stop all its replicas before giving it a new epoch`)
    this.#options.log.warn({ epoch, before: meta.epoch }, 'the store has a new epoch')
    this.#newEpoch = false
    return this.#load(connection)
  }

  #receive(events: readonly FeedEvent[]): void {
    for (const event of events) {
      if (this.replicas.receive(event)) continue
      if (event.key === TURN && event.value) this.#letWrite(event.value.toString())
      const { key, value, revision } = event
      // Entries leave history, which changes nothing.
      if (value === undefined) this.#setAside.delete(key)
      if (value === undefined || !key.startsWith(LOG)) continue
      if (!this.#takeLogged({ key, value, revision }))
        throw new EtcdFailure('unreachable', `${key} cannot follow on revision ${this.#durable}`)
    }
    this.#watched = Math.max(this.#watched, events.at(-1)?.revision ?? 0)
    this.#waiters = this.#waiters.filter(({ watched, resolve }) => {
      if (watched <= this.#watched) resolve()
      return watched > this.#watched
    })
  }

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
    if (first <= this.#durable) return true
    if (key > logKey(newest)) {
      this.#setAside.set(key, { key, reason: `begins after revision ${newest}, which is the last` })
      return true
    }
    // Whatever is in it, it is here already.
    const attempt = this.#attempt
    if (attempt?.applied === true && first === this.#durable + 1 && isBy(attempt.author, value)) {
      this.#confirm(attempt, revision)
      return true
    }
    let entry: LogEntry
    try {
      entry = decodeLogEntry(key, value)
    } catch (error) {
      const reason = (error as Error).message
      this.#options.log.error({ key, reason }, 'an entry of the log cannot be read; the state is loaded anew')
      this.#setAside.set(key, { key, reason })
      return false
    }
    if (entry.first !== this.#durable + 1) return false
    if (entry.epoch !== this.#epoch) throw this.#replacedBy(entry.epoch)
    this.#take(entry, revision)
    return true
  }

  /** The one door: the next entry of the log, whoever wrote it. */
  #take(entry: LogEntry, metaRevision: number): void {
    // Someone else was faster, or an earlier try of ours whose answer was lost.
    if (this.#attempt) this.#withdraw(this.#attempt)
    const own = this.#uncertain.find(({ author }) => author === entry.author)
    const transactions = entry.transactions.map((logged, index) => this.#redo(logged, entry.first + index))
    this.#publish(transactions, metaRevision, entry.author)
    if (this.#turn && entry.author.startsWith(`${this.#turn.of}.`)) this.#turn.end()
    if (own) {
      this.#commits++
      this.#settle(own)
    }
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

  #publish(transactions: readonly Committed[], metaRevision: number, author: string): void {
    this.#last = { key: logKey(transactions[0]!.revision), author }
    this.#durable = transactions.at(-1)!.revision
    this.#metaRevision = metaRevision
    this.#uncertain = []
    const changes = transactions.reduce((sum, item) => sum + changesOf(item.changes), 0)
    this.#history.take(this.#history.plan([{ revision: this.#durable, changes }], this.#durable))
    this.#remember(transactions)
    if (this.#setAside.size > 0) {
      this.#setAside.delete(logKey(transactions[0]!.revision))
      for (const item of transactions) for (const key of keysOf(item)) this.#setAside.delete(STATE + key)
    }
    const { floor } = this.#history
    // One that comes during this is told as part of its state.
    for (const listener of [...this.#listeners]) if (this.#listeners.has(listener)) listener.apply(transactions, floor)
  }

  #remember(transactions: readonly Committed[]): void {
    const entries = transactions.flatMap(({ revision, time, changes }) =>
      changes.map(({ namespace, service, after, items }) => ({ namespace, service, revision, time, after, items })),
    )
    this.#entries.push({ revision: this.#durable, entries })
    while (this.#entries[0] && this.#entries[0].revision <= this.#history.floor) this.#entries.shift()
  }

  #state(): StoreState {
    const { floor } = this.#history
    return {
      revision: this.#durable,
      floor,
      services: this.#memory.services(),
      leases: this.#memory.leases(),
      history: this.#entries.flatMap(({ entries }) => entries.filter(({ revision }) => revision > floor)),
    }
  }

  #lastLogKey(): string {
    // Keys name the first revision of an entry; one that begins at or before the last known is known.
    return logKey(this.#durable)
  }

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
    const meta = readMeta(item, this.#location)
    this.#checkSame(meta, known)
    return { item, newest: meta.revision }
  }

  #checkSame({ epoch, revision }: Meta, known: number): void {
    if (epoch !== this.#epoch) throw this.#replacedBy(epoch)
    if (revision < known) throw new StoreReplaced(goneBack(revision, known))
  }

  #replacedBy(epoch: string): StoreReplaced {
    return new StoreReplaced(`etcd holds another store now, of epoch ${epoch}: ${RESTART}`)
  }

  /**
   * Whether the watch tells what it should. That this replica knows it is not enough: its own commits it knows from
   * their answers, and who comes and goes from the watch alone.
   */
  async #check(connection: EtcdConnection): Promise<boolean> {
    const known = this.#durable
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
    return item.revision <= this.#watched && newest <= this.#durable
  }

  // ---- Writing ----

  #pump(): void {
    if (this.#pumping) return
    this.#pumping = true
    void this.#drain()
  }

  async #drain(): Promise<void> {
    // One turn later, so that all transactions of this turn share the commit.
    await Promise.resolve()
    for (;;) {
      while (this.#turn) await this.#turn.over
      const connection = this.#session.connection
      const attempt = connection && this.#begin()
      if (attempt === undefined) {
        // In this very turn: whoever is answered in it may write again.
        this.#pumping = false
        this.#finishLater()
        return
      }
      let answer: TransactionAnswer
      try {
        answer = await this.#offer(attempt.request, connection!)
      } catch (error) {
        this.#failed(attempt, error as EtcdFailure, connection!)
        continue
      }
      // The watch was faster than the answer.
      if (attempt.settled) continue
      if (!answer.succeeded) this.#lose(attempt, answer, connection!)
      // Withdrawn when the connection was lost: the next session finds it in the log.
      else if (attempt.applied) this.#confirm(attempt, attempt.author === '' ? this.#metaRevision : answer.revision)
      else this.#answerReaders(attempt)
    }
  }

  /**
   * One that is farther from etcd would always be too slow beside one that never rests. Its wish is worth nothing but
   * this courtesy: what is written, and in which order, depends on the conditions of commits alone.
   */
  #letWrite(replica: string): void {
    this.#turn?.end()
    // Of several that ask the last goes first.
    if (replica === this.#self.id) return
    let end = () => {}
    const over = new Promise<void>((resolve) => {
      const cancel = this.#options.clock.after(TURN_MS, () => end())
      end = () => {
        cancel()
        this.#turn = undefined
        resolve()
      }
    })
    this.#turn = { of: replica, over, end }
  }

  /**
   * Offers it again while there is no answer: a member forgets what it sent to a leader that has died. It can happen
   * once only, and one that finds that it has happened finds it in the log, by its author.
   */
  #offer(request: TransactionRequest, connection: EtcdConnection): Promise<TransactionAnswer> {
    return new Promise((resolve, reject) => {
      let offers = 0
      let cancel = () => {}
      const offer = () => {
        offers++
        cancel = this.#options.clock.after(OFFER_AGAIN_MS, offer)
        connection.transact(request).then(
          (answer) => {
            cancel()
            resolve(answer)
          },
          (error: EtcdFailure) => {
            cancel()
            // What refuses one says nothing about the others.
            reject(offers === 1 ? error : new EtcdFailure('unreachable', error.message, error))
          },
        )
      }
      offer()
    })
  }

  /** Runs as many of those that wait as one commit takes. */
  #begin(): Attempt | undefined {
    const pending: Pending[] = []
    const runs: Run[] = []
    const drafts: PreparedDraft[] = []
    const time = new Date(this.#options.clock.wall()).toISOString()
    let writes = 0
    let bytes = 0
    while (this.#queue.length > 0) {
      const next = this.#queue[0]!
      const run = this.#run(next, time)
      if ('draft' in run && run.draft.committed) {
        const prepared = prepare(run.draft)
        const isFull =
          writes + prepared.records.length > GROUP_WRITES * this.#groupShare ||
          bytes + prepared.bytes > this.#groupBytes
        if (drafts.length > 0 && isFull) {
          run.draft.undo()
          break
        }
        const tooLarge = this.#tooLarge(prepared)
        if (tooLarge) {
          run.draft.undo()
          this.#queue.shift()
          next.reject(tooLarge)
          continue
        }
        writes += prepared.records.length
        bytes += prepared.bytes
        drafts.push(prepared)
      }
      this.#queue.shift()
      pending.push(next)
      runs.push(run)
    }
    if (pending.length === 0) {
      this.#settled()
      return undefined
    }
    const author = drafts.length > 0 ? `${this.#self.id}.${++this.#attempts}` : ''
    const request = this.#request(author, drafts)
    const startMs = this.#options.clock.now()
    const base = this.#durable
    return (this.#attempt = { author, pending, runs, drafts, request, startMs, base, applied: true, settled: false })
  }

  #run(pending: Pending, time: string): Run {
    try {
      return this.#memory.run(pending.body, time)
    } catch (error) {
      return { error }
    }
  }

  /** Half of what etcd takes is spare for the prefix of each key. */
  get #groupBytes(): number {
    return Math.min(GROUP_BYTES, this.#options.maxRequestBytes / 2) * this.#groupShare
  }

  #tooLarge(prepared: PreparedDraft): TransactionTooLarge | undefined {
    const { maxRequestBytes, prefix } = this.#options
    const most = MAX_OPERATIONS - FIXED_OPERATIONS
    if (prepared.records.length > most)
      return new TransactionTooLarge(
        `it writes ${prepared.records.length} records, and etcd takes ${most}; send fewer nodes at once`,
      )
    if (prepared.bytes <= this.#groupBytes) return undefined
    const bytes = bytesOf(this.#operations('', [prepared]), prefix)
    if (bytes <= maxRequestBytes) return undefined
    return new TransactionTooLarge(
      `it takes ${bytes} bytes in etcd, which takes ${maxRequestBytes} in one request; send fewer nodes at once`,
    )
  }

  #operations(author: string, drafts: readonly PreparedDraft[]): Operation[] {
    if (drafts.length === 0) return []
    return operationsOf({ epoch: this.#epoch, author, drafts, history: this.#history })
  }

  #request(author: string, drafts: readonly PreparedDraft[]): TransactionRequest {
    return {
      compare: [{ key: META, revision: this.#metaRevision }],
      success: this.#operations(author, drafts),
      failure: [
        { get: META },
        { range: { prefix: LOG, after: this.#lastLogKey(), limit: LOG_PAGE } },
        ...(drafts.length > 0 && this.#losses >= LOSSES ? [{ put: TURN, value: Buffer.from(this.#self.id) }] : []),
      ],
    }
  }

  #confirm(attempt: Attempt, metaRevision: number): void {
    attempt.applied = false
    this.#attempt = undefined
    if (attempt.drafts.length > 0) {
      this.#commits++
      this.#losses = 0
      this.#refused = undefined
      const transactions = attempt.drafts.map(({ draft }) => draft.committed!)
      this.#publish(transactions, metaRevision, attempt.author)
    }
    this.#settle(attempt)
    if (attempt.drafts.length > 0)
      this.#options.onCommit?.(attempt.drafts.length, this.#options.clock.now() - attempt.startMs)
  }

  /** Tells the authors what came of it. */
  #settle(attempt: Attempt): void {
    attempt.settled = true
    this.#unqueue(attempt)
    for (const [index, pending] of attempt.pending.entries()) {
      const run = attempt.runs[index]!
      if ('error' in run) pending.reject(run.error)
      else pending.resolve({ revision: run.draft.committed?.revision ?? this.#durable, result: run.result })
    }
    this.#settled()
  }

  /** Takes an attempt out of the memory; its authors wait for the next. */
  #withdraw(attempt: Attempt): void {
    this.#attempt = undefined
    if (!attempt.applied) return
    attempt.applied = false
    for (const { draft } of [...attempt.drafts].reverse()) draft.undo()
    this.#queue.unshift(...attempt.pending)
    this.#sweepLater()
    this.#settled()
  }

  /** It failed, or nobody knows. */
  #giveUp(attempt: Attempt, error: Error): void {
    attempt.settled = true
    this.#unqueue(attempt)
    for (const pending of attempt.pending) pending.reject(error)
  }

  #unqueue({ pending }: Attempt): void {
    if (this.#queue.length === 0) return
    const mine = new Set(pending)
    this.#queue = this.#queue.filter((item) => !mine.has(item))
  }

  #disconnected(): void {
    this.replicas.leave()
    const attempt = this.#attempt
    if (attempt) this.#doubt(attempt)
    this.#turn?.end()
    this.#finishLater()
  }

  /** It may have happened, or happen yet. On the same revision only one can, so that running it again is safe. */
  #doubt(attempt: Attempt): void {
    this.#withdraw(attempt)
    if (attempt.author !== '') this.#uncertain.push(attempt)
  }

  /** Someone was faster, or the same commit offered before: takes what the answer brought along. */
  #lose(attempt: Attempt, { found }: TransactionAnswer, connection: EtcdConnection): void {
    try {
      const [meta, log] = found
      const { item, newest } = this.#checkMeta(meta!.items[0], attempt.base)
      for (const entry of log!.items)
        if (!this.#takeLogged(entry, newest)) throw new Error(`cannot follow ${entry.key}`)
      if (this.#attempt === attempt) this.#withdraw(attempt)
      if (attempt.drafts.length > 0 && !attempt.settled) this.#losses++
      // Someone wrote it again as it was, by hand.
      if (newest === this.#durable) this.#metaRevision = item.revision
      if (newest <= this.#durable) this.#answerReaders(attempt)
    } catch (error) {
      if (connection === this.#session.connection) this.#session.fail(error as Error)
      else if (this.#attempt === attempt) this.#doubt(attempt)
    }
  }

  /**
   * Those that write nothing. What is known now was the newest when etcd answered, which was after they asked: were
   * they to ask again, they might never be as fast as those who write.
   */
  #answerReaders(attempt: Attempt): void {
    if (attempt.author !== '' || attempt.settled) return
    const time = new Date(this.#options.clock.wall()).toISOString()
    for (const pending of attempt.pending) {
      if (pending !== this.#queue[0]) return
      const run = this.#run(pending, time)
      if ('draft' in run && run.draft.committed) return run.draft.undo()
      this.#queue.shift()
      if ('error' in run) pending.reject(run.error)
      else pending.resolve({ revision: this.#durable, result: run.result })
    }
  }

  #failed(attempt: Attempt, failure: EtcdFailure, connection: EtcdConnection): void {
    if (attempt.settled) return
    const { log, clock } = this.#options
    if (failure.kind === 'unreachable' || failure.kind === 'compacted') {
      if (this.#attempt === attempt) this.#doubt(attempt)
      if (connection !== this.#session.connection) return
      this.#failures++
      return this.#session.fail(failure)
    }
    if (failure.kind === 'too_large' && attempt.drafts.length > 1) {
      // It takes less than its defaults; what waits was well by itself.
      this.#groupShare /= 2
      log.warn({ error: failure.message, share: this.#groupShare }, 'etcd takes less at once than expected')
      if (this.#attempt === attempt) this.#withdraw(attempt)
      return
    }
    this.#failures++
    log.error({ error: failure.message, transactions: attempt.drafts.length }, 'etcd refuses a commit')
    if (failure.kind !== 'too_large') this.#refused = { reason: failure.message, atMs: clock.now() }
    if (this.#attempt === attempt) this.#withdraw(attempt)
    const { kind, message } = failure
    this.#giveUp(
      attempt,
      kind === 'too_large' ? new TransactionTooLarge(message) : new StoreUnavailable(message, failure),
    )
  }

  /** The memory is what is durable again. */
  #settled(): void {
    for (const run of this.#readers.splice(0)) run()
  }

  #refuse(pending: readonly Pending[], reason: string): void {
    for (const item of pending) item.reject(new StoreUnavailable(reason))
  }

  /** Refuses those that have waited for too long. One that is under way is waited for: its answer comes, or it fails. */
  #sweepLater(): void {
    const { clock } = this.#options
    // Those that are withdrawn go before all others.
    const oldest = this.#queue[0]
    if (oldest === undefined || (this.#sweep && this.#sweep.atMs <= oldest.deadlineMs)) return
    this.#sweep?.cancel()
    const cancel = clock.after(Math.max(0, oldest.deadlineMs - clock.now()), () => {
      this.#sweep = undefined
      const nowMs = clock.now()
      const late = this.#queue.filter(({ deadlineMs }) => deadlineMs <= nowMs)
      this.#queue = this.#queue.filter(({ deadlineMs }) => deadlineMs > nowMs)
      this.#refuse(late, this.#session.lost?.reason ?? `etcd took longer than ${PATIENCE_MS} ms`)
      const waiting = new Set([...this.#queue, ...(this.#attempt?.pending ?? [])])
      this.#uncertain = this.#uncertain.filter(({ pending }) => pending.some((item) => waiting.has(item)))
      this.#finishLater()
      this.#sweepLater()
    })
    this.#sweep = { atMs: oldest.deadlineMs, cancel }
  }
}

/**
 * What ends the waiting before the first session: later, whatever etcd says, what is known is served. One member with a
 * wrong certificate does not count, when all of them have one there is nothing to wait for.
 */
function finalFor(endpoints: readonly string[]): (error: Error) => boolean {
  let members = 0
  return (error) => {
    if (error instanceof StoreRefused || (error instanceof EtcdFailure && error.kind === 'denied')) return true
    members = error instanceof EtcdFailure && error.isLasting ? members + 1 : 0
    return members >= endpoints.length
  }
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

/** @param author empty for a commit that writes nothing, and so leaves no entry */
function isBy(author: string, entry: Buffer): boolean {
  return author !== '' && authorOf(entry) === author
}
