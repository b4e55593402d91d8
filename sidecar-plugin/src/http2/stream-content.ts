import type { Http2Stream } from 'node:http2'
import type { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import { KEPT_BYTES } from '../http1/incoming-content.ts'
import type { Content, Sink } from '../layer.ts'

export interface StreamOwner {
  /** So much of it has arrived. */
  counted(bytes: number): void
  /** Nobody takes it any more. */
  dropped(): void
  /** The stream has ended; whether that was the end of the message is the owner's to know. @returns why it was not */
  broken(): SidecarError | undefined
  /** Its sink has been told of its end. */
  delivered(): void
}

/**
 * Content between the stream that it arrives on and the sink that takes it. What nobody takes is left to the stream's
 * window: no more is sent than that.
 */
export class StreamContent implements Content {
  readonly length: number | undefined
  readonly #stream: Http2Stream
  readonly #owner: StreamOwner
  #kept: Buffer[] | undefined
  #keptBytes = 0
  #sink: Sink | undefined
  #hasListeners = false
  #isWaiting = false
  #isDone = false
  #error: SidecarError | undefined
  /** Set by the owner when they arrive, which is before the end. */
  trailers = Fields.NONE

  /** @param keeps whether its beginning is kept, so that it can be poured again */
  constructor(stream: Http2Stream, owner: StreamOwner, length: number | undefined, keeps: boolean) {
    this.#stream = stream
    this.#owner = owner
    this.length = length
    this.#kept = keeps ? [] : undefined
  }

  get repeatable(): boolean {
    return this.#kept !== undefined
  }

  /** Whether its end has arrived. */
  get isDone(): boolean {
    return this.#isDone
  }

  get flows(): boolean {
    return this.#sink !== undefined && !this.#isWaiting
  }

  pour(sink: Sink): void {
    this.#sink = sink
    this.#isWaiting = false
    for (const piece of this.#kept ?? []) if (!sink.write(piece)) this.#isWaiting = true
    if (this.#error) this.fail(this.#error)
    else if (this.#isDone) this.#deliverEnd()
    else if (!this.#isWaiting) this.#flow()
  }

  resume(): void {
    if (!this.#isWaiting) return
    this.#isWaiting = false
    if (!this.#isDone) this.#flow()
  }

  cancel(): void {
    this.#sink = undefined
    this.#isWaiting = false
    if (this.#isDone) return
    this.#stream.pause()
    this.#owner.dropped()
  }

  /** No more will come. */
  fail(error: SidecarError): void {
    if (this.#isDone) return
    this.#error = error
    const sink = this.#sink
    this.#sink = undefined
    sink?.fail(error)
  }

  #flow(): void {
    if (!this.#hasListeners) {
      this.#hasListeners = true
      this.#stream.on('data', (piece: Buffer) => this.#take(piece))
      this.#stream.once('end', () => this.#end())
    }
    this.#stream.resume()
  }

  #take(piece: Buffer): void {
    this.#owner.counted(piece.length)
    if (this.#kept) {
      this.#keptBytes += piece.length
      if (this.#keptBytes > KEPT_BYTES) this.#kept = undefined
      // Not a slice: that would hold the whole read that it came with.
      else this.#kept.push(Buffer.from(piece))
    }
    if (this.#sink?.write(piece) !== false) return
    this.#isWaiting = true
    this.#stream.pause()
  }

  #end(): void {
    const error = this.#error ?? this.#owner.broken()
    if (error) return this.fail(error)
    this.#isDone = true
    this.#deliverEnd()
  }

  #deliverEnd(): void {
    const sink = this.#sink
    this.#sink = undefined
    sink?.end(this.trailers)
    this.#owner.delivered()
  }
}
