import type { Socket } from 'node:net'
import { matchPreface, PREFACE } from '../http2/preface.ts'
import { SidecarError } from '../errors.ts'
import { lineOf } from '../fields.ts'
import {
  discard,
  endExchange,
  Whole,
  type Body,
  type Content,
  type Exchange,
  type Reply,
  type ReplyHead,
} from '../layer.ts'
import { wholeOf } from './content-reader.ts'
import { HeadReader } from './head-reader.ts'
import { parseRequestHead, type RequestHead } from './head.ts'
import { IncomingContent, type ContentOwner } from './incoming-content.ts'
import { Malformed } from './malformed.ts'
import { MessageWriter, type WriterOwner } from './message-writer.ts'
import { statusLine } from './status-line.ts'
import { Transport, type TransportOwner } from './transport.ts'

/** Bounds on one connection, in the unit the name ends in. */
export interface ConnectionLimits {
  readonly headBytes: number
  readonly headFields: number
  readonly headMs: number
  /** While a request is under way, without a byte in either direction. */
  readonly idleMs: number
  /** Between requests. */
  readonly keepAliveMs: number
  /** For an answered caller to go on sending what nobody wants. */
  readonly lingerMs: number
}

/** The side that accepts connections. */
export interface ServerHost {
  readonly limits: ConnectionLimits
  /** Milliseconds of the clock, as of a moment ago. */
  readonly nowMs: number
  /** Whether each answer is to be the last of its connection. */
  readonly isClosing: boolean
  /** Whether a connection may begin as one of HTTP/2. */
  readonly http2: boolean
  /** Whether a caller who says that it will send no more is still answered. */
  readonly allowHalfOpen: boolean
  /**
   * A request has arrived; the answer comes by {@link ServerConnection.answer}.
   * @param body its content: whole if that came with the head
   */
  arrived(connection: ServerConnection, head: RequestHead, body: Body | undefined): Exchange
  /** What was sent is not HTTP/1.1. @returns the answer to it */
  malformed(fault: Malformed): Reply
  closed(connection: ServerConnection): void
  /** The connection began as one of HTTP/2, and is this one's no more. @param socket with all that has arrived */
  preferred(connection: ServerConnection, socket: Socket): void
}

/**
 * One accepted connection: requests one after another, each answered before the next is looked at, so that pipelining
 * costs one read's worth of memory.
 */
export class ServerConnection implements TransportOwner, ContentOwner, WriterOwner {
  readonly #host: ServerHost
  readonly #transport: Transport | undefined
  readonly #reader: HeadReader
  /** How much of the preface of HTTP/2 has arrived; undefined once it cannot be that. */
  #preface: number | undefined
  /** Read already, and not yet anybody's turn. */
  #stash: Buffer | undefined
  #peer: string | undefined
  #movedMs: number
  #headSinceMs = 0
  #exchange: Exchange | undefined
  #head: RequestHead | undefined
  /** Of the request under way, until its end has arrived. */
  #content: IncomingContent | undefined
  #writer: MessageWriter | undefined
  /** Of an answer without a writer: how much is on its way out. */
  #bytesOut = 0
  /** Whether its caller was told to send content that waits for that. */
  #isTold = false
  #isLast = false
  #isAnswering = false
  #isAnswered = false
  #isTunnel = false
  #hasEnded = false
  /** When it was decided to close, and when to stop waiting for a request's end. */
  #lingersSinceMs: number | undefined

  /** @param accepted by a server with `pauseOnConnect`, or by somebody who has read from it already */
  constructor(accepted: Socket | Transport, host: ServerHost) {
    this.#host = host
    this.#movedMs = host.nowMs
    this.#preface = host.http2 ? 0 : undefined
    this.#reader = new HeadReader('request', host.limits.headBytes)
    if (accepted instanceof Transport) {
      this.#transport = accepted
      accepted.transfer(this)
    } else this.#transport = Transport.accept(accepted, this)
  }

  /** Whether the connection had gone before it could be accepted. */
  get isVoid(): boolean {
    return this.#transport === undefined
  }

  get peer(): string {
    return (this.#peer ??= this.#transport?.remoteAddress ?? '')
  }

  /** Whether no request is under way, nor the beginning of one. */
  get isIdle(): boolean {
    return this.#exchange === undefined && !this.#hasBegun && this.#stash === undefined
  }

  get #hasBegun(): boolean {
    return this.#reader.hasBegun || (this.#preface !== undefined && this.#preface > 0)
  }

  /** A request on its way is lost: there is no word that it could be told by. What closes already does so in its time. */
  leave(): void {
    if (this.#lingersSinceMs === undefined) this.destroy()
  }

  destroy(): void {
    this.#transport?.destroy()
  }

  /** Closes what takes too long. To be called now and then. */
  check(nowMs: number): void {
    const { limits } = this.#host
    if (this.#lingersSinceMs !== undefined) {
      if (nowMs - this.#lingersSinceMs >= limits.lingerMs) this.destroy()
    } else if (this.#exchange) {
      if (nowMs - this.#movedMs >= limits.idleMs) this.#idled(nowMs)
    } else if (this.#hasBegun) {
      if (nowMs - this.#headSinceMs >= limits.headMs)
        this.#refuse(new Malformed('head_too_slow', `the head took more than ${limits.headMs} ms`))
    } else if (nowMs - this.#movedMs >= limits.keepAliveMs) this.destroy()
  }

  /**
   * Says something before the answer. Lost on callers of HTTP/1.0, who would not understand it, and on those who do not
   * take what came before it.
   */
  inform({ status, statusText, headers }: ReplyHead): void {
    const transport = this.#transport!
    if (this.#isAnswering || this.#head?.minor === 0 || transport.isFull || transport.isClosed) return
    if (status === 100) this.#isTold = true
    if (transport.write(`${statusLine(status, statusText)}${headers.lines}\r\n`)) this.moved()
  }

  /**
   * Answers the request under way.
   * @throws Error before anything was written, for an answer that is none
   */
  answer(reply: Reply): void {
    const exchange = this.#exchange
    const transport = this.#transport!
    if (exchange === undefined || transport.isClosed) return discard(reply)
    const { body } = reply
    const isTunnel = reply.tunnel !== undefined
    const hasNone = exchange.method === 'HEAD' || reply.status === 204 || reply.status === 304 || isTunnel
    const content = !hasNone && body !== undefined && !(body instanceof Whole) ? body : undefined
    const whole = !hasNone && body instanceof Whole ? body : undefined
    const framing =
      content === undefined || content.length !== undefined
        ? 'length'
        : this.#head!.minor === 0
          ? 'until_close'
          : 'chunked'
    this.#isLast =
      this.#isLast ||
      reply.isLast === true ||
      this.#host.isClosing ||
      !this.#head!.persistent ||
      framing === 'until_close' ||
      this.#isUnwanted
    let { headers } = reply
    // What would say something else of the content than how it is sent.
    if (framing !== 'length' && headers.contentLength !== undefined) headers = headers.without(LENGTH)
    if (framing === 'until_close') headers = headers.without(TRAILER)
    let head = statusLine(reply.status, reply.statusText) + headers.lines
    if (reply.reason !== undefined) head += lineOf('x-holdfast-reason', reply.reason)
    if (framing === 'chunked') head += 'transfer-encoding: chunked\r\n'
    else if (framing === 'length' && !hasNone) {
      const length = content?.length ?? whole?.length ?? 0
      if (headers.contentLength === undefined) head += `content-length: ${length}\r\n`
      else if (headers.contentLength !== length)
        throw new RangeError(`a length of ${headers.contentLength} for ${length} bytes`)
    }
    if (isTunnel) {
      if (reply.tunnel.protocol !== undefined) head += `connection: upgrade\r\nupgrade: ${reply.tunnel.protocol}\r\n`
    } else if (this.#isLast) head += 'connection: close\r\n'
    else if (this.#head!.minor === 0) head += 'connection: keep-alive\r\n'
    head += '\r\n'

    this.#isAnswering = true
    this.moved()
    if (isTunnel) this.#openTunnel(reply, head)
    else if (content) {
      this.#writer = new MessageWriter(transport, this, head, framing, content)
      this.#writer.start()
    } else {
      if (hasNone) discard(reply)
      this.#bytesOut = whole?.length ?? 0
      const isGone = transport.write(whole ? head + whole.latin1 : head)
      if (isGone) this.wrote()
    }
  }

  /** Breaks off: for an answer that cannot be given, or not to its end. */
  fail(error: SidecarError): void {
    this.#end(error)
    // To content that ends with its connection, a plain close would look like the end.
    this.#transport!.reset()
  }

  // What its transport tells it.

  received(bytes: Buffer, length: number): boolean {
    this.#movedMs = this.#host.nowMs
    return this.#preface === undefined ? this.#read(bytes, 0, length) : this.#recognize(this.#preface, bytes, length)
  }

  drained(): void {
    this.moved()
    if (this.#writer) this.#writer.drained()
    else if (this.#isAnswering && !this.#isAnswered) this.wrote()
  }

  ended(): void {
    this.#hasEnded = true
    if (this.#content && !this.#content.endByClose()) {
      this.#transport!.destroy()
      return
    }
    if (this.#content) this.#content = undefined
    if (this.#isTunnel) this.#endTunnel()
    else if (this.#exchange && !this.#isAnswering && !this.#host.allowHalfOpen) this.#transport!.destroy()
    else if (this.#exchange === undefined && this.#stash === undefined) this.#transport!.end()
    else this.#isLast ||= this.#stash === undefined
  }

  closed(error: NodeJS.ErrnoException | undefined): void {
    if (this.#exchange)
      this.#end(new SidecarError('caller_gone', 'the caller closed its connection', { delivered: true, cause: error }))
    this.#host.closed(this)
  }

  // What the content of its request tells it.

  wanted(): void {
    this.#continue()
  }

  dropped(): void {}

  counted(bytes: number): void {
    if (this.#exchange) this.#exchange.bytesIn += bytes
  }

  // What the writer of its answer tells it.

  moved(): void {
    this.#movedMs = this.#host.nowMs
  }

  wrote(): void {
    if (this.#isTunnel) {
      this.#transport!.end()
      this.#endTunnel()
      return
    }
    this.#isAnswered = true
    if (this.#isLast) {
      this.#end(undefined)
      this.#close()
    } else if (this.#content) {
      // The answer came before the request's end, of which the rest is read and dropped.
      this.#end(undefined)
      this.#lingersSinceMs = this.#host.nowMs
      this.#content.pour(DROP)
    } else {
      this.#end(undefined)
      this.#continue()
    }
  }

  broke(error: SidecarError): void {
    this.fail(error)
  }

  /** HTTP/2 or not, by the first bytes (RFC 9113, section 3.3). Nothing later on a connection is taken for it. */
  #recognize(before: number, bytes: Buffer, length: number): boolean {
    const matched = matchPreface(before, bytes, length)
    if (matched < 0) {
      this.#preface = undefined
      if (before === 0) return this.#read(bytes, 0, length)
      const begun = Buffer.concat([PREFACE.subarray(0, before), bytes.subarray(0, length)])
      return this.#read(begun, 0, begun.length)
    }
    if (before === 0) this.#headSinceMs = this.#host.nowMs
    this.#preface = matched
    if (matched < PREFACE.length) return true
    const read = Buffer.concat([PREFACE.subarray(0, before), bytes.subarray(0, length)])
    // Not from within the read, after which the socket still looks at the connection.
    process.nextTick(() => {
      const socket = this.#transport!.release(read)
      if (socket) this.#host.preferred(this, socket)
    })
    return false
  }

  /** Who owes the rest of a request is told so; a connection that stands still otherwise is cut. */
  #idled(nowMs: number): void {
    const content = this.#content
    if (this.#isAnswering || content?.flows !== true) return this.destroy()
    const detail = `nothing came of the request for ${this.#host.limits.idleMs} ms`
    const error = new SidecarError('idle', detail, { delivered: true })
    this.#movedMs = nowMs
    this.#isLast = true
    this.#content = undefined
    this.#exchange!.abort(error)
    content.fail(error)
  }

  /**
   * Whether the request has content that its caller sends only when told to, which did not happen. Whether it comes
   * nobody knows then: what comes may be the next request.
   */
  get #isUnwanted(): boolean {
    return (
      this.#head!.expectsContinue &&
      !this.#isTold &&
      this.#content?.hasBegun === false &&
      // What waits there is content.
      this.#stash === undefined
    )
  }

  #read(bytes: Buffer, start: number, end: number): boolean {
    let at = start
    try {
      while (at < end) {
        if (this.#lingersSinceMs !== undefined && this.#content === undefined) return true
        if (this.#content) {
          if (!this.#content.flows) return this.#keep(bytes, at, end)
          at = this.#content.push(bytes, at, end)
          if (this.#content?.isDone) this.#contentEnded()
        } else if (this.#exchange) return this.#keep(bytes, at, end)
        else {
          if (!this.#reader.hasBegun) this.#headSinceMs = this.#host.nowMs
          at = this.#reader.push(bytes, at, end)
          if (at < 0) return true
          at = this.#begin(parseRequestHead(this.#reader.take(), this.#host.limits.headFields), bytes, at, end)
        }
      }
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      this.#refuse(error)
      return true
    }
    return this.#content === undefined || this.#content.flows
  }

  /** @returns where what follows the request begins, as far as that has arrived */
  #begin(head: RequestHead, bytes: Buffer, at: number, end: number): number {
    // Content that its head announces would go into the tunnel.
    if (head.method === 'CONNECT' && head.framing !== 'none')
      throw new Malformed(head.framing === 'length' ? 'content_length' : 'transfer_encoding', 'CONNECT with content')
    const whole = wholeOf(head, bytes, at, end)
    let body: Body | undefined = whole?.content
    if (whole === undefined && head.framing !== 'none')
      body = this.#content = new IncomingContent(this, head.framing, head.length, true)
    this.#head = head
    this.#writer = undefined
    this.#bytesOut = 0
    this.#isTold = false
    this.#isAnswering = false
    this.#isAnswered = false
    this.#exchange = this.#host.arrived(this, head, body)
    return whole?.next ?? at
  }

  #contentEnded(): void {
    this.#content = undefined
    if (this.#exchange === undefined) this.#lingersSinceMs = undefined
  }

  /** Reads on, from what was put aside and then from the connection. */
  #continue(): void {
    const stash = this.#stash
    if (stash) {
      this.#stash = undefined
      if (!this.#read(stash, 0, stash.length)) return
    }
    if (this.#hasEnded) {
      if (this.#content) this.#transport!.destroy()
      else if (this.#exchange === undefined) this.#close()
    } else this.#transport!.resume()
  }

  #keep(bytes: Buffer, at: number, end: number): false {
    this.#stash = Buffer.from(bytes.subarray(at, end))
    return false
  }

  #refuse(fault: Malformed): void {
    const reply = this.#host.malformed(fault)
    this.#isLast = true
    if (this.#exchange) {
      // Its content is not what its head promised: it is this request that is refused.
      const error = new SidecarError('bad_request', fault.message, { delivered: true })
      const content = this.#content
      this.#content = undefined
      this.#lingersSinceMs = this.#isAnswering ? this.#lingersSinceMs : undefined
      if (this.#isAnswering) return this.fail(error)
      this.#exchange.abort(error)
      content?.fail(error)
      return
    }
    if (this.#content) return this.#close()
    const reason = lineOf('x-holdfast-reason', reply.reason!)
    const head = `${statusLine(reply.status, undefined)}${reply.headers.lines}${reason}connection: close\r\n\r\n`
    this.#transport!.write(head + (reply.body as Whole).latin1)
    this.#close()
  }

  /** Closes in stages: what still arrives is read, or the system would take back the answer with a reset. */
  #close(): void {
    this.#content = undefined
    this.#stash = undefined
    this.#lingersSinceMs ??= this.#host.nowMs
    this.#transport!.end()
    this.#transport!.resume()
  }

  #openTunnel(reply: Reply, head: string): void {
    const transport = this.#transport!
    this.#isTunnel = true
    this.#content = new IncomingContent(this, 'until_close', 0, false)
    this.#writer = new MessageWriter(transport, this, head, 'until_close', reply.body as Content)
    // Before anything that comes out of it.
    this.#writer.flush()
    this.#exchange!.whenAborted((reason) => this.fail(reason))
    reply.tunnel!.open(this.#content)
    this.#writer.start()
    if (this.#hasEnded) this.ended()
  }

  /** Each side of a tunnel ends on its own. */
  #endTunnel(): void {
    if (this.#content === undefined && this.#writer?.isOver === true) this.#end(undefined)
  }

  #end(error: SidecarError | undefined): void {
    const exchange = this.#exchange
    this.#exchange = undefined
    if (exchange) endExchange(exchange, error, this.#writer?.bytes ?? this.#bytesOut, this.#content, this.#writer)
  }
}

const DROP = { write: () => true, end: () => {}, fail: () => {} }
const LENGTH = ['content-length']
const TRAILER = ['trailer']
