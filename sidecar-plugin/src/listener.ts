import type { Socket } from 'node:net'
import { every, sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import { portAcceptor, type Acceptor, type AcceptorFactory } from './acceptor.ts'
import { asSidecarError, SidecarError, type Reason } from './errors.ts'
import { errorReply } from './problem-reply.ts'
import type { RequestHead } from './http1/head.ts'
import type { Malformed, MalformedKind } from './http1/malformed.ts'
import { ServerConnection, type ConnectionLimits, type ServerHost } from './http1/server-connection.ts'
import type { RequestFields } from './http2/fields.ts'
import { ServerSession, type SessionHost, type SessionLimits } from './http2/server-session.ts'
import type { Transport } from './http1/transport.ts'
import { untilQuiet } from './quiet.ts'
import { RequestIds } from './request-ids.ts'
import { discard, Exchange, Whole, type Body, type Caller, type Direction, type Reply, type Service } from './layer.ts'

/** Bounds on what a stranger may send or hold, in the unit the name ends in. */
export interface ListenerLimits extends ConnectionLimits, SessionLimits {
  readonly connections: number
}

export const DEFAULT_LISTENER_LIMITS: ListenerLimits = {
  /** Envoy's default. Smaller refuses big cookies; larger lets every connection hold more memory before it is known. */
  headBytes: 61_440,
  headFields: 100,
  /** Longer lets those who trickle bytes hold sockets. */
  headMs: 10_000,
  /** Shorter cuts long polls and quiet event streams. */
  idleMs: 300_000,
  /**
   * Longer than any pool of a peer keeps a connection: the side that sends must be the one that closes, or a request
   * meets a connection that is just being closed.
   */
  keepAliveMs: 65_000,
  lingerMs: 2_000,
  connections: 10_000,
  /** More let one connection hold more memory: each may fill a window. Fewer make callers of long calls wait. */
  streams: 100,
  /** Smaller makes long ways slow: no stream sends more than this per round trip. */
  windowBytes: 262_144,
  /** Shorter asks callers of long calls more often; longer works on for those who have vanished. */
  quietMs: 30_000,
  /** Shorter cuts callers who read nothing while they work on what they have read. */
  pingMs: 20_000,
  /** Fewer cut callers whose own callers went away all at once. */
  resets: 500,
  /** Fewer cut callers who measure a connection's delay all the time. */
  controls: 500,
}

export interface ListenerOptions {
  readonly direction: Direction
  readonly serve: Service
  readonly clock: Clock
  readonly random: Random
  readonly limits?: Partial<ListenerLimits>
  /** Whether callers may speak HTTP/2, too. Default: true. */
  readonly http2?: boolean
  /**
   * Whether callers of HTTP/1.1 who close their side are still answered; else they are taken to have gone, which most
   * mean by it. Default: true.
   */
  readonly allowHalfOpen?: boolean
  /** Default: a port of this process. */
  readonly acceptor?: AcceptorFactory
  /** Told of each connection that sent what is not HTTP. */
  readonly onMalformed?: (reason: Reason, kind: MalformedKind) => void
}

/** How often what takes too long is looked for. */
const TICK_MS = 500

/** The kinds of malformed messages that have a status of their own (RFC 9110, section 15.5 and 15.6). */
const REASON_OF: Partial<Record<MalformedKind, Reason>> = {
  version: 'version',
  unknown_coding: 'not_supported',
  expectation: 'expectation',
  too_many_fields: 'head_too_large',
  head_too_large: 'head_too_large',
  head_too_slow: 'request_timeout',
}

const NO_CONTROL: ReadonlyMap<string, string> = new Map()

/** What is needed of a connection, whatever it speaks. */
interface Connection {
  /** Whether no request is under way on it. */
  readonly isIdle: boolean
  check(nowMs: number): void
  /** Closes one on which no request is under way. */
  leave(): void
  destroy(): void
}

/** Where one request came from, and its answer goes. */
interface Answered extends Caller {
  readonly peer: string
  answer(reply: Reply): void
  fail(error: SidecarError): void
}

/**
 * A server of HTTP/1.1 and HTTP/2 that turns what arrives into exchanges and replies into answers. It decides nothing about a
 * request: refusing, naming and routing are the layers' business.
 */
export class Listener implements ServerHost, SessionHost {
  readonly limits: ListenerLimits
  readonly #options: ListenerOptions
  readonly #acceptor: Acceptor
  readonly #connections = new Set<Connection>()
  readonly #emptied = new Set<() => void>()
  readonly #cut = new AbortController()
  readonly #ids: RequestIds
  #stopTicks: () => void = () => {}
  #nowMs: number
  #inFlight = 0
  #refused = 0
  #isClosing = false
  #isLeaving = false
  #arrivedMs = -Infinity

  constructor(options: ListenerOptions) {
    this.#options = options
    this.limits = { ...DEFAULT_LISTENER_LIMITS, ...options.limits }
    this.#nowMs = options.clock.now()
    this.#ids = new RequestIds(options.random)
    this.#acceptor = (options.acceptor ?? portAcceptor)((socket) => void this.#accept(socket))
  }

  /**
   * Starts to accept.
   * @param port 0 for a free one
   * @returns the port
   * @throws the system's error when the address cannot be used
   */
  async listen(host: string, port: number): Promise<number> {
    const taken = await this.#acceptor.listen(host, port)
    const { headMs, idleMs, keepAliveMs, lingerMs } = this.limits
    const tickMs = Math.min(TICK_MS, ...[headMs, idleMs, keepAliveMs, lingerMs].map((ms) => ms / 2))
    this.#stopTicks = every(this.#options.clock, tickMs, () => this.#tick())
    return taken
  }

  /** Milliseconds of the clock when something was served last, or a tick ago. */
  get nowMs(): number {
    return this.#nowMs
  }

  /** Requests whose answers have not left yet. */
  get inFlight(): number {
    return this.#inFlight
  }

  get connections(): number {
    return this.#connections.size
  }

  /** Connections that were one too many. */
  get refused(): number {
    return this.#refused
  }

  /** From now on every answer closes its connection; everything is still accepted and served. */
  retire(): void {
    this.#isClosing = true
  }

  get isClosing(): boolean {
    return this.#isClosing
  }

  get http2(): boolean {
    return this.#options.http2 ?? true
  }

  get allowHalfOpen(): boolean {
    return this.#options.allowHalfOpen ?? true
  }

  /** Whether {@link finish} has begun: whoever can go elsewhere should be sent there. */
  get leaving(): boolean {
    return this.#isLeaving
  }

  /**
   * Goes on accepting until no request has arrived for a while, for `idleMs` at most: the system resets connections
   * that wait to be accepted when the socket closes, and with them requests that are written already. Then accepts no
   * connection any more and waits for those there are. A connection without a request is left to its owner for
   * `idleMs`, because closing it could meet a request on its way; then it is closed. One with a request is cut
   * `timeoutMs` after the beginning.
   */
  async finish(options: { idleMs: number; timeoutMs: number }): Promise<void> {
    this.retire()
    this.#isLeaving = true
    const { clock } = this.#options
    const endMs = clock.now() + options.timeoutMs
    await untilQuiet(clock, Math.min(options.idleMs, options.timeoutMs), () => this.#arrivedMs, this.#cut.signal)
    await this.#acceptor.close()
    const cancelIdle = clock.after(options.idleMs, () => this.#closeIdle())
    const limit = new AbortController()
    await Promise.race([this.#empty(), sleep(clock, endMs - clock.now(), limit.signal)])
    limit.abort()
    cancelIdle()
    this.close()
  }

  /** Cuts everything. */
  close(): void {
    this.#cut.abort()
    this.#stopTicks()
    void this.#acceptor.close()
    for (const connection of this.#connections) connection.destroy()
  }

  arrived(caller: Answered, head: RequestHead | RequestFields, body: Body | undefined): Exchange {
    const { clock, direction, serve } = this.#options
    this.#nowMs = this.#arrivedMs = clock.now()
    const exchange = new Exchange({
      direction,
      id: head.requestId?.slice(0, 128) || this.#ids.next(),
      startedMs: this.#nowMs,
      peer: caller.peer,
      method: head.method,
      target: head.target,
      headers: head.fields,
      authority: head.host ?? '',
      control: head.control.length > 0 ? controlOf(head.control) : NO_CONTROL,
      body,
      upgrade: head.upgrade === undefined ? undefined : upgradeOf(head),
      takesTrailers: head.takesTrailers,
      isGrpc: 'isGrpc' in head && head.isGrpc,
      caller,
    })
    if (body instanceof Whole) exchange.bytesIn = body.length
    this.#inFlight++
    exchange.whenEnded(this.#ended)
    void this.#serve(caller, serve(exchange))
    return exchange
  }

  malformed(fault: Malformed): Reply {
    const reason = REASON_OF[fault.kind] ?? 'bad_request'
    this.#options.onMalformed?.(reason, fault.kind)
    return errorReply(new SidecarError(reason, fault.message))
  }

  preferred(connection: ServerConnection, socket: Socket): void {
    this.#connections.delete(connection)
    this.#connections.add(new ServerSession(socket, connection.peer, this))
  }

  abused(kind: 'resets' | 'controls' | 'frames'): void {
    this.#options.onMalformed?.('bad_request', kind)
  }

  closed(connection: Connection): void {
    this.#connections.delete(connection)
    if (this.#connections.size > 0) return
    for (const resolve of this.#emptied) resolve()
    this.#emptied.clear()
  }

  readonly #ended = () => void this.#inFlight--

  async #serve(caller: Answered, served: Promise<Reply>): Promise<void> {
    let reply: Reply
    try {
      reply = await served
    } catch (error) {
      reply = errorReply(asSidecarError(error))
    }
    try {
      caller.answer(reply)
    } catch (error) {
      // Made by a layer, and none that can be written: nothing of it has been.
      discard(reply)
      caller.answer(errorReply(asSidecarError(error)))
    }
  }

  /**
   * Takes over a connection whose first bytes somebody else has read, from whom it is told nothing more.
   * @param first those bytes, which belong to the caller again after the call
   * @returns false to read no more of it until it is asked for
   */
  adopt(transport: Transport, first: Buffer): boolean {
    return this.#accept(transport)?.received(first, first.length) ?? true
  }

  #accept(accepted: Socket | Transport): ServerConnection | undefined {
    if (this.#connections.size >= this.limits.connections) {
      this.#refused++
      accepted.destroy()
      return undefined
    }
    const connection = new ServerConnection(accepted, this)
    if (connection.isVoid) return undefined
    this.#connections.add(connection)
    return connection
  }

  #tick(): void {
    const nowMs = (this.#nowMs = this.#options.clock.now())
    for (const connection of this.#connections) connection.check(nowMs)
  }

  #closeIdle(): void {
    for (const connection of this.#connections) if (connection.isIdle) connection.leave()
  }

  #empty(): Promise<void> {
    if (this.#connections.size === 0) return Promise.resolve()
    return new Promise((resolve) => this.#emptied.add(resolve))
  }
}

function controlOf(control: readonly string[]): ReadonlyMap<string, string> {
  const fields = new Map<string, string>()
  // Of several the first counts.
  for (let i = 0; i < control.length; i += 2) if (!fields.has(control[i]!)) fields.set(control[i]!, control[i + 1]!)
  return fields
}

/**
 * The protocols that may be changed to. Not to HTTP/2 in clear text: what goes through such a tunnel are requests that
 * no layer sees. Ignoring it is allowed (RFC 9110, section 7.8), and HTTP/2 has given it up (RFC 9113, section 3.1).
 */
function upgradeOf({ upgrade, framing }: RequestHead): string | undefined {
  if (upgrade === undefined || framing !== 'none') return undefined
  return /(?:^|[,\s])h2c?(?:$|[,\s])/i.test(upgrade) ? undefined : upgrade
}
