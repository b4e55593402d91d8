/** Load on a proxy: as much as it takes, by wrk, and a steady rate, by connections of our own. */

import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { Caller } from './caller.ts'
import type { PacerReport } from './pacer.ts'
import { directory, LOAD_CORE, wrkProgram } from './programs.ts'

const execute = promisify(execFile)
const PACER = fileURLToPath(new URL('./pacer.ts', import.meta.url))

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

/** What a steady rate met, in milliseconds from when each request was due. */
export interface Paced {
  /** Requests per second that were sent: what was wished, or as much less as the load itself can send on time. */
  readonly perSecond: number
  readonly p50: number
  readonly p99: number
  readonly p999: number
}

/** A steady rate, whatever the answers do, from a process on the core of the load. */
export async function steady(port: number, request: Request, perSecond: number, seconds: number): Promise<Paced> {
  for (let rate = perSecond; ; rate *= 0.8) {
    const { stdout } = await execute('taskset', [
      ...['-c', String(LOAD_CORE), process.execPath, '--import', 'tsx', PACER],
      JSON.stringify({ port, bytes: bytesOf(request), perSecond: rate, seconds }),
    ])
    const { busy, ...paced } = JSON.parse(stdout) as PacerReport
    // With less to spare it is its own queue that is measured.
    if (busy < 0.75) return { ...paced, perSecond: rate }
  }
}

function bytesOf({ method, path: target, content }: Request): string {
  const length = content === '' ? '' : `Content-Length: ${content.length}\r\n`
  return `${method} ${target} HTTP/1.1\r\nHost: ${HOST}\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n${length}\r\n${content}`
}

/** Opens connections that make one request each and then wait. */
export async function idle(port: number, request: Request, connections: number): Promise<() => void> {
  const open: Caller[] = []
  while (open.length < connections)
    await Promise.all(
      Array.from(
        { length: Math.min(50, connections - open.length) },
        () =>
          new Promise<void>((resolve) => {
            const caller = new Caller(port, bytesOf(request), () => resolve())
            open.push(caller)
            caller.ask(0)
          }),
      ),
    )
  return () => {
    for (const caller of open) caller.close()
  }
}
