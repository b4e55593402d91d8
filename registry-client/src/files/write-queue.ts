/** When what is written: the same thing not often, few things at once, all that waits at the end. */

import { sleep, type Clock } from '../clock.ts'

export interface WriteQueueOptions<Job> {
  readonly clock: Clock
  /** At most so many jobs run at the same time. */
  readonly concurrency: number
  /** Does a job and answers after how many milliseconds it may run again. Never rejects. */
  readonly run: (job: Job) => Promise<number>
}

interface State {
  stage: 'idle' | 'waiting' | 'queued' | 'running'
  /** Wanted again while it ran. */
  again: boolean
  readyMs: number
  cancel: () => void
}

/** Jobs that may be wanted at any rate. What waits is bounded by the number of jobs, since none waits twice. */
export class WriteQueue<Job extends object> {
  readonly #options: WriteQueueOptions<Job>
  readonly #states = new WeakMap<Job, State>()
  readonly #waiting = new Set<Job>()
  readonly #queued = new Set<Job>()
  readonly #running = new Map<Job, number>()
  readonly #idle = new AbortController()
  #closing = false

  constructor(options: WriteQueueOptions<Job>) {
    this.#options = options
  }

  /** Jobs that are wanted and have not begun. */
  get size(): number {
    return this.#waiting.size + this.#queued.size
  }

  /** Milliseconds for which the longest job of those that run has been running; 0 when none runs. */
  get longestMs(): number {
    const [startedMs] = this.#running.values()
    return startedMs === undefined ? 0 : this.#options.clock.now() - startedMs
  }

  isRunning(job: Job): boolean {
    return this.#running.has(job)
  }

  /** Runs a job soon, once for all that want it until then. */
  want(job: Job): void {
    const state = this.#stateOf(job)
    if (state.stage === 'running') state.again = true
    if (state.stage !== 'idle') return
    const waitMs = state.readyMs - this.#options.clock.now()
    if (waitMs <= 0 || this.#closing) return this.#enqueue(job, state)
    state.stage = 'waiting'
    this.#waiting.add(job)
    state.cancel = this.#options.clock.after(waitMs, () => this.#enqueue(job, state))
  }

  /** Runs all that waits, without waiting for its turn. Answers how many jobs were not done within the limit. */
  async close(limitMs: number): Promise<number> {
    this.#closing = true
    for (const job of this.#waiting) this.#enqueue(job, this.#stateOf(job))
    if (this.#running.size > 0) await sleep(this.#options.clock, limitMs, this.#idle.signal)
    const undone = this.#queued.size + this.#running.size
    this.#queued.clear()
    return undone
  }

  #stateOf(job: Job): State {
    let state = this.#states.get(job)
    if (state === undefined)
      this.#states.set(job, (state = { stage: 'idle', again: false, readyMs: -Infinity, cancel: () => {} }))
    return state
  }

  #enqueue(job: Job, state: State): void {
    state.cancel()
    this.#waiting.delete(job)
    state.stage = 'queued'
    this.#queued.add(job)
    this.#pump()
  }

  #pump(): void {
    for (const job of this.#queued) {
      if (this.#running.size >= this.#options.concurrency) return
      this.#queued.delete(job)
      void this.#run(job, this.#stateOf(job))
    }
    if (this.#closing && this.#running.size === 0) this.#idle.abort()
  }

  async #run(job: Job, state: State): Promise<void> {
    const { clock, run } = this.#options
    state.stage = 'running'
    this.#running.set(job, clock.now())
    const restMs = await run(job)
    this.#running.delete(job)
    state.stage = 'idle'
    state.readyMs = clock.now() + restMs
    if (state.again) {
      state.again = false
      this.want(job)
    }
    this.#pump()
  }
}
