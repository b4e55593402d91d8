import type { Socket } from 'node:net'
import type { Clock } from '@holdfast/registry-client/clock'
import { SidecarError } from '../errors.ts'
import { Transport, type TransportOwner } from '../http1/transport.ts'
import { discard, endExchange, Whole, type Exchange, type Reply } from '../layer.ts'
import { PeekedContent } from './peeked-content.ts'
import { ProtocolDetector } from './protocol-detector.ts'
import { TcpConnection, type TcpConnectionHost } from './tcp-connection.ts'

/** An exchange on its way to its answer. */
export interface Begun {
  readonly exchange: Exchange
  readonly reply: Promise<Reply>
}

/**
 * Takes over a connection whose client speaks HTTP, of version 1 or 2.
 * @param first what has been read of it
 * @returns false to read no more of it until it is asked for
 */
export type TakeHttp = (transport: Transport, first: Buffer) => boolean

/** The side that accepts connections. */
export interface DetectionHost extends TcpConnectionHost {
  /** Opens the way to where the connection would go. */
  begin(peer: string): Begun
  /** It is a relay from now on. */
  relayed(connection: TcpConnection, begun: Begun, detection: Detection): void
  closed(connection: TcpConnection | Detection, reason: string | undefined): void
}

/**
 * A connection of which it is not known yet what it carries. Its destination is connected to as soon as it is clear
 * that its client has not spoken first: which of both does, only the protocol knows. What is read is kept until one of
 * these is sure:
 *
 * - its client speaks HTTP: it is handed over, and the way that was opened is given up unused;
 * - its client speaks something else, has said all, or takes too long with what might be HTTP; or the server has
 *   spoken: it is a relay.
 */
export class Detection implements TransportOwner {
  readonly #host: DetectionHost
  readonly #takeHttp: TakeHttp
  readonly #transport: Transport | undefined
  readonly #detector = new ProtocolDetector()
  readonly #clock: Clock
  readonly #limitMs: number
  #cancelLimit: () => void = () => {}
  #read: Buffer[] = []
  #begun: Begun | undefined
  #hasEnded = false
  #isOver = false
  #failure: SidecarError | undefined
  readonly #sinceMs: number

  constructor(socket: Socket, host: DetectionHost, limitMs: number, clock: Clock, takeHttp: TakeHttp) {
    this.#host = host
    this.#takeHttp = takeHttp
    this.#clock = clock
    this.#limitMs = limitMs
    this.#sinceMs = host.nowMs
    this.#transport = Transport.accept(socket, this)
    // What had arrived with the connection has been read once the event loop has come round.
    if (this.#transport) setImmediate(() => setImmediate(() => this.#open()))
  }

  /** Whether the connection had gone before it could be accepted. */
  get isVoid(): boolean {
    return this.#transport === undefined
  }

  /** Leaves one on which nobody speaks to the limits of a relay. To be called now and then. */
  check(nowMs: number): void {
    if (nowMs - this.#sinceMs >= this.#host.limits.idleMs) this.#relay()
  }

  cut(error: SidecarError): void {
    this.#failure = error
    this.#transport!.reset()
  }

  // What its transport tells it.

  received(bytes: Buffer, length: number): boolean {
    const piece = bytes.subarray(0, length)
    if (this.#read.length === 0) this.#limit()
    const detected = this.#detector.push(piece)
    if (detected === undefined) {
      this.#read.push(Buffer.from(piece))
      return true
    }
    if (detected.protocol === 'http1' || detected.protocol === 'http2') {
      const first = this.#read.length === 0 ? piece : Buffer.concat([...this.#read, piece])
      this.#finish()
      this.#giveUp()
      return this.#takeHttp(this.#transport!, first)
    }
    this.#read.push(Buffer.from(piece))
    this.#relay()
    return false
  }

  ended(): void {
    this.#hasEnded = true
    this.#relay()
  }

  drained(): void {}

  closed(cause: NodeJS.ErrnoException | undefined): void {
    if (this.#isOver) return
    const error =
      this.#failure ??
      new SidecarError('caller_gone', `the caller broke its connection: ${cause?.code ?? 'closed'}`, { cause })
    this.#isOver = true
    this.#cancelLimit()
    if (this.#begun) endExchange(this.#begun.exchange, error, 0)
    this.#host.closed(this, error.reason)
  }

  #open(): void {
    if (this.#isOver) return
    const { exchange, reply } = this.#host.begin(this.#transport!.remoteAddress)
    this.#begun = { exchange, reply: reply.then((answer) => this.#peek(answer)) }
    // It is the relay that tells of a failure. Those who speak HTTP may have another way.
    this.#begun.reply.then(
      (answer) => {
        if (answer.tunnel === undefined) this.#limit()
      },
      () => this.#limit(),
    )
  }

  #limit(): void {
    this.#cancelLimit()
    if (!this.#isOver) this.#cancelLimit = this.#clock.after(this.#limitMs, () => this.#relay())
  }

  /** The server may be the one who speaks first. */
  #peek(reply: Reply): Reply {
    if (this.#isOver || reply.tunnel === undefined || reply.body === undefined || reply.body instanceof Whole)
      return reply
    return { ...reply, body: new PeekedContent(reply.body, () => this.#relay()) }
  }

  #relay(): void {
    if (this.#isOver) return
    this.#finish()
    const begun = this.#begun ?? this.#host.begin(this.#transport!.remoteAddress)
    const adopted = { transport: this.#transport!, first: Buffer.concat(this.#read), hasEnded: this.#hasEnded }
    this.#host.relayed(new TcpConnection(adopted, this.#host), begun, this)
  }

  #finish(): void {
    this.#isOver = true
    this.#cancelLimit()
  }

  #giveUp(): void {
    this.#host.closed(this, undefined)
    if (this.#begun === undefined) return
    const { exchange, reply } = this.#begun
    endExchange(exchange, undefined, 0)
    void reply.then(discard, () => {})
  }
}
