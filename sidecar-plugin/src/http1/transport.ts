import { Socket } from 'node:net'
import { selfConnection } from '../self-connection.ts'

/** What a transport tells its owner. */
export interface TransportOwner {
  /**
   * Bytes have arrived: the first `length` of `bytes`, whose memory belongs to the owner until the call returns, and
   * when it returns false, until it calls {@link Transport.resume}.
   * @returns false to read no more until then
   */
  received(bytes: Buffer, length: number): boolean
  /** The other side has sent all it had to say. It may still listen. */
  ended(): void
  /** What {@link Transport.write} could not hand over at once has left. */
  drained(): void
  /** Once, and the last call. @param error why, unless both sides had ended */
  closed(error: NodeJS.ErrnoException | undefined): void
}

/** Of one read. Smaller costs a system call more often, larger does not fit the processor's cache. */
const READ_BYTES = 65_536

/** Every connection reads into this, unless much comes at once: an idle one holds no buffer of its own. */
const SHARED = Buffer.allocUnsafeSlow(READ_BYTES)

/** Buffers of connections on which much comes at once, all together; past this many they share the one and copy. */
const OWN_BUFFERS = 64

/**
 * What is written as a string, with what stands around it: the system gets it from the stack then, where a buffer has to
 * be made first, and one small write is cheaper than three gathered ones.
 */
export const COPIED_BYTES = 16_384

/** Takes what nobody reads any more. */
const DROPPED = Buffer.allocUnsafeSlow(4_096)

const free: Buffer[] = []
let lent = 0

/** A socket whose listeners need no closure each: there are thousands of these. */
class OwnedSocket extends Socket {
  transport!: Transport
}

interface Handed {
  _handle: object | null
}

/**
 * A TCP connection without stream machinery on its reading side. What arrives is handed over in the turn in which it
 * was read; what must outlive the turn is copied by whoever keeps it.
 *
 * Where a read fills the shared buffer, the connection gets one of its own for as long as that goes on: large bodies
 * then pass without a copy.
 */
export class Transport {
  readonly #socket: OwnedSocket
  #owner: TransportOwner
  #error: NodeJS.ErrnoException | undefined
  #own: Buffer | undefined
  #lastRead = 0
  #isPaused = false
  #isClosed = false

  private constructor(owner: TransportOwner, handle?: object) {
    this.#owner = owner
    const socket = new OwnedSocket({
      ...(handle && { handle }),
      // A side that has said all may still wait for the answer.
      allowHalfOpen: true,
      noDelay: true,
      // So that `write` says whether all of it has left.
      writableHighWaterMark: 0,
      onread: {
        buffer: () => this.#nextBuffer(),
        callback: (length: number, bytes: Buffer) => this.#read(length, bytes),
      },
    } as ConstructorParameters<typeof Socket>[0])
    socket.transport = this
    this.#socket = socket
    socket.on('end', onEnd)
    socket.on('drain', onDrain)
    socket.on('error', onError)
    socket.on('close', onClose)
  }

  /**
   * Takes over a connection from a server with `pauseOnConnect`, which cannot be told how to read.
   * @returns undefined when it has closed already
   */
  static accept(socket: Socket, owner: TransportOwner): Transport | undefined {
    const accepted = socket as unknown as Handed
    const handle = accepted._handle
    if (handle === null) return undefined
    accepted._handle = null
    return new Transport(owner, handle)
  }

  /** @param connected called once it stands; when it never does, the owner is told that it closed */
  static connect(host: string, port: number, owner: TransportOwner, connected: () => void): Transport {
    const transport = new Transport(owner)
    const socket = transport.#socket
    socket.connect({ host, port }, () => {
      const refused = selfConnection(socket)
      if (refused) socket.destroy(refused)
      else connected()
    })
    return transport
  }

  /**
   * Gives the connection away. The owner hears nothing more of it.
   * @param read what has been read of it already, for whom it is given to
   * @returns undefined when it has closed
   */
  release(read: Buffer): Socket | undefined {
    const released = this.#socket as unknown as Handed
    const handle = released._handle
    if (this.isClosed || handle === null) return undefined
    released._handle = null
    this.#isClosed = true
    this.#giveBack()
    // The handle goes on reading into the shared buffer where it is not given another. Whoever takes the connection reads
    // by itself; what arrives when it does no more is dropped.
    const onread = { buffer: DROPPED, callback: () => true }
    const socket = new Socket({ handle, allowHalfOpen: false, noDelay: true, onread } as ConstructorParameters<
      typeof Socket
    >[0])
    socket.unshift(read)
    return socket
  }

  /** Gives it to somebody else, who is told of everything from now on. */
  transfer(owner: TransportOwner): void {
    this.#owner = owner
  }

  /** Has the system ask whether the other side is still there, after so long without a byte. */
  keepAlive(ms: number): void {
    this.#socket.setKeepAlive(true, ms)
  }

  get remoteAddress(): string {
    return this.#socket.remoteAddress ?? ''
  }

  get isClosed(): boolean {
    return this.#isClosed || this.#socket.destroyed
  }

  /** Whether something was written that the system has not taken yet. */
  get isFull(): boolean {
    return this.#socket.writableLength > 0
  }

  /**
   * @param data text in latin1, or bytes, whose memory may be used again at once when it returns true
   * @returns whether all of it has left; if not, the owner is told once it has
   */
  write(data: string | Buffer): boolean {
    if (this.isClosed) return true
    if (typeof data === 'string') return this.#socket.write(data, 'latin1')
    if (data.length <= COPIED_BYTES) return this.#socket.write(data.toString('latin1'), 'latin1')
    return this.#socket.write(data.buffer === SHARED.buffer ? Buffer.from(data) : data)
  }

  /** Bytes with text in latin1 before and after them, in one write. @returns as {@link write} */
  writeFramed(before: string, bytes: Buffer, after: string): boolean {
    if (this.isClosed) return true
    if (bytes.length <= COPIED_BYTES) return this.#socket.write(before + bytes.toString('latin1') + after, 'latin1')
    this.#socket.cork()
    this.#socket.write(before, 'latin1')
    this.write(bytes)
    if (after !== '') this.#socket.write(after, 'latin1')
    this.#socket.uncork()
    return !this.isFull
  }

  pause(): void {
    if (this.#isPaused || this.isClosed) return
    this.#isPaused = true
    this.#socket.pause()
  }

  resume(): void {
    if (!this.#isPaused || this.isClosed) return
    this.#isPaused = false
    this.#socket.resume()
  }

  /** Says that nothing more is to come. */
  end(): void {
    if (!this.isClosed) this.#socket.end()
  }

  destroy(): void {
    this.#socket.destroy()
  }

  /** Breaks it off so that the other side cannot take it for a regular end. */
  reset(): void {
    // The socket's own resetAndDestroy says a polite goodbye first, which looks like just that.
    if (!this.#socket.connecting) (this.#socket as unknown as { resetAndClosing: boolean }).resetAndClosing = true
    this.#socket.destroy()
  }

  #read(length: number, bytes: Buffer): boolean {
    this.#lastRead = length
    // What a socket that is being destroyed had read already is nobody's any more.
    const goesOn = this.isClosed || this.#owner.received(bytes, length)
    if (!goesOn) this.#isPaused = true
    return goesOn
  }

  /** Asked before the first read, and after each. @returns undefined to go on with the same */
  #nextBuffer(): Buffer | undefined {
    if (this.#lastRead === 0) return SHARED
    if (this.#own === undefined) {
      if (this.#lastRead < READ_BYTES || lent >= OWN_BUFFERS) return undefined
      lent++
      return (this.#own = free.pop() ?? Buffer.allocUnsafeSlow(READ_BYTES))
    }
    // While it is paused, somebody still reads from it.
    if (this.#lastRead === READ_BYTES || this.#isPaused) return undefined
    this.#giveBack()
    return SHARED
  }

  #giveBack(): void {
    if (this.#own === undefined) return
    lent--
    free.push(this.#own)
    this.#own = undefined
  }

  /** @internal */
  onEnd(): void {
    this.#owner.ended()
  }

  /** @internal */
  onDrain(): void {
    this.#owner.drained()
  }

  /** @internal */
  onError(error: NodeJS.ErrnoException): void {
    this.#error = error
  }

  /** @internal */
  onClose(): void {
    this.#isClosed = true
    // What was read into it may wait in the write queue of another connection: it is left to the collector then.
    if (!this.#isPaused) this.#giveBack()
    else if (this.#own) lent--
    this.#own = undefined
    this.#owner.closed(this.#error)
  }
}

function onEnd(this: OwnedSocket): void {
  this.transport.onEnd()
}
function onDrain(this: OwnedSocket): void {
  this.transport.onDrain()
}
function onError(this: OwnedSocket, error: Error): void {
  this.transport.onError(error)
}
function onClose(this: OwnedSocket): void {
  this.transport.onClose()
}
