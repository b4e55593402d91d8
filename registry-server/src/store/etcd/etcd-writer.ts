/**
 * Writes to the log: runs the waiting transactions on what is known, and offers the outcome to etcd as the next entry,
 * on the condition that nobody else was faster. Otherwise it takes what the faster one did, and runs them again.
 *
 * One commit is under way at a time; those that wait meanwhile share the next. So etcd's latency bounds how long a
 * write takes, not how many there are.
 *
 * What is offered may have happened though its answer is lost. Then its transactions wait for the log to go on: either
 * the next entry is theirs, or they are run again, for on one revision only one commit can follow.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { Draft } from '../store-state.ts'
import { StoreUnavailable, TransactionTooLarge, type Outcome, type StoreStatus, type Transaction } from '../store.ts'
import { bytesOf, FIXED_OPERATIONS, prepare, type PreparedDraft } from './commit.ts'
import {
  EtcdFailure,
  MAX_OPERATIONS,
  type EtcdConnection,
  type TransactionAnswer,
  type TransactionRequest,
} from './etcd-connection.ts'
import type { EtcdFollower, LogAuthor } from './etcd-follower.ts'
import type { EtcdSession } from './etcd-session.ts'
import { PATIENCE_MS, PendingTransactions, type Pending } from './pending-transactions.ts'
import type { WriteTurn } from './write-turn.ts'

/** Of one commit: more, and those behind it wait longer than they gain. */
const GROUP_WRITES = 1_500
const GROUP_BYTES = 786_432
/** For how long a refusal by etcd counts as its state; then the next commit finds out. */
const REFUSED_MS = 5_000
/** About the time of an election. */
const OFFER_AGAIN_MS = 1_000

export interface EtcdWriterOptions {
  /** This replica's id. */
  readonly self: string
  /** What it writes to, and what that has made of the state. */
  readonly follower: Pick<EtcdFollower, 'memory' | 'revision' | 'appending' | 'overtaken' | 'publish' | 'attach'>
  readonly session: Pick<EtcdSession, 'connection' | 'ageMs' | 'lost' | 'fail'>
  readonly turn: WriteTurn
  /** Of all keys. */
  readonly prefix: string
  /** What etcd takes in one request: its `--max-request-bytes`. */
  readonly maxRequestBytes: number
  readonly clock: Clock
  readonly log: Log
  /** After each commit: how many transactions it held, and how long etcd took. */
  readonly onCommit?: ((transactions: number, ms: number) => void) | undefined
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
  settled: boolean
}

export class EtcdWriter implements LogAuthor {
  readonly #options: EtcdWriterOptions
  readonly #queue: PendingTransactions
  /** While its drafts are part of the memory. */
  #attempt: Attempt | undefined
  /** Commits whose answer was lost, all on the present revision: at most one of them has happened, or will. */
  #uncertain: Attempt[] = []
  #pumping = false
  #attempts = 0
  /** Of what a group may hold: less where etcd has refused as much. */
  #groupShare = 1
  #readers: (() => void)[] = []
  /** While closing: called once nothing waits any more. */
  #finished: (() => void) | undefined
  #commits = 0
  #failures = 0
  /** The last commit that etcd refused for a reason of its own, such as a full disk. */
  #refused: { readonly reason: string; readonly atMs: number } | undefined

  constructor(options: EtcdWriterOptions) {
    this.#options = options
    options.follower.attach(this)
    const { clock, session } = options
    this.#queue = new PendingTransactions({ clock, reason: () => session.lost?.reason, swept: () => this.#swept() })
  }

  transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    if (this.#finished) return Promise.reject(new StoreUnavailable('it is closing'))
    const lost = this.#lost
    if (lost !== undefined) return Promise.reject(new StoreUnavailable(lost))
    const outcome = this.#queue.add(body)
    this.pump()
    return outcome
  }

  /** Calls back while the memory is what is in the log: at once, or when the commit under way is decided. */
  whenSettled(read: () => void): void {
    // While a commit is under way the memory holds what may never be.
    if (this.#attempt) this.#readers.push(read)
    else read()
  }

  status(): Pick<StoreStatus, 'pending' | 'commits' | 'failures' | 'lost'> {
    return {
      pending: this.#queue.size,
      commits: this.#commits,
      failures: this.#failures,
      lost: this.#lost ?? this.#refusedLately,
    }
  }

  /** Refuses what comes from now on; resolves when nothing waits any more. */
  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#finished = resolve
      this.#finishLater()
    })
    this.#queue.close()
  }

  /** While closing: waits for what etcd can still answer, and for nothing else. */
  #finishLater(): void {
    if (this.#finished === undefined) return
    if (this.#options.session.connection === undefined) this.#queue.refuseAll('it is closing')
    if (this.#queue.size === 0 && this.#attempt === undefined) this.#finished()
  }

  /**
   * Only what lasts longer than transactions wait counts: an election is none of their business. From the last sign of
   * life on, not from when its lack was noticed: whoever was refused for it must not wait for it again.
   */
  get #lost(): string | undefined {
    const { lost, ageMs } = this.#options.session
    return lost && ageMs >= PATIENCE_MS ? lost.reason : undefined
  }

  get #refusedLately(): string | undefined {
    const refused = this.#refused
    return refused && this.#options.clock.now() - refused.atMs < REFUSED_MS ? refused.reason : undefined
  }

  // ---- As the log goes on ----

  recognise(author: string | undefined, metaRevision: number): boolean {
    const attempt = this.#attempt
    // One that writes nothing leaves no entry.
    if (attempt === undefined || attempt.author === '' || attempt.author !== author) return false
    this.#confirm(attempt, metaRevision)
    return true
  }

  /** Takes the attempt out of the memory; its transactions wait for the next. */
  withdraw(): void {
    const attempt = this.#attempt
    if (attempt === undefined) return
    this.#attempt = undefined
    for (const { draft } of [...attempt.drafts].reverse()) draft.undo()
    this.#queue.putBack(attempt.pending)
    this.#settled()
  }

  taken(author: string): void {
    const own = this.#uncertain.find((attempt) => attempt.author === author)
    this.#uncertain = []
    this.#options.turn.taken(author)
    if (own) this.#found(own)
  }

  loaded(next: string | undefined): void {
    for (const attempt of this.#uncertain.splice(0)) {
      if (attempt.author === next) this.#found(attempt)
      else if (next === undefined)
        this.#giveUp(attempt, new StoreUnavailable('cut off for so long that nobody knows whether it happened'))
    }
  }

  /** The connection is lost. */
  disconnected(): void {
    this.#doubt()
    this.#options.turn.end()
    this.#finishLater()
  }

  // ---- One commit after the other ----

  /** Goes on, as far as there is a connection and something waits. */
  pump(): void {
    if (this.#pumping) return
    this.#pumping = true
    void this.#drain()
  }

  async #drain(): Promise<void> {
    // One turn later, so that all transactions of this turn share the commit.
    await Promise.resolve()
    const { session, turn } = this.#options
    for (;;) {
      while (turn.over) await turn.over
      const { connection } = session
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
      else if (this.#attempt === attempt) this.#confirm(attempt, answer.revision)
      else this.#answerReaders(attempt)
    }
  }

  /** Runs as many of those that wait as one commit takes. */
  #begin(): Attempt | undefined {
    const pending: Pending[] = []
    const runs: Run[] = []
    const drafts: PreparedDraft[] = []
    const time = new Date(this.#options.clock.wall()).toISOString()
    let writes = 0
    let bytes = 0
    for (let next = this.#queue.first; next; next = this.#queue.first) {
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
    const author = drafts.length > 0 ? `${this.#options.self}.${++this.#attempts}` : ''
    const request = this.#request(author, drafts)
    const startMs = this.#options.clock.now()
    const base = this.#options.follower.revision
    return (this.#attempt = { author, pending, runs, drafts, request, startMs, base, settled: false })
  }

  #run(pending: Pending, time: string): Run {
    try {
      return this.#options.follower.memory.run(pending.body, time)
    } catch (error) {
      return { error }
    }
  }

  /** Half of what etcd takes is spare for the prefix of each key. */
  get #groupBytes(): number {
    return Math.min(GROUP_BYTES, this.#options.maxRequestBytes / 2) * this.#groupShare
  }

  #tooLarge(prepared: PreparedDraft): TransactionTooLarge | undefined {
    const { follower, maxRequestBytes, prefix } = this.#options
    const most = MAX_OPERATIONS - FIXED_OPERATIONS
    if (prepared.records.length > most)
      return new TransactionTooLarge(
        `it writes ${prepared.records.length} records, and etcd takes ${most}; send fewer nodes at once`,
      )
    if (prepared.bytes <= this.#groupBytes) return undefined
    const bytes = bytesOf(follower.appending('', [prepared]).success, prefix)
    if (bytes <= maxRequestBytes) return undefined
    return new TransactionTooLarge(
      `it takes ${bytes} bytes in etcd, which takes ${maxRequestBytes} in one request; send fewer nodes at once`,
    )
  }

  #request(author: string, drafts: readonly PreparedDraft[]): TransactionRequest {
    const { follower, turn } = this.#options
    const request = follower.appending(author, drafts)
    return drafts.length === 0 ? request : { ...request, failure: [...request.failure, ...turn.wish] }
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

  // ---- What comes of it ----

  #confirm(attempt: Attempt, metaRevision: number): void {
    const { follower, turn, clock, onCommit } = this.#options
    this.#attempt = undefined
    if (attempt.drafts.length > 0) {
      this.#commits++
      turn.won()
      this.#refused = undefined
      this.#uncertain = []
      const transactions = attempt.drafts.map(({ draft }) => draft.committed!)
      follower.publish(transactions, metaRevision, attempt.author)
    }
    this.#settle(attempt)
    if (attempt.drafts.length > 0) onCommit?.(attempt.drafts.length, clock.now() - attempt.startMs)
  }

  /** Tells those who wait what came of it. */
  #settle(attempt: Attempt): void {
    attempt.settled = true
    this.#queue.remove(attempt.pending)
    const { revision } = this.#options.follower
    for (const [index, pending] of attempt.pending.entries()) {
      const run = attempt.runs[index]!
      if ('error' in run) pending.reject(run.error)
      else pending.resolve({ revision: run.draft.committed?.revision ?? revision, result: run.result })
    }
    this.#settled()
  }

  /** Its answer was lost, and the log says that it happened. */
  #found(attempt: Attempt): void {
    this.#commits++
    this.#settle(attempt)
  }

  /** It failed, or nobody knows. */
  #giveUp(attempt: Attempt, error: Error): void {
    attempt.settled = true
    this.#queue.remove(attempt.pending)
    for (const pending of attempt.pending) pending.reject(error)
  }

  /** It may have happened, or happen yet. On the same revision only one can, so that running it again is safe. */
  #doubt(): void {
    const attempt = this.#attempt
    this.withdraw()
    if (attempt && attempt.author !== '') this.#uncertain.push(attempt)
  }

  /** Someone was faster, or the same commit offered before: takes what the answer brought along. */
  #lose(attempt: Attempt, answer: TransactionAnswer, connection: EtcdConnection): void {
    const { follower, session, turn } = this.#options
    try {
      const isNewest = follower.overtaken(answer, attempt.base)
      if (this.#attempt === attempt) this.withdraw()
      if (attempt.drafts.length > 0 && !attempt.settled) turn.lost()
      if (isNewest) this.#answerReaders(attempt)
    } catch (error) {
      if (connection === session.connection) session.fail(error as Error)
      else if (this.#attempt === attempt) this.#doubt()
    }
  }

  /**
   * Those that write nothing. What is known now was the newest when etcd answered, which was after they asked: were
   * they to ask again, they might never be as fast as those who write.
   */
  #answerReaders(attempt: Attempt): void {
    if (attempt.author !== '' || attempt.settled) return
    const time = new Date(this.#options.clock.wall()).toISOString()
    const { revision } = this.#options.follower
    for (const pending of attempt.pending) {
      if (pending !== this.#queue.first) return
      const run = this.#run(pending, time)
      if ('draft' in run && run.draft.committed) return run.draft.undo()
      this.#queue.shift()
      if ('error' in run) pending.reject(run.error)
      else pending.resolve({ revision, result: run.result })
    }
  }

  #failed(attempt: Attempt, failure: EtcdFailure, connection: EtcdConnection): void {
    if (attempt.settled) return
    const { session, log, clock } = this.#options
    if (failure.kind === 'unreachable' || failure.kind === 'compacted') {
      if (this.#attempt === attempt) this.#doubt()
      if (connection !== session.connection) return
      this.#failures++
      return session.fail(failure)
    }
    if (failure.kind === 'too_large' && attempt.drafts.length > 1) {
      // It takes less than its defaults; what waits was well by itself.
      this.#groupShare /= 2
      log.warn({ error: failure.message, share: this.#groupShare }, 'etcd takes less at once than expected')
      if (this.#attempt === attempt) this.withdraw()
      return
    }
    this.#failures++
    log.error({ error: failure.message, transactions: attempt.drafts.length }, 'etcd refuses a commit')
    if (failure.kind !== 'too_large') this.#refused = { reason: failure.message, atMs: clock.now() }
    if (this.#attempt === attempt) this.withdraw()
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

  /** Whoever waited for what is uncertain may have been refused meanwhile. */
  #swept(): void {
    const waiting = new Set([...this.#queue, ...(this.#attempt?.pending ?? [])])
    this.#uncertain = this.#uncertain.filter(({ pending }) => pending.some((item) => waiting.has(item)))
    this.#finishLater()
  }
}
