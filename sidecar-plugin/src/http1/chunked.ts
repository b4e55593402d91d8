/**
 * The content of a chunked message (RFC 9112, section 7.1), as it arrives. Sizes are bounded, extensions are skipped and
 * never passed on, line ends are CRLF and nothing else.
 */

import { Fields } from '../fields.ts'
import { parseTrailers } from './head.ts'
import { Malformed } from './malformed.ts'

/** More would not fit a double. */
const MAX_SIZE_DIGITS = 12
/** Over all chunks of one message, in bytes: small chunks with long extensions cost much and carry nothing. */
const MAX_EXTENSION_BYTES = 16_384
/** Of the fields after the last chunk. */
const MAX_TRAILER_BYTES = 16_384
const MAX_TRAILERS = 64

const CR = 0x0d
const LF = 0x0a
const SEMICOLON = 0x3b
const TAB = 0x09
const SPACE = 0x20

const SIZE = 0
const EXTENSION = 1
const PADDING = 8
const SIZE_LF = 2
const DATA = 3
const DATA_CR = 4
const DATA_LF = 5
const TRAILER = 6
const DONE = 7

export class ChunkedDecoder {
  #state = SIZE
  #size = 0
  #digits = 0
  #extensionBytes = 0
  #trailer = ''
  #trailers = Fields.NONE

  /** Whether the message has ended. */
  get done(): boolean {
    return this.#state === DONE
  }

  /** Once it is done. */
  get trailers(): Fields {
    return this.#trailers
  }

  /**
   * Takes what has arrived, up to the end of the message.
   * @param data called with each piece of content: where it begins and ends in `bytes`
   * @returns where the rest begins, which is no part of the message
   * @throws Malformed
   */
  push(bytes: Uint8Array, start: number, end: number, data: (from: number, to: number) => void): number {
    let at = start
    while (at < end) {
      switch (this.#state) {
        case SIZE:
          at = this.#readSize(bytes, at, end)
          break
        case EXTENSION:
          at = this.#skipExtension(bytes, at, end)
          break
        case PADDING: {
          const code = bytes[at++]!
          if (code === SEMICOLON) this.#state = EXTENSION
          else if (code === CR) this.#state = SIZE_LF
          else if (code !== SPACE && code !== TAB) throw new Malformed('chunk', 'a chunk size that is no number')
          else if (++this.#extensionBytes > MAX_EXTENSION_BYTES)
            throw new Malformed('chunk', 'chunk extensions without end')
          break
        }
        case SIZE_LF:
          if (bytes[at++] !== LF) throw new Malformed('chunk', 'a chunk’s line that does not end in CRLF')
          this.#state = this.#size > 0 ? DATA : TRAILER
          break
        case DATA: {
          const to = Math.min(end, at + this.#size)
          this.#size -= to - at
          if (this.#size === 0) this.#state = DATA_CR
          data(at, to)
          at = to
          break
        }
        case DATA_CR:
          if (bytes[at++] !== CR) throw new Malformed('chunk', 'a chunk that is longer than its size')
          this.#state = DATA_LF
          break
        case DATA_LF:
          if (bytes[at++] !== LF) throw new Malformed('chunk', 'a chunk that does not end in CRLF')
          this.#state = SIZE
          this.#digits = 0
          break
        case TRAILER:
          at = this.#readTrailer(bytes, at, end)
          break
        default:
          return at
      }
    }
    return at
  }

  #readSize(bytes: Uint8Array, start: number, end: number): number {
    let at = start
    for (; at < end; at++) {
      const digit = hexDigit(bytes[at]!)
      if (digit < 0) break
      if (++this.#digits > MAX_SIZE_DIGITS) throw new Malformed('chunk', 'a chunk that is too large')
      this.#size = this.#size * 16 + digit
    }
    if (at === end) return at
    if (this.#digits === 0) throw new Malformed('chunk', 'a chunk without a size')
    const code = bytes[at]!
    if (code === CR) this.#state = SIZE_LF
    // Spaces before an extension are bad white space (RFC 9110, section 5.6.3), which is to be understood.
    else if (code === SEMICOLON) this.#state = EXTENSION
    else if (code === SPACE || code === TAB) this.#state = PADDING
    else throw new Malformed('chunk', 'a chunk size that is no number')
    return at + 1
  }

  #skipExtension(bytes: Uint8Array, start: number, end: number): number {
    for (let at = start; at < end; at++) {
      const code = bytes[at]!
      if (code === CR) {
        this.#state = SIZE_LF
        return at + 1
      }
      if ((code < SPACE && code !== TAB) || code === 0x7f)
        throw new Malformed('chunk', 'a control character in a chunk extension')
      if (++this.#extensionBytes > MAX_EXTENSION_BYTES) throw new Malformed('chunk', 'chunk extensions without end')
    }
    return end
  }

  #readTrailer(bytes: Uint8Array, start: number, end: number): number {
    // Nearly always nothing but the empty line.
    if (this.#trailer === '' && bytes[start] === CR && bytes[start + 1] === LF && start + 2 <= end) {
      this.#state = DONE
      return start + 2
    }
    const before = this.#trailer.length
    const arrived = latin1(bytes, start, Math.min(end, start + MAX_TRAILER_BYTES + 4))
    const text = this.#trailer + arrived
    const empty = text.startsWith('\r\n') ? 0 : text.indexOf('\r\n\r\n', Math.max(0, before - 3))
    if (empty >= 0) {
      const length = empty + (text.startsWith('\r\n') ? 2 : 4)
      this.#trailers = parseTrailers(text.slice(0, length), MAX_TRAILERS)
      this.#trailer = ''
      this.#state = DONE
      return start + length - before
    }
    if (/(?:^|[^\r])\n|^\r[^]/.test(text)) throw new Malformed('trailer', 'a trailer line that does not end in CRLF')
    if (text.length > MAX_TRAILER_BYTES) throw new Malformed('trailer', `trailers of over ${MAX_TRAILER_BYTES} bytes`)
    this.#trailer = text
    return end
  }
}

function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30
  const letter = code | 0x20
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : -1
}

function latin1(bytes: Uint8Array, start: number, end: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString('latin1')
}
