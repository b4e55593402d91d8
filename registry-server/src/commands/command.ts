/** What the operator's commands share. They do their work on a {@link StoreArchive} and know no engine. */

import type { Readable } from 'node:stream'
import type { Clock } from '@holdfast/registry-client/clock'
import { commonSettings } from '@holdfast/registry-client/settings'
import * as z from 'zod'
import { settings } from '../config.ts'
import type { StoreArchive } from '../store/archive.ts'

/** What a command has of its process. */
export interface Terminal {
  /** Standard input. */
  readonly input: () => Readable
  /** Writes to standard output; resolves once that has taken it. */
  readonly write: (text: string) => Promise<void>
  /** Says a line on standard error. */
  readonly say: (line: string) => void
  /** Whether a person reads standard error. */
  readonly isWatched: boolean
}

export interface CommandContext {
  readonly archive: StoreArchive
  readonly terminal: Terminal
  readonly clock: Clock
  /** A new name at each call, not guessable. */
  readonly identifier: () => string
  /** The operator wants to end it. */
  readonly signal: AbortSignal
}

/** The operator ended the command before it was done. */
export class Interrupted extends Error {
  constructor() {
    super('stopped before the end')
    this.name = 'Interrupted'
  }
}

const { dataDir, store, etcd } = settings.shape
const { logLevel } = commonSettings

/** A command's settings. One file serves it and the registry, so what only the registry needs may stand there. */
export function commandSettings<T extends z.ZodRawShape>(own: T) {
  const mine = { ...own, dataDir, store, etcd, logLevel }
  const others = Object.keys(settings.shape).filter((name) => !Object.hasOwn(mine, name))
  return z.strictObject<typeof mine>({
    ...mine,
    ...Object.fromEntries(others.map((name) => [name, z.unknown().optional()])),
  })
}

const SAY_EVERY_MS = 1_000

/** Tells a person who waits how far it is, and everyone how it ended, as far as the log level lets it. */
export class Progress {
  readonly #context: Pick<CommandContext, 'clock' | 'terminal' | 'signal'>
  readonly #says: boolean
  readonly #summarises: boolean
  #saidMs: number

  constructor(context: Pick<CommandContext, 'clock' | 'terminal' | 'signal'>, logLevel: string) {
    this.#context = context
    this.#summarises = ['trace', 'debug', 'info'].includes(logLevel)
    this.#says = logLevel === 'trace' || logLevel === 'debug' || (this.#summarises && context.terminal.isWatched)
    this.#saidMs = context.clock.now()
  }

  /** @throws Interrupted */
  at(done: string, records: number): void {
    const { clock, signal, terminal } = this.#context
    if (signal.aborted) throw new Interrupted()
    if (!this.#says || clock.now() - this.#saidMs < SAY_EVERY_MS) return
    this.#saidMs = clock.now()
    terminal.say(`${done} ${counted(records, 'record')} so far`)
  }

  end(summary: string): void {
    if (this.#summarises) this.#context.terminal.say(summary)
  }
}

const numbers = new Intl.NumberFormat('en-US')

export function counted(count: number, noun: string): string {
  return `${numbers.format(count)} ${noun}${count === 1 ? '' : 's'}`
}
