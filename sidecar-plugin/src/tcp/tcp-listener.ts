import type { Socket } from 'node:net'
import { every, sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import { portAcceptor, type Acceptor, type AcceptorFactory } from '../acceptor.ts'
import { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import { Exchange, type Direction, type Service } from '../layer.ts'
import { untilQuiet } from '../quiet.ts'
import { RequestIds } from '../request-ids.ts'
import type { Capacity } from './capacity.ts'
import { greetingOf } from './greeting.ts'
import { Detection, type Begun, type DetectionHost, type TakeHttp } from './detection.ts'
import { TcpConnection, type TcpConnectionHost, type TcpConnectionLimits } from './tcp-connection.ts'

/** Bounds, in the unit the name ends in. */
export interface TcpListenerLimits extends TcpConnectionLimits {
  /** Without a byte, until the system asks whether the other side is still there. */
  readonly keepAliveMs: number
  /** For a client to finish what begins as something known. */
  readonly detectMs: number
}

/** What went through a listener since it was opened. */
export interface TcpTraffic {
  readonly direction: Direction
  readonly service: string
  readonly namespace: string
  /** Where it listens. */
  readonly host: string
  readonly port: number
  /** Connections accepted. */
  readonly opened: number
  readonly open: number
  readonly bytesIn: number
  readonly bytesOut: number
  /** Connections that did not end with both sides having said all, and those that were one too many, by reason. */
  readonly failed: Readonly<Record<string, number>>
}

export interface TcpListenerOptions {
  readonly direction: Direction
  /** Whom all connections are for. */
  readonly service: string
  readonly namespace: string
  readonly serve: Service
  readonly clock: Clock
  readonly random: Random
  readonly limits: TcpListenerLimits
  readonly capacity: Capacity
  /** Takes the connections whose clients speak HTTP; without it nobody looks what they speak. */
  readonly http?: TakeHttp
  /** Default: a port of this process. */
  readonly acceptor?: AcceptorFactory
}

/** How often what takes too long is looked for. */
const TICK_MS = 500

const NO_CONTROL: ReadonlyMap<string, string> = new Map()

/** A TCP server that turns each connection into an exchange with one service, and its reply into a relay. */
export class TcpListener implements TcpConnectionHost, DetectionHost {
  readonly limits: TcpListenerLimits
  readonly greeting: Buffer | undefined
  readonly #options: TcpListenerOptions
  readonly #acceptor: Acceptor
  readonly #connections = new Set<TcpConnection | Detection>()
  readonly #cut = new AbortController()
  readonly #ids: RequestIds
  readonly #failed = new Map<string, number>()
  #emptied: (() => void)[] = []
  #stopTicks: () => void = () => {}
  #nowMs: number
  #arrivedMs = -Infinity
  #opened = 0
  #bytesIn = 0
  #bytesOut = 0
  #host = ''
  #port = 0

  constructor(options: TcpListenerOptions) {
    this.#options = options
    this.limits = options.limits
    // Callers of this host have nobody to greet.
    const { direction, service, namespace } = options
    this.greeting = direction === 'inbound' ? greetingOf(`${service}.${namespace}`) : undefined
    this.#ids = new RequestIds(options.random)
    this.#nowMs = options.clock.now()
    this.#acceptor = (options.acceptor ?? portAcceptor)((socket) => this.#accept(socket))
  }

  /**
   * Starts to accept.
   * @param port 0 for a free one
   * @returns the port
   * @throws the system's error when the address cannot be used
   */
  async listen(host: string, port: number): Promise<number> {
    this.#port = await this.#acceptor.listen(host, port)
    const { idleMs, lingerMs } = this.limits
    this.#stopTicks = every(this.#options.clock, Math.min(TICK_MS, idleMs / 2, lingerMs / 2), () => this.#tick())
    this.#host = host
    return this.#port
  }

  /** Milliseconds of the clock at the last tick, or when somebody came. */
  get nowMs(): number {
    return this.#nowMs
  }

  get port(): number {
    return this.#port
  }

  get traffic(): TcpTraffic {
    const { direction, service, namespace } = this.#options
    return {
      direction,
      service,
      namespace,
      host: this.#host,
      port: this.#port,
      opened: this.#opened,
      open: this.#connections.size,
      bytesIn: this.#bytesIn,
      bytesOut: this.#bytesOut,
      failed: Object.fromEntries(this.#failed),
    }
  }

  /**
   * Goes on accepting until nobody has come for a while, for `idleMs` at most, then accepts no more and waits for the
   * connections that there are. What is left is cut `timeoutMs` after the beginning.
   */
  async finish(options: { idleMs: number; timeoutMs: number }): Promise<void> {
    const { clock } = this.#options
    const endMs = clock.now() + options.timeoutMs
    await untilQuiet(clock, Math.min(options.idleMs, options.timeoutMs), () => this.#arrivedMs, this.#cut.signal)
    await this.#acceptor.close()
    const limit = new AbortController()
    await Promise.race([this.#empty(), sleep(clock, endMs - clock.now(), limit.signal)])
    limit.abort()
    this.close()
  }

  /** Cuts everything. */
  close(): void {
    this.#cut.abort()
    this.#stopTicks()
    void this.#acceptor.close()
    for (const connection of this.#connections)
      connection.cut(new SidecarError('draining', 'the sidecar has ended', { delivered: true }))
  }

  // What its connections tell it.

  begin(peer: string): Begun {
    const { direction, service, namespace, serve } = this.#options
    const exchange = new Exchange({
      direction,
      id: this.#ids.next(),
      startedMs: this.#nowMs,
      peer,
      method: 'CONNECT',
      target: '',
      headers: Fields.NONE,
      // As a caller of HTTP would name it.
      authority: `${service}.${namespace}`,
      control: NO_CONTROL,
      body: undefined,
    })
    return { exchange, reply: serve(exchange) }
  }

  relayed(connection: TcpConnection, { exchange, reply }: Begun, detection?: Detection): void {
    if (detection) this.#connections.delete(detection)
    this.#connections.add(connection)
    void connection.open(exchange, reply)
  }

  moved(read: number, written: number): void {
    this.#bytesIn += read
    this.#bytesOut += written
  }

  closed(connection: TcpConnection | Detection, reason: string | undefined): void {
    this.#connections.delete(connection)
    this.#options.capacity.giveBack()
    if (reason !== undefined) this.#count(reason)
    if (this.#connections.size > 0) return
    for (const resolve of this.#emptied.splice(0)) resolve()
  }

  #accept(socket: Socket): void {
    const { clock, capacity, http, limits } = this.#options
    this.#nowMs = this.#arrivedMs = clock.now()
    this.#opened++
    if (!capacity.take()) {
      this.#count('overloaded')
      socket.destroy()
      return
    }
    socket.setKeepAlive(true, limits.keepAliveMs)
    const connection = http
      ? new Detection(socket, this, limits.detectMs, clock, http)
      : new TcpConnection(socket, this)
    if (connection.isVoid) {
      capacity.giveBack()
      return this.#count('caller_gone')
    }
    this.#connections.add(connection)
    if (connection instanceof TcpConnection) this.relayed(connection, this.begin(connection.peer))
  }

  #tick(): void {
    const nowMs = (this.#nowMs = this.#options.clock.now())
    for (const connection of this.#connections) connection.check(nowMs)
  }

  #count(reason: string): void {
    this.#failed.set(reason, (this.#failed.get(reason) ?? 0) + 1)
  }

  #empty(): Promise<void> {
    if (this.#connections.size === 0) return Promise.resolve()
    return new Promise((resolve) => this.#emptied.push(resolve))
  }
}
