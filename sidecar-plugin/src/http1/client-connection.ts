import { SidecarError } from '../errors.ts'
import { Whole, type Body, type Content } from '../layer.ts'
import { wholeOf } from './content-reader.ts'
import { HeadReader } from './head-reader.ts'
import { parseResponseHead, type ResponseHead } from './head.ts'
import { IncomingContent, type ContentOwner } from './incoming-content.ts'
import { Malformed } from './malformed.ts'
import { MessageWriter, type WriterOwner } from './message-writer.ts'
import { Transport, type TransportOwner } from './transport.ts'

/** Why a request got no answer, or not all of it. */
export interface Failure {
  /**
   * `connect`: no connection came about. `refused`: the other side proves that it has not looked at the request.
   * `protocol`: what was answered is not HTTP. `reset`: it broke off.
   */
  readonly kind: 'connect' | 'refused' | 'protocol' | 'reset'
  readonly detail: string
  readonly cause?: unknown
  /**
   * Whether the connection had served a request before, and then ended without a byte of an answer: the other side most
   * likely closed it while the request was on its way.
   */
  readonly isStale: boolean
  /** Whether any of it was sent; by its kind unless said. */
  readonly isDelivered?: boolean
}

/** What a layer is told of an answer's head. */
export type AnswerHead = Pick<ResponseHead, 'status' | 'fields' | 'control' | 'upgrade'> & {
  readonly statusText: string | undefined
}

/** A request to be sent, and what becomes of it. */
export interface Call<Head = string> {
  readonly method: string
  /** Of HTTP/1.1, with the empty line. */
  readonly head: Head
  readonly body: Body | undefined
  /** The protocols that were asked for. */
  readonly upgrade: string | undefined
  /** It was given to a connection. @param abort closes that, and fails what still arrives on it */
  sentOn(abort: (error: SidecarError) => void): void
  /** An answer before the answer. */
  informed(head: AnswerHead): void
  /**
   * The answer's head has arrived.
   * @param body its content: whole if that came with the head
   * @param tunnel where to pour what goes in, when the connection has become one
   */
  answered(head: AnswerHead, body: Body | undefined, tunnel: ((incoming: Content) => void) | undefined): void
  /** Once, unless it has {@link ended}. */
  failed(failure: Failure): void
  /** The answer has arrived whole. */
  ended(): void
}

export interface ClientLimits {
  readonly connectMs: number
  readonly headBytes: number
  readonly headFields: number
  /** Once an answer has begun, without a byte in either direction. */
  readonly idleMs: number
}

/** Before one answer: more come from nobody who means to answer. One every few seconds for an hour is fewer. */
export const MOST_INFORMED = 1_000

/** Who keeps connections. */
export interface ClientHost {
  readonly limits: ClientLimits
  /** Milliseconds of the clock, as of a moment ago. */
  readonly nowMs: number
  /** May be used for another request. */
  released(connection: ClientConnection): void
  /** For good. @param idleMs how long it had been idle, when it was the other side that ended it then */
  closed(connection: ClientConnection, idleMs: number | undefined): void
}

/** One connection to a node: requests one after another. */
export class ClientConnection implements TransportOwner, ContentOwner, WriterOwner {
  readonly #host: ClientHost
  readonly #reader: HeadReader
  readonly #transport: Transport
  readonly #where: string
  #isConnected = false
  #call: Call | undefined
  #calls = 0
  #writer: MessageWriter | undefined
  #content: IncomingContent | undefined
  #stash: Buffer | undefined
  #sawBytes = false
  #informed = 0
  #hasEnded = false
  #isAnswered = false
  #isPersistent = false
  #isTunnel = false
  #movedMs: number
  #isDestroyed = false
  /** What the server says about how long it keeps an idle connection. */
  keepAliveMs: number | undefined

  constructor(destination: { readonly host: string; readonly port: number }, host: ClientHost, call: Call) {
    this.#host = host
    this.#movedMs = host.nowMs
    this.#where = `${destination.host}:${destination.port}`
    this.#reader = new HeadReader('response', host.limits.headBytes)
    this.#call = call
    call.sentOn((error) => this.#abort(call, error))
    this.#transport = Transport.connect(destination.host, destination.port, this, () => this.#connected())
  }

  /** Milliseconds of the clock when something last moved on it. */
  get movedMs(): number {
    return this.#movedMs
  }

  /** Whether it can take a request, as far as is known. */
  get isUsable(): boolean {
    return this.#call === undefined && !this.#hasEnded && !this.#transport.isClosed
  }

  /** Sends a request; the one before has ended. */
  send(call: Call): void {
    this.#call = call
    call.sentOn((error) => this.#abort(call, error))
    this.#write()
  }

  /**
   * Closes it. The request under way hears nothing more.
   * @param error what those are told who still take the answer's content
   */
  destroy(error?: SidecarError): void {
    const content = this.#content
    this.#isDestroyed = true
    this.#call = undefined
    this.#content = undefined
    this.#writer?.stop()
    if (error === undefined) return this.#transport.destroy()
    content?.fail(error)
    // Who works on it is to hear that nobody waits any more, and a tunnel that was cut is not to look ended.
    this.#transport.reset()
  }

  /** Breaks off what takes too long. To be called now and then. */
  check(nowMs: number): void {
    const { connectMs, idleMs } = this.#host.limits
    const quietMs = nowMs - this.#movedMs
    if (!this.#isConnected) {
      if (quietMs >= connectMs) this.#fail('connect', `no connection within ${connectMs} ms`)
      // Before the answer, how long to wait is a layer's decision.
    } else if (this.#isAnswered && quietMs >= idleMs) this.#fail('reset', `nothing moved for ${idleMs} ms`)
  }

  // What its transport tells it.

  received(bytes: Buffer, length: number): boolean {
    this.#movedMs = this.#host.nowMs
    return this.#read(bytes, 0, length)
  }

  drained(): void {
    this.moved()
    this.#writer?.drained()
  }

  ended(): void {
    this.#hasEnded = true
    const content = this.#content
    // What waits for its sink comes first.
    if (this.#stash) return
    if (content?.endByClose()) {
      this.#content = undefined
      this.#finish()
    } else if (this.#call) this.#fail('reset', 'the other side ended the connection')
    else this.#transport.end()
  }

  closed(error: NodeJS.ErrnoException | undefined): void {
    const idleMs =
      this.#call === undefined && !this.#isDestroyed && this.#calls > 0 ? this.#host.nowMs - this.#movedMs : undefined
    if (this.#call) this.#fail(this.#isConnected ? 'reset' : 'connect', error?.code ?? 'closed', error)
    this.#host.closed(this, idleMs)
  }

  // What the content of an answer tells it.

  wanted(): void {
    const stash = this.#stash
    if (stash) {
      this.#stash = undefined
      if (!this.#read(stash, 0, stash.length)) return
    }
    if (this.#hasEnded) {
      if (this.#content && !this.#stash) this.ended()
    } else this.#transport.resume()
  }

  dropped(): void {
    this.#fail('reset', 'nobody takes the answer')
  }

  counted(): void {}

  // What the writer of a request tells it.

  moved(): void {
    this.#movedMs = this.#host.nowMs
  }

  wrote(): void {
    if (this.#isTunnel) this.#transport.end()
    this.#finish()
  }

  broke(error: SidecarError): void {
    this.#fail('reset', error.message, error)
  }

  #abort(call: Call, error: SidecarError): void {
    if (this.#call === call) this.destroy(error)
  }

  #connected(): void {
    this.#isConnected = true
    // Given up meanwhile: there is nothing to send.
    if (this.#call) this.#write()
  }

  #write(): void {
    const { head, body } = this.#call!
    this.#calls++
    this.#sawBytes = false
    this.#informed = 0
    this.#isAnswered = false
    this.#movedMs = this.#host.nowMs
    this.#writer = undefined
    if (body === undefined) this.#transport.write(head)
    else if (body instanceof Whole) this.#transport.write(head + body.latin1)
    else {
      const framing = body.length === undefined ? 'chunked' : 'length'
      this.#writer = new MessageWriter(this.#transport, this, head, framing, body)
      this.#writer.start()
    }
  }

  #read(bytes: Buffer, start: number, end: number): boolean {
    // Nobody asked: whatever this answers, it must not answer the next request.
    if (this.#call === undefined) {
      this.destroy()
      return true
    }
    this.#sawBytes = true
    let at = start
    try {
      while (at < end) {
        if (this.#content) {
          if (!this.#content.flows) {
            this.#stash = Buffer.from(bytes.subarray(at, end))
            return false
          }
          at = this.#content.push(bytes, at, end)
          // Not yet the end of the call: what follows must not be read as the answer to the next.
          if (this.#content?.isDone) this.#content = undefined
        } else if (this.#isAnswered || this.#call === undefined) {
          // More than was asked for.
          this.#isPersistent = false
          break
        } else {
          at = this.#reader.push(bytes, at, end)
          if (at < 0) return true
          at = this.#begin(bytes, at, end)
        }
      }
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      this.#fail('protocol', error.message, error)
      return true
    }
    if (this.#isAnswered && this.#content === undefined) this.#finish()
    return this.#content === undefined || this.#content.flows
  }

  /** @returns where what follows the answer begins, as far as that has arrived */
  #begin(bytes: Buffer, at: number, end: number): number {
    const call = this.#call!
    const head = parseResponseHead(this.#reader.take(), this.#host.limits.headFields, call.method)
    const { status, framing, length } = head
    if (status < 200 && status !== 101) {
      if (++this.#informed > MOST_INFORMED) throw new Malformed('status_line', 'too many answers before the answer')
      call.informed(head)
      return at
    }
    const isTunnel = status === 101 || (call.method === 'CONNECT' && status < 300)
    if (status === 101 && (call.upgrade === undefined || head.upgrade === undefined))
      throw new Malformed('status_line', 'a change of protocol that nobody asked for')
    this.#isAnswered = true
    this.#isPersistent = head.persistent && !isTunnel
    if (head.keepAliveSeconds !== undefined) this.keepAliveMs = head.keepAliveSeconds * 1_000
    if (isTunnel) {
      this.#isTunnel = true
      this.#content = new IncomingContent(this, 'until_close', 0, false)
      call.answered(head, this.#content, (incoming) => this.#tunnel(incoming))
      return at
    }
    const whole = wholeOf(head, bytes, at, end)
    if (whole) {
      call.answered(head, whole.content, undefined)
      return whole.next
    }
    if (framing === 'none') call.answered(head, undefined, undefined)
    else {
      this.#content = new IncomingContent(this, framing, length, false)
      call.answered(head, this.#content, undefined)
    }
    return at
  }

  #tunnel(incoming: Content): void {
    this.#writer?.stop()
    this.#writer = new MessageWriter(this.#transport, this, '', 'until_close', incoming)
    this.#writer.start()
  }

  /** Once the answer is whole: of a tunnel, once both sides have ended. */
  #finish(): void {
    const call = this.#call
    if (call === undefined || !this.#isAnswered || this.#content !== undefined) return
    const isSent = this.#writer === undefined || this.#writer.isOver
    if (this.#isTunnel && !isSent) return
    this.#call = undefined
    this.#movedMs = this.#host.nowMs
    // An answer that comes before the request's end leaves a connection that is good for nothing more.
    this.#writer?.stop()
    call.ended()
    if (isSent && this.#isPersistent && !this.#hasEnded && !this.#transport.isClosed) this.#host.released(this)
    else if (this.#isTunnel) this.#transport.end()
    else this.destroy()
  }

  #fail(kind: Failure['kind'], detail: string, cause?: unknown): void {
    const call = this.#call
    if (call === undefined) return
    this.#call = undefined
    this.#writer?.stop()
    const failure: Failure = {
      kind,
      detail,
      cause,
      isStale: kind === 'reset' && this.#calls > 1 && !this.#sawBytes,
    }
    const content = this.#content
    this.#content = undefined
    content?.fail(
      new SidecarError(kind === 'protocol' ? 'upstream_protocol' : 'upstream_reset', `${this.#where}: ${detail}`, {
        delivered: true,
        cause,
      }),
    )
    call.failed(failure)
    this.#transport.reset()
  }
}
