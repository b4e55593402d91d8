import { ClientConnection, type Call, type ClientHost, type ClientLimits } from './client-connection.ts'

export interface PoolLimits extends ClientLimits {
  readonly connections: number
  /** Requests that wait for a connection. */
  readonly pending: number
  /** How long a connection may wait for its next request, unless the other side is known to close it earlier. */
  readonly keepAliveMs: number
}

/** How much sooner than the other side one has to close: about the longest time that a request is on its way. */
const MARGIN_MS = 1_000

/**
 * How long it is believed that the other side closes idle connections early. Those that it closed because it restarted
 * teach something wrong.
 */
const BELIEF_MS = 60_000

/** No server closes connections so soon by intent; one that stops does. */
const SHORTEST_MS = 100

/**
 * The connections to one node: the one used last is used next, so that those that are not needed grow old and go.
 *
 * A connection that the other side closed after some time idle teaches that time: from then on none is used that has
 * been idle for nearly as long, because its request would meet a connection that is being closed.
 */
export class Pool implements ClientHost {
  readonly limits: PoolLimits
  readonly #destination: { readonly host: string; readonly port: number }
  readonly #now: { readonly ms: number }
  readonly #idle: ClientConnection[] = []
  readonly #open = new Set<ClientConnection>()
  #waiting: Call[] = []
  #learnedMs = Infinity
  #learnedAtMs = -Infinity
  #usedMs: number
  #isClosed = false

  /** @param now milliseconds of the clock, as of a moment ago */
  constructor(
    destination: { readonly host: string; readonly port: number },
    limits: PoolLimits,
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

  /** Connections, idle or not. */
  get size(): number {
    return this.#open.size
  }

  get idle(): number {
    return this.#idle.length
  }

  /** Milliseconds of the clock when it was last of use. */
  get usedMs(): number {
    return this.#usedMs
  }

  /** Requests under way, with those that wait. */
  get inFlight(): number {
    return this.#open.size - this.#idle.length + this.#waiting.length
  }

  /**
   * Sends a request on a connection that is idle, on a new one, or on the next that gets free.
   * @param fresh on none that was used before
   * @returns false when too many wait already
   */
  send(call: Call, fresh = false): boolean {
    this.#usedMs = this.nowMs
    const connection = fresh ? undefined : this.#take()
    if (connection) connection.send(call)
    else if (this.#open.size < this.limits.connections)
      this.#open.add(new ClientConnection(this.#destination, this, call))
    else if (this.#waiting.length < this.limits.pending) this.#waiting.push(call)
    else return false
    return true
  }

  /** Takes back a request that waits. @returns false if it does not */
  withdraw(call: Call): boolean {
    const at = this.#waiting.indexOf(call)
    if (at >= 0) this.#waiting.splice(at, 1)
    return at >= 0
  }

  /** Closes what waited too long, and breaks off what stands still. To be called now and then. */
  check(): void {
    const { nowMs } = this
    for (const connection of this.#open) connection.check(nowMs)
    while (this.#idle.length > 0 && this.#isOld(this.#idle[0]!)) this.#idle.shift()!.destroy()
  }

  /** Cuts everything. */
  close(): void {
    this.#isClosed = true
    this.#waiting = []
    for (const connection of this.#open) connection.destroy()
  }

  released(connection: ClientConnection): void {
    this.#usedMs = this.nowMs
    const next = this.#waiting.shift()
    if (next) connection.send(next)
    else this.#idle.push(connection)
  }

  closed(connection: ClientConnection, idleMs: number | undefined): void {
    this.#open.delete(connection)
    const at = this.#idle.lastIndexOf(connection)
    if (at >= 0) this.#idle.splice(at, 1)
    if (idleMs !== undefined) this.#learn(idleMs)
    const next = this.#waiting.shift()
    if (next) this.send(next)
  }

  #take(): ClientConnection | undefined {
    for (let connection = this.#idle.pop(); connection; connection = this.#idle.pop()) {
      if (connection.isUsable && !this.#isOld(connection)) return connection
      connection.destroy()
    }
    return undefined
  }

  #isOld(connection: ClientConnection): boolean {
    const { keepAliveMs } = connection
    // The word of a server may shorten the time, never lengthen it.
    const said = keepAliveMs === undefined ? Infinity : Math.max(keepAliveMs - MARGIN_MS, keepAliveMs / 2)
    const learned = this.nowMs - this.#learnedAtMs < BELIEF_MS ? this.#learnedMs : Infinity
    return this.nowMs - connection.movedMs >= Math.min(this.limits.keepAliveMs, said, learned)
  }

  #learn(idleMs: number): void {
    if (idleMs < SHORTEST_MS) return
    const limitMs = Math.max(idleMs - MARGIN_MS, idleMs / 2)
    if (this.nowMs - this.#learnedAtMs >= BELIEF_MS || limitMs < this.#learnedMs) this.#learnedMs = limitMs
    this.#learnedAtMs = this.nowMs
  }
}
