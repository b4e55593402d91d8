/**
 * What goes over a simulated connection between a client and a registry: requests and their answers as a whole, and the
 * bytes of WebSockets, which the registry's own code writes and reads. The client's half of a WebSocket is here: the
 * client library leaves it to a library of its own, behind its `Network`.
 */

import { Duplex } from 'node:stream'
import type {
  HttpAnswer,
  HttpCall,
  Network as ClientNetwork,
  Stream,
  StreamHandlers,
} from '../../registry-client/src/network.ts'
import type { Random } from '@holdfast/registry-client/clock'
import type { SimProcess } from './process.ts'
import type { End, Network } from './sim-network.ts'

export interface RequestMessage {
  readonly kind: 'request'
  readonly method: string
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string | undefined
}

export interface AnswerMessage {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

export interface UpgradeMessage {
  readonly kind: 'upgrade'
  readonly path: string
  readonly host: string
}

/** What a run wants to know of a client's talk. */
export interface TalkObserver {
  /** An answer has arrived. @param sentMs when its request was sent */
  answered(request: RequestMessage, answer: AnswerMessage, sentMs: number): void
  sent(text: string): void
  received(text: string): void
  opened(): void
  closed(): void
  /** Whether a program of its own takes connections there. */
  serves(host: string, port: number): boolean
}

const HANDSHAKE_TIMEOUT_MS = 5_000
/** What may be repeated by whoever stands in between, when no answer came. */
const REPEATABLE = new Set(['GET', 'PUT', 'DELETE'])

export class SimClientNetwork implements ClientNetwork {
  readonly #network: Network
  readonly #process: SimProcess
  readonly #random: Random
  readonly #observer: TalkObserver

  constructor(network: Network, process: SimProcess, random: Random, observer: TalkObserver) {
    this.#network = network
    this.#process = process
    this.#random = random
    this.#observer = observer
  }

  request({ method, url, headers = {}, body, signal }: HttpCall): Promise<HttpAnswer> {
    const { host, pathname, search } = new URL(url)
    const request: RequestMessage = { kind: 'request', method, path: pathname + search, headers, body }
    const sentMs = this.#process.now()
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason as Error)
      const ask = (isLast: boolean) => {
        const end = this.#network.connect(this.#process, host, method, {
          message: (content) => {
            end.close()
            if (!isLast) return
            signal.removeEventListener('abort', aborted)
            const answer = content as AnswerMessage
            this.#observer.answered(request, answer, sentMs)
            resolve({ status: answer.status, header: (name) => answer.headers[name.toLowerCase()], body: answer.body })
          },
          closed: (reason) => {
            if (!isLast) return
            signal.removeEventListener('abort', aborted)
            reject(new Error(reason))
          },
        })
        const aborted = () => {
          end.close()
          reject(signal.reason as Error)
        }
        if (isLast) signal.addEventListener('abort', aborted, { once: true })
        end.send(request)
      }
      // Someone in between lost the first answer, and asked again.
      const isTwice = REPEATABLE.has(method) && this.#random() < this.#network.wayTo(this.#process, host).duplication
      if (isTwice) ask(false)
      if (isTwice) this.#process.deliver(this.#random() * 200, 'asks again', () => !signal.aborted && ask(true))
      else ask(true)
    })
  }

  probe(host: string, port: number, signal: AbortSignal): Promise<'ok' | 'failed' | 'ignored'> {
    const way = this.#network.way(this.#process.host.name, host)
    return new Promise((resolve) => {
      if (signal.aborted) return resolve('failed')
      signal.addEventListener('abort', () => resolve('failed'), { once: true })
      if (way.blocked === 0)
        this.#process.deliver(2 * this.#network.latencyMs(way), 'probed', () =>
          resolve(this.#observer.serves(host, port) ? 'ok' : 'failed'),
        )
    })
  }

  open(url: string, handlers: StreamHandlers): Stream {
    const { host, pathname } = new URL(url)
    return new ClientWebSocket(this.#network, this.#process, host, pathname, handlers, this.#observer)
  }
}

class ClientWebSocket implements Stream {
  readonly #end: End
  readonly #handlers: StreamHandlers
  readonly #observer: TalkObserver
  readonly #process: SimProcess
  readonly #cancelHandshake: () => void
  #received: Buffer = Buffer.alloc(0)
  #isOpen = false
  #isOver = false

  constructor(
    network: Network,
    process: SimProcess,
    address: string,
    path: string,
    handlers: StreamHandlers,
    observer: TalkObserver,
  ) {
    this.#process = process
    this.#handlers = handlers
    this.#observer = observer
    this.#end = network.connect(process, address, 'stream', {
      message: (content) => this.#receive(content as Buffer),
      closed: (reason) => this.#over(reason),
    })
    this.#cancelHandshake = process.after(HANDSHAKE_TIMEOUT_MS, () => this.#abandon('Opening handshake has timed out'))
    this.#end.send({ kind: 'upgrade', path, host: address } satisfies UpgradeMessage)
  }

  send(text: string): void {
    if (!this.#isOpen) return
    this.#observer.sent(text)
    this.#write(0x1, Buffer.from(text))
  }

  close(): void {
    if (this.#isOver) return
    this.#end.close()
    // The word of its end comes later, as a socket's does.
    this.#process.deliver(0, 'stream closed', () => this.#over('closed by the client'))
  }

  #abandon(reason: string): void {
    this.#end.close()
    this.#over(reason)
  }

  #over(reason: string): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#cancelHandshake()
    if (this.#isOpen) this.#observer.closed()
    this.#isOpen = false
    this.#handlers.close(reason)
  }

  #receive(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk])
    if (!this.#isOpen && !this.#isOver) this.#readHead()
    while (this.#isOpen && this.#readFrame());
  }

  #readHead(): void {
    const end = this.#received.indexOf('\r\n\r\n')
    if (end < 0) return
    const [, status] = this.#received.toString('latin1', 0, end).split(' ')
    this.#received = this.#received.subarray(end + 4)
    if (status !== '101') return this.#abandon(`Unexpected server response: ${status}`)
    this.#cancelHandshake()
    this.#isOpen = true
    this.#observer.opened()
    this.#handlers.open()
  }

  /** RFC 6455, section 5.2: a server's frames are not masked, and the registry's are never in pieces. */
  #readFrame(): boolean {
    const bytes = this.#received
    if (bytes.length < 2) return false
    const short = bytes[1]! & 0x7f
    const head = short < 126 ? 2 : short === 126 ? 4 : 10
    if (bytes.length < head) return false
    const length = short < 126 ? short : short === 126 ? bytes.readUInt16BE(2) : Number(bytes.readBigUInt64BE(2))
    if (bytes.length < head + length) return false
    const payload = bytes.subarray(head, head + length)
    this.#received = bytes.subarray(head + length)
    const opcode = bytes[0]! & 0x0f
    if (opcode === 0x1) {
      const text = payload.toString('utf8')
      this.#handlers.message(text)
      this.#observer.received(text)
    } else if (opcode === 0x9) this.#write(0xa, payload)
    else if (opcode === 0x8) {
      this.#write(0x8, payload)
      this.#abandon(
        `closed ${payload.length >= 2 ? payload.readUInt16BE(0) : ''} ${payload.toString('utf8', 2)}`.trim(),
      )
    }
    return true
  }

  /** Masked, as a client's frames have to be, with a mask that changes nothing. */
  #write(opcode: number, payload: Buffer): void {
    const { length } = payload
    const head = Buffer.alloc(length < 126 ? 6 : length < 65_536 ? 8 : 14)
    head[0] = 0x80 | opcode
    head[1] = 0x80 | (length < 126 ? length : length < 65_536 ? 126 : 127)
    if (length >= 65_536) head.writeBigUInt64BE(BigInt(length), 2)
    else if (length >= 126) head.writeUInt16BE(length, 2)
    this.#end.send(Buffer.concat([head, payload]))
  }
}

/** The registry's socket of a stream, as far as its code and its WebSocket library look at one. */
export class ServerSocket extends Duplex {
  readonly remoteAddress: string
  readonly remotePort = 1
  readonly #end: End
  #takenBytes = 0

  constructor(end: End, remoteAddress: string) {
    super()
    this.#end = end
    this.remoteAddress = remoteAddress
  }

  get bytesWritten(): number {
    return this.#takenBytes + this.writableLength
  }

  setTimeout(): this {
    return this
  }

  setNoDelay(): this {
    return this
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.#end.send(chunk, chunk.length, () => {
      this.#takenBytes += chunk.length
      done()
    })
  }

  override _final(done: () => void): void {
    this.#end.close()
    done()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#end.close()
    done(error)
  }
}
