import type { Http2Stream } from 'node:http2'
import { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import type { Content, Sink } from '../layer.ts'
import { addFields, noFields } from './fields.ts'

export interface WriterOwner {
  /** Some of it has left. */
  moved(): void
  /** What had to wait for the other side has left: somebody is there. */
  drained(): void
  /** All of the message has been handed over, its trailers included. */
  wrote(trailers: Fields): void
  /** Its content broke off, or is not what the head promised. */
  broke(error: SidecarError): void
}

/** Writes content that arrives in pieces to a stream whose head has been sent with `waitForTrailers`. */
export class StreamWriter implements Sink {
  readonly #stream: Http2Stream
  readonly #owner: WriterOwner
  readonly #content: Content
  #trailers = Fields.NONE
  readonly #written: (error?: Error | null) => void
  #isHeld = false
  #isEnded = false
  #isOver = false
  #bytes = 0

  constructor(stream: Http2Stream, owner: WriterOwner, content: Content) {
    this.#stream = stream
    this.#owner = owner
    this.#content = content
    this.#written = (error) => this.#left(error)
    stream.on('wantTrailers', () => this.#sendTrailers())
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Whether the message has left, or never will. */
  get isOver(): boolean {
    return this.#isOver
  }

  start(): void {
    this.#content.pour(this)
  }

  /** Gives up: nothing more is written. */
  stop(): void {
    if (this.#isOver) return
    this.#isOver = true
    if (!this.#isEnded) this.#content.cancel()
  }

  /** Ends the message early, with trailers that say why. */
  conclude(trailers: Fields): void {
    this.stop()
    this.#isEnded = true
    this.#trailers = trailers
    this.#stream.end()
  }

  write(piece: Buffer): boolean {
    if (this.#isOver || piece.length === 0 || this.#stream.destroyed || this.#stream.closed) return true
    this.#bytes += piece.length
    const { length } = this.#content
    if (length !== undefined && this.#bytes > length) {
      this.fail(new SidecarError('internal_error', 'more content than its length', { delivered: true }))
      return true
    }
    // The stream keeps it until the other side's window takes it; the piece is its source's again before that.
    const goesOn = this.#stream.write(Buffer.from(piece), this.#written)
    if (!goesOn) this.#isHeld = true
    return goesOn
  }

  end(trailers: Fields): void {
    if (this.#isOver) return
    const { length } = this.#content
    if (length !== undefined && this.#bytes < length)
      return this.fail(new SidecarError('internal_error', 'less content than its length', { delivered: true }))
    this.#isEnded = true
    this.#trailers = trailers
    if (!this.#stream.destroyed) this.#stream.end()
  }

  fail(error: SidecarError): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#owner.broke(error)
  }

  #left(error: Error | null | undefined): void {
    if (error) return
    this.#owner.moved()
    if (!this.#isHeld || this.#stream.writableNeedDrain) return
    this.#isHeld = false
    this.#owner.drained()
    if (!this.#isOver && !this.#isEnded) this.#content.resume()
  }

  #sendTrailers(): void {
    if (!this.#isEnded) return
    this.#stream.sendTrailers(addFields(noFields(), this.#trailers.list))
    this.#isOver = true
    this.#owner.wrote(this.#trailers)
  }
}
