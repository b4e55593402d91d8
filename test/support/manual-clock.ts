import type { Clock } from '@holdfast/registry-client/clock'

interface Timer {
  readonly dueMs: number
  readonly order: number
  readonly run: () => void
}

/** A clock that moves only when a test moves it. Timers run in the order in which they fall due. */
export class ManualClock implements Clock {
  #nowMs = 0
  #wallMs: number
  #order = 0
  readonly #timers = new Set<Timer>()

  constructor(wallMs = Date.UTC(2026, 0, 1)) {
    this.#wallMs = wallMs
  }

  now(): number {
    return this.#nowMs
  }

  wall(): number {
    return this.#wallMs
  }

  after(ms: number, run: () => void): () => void {
    const timer: Timer = { dueMs: this.#nowMs + Math.max(0, ms), order: this.#order++, run }
    this.#timers.add(timer)
    return () => this.#timers.delete(timer)
  }

  /** Timers that wait, for tests that look for leaks. */
  get pending(): number {
    return this.#timers.size
  }

  /** When the next timer falls due, in milliseconds from now; undefined when none waits. */
  get nextInMs(): number | undefined {
    const next = this.#next(Infinity)
    return next && next.dueMs - this.#nowMs
  }

  /** Moves time on, running what falls due on the way and letting promises settle after each. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#nowMs + ms
    await settle()
    for (let timer = this.#next(endMs); timer !== undefined; timer = this.#next(endMs)) {
      this.#move(timer.dueMs)
      this.#timers.delete(timer)
      timer.run()
      await settle()
    }
    this.#move(endMs)
  }

  /** Moves time on without running anything in between, as for a process that was frozen; what fell due runs after. */
  async freeze(ms: number): Promise<void> {
    this.#move(this.#nowMs + ms)
    await this.advance(0)
  }

  /** Turns the machine's clock, as an operator or a time server may. */
  turnWall(ms: number): void {
    this.#wallMs += ms
  }

  #move(toMs: number): void {
    this.#wallMs += Math.max(0, toMs - this.#nowMs)
    this.#nowMs = Math.max(toMs, this.#nowMs)
  }

  #next(endMs: number): Timer | undefined {
    let best: Timer | undefined
    for (const timer of this.#timers)
      if (
        timer.dueMs <= endMs &&
        (best === undefined || timer.dueMs < best.dueMs || (timer.dueMs === best.dueMs && timer.order < best.order))
      )
        best = timer
    return best
  }
}

/** Lets every promise that can settle without time or I/O do so. */
export function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
