/** A load generator that costs little: prepared requests over kept connections, one under way on each. */

import { connect, type Socket } from 'node:net'
import { quantile } from './table.ts'

export interface LoadResult {
  readonly answers: number
  readonly seconds: number
  /** Answers by status. */
  readonly statuses: Readonly<Record<string, number>>
  readonly p50Ms: number
  readonly p99Ms: number
}

/** One connection, for one request at a time. */
export class KeptConnection {
  readonly #socket: Socket
  #received = ''
  #answered: { readonly resolve: (status: string) => void; readonly reject: (error: Error) => void } | undefined

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('latin1')
    socket.on('data', (chunk: string) => {
      this.#received += chunk
      const head = this.#received.indexOf('\r\n\r\n')
      if (head < 0) return
      const length = Number(/\r\ncontent-length: (\d+)/i.exec(this.#received)?.[1] ?? 0)
      if (this.#received.length < head + 4 + length) return
      const status = this.#received.slice(9, 12)
      this.#received = ''
      this.#answered?.resolve(status)
    })
    socket.on('error', (error) => this.#answered?.reject(error))
    socket.on('close', () => this.#answered?.reject(new Error('the server closed the connection')))
  }

  static open(port: number): Promise<KeptConnection> {
    return new Promise((resolve, reject) => {
      const socket = connect({ host: '127.0.0.1', port, noDelay: true })
      socket.once('error', reject)
      socket.once('connect', () => resolve(new KeptConnection(socket)))
    })
  }

  /** @returns the status of the answer */
  ask(bytes: string): Promise<string> {
    return new Promise((resolve, reject) => {
      this.#answered = { resolve, reject }
      this.#socket.write(bytes)
    })
  }

  close(): void {
    this.#answered = undefined
    this.#socket.end()
  }
}

/**
 * Sends requests until so many seconds have passed or so many were sent.
 * @param next the bytes of the next request
 */
export async function load(
  port: number,
  options: { connections: number; seconds?: number; requests?: number; next: () => string },
): Promise<LoadResult> {
  const statuses: Record<string, number> = {}
  const timesMs: number[] = []
  const startMs = performance.now()
  const endMs = startMs + (options.seconds ?? Infinity) * 1000
  let left = options.requests ?? Infinity
  await Promise.all(
    Array.from({ length: options.connections }, async () => {
      const connection = await KeptConnection.open(port)
      for (let sentMs = performance.now(); sentMs < endMs && left-- > 0; sentMs = performance.now()) {
        const status = await connection.ask(options.next())
        timesMs.push(performance.now() - sentMs)
        statuses[status] = (statuses[status] ?? 0) + 1
      }
      connection.close()
    }),
  )
  return {
    answers: timesMs.length,
    seconds: (performance.now() - startMs) / 1000,
    statuses,
    p50Ms: quantile(timesMs, 0.5),
    p99Ms: quantile(timesMs, 0.99),
  }
}

/** The bytes of one JSON request. */
export function request(method: string, target: string, body: unknown): string {
  const text = JSON.stringify(body)
  return (
    `${method} ${target} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n` +
    `content-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
  )
}
