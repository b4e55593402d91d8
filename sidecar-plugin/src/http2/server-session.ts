import { constants, performServerHandshake, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2'
import type { Socket } from 'node:net'
import { SidecarError } from '../errors.ts'
import type { Malformed } from '../http1/malformed.ts'
import type { Body, Exchange, Reply } from '../layer.ts'
import type { RequestFields } from './fields.ts'
import { handleOf } from './handle.ts'
import { Heartbeat, type HeartbeatLimits } from './heartbeat.ts'
import { ServerStream, type ServerStreamHost } from './server-stream.ts'
import { TokenBucket } from './token-bucket.ts'

/** Bounds on one connection, in the unit the name ends in. */
export interface SessionLimits extends HeartbeatLimits {
  readonly headBytes: number
  readonly headFields: number
  readonly headMs: number
  /** While a stream is open, without a byte on it in either direction. */
  readonly idleMs: number
  /** Without a stream. */
  readonly keepAliveMs: number
  /** For the other side to close, once it was told to. */
  readonly lingerMs: number
  /** At once. */
  readonly streams: number
  /** What one stream may send before somebody takes it. */
  readonly windowBytes: number
  /** Given up by the caller: so many at once, and a tenth of that per second. */
  readonly resets: number
  /** SETTINGS and PING: so many at once, and a tenth of that per second. */
  readonly controls: number
}

/** The side that accepts connections. */
export interface SessionHost {
  readonly limits: SessionLimits
  /** Milliseconds of the clock, as of a moment ago. */
  readonly nowMs: number
  /** Whether callers are to go elsewhere. */
  readonly isClosing: boolean
  /** A request has arrived; the answer comes by {@link ServerStream.answer}. */
  arrived(stream: ServerStream, head: RequestFields, body: Body | undefined): Exchange
  /** What was sent is no request. @returns the answer to it */
  malformed(fault: Malformed): Reply
  /** The connection was cut for what it did. */
  abused(kind: 'resets' | 'controls' | 'frames'): void
  closed(session: ServerSession): void
}

/**
 * How long after it was said that no more streams are wanted those that were on their way are still taken: about the
 * longest time that a request is on its way (RFC 9113, section 6.8).
 */
const NOTICE_MS = 1_000

/**
 * GOAWAY with the highest stream there can be: says that the connection ends, and refuses nothing yet. The library
 * takes no stream after any GOAWAY that it sends itself, so it does not hear of this one.
 */
const NOTICE = Buffer.from([0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0])

/** What the library ends a connection for; everything else is the other side's end of it. */
const FAULTS: ReadonlySet<string> = new Set(['ERR_HTTP2_ERROR', 'ERR_HTTP2_TOO_MANY_INVALID_FRAMES'])

/** Of the connection, above those of its streams: nothing holds it back. */
const CONNECTION_WINDOW_BYTES = 4_194_304

/** One accepted connection of HTTP/2. */
export class ServerSession implements ServerStreamHost {
  readonly #host: SessionHost
  readonly #socket: Socket
  readonly #session: ServerHttp2Session
  readonly #streams = new Set<ServerStream>()
  readonly #resets: TokenBucket
  readonly #controls: TokenBucket
  readonly #heartbeat: Heartbeat
  readonly peer: string
  /** When it began, and from then on when its last stream ended. */
  #restedMs: number
  /** Bytes read when a PING was answered last. */
  #answeredBytes = 0
  /** When bytes after those were first seen while there was no stream. */
  #unexplainedMs: number | undefined
  #isAsked = false
  #isGreeted = false
  #hasServed = false
  #noticedMs: number | undefined
  #closedMs: number | undefined
  #isOver = false

  /** @param socket with what was read from it already put back */
  constructor(socket: Socket, peer: string, host: SessionHost) {
    const { limits, nowMs } = host
    this.#host = host
    this.#socket = socket
    this.peer = peer
    this.#restedMs = nowMs
    this.#resets = new TokenBucket(limits.resets, limits.resets / 10, nowMs)
    this.#controls = new TokenBucket(limits.controls, limits.controls / 10, nowMs)
    socket.on('error', () => {})
    socket.once('close', () => this.#over())
    this.#session = performServerHandshake(socket, {
      // Beyond it a stream is reset without a word; what is within it and too many is answered.
      maxHeaderListPairs: limits.headFields * 2,
      settings: {
        maxConcurrentStreams: limits.streams,
        maxHeaderListSize: limits.headBytes,
        initialWindowSize: limits.windowBytes,
      },
    })
    this.#heartbeat = new Heartbeat(this.#session, socket, limits, nowMs)
    this.#session.setLocalWindowSize(Math.max(CONNECTION_WINDOW_BYTES, limits.windowBytes))
    this.#session.on('stream', (stream: ServerHttp2Stream, _headers: unknown, flags: number, raw: readonly string[]) =>
      this.#begin(stream, flags, raw),
    )
    this.#session.on('remoteSettings', () => {
      if (this.#isGreeted) this.#control()
      this.#isGreeted = true
    })
    this.#session.on('ping', () => this.#control())
    this.#session.on('error', (error: NodeJS.ErrnoException) => {
      if (FAULTS.has(error.code ?? '')) host.abused('frames')
    })
    this.#session.on('close', () => (this.#closedMs ??= host.nowMs))
  }

  get limits(): SessionLimits {
    return this.#host.limits
  }

  get nowMs(): number {
    return this.#host.nowMs
  }

  get isFull(): boolean {
    return (handleOf(this.#socket)?.writeQueueSize ?? 0) > 0
  }

  get isIdle(): boolean {
    return this.#streams.size === 0
  }

  destroy(): void {
    if (this.#closedMs === undefined) this.#session.destroy()
    this.#socket.destroy()
  }

  /** Says which requests it has taken: one that is on its way is not, and may be sent elsewhere. */
  leave(): void {
    if (this.#closedMs !== undefined) return
    this.#closedMs = this.#host.nowMs
    this.#session.close()
  }

  /** Closes what takes too long, and sends callers elsewhere where that is wanted. To be called now and then. */
  check(nowMs: number): void {
    const { limits } = this.#host
    for (const stream of this.#streams) stream.check(nowMs)
    if (this.#heartbeat.isSilent(nowMs, limits.lingerMs)) this.destroy()
    else if (!this.#heartbeat.check(nowMs, !this.isIdle)) this.#giveUp(nowMs)
    else if (this.#closedMs !== undefined) {
      if (this.isIdle && nowMs - this.#closedMs >= limits.lingerMs) this.destroy()
    } else if (!this.#isGreeted) {
      if (nowMs - this.#restedMs >= limits.headMs) this.destroy()
    } else if (this.#noticedMs !== undefined) {
      if (nowMs - this.#noticedMs >= NOTICE_MS) this.leave()
    } else if (this.#isHeadSlow(nowMs)) this.destroy()
    else if (this.#host.isClosing && (this.#hasServed || nowMs - this.#restedMs >= NOTICE_MS)) this.#notice()
    else if (this.isIdle && nowMs - this.#restedMs >= limits.keepAliveMs) this.leave()
  }

  // What its streams tell it.

  arrived(stream: ServerStream, head: RequestFields, body: Body | undefined): Exchange {
    return this.#host.arrived(stream, head, body)
  }

  malformed(fault: Malformed): Reply {
    return this.#host.malformed(fault)
  }

  drained(): void {
    this.#heartbeat.heard(this.#host.nowMs)
  }

  left(stream: ServerStream, wasReset: boolean): void {
    this.#streams.delete(stream)
    this.#restedMs = this.#host.nowMs
    if (wasReset) this.#reset()
  }

  /**
   * Whether what arrives without a stream must be a head that takes too long. The library tells of none before its end;
   * but nothing else may stand within one (RFC 9113, section 6.10), so who answers a PING is not sending one.
   */
  #isHeadSlow(nowMs: number): boolean {
    const { bytesRead } = this.#socket
    if (!this.isIdle || bytesRead === this.#answeredBytes) {
      this.#unexplainedMs = undefined
      return false
    }
    this.#unexplainedMs ??= nowMs
    const { headMs } = this.#host.limits
    const slowMs = nowMs - Math.max(this.#unexplainedMs, this.#restedMs)
    if (this.#isAsked) return slowMs >= 2 * headMs
    if (slowMs >= headMs) this.#ask()
    return false
  }

  #ask(): void {
    if (this.#session.closed || this.#session.destroyed) return
    this.#isAsked = true
    this.#session.ping((error) => {
      this.#isAsked = false
      if (error === null) this.#answeredBytes = this.#socket.bytesRead
    })
  }

  /** Nobody is there any more. */
  #giveUp(nowMs: number): void {
    const detail = `no sign of life from the caller for ${Math.round(this.#heartbeat.quietMs(nowMs))} ms`
    const error = new SidecarError('caller_gone', detail, { delivered: true })
    for (const stream of this.#streams) stream.fail(error)
    this.destroy()
  }

  #begin(stream: ServerHttp2Stream, flags: number, raw: readonly string[]): void {
    if (this.#host.isClosing && this.#noticedMs === undefined) this.#notice()
    stream.on('error', () => {})
    // Given up in the moment in which it was opened.
    if (stream.destroyed) return this.#reset()
    this.#hasServed = true
    const hasContent = (flags & constants.NGHTTP2_FLAG_END_STREAM) === 0
    const served: ServerStream = new ServerStream(this, stream, hasContent)
    this.#streams.add(served)
    served.begin(raw)
  }

  /** Opening streams only to reset them costs the caller nothing, and this side a request each (CVE-2023-44487). */
  #reset(): void {
    if (!this.#resets.take(this.#host.nowMs)) this.#calm('resets')
  }

  #control(): void {
    if (!this.#controls.take(this.#host.nowMs)) this.#calm('controls')
  }

  #calm(kind: 'resets' | 'controls'): void {
    if (this.#closedMs !== undefined || this.#session.destroyed) return
    this.#closedMs = this.#host.nowMs
    this.#host.abused(kind)
    this.#session.destroy(new Error(`too many ${kind}`), constants.NGHTTP2_ENHANCE_YOUR_CALM)
  }

  #notice(): void {
    if (this.#session.destroyed || this.#session.closed) return
    this.#noticedMs = this.#host.nowMs
    // Whole frames go into each of the library's own writes, so this stands between two of them.
    this.#socket.write(NOTICE)
  }

  #over(): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#closedMs ??= this.#host.nowMs
    if (!this.#session.destroyed) this.#session.destroy()
    this.#host.closed(this)
  }
}
