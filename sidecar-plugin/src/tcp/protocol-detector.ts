import { TOKEN } from '../fields.ts'
import { PREFACE } from '../http2/preface.ts'
import { readClientHello, type ClientHello } from './client-hello.ts'

/** What a connection carries, by what its client said first. */
export type Detected =
  { readonly protocol: 'http1' | 'http2' | 'opaque' } | { readonly protocol: 'tls'; readonly hello: ClientHello }

const OPAQUE: Detected = { protocol: 'opaque' }

/** Longer request lines and ClientHellos are nobody's; what is longer is passed on as it is. */
export const DETECTED_BYTES = 16_384

/** Longer than any method that is registered. */
const METHOD_BYTES = 32

const SPACE = 0x20
const CR = 0x0d
const LF = 0x0a
const DELETE = 0x7f
const VERSION = Buffer.from('HTTP/1.', 'latin1')

const HANDSHAKE = 0x16
const CLIENT_HELLO = 1
const RECORD_HEADER = 5
const RECORD_BYTES = 16_384
const MESSAGE_HEADER = 4

/** One way to read the beginning of a connection: takes bytes one after another until it knows. */
interface Reading {
  /** @returns what it is; `false` when it is not what this one reads; undefined while it may be */
  take(byte: number): Detected | false | undefined
}

/**
 * Says what a connection carries from its client's first bytes, as soon as those leave no choice: a request line of
 * HTTP/1 (RFC 9112, section 3), the preface of HTTP/2, or a ClientHello of TLS. Everything else is opaque, and is so
 * from its first byte that fits nothing. How the bytes are cut into pieces makes no difference.
 *
 * Keeps no bytes but those of a ClientHello; whoever feeds it keeps what it passes on.
 */
export class ProtocolDetector {
  #readings: Reading[] = [new RequestLine(), new Preface(), new TlsRecords()]
  #bytes = 0
  #result: Detected | undefined

  /** Undefined while it could still be several. */
  get result(): Detected | undefined {
    return this.#result
  }

  /**
   * What has arrived next.
   * @returns what it is once that is known; it stays that
   */
  push(bytes: Uint8Array, start = 0, end = bytes.length): Detected | undefined {
    for (let at = start; at < end && this.#result === undefined; at++) this.#take(bytes[at]!)
    return this.#result
  }

  /** The client says no more. */
  end(): Detected {
    return (this.#result ??= OPAQUE)
  }

  #take(byte: number): void {
    this.#bytes++
    let left = 0
    for (const reading of this.#readings) {
      const found = reading.take(byte)
      if (found) {
        this.#result = found
        return
      }
      if (found === undefined) this.#readings[left++] = reading
    }
    this.#readings.length = left
    if (left === 0 || this.#bytes >= DETECTED_BYTES) this.#result = OPAQUE
  }
}

/** `method SP target SP HTTP/1.x`, up to the end of that line. */
class RequestLine implements Reading {
  #part: 'method' | 'target' | 'version' | 'minor' | 'end' = 'method'
  #length = 0

  take(byte: number): Detected | false | undefined {
    switch (this.#part) {
      case 'method':
        if (byte === SPACE && this.#length > 0) return this.#next('target')
        return TOKEN[byte] === 1 && ++this.#length <= METHOD_BYTES ? undefined : false
      case 'target':
        if (byte === SPACE && this.#length > 0) return this.#next('version')
        this.#length++
        return byte > SPACE && byte !== DELETE ? undefined : false
      case 'version':
        if (byte !== VERSION[this.#length]) return false
        return ++this.#length === VERSION.length ? this.#next('minor') : undefined
      case 'minor':
        return byte >= 0x30 && byte <= 0x39 ? this.#next('end') : false
      case 'end':
        return (byte === CR || byte === LF) && { protocol: 'http1' }
    }
  }

  #next(part: 'target' | 'version' | 'minor' | 'end'): undefined {
    this.#part = part
    this.#length = 0
  }
}

class Preface implements Reading {
  #matched = 0

  take(byte: number): Detected | false | undefined {
    if (byte !== PREFACE[this.#matched]) return false
    return ++this.#matched === PREFACE.length ? { protocol: 'http2' } : undefined
  }
}

/**
 * Handshake records (RFC 8446, section 5.1) up to the end of a ClientHello, which may lie in several and must end with
 * one.
 */
class TlsRecords implements Reading {
  /** Of the record that is read. */
  #header = 0
  #left = 0
  #message = Buffer.alloc(0)
  #length = 0

  take(byte: number): Detected | false | undefined {
    return this.#header < RECORD_HEADER ? this.#takeHeader(byte) : this.#takeMessage(byte)
  }

  #takeHeader(byte: number): false | undefined {
    switch (this.#header++) {
      case 0:
        return byte === HANDSHAKE ? undefined : false
      case 1:
        return byte === 3 ? undefined : false
      case 2:
        // 3.1 to 3.4 are in use.
        return byte <= 4 ? undefined : false
      case 3:
        this.#left = byte << 8
        return undefined
      default:
        this.#left |= byte
        return this.#left > 0 && this.#left <= RECORD_BYTES ? undefined : false
    }
  }

  #takeMessage(byte: number): Detected | false | undefined {
    if (this.#length === this.#message.length) {
      const larger = Buffer.alloc(Math.max(512, 2 * this.#length))
      this.#message.copy(larger)
      this.#message = larger
    }
    this.#message[this.#length++] = byte
    this.#left--
    if (this.#left === 0) this.#header = 0
    if (this.#length === 1 && byte !== CLIENT_HELLO) return false
    if (this.#length < MESSAGE_HEADER) return undefined
    const whole = MESSAGE_HEADER + this.#message.readUIntBE(1, 3)
    if (whole > DETECTED_BYTES) return false
    if (this.#length < whole) return undefined
    if (this.#left > 0) return false
    const hello = readClientHello(this.#message.subarray(MESSAGE_HEADER, whole))
    return hello !== undefined && { protocol: 'tls', hello }
  }
}
