import type { Socket } from 'node:net'
import { asSidecarError, SidecarError } from '../errors.ts'
import { discard, endExchange, Whole, type Content, type Exchange, type Reply } from '../layer.ts'
import { GREETING_BYTES, WELCOME } from './greeting.ts'
import { PrefixedContent } from './prefixed-content.ts'
import { TcpStream, type Adopted, type TcpStreamHost } from './tcp-stream.ts'

/** Bounds on one connection, in the unit the name ends in. */
export interface TcpConnectionLimits {
  /** Without a byte in either direction. */
  readonly idleMs: number
  /** For both sides to close after they were told that nothing more is to come. */
  readonly lingerMs: number
}

/** The side that accepts connections. */
export interface TcpConnectionHost {
  readonly limits: TcpConnectionLimits
  /** Milliseconds of the clock, as of a moment ago. */
  readonly nowMs: number
  /** What a sidecar that connects says first; undefined where none is expected. */
  readonly greeting: Buffer | undefined
  moved(read: number, written: number): void
  /** @param reason why it ended before both sides had said all; undefined otherwise */
  closed(connection: TcpConnection, reason: string | undefined): void
}

/**
 * One accepted connection, as an exchange whose answer is a tunnel. It is handed on at once, before its caller has said
 * anything.
 */
export class TcpConnection implements TcpStreamHost {
  readonly #host: TcpConnectionHost
  readonly #stream: TcpStream | undefined
  #exchange: Exchange | undefined
  #movedMs: number
  #leftMs: number | undefined
  #reason: string | undefined
  /** Read before there was an exchange. */
  #bytesIn = 0
  #bytesOut = 0

  constructor(accepted: Socket | Adopted, host: TcpConnectionHost) {
    this.#host = host
    this.#movedMs = host.nowMs
    this.#stream = 'transport' in accepted ? TcpStream.adopt(accepted, this) : TcpStream.accept(accepted, this)
  }

  /** Whether it had gone before it could be accepted. */
  get isVoid(): boolean {
    return this.#stream === undefined
  }

  get peer(): string {
    return this.#stream?.peer ?? ''
  }

  /** @param answer to the exchange, which this one ends */
  async open(exchange: Exchange, answer: Promise<Reply>): Promise<void> {
    this.#exchange = exchange
    exchange.bytesIn += this.#bytesIn
    try {
      const reply = await answer
      const { tunnel, body } = reply
      if (this.#exchange === undefined || this.#leftMs !== undefined) return discard(reply)
      if (tunnel === undefined || body === undefined || body instanceof Whole) {
        discard(reply)
        this.#leave(reply.reason ?? 'internal_error', undefined)
        return this.#end(undefined)
      }
      tunnel.open(this.#content(this.#stream!))
      this.#stream!.take(body)
    } catch (error) {
      this.cut(asSidecarError(error))
    }
  }

  /** Closes what takes too long. To be called now and then. */
  check(nowMs: number): void {
    const { idleMs, lingerMs } = this.#host.limits
    if (this.#leftMs !== undefined) {
      if (nowMs - this.#leftMs >= lingerMs) this.#stream!.cancel()
    } else if (nowMs - this.#movedMs >= idleMs)
      this.#leave('idle', new SidecarError('idle', `not a byte within ${idleMs} ms`, { delivered: true }))
  }

  /** Breaks it off, so that nobody takes it for a regular end. */
  cut(error: SidecarError): void {
    this.#stream!.fail(error)
  }

  // What its stream tells it.

  moved(read: number, written: number): void {
    this.#movedMs = this.#host.nowMs
    this.#bytesOut += written
    if (this.#exchange) this.#exchange.bytesIn += read
    else this.#bytesIn += read
    this.#host.moved(read, written)
  }

  failure(cause: NodeJS.ErrnoException | undefined): SidecarError {
    return new SidecarError('caller_gone', `the caller broke its connection: ${cause?.code ?? 'closed'}`, {
      delivered: true,
      cause,
    })
  }

  closed(failure: SidecarError | undefined): void {
    this.#end(failure)
    this.#host.closed(this, this.#reason ?? failure?.reason)
  }

  #content(stream: TcpStream): Content {
    const { greeting } = this.#host
    if (greeting === undefined) return stream
    return new PrefixedContent(stream, greeting, (beginning, matched) => {
      if (beginning === 'expected') {
        // Behind what the service has said it would look as if the service had said it.
        const isWelcomed = !stream.hasSpoken
        if (isWelcomed) stream.write(WELCOME)
        // Between sidecars, and neither the caller's nor the service's.
        this.moved(-greeting.length, isWelcomed ? -WELCOME.length : 0)
      } else if (matched >= GREETING_BYTES) {
        this.cut(new SidecarError('not_here', 'the connection is for a service that is not behind this port'))
        return false
      }
      return true
    })
  }

  #leave(reason: string, why: SidecarError | undefined): void {
    this.#reason = reason
    this.#leftMs = this.#host.nowMs
    this.#stream!.leave(why)
  }

  #end(error: SidecarError | undefined): void {
    const exchange = this.#exchange
    this.#exchange = undefined
    if (exchange) endExchange(exchange, error, this.#bytesOut)
  }
}
