/** HTTP/2 frame by frame (RFC 9113, section 4), for what a library would not send. */

import { connect, type Socket } from 'node:net'

export const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'

export const FRAME = {
  data: 0,
  headers: 1,
  priority: 2,
  reset: 3,
  settings: 4,
  ping: 6,
  goaway: 7,
  window: 8,
  continuation: 9,
} as const

export const FLAG = { endStream: 1, ack: 1, endHeaders: 4 } as const

export const CODE = {
  none: 0,
  protocol: 1,
  internal: 2,
  flowControl: 3,
  streamClosed: 5,
  frameSize: 6,
  refused: 7,
  cancel: 8,
  compression: 9,
  calm: 11,
} as const

export interface Frame {
  readonly type: number
  readonly flags: number
  readonly stream: number
  readonly payload: Buffer
}

export function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head[3] = type
  head[4] = flags
  head.writeUInt32BE(stream, 5)
  return Buffer.concat([head, payload])
}

/** Fields as literals that nobody indexes (RFC 7541, section 6.2.2), in latin1, whatever is in them. */
export function fieldBlock(fields: readonly (readonly [string, string])[]): Buffer {
  return Buffer.concat(fields.flatMap(([name, value]) => [Buffer.from([0]), literal(name), literal(value)]))
}

export function settings(...pairs: readonly (readonly [number, number])[]): Buffer {
  const payload = Buffer.alloc(pairs.length * 6)
  for (const [i, [id, value]] of pairs.entries()) {
    payload.writeUInt16BE(id, i * 6)
    payload.writeUInt32BE(value, i * 6 + 2)
  }
  return frame(FRAME.settings, 0, 0, payload)
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

/** HEADERS with all fields. */
export function headers(stream: number, fields: readonly (readonly [string, string])[], isLast = true): Buffer {
  return frame(FRAME.headers, FLAG.endHeaders | (isLast ? FLAG.endStream : 0), stream, fieldBlock(fields))
}

/** The code that a RST_STREAM or a GOAWAY gives. */
export function codeOf({ type, payload }: Frame): number {
  return payload.readUInt32BE(type === FRAME.goaway ? 4 : 0)
}

function literal(text: string): Buffer {
  const bytes = Buffer.from(text, 'latin1')
  return Buffer.concat([integer(bytes.length), bytes])
}

/** RFC 7541, section 5.1, with a prefix of seven bits. */
function integer(value: number): Buffer {
  if (value < 127) return Buffer.from([value])
  const bytes = [127]
  let rest = value - 127
  for (; rest >= 128; rest >>>= 7) bytes.push((rest & 127) | 128)
  bytes.push(rest)
  return Buffer.from(bytes)
}

/** One side of a connection, that says nothing by itself and collects what it is told. */
export class FrameSocket {
  readonly socket: Socket
  readonly frames: Frame[] = []
  readonly closed: Promise<void>
  #pending: Buffer = Buffer.alloc(0)
  #skip: number
  #hasEnded = false
  #waiting: (() => void)[] = []

  /** @param skip bytes before the first frame: a server's side hears the preface */
  constructor(socket: Socket, skip = 0) {
    this.socket = socket
    this.#skip = skip
    socket.on('error', () => {})
    socket.on('data', (bytes: Buffer) => {
      this.#read(bytes)
      this.#notify()
    })
    this.closed = new Promise((resolve) => socket.once('close', () => resolve()))
    const end = () => {
      this.#hasEnded = true
      this.#notify()
    }
    socket.once('end', end)
    socket.once('close', end)
  }

  /** Connects and says what every client says first. */
  static open(port: number, ...first: readonly Buffer[]): FrameSocket {
    const opened = new FrameSocket(connect(port, '127.0.0.1'))
    opened.send(Buffer.from(PREFACE), settings(), ...first)
    return opened
  }

  send(...frames: readonly (Buffer | string)[]): this {
    const bytes = frames.map((each) => (typeof each === 'string' ? Buffer.from(each, 'latin1') : each))
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(bytes))
    return this
  }

  find(type: number, stream?: number): Frame | undefined {
    return this.frames.find((each) => each.type === type && (stream === undefined || each.stream === stream))
  }

  /** The first frame of that kind; rejects when the connection ends before. */
  until(type: number, stream?: number): Promise<Frame> {
    return this.untilOne(
      (each) => each.type === type && (stream === undefined || each.stream === stream),
      `type ${type}`,
    )
  }

  /** The answer to a stream, or why there is none: its HEADERS, RST_STREAM, or the connection's GOAWAY. */
  outcome(stream: number): Promise<Frame> {
    return this.untilOne(
      ({ type, stream: of }) =>
        (of === stream && (type === FRAME.headers || type === FRAME.reset)) || type === FRAME.goaway,
      `an outcome of stream ${stream}`,
    )
  }

  /** The first frame that matches; rejects when the connection ends before. */
  async untilOne(matches: (frame: Frame) => boolean, what: string): Promise<Frame> {
    for (;;) {
      const found = this.frames.find(matches)
      if (found) return found
      if (this.#hasEnded)
        throw new Error(`the connection ended before ${what}, after ${this.frames.map((each) => each.type).join(' ')}`)
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }

  #notify(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }

  #read(bytes: Buffer): void {
    const skipped = Math.min(this.#skip, bytes.length)
    this.#skip -= skipped
    this.#pending = Buffer.concat([this.#pending, bytes.subarray(skipped)])
    while (this.#pending.length >= 9) {
      const length = 9 + this.#pending.readUIntBE(0, 3)
      if (this.#pending.length < length) return
      const [type, flags] = [this.#pending[3]!, this.#pending[4]!]
      const stream = this.#pending.readUInt32BE(5) & 0x7fffffff
      this.frames.push({ type, flags, stream, payload: this.#pending.subarray(9, length) })
      this.#pending = this.#pending.subarray(length)
    }
  }
}
