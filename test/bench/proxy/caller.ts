import { connect, type Socket } from 'node:net'

const HEAD_END = '\r\n\r\n'
const LENGTH = /\r\ncontent-length: (\d+)/i

/** One connection with one request at a time. Its own cost must be small beside that of what it measures. */
export class Caller {
  readonly #socket: Socket
  readonly #bytes: Buffer
  readonly #onAnswer: (caller: Caller, dueMs: number) => void
  /** Of the answer's content; undefined until its head has been read. */
  #left: number | undefined
  #head = ''
  #dueMs = 0

  /** @param bytes of each request */
  constructor(port: number, bytes: string, onAnswer: (caller: Caller, dueMs: number) => void) {
    this.#bytes = Buffer.from(bytes)
    this.#onAnswer = onAnswer
    const buffer = Buffer.allocUnsafe(65_536)
    const callback = (size: number) => this.#read(buffer, size)
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true, onread: { buffer, callback } })
    this.#socket.on('error', () => {})
  }

  /** @param dueMs when it should have been sent: waiting for a free connection counts */
  ask(dueMs: number): void {
    this.#dueMs = dueMs
    this.#socket.write(this.#bytes)
  }

  close(): void {
    this.#socket.destroy()
  }

  #read(buffer: Buffer, size: number): boolean {
    let content = size
    if (this.#left === undefined) {
      // Heads come in one piece, nearly always.
      this.#head += buffer.toString('latin1', 0, Math.min(size, 4_096))
      const end = this.#head.indexOf(HEAD_END)
      if (end < 0) return true
      const length = LENGTH.exec(this.#head.slice(0, end))
      if (!length) throw new Error(`an answer without a length: ${this.#head.slice(0, end)}`)
      this.#left = Number(length[1])
      content -= end + HEAD_END.length
      this.#head = ''
    }
    this.#left -= content
    if (this.#left > 0) return true
    this.#left = undefined
    this.#onAnswer(this, this.#dueMs)
    return true
  }
}
