import { connect as connectSession, type ClientHttp2Session } from 'node:http2'
import { connect, type Socket } from 'node:net'
import { Whole } from '../layer.ts'
import { ClientStream, isFault, type ClientStreamHost, type StreamCall } from './client-stream.ts'
import { Heartbeat, type HeartbeatLimits } from './heartbeat.ts'
import { TokenBucket } from './token-bucket.ts'

export interface ClientSessionLimits extends HeartbeatLimits {
  /** Until the node has said that it speaks HTTP/2. */
  readonly connectMs: number
  readonly headBytes: number
  readonly headFields: number
  /** Once an answer has begun, without a byte on its stream in either direction. */
  readonly idleMs: number
  /** At once on one session, whatever the node would take. */
  readonly streams: number
  /** How long a session may be without a stream. */
  readonly sessionIdleMs: number
  /** What one stream may send before somebody takes it. */
  readonly windowBytes: number
}

/** Who keeps sessions. */
export interface ClientSessionHost {
  readonly limits: ClientSessionLimits
  /** Milliseconds of the clock, as of a moment ago. */
  readonly nowMs: number
  /** Takes requests from now on, or again. */
  ready(session: ClientSession): void
  /** For good. @param before whether it never took one, and then why */
  closed(
    session: ClientSession,
    before: { kind: 'connect' | 'protocol'; detail: string; cause?: unknown } | undefined,
  ): void
}

/**
 * Streams given up: a server takes too many for an attack, nghttp2 a thousand at once and 33 a second. A session goes
 * before that.
 */
const RESETS = { burst: 400, perSecond: 25 }

const CONNECTION_WINDOW_BYTES = 4_194_304

/** One connection to a node that speaks HTTP/2. */
export class ClientSession implements ClientStreamHost {
  readonly where: string
  readonly #host: ClientSessionHost
  readonly #socket: Socket
  readonly #session: ClientHttp2Session
  readonly #streams = new Set<ClientStream>()
  readonly #startedMs: number
  readonly #resets: TokenBucket
  readonly #heartbeat: Heartbeat
  #isReady = false
  #isRetired = false
  #hasGone = false
  #isOver = false
  #isFaulty = false
  #why: string | undefined
  #cause: Error | undefined
  #calls = 0
  #lastTaken = Infinity
  #restedMs: number

  constructor(destination: { readonly host: string; readonly port: number }, host: ClientSessionHost) {
    const { limits, nowMs } = host
    const { host: name, port } = destination
    this.#host = host
    this.where = `${name}:${port}`
    this.#startedMs = this.#restedMs = nowMs
    this.#resets = new TokenBucket(RESETS.burst, RESETS.perSecond, nowMs)
    this.#socket = connect({ host: name, port, noDelay: true })
    // The session says why first.
    this.#socket.once('close', () => setImmediate(() => this.#over()))
    this.#session = connectSession(`http://${name.includes(':') ? `[${name}]` : name}:${port}`, {
      createConnection: () => this.#socket,
      maxHeaderListPairs: limits.headFields,
      settings: {
        enablePush: false,
        maxHeaderListSize: limits.headBytes,
        initialWindowSize: limits.windowBytes,
      },
    })
    this.#heartbeat = new Heartbeat(this.#session, this.#socket, limits, nowMs)
    this.#session.once('connect', () =>
      this.#session.setLocalWindowSize(Math.max(CONNECTION_WINDOW_BYTES, limits.windowBytes)),
    )
    this.#session.on('remoteSettings', () => {
      this.#isReady = true
      host.ready(this)
    })
    this.#session.on('goaway', (code: number, last: number) => {
      this.#hasGone = true
      this.#why ??= `the node is going away, with code ${code}`
      this.#lastTaken = last
    })
    this.#session.on('error', (error: NodeJS.ErrnoException) => {
      this.#cause ??= error
      this.#why ??= error.code ?? error.message
      if (isFault(error)) this.#isFaulty = true
    })
    this.#session.on('close', () => this.#over())
  }

  get limits(): ClientSessionLimits {
    return this.#host.limits
  }

  get nowMs(): number {
    return this.#host.nowMs
  }

  /** Requests under way. */
  get size(): number {
    return this.#streams.size
  }

  get isReady(): boolean {
    return this.#isReady
  }

  /** How many more requests it can take now. */
  get room(): number {
    if (!this.#isReady || this.#isRetired || this.#hasGone || this.#session.closed || this.#session.destroyed) return 0
    const { maxConcurrentStreams = Infinity } = this.#session.remoteSettings
    return Math.min(maxConcurrentStreams, this.#host.limits.streams) - this.#streams.size
  }

  get received(): number {
    return this.#socket.bytesRead
  }

  get hasGone(): boolean {
    return this.#hasGone || this.#session.destroyed
  }

  get why(): string | undefined {
    return this.#why
  }

  hasTaken(id: number | undefined): boolean {
    return id !== undefined && id <= this.#lastTaken
  }

  /** Sends a request; there is room for it. */
  send(call: StreamCall): void {
    const { body } = call
    const hasContent = body !== undefined && !(body instanceof Whole)
    this.#calls++
    this.#heartbeat.ask(this.#host.nowMs)
    const stream = this.#session.request(call.head, {
      endStream: body === undefined && call.method !== 'CONNECT',
      waitForTrailers: hasContent || call.method === 'CONNECT',
    })
    this.#streams.add(new ClientStream(this, stream, call, this.#calls > 1))
  }

  /** Cuts it. */
  destroy(): void {
    if (!this.#session.destroyed) this.#session.destroy()
    this.#socket.destroy()
  }

  /** Breaks off what takes too long. To be called now and then. */
  check(nowMs: number): void {
    const { limits } = this.#host
    if (!this.#isReady) {
      if (nowMs - this.#startedMs < limits.connectMs) return
      this.#why ??= `no HTTP/2 within ${limits.connectMs} ms`
      return this.destroy()
    }
    for (const stream of this.#streams) stream.check(nowMs, limits.idleMs)
    if (this.#heartbeat.isSilent(nowMs, limits.pingMs)) {
      this.#why ??= 'the session is stuck'
      return this.destroy()
    }
    if (!this.#heartbeat.check(nowMs, this.#streams.size > 0)) {
      this.#hasGone = true
      this.#why ??= `no sign of life for ${Math.round(this.#heartbeat.quietMs(nowMs))} ms`
      return this.destroy()
    }
    if (this.#streams.size === 0 && (this.#isRetired || nowMs - this.#restedMs >= limits.sessionIdleMs)) this.#close()
  }

  // What its streams tell it.

  resets(): void {
    if (!this.#resets.take(this.#host.nowMs)) this.#isRetired = true
  }

  drained(): void {
    this.#heartbeat.heard(this.#host.nowMs)
  }

  doubt(): void {
    this.#isRetired = true
  }

  left(stream: ClientStream): void {
    this.#streams.delete(stream)
    this.#restedMs = this.#host.nowMs
    if (this.room > 0) this.#host.ready(this)
  }

  #close(): void {
    if (this.#session.closed || this.#session.destroyed) return
    // Who does not close in turn is not waited for.
    this.#session.close(() => this.#socket.destroy())
  }

  #over(): void {
    this.#hasGone = true
    if (!this.#session.destroyed) this.#session.destroy()
    if (this.#isOver) return
    this.#isOver = true
    this.#socket.destroy()
    const kind = this.#isFaulty ? ('protocol' as const) : ('connect' as const)
    const before = this.#isReady ? undefined : { kind, detail: this.#why ?? 'closed', cause: this.#cause }
    this.#host.closed(this, before)
  }
}
