import { constants, type ClientHttp2Stream, type OutgoingHttpHeaders } from 'node:http2'
import { SidecarError } from '../errors.ts'
import { MOST_INFORMED, type Call, type Failure } from '../http1/client-connection.ts'
import { Malformed } from '../http1/malformed.ts'
import { Whole, type Content } from '../layer.ts'
import { readResponse, readTrailers, type FieldLimits } from './fields.ts'
import { StreamContent, type StreamOwner } from './stream-content.ts'
import { StreamWriter, type WriterOwner } from './stream-writer.ts'

/** A request as it goes out: with its pseudo-fields. */
export type StreamCall = Call<OutgoingHttpHeaders>

/** Who carries streams to a node. */
export interface ClientStreamHost {
  readonly where: string
  readonly limits: FieldLimits
  /** Milliseconds of the clock, as of a moment ago. */
  readonly nowMs: number
  /** Bytes that have come so far. */
  readonly received: number
  /** Whether it takes nothing more, by the other side's will. */
  readonly hasGone: boolean
  /** Why it has gone. */
  readonly why: string | undefined
  /** Whether the node may have acted on a stream, as far as it says itself (RFC 9113, section 6.8). */
  hasTaken(id: number | undefined): boolean
  /** Something has left that had to wait for the other side. */
  drained(): void
  /** A stream was given up. */
  resets(): void
  /**
   * Nothing came while somebody waited until there was no more time: what is wrong may be the connection. The library
   * does not read on, for one, where it has found a fault itself.
   */
  doubt(): void
  /** The stream has closed. */
  left(stream: ClientStream): void
}

/** Whether something broke because what came is not HTTP/2. */
export function isFault(error: NodeJS.ErrnoException): boolean {
  return error.code === 'ERR_HTTP2_ERROR'
}

/** What either side calls broken, rather than given up. */
const PROTOCOL_CODES: ReadonlySet<number> = new Set([
  constants.NGHTTP2_PROTOCOL_ERROR,
  constants.NGHTTP2_FLOW_CONTROL_ERROR,
  constants.NGHTTP2_FRAME_SIZE_ERROR,
  constants.NGHTTP2_COMPRESSION_ERROR,
  constants.NGHTTP2_HTTP_1_1_REQUIRED,
])

/** One request on its way to a node, and its answer. */
export class ClientStream implements StreamOwner, WriterOwner {
  readonly #session: ClientStreamHost
  readonly #stream: ClientHttp2Stream
  /** Undefined once it has ended, or nobody waits any more. */
  #call: StreamCall | undefined
  readonly #wasUsed: boolean
  readonly #receivedBefore: number
  #writer: StreamWriter | undefined
  #content: StreamContent | undefined
  #fault: Malformed | undefined
  #hasEnd = false
  #isFaulty = false
  #informedTimes = 0
  #isAnswered = false
  #movedMs: number

  /** @param wasUsed whether the session had carried a request before */
  constructor(session: ClientStreamHost, stream: ClientHttp2Stream, call: StreamCall, wasUsed: boolean) {
    this.#session = session
    this.#stream = stream
    this.#call = call
    this.#wasUsed = wasUsed
    this.#receivedBefore = session.received
    this.#movedMs = session.nowMs
    this.#watchEnd()
    stream.on('error', (error: Error) => (this.#isFaulty = isFault(error)))
    stream.once('close', () => this.#closed())
    stream.on('headers', (_headers: unknown, _flags: number, raw: readonly string[]) => this.#informed(raw))
    stream.on('response', (_headers: unknown, flags: number, raw: readonly string[]) => this.#answered(flags, raw))
    stream.on('trailers', (_headers: unknown, _flags: number, raw: readonly string[]) => {
      if (this.#content) this.#content.trailers = readTrailers(raw)
    })
    call.sentOn((error) => this.#abort(error))
    const { body } = call
    if (body instanceof Whole) stream.end(body.latin1, 'latin1')
    else if (body !== undefined) {
      this.#writer = new StreamWriter(stream, this, body)
      this.#writer.start()
    }
  }

  /** Breaks off what stands still. To be called now and then. */
  check(nowMs: number, idleMs: number): void {
    // Before the answer, how long to wait is a layer's decision.
    if (!this.#isAnswered || nowMs - this.#movedMs < idleMs) return
    this.#movedMs = nowMs
    this.#break('reset', `nothing moved for ${idleMs} ms`)
  }

  // What the content of its answer tells it.

  counted(): void {
    this.#movedMs = this.#session.nowMs
  }

  dropped(): void {
    if (this.#call === undefined) return
    this.#call.ended()
    this.#call = undefined
    this.#reset()
  }

  broken(): SidecarError | undefined {
    return this.#hasEnd ? undefined : this.#errorOf('reset', 'the node reset the stream before its end')
  }

  delivered(): void {
    this.#ended()
  }

  // What the writer of its request tells it.

  moved(): void {
    this.#movedMs = this.#session.nowMs
  }

  drained(): void {
    this.#session.drained()
  }

  wrote(): void {}

  broke(error: SidecarError): void {
    const call = this.#call
    this.#call = undefined
    this.#content?.fail(error)
    this.#reset()
    call?.failed({ kind: 'reset', detail: error.message, cause: error, isStale: false })
  }

  /**
   * The library ends a stream that was reset without an error as it ends one that is whole; what came first tells them
   * apart.
   */
  #watchEnd(): void {
    const stream = this.#stream
    const push = stream.push.bind(stream)
    stream.push = (piece: unknown, encoding?: BufferEncoding) => {
      if (piece === null && !stream.closed) this.#hasEnd = true
      return push(piece, encoding)
    }
  }

  #informed(raw: readonly string[]): void {
    try {
      const head = readResponse(raw, this.#session.limits)
      if (++this.#informedTimes > MOST_INFORMED)
        throw new Malformed('status_line', 'too many answers before the answer')
      this.#movedMs = this.#session.nowMs
      if (!this.#isAnswered) this.#call?.informed(head)
    } catch (error) {
      this.#malformed(error)
    }
  }

  #answered(flags: number, raw: readonly string[]): void {
    const call = this.#call
    if (call === undefined) return
    let head
    try {
      head = readResponse(raw, this.#session.limits)
      if (head.status < 200) throw new Malformed('status_line', 'an answer that ends before it begins')
    } catch (error) {
      return this.#malformed(error)
    }
    this.#isAnswered = true
    this.#movedMs = this.#session.nowMs
    if ((flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0) {
      call.answered(head, undefined, undefined)
      return this.#ended()
    }
    const isTunnel = call.method === 'CONNECT' && head.status < 300
    this.#content = new StreamContent(this.#stream, this, isTunnel ? undefined : head.length, false)
    call.answered(head, this.#content, isTunnel ? (incoming) => this.#tunnel(incoming) : undefined)
  }

  #tunnel(incoming: Content): void {
    this.#writer = new StreamWriter(this.#stream, this, incoming)
    this.#writer.start()
  }

  /** The answer is whole: what of the request has not left is of no use any more. Each side of a tunnel ends alone. */
  #ended(): void {
    const call = this.#call
    if (call === undefined || (call.method === 'CONNECT' && this.#writer?.isOver === false)) return
    this.#call = undefined
    call.ended()
    if (this.#writer?.isOver === false) this.#reset()
    // So that the library sees the end of a stream that has nothing to be read.
    else this.#stream.resume()
  }

  #abort(error: SidecarError): void {
    if (this.#call === undefined) return
    this.#call = undefined
    this.#content?.fail(error)
    if (error.reason === 'deadline' && this.#session.received === this.#receivedBefore) this.#session.doubt()
    this.#reset()
  }

  #malformed(error: unknown): void {
    if (!(error instanceof Malformed)) throw error
    this.#fault = error
    this.#break('protocol', error.message)
  }

  #break(kind: Failure['kind'], detail: string): void {
    const call = this.#call
    this.#call = undefined
    this.#reset()
    this.#fail(call, kind, detail, false)
  }

  /** Tells the node that nobody waits any more. */
  #reset(): void {
    this.#writer?.stop()
    if (this.#stream.destroyed || this.#stream.closed) return
    this.#session.resets()
    this.#stream.close(this.#fault ? constants.NGHTTP2_PROTOCOL_ERROR : constants.NGHTTP2_CANCEL)
  }

  #closed(): void {
    const call = this.#call
    this.#call = undefined
    this.#writer?.stop()
    if (call !== undefined && !this.#isOver) {
      const code = this.#stream.rstCode ?? 0
      const isUnread = code === constants.NGHTTP2_REFUSED_STREAM || !this.#session.hasTaken(this.#stream.id)
      const isProtocol = this.#isFaulty || PROTOCOL_CODES.has(code)
      const isStale =
        this.#session.hasGone && (isUnread || (this.#wasUsed && this.#session.received === this.#receivedBefore))
      const detail = this.#session.hasGone
        ? (this.#session.why ?? 'the connection ended')
        : `the node reset the stream with code ${code}`
      this.#fail(call, isUnread ? 'refused' : isProtocol ? 'protocol' : 'reset', detail, isStale)
    } else call?.ended()
    this.#session.left(this)
  }

  /** Whether the whole answer has arrived, delivered or not. */
  get #isOver(): boolean {
    return this.#isAnswered && this.#hasEnd && this.#content?.isDone === true
  }

  #fail(call: StreamCall | undefined, kind: Failure['kind'], detail: string, isStale: boolean): void {
    this.#content?.fail(this.#errorOf(kind, detail))
    call?.failed({ kind, detail, isStale })
  }

  #errorOf(kind: Failure['kind'], detail: string): SidecarError {
    const reason = kind === 'protocol' ? 'upstream_protocol' : 'upstream_reset'
    return new SidecarError(reason, `${this.#session.where}: ${detail}`, { delivered: true })
  }
}
