/**
 * One session with one member of etcd at a time: read what was missed, watch from there, and look once a second
 * whether the watch has told everything. Whatever goes wrong, there is one recovery: the next session, with the next
 * member.
 */

import { Backoff, sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { EtcdFailure, type EtcdConnection, type FeedEvent } from './etcd-connection.ts'
import { FEED } from './layout.ts'

/** For a sign of life, while there is another member to be asked instead. */
const NEXT_MEMBER_MS = 1_000
const BEAT_MS = 1_000
/** Beats in a row that may find the watch behind. */
const BEATS_BEHIND = 1
/** Until then a beat may just be late. */
const CURRENT_MS = BEAT_MS * 3
const RECONNECT = { baseMs: 50, capMs: 2_000 }
/** Between two lines of the log about the same loss. With the longest wait between tries, one at least every 5 s. */
const SAY_AGAIN_MS = 2_500

export interface SessionFollower {
  /**
   * Reads everything that was missed.
   * @param firstAnswerMs how long to wait for a sign of life
   * @returns etcd's revision up to which everything is known now
   */
  catchUp(connection: EtcdConnection, firstAnswerMs?: number): Promise<number>
  receive(events: readonly FeedEvent[]): void
  /** @returns whether everything is known that anyone was acknowledged before the call */
  check(connection: EtcdConnection): Promise<boolean>
}

export interface EtcdSessionOptions {
  readonly endpoints: readonly string[]
  readonly connect: (endpoint: string) => EtcdConnection
  readonly follower: SessionFollower
  /** What has to be done before anything is written. */
  readonly opening: (connection: EtcdConnection) => Promise<void>
  readonly opened: () => void
  /** The connection must not be used any more. May be called again. */
  readonly disconnected: () => void
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
}

export class EtcdSession {
  readonly #options: EtcdSessionOptions
  readonly #closed = new AbortController()
  #connection: EtcdConnection | undefined
  #fail: (failure: Error) => void = () => {}
  #endpoint: number
  #currentMs: number
  #lost: { readonly sinceMs: number; reason: string } | undefined
  #running: Promise<void> | undefined
  #opened = 0

  constructor(options: EtcdSessionOptions) {
    this.#options = options
    this.#currentMs = options.clock.now()
    this.#lost = { sinceMs: this.#currentMs, reason: 'no answer yet' }
    // Replicas that share a list spread over the members.
    this.#endpoint = Math.floor(options.random() * options.endpoints.length)
  }

  /** Undefined while there is none. */
  get connection(): EtcdConnection | undefined {
    return this.#connection
  }

  /** Sessions that were opened, the first included. */
  get opened(): number {
    return this.#opened
  }

  /** For how long the state may have been overtaken. */
  get ageMs(): number {
    const ageMs = this.#options.clock.now() - this.#currentMs
    return this.#lost === undefined && ageMs <= CURRENT_MS ? 0 : ageMs
  }

  /** Since when and why there is no session. */
  get lost(): { readonly forMs: number; readonly reason: string } | undefined {
    return this.#lost && { forMs: this.#options.clock.now() - this.#lost.sinceMs, reason: this.#lost.reason }
  }

  /**
   * Opens sessions for ever. Resolves with the first; a failure for which `isFinal` holds before that rejects.
   */
  open(isFinal: (error: Error) => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#running = this.#run(resolve, (error) => {
        if (!isFinal(error)) return false
        reject(error)
        return true
      })
    })
  }

  /** Ends the present session for a reason found elsewhere. */
  fail(failure: Error): void {
    this.#drop(failure.message)
    this.#fail(failure)
  }

  async close(): Promise<void> {
    this.#closed.abort()
    this.#fail(new EtcdFailure('unreachable', 'closing'))
    await this.#running
  }

  async #run(opened: () => void, isFinal: (error: Error) => boolean): Promise<void> {
    const { endpoints, connect, clock, random, log } = this.#options
    const backoff = new Backoff(random, RECONNECT)
    const reasons = new Map<string, string>()
    let saidMs = -Infinity
    let hasOpened = false
    let failed = 0
    while (!this.#closed.signal.aborted) {
      const endpoint = endpoints[this.#endpoint++ % endpoints.length]!
      const startMs = clock.now()
      let connection: EtcdConnection | undefined
      try {
        connection = connect(endpoint)
        const isHasty = hasOpened && failed < endpoints.length - 1
        await this.#live(connection, isHasty ? NEXT_MEMBER_MS : undefined, () => {
          failed = 0
          log.info({ endpoint, ...(hasOpened && { lostMs: Math.round(this.lost?.forMs ?? 0) }) }, 'connected to etcd')
          this.#lost = undefined
          this.#opened++
          reasons.clear()
          saidMs = -Infinity
          hasOpened = true
          opened()
        })
      } catch (error) {
        const reason = (error as Error).message
        failed++
        if (this.#closed.signal.aborted) break
        this.#drop(`${endpoint}: ${reason}`)
        if (!hasOpened && isFinal(error as Error)) break
        reasons.set(endpoint, reason)
        if (clock.now() - saidMs >= SAY_AGAIN_MS) {
          log.warn({ reasons: Object.fromEntries(reasons) }, hasOpened ? 'etcd lost; trying again' : 'waiting for etcd')
          saidMs = clock.now()
        }
        if (clock.now() - startMs > RECONNECT.capMs * 2) backoff.reset()
      } finally {
        this.#fail = () => {}
        this.#connection = undefined
        this.#options.disconnected()
        connection?.close()
      }
      await sleep(clock, backoff.next(), this.#closed.signal)
    }
  }

  /** At once, so that nobody goes on with a connection that has failed. */
  #drop(reason: string): void {
    if (this.#lost) this.#lost.reason = reason
    else this.#lost = { sinceMs: this.#options.clock.now(), reason }
    if (this.#connection === undefined) return
    this.#connection = undefined
    this.#options.disconnected()
  }

  async #live(connection: EtcdConnection, firstAnswerMs: number | undefined, opened: () => void): Promise<void> {
    const { follower, opening, clock } = this.#options
    let end: (failure: Error) => void = () => {}
    const ended = new Promise<never>((_, reject) => (end = reject))
    // It may come before anyone waits for it.
    ended.catch(() => {})
    this.#fail = end
    const askedMs = clock.now()
    const revision = await Promise.race([follower.catchUp(connection, firstAnswerMs), ended])
    await Promise.race([
      connection.watch(FEED, revision + 1, {
        events: (events) => {
          try {
            follower.receive(events)
          } catch (error) {
            end(error as Error)
          }
        },
        failed: end,
      }),
      ended,
    ])
    await Promise.race([opening(connection), ended])
    this.#connection = connection
    this.#currentMs = askedMs
    opened()
    this.#options.opened()
    void this.#beat(connection, end)
    await ended
  }

  /** Apart from the session's own wait: a race in each beat would leave a reaction behind on the promise of the end. */
  async #beat(connection: EtcdConnection, end: (failure: Error) => void): Promise<void> {
    const { follower, clock } = this.#options
    let behind = 0
    for (;;) {
      await sleep(clock, BEAT_MS, this.#closed.signal)
      if (connection !== this.#connection) return
      const sentMs = clock.now()
      try {
        const isCurrent = await follower.check(connection)
        if (connection !== this.#connection) return
        if (isCurrent) {
          this.#currentMs = sentMs
          behind = 0
        } else if (++behind > BEATS_BEHIND)
          throw new EtcdFailure('unreachable', 'the watch is silent about what is there')
      } catch (error) {
        return end(error as Error)
      }
    }
  }
}
