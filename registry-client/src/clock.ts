/**
 * The only time and chance. Everything that waits, dates or draws takes a {@link Clock} and a {@link Random}
 * through its constructor, so that tests move time by hand and replay chance from a seed.
 */

export interface Clock {
  /**
   * Milliseconds from an arbitrary start; never goes back, whatever an operator does to the machine's clock. For
   * durations and deadlines. Serves lru-cache's `perf` too.
   */
  now(): number
  /** Milliseconds since 1970 by the machine's clock, which may jump. For dates that people or other processes read. */
  wall(): number
  /** Runs `run` once after `ms`; returns its cancellation, which may be called again and after the fact. */
  after(ms: number, run: () => void): () => void
}

/** A number in [0, 1), as `Math.random`. */
export type Random = () => number

/** A longer delay makes Node's timers fire at once. */
const MAX_TIMER_MS = 2_147_483_647

export const systemClock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  after(ms, run) {
    const timer = setTimeout(run, Math.min(Math.max(ms, 0), MAX_TIMER_MS))
    return () => clearTimeout(timer)
  },
}

export const systemRandom: Random = Math.random

/** Resolves after `ms`, or at once when `signal` aborts: a wait that ends early is not an error here. */
export function sleep(clock: Clock, ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve()
    const done = () => {
      cancel()
      signal?.removeEventListener('abort', done)
      resolve()
    }
    const cancel = clock.after(ms, done)
    signal?.addEventListener('abort', done, { once: true })
  })
}

/** Runs `run` every `ms`, counted from the end of the one before, until cancelled. */
export function every(clock: Clock, ms: number, run: () => void): () => void {
  let cancel: () => void
  const arm = () => {
    cancel = clock.after(ms, () => {
      arm()
      run()
    })
  }
  arm()
  return () => cancel()
}

/**
 * Exponential backoff with full jitter: each delay is drawn evenly from zero up to a ceiling that doubles with every
 * failure. A fixed or nearly fixed delay brings all clients of a dead registry back in one herd.
 *
 * Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
 */
export class Backoff {
  readonly #random: Random
  readonly #baseMs: number
  readonly #capMs: number
  #failures = 0

  constructor(random: Random, options: { baseMs: number; capMs: number }) {
    this.#random = random
    this.#baseMs = options.baseMs
    this.#capMs = options.capMs
  }

  /** The delay before the next try, in milliseconds. */
  next(): number {
    const ceiling = Math.min(this.#capMs, this.#baseMs * 2 ** this.#failures)
    // Past the cap further doubling changes nothing, and an unbounded exponent would reach infinity.
    if (ceiling < this.#capMs) this.#failures++
    return this.#random() * ceiling
  }

  reset(): void {
    this.#failures = 0
  }
}

const UNITS_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** Milliseconds of a duration as users write it (`250ms`, `15s`, `10m`, `1.5h`); undefined when it is not one. */
export function parseDuration(input: unknown): number | undefined {
  const match = typeof input === 'string' ? /^(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)$/.exec(input) : null
  return match ? Number(match[1]) * UNITS_MS[match[2] as keyof typeof UNITS_MS] : undefined
}

/** The shortest written form of a duration. */
export function formatDuration(ms: number): string {
  for (const unit of ['d', 'h', 'm', 's'] as const)
    if (ms >= UNITS_MS[unit] && ms % UNITS_MS[unit] === 0) return `${ms / UNITS_MS[unit]}${unit}`
  return `${ms}ms`
}
