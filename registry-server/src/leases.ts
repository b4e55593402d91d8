/**
 * Who is alive. A lease that is not renewed within its ttl ends, and its nodes go with it.
 *
 * Silence counts only while this process was listening. After a restart, after a pause of its own (frozen, suspended,
 * starved) and after the machine's clock was turned, every lease has its full ttl again: renewals may have been sent
 * into the void, and a registry that takes its own absence for everyone's death removes the whole mesh.
 */

import { every, type Clock } from '@holdfast/registry-client/clock'
import { endLease, LeaseNotFound, TooManyLeases, type LeaseGranter } from './lease-rules.ts'
import type { Log } from '@holdfast/registry-client/log'
import type { Lease, Store, StoreListener, StoreState, Committed, Transaction } from './store/store.ts'

const SWEEP_MS = 250
/**
 * How much later than planned a sweep may run before it counts as a pause. Below the third of the shortest ttl that a
 * client may let pass between renewals, a pause may eat into a lease, but cannot end it.
 */
const PAUSE_MS = 1_000
/** Leases that end in one transaction: a mass expiry is a few large commits, not thousands of small ones. */
const ENDED_AT_ONCE = 500

/** Between tries to write the end of a lease on a disk that fails. */
const EXPIRY_RETRY_MS = 1_000

export interface LeasesOptions {
  readonly store: Store
  readonly clock: Clock
  readonly log: Log
  /** A new lease id at each call, not guessable. */
  readonly identifier: () => string
  readonly maxLeases: number
}

export interface LeasesStatus {
  readonly active: number
  readonly expired: number
  /** Times that all leases were given their full ttl again. */
  readonly pauses: number
}

interface Life {
  readonly lease: Lease
  deadlineMs: number
  /** While its end is being written: settles with whether it ended. */
  ending: Promise<boolean> | undefined
}

export class Leases implements StoreListener, LeaseGranter {
  readonly #options: LeasesOptions
  readonly #lives = new Map<string, Life>()
  readonly #stop: () => void
  #sweptMs: number
  #wallMs: number
  #expiring = false
  #expired = 0
  #pauses = 0

  constructor(options: LeasesOptions) {
    this.#options = options
    this.#sweptMs = options.clock.now()
    this.#wallMs = options.clock.wall()
    this.#stop = every(options.clock, SWEEP_MS, () => this.#sweep())
  }

  load(state: StoreState): void {
    for (const lease of state.leases) this.#start(lease)
  }

  apply(transactions: readonly Committed[]): void {
    for (const { leases } of transactions) {
      for (const id of leases.removed) this.#lives.delete(id)
      for (const lease of leases.put) this.#start(lease)
    }
  }

  /** @throws TooManyLeases, StoreUnavailable */
  async grant(ttlMs: number, owner: string): Promise<Lease> {
    const { result } = await this.#options.store.transact((tx) => this.grantIn(tx, { ttlMs, owner }))
    return result
  }

  grantIn(tx: Transaction, terms: Omit<Lease, 'id'>): Lease {
    const { maxLeases, identifier } = this.#options
    if (tx.leaseCount() >= maxLeases) throw new TooManyLeases(maxLeases)
    const lease = Object.freeze({ id: identifier(), ...terms })
    tx.putLease(lease)
    return lease
  }

  /**
   * Gives a lease its full ttl from now.
   * @throws LeaseNotFound
   */
  async renew(id: string): Promise<Lease> {
    const life = this.#lives.get(id)
    // An end that cannot be written has not happened, and then the renewal counts.
    if (life === undefined || (await life.ending)) throw new LeaseNotFound()
    this.touch(id)
    return life.lease
  }

  /** Renews a lease that is known to be there, as registering under it does. */
  touch(id: string): void {
    const life = this.#lives.get(id)
    if (life) life.deadlineMs = this.#options.clock.now() + life.lease.ttlMs
  }

  /** Ends a lease and removes its nodes. One that is not there is ended already. @throws StoreUnavailable */
  async end(id: string): Promise<void> {
    await this.#options.store.transact((tx) => {
      const lease = tx.lease(id)
      if (lease) endLease(tx, lease, 'deregistered')
    })
  }

  status(): LeasesStatus {
    return { active: this.#lives.size, expired: this.#expired, pauses: this.#pauses }
  }

  close(): void {
    this.#stop()
  }

  #start(lease: Lease): void {
    const deadlineMs = this.#options.clock.now() + lease.ttlMs
    this.#lives.set(lease.id, { lease, deadlineMs, ending: undefined })
  }

  #sweep(): void {
    const { clock, log } = this.#options
    const nowMs = clock.now()
    const wallMs = clock.wall()
    const elapsedMs = nowMs - this.#sweptMs
    // A suspended machine stops the monotonic clock, so that only the difference of the two shows it.
    const turnedMs = Math.abs(wallMs - this.#wallMs - elapsedMs)
    this.#sweptMs = nowMs
    this.#wallMs = wallMs
    if (elapsedMs > SWEEP_MS + PAUSE_MS || turnedMs > PAUSE_MS) {
      this.#pauses++
      for (const life of this.#lives.values()) life.deadlineMs = nowMs + life.lease.ttlMs
      log.warn({ elapsedMs, turnedMs, leases: this.#lives.size }, 'paused; every lease has its full ttl again')
      return
    }
    if (this.#expiring) return
    const due: Life[] = []
    for (const life of this.#lives.values()) {
      if (life.deadlineMs > nowMs || life.ending) continue
      due.push(life)
      if (due.length === ENDED_AT_ONCE) break
    }
    if (due.length > 0) void this.#expire(due)
  }

  async #expire(due: readonly Life[]): Promise<void> {
    const { store, log } = this.#options
    this.#expiring = true
    const written = store.transact((tx) => {
      for (const { lease } of due) if (tx.lease(lease.id)) endLease(tx, lease, 'lease_expired')
    })
    const ending = written.then(
      () => true,
      () => false,
    )
    for (const life of due) life.ending = ending
    try {
      await written
      this.#expired += due.length
      log.info({ leases: due.length, owners: due.slice(0, 10).map(({ lease }) => lease.owner) }, 'leases expired')
    } catch (error) {
      const retryMs = this.#options.clock.now() + EXPIRY_RETRY_MS
      for (const life of due) life.deadlineMs = Math.max(life.deadlineMs, retryMs)
      log.warn({ leases: due.length, error: String(error) }, 'leases ran out, but their end could not be written')
    } finally {
      for (const life of due) life.ending = undefined
      this.#expiring = false
    }
  }
}
