import { constants, type OutgoingHttpHeaders, type ServerHttp2Stream } from 'node:http2'
import { SidecarError, type Reason } from '../errors.ts'
import type { Fields } from '../fields.ts'
import { Malformed } from '../http1/malformed.ts'
import { discard, endExchange, Whole, type Body, type Exchange, type Reply, type ReplyHead } from '../layer.ts'
import { addFields, noFields, readRequest, readTrailers, type FieldLimits, type RequestFields } from './fields.ts'
import { grpcTrailers } from './grpc.ts'
import { StreamContent, type StreamOwner } from './stream-content.ts'
import { StreamWriter, type WriterOwner } from './stream-writer.ts'

/** Who carries streams from a caller. */
export interface ServerStreamHost {
  /** The address of its other end. */
  readonly peer: string
  readonly limits: FieldLimits & {
    /** While a stream is open, without a byte on it in either direction. */
    readonly idleMs: number
  }
  /** Milliseconds of the clock, as of a moment ago. */
  readonly nowMs: number
  /** Whether something was written that the system has not taken yet. */
  readonly isFull: boolean
  /** A request has arrived; the answer comes by {@link ServerStream.answer}. */
  arrived(stream: ServerStream, head: RequestFields, body: Body | undefined): Exchange
  /** What was sent is no request. @returns the answer to it */
  malformed(fault: Malformed): Reply
  /** Something has left that had to wait for the other side. */
  drained(): void
  /** The stream has closed. @param wasReset by the caller, before it had its answer */
  left(stream: ServerStream, wasReset: boolean): void
}

/** Answers whose head says all there is. */
const WITHOUT_CONTENT: ReadonlySet<number> = new Set([204, 205, 304])

/** Why a request is given up for which nothing has failed. */
const CANCELLED: ReadonlySet<Reason> = new Set<Reason>(['deadline', 'request_timeout', 'caller_gone'])

/** One request and its answer, on a stream of their own. */
export class ServerStream implements StreamOwner, WriterOwner {
  readonly #session: ServerStreamHost
  readonly #stream: ServerHttp2Stream
  readonly #hasContent: boolean
  #exchange: Exchange | undefined
  #content: StreamContent | undefined
  #writer: StreamWriter | undefined
  #bytesOut = 0
  #movedMs: number
  #isSent = false
  /** Why it was broken off on this side. */
  #error: SidecarError | undefined

  constructor(session: ServerStreamHost, stream: ServerHttp2Stream, hasContent: boolean) {
    this.#session = session
    this.#stream = stream
    this.#hasContent = hasContent
    this.#movedMs = session.nowMs
    stream.once('close', () => this.#closed())
    stream.on('trailers', (_headers, _flags, fields?: readonly string[]) => {
      if (this.#content) this.#content.trailers = readTrailers(fields ?? [])
    })
  }

  /** @param raw the fields of its request, flat */
  begin(raw: readonly string[]): void {
    const session = this.#session
    let head: RequestFields
    try {
      head = readRequest(raw, session.limits, this.#hasContent)
    } catch (error) {
      if (!(error instanceof Malformed)) throw error
      this.#refuse(error)
      return
    }
    const isTunnel = head.method === 'CONNECT'
    if (this.#hasContent || isTunnel)
      this.#content = new StreamContent(this.#stream, this, isTunnel ? undefined : head.length, !isTunnel)
    // What follows a CONNECT is no content of it.
    this.#exchange = session.arrived(this, head, isTunnel ? undefined : this.#content)
  }

  get peer(): string {
    return this.#session.peer
  }

  /** Closes it when nothing moves. */
  check(nowMs: number): void {
    const { idleMs } = this.#session.limits
    if (nowMs - this.#movedMs < idleMs) return
    this.#movedMs = nowMs
    // Who owes the rest of a request is told so.
    if (!this.#stream.headersSent && this.#content?.flows === true) {
      const detail = `nothing came of the request for ${idleMs} ms`
      const error = new SidecarError('idle', detail, { delivered: true })
      this.#exchange?.abort(error)
      return this.#content.fail(error)
    }
    this.#break(
      new SidecarError('caller_gone', `nothing moved for ${idleMs} ms`, { delivered: true }),
      constants.NGHTTP2_CANCEL,
    )
  }

  /** Says something before the answer. Lost on a caller who does not take what came before it. */
  inform({ status, headers }: ReplyHead): void {
    const stream = this.#stream
    if (stream.headersSent || stream.destroyed || stream.closed || this.#session.isFull) return
    stream.additionalHeaders(addFields(statusOf(status), headers.list))
    this.moved()
  }

  /**
   * Answers the request.
   * @throws an error before anything was written
   */
  answer(reply: Reply): void {
    const exchange = this.#exchange
    const stream = this.#stream
    if (exchange === undefined || stream.destroyed || stream.closed) return discard(reply)
    const { body } = reply
    const isTunnel = reply.tunnel !== undefined
    const hasNone = exchange.method === 'HEAD' || WITHOUT_CONTENT.has(reply.status)
    const headers = headersOf(reply, hasNone)
    const status = exchange.isGrpc ? reply.headers.get('grpc-status') : undefined
    if (status !== undefined) exchange.grpcStatus = status
    this.#movedMs = this.#session.nowMs
    if (!hasNone && body !== undefined && !(body instanceof Whole)) {
      this.#respond(headers, { waitForTrailers: true })
      this.#writer = new StreamWriter(stream, this, body)
      if (isTunnel) reply.tunnel.open(this.#content!)
      this.#writer.start()
      return
    }
    if (!hasNone && body instanceof Whole && body.length > 0) {
      this.#respond(headers, {})
      this.#bytesOut = body.length
      stream.end(body.latin1, 'latin1')
    } else {
      this.#respond(headers, { endStream: true })
      discard(reply)
    }
    // Of HEAD the library has finished the answer before it began.
    if (stream.writableFinished) this.#sent()
    else stream.once('finish', () => this.#sent())
  }

  /** Breaks off: for an answer that cannot be given, or not to its end. */
  fail(error: SidecarError): void {
    this.#break(error, CANCELLED.has(error.reason) ? constants.NGHTTP2_CANCEL : constants.NGHTTP2_INTERNAL_ERROR)
  }

  // What the content of its request tells it.

  counted(bytes: number): void {
    this.#movedMs = this.#session.nowMs
    if (this.#exchange) this.#exchange.bytesIn += bytes
  }

  dropped(): void {}

  delivered(): void {}

  broken(): SidecarError | undefined {
    return this.#stream.aborted ? this.#callerGone() : undefined
  }

  // What the writer of its answer tells it.

  moved(): void {
    this.#movedMs = this.#session.nowMs
  }

  drained(): void {
    this.#session.drained()
  }

  wrote(trailers: Fields): void {
    if (this.#exchange?.isGrpc) this.#exchange.grpcStatus = trailers.get('grpc-status')
    // The library sends them in the next turn.
    setImmediate(() => this.#sent())
  }

  broke(error: SidecarError): void {
    if (this.#exchange?.isGrpc !== true) return this.fail(error)
    // To a call a status is worth more than a reset: it says what happened, and its messages have bounds of their own.
    this.#error = error
    this.#exchange.abort(error)
    this.#content?.fail(error)
    this.#writer!.conclude(grpcTrailers(error))
  }

  #respond(headers: OutgoingHttpHeaders, options: { endStream?: boolean; waitForTrailers?: boolean }): void {
    this.#stream.respond(headers, { ...options, sendDate: false } as typeof options)
  }

  #refuse(fault: Malformed): void {
    const reply = this.#session.malformed(fault)
    this.#respond(headersOf(reply, false), {})
    this.#stream.end((reply.body as Whole).latin1, 'latin1')
    this.#stream.once('finish', () => this.#sent())
  }

  /** The answer has left; whatever of the request has not arrived yet is not wanted (RFC 9113, section 8.1). */
  #sent(): void {
    this.#isSent = true
    const stream = this.#stream
    const isMore = this.#hasContent && this.#content?.isDone !== true
    if (isMore && !stream.destroyed && !stream.closed) stream.close(constants.NGHTTP2_NO_ERROR)
  }

  #break(error: SidecarError, code: number): void {
    this.#error ??= error
    this.#end(this.#error)
    if (!this.#stream.destroyed && !this.#stream.closed) this.#stream.close(code)
  }

  #closed(): void {
    const { rstCode, writableEnded, aborted } = this.#stream
    // Of a small answer the library tells that the stream has closed before it tells that all of it has left.
    const isSent = this.#isSent || (this.#writer === undefined && writableEnded && !aborted)
    const isWhole = isSent && rstCode === constants.NGHTTP2_NO_ERROR
    const wasReset = !isWhole && this.#error === undefined
    this.#end(this.#error ?? (isWhole ? undefined : this.#callerGone()))
    this.#session.left(this, wasReset)
  }

  #callerGone(): SidecarError {
    return new SidecarError('caller_gone', `the caller reset the stream with code ${this.#stream.rstCode ?? 0}`, {
      delivered: true,
    })
  }

  #end(error: SidecarError | undefined): void {
    const exchange = this.#exchange
    this.#exchange = undefined
    if (exchange) endExchange(exchange, error, this.#writer?.bytes ?? this.#bytesOut, this.#content, this.#writer)
  }
}

/** @throws RangeError or FieldError for what cannot be written */
function headersOf(reply: Reply, hasNone: boolean): OutgoingHttpHeaders {
  const { status, headers: fields, body, reason } = reply
  if (!(status >= 200 && status <= 599)) throw new RangeError(`a status of ${status}`)
  const mustNotSay = status === 204 || status === 205 || reply.tunnel !== undefined
  const headers = addFields(statusOf(status), fields.list, mustNotSay ? ['content-length'] : [])
  if (reason !== undefined) addFields(headers, ['x-holdfast-reason', reason])
  const length = lengthOf(body)
  if (hasNone || mustNotSay || length === undefined) return headers
  const said = headers['content-length']
  if (said === undefined) headers['content-length'] = length
  else if (Number(said) !== length) throw new RangeError(`a length of ${String(said)} for ${length} bytes`)
  return headers
}

function statusOf(status: number): OutgoingHttpHeaders {
  const headers = noFields()
  headers[':status'] = status
  return headers
}

function lengthOf(body: Body | undefined): number | undefined {
  return body?.length
}
