/** The real program on a real etcd, as an operator starts it. */

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { TestContext } from 'node:test'
import { caller, type TestRegistry } from '../support.ts'

const PROGRAM = fileURLToPath(new URL('../../../registry-server/bin/holdfast-registry.js', import.meta.url))

/** How often a program is asked whether it has come to what nothing announces. */
const ASK_AGAIN_MS = 50

export interface LogLine {
  readonly msg: string
  readonly level: number
  readonly time: number
  readonly url?: string
  readonly reasons?: Readonly<Record<string, string>>
  readonly key?: string
}

export interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

export class Program {
  readonly pid: number
  readonly ended: Promise<Ended>
  readonly #child
  readonly #said = { stdout: '', stderr: '' }
  #hasEnded = false
  readonly #checks = new Set<() => void>()

  constructor(context: Pick<TestContext, 'after'>, args: readonly string[]) {
    const child = spawn(process.execPath, [PROGRAM, '--port', '0', ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
    this.#child = child
    this.pid = child.pid!
    context.after(() => void child.kill('SIGKILL'))
    for (const stream of ['stdout', 'stderr'] as const)
      createInterface({ input: child[stream] }).on('line', (line) => {
        this.#said[stream] += `${line}\n`
        for (const check of this.#checks) check()
      })
    this.ended = once(child, 'close').then(([code]) => {
      this.#hasEnded = true
      for (const check of this.#checks) check()
      return { code: code as number | null, ...this.#said }
    })
  }

  /** Standard error as the log that it is, the last words of a program that fails left out. */
  get log(): readonly LogLine[] {
    const lines = this.#said.stderr.split('\n').filter((line) => line !== '' && !/^holdfast-registry: /.test(line))
    return lines.map((line) => JSON.parse(line) as LogLine)
  }

  get stderr(): string {
    return this.#said.stderr
  }

  /** Returns the first line of the log, of those to come as well, for which `holds`. */
  async logged(holds: (line: LogLine) => boolean): Promise<LogLine> {
    await this.#until(() => this.log.some(holds))
    return this.log.find(holds)!
  }

  /** Calls to the API, once it listens. */
  async listening(): Promise<TestRegistry['call']> {
    return caller((await this.logged(({ url }) => url !== undefined)).url!)
  }

  /** Calls to the API, once it has said that it is ready. */
  async ready(): Promise<TestRegistry['call']> {
    await this.#until(() => this.#said.stdout.includes('\n'))
    return caller(/^holdfast-registry ready: (http:\/\/\S+) \(store etcd, /.exec(this.#said.stdout)![1]!)
  }

  /** As an init system does. */
  stop(): Promise<Ended> {
    this.#child.kill('SIGTERM')
    return this.ended
  }

  /** As a crash. */
  kill(): Promise<Ended> {
    this.#child.kill('SIGKILL')
    return this.ended
  }

  #until(holds: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = () => {
        if (!holds() && !this.#hasEnded) return
        this.#checks.delete(check)
        if (holds()) resolve()
        else reject(new Error(`it ended: ${this.#said.stdout}${this.#said.stderr}`))
      }
      this.#checks.add(check)
      check()
    })
  }
}

/** Asks until the answer is yes. */
export async function eventually(ask: () => Promise<boolean>): Promise<void> {
  while (!(await ask())) await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS))
}

/** The one sentence with which a program that gives up ends, without its beginning. */
export function lastWords({ stderr }: Ended): string {
  const [, words] = /(?:^|\n)holdfast-registry: ([^\n]+)\n$/.exec(stderr) ?? []
  assert.ok(words, stderr)
  assert.doesNotMatch(stderr, /\n\s+at |node:internal/)
  return words
}
