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

import type { Clock, Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { changesOf, HistoryMarks, type HistoryMark } from '../history-marks.ts'
import { keyOf } from '../records.ts'
import { redo, type Draft, type StoreMemory } from '../store-state.ts'
import {
  StoreRefused,
  StoreUnavailable,
  TransactionTooLarge,
  type Committed,
  type HistoryEntry,
  type Outcome,
  type Replica,
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
  type Operation,
  type TransactionAnswer,
  type TransactionRequest,
} from './etcd-connection.ts'
import { ensureStore, loadState, readMeta, type SetAside } from './etcd-loader.ts'
import { EtcdReplicas } from './etcd-replicas.ts'
import { EtcdSession } from './etcd-session.ts'
import { encodeMeta, LOG, logKey, META, REPLICA, STATE, type Meta } from './layout.ts'
import { decodeLogEntry, encodeLogEntry, type LogEntry, type LoggedTransaction } from './log-entry.ts'

/** Transactions that may wait. Each is a request that waits for its answer; more are refused at once. */
const MAX_PENDING = 20_000
/** How long a transaction waits for etcd: an election takes a second or two, a client gives up after five. */
const PATIENCE_MS = 4_000
/** Of one commit: more, and those behind it wait longer than they gain. */
const GROUP_WRITES = 500
const GROUP_BYTES = 262_144
/** What a request holds beside keys and values, generously: meta, the log's head, and lengths. */
const REQUEST_OVERHEAD_BYTES = 4_096
const OPERATION_OVERHEAD_BYTES = 32
/** Meta, the entry, and the entries that leave history. */
const FIXED_OPERATIONS = 3
/** Entries read at once after an interruption. */
const LOG_PAGE = 200
/** For how long a refusal by etcd counts as its state; then the next commit finds out. */
const REFUSED_MS = 5_000
/** How long a beat waits for the watch to tell what is there. */
const CHECK_MS = 1_000

export interface EtcdStoreOptions {
  readonly endpoints: readonly string[]
  readonly access: EtcdAccess
  readonly prefix: string
  /** What etcd takes in one request: its `--max-request-bytes`. */
  readonly maxRequestBytes: number
  /** For how long to wait for etcd at the start; undefined: for ever. */
  readonly timeoutMs: number | undefined
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
  readonly drafts: readonly Draft[]
  readonly request: TransactionRequest
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
  #memory!: StoreMemory
  #history!: HistoryMarks
  /** What history holds, by commit, oldest first. */
  #entries: { readonly revision: number; readonly entries: readonly HistoryEntry[] }[] = []
  #durable = 0
  /** Of etcd, when meta was last written. */
  #metaRevision = 0
  #setAside = new Map<string, SetAside>()
  #queue: Pending[] = []
  #attempt: Attempt | undefined
  /** Commits whose answer was lost, all on the present revision: at most one of them has happened, or will. */
  #uncertain: Attempt[] = []
  #pumping = false
  #attempts = 0
  #waiters: { readonly revision: number; readonly resolve: () => void }[] = []
  #readers: (() => void)[] = []
  #closing = false
  #commits = 0
  #failures = 0
  /** The last commit that etcd refused for a reason of its own, such as a full disk. */
  #refused: { readonly reason: string; readonly atMs: number } | undefined
  #cancelSweep: (() => void) | undefined

  private constructor(options: EtcdStoreOptions) {
    this.#options = options
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
        catchUp: (connection) => this.#catchUp(connection),
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
    const { clock, timeoutMs } = options
    let cancel = () => {}
    const late = new Promise<never>((_, reject) => {
      if (timeoutMs === undefined) return
      cancel = clock.after(timeoutMs, () =>
        reject(
          new StoreRefused(
            `${store.#location} could not be reached in ${timeoutMs} ms: ${store.#session.lost?.reason}`,
          ),
        ),
      )
    })
    try {
      await Promise.race([store.#session.open(isFinal), late])
      return store
    } catch (error) {
      await store.#session.close()
      if (error instanceof EtcdFailure) throw new StoreRefused(`${store.#location} refuses: ${error.message}`, error)
      throw error
    } finally {
      cancel()
    }
  }

  get epoch(): string {
    return this.#epoch
  }

  get #location(): string {
    const { endpoints, prefix } = this.#options
    return `etcd://${endpoints.join()}/${prefix}`
  }

  transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    if (this.#closing) return Promise.reject(new StoreUnavailable('it is closing'))
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

  async close(): Promise<void> {
    if (this.#closing) return
    this.#closing = true
    while (this.#queue.length > 0 || this.#attempt) {
      await new Promise<void>((resolve) => {
        this.#readers.push(resolve)
        if (this.#attempt === undefined) this.#settled()
      })
      if (this.#session.connection === undefined) this.#refuse(this.#queue.splice(0), 'it is closing')
    }
    this.#cancelSweep?.()
    await this.replicas.close().catch((error: unknown) => {
      this.#options.log.debug({ error: String(error) }, 'the replica could not sign off; its time will run out')
    })
    await this.#session.close()
  }

  /** Only what lasts longer than transactions wait counts: an election is none of their business. */
  get #lost(): string | undefined {
    const lost = this.#session.lost
    return lost && lost.forMs >= PATIENCE_MS ? lost.reason : undefined
  }

  get #refusedLately(): string | undefined {
    const refused = this.#refused
    return refused && this.#options.clock.now() - refused.atMs < REFUSED_MS ? refused.reason : undefined
  }

  // ---- Following the log ----

  /** Everything that was missed; the whole state where the log does not reach back that far. */
  async #catchUp(connection: EtcdConnection): Promise<number> {
    if (this.#epoch === '') await ensureStore(connection, this.#location, this.#options.identifier())
    else {
      const revision = await this.#readLog(connection)
      if (revision !== undefined) return revision
    }
    return this.#load(connection)
  }

  /** @returns etcd's revision of what is known then; undefined when the log begins later than what is known here */
  async #readLog(connection: EtcdConnection): Promise<number | undefined> {
    for (;;) {
      const { revision, found } = await connection.transact({
        compare: [],
        success: [
          { get: META },
          { range: { prefix: LOG, after: this.#lastLogKey(), limit: LOG_PAGE } },
          { range: { prefix: REPLICA } },
        ],
        failure: [],
      })
      const [meta, log, replicas] = found
      this.#checkMeta(meta?.items[0])
      for (const { key, value, revision: written } of log!.items)
        if (!this.#takeLogged(key, value, written)) return undefined
      if (log!.more) continue
      if (this.#durable < this.#metaOf(meta!.items[0]!).revision) return undefined
      this.#metaRevision = meta!.items[0]!.revision
      this.replicas.load(replicas!.items)
      return revision
    }
  }

  async #load(connection: EtcdConnection): Promise<number> {
    const loaded = await loadState(connection, this.#location)
    const { meta, metaRevision, revision, memory, marks, history, setAside } = loaded
    const isFirst = this.#epoch === ''
    if (isFirst && this.#options.newEpoch) return this.#renewEpoch(connection, meta, metaRevision)
    this.#epoch = meta.epoch
    if (this.#attempt) this.#withdraw(this.#attempt)
    this.#uncertain = []
    this.#memory = memory
    this.#history = new HistoryMarks(this.#options, marks, meta.revision)
    this.#entries = history
    this.#durable = meta.revision
    this.#metaRevision = metaRevision
    this.#setAside = new Map(setAside.map((item) => [item.key, item]))
    const { log } = this.#options
    for (const { key, reason } of setAside.slice(0, 20))
      log.error({ key, reason }, 'a record cannot be read; set aside')
    if (setAside.length > 20) log.error({ records: setAside.length }, 'records cannot be read; all are in the status')
    if (!isFirst) {
      log.warn({ revision: meta.revision }, 'cut off for longer than history reaches back; loaded everything anew')
      for (const listener of this.#listeners) listener.load(this.#state())
    }
    this.#advanced()
    // What was written since, and who else is there.
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
    this.#epoch = epoch
    return this.#load(connection)
  }

  #receive(events: readonly FeedEvent[]): void {
    for (const event of events) {
      if (this.replicas.receive(event)) continue
      // Entries leave history, which changes nothing.
      if (event.value === undefined || !event.key.startsWith(LOG)) continue
      if (!this.#takeLogged(event.key, event.value, event.revision))
        throw new EtcdFailure('unreachable', `${event.key} cannot follow on revision ${this.#durable}`)
    }
  }

  /** @returns false when it cannot be read, or is not the next */
  #takeLogged(key: string, value: Buffer, revision: number): boolean {
    const first = Number(key.slice(LOG.length))
    if (first <= this.#durable) return true
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
    this.#take(entry, revision)
    return true
  }

  /** The one door: the next entry of the log, whoever wrote it. */
  #take(entry: LogEntry, metaRevision: number): void {
    const attempt = this.#attempt
    if (attempt?.applied === true && attempt.author === entry.author) return this.#confirm(attempt, metaRevision)
    // Someone else was faster, or an earlier try of ours whose answer was lost.
    if (attempt) this.#withdraw(attempt)
    const own = this.#uncertain.find(({ author }) => author === entry.author)
    const transactions: Committed[] = []
    for (const { time, deeds } of entry.transactions) {
      const { draft } = this.#memory.run((tx) => {
        for (const deed of deeds) redo(tx, deed)
      }, time)
      // One that takes away what is not here, since it was set aside, is a revision all the same.
      this.#memory.revision = this.#durable + transactions.length + 1
      transactions.push(draft.committed ?? emptyCommit(this.#memory.revision, time))
    }
    this.#publish(transactions, entry.transactions, metaRevision)
    if (own) this.#settle(own)
  }

  #publish(transactions: readonly Committed[], logged: readonly LoggedTransaction[], metaRevision: number): void {
    this.#durable = transactions.at(-1)!.revision
    this.#metaRevision = metaRevision
    this.#uncertain = []
    const changes = logged.reduce((sum, { history }) => sum + changesOf(history), 0)
    this.#history.take(this.#history.plan([{ revision: this.#durable, changes }], this.#durable))
    this.#remember(transactions)
    if (this.#setAside.size > 0)
      for (const { deeds } of logged) for (const deed of deeds) this.#setAside.delete(STATE + keyOf(deed))
    for (const listener of this.#listeners) listener.apply(transactions, this.#history.floor)
    this.#advanced()
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

  #advanced(): void {
    if (this.#waiters.length === 0) return
    const reached = this.#waiters.filter(({ revision }) => revision <= this.#durable)
    if (reached.length === 0) return
    this.#waiters = this.#waiters.filter(({ revision }) => revision > this.#durable)
    for (const { resolve } of reached) resolve()
  }

  #reached(revision: number): Promise<void> {
    if (revision <= this.#durable) return Promise.resolve()
    return new Promise((resolve) => this.#waiters.push({ revision, resolve }))
  }

  #lastLogKey(): string {
    // Keys name the first revision of an entry; one that begins at or before the last known is known.
    return logKey(this.#durable)
  }

  #metaOf(item: { readonly key: string; readonly value: Buffer; readonly revision: number }): Meta {
    return readMeta(item, this.#location)
  }

  /** @throws StoreReplaced */
  #checkMeta(item: { readonly key: string; readonly value: Buffer; readonly revision: number } | undefined): void {
    const meta = item && this.#metaOf(item)
    const restart = 'this replica serves what it knows; restart it to follow'
    if (meta === undefined) throw new StoreReplaced(`the store is gone from etcd: ${restart}`)
    if (meta.epoch !== this.#epoch)
      throw new StoreReplaced(`etcd holds another store now, of epoch ${meta.epoch}: ${restart}`)
    if (meta.revision < this.#durable)
      throw new StoreReplaced(
        `etcd is at revision ${meta.revision} and has been at ${this.#durable}, as after restoring a backup: start one ` +
          `replica with --new-epoch and restart the others`,
      )
  }

  async #check(connection: EtcdConnection): Promise<boolean> {
    const { item } = await connection.get(META)
    this.#checkMeta(item)
    const { revision } = this.#metaOf(item!)
    if (revision <= this.#durable) return true
    let cancel = () => {}
    const late = new Promise<void>((resolve) => (cancel = this.#options.clock.after(CHECK_MS, resolve)))
    await Promise.race([this.#reached(revision), late])
    cancel()
    return revision <= this.#durable
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
      const connection = this.#session.connection
      const attempt = connection && this.#begin()
      if (attempt === undefined) {
        // In this very turn: whoever is answered in it may write again.
        this.#pumping = false
        return
      }
      const startMs = this.#options.clock.now()
      let answer: TransactionAnswer
      try {
        answer = await connection!.transact(attempt.request)
      } catch (error) {
        this.#failed(attempt, error as EtcdFailure, connection!)
        continue
      }
      // The watch was faster than the answer.
      if (attempt.settled) continue
      if (!answer.succeeded) {
        this.#lose(attempt, answer, connection!)
        continue
      }
      // Withdrawn when the connection was lost: the next session finds it in the log.
      if (!attempt.applied) continue
      this.#confirm(attempt, attempt.drafts.length > 0 ? answer.revision : this.#metaRevision)
      if (attempt.drafts.length > 0)
        this.#options.onCommit?.(attempt.drafts.length, this.#options.clock.now() - startMs)
    }
  }

  /** Runs as many of those that wait as one commit takes. */
  #begin(): Attempt | undefined {
    const pending: Pending[] = []
    const runs: Run[] = []
    const drafts: Draft[] = []
    const time = new Date(this.#options.clock.wall()).toISOString()
    let writes = 0
    let bytes = 0
    while (this.#queue.length > 0) {
      const next = this.#queue[0]!
      const run = this.#run(next, time)
      if ('draft' in run && run.draft.committed) {
        const size = sizeOf(run.draft)
        const isFull = writes + run.draft.writes.length > GROUP_WRITES || bytes + size > GROUP_BYTES
        if (drafts.length > 0 && isFull) {
          run.draft.undo()
          break
        }
        const tooLarge = this.#tooLarge(run.draft, size)
        if (tooLarge) {
          run.draft.undo()
          this.#queue.shift()
          next.reject(tooLarge)
          continue
        }
        writes += run.draft.writes.length
        bytes += size
        drafts.push(run.draft)
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
    return (this.#attempt = { author, pending, runs, drafts, request, applied: true, settled: false })
  }

  #run(pending: Pending, time: string): Run {
    try {
      return this.#memory.run(pending.body, time)
    } catch (error) {
      return { error }
    }
  }

  #tooLarge(draft: Draft, bytes: number): TransactionTooLarge | undefined {
    const { maxRequestBytes } = this.#options
    if (draft.writes.length + FIXED_OPERATIONS > MAX_OPERATIONS)
      return new TransactionTooLarge(
        `it writes ${draft.writes.length} records, and etcd takes ${MAX_OPERATIONS - FIXED_OPERATIONS}; send fewer nodes at once`,
      )
    if (bytes <= GROUP_BYTES) return undefined
    const exact = requestBytes(this.#request('', [draft])) + this.#options.prefix.length * draft.writes.length
    if (exact <= maxRequestBytes) return undefined
    return new TransactionTooLarge(
      `it takes ${exact} bytes in etcd, which takes ${maxRequestBytes} in one request; send fewer nodes at once`,
    )
  }

  #request(author: string, drafts: readonly Draft[]): TransactionRequest {
    const success: Operation[] = []
    if (drafts.length > 0) {
      // Of a record written twice the last counts; etcd refuses to write a key twice in one transaction.
      const values = new Map<string, unknown>()
      for (const draft of drafts) for (const write of draft.writes) values.set(keyOf(write), write.value)
      for (const [key, value] of values)
        success.push(
          value === undefined
            ? { remove: STATE + key }
            : { put: STATE + key, value: Buffer.from(JSON.stringify(value)) },
        )
      const logged = drafts.map(loggedOf)
      const last = drafts.at(-1)!.revision
      const mark: HistoryMark = {
        revision: last,
        changes: logged.reduce((sum, item) => sum + changesOf(item.history), 0),
      }
      const { trimmed } = this.#history.plan([mark], last)
      // From the beginning, so that what a replica failed to remove goes with the next.
      const left = trimmed.at(-1)
      if (left) success.push({ removeRange: [LOG, logKey(left.revision + 1)] })
      success.push({ put: logKey(drafts[0]!.revision), value: encodeLogEntry(author, logged) })
      success.push({ put: META, value: encodeMeta({ epoch: this.#epoch, revision: last }) })
    }
    return {
      compare: [{ key: META, revision: this.#metaRevision }],
      success,
      failure: [{ get: META }, { range: { prefix: LOG, after: this.#lastLogKey(), limit: LOG_PAGE } }],
    }
  }

  #confirm(attempt: Attempt, metaRevision: number): void {
    attempt.applied = false
    this.#attempt = undefined
    if (attempt.drafts.length > 0) {
      this.#commits++
      this.#refused = undefined
      const transactions = attempt.drafts.map((draft) => draft.committed!)
      this.#publish(transactions, attempt.drafts.map(loggedOf), metaRevision)
    }
    this.#settle(attempt)
  }

  /** Tells the authors what came of it. */
  #settle(attempt: Attempt): void {
    attempt.settled = true
    const mine = new Set(attempt.pending)
    if (this.#queue.length > 0) this.#queue = this.#queue.filter((item) => !mine.has(item))
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
    for (const draft of [...attempt.drafts].reverse()) draft.undo()
    this.#queue.unshift(...attempt.pending)
    this.#sweepLater()
    this.#settled()
  }

  #disconnected(): void {
    this.replicas.leave()
    const attempt = this.#attempt
    if (attempt) this.#doubt(attempt)
  }

  /** It may have happened, or happen yet. On the same revision only one can, so that running it again is safe. */
  #doubt(attempt: Attempt): void {
    this.#withdraw(attempt)
    if (attempt.author !== '') this.#uncertain.push(attempt)
  }

  /** Someone was faster: takes what the answer brought along. */
  #lose(attempt: Attempt, { found }: TransactionAnswer, connection: EtcdConnection): void {
    if (this.#attempt === attempt) this.#withdraw(attempt)
    try {
      const [meta, log] = found
      const item = meta!.items[0]
      this.#checkMeta(item)
      for (const { key, value, revision } of log!.items)
        if (!this.#takeLogged(key, value, revision)) throw new Error(`cannot follow ${key}`)
      // Someone wrote it again as it was, by hand.
      if (this.#metaOf(item!).revision === this.#durable) this.#metaRevision = item!.revision
    } catch (error) {
      if (connection === this.#session.connection) this.#session.fail(error as Error)
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
    this.#failures++
    log.error({ error: failure.message, transactions: attempt.drafts.length }, 'etcd refuses a commit')
    if (failure.kind !== 'too_large') this.#refused = { reason: failure.message, atMs: clock.now() }
    if (this.#attempt === attempt) this.#withdraw(attempt)
    const mine = new Set(attempt.pending)
    this.#queue = this.#queue.filter((item) => !mine.has(item))
    const refusal =
      failure.kind === 'too_large'
        ? new TransactionTooLarge(failure.message)
        : new StoreUnavailable(failure.message, failure)
    for (const pending of attempt.pending) pending.reject(refusal)
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
    const oldest = this.#queue[0]
    if (oldest === undefined || this.#cancelSweep) return
    this.#cancelSweep = clock.after(Math.max(0, oldest.deadlineMs - clock.now()), () => {
      this.#cancelSweep = undefined
      const nowMs = clock.now()
      const late = this.#queue.filter(({ deadlineMs }) => deadlineMs <= nowMs)
      this.#queue = this.#queue.filter(({ deadlineMs }) => deadlineMs > nowMs)
      this.#refuse(late, this.#session.lost?.reason ?? `etcd took longer than ${PATIENCE_MS} ms`)
      this.#sweepLater()
    })
  }
}

/** Only before the first session: later, whatever etcd says, what is known is served. */
function isFinal(error: Error): boolean {
  return error instanceof StoreRefused || (error instanceof EtcdFailure && error.kind === 'denied')
}

function loggedOf(draft: Draft): LoggedTransaction {
  const { time, changes } = draft.committed!
  return {
    time,
    deeds: draft.writes.filter(({ kind }) => kind !== 'service'),
    history: changes.map(({ namespace, service, after, items }) => ({ namespace, service, after, items })),
  }
}

function emptyCommit(revision: number, time: string): Committed {
  return { revision, time, changes: [], leases: { put: [], removed: [] } }
}

/** Roughly, and rather too much: each record once in the state and once in the log. */
function sizeOf(draft: Draft): number {
  let bytes = 0
  for (const write of draft.writes)
    bytes += 2 * (keyOf(write).length + (write.value === undefined ? 0 : JSON.stringify(write.value).length) + 40)
  return bytes
}

function requestBytes({ success }: TransactionRequest): number {
  let bytes = REQUEST_OVERHEAD_BYTES
  for (const item of success) {
    bytes += OPERATION_OVERHEAD_BYTES
    if ('put' in item) bytes += item.put.length + item.value.length
    else if ('remove' in item) bytes += item.remove.length
  }
  return bytes
}
