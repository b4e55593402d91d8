import type { Socket } from 'node:net'
import type { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import type { Content, Sink } from '../layer.ts'
import { Transport, type TransportOwner } from '../http1/transport.ts'

/** Whoever holds a {@link TcpStream}. */
export interface TcpStreamHost {
  /** Bytes have been read from the other side or taken by it, or it has said that no more will come. */
  moved?(read: number, written: number): void
  /** What it means that the connection broke. */
  failure(cause: NodeJS.ErrnoException | undefined): SidecarError
  /** Once, and the last call. @param failure undefined when both sides had said all */
  closed(failure: SidecarError | undefined): void
}

/** A connection that somebody else has read from. */
export interface Adopted {
  readonly transport: Transport
  /** What was read, and is nobody's yet. */
  readonly first: Buffer
  /** Whether the other side has said that no more will come. */
  readonly hasEnded: boolean
}

/**
 * One TCP connection as content, which is what arrives on it, and as a sink, which is what leaves by it. Two of them
 * that pour into each other are a relay: each side waits for the other, ends on its own, and breaks with the other.
 *
 * Nothing is read before somebody takes it but one piece, by which it is known that the other side has spoken, or
 * gone. What waits in this process is that, or one piece that the other side is slow to take.
 */
export class TcpStream implements TransportOwner, Content, Sink {
  readonly length = undefined
  readonly repeatable = false
  readonly #host: TcpStreamHost
  #transport!: Transport
  #sink: Sink | undefined
  #source: Content | undefined
  /** Read before there was a sink. */
  #stash: Buffer | undefined
  #hasEnded = false
  #isEnding = false
  #failure: SidecarError | undefined
  #written = 0
  #hasSpoken = false

  private constructor(host: TcpStreamHost) {
    this.#host = host
  }

  /** @returns undefined when it has closed already */
  static accept(socket: Socket, host: TcpStreamHost): TcpStream | undefined {
    const stream = new TcpStream(host)
    const transport = Transport.accept(socket, stream)
    if (transport === undefined) return undefined
    stream.#transport = transport
    return stream
  }

  /** @param connected called once it stands; when it never does, the host is told that it closed */
  static connect(host: string, port: number, owner: TcpStreamHost, connected: () => void): TcpStream {
    const stream = new TcpStream(owner)
    stream.#transport = Transport.connect(host, port, stream, connected)
    return stream
  }

  /** Of one that somebody else has read from until now. */
  static adopt({ transport, first, hasEnded }: Adopted, host: TcpStreamHost): TcpStream {
    const stream = new TcpStream(host)
    stream.#transport = transport
    stream.#stash = first.length > 0 ? first : undefined
    stream.#hasEnded = hasEnded
    transport.transfer(stream)
    if (first.length > 0) host.moved?.(first.length, 0)
    return stream
  }

  get peer(): string {
    return this.#transport.remoteAddress
  }

  /** Has the system ask now and then whether the other side is still there. */
  keepAlive(ms: number): void {
    this.#transport.keepAlive(ms)
  }

  /** Whether anything was written to it. */
  get hasSpoken(): boolean {
    return this.#hasSpoken
  }

  /** Says from now on by this connection what comes from there. */
  take(source: Content): void {
    this.#source = source
    source.pour(this)
  }

  // As content.

  pour(sink: Sink): void {
    this.#sink = sink
    const stash = this.#stash
    this.#stash = undefined
    const goesOn = stash === undefined || sink.write(stash)
    if (this.#hasEnded) sink.end(Fields.NONE)
    else if (goesOn) this.#transport.resume()
  }

  resume(): void {
    this.#transport.resume()
  }

  cancel(): void {
    this.#transport.reset()
  }

  // As a sink.

  write(piece: Buffer): boolean {
    if (this.#isEnding) return true
    this.#hasSpoken = true
    this.#written += piece.length
    if (!this.#transport.write(piece)) return false
    this.#left()
    return true
  }

  end(): void {
    if (this.#isEnding) return
    this.#isEnding = true
    this.#transport.end()
  }

  fail(error: SidecarError): void {
    this.#failure ??= error
    this.#transport.reset()
  }

  /** Says to both sides that nothing more is to come, and leaves it to them to close. @param why what its host is told */
  leave(why: SidecarError | undefined): void {
    this.#failure ??= why
    this.#sink?.end(Fields.NONE)
    this.end()
    // Bytes that nobody has read turn a regular end into a reset.
    if (this.#sink === undefined) this.pour(NOBODY)
  }

  // What its transport tells it.

  received(bytes: Buffer, length: number): boolean {
    this.#host.moved?.(length, 0)
    const piece = bytes.subarray(0, length)
    if (this.#sink) return this.#sink.write(piece)
    this.#stash = this.#stash ? Buffer.concat([this.#stash, piece]) : Buffer.from(piece)
    return false
  }

  ended(): void {
    this.#host.moved?.(0, 0)
    this.#hasEnded = true
    this.#sink?.end(Fields.NONE)
  }

  drained(): void {
    this.#left()
    this.#source?.resume()
  }

  closed(cause: NodeJS.ErrnoException | undefined): void {
    const isRegular = cause === undefined && this.#hasEnded && this.#isEnding
    const failure = this.#failure ?? (isRegular ? undefined : this.#host.failure(cause))
    if (failure) {
      if (!this.#hasEnded) this.#sink?.fail(failure)
      this.#source?.cancel()
    }
    this.#stash = undefined
    this.#host.closed(failure)
  }

  #left(): void {
    if (this.#written > 0) this.#host.moved?.(0, this.#written)
    this.#written = 0
  }
}

const NOBODY: Sink = { write: () => true, end: () => {}, fail: () => {} }
