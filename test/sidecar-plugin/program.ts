/** The program as people start it. */

import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { RawCaller } from './fakes.ts'

const PROGRAM = fileURLToPath(new URL('../../sidecar-plugin/bin/holdfast-sidecar.js', import.meta.url))
/** Nothing listens on the discard port: the registry is down. */
export const NO_REGISTRY = ['--registry', 'http://127.0.0.1:9']

/** @param options `ownGroup`: of processes, so that all of it can be signalled */
export function run(t: TestContext, argv: string[], options: { ownGroup?: boolean; env?: object } = {}) {
  const child: ChildProcess = spawn(process.execPath, [PROGRAM, ...argv], {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: options.ownGroup ?? false,
    env: { ...process.env, ...options.env },
  })
  t.after(() => child.kill('SIGKILL'))
  const heard = { out: '', error: '' }
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (heard.out += text))
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (heard.error += text))
  const ended = once(child, 'close').then(([code]) => code as number | null)
  return { child, heard, ended }
}

export async function ready(
  t: TestContext,
  argv: string[] = [],
  options: { ownGroup?: boolean; env?: object; ports?: { admin: number; outbound: number; inbound: number } } = {},
) {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const { admin = 0, outbound = 0, inbound = 0 } = options.ports ?? {}
  const ports = ['--admin-port', `${admin}`, '--outbound-port', `${outbound}`, '--inbound-port', `${inbound}`]
  const settings = [...ports, '--cache-dir', directory, ...argv]
  if (!argv.includes('--registry')) settings.push(...NO_REGISTRY)
  if (!argv.includes('--drain-settle')) settings.push('--drain-settle', '0ms')
  const program = run(t, settings, options)
  const line =
    /^holdfast-sidecar ready: admin http:\/\/127\.0\.0\.1:(\d+), outbound http:\/\/127\.0\.0\.1:(\d+), inbound http:\/\/127\.0\.0\.1:(\d+)/m
  let isOver = false
  void program.ended.then(() => (isOver = true))
  while (!line.test(program.heard.out)) {
    if (isOver) throw new Error(`it ended before it was ready: ${program.heard.error}`)
    await Promise.race([once(program.child.stdout!, 'data'), program.ended])
  }
  const taken = line.exec(program.heard.out)!.slice(1).map(Number) as [number, number, number]
  return { ...program, directory, ports: { admin: taken[0], outbound: taken[1], inbound: taken[2] } }
}

export async function ask(port: number, text: string): Promise<string> {
  const caller = new RawCaller(port)
  caller.send(text)
  await caller.closed
  return caller.text
}
