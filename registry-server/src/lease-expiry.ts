/**
 * What becomes of leases that ran out: they end, and their nodes go with them. When leases of several hosts fall silent
 * together, that is hardly the death of each: then they are held for a while, as `brake.ts` decides.
 *
 * The end of a lease is a transaction that finds the holder which its author believed in, and the store puts all
 * transactions in one order: so a lease that moved meanwhile is left alone.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { decide, holdOf, isForgotten, isQuiet, type Hold, type HoldReason, type Voice } from './brake.ts'
import { endLease, isEnding, NODES_AT_ONCE } from './lease-rules.ts'
import type { Lease, Store, Transaction } from './store/store.ts'

/** Leases that end in one transaction: a mass expiry is a few large commits, not thousands of small ones. */
const ENDED_AT_ONCE = 500
/** Between tries to write the end of a lease on a store that fails. */
const RETRY_MS = 1_000
/** Between two lines of the log about leases that come back. */
const SAY_BACK_MS = 5_000

/** The host of a lease without nodes; no node can have it. */
const NOWHERE = ''

/** What is known of a lease. Once it is gone, its deadline is Infinity. */
export interface ExpiringLease extends Voice {
  readonly lease: Lease
  /** Infinity while another replica counts its time. Set by {@link LeaseExpiryOptions.setDeadline} alone. */
  deadlineMs: number
  /** Where its nodes are; undefined until asked for. */
  host: string | undefined
  hold: Hold | undefined
  /** While its end is being written: settles with the leases that ended. */
  ending: Promise<ReadonlySet<string>> | undefined
}

export interface LeaseExpiryOptions {
  readonly store: Store
  readonly clock: Clock
  readonly log: Log
  /** How long leases that fell silent together are kept; 0: they are not. */
  readonly holdMs: number
  /** All leases that there are. */
  readonly lives: () => Iterable<ExpiringLease>
  readonly setDeadline: (life: ExpiringLease, deadlineMs: number) => void
}

export interface LeaseExpiryStatus {
  readonly expired: number
  /** Leases that ran out and are kept. */
  readonly held: number
  /** Decisions to keep leases. */
  readonly holds: Readonly<Record<HoldReason, number>>
}

/** What became of the leases of one hold. */
interface Tally {
  held: number
  back: number
  /** Of those that are back: how many the log knows of, and since when. */
  saidBack: number
  saidMs: number
  /** Still held. */
  left: number
}

/** What one transaction did of the ends that were due. */
interface Ends {
  readonly ended: ReadonlySet<string>
  /** Of these the rest follows. */
  readonly begun: readonly ExpiringLease[]
  /** Those that were not as believed. */
  readonly moved: readonly ExpiringLease[]
  readonly done: number
}

const NONE: ReadonlySet<string> = new Set()

export class LeaseExpiry {
  readonly #options: LeaseExpiryOptions
  readonly #holds = new Map<Hold, Tally>()
  #expired = 0
  #held = 0
  readonly #decided: Record<HoldReason, number> = { partition: 0, silence: 0 }

  constructor(options: LeaseExpiryOptions) {
    this.#options = options
  }

  /** Holds or ends leases that are due. Those that can be neither have a new deadline then, or wait to be due again. */
  async expire(due: readonly ExpiringLease[]): Promise<void> {
    const { clock, log, setDeadline } = this.#options
    let left = due
    try {
      left = await this.#brake(due)
      while (left.length > 0) left = await this.#endSome(left)
    } catch (error) {
      const retryMs = clock.now() + RETRY_MS
      for (const life of left) if (life.deadlineMs < retryMs) setDeadline(life, retryMs)
      log.warn({ leases: left.length, error: String(error) }, 'leases ran out, but their end could not be written')
    }
  }

  /** A lease is no longer to be held. @param isBack because it was heard */
  release(life: ExpiringLease, isBack = false): void {
    const tally = life.hold && this.#holds.get(life.hold)
    if (tally) {
      this.#held--
      tally.left--
      if (isBack) tally.back++
    }
    life.hold = undefined
  }

  /** After all are released: what falls due from now on belongs to no earlier decision. */
  forget(): void {
    this.#holds.clear()
  }

  sayBack(nowMs: number): void {
    for (const [hold, tally] of this.#holds) {
      if (tally.left === 0 && isForgotten(hold, nowMs)) this.#holds.delete(hold)
      if (tally.back === tally.saidBack || (tally.left > 0 && nowMs < tally.saidMs + SAY_BACK_MS)) continue
      tally.saidBack = tally.back
      tally.saidMs = nowMs
      this.#options.log.info({ reason: hold.reason }, `${tally.back} of ${tally.held} held leases are back`)
    }
  }

  status(): LeaseExpiryStatus {
    return { expired: this.#expired, held: this.#held, holds: { ...this.#decided } }
  }

  /** Holds those that should not end. @returns the others that may */
  async #brake(due: readonly ExpiringLease[]): Promise<readonly ExpiringLease[]> {
    const { clock, holdMs, log, lives, setDeadline } = this.#options
    const kept = due.filter(({ hold }) => hold)
    if (kept.length > 0)
      log.warn({ leases: kept.length, owners: ownersOf(kept) }, 'held long enough: leases that did not come back end')
    if (holdMs === 0) return due
    await this.#locate(due)
    // One without nodes is nobody's loss, and says nothing of a network: whoever comes back takes a new one.
    const isOver = ({ hold, host, lease }: ExpiringLease) => hold !== undefined || isEnding(lease) || host === NOWHERE
    const over = due.filter(isOver)
    const asked = due.filter((life) => !isOver(life))
    if (asked.length === 0) return due
    const quiet: ExpiringLease[] = []
    let heardMs = -Infinity
    // Where all belong to earlier decisions, it does not matter who else is silent.
    if (!asked.every((life) => holdOf(life, this.#holds.keys()))) {
      const nowMs = clock.now()
      for (const life of lives()) {
        if (life.deadlineMs === Infinity || isEnding(life.lease)) continue
        if (life.heardMs > heardMs) heardMs = life.heardMs
        if (isQuiet(life, nowMs)) quiet.push(life)
      }
      await this.#locate(quiet)
    }
    const telling = quiet.filter(({ host }) => host !== NOWHERE)
    const nowMs = clock.now()
    const decisions = decide({
      nowMs,
      due: asked.filter((life) => life.deadlineMs <= nowMs),
      quiet: telling.filter((life) => life.deadlineMs !== Infinity && isQuiet(life, nowMs)),
      hostOf: ({ host }) => host ?? NOWHERE,
      heardMs,
      holds: this.#holds.keys(),
      holdMs,
    })
    for (const hold of decisions.begun) this.#begin(hold, nowMs)
    for (const { voice, hold } of decisions.hold) {
      const tally = this.#holds.get(hold)!
      tally.held++
      tally.left++
      this.#held++
      voice.hold = hold
      setDeadline(voice, Math.max(voice.deadlineMs, hold.untilMs))
    }
    return [...over, ...decisions.end]
  }

  /** Finds out where the nodes of silent leases are. */
  async #locate(silent: readonly ExpiringLease[]): Promise<void> {
    const unknown = silent.filter(({ host }) => host === undefined)
    if (unknown.length === 0) return
    await this.#options.store.read((state) => {
      for (const life of unknown) {
        // One host for each lease: a registrant that speaks for many hosts is one that may die.
        const [ref] = state.nodesOfLease(life.lease.id)
        life.host = (ref && state.node(ref)?.node.host) ?? NOWHERE
      }
    })
  }

  #begin(hold: Hold, nowMs: number): void {
    const { clock, log } = this.#options
    this.#decided[hold.reason]++
    this.#holds.set(hold, { held: 0, back: 0, saidBack: 0, saidMs: -Infinity, left: 0 })
    const dateOf = (ms: number) => new Date(clock.wall() + ms - nowMs).toISOString()
    const { reason, leases, hostCount, hosts, span, untilMs } = hold
    log.warn(
      { reason, leases, hostCount, hosts, silentSince: dateOf(span.fromMs), until: dateOf(untilMs) },
      SENTENCES[reason],
    )
  }

  /** Ends as many as one transaction takes. @returns the others */
  async #endSome(left: readonly ExpiringLease[]): Promise<readonly ExpiringLease[]> {
    const { store, clock, log, setDeadline } = this.#options
    const nowMs = clock.now()
    const batch: ExpiringLease[] = []
    let at = 0
    for (; at < left.length && batch.length < ENDED_AT_ONCE; at++) {
      const life = left[at]!
      // Renewed while others ended, it stays. One that is ending already goes on.
      if (isEnding(life.lease) || life.deadlineMs <= nowMs) batch.push(life)
    }
    if (batch.length === 0) return []
    const holders = batch.map(({ lease }) => lease.holder)
    const written = store.transact((tx) => this.#endIn(tx, batch, holders, nowMs))
    const ending = written.then(
      ({ result }) => new Set([...result.ended, ...result.begun.map(({ lease }) => lease.id)]),
      () => NONE,
    )
    for (const life of batch) life.ending = ending
    try {
      const { ended, begun, moved, done } = (await written).result
      for (const life of moved) if (life.deadlineMs <= nowMs) setDeadline(life, clock.now() + RETRY_MS)
      this.#expired += ended.size
      const gone = batch.filter(({ lease }) => ended.has(lease.id))
      if (gone.length > 0) log.info({ leases: gone.length, owners: ownersOf(gone) }, 'leases expired')
      return [...begun, ...batch.slice(done), ...left.slice(at)]
    } finally {
      for (const life of batch) life.ending = undefined
    }
  }

  #endIn(
    tx: Transaction,
    batch: readonly ExpiringLease[],
    holders: readonly (string | undefined)[],
    nowMs: number,
  ): Ends {
    const ended = new Set<string>()
    const begun: ExpiringLease[] = []
    const moved: ExpiringLease[] = []
    let room = NODES_AT_ONCE
    let done = 0
    for (const life of batch) {
      const { id } = life.lease
      const lease = tx.lease(id)
      // One that was renewed while this waited is as good as moved.
      const isBelieved = lease && (isEnding(lease) || (lease.holder === holders[done] && life.deadlineMs <= nowMs))
      if (isBelieved) {
        const nodes = tx.nodesOfLease(id).length
        if (nodes > room && room < NODES_AT_ONCE) break
        room -= nodes
        if (endLease(tx, lease, 'lease_expired')) ended.add(id)
        else begun.push(life)
      } else moved.push(life)
      done++
    }
    return { ended, begun, moved, done }
  }
}

const SENTENCES: Record<HoldReason, string> = {
  partition:
    'leases of several hosts fell silent together: they are held, for a network is likelier parted than all dead',
  silence: 'nobody is heard any more: leases are held, for our own network is likelier cut than all dead',
}

function ownersOf(lives: readonly ExpiringLease[]): string[] {
  return lives.slice(0, 10).map(({ lease }) => lease.owner)
}
