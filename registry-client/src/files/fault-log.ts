/** What fails on a disk: counted each time, said once, and said again when it is over. */

import type { Log } from '../log.ts'

export class FaultLog {
  readonly #directory: string
  readonly #log: Log
  /** Of each code, what fails with it now. */
  readonly #failing = new Map<string, Set<string>>()
  /** How often each code was met. */
  readonly counts: Record<string, number> = {}

  constructor(directory: string, log: Log) {
    this.#directory = directory
    this.#log = log
  }

  get isWell(): boolean {
    return this.#failing.size === 0
  }

  /** Something fails. Said when it is the first to fail like this: of a full disk once, not of each file. */
  begin(what: string, error: unknown, message = 'cache directory cannot be written: going on in memory'): void {
    const code = codeOf(error)
    this.count(error)
    const failing = this.#failing.get(code)
    if (failing === undefined)
      this.#log.warn({ directory: this.#directory, what, code, reason: (error as Error).message }, message)
    this.#failing.set(code, (failing ?? new Set()).add(what))
  }

  /** Something is well, whether or not it failed before. */
  end(what: string): void {
    let wasFailing = false
    for (const [code, failing] of this.#failing) {
      if (!failing.delete(what)) continue
      wasFailing = true
      if (failing.size === 0) this.#failing.delete(code)
    }
    if (wasFailing && this.isWell) this.#log.info({ directory: this.#directory }, 'cache directory is writable again')
  }

  count(error: unknown): void {
    const code = codeOf(error)
    this.counts[code] = (this.counts[code] ?? 0) + 1
  }
}

export function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? 'other'
}
