/** A load generator that costs little: prepared requests over kept connections, one under way on each. */

import { connect, type Socket } from 'node:net'

export interface LoadResult {
  readonly answers: number
  readonly seconds: number
  /** Answers by status. */
  readonly statuses: Readonly<Record<string, number>>
  readonly p50Ms: number
  readonly p99Ms: number
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
  let answers = 0
  const startMs = performance.now()
  const endMs = startMs + (options.seconds ?? Infinity) * 1000
  let left = options.requests ?? Infinity
  await Promise.all(
    Array.from({ length: options.connections }, () => {
      const socket: Socket = connect({ host: '127.0.0.1', port, noDelay: true })
      return new Promise<void>((resolve, reject) => {
        let received = ''
        let sentMs = 0
        const send = () => {
          sentMs = performance.now()
          if (sentMs >= endMs || left-- <= 0) {
            socket.end()
            return resolve()
          }
          socket.write(options.next())
        }
        socket.setEncoding('latin1')
        socket.once('connect', send)
        socket.once('error', reject)
        socket.on('data', (chunk: string) => {
          received += chunk
          const head = received.indexOf('\r\n\r\n')
          if (head < 0) return
          const length = Number(/\r\ncontent-length: (\d+)/i.exec(received)?.[1] ?? 0)
          if (received.length < head + 4 + length) return
          const status = received.slice(9, 12)
          statuses[status] = (statuses[status] ?? 0) + 1
          answers++
          timesMs.push(performance.now() - sentMs)
          received = ''
          send()
        })
      })
    }),
  )
  timesMs.sort((a, b) => a - b)
  const at = (share: number) => timesMs[Math.floor(timesMs.length * share)] ?? NaN
  return { answers, seconds: (performance.now() - startMs) / 1000, statuses, p50Ms: at(0.5), p99Ms: at(0.99) }
}

/** The bytes of one JSON request. */
export function request(method: string, target: string, body: unknown): string {
  const text = JSON.stringify(body)
  return (
    `${method} ${target} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n` +
    `content-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
  )
}
