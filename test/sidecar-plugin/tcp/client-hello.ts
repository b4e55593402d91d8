/** ClientHellos, right and wrong. */

export interface HelloParts {
  readonly serverName?: string
  readonly alpn?: readonly string[]
  /** Further extensions: type and data. */
  readonly extensions?: readonly (readonly [number, Buffer])[]
  readonly sessionId?: Buffer
  readonly suites?: Buffer
  readonly withoutExtensions?: boolean
}

function u8(value: number): Buffer {
  return Buffer.from([value])
}

export function u16(value: number): Buffer {
  return Buffer.from([value >> 8, value & 255])
}

function vector(size: 1 | 2, data: Buffer): Buffer {
  return Buffer.concat([size === 1 ? u8(data.length) : u16(data.length), data])
}

export function sniOf(name: string): Buffer {
  return vector(2, Buffer.concat([u8(0), vector(2, Buffer.from(name, 'latin1'))]))
}

/** A message of the handshake, with its header. */
export function helloMessage(parts: HelloParts = {}): Buffer {
  const extensions = [...(parts.extensions ?? [])]
  if (parts.serverName !== undefined) extensions.push([0, sniOf(parts.serverName)])
  if (parts.alpn) {
    const names = parts.alpn.map((name) => vector(1, Buffer.from(name, 'latin1')))
    extensions.push([16, vector(2, Buffer.concat(names))])
  }
  const body = Buffer.concat([
    u16(0x0303),
    Buffer.alloc(32, 7),
    vector(1, parts.sessionId ?? Buffer.alloc(32, 1)),
    vector(2, parts.suites ?? Buffer.from([0x13, 0x01, 0x13, 0x02])),
    vector(1, u8(0)),
    ...(parts.withoutExtensions
      ? []
      : [vector(2, Buffer.concat(extensions.map(([type, data]) => Buffer.concat([u16(type), vector(2, data)]))))]),
  ])
  return Buffer.concat([u8(1), u8(0), u16(body.length), body])
}

/** A message in records of at most `recordBytes`. */
export function inRecords(message: Buffer, recordBytes = 16_384): Buffer {
  const records: Buffer[] = []
  for (let at = 0; at < message.length; at += recordBytes)
    records.push(Buffer.concat([Buffer.from([22, 3, 1]), vector(2, message.subarray(at, at + recordBytes))]))
  return Buffer.concat(records)
}

export function hello(parts?: HelloParts): Buffer {
  return inRecords(helloMessage(parts))
}
