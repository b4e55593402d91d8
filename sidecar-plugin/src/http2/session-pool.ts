import { ClientSession, type ClientSessionHost, type ClientSessionLimits } from './client-session.ts'
import type { StreamCall } from './client-stream.ts'

export interface SessionPoolLimits extends ClientSessionLimits {
  readonly sessions: number
  /** Requests that wait for a session. */
  readonly pending: number
}

/** Streams that a node is believed to take until it has said how many: what the RFC asks of it at least. */
const ASSUMED_STREAMS = 100

/** The sessions to one node: one, and more when its streams do not suffice. */
export class SessionPool implements ClientSessionHost {
  readonly limits: SessionPoolLimits
  readonly #destination: { readonly host: string; readonly port: number }
  readonly #now: { readonly ms: number }
  readonly #sessions = new Set<ClientSession>()
  #waiting: StreamCall[] = []
  #usedMs: number
  #isClosed = false

  /** @param now milliseconds of the clock, as of a moment ago */
  constructor(
    destination: { readonly host: string; readonly port: number },
    limits: SessionPoolLimits,
    now: { readonly ms: number },
  ) {
    this.#destination = destination
    this.limits = limits
    this.#now = now
    this.#usedMs = now.ms
  }

  get nowMs(): number {
    return this.#now.ms
  }

  get isClosed(): boolean {
    return this.#isClosed
  }

  /** Sessions, in use or not. */
  get size(): number {
    return this.#sessions.size
  }

  get usedMs(): number {
    return this.#usedMs
  }

  /** Requests under way, with those that wait. */
  get inFlight(): number {
    let streams = 0
    for (const session of this.#sessions) streams += session.size
    return streams + this.#waiting.length
  }

  /**
   * Sends a request on the first session with room, on a new one, or on the next that has room again.
   * @returns false when too many wait already
   */
  send(call: StreamCall): boolean {
    this.#usedMs = this.nowMs
    for (const session of this.#sessions)
      if (session.room > 0) {
        session.send(call)
        return true
      }
    if (this.#waiting.length >= this.limits.pending) return false
    this.#waiting.push(call)
    this.#open()
    return true
  }

  /** Takes back a request that waits. @returns false if it does not */
  withdraw(call: StreamCall): boolean {
    const at = this.#waiting.indexOf(call)
    if (at >= 0) this.#waiting.splice(at, 1)
    return at >= 0
  }

  /** Closes what is of no use, and breaks off what stands still. To be called now and then. */
  check(): void {
    for (const session of this.#sessions) session.check(this.nowMs)
  }

  /** Cuts everything. */
  close(): void {
    this.#isClosed = true
    this.#waiting = []
    for (const session of this.#sessions) session.destroy()
  }

  ready(session: ClientSession): void {
    this.#usedMs = this.nowMs
    while (this.#waiting.length > 0 && session.room > 0) session.send(this.#waiting.shift()!)
    if (this.#waiting.length > 0) this.#open()
  }

  closed(session: ClientSession, before?: Parameters<ClientSessionHost['closed']>[1]): void {
    this.#sessions.delete(session)
    if (this.#isClosed) return
    // Where none can be had, those who wait for one have their answer; others may still get room where there is some.
    if (before && ![...this.#sessions].some(({ isReady }) => isReady)) {
      for (const call of this.#waiting.splice(0)) call.failed({ ...before, isStale: false, isDelivered: false })
    } else this.#open()
  }

  /** Opens as many sessions as those who wait need. */
  #open(): void {
    let missing = this.#waiting.length
    for (const { isReady } of this.#sessions) if (!isReady) missing -= ASSUMED_STREAMS
    for (; missing > 0 && this.#sessions.size < this.limits.sessions; missing -= ASSUMED_STREAMS)
      this.#sessions.add(new ClientSession(this.#destination, this))
  }
}
