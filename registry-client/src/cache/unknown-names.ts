/**
 * Names that the registry never heard of: mistyped, or about to be registered. What it said of them answers for a
 * while, then they are let go.
 */

import type { Clock } from '../clock.ts'

const REMEMBERED_MS = 60_000

export class UnknownNames {
  readonly #clock: Clock
  /** Oldest first, with when the registry said so. */
  readonly #sinceMs = new Map<string, number>()
  /** Names noted, ever. */
  noted = 0

  constructor(clock: Clock) {
    this.#clock = clock
  }

  get size(): number {
    return this.#sinceMs.size
  }

  note(key: string): void {
    this.#sinceMs.delete(key)
    this.#sinceMs.set(key, this.#clock.now())
    this.noted++
  }

  forget(key: string): void {
    this.#sinceMs.delete(key)
  }

  /** Those that have been remembered for long enough. */
  *due(): IterableIterator<string> {
    const nowMs = this.#clock.now()
    for (const [key, sinceMs] of this.#sinceMs) {
      if (nowMs - sinceMs < REMEMBERED_MS) return
      yield key
    }
  }
}
