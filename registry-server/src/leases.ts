/**
 * Who is alive. A lease that is not renewed within its ttl ends, and its nodes go with it.
 *
 * Silence counts only while this process was listening. After a restart, after a pause of its own (frozen, suspended,
 * starved), after the machine's clock was turned and after the store was cut off, every lease has its full ttl again:
 * renewals may have been sent into the void, and a registry that takes its own absence for everyone's death removes the
 * whole mesh. What becomes of a lease that ran out: see `lease-expiry.ts`.
 *
 * Where replicas share a store, one of them counts a lease's time: its holder, written with the lease. Renewals are not
 * written. One that arrives elsewhere is told to the holder; when the holder is gone, its leases have their full ttl
 * again at every other replica, and the first that hears of one takes it over.
 */

import { every, type Clock } from '@holdfast/registry-client/clock'
import { isBurst, learn, unknownInterval, type HoldReason } from './brake.ts'
import { LeaseExpiry, type ExpiringLease } from './lease-expiry.ts'
import { endLease, isEnding, LeaseNotFound, TooManyLeases, type LeaseGranter } from './lease-rules.ts'
import type { Log } from '@holdfast/registry-client/log'
import {
  StoreUnavailable,
  type Committed,
  type Lease,
  type ReplicasListener,
  type Store,
  type StoreListener,
  type StoreState,
  type Transaction,
} from './store/store.ts'

const SWEEP_MS = 250
/**
 * How much later than planned a sweep may run before it counts as a pause. Below the third of the shortest ttl that a
 * client may let pass between renewals, a pause may eat into a lease, but cannot end it.
 */
const PAUSE_MS = 1_000
const MOVED_AT_ONCE = 500

/** How long others leave the rest of an ending lease to the replica that began it. */
const ENDING_MS = 5_000
/**
 * How long a lease that ran out at its holder waits for word of others: a renewal that one of them has acknowledged in
 * time is on its way for half a second.
 */
const HEARSAY_MS = 750
/** Between replicas that try to end the same lease, when its holder is gone. */
const STAGGER_MS = 500
/** Renewals in a row through one other replica: a registrant that moved there, and not a balancer that spreads them. */
const HAND_OVER_AFTER = 8

export interface LeasesOptions {
  readonly store: Store
  readonly clock: Clock
  readonly log: Log
  /** A new lease id at each call, not guessable. */
  readonly identifier: () => string
  readonly maxLeases: number
  /** How long leases that fell silent together are kept; 0: they are not. */
  readonly holdMs: number
}

/** Why leases that ran out did not end. */
export type Stop = HoldReason | 'store'

export interface LeasesStatus {
  readonly active: number
  /** Those whose time this replica counts. */
  readonly counted: number
  readonly expired: number
  /** Times that all leases were given their full ttl again. */
  readonly pauses: number
  /** Leases that ran out and are kept. */
  readonly held: number
  /** Decisions to keep leases. */
  readonly holds: Readonly<Record<Stop, number>>
}

interface Life extends ExpiringLease {
  lease: Lease
  ttlMs: number
  heardMs: number
  intervalMs: number
  /** The other replica through which the last renewals came, and how many. */
  via: string | undefined
  viaCount: number
}

interface Move {
  readonly from: string | undefined
  readonly to: string
}

export class Leases implements StoreListener, ReplicasListener, LeaseGranter {
  readonly #options: LeasesOptions
  readonly #lives = new Map<string, Life>()
  readonly #expiry: LeaseExpiry
  /** Changes of holder that wait to be written, by lease. */
  #moves = new Map<string, Move>()
  readonly #stop: () => void
  #sweptMs: number
  #wallMs: number
  /** Nothing runs out before. */
  #nextMs = Infinity
  #cutOff = false
  #expiring = false
  #moving = false
  #counted = 0
  #pauses = 0
  #timesCutOff = 0

  constructor(options: LeasesOptions) {
    this.#options = options
    this.#expiry = new LeaseExpiry({
      ...options,
      lives: () => this.#lives.values(),
      setDeadline: (life, deadlineMs) => this.#setDeadline(life, deadlineMs),
    })
    this.#sweptMs = options.clock.now()
    this.#wallMs = options.clock.wall()
    this.#stop = every(options.clock, SWEEP_MS, () => this.#sweep())
    options.store.replicas.listen(this)
  }

  load(state: StoreState): void {
    const gone = new Set(this.#lives.keys())
    for (const lease of state.leases) {
      gone.delete(lease.id)
      this.#put(lease)
    }
    for (const id of gone) this.#remove(id)
  }

  apply(transactions: readonly Committed[]): void {
    for (const { leases } of transactions) {
      for (const id of leases.removed) this.#remove(id)
      for (const lease of leases.put) this.#put(lease)
    }
  }

  membersChanged(): void {
    this.#look()
    let orphans = 0
    for (const life of this.#lives.values()) if (this.#review(life)) orphans++
    if (orphans > 0)
      this.#options.log.info({ leases: orphans }, 'a replica is gone; its leases have their full ttl again')
  }

  heard(ids: readonly string[], at: string): void {
    const { replicas } = this.#options.store
    const nowMs = this.#options.clock.now()
    for (const id of ids) {
      const life = this.#lives.get(id)
      if (life === undefined || isEnding(life.lease) || !this.#counts(life.lease)) continue
      const isSame = isBurst(nowMs - life.heardMs, life.ttlMs)
      this.#hear(life)
      const { holder } = life.lease
      if (replicas.self === undefined || holder !== replicas.self || isSame) continue
      life.viaCount = life.via === at ? life.viaCount + 1 : 1
      life.via = at
      if (life.viaCount >= HAND_OVER_AFTER) this.#moves.set(id, { from: holder, to: at })
    }
  }

  /** @throws TooManyLeases, StoreUnavailable */
  async grant(ttlMs: number, owner: string): Promise<Lease> {
    const { result } = await this.#options.store.transact((tx) => this.grantIn(tx, { ttlMs, owner }))
    return result
  }

  grantIn(tx: Transaction, terms: Omit<Lease, 'id'>): Lease {
    const { maxLeases, identifier, store } = this.#options
    if (tx.leaseCount() >= maxLeases) throw new TooManyLeases(maxLeases)
    const { self } = store.replicas
    const lease = Object.freeze({ id: identifier(), ...terms, ...(self !== undefined && { holder: self }) })
    tx.putLease(lease)
    return lease
  }

  /**
   * Gives a lease its full ttl from now.
   * @throws LeaseNotFound; StoreUnavailable when another replica may count it and cannot be told
   */
  async renew(id: string): Promise<Lease> {
    const { store } = this.#options
    // Also when it is refused below: it is a sign of life.
    this.touch(id)
    if (this.#isGivenUp()) throw new StoreUnavailable('this replica is cut off, and others count its leases by now')
    if (!this.#lives.has(id)) {
      // Another replica may have granted it an instant ago.
      await store.sync()
      this.touch(id)
    }
    const life = this.#lives.get(id)
    if (life === undefined || isEnding(life.lease)) throw new LeaseNotFound()
    // An end that cannot be written has not happened, and then the renewal counts.
    if (life.ending && (await life.ending).has(id)) throw new LeaseNotFound()
    // Its holder might be told too late.
    const { lost, ageMs } = store.status()
    if ((lost !== undefined || ageMs > 0) && this.#isForeign(life.lease))
      throw new StoreUnavailable(lost ?? 'the other replicas cannot be told of this renewal now')
    return life.lease
  }

  /** Renews a lease that is known to be there, as registering under it does. */
  touch(id: string): void {
    const life = this.#lives.get(id)
    if (life === undefined || isEnding(life.lease)) return
    this.#hear(life)
    life.via = undefined
    life.viaCount = 0
    const { replicas } = this.#options.store
    const { self } = replicas
    if (self === undefined) return
    const { holder } = life.lease
    if (holder === self) {
      this.#moves.delete(id)
      return
    }
    // Also when it has no holder any more: until the claim is written, the others count its time too.
    replicas.tell(id)
    if (this.#counts(life.lease)) this.#moves.set(id, { from: holder, to: self })
  }

  /** Ends a lease and removes its nodes. One that is not there is ended already. @throws StoreUnavailable */
  async end(id: string): Promise<void> {
    for (let isGone = false; !isGone;)
      ({ result: isGone } = await this.#options.store.transact((tx) => {
        const lease = tx.lease(id)
        return lease === undefined || endLease(tx, lease, 'deregistered')
      }))
  }

  status(): LeasesStatus {
    const { expired, held, holds } = this.#expiry.status()
    return {
      active: this.#lives.size,
      counted: this.#counted,
      expired,
      pauses: this.#pauses,
      held,
      holds: { ...holds, store: this.#timesCutOff },
    }
  }

  close(): void {
    this.#stop()
  }

  /** Whether this replica counts a lease's time: its own, and those whose holder is gone. */
  #counts(lease: Lease): boolean {
    return !this.#isForeign(lease) || lease.holder === undefined || !this.#isAlive(lease.holder)
  }

  /** Whether others may count it too, or instead. */
  #isForeign(lease: Lease): boolean {
    const { self } = this.#options.store.replicas
    return self !== undefined && lease.holder !== self
  }

  #isAlive(replica: string): boolean {
    return this.#options.store.replicas.isAlive(replica)
  }

  #isGivenUp(): boolean {
    const { self } = this.#options.store.replicas
    return self !== undefined && !this.#isAlive(self)
  }

  #put(lease: Lease): void {
    const life = this.#lives.get(lease.id)
    if (life === undefined) {
      const fresh: Life = {
        lease,
        ttlMs: lease.ttlMs,
        heardMs: this.#options.clock.now(),
        intervalMs: unknownInterval(lease.ttlMs),
        deadlineMs: Infinity,
        host: undefined,
        hold: undefined,
        via: undefined,
        viaCount: 0,
        ending: undefined,
      }
      this.#lives.set(lease.id, fresh)
      this.#review(fresh)
      return
    }
    const { ttlMs } = life
    life.lease = lease
    if (this.#review(life) || lease.ttlMs === ttlMs) return
    life.ttlMs = lease.ttlMs
    life.intervalMs = unknownInterval(lease.ttlMs)
    if (life.deadlineMs !== Infinity) this.#restart(life)
  }

  #remove(id: string): void {
    const life = this.#lives.get(id)
    if (life === undefined) return
    this.#expiry.release(life)
    this.#setDeadline(life, Infinity)
    this.#lives.delete(id)
    this.#moves.delete(id)
  }

  /** Begins or ceases to count a lease when its holder has changed. @returns whether it began */
  #review(life: Life): boolean {
    const counts = this.#counts(life.lease)
    if (counts === (life.deadlineMs !== Infinity)) return false
    if (counts) this.#restart(life)
    else {
      // Whoever took it has heard of it.
      this.#expiry.release(life, true)
      this.#setDeadline(life, Infinity)
    }
    return counts
  }

  /** What was heard, and was not, before now says nothing. */
  #restart(life: Life): void {
    const nowMs = this.#options.clock.now()
    this.#expiry.release(life)
    life.heardMs = nowMs
    life.host = undefined
    life.via = undefined
    life.viaCount = 0
    this.#setDeadline(life, nowMs + (isEnding(life.lease) ? ENDING_MS : life.ttlMs))
  }

  #restartAll(): void {
    this.#pauses++
    for (const life of this.#lives.values()) if (life.deadlineMs !== Infinity) this.#restart(life)
    this.#expiry.forget()
  }

  #hear(life: Life): void {
    const nowMs = this.#options.clock.now()
    life.intervalMs = learn(life.intervalMs, nowMs - life.heardMs, life.ttlMs)
    life.heardMs = nowMs
    life.host = undefined
    this.#expiry.release(life, true)
    if (life.deadlineMs !== Infinity) this.#setDeadline(life, nowMs + life.ttlMs)
  }

  #setDeadline(life: ExpiringLease, deadlineMs: number): void {
    this.#counted += Number(deadlineMs !== Infinity) - Number(life.deadlineMs !== Infinity)
    life.deadlineMs = deadlineMs
    if (deadlineMs < this.#nextMs) this.#nextMs = deadlineMs
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
      this.#restartAll()
      log.warn({ elapsedMs, turnedMs, leases: this.#counted }, 'paused; every lease has its full ttl again')
      return
    }
    if (this.#look()) return
    void this.#move()
    this.#expiry.sayBack(nowMs)
    if (this.#expiring || nowMs < this.#nextMs) return
    const due = this.#due(nowMs)
    if (due.length > 0) void this.#expire(due)
  }

  /** @returns whether this replica is cut off, so that it knows of no silence but its own */
  #look(): boolean {
    const { store, log } = this.#options
    const { lost, ageMs } = store.status()
    let reason = this.#isGivenUp() ? 'the others have given this replica up' : lost
    // What the others heard meanwhile was not told here, which is as good as a pause.
    if (ageMs > PAUSE_MS) reason ??= 'nothing comes from the store'
    if (reason !== undefined && !this.#cutOff) {
      this.#timesCutOff++
      log.warn({ reason, leases: this.#counted }, 'cut off from the store; no lease ends')
    } else if (reason === undefined && this.#cutOff) {
      this.#restartAll()
      log.warn({ leases: this.#counted }, 'no longer cut off from the store; every lease has its full ttl again')
    }
    this.#cutOff = reason !== undefined
    return this.#cutOff
  }

  /** Writes the changes of holder that were collected. */
  async #move(): Promise<void> {
    const { store, log } = this.#options
    if (this.#moving) return
    this.#moving = true
    try {
      while (this.#moves.size > 0) {
        const batch: (Move & { id: string })[] = []
        for (const [id, move] of this.#moves) {
          this.#moves.delete(id)
          if (this.#isWanted(id, move)) batch.push({ id, ...move })
          if (batch.length === MOVED_AT_ONCE) break
        }
        if (batch.length === 0) continue
        await store.transact((tx) => {
          for (const { id, from, to } of batch) {
            const lease = tx.lease(id)
            if (lease && lease.holder === from) tx.putLease(Object.freeze({ ...lease, holder: to }))
          }
        })
      }
    } catch (error) {
      // The next renewals ask for it again.
      log.debug({ error: String(error) }, 'leases could not be moved to another replica')
    } finally {
      this.#moving = false
    }
  }

  #isWanted(id: string, { from, to }: Move): boolean {
    const life = this.#lives.get(id)
    return life !== undefined && life.lease.holder === from && this.#counts(life.lease) && this.#isAlive(to)
  }

  /** Leases that have run out. */
  #due(nowMs: number): Life[] {
    const due: Life[] = []
    const rank = this.#rank()
    const hearsayMs = this.#hasOthers() ? HEARSAY_MS : 0
    let nextMs = Infinity
    for (const life of this.#lives.values()) {
      if (life.deadlineMs <= nowMs) {
        // Every replica may end a lease whose holder is gone. One after the other tries, so that one does.
        const own = isEnding(life.lease) ? 0 : hearsayMs
        const turnMs = life.deadlineMs + (this.#isForeign(life.lease) ? rank * STAGGER_MS : own)
        if (turnMs <= nowMs) due.push(life)
        else nextMs = Math.min(nextMs, turnMs)
      } else if (life.deadlineMs < nextMs) nextMs = life.deadlineMs
    }
    this.#nextMs = nextMs
    return due
  }

  #hasOthers(): boolean {
    const { replicas } = this.#options.store
    const { self } = replicas
    return self !== undefined && replicas.list().some(({ id }) => id !== self)
  }

  /** How many replicas come before this one. */
  #rank(): number {
    const { replicas } = this.#options.store
    const { self } = replicas
    return self === undefined ? 0 : replicas.list().filter(({ id }) => id < self && replicas.isAlive(id)).length
  }

  async #expire(due: readonly Life[]): Promise<void> {
    this.#expiring = true
    try {
      await this.#expiry.expire(due)
    } finally {
      this.#expiring = false
      // Some may wait for the next sweep.
      this.#nextMs = -Infinity
    }
  }
}
