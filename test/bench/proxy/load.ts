/** Load on a proxy: as much as it takes, by wrk, and a steady rate, by sockets of our own. */

import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { promisify } from 'node:util'
import { quantile } from '../table.ts'
import { directory, LOAD_CORE, wrkProgram } from './programs.ts'

const execute = promisify(execFile)

export interface Request {
  readonly name: string
  readonly method: string
  readonly path: string
  readonly content: string
}

export const HOST = 'stock'

/** So many connections at once, each with one request under way. @returns answers, and seconds that it took */
export async function saturate(
  port: number,
  request: Request,
  connections: number,
  seconds: number,
): Promise<{ answers: number; seconds: number; errors: string | undefined }> {
  const at = directory()
  const script = `${at}/request.lua`
  writeFileSync(
    script,
    `wrk.method = "${request.method}"\nwrk.body = "${request.content}"\nwrk.headers["Host"] = "${HOST}"\n` +
      'wrk.headers["User-Agent"] = "bench/1.0"\nwrk.headers["Accept"] = "*/*"\n',
  )
  const { stdout } = await execute('taskset', [
    ...['-c', String(LOAD_CORE), await wrkProgram(), '-t', '1', '-c', String(connections), '-d', `${seconds}s`],
    ...['-s', script, `http://127.0.0.1:${port}${request.path}`],
  ])
  const [, answers, took] = /(\d+) requests in ([\d.]+)s/.exec(stdout) ?? []
  return { answers: Number(answers), seconds: Number(took), errors: /Non-2xx.*|Socket errors.*/.exec(stdout)?.[0] }
}

/** One connection that counts answers of a known length. */
class Asking {
  readonly #socket: Socket
  readonly #bytes: string
  readonly #onAnswer: (tookMs: number) => void
  #left = -1
  #text = ''
  #sentMs = 0
  isBusy = false

  constructor(port: number, bytes: string, onAnswer: (tookMs: number) => void) {
    this.#bytes = bytes
    this.#onAnswer = onAnswer
    this.#socket = connect({ port, host: '127.0.0.1', noDelay: true })
    this.#socket.on('error', () => {})
    this.#socket.on('data', (chunk: Buffer) => this.#read(chunk))
  }

  /** @param dueMs when it should have been sent: waiting for a free connection counts */
  ask(dueMs: number): void {
    this.isBusy = true
    this.#sentMs = dueMs
    this.#socket.write(this.#bytes)
  }

  close(): void {
    this.#socket.destroy()
  }

  #read(chunk: Buffer): void {
    let { length } = chunk
    if (this.#left < 0) {
      this.#text += chunk.toString('latin1', 0, Math.min(length, 4_096))
      const head = this.#text.indexOf('\r\n\r\n')
      if (head < 0) return
      length -= head + 4
      this.#left = Number(/content-length: (\d+)/i.exec(this.#text)?.[1] ?? 0)
      this.#text = ''
    }
    this.#left -= length
    if (this.#left > 0) return
    this.#left = -1
    this.isBusy = false
    this.#onAnswer(performance.now() - this.#sentMs)
  }
}

/** A steady rate, whatever the answers do. @returns milliseconds, from when each request was due */
export async function steady(
  port: number,
  request: Request,
  perSecond: number,
  seconds: number,
): Promise<{ p50: number; p99: number; p999: number }> {
  const length = request.content === '' ? '' : `Content-Length: ${request.content.length}\r\n`
  const head = `${request.method} ${request.path} HTTP/1.1\r\nHost: ${HOST}\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n${length}\r\n`
  const tookMs: number[] = []
  const due: number[] = []
  const free: Asking[] = []
  const all = Array.from({ length: 64 }, () => {
    const asking: Asking = new Asking(port, head + request.content, (ms) => {
      tookMs.push(ms)
      const next = due.shift()
      if (next === undefined) free.push(asking)
      else asking.ask(next)
    })
    return asking
  })
  free.push(...all)
  const startMs = performance.now()
  let sent = 0
  await new Promise<void>((resolve) => {
    const tick = () => {
      const elapsed = performance.now() - startMs
      if (elapsed > seconds * 1_000) return resolve()
      for (; sent < (elapsed / 1_000) * perSecond; sent++) {
        const dueMs = startMs + (sent / perSecond) * 1_000
        const asking = free.pop()
        if (asking) asking.ask(dueMs)
        else due.push(dueMs)
      }
      setImmediate(tick)
    }
    tick()
  })
  for (const asking of all) asking.close()
  return { p50: quantile(tookMs, 0.5), p99: quantile(tookMs, 0.99), p999: quantile(tookMs, 0.999) }
}

/** Opens connections that make one request each and then wait. */
export async function idle(port: number, request: Request, connections: number): Promise<() => void> {
  const open: Asking[] = []
  const head = `${request.method} ${request.path} HTTP/1.1\r\nHost: ${HOST}\r\n\r\n`
  while (open.length < connections)
    await Promise.all(
      Array.from(
        { length: Math.min(50, connections - open.length) },
        () =>
          new Promise<void>((resolve) => {
            const asking = new Asking(port, head, () => resolve())
            open.push(asking)
            asking.ask(performance.now())
          }),
      ),
    )
  return () => {
    for (const asking of open) asking.close()
  }
}
