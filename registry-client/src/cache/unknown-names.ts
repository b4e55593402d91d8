/**
 * Names that the registry never heard of: mistyped, or about to be registered. What it said of them answers for a
 * while, then they are let go. A stranger can think of any number of names, so few are remembered.
 */

import type { Clock } from '../clock.ts'

const MAX_NAMES = 1_000
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

  /** @returns the name that has to make room */
  note(key: string): string | undefined {
    this.#sinceMs.delete(key)
    this.#sinceMs.set(key, this.#clock.now())
    this.noted++
    return this.#sinceMs.size > MAX_NAMES ? this.#sinceMs.keys().next().value : undefined
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
