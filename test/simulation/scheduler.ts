/**
 * The one clock of a run and everything that is to happen on it. Time stands still while an event runs, and jumps to
 * the next when nothing is left to do.
 */

/** What is to happen. Kept until it happens or is cancelled. */
export interface Scheduled {
  readonly dueMs: number
  readonly order: number
  /** Who and what, for the trace. */
  readonly label: string
  readonly run: () => void
  cancelled: boolean
}

/** Whatever asks again at once and for ever is found out. */
const MAX_STILL = 20_000

export interface SchedulerOptions {
  /** Called before each event. */
  readonly before?: (event: Scheduled) => void
  /** Called when an event, and all that followed from it without time, is over. What it throws ends the run. */
  readonly after?: (event: Scheduled) => void
}

export class Scheduler {
  readonly #options: SchedulerOptions
  /** A binary heap by time, then by the order in which they were planned. */
  readonly #heap: Scheduled[] = []
  #nowMs = 0
  #order = 0
  #events = 0
  /** Events since time has passed. */
  #still = 0
  #cancelled = 0
  #stopped = false

  constructor(options: SchedulerOptions = {}) {
    this.#options = options
  }

  /** Milliseconds since the run began. */
  get nowMs(): number {
    return this.#nowMs
  }

  /** That were run. */
  get events(): number {
    return this.#events
  }

  /** That are planned. */
  get pending(): number {
    return this.#heap.length - this.#cancelled
  }

  after(ms: number, label: string, run: () => void): () => void {
    // What is not a number of milliseconds would stop the clock.
    if (Number.isNaN(ms)) throw new TypeError(`${label}: not a time`)
    const event = { dueMs: this.#nowMs + Math.max(0, ms), order: this.#order++, label, run, cancelled: false }
    if (event.dueMs === Infinity) return () => {}
    this.#push(event)
    return () => {
      if (event.cancelled) return
      event.cancelled = true
      this.#cancelled++
    }
  }

  /**
   * Runs all that falls due up to a time.
   *
   * Each event has a turn of Node's event loop of its own, after which Node runs every promise's reaction and every
   * `nextTick` that follows from it: the only way to wait for all of them that is not a count of turns. It costs 2 µs.
   */
  runUntil(endMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      let running: Scheduled | undefined
      const step = () => {
        try {
          if (running) this.#options.after?.(running)
          running = this.#stopped ? undefined : this.#pop(endMs)
          if (running === undefined) {
            if (!this.#stopped) this.#nowMs = Math.max(this.#nowMs, endMs)
            return resolve()
          }
          // Before the event, so that what it leaves for a later turn still comes before the next.
          running.cancelled = true
          if (running.dueMs > this.#nowMs) this.#still = 0
          else if (++this.#still > MAX_STILL)
            throw new Error(`${MAX_STILL} events and no time has passed; the last is ${running.label}`)
          this.#nowMs = running.dueMs
          this.#events++
          this.#options.before?.(running)
          running.run()
        } catch (error) {
          return reject(error)
        }
        setImmediate(step)
      }
      // What was done before this call comes to its end first.
      setImmediate(step)
    })
  }

  /** Ends {@link runUntil} after the present event. */
  stop(): void {
    this.#stopped = true
  }

  #pop(endMs: number): Scheduled | undefined {
    for (;;) {
      const top = this.#heap[0]
      if (top === undefined || (top.dueMs > endMs && !top.cancelled)) return undefined
      const last = this.#heap.pop()!
      if (this.#heap.length > 0) {
        this.#heap[0] = last
        this.#sink()
      }
      if (!top.cancelled) return top
      this.#cancelled--
    }
  }

  #push(event: Scheduled): void {
    const heap = this.#heap
    let at = heap.push(event) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (isBefore(heap[parent]!, event)) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = event
  }

  #sink(): void {
    const heap = this.#heap
    const event = heap[0]!
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++
      if (isBefore(event, heap[child]!)) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = event
  }
}

function isBefore(a: Scheduled, b: Scheduled): boolean {
  return a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order)
}
