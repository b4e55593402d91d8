import { checkBeginning } from './head.ts'
import { Malformed } from './malformed.ts'

/** What is looked at first. Most heads are smaller, and turning more into text than a head costs time for nothing. */
const FIRST_LOOK_BYTES = 4_096

const CR = 0x0d
const LF = 0x0a

/** Collects the text of one head after another, out of bytes that arrive in pieces. */
export class HeadReader {
  readonly #of: 'request' | 'response'
  readonly #maxBytes: number
  #text = ''

  /** @param maxBytes of one head, the empty line included; more are refused */
  constructor(of: 'request' | 'response', maxBytes: number) {
    this.#of = of
    this.#maxBytes = maxBytes
  }

  /** Whether a part of a head has arrived. */
  get hasBegun(): boolean {
    return this.#text !== ''
  }

  /** The whole head, in latin1, once {@link push} has found its end. Taken away by the call. */
  take(): string {
    const text = this.#text
    this.#text = ''
    return text
  }

  /**
   * Takes what has arrived, up to the end of the head.
   * @returns where the rest begins, or -1 while the head has no end
   * @throws Malformed
   */
  push(bytes: Buffer, start: number, end: number): number {
    if (this.#text === '') {
      const look = Math.min(end, start + FIRST_LOOK_BYTES)
      const text = bytes.toString('latin1', start, look)
      const empty = text.indexOf('\r\n\r\n')
      // The first of the four bytes is where the head begins when an empty line stands before it.
      if (empty > 0 && text.charCodeAt(0) !== CR) return this.#found(text, empty, start)
    }
    const before = this.#text.length
    let text = this.#text + bytes.toString('latin1', start, end)
    let skipped = 0
    // Empty lines before a request are an old client's mistake, to be forgiven (RFC 9112, section 2.2).
    if (this.#of === 'request')
      while (text.charCodeAt(skipped) === CR && text.charCodeAt(skipped + 1) === LF) skipped += 2
    if (skipped > 0) text = text.slice(skipped)
    const empty = text.indexOf('\r\n\r\n', skipped > 0 ? 0 : Math.max(0, before - 3))
    return empty >= 0 ? this.#found(text, empty, start - before + skipped) : this.#keep(text)
  }

  #found(text: string, empty: number, from: number): number {
    const length = empty + 4
    if (length > this.#maxBytes) throw new Malformed('head_too_large', `a head of more than ${this.#maxBytes} bytes`)
    this.#text = text.length === length ? text : text.slice(0, length)
    return from + length
  }

  #keep(text: string): number {
    checkBeginning(text, this.#of)
    if (text.length >= this.#maxBytes)
      throw new Malformed('head_too_large', `a head of more than ${this.#maxBytes} bytes`)
    this.#text = text
    return -1
  }
}
