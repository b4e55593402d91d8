import type { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import type { Content, Sink } from '../layer.ts'

/** How content began: with what was expected, with something else, or with an end to it. */
export type Beginning = 'expected' | 'other' | 'ended'

/**
 * Content that may begin with certain bytes, which are left out then. Nothing of it is passed on before that is known,
 * and nothing is kept but what came behind it while nobody takes it.
 */
export class PrefixedContent implements Content, Sink {
  readonly length = undefined
  readonly repeatable = false
  readonly #source: Content
  readonly #prefix: Buffer
  #known: ((beginning: Beginning, matched: number) => boolean) | undefined
  #matched = 0
  #isRefused = false
  #isFlowing = false
  #sink: Sink | undefined
  #held: Buffer | undefined
  #hasEnded = false
  #failure: SidecarError | undefined

  /**
   * @param known called once, with how many of the bytes were there, unless the content fails before; returns whether
   * any of it is to be passed on
   */
  constructor(source: Content, prefix: Buffer, known: (beginning: Beginning, matched: number) => boolean) {
    this.#source = source
    this.#prefix = prefix
    this.#known = known
  }

  /** Reads as much as has to be read to know it. */
  look(): void {
    this.#isFlowing = true
    this.#source.pour(this)
  }

  pour(sink: Sink): void {
    this.#sink = sink
    if (!this.#isFlowing) return this.look()
    const held = this.#held
    this.#held = undefined
    const goesOn = held === undefined || sink.write(held)
    if (this.#failure) sink.fail(this.#failure)
    else if (this.#hasEnded) sink.end(Fields.NONE)
    else if (goesOn) this.#source.resume()
  }

  resume(): void {
    this.#source.resume()
  }

  cancel(): void {
    this.#source.cancel()
  }

  write(piece: Buffer): boolean {
    if (this.#known === undefined) return this.#pass(piece)
    const before = this.#matched
    const end = Math.min(piece.length, this.#prefix.length - before)
    let at = 0
    while (at < end && piece[at] === this.#prefix[before + at]) at++
    this.#matched += at
    if (this.#matched === this.#prefix.length) {
      this.#tell('expected')
      return this.#pass(piece.subarray(at))
    }
    if (at === piece.length) return true
    this.#tell('other')
    return this.#pass(before === 0 ? piece : Buffer.concat([this.#prefix.subarray(0, before), piece]))
  }

  end(trailers: Fields): void {
    this.#hasEnded = true
    if (this.#known) {
      this.#tell('ended')
      if (this.#matched > 0) this.#pass(this.#prefix.subarray(0, this.#matched))
    }
    this.#sink?.end(trailers)
  }

  fail(error: SidecarError): void {
    this.#failure = error
    this.#sink?.fail(error)
  }

  #tell(beginning: Beginning): void {
    const known = this.#known!
    this.#known = undefined
    this.#isRefused = !known(beginning, this.#matched)
  }

  #pass(piece: Buffer): boolean {
    if (this.#isRefused) return false
    if (this.#sink) return piece.length === 0 || this.#sink.write(piece)
    if (piece.length > 0) this.#held = Buffer.concat(this.#held ? [this.#held, piece] : [piece])
    return false
  }
}
