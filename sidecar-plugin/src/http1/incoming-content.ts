import type { SidecarError } from '../errors.ts'
import type { Content, Sink } from '../layer.ts'
import { ContentReader } from './content-reader.ts'
import type { Framing } from './head.ts'

/**
 * How much of a request's content is kept for another attempt. Smaller fails uploads whose node refuses them; larger
 * costs that much for every request under way.
 */
export const KEPT_BYTES = 65_536

/** The connection that content arrives on. */
export interface ContentOwner {
  /** Somebody takes it: read on. Called from within {@link Content.pour} and {@link Content.resume}. */
  wanted(): void
  /** Nobody takes it any more. */
  dropped(): void
  /** So much of it has arrived. */
  counted(bytes: number): void
}

/** Content between the connection that it arrives on and the sink that takes it. Holds nothing but what it keeps. */
export class IncomingContent implements Content {
  readonly length: number | undefined
  readonly #reader: ContentReader
  readonly #owner: ContentOwner
  #kept: Buffer[] | undefined
  #keptBytes = 0
  #sink: Sink | undefined
  #isWaiting = false
  #hasBegun = false
  #isDone = false
  #error: SidecarError | undefined

  /** @param keeps whether its beginning is kept, so that it can be poured again */
  constructor(owner: ContentOwner, framing: Framing, length: number, keeps: boolean) {
    this.length = framing === 'length' ? length : undefined
    this.#reader = new ContentReader(framing, length)
    this.#owner = owner
    this.#kept = keeps ? [] : undefined
  }

  get repeatable(): boolean {
    return this.#kept !== undefined
  }

  /** Whether its end has arrived. */
  get isDone(): boolean {
    return this.#isDone
  }

  /** Whether more can be pushed. */
  get flows(): boolean {
    return this.#sink !== undefined && !this.#isWaiting
  }

  /** Whether any of it has been pushed. */
  get hasBegun(): boolean {
    return this.#hasBegun
  }

  get endsByClose(): boolean {
    return this.#reader.endsByClose
  }

  pour(sink: Sink): void {
    this.#sink = sink
    this.#isWaiting = false
    for (const piece of this.#kept ?? []) if (!sink.write(piece)) this.#isWaiting = true
    if (this.#error) this.fail(this.#error)
    else if (this.#isDone) this.#deliverEnd()
    else if (!this.#isWaiting) this.#owner.wanted()
  }

  resume(): void {
    if (!this.#isWaiting) return
    this.#isWaiting = false
    if (!this.#isDone) this.#owner.wanted()
  }

  cancel(): void {
    this.#sink = undefined
    this.#isWaiting = false
    if (!this.#isDone) this.#owner.dropped()
  }

  /**
   * Takes what has arrived, up to the end of the message.
   * @returns where the rest begins, which is no part of the message
   * @throws Malformed
   */
  push(bytes: Buffer, start: number, end: number): number {
    this.#hasBegun = true
    const at = this.#reader.push(bytes, start, end, (from, to) => this.#take(bytes.subarray(from, to)))
    if (this.#reader.done) this.#finish()
    return at
  }

  /** The connection has ended. @returns whether that is the end of the content, too */
  endByClose(): boolean {
    if (!this.#isDone && this.endsByClose) this.#finish()
    return this.#isDone
  }

  /** No more will come. */
  fail(error: SidecarError): void {
    if (this.#isDone) return
    this.#error = error
    const sink = this.#sink
    this.#sink = undefined
    sink?.fail(error)
  }

  #take(piece: Buffer): void {
    this.#owner.counted(piece.length)
    if (this.#kept) {
      this.#keptBytes += piece.length
      if (this.#keptBytes > KEPT_BYTES) this.#kept = undefined
      else this.#kept.push(Buffer.from(piece))
    }
    // Who has let go in the middle of a read is given no more of it.
    if (this.#sink?.write(piece) === false) this.#isWaiting = true
  }

  #finish(): void {
    this.#isDone = true
    this.#deliverEnd()
  }

  #deliverEnd(): void {
    const sink = this.#sink
    this.#sink = undefined
    sink?.end(this.#reader.trailers)
  }
}
