import { Fields } from '../fields.ts'
import { Whole } from '../layer.ts'
import { ChunkedDecoder } from './chunked.ts'
import type { Framing } from './head.ts'
import { COPIED_BYTES } from './transport.ts'

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

/**
 * Content that has arrived with its head, all of it, and is small. What goes out in one write costs less, and no end of
 * this process comes in between: a service's chunked answer would else be cut behind its head, where no other node can
 * be asked any more.
 * @param next told where the message ends
 * @returns undefined when some of it may still come, or it has trailers
 * @throws Malformed
 */
export function wholeOf(
  { framing, length }: { readonly framing: Framing; readonly length: number },
  bytes: Buffer,
  start: number,
  end: number,
): { readonly content: Whole; readonly next: number } | undefined {
  if (framing === 'length') {
    if (length > Math.min(end - start, COPIED_BYTES)) return undefined
    return { content: new Whole(bytes.toString('latin1', start, start + length)), next: start + length }
  }
  // Most chunks that are not the last ones end otherwise, and are not worth a try.
  if (framing !== 'chunked' || end - start > COPIED_BYTES || bytes[end - 4] !== CR || bytes[end - 1] !== LF)
    return undefined
  const decoder = new ChunkedDecoder()
  let latin1 = ''
  const next = decoder.push(bytes, start, end, (from, to) => (latin1 += bytes.toString('latin1', from, to)))
  if (!decoder.done || decoder.trailers.list.length > 0) return undefined
  return { content: new Whole(latin1), next }
}

const CR = 0x0d
const LF = 0x0a
