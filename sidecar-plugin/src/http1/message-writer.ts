import { SidecarError } from '../errors.ts'
import type { Fields } from '../fields.ts'
import type { Content, Sink } from '../layer.ts'
import type { Transport } from './transport.ts'

/** How content is delimited on its way out. */
export type OutgoingFraming = 'length' | 'chunked' | 'until_close'

export interface WriterOwner {
  /** Some of it has left at once, so that the transport has nothing to tell of it. */
  moved(): void
  /** All of the message has left. */
  wrote(): void
  /** Its content broke off, or is not what the head promised. */
  broke(error: SidecarError): void
}

/** Writes one message whose content arrives in pieces. The head goes with the first of them, if that is there already. */
export class MessageWriter implements Sink {
  readonly #transport: Transport
  readonly #owner: WriterOwner
  readonly #content: Content
  readonly #framing: OutgoingFraming
  #head: string
  #isEnded = false
  #isOver = false
  #bytes = 0

  constructor(transport: Transport, owner: WriterOwner, head: string, framing: OutgoingFraming, content: Content) {
    this.#transport = transport
    this.#owner = owner
    this.#head = head
    this.#framing = framing
    this.#content = content
  }

  /** Of content, without its framing. */
  get bytes(): number {
    return this.#bytes
  }

  /** Whether the message has left, or never will. */
  get isOver(): boolean {
    return this.#isOver
  }

  start(): void {
    this.#content.pour(this)
    this.flush()
  }

  /** Sends the head, if it still waits for content to go with. */
  flush(): void {
    if (this.#head === '' || this.#isOver) return
    const head = this.#head
    this.#head = ''
    if (this.#transport.write(head)) this.#owner.moved()
  }

  /** Gives up: nothing more is written. */
  stop(): void {
    if (this.#isOver) return
    this.#isOver = true
    if (!this.#isEnded) this.#content.cancel()
  }

  /** To be told by the transport's owner. */
  drained(): void {
    if (this.#isOver) return
    if (this.#isEnded) this.#finish()
    else this.#content.resume()
  }

  write(piece: Buffer): boolean {
    if (this.#isOver || piece.length === 0) return true
    this.#bytes += piece.length
    if (this.#framing === 'length' && this.#bytes > this.#content.length!) {
      this.fail(new SidecarError('internal_error', 'more content than its length', { delivered: true }))
      return true
    }
    const hasLeft = this.#send(piece)
    if (hasLeft) this.#owner.moved()
    return hasLeft
  }

  end(trailers: Fields): void {
    if (this.#isOver) return
    if (this.#framing === 'length' && this.#bytes < this.#content.length!)
      return this.fail(new SidecarError('internal_error', 'less content than its length', { delivered: true }))
    this.#isEnded = true
    if (this.#framing === 'chunked') {
      const head = this.#head
      this.#head = ''
      this.#transport.write(`${head}0\r\n${trailers.lines}\r\n`)
    } else this.flush()
    if (!this.#transport.isFull) this.#finish()
  }

  fail(error: SidecarError): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#owner.broke(error)
  }

  #finish(): void {
    this.#isOver = true
    this.#owner.wrote()
  }

  #send(piece: Buffer): boolean {
    const head = this.#head
    this.#head = ''
    if (this.#framing === 'chunked')
      return this.#transport.writeFramed(`${head}${piece.length.toString(16)}\r\n`, piece, '\r\n')
    return head === '' ? this.#transport.write(piece) : this.#transport.writeFramed(head, piece, '')
  }
}
