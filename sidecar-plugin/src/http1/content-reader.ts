import { Fields } from '../fields.ts'
import { ChunkedDecoder } from './chunked.ts'
import type { Framing } from './head.ts'

/** Finds the content of one message in the bytes of a connection, and its end (RFC 9112, section 6.3). */
export class ContentReader {
  readonly #chunked: ChunkedDecoder | undefined
  /** Bytes that are still to come; infinite until the connection closes. */
  #left: number

  constructor(framing: Framing, length: number) {
    this.#chunked = framing === 'chunked' ? new ChunkedDecoder() : undefined
    this.#left = framing === 'until_close' ? Infinity : length
  }

  /** Whether the message has ended, as far as bytes can say. */
  get done(): boolean {
    return this.#chunked ? this.#chunked.done : this.#left === 0
  }

  /** Whether the end of the connection is the end of the message, and not a message cut off. */
  get endsByClose(): boolean {
    return this.#left === Infinity
  }

  /** Once it is done. */
  get trailers(): Fields {
    return this.#chunked?.trailers ?? Fields.NONE
  }

  /**
   * Takes what has arrived, up to the end of the message.
   * @param data called with each piece of content: where it begins and ends in `bytes`
   * @returns where the rest begins, which is no part of the message
   * @throws Malformed
   */
  push(bytes: Uint8Array, start: number, end: number, data: (from: number, to: number) => void): number {
    if (this.#chunked) return this.#chunked.push(bytes, start, end, data)
    const to = Math.min(end, start + this.#left)
    this.#left -= to - start
    if (to > start) data(start, to)
    return to
  }
}
