/** What the first message of a TLS client says in clear text of where it wants to go. */
export interface ClientHello {
  /** The host that it asks for, in lower case; undefined when it names none. */
  readonly serverName: string | undefined
  /** The protocols that it would speak, in its order. */
  readonly alpn: readonly string[]
}

const SERVER_NAME = 0
const ALPN = 16
const HOST_NAME = 0

/** Letters, digits, `-` and `_` in labels: an IP address is no name (RFC 6066, section 3), nor is what ends in a dot. */
const NAME = /^(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/
const DIGITS_LAST = /(?:^|\.)\d+$/

class Reader {
  readonly #bytes: Buffer
  #at: number
  readonly #end: number

  constructor(bytes: Buffer, at = 0, end = bytes.length) {
    this.#bytes = bytes
    this.#at = at
    this.#end = end
  }

  get isAtEnd(): boolean {
    return this.#at === this.#end
  }

  /** A number of `size` bytes; throws RangeError behind the end, as all of these. */
  number(size: 1 | 2): number {
    return this.#bytes.readUIntBE(this.#take(size), size)
  }

  skip(length: number): void {
    this.#take(length)
  }

  text(length: number): string {
    const at = this.#take(length)
    return this.#bytes.toString('latin1', at, at + length)
  }

  /** A vector with its length before it, of `least` bytes at least and `most` at most. */
  vector(size: 1 | 2, least: number, most: number): Reader {
    const length = this.number(size)
    if (length < least || length > most) throw new RangeError('a vector of that length')
    const at = this.#take(length)
    return new Reader(this.#bytes, at, at + length)
  }

  #take(length: number): number {
    const at = this.#at
    if (length > this.#end - at) throw new RangeError('cut short')
    this.#at += length
    return at
  }
}

/**
 * Reads the body of a ClientHello (RFC 8446, section 4.1.2; server name: RFC 6066, section 3; ALPN: RFC 7301,
 * section 3.1). Every length must fit exactly, and no extension may come twice.
 * @param body without the four bytes of the handshake's header
 * @returns undefined when it is none
 */
export function readClientHello(body: Buffer): ClientHello | undefined {
  try {
    return read(new Reader(body))
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

function read(body: Reader): ClientHello | undefined {
  // legacy_version: 3.0 and later. Nobody speaks what came before in this form.
  if (body.number(1) !== 3) return undefined
  body.skip(1)
  // random
  body.skip(32)
  // legacy_session_id
  body.vector(1, 0, 32)
  const suites = body.vector(2, 2, 65_534)
  while (!suites.isAtEnd) suites.number(2)
  // legacy_compression_methods
  body.vector(1, 1, 255)
  let serverName: string | undefined
  let alpn: readonly string[] = []
  // Of TLS 1.2 and before, there may be none.
  if (!body.isAtEnd) {
    const extensions = body.vector(2, 0, 65_535)
    const seen = new Set<number>()
    while (!extensions.isAtEnd) {
      const type = extensions.number(2)
      const data = extensions.vector(2, 0, 65_535)
      if (seen.has(type)) return undefined
      seen.add(type)
      if (type === SERVER_NAME) {
        serverName = serverNameOf(data)
        if (serverName === undefined) return undefined
      } else if (type === ALPN) alpn = protocolsOf(data)
    }
  }
  return body.isAtEnd ? { serverName, alpn } : undefined
}

function serverNameOf(data: Reader): string | undefined {
  const list = data.vector(2, 1, 65_535)
  if (list.number(1) !== HOST_NAME) return undefined
  const length = list.number(2)
  const name = list.text(length).toLowerCase()
  // One name of the only kind that there is.
  return list.isAtEnd && data.isAtEnd && NAME.test(name) && !DIGITS_LAST.test(name) ? name : undefined
}

function protocolsOf(data: Reader): string[] {
  const list = data.vector(2, 2, 65_535)
  const protocols: string[] = []
  while (!list.isAtEnd) {
    const length = list.number(1)
    if (length === 0) throw new RangeError('an empty name')
    protocols.push(list.text(length))
  }
  if (!data.isAtEnd) throw new RangeError('more than a list')
  return protocols
}
