/** Transactions that wait for etcd, in their order, and none for longer than whoever sent it would. */

import type { Clock } from '@holdfast/registry-client/clock'
import { StoreUnavailable, type Outcome, type Transaction } from '../store.ts'

/** Transactions that may wait. Each is a request that waits for its answer; more are refused at once. */
const MAX_PENDING = 20_000
/** How long a transaction waits for etcd: an election takes a second or two, a client gives up after five. */
export const PATIENCE_MS = 4_000

export interface Pending {
  readonly body: (tx: Transaction) => unknown
  readonly deadlineMs: number
  resolve(outcome: Outcome<unknown>): void
  reject(error: unknown): void
}

export interface PendingOptions {
  readonly clock: Clock
  /** What keeps etcd from answering, where it is known. */
  readonly reason: () => string | undefined
  /** After some were refused that had waited for too long. */
  readonly swept: () => void
}

export class PendingTransactions implements Iterable<Pending> {
  readonly #options: PendingOptions
  #queue: Pending[] = []
  #sweep: { readonly atMs: number; readonly cancel: () => void } | undefined

  constructor(options: PendingOptions) {
    this.#options = options
  }

  get size(): number {
    return this.#queue.length
  }

  get first(): Pending | undefined {
    return this.#queue[0]
  }

  [Symbol.iterator](): Iterator<Pending> {
    return this.#queue.values()
  }

  /** Settles when the transaction is answered. @throws StoreUnavailable when too many wait, or it has for too long */
  add<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    if (this.#queue.length >= MAX_PENDING)
      return Promise.reject(new StoreUnavailable(`${MAX_PENDING} transactions wait for etcd`))
    return new Promise((resolve, reject) => {
      const deadlineMs = this.#options.clock.now() + PATIENCE_MS
      this.#queue.push({ body, deadlineMs, resolve: resolve as Pending['resolve'], reject })
      this.#sweepLater()
    })
  }

  /** Takes out the first. */
  shift(): void {
    this.#queue.shift()
  }

  /** Before all others: they have waited for longer. */
  putBack(pending: readonly Pending[]): void {
    this.#queue.unshift(...pending)
    this.#sweepLater()
  }

  /** Those of them that wait here. */
  remove(pending: readonly Pending[]): void {
    if (this.#queue.length === 0) return
    const removed = new Set(pending)
    this.#queue = this.#queue.filter((item) => !removed.has(item))
  }

  refuseAll(reason: string): void {
    refuse(this.#queue.splice(0), reason)
  }

  close(): void {
    this.#sweep?.cancel()
  }

  /** Refuses those that have waited for too long. One that is under way is waited for: its answer comes, or it fails. */
  #sweepLater(): void {
    const { clock, reason, swept } = this.#options
    // Those that are put back go before all others.
    const oldest = this.#queue[0]
    if (oldest === undefined || (this.#sweep && this.#sweep.atMs <= oldest.deadlineMs)) return
    this.#sweep?.cancel()
    const cancel = clock.after(Math.max(0, oldest.deadlineMs - clock.now()), () => {
      this.#sweep = undefined
      const nowMs = clock.now()
      const late = this.#queue.filter(({ deadlineMs }) => deadlineMs <= nowMs)
      this.#queue = this.#queue.filter(({ deadlineMs }) => deadlineMs > nowMs)
      refuse(late, reason() ?? `etcd took longer than ${PATIENCE_MS} ms`)
      swept()
      this.#sweepLater()
    })
    this.#sweep = { atMs: oldest.deadlineMs, cancel }
  }
}

function refuse(pending: readonly Pending[], reason: string): void {
  for (const item of pending) item.reject(new StoreUnavailable(reason))
}
