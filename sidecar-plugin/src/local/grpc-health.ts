/**
 * What gRPC services are asked, and answer, about their health: the call `Check` of `grpc.health.v1.Health` (gRPC's
 * "Health Checking Protocol"). Of its messages one field each is of interest, so they are written and read by hand.
 */

export const HEALTH_CHECK_PATH = '/grpc.health.v1.Health/Check'

/** The statuses of `HealthCheckResponse`, by number. */
const STATUSES = ['UNKNOWN', 'SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN'] as const

/** A tag is a field's number, three bits up, and how its value is written (Protocol Buffers, "Encoding"). */
const VARINT = 0
const FIXED_64 = 1
const BYTES = 2
const FIXED_32 = 5
const SERVICE_TAG = (1 << 3) | BYTES
const STATUS_TAG = (1 << 3) | VARINT

/** Of a message in gRPC: whether it is compressed, and its length in four bytes. */
const PREFIX_BYTES = 5

/**
 * The call's content: one message.
 * @param service empty for the server as a whole
 */
export function healthCheckRequest(service: string): Buffer {
  const name = Buffer.from(service, 'utf8')
  const message = name.length === 0 ? name : Buffer.concat([Buffer.from([SERVICE_TAG]), varint(name.length), name])
  const prefix = Buffer.alloc(PREFIX_BYTES)
  prefix.writeUInt32BE(message.length, 1)
  return Buffer.concat([prefix, message])
}

/**
 * Reads an answer's content.
 * @returns the status by name, or undefined when it is not exactly one message that can be read
 */
export function readHealthCheckResponse(content: Buffer): string | undefined {
  if (content.length < PREFIX_BYTES || content[0] !== 0) return undefined
  if (content.readUInt32BE(1) !== content.length - PREFIX_BYTES) return undefined
  const reader = new Reader(content, PREFIX_BYTES)
  let status = 0
  while (!reader.isAtEnd) {
    const tag = reader.varint()
    if (tag === undefined) return undefined
    if (tag === STATUS_TAG) {
      const value = reader.varint()
      if (value === undefined) return undefined
      status = value
    } else if (!reader.skip(tag & 7)) return undefined
  }
  return STATUSES[status] ?? String(status)
}

class Reader {
  readonly #bytes: Buffer
  #at: number

  constructor(bytes: Buffer, at: number) {
    this.#bytes = bytes
    this.#at = at
  }

  get isAtEnd(): boolean {
    return this.#at === this.#bytes.length
  }

  /** Undefined where there is none of up to 64 bits. */
  varint(): number | undefined {
    let value = 0
    for (let i = 0; i < 10; i++) {
      const byte = this.#bytes[this.#at++]
      if (byte === undefined) return undefined
      value += (byte & 0x7f) * 2 ** (7 * i)
      if (byte < 0x80) return value
    }
    return undefined
  }

  /** @returns whether the value was there */
  skip(type: number): boolean {
    if (type === VARINT) return this.varint() !== undefined
    const length = type === FIXED_64 ? 8 : type === FIXED_32 ? 4 : type === BYTES ? this.varint() : undefined
    if (length === undefined || length > this.#bytes.length - this.#at) return false
    this.#at += length
    return true
  }
}

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 0x80; rest >>>= 7) bytes.push((rest & 0x7f) | 0x80)
  return Buffer.from([...bytes, rest])
}
