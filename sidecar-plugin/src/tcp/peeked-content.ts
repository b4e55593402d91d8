import { Fields } from '../fields.ts'
import type { SidecarError } from '../errors.ts'
import type { Content, Sink } from '../layer.ts'

/** Content that is looked at before it is known who gets it: it says that it has begun, and waits with its first piece. */
export class PeekedContent implements Content, Sink {
  readonly length = undefined
  readonly repeatable = false
  readonly #source: Content
  readonly #begun: () => void
  #sink: Sink | undefined
  #piece: Buffer | undefined
  #hasEnded = false
  #failure: SidecarError | undefined

  /** @param begun called once, when a piece has come, or the end, before anybody has taken it */
  constructor(source: Content, begun: () => void) {
    this.#source = source
    this.#begun = begun
    source.pour(this)
  }

  pour(sink: Sink): void {
    this.#sink = sink
    const piece = this.#piece
    this.#piece = undefined
    const goesOn = piece === undefined || sink.write(piece)
    if (this.#failure) sink.fail(this.#failure)
    else if (this.#hasEnded) sink.end(Fields.NONE)
    else if (piece !== undefined && goesOn) this.#source.resume()
  }

  resume(): void {
    this.#source.resume()
  }

  cancel(): void {
    this.#source.cancel()
  }

  write(piece: Buffer): boolean {
    if (this.#sink) return this.#sink.write(piece)
    this.#piece = Buffer.from(piece)
    this.#begun()
    // Who has taken it meanwhile has resumed it too.
    return false
  }

  end(trailers: Fields): void {
    if (this.#sink) return this.#sink.end(trailers)
    this.#hasEnded = true
    this.#begun()
  }

  fail(error: SidecarError): void {
    if (this.#sink) return this.#sink.fail(error)
    this.#failure = error
    this.#begun()
  }
}
