/** The servers under measurement, each a process of its own on one core, so that the load does not take its time. */

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { WebSocket } from 'ws'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))

export interface Server {
  readonly port: number
  readonly pid: number
  readonly directory: string
  /** A full collection in the server: what it holds shows only without what it has dropped. */
  collectGarbage(): Promise<void>
  stop(): Promise<void>
}

/**
 * Starts a script that prints a URL when it is ready.
 * @param pinned on the first core, where `taskset` is there; not for a server that shares the machine with another
 */
export async function serve(
  script: string,
  args: (directory: string) => readonly string[],
  pinned = true,
): Promise<Server> {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-bench-'))
  const command = [
    process.execPath,
    '--inspect=127.0.0.1:0',
    '--import',
    'tsx',
    path.join(ROOT, script),
    ...args(directory),
  ]
  const [program, ...rest] = pinned && hasTaskset() ? ['taskset', '-c', '0', ...command] : command
  const child = spawn(program!, rest, {
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd: ROOT,
    env: { ...process.env, HOLDFAST_LOG_LEVEL: 'warn' },
  })
  const inspector = new Promise<string>((resolve) => {
    createInterface({ input: child.stderr }).on('line', (line) => {
      const match = /^Debugger listening on (ws:\S+)/.exec(line)
      if (match) resolve(match[1]!)
      else if (!/^For help, see|^Debugger/.test(line)) console.error(line)
    })
  })
  const port = await new Promise<number>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      const match = /http:\/\/127\.0\.0\.1:(\d+)/.exec(line)
      if (match) resolve(Number(match[1]))
    })
    child.once('exit', (code) => reject(new Error(`${script} ended with ${code}`)))
  })
  return {
    port,
    pid: child.pid!,
    directory,
    collectGarbage: async () => {
      const socket = new WebSocket(await inspector)
      await once(socket, 'open')
      for (const [id, method] of ['HeapProfiler.enable', 'HeapProfiler.collectGarbage'].entries()) {
        socket.send(JSON.stringify({ id, method }))
        await once(socket, 'message')
      }
      socket.terminate()
    },
    stop: async () => {
      child.kill('SIGTERM')
      await once(child, 'exit')
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

export function startRegistry(): Promise<Server> {
  return serve('registry-server/bin/holdfast-registry.js', (directory) => [
    ...['--port', '0', '--data-dir', path.join(directory, 'data')],
  ])
}

let taskset: boolean | undefined

function hasTaskset(): boolean {
  try {
    taskset ??= execFileSync('taskset', ['-c', '0', 'true']).length === 0
  } catch {
    taskset = false
  }
  return taskset
}

/** Resident memory of a process in bytes: what is its own, and all with the pages of mapped files. */
export function memoryOf(pid: number): { own: number; all: number } {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const kib = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(status)?.[1] ?? NaN)
  return { own: kib('RssAnon') * 1024, all: kib('VmRSS') * 1024 }
}

/** CPU seconds that a process has used, of all its threads that live; finer than the ticks of `/proc/PID/stat`. */
export function cpuOf(pid: number): number {
  const runNs = (thread: string) => Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0])
  return readdirSync(`/proc/${pid}/task`).reduce((sum, thread) => sum + runNs(thread), 0) / 1e9
}
