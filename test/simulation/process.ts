/**
 * A simulated process: what runs on it has its time from it, and is over with it. It can be frozen and killed at any
 * instant; timers and answers that fall due while it is frozen come when it goes on, in their order.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { Scheduler } from './scheduler.ts'

/** A machine: its processes share its wall clock and its disk, and the network knows it by its name. */
export class Host {
  readonly name: string
  /** By how much its wall clock is wrong. */
  wallOffsetMs: number

  constructor(name: string, wallOffsetMs = 0) {
    this.name = name
    this.wallOffsetMs = wallOffsetMs
  }
}

const EPOCH_MS = Date.UTC(2026, 0, 1)

export class SimProcess implements Clock {
  readonly name: string
  readonly host: Host
  readonly #scheduler: Scheduler
  readonly #endings: (() => void)[] = []
  #alive = true
  #frozen = false
  #thawedMs = -Infinity
  #held: { readonly label: string; readonly run: () => void; cancelled: boolean }[] = []
  #timers = 0

  constructor(name: string, host: Host, scheduler: Scheduler) {
    this.name = name
    this.host = host
    this.#scheduler = scheduler
  }

  get isAlive(): boolean {
    return this.#alive
  }

  get isFrozen(): boolean {
    return this.#frozen
  }

  /** When it went on after it was frozen last. */
  get thawedMs(): number {
    return this.#thawedMs
  }

  /** Timers that wait: one that grows for ever is a leak. */
  get timers(): number {
    return this.#timers
  }

  now(): number {
    return this.#scheduler.nowMs
  }

  wall(): number {
    return EPOCH_MS + this.#scheduler.nowMs + this.host.wallOffsetMs
  }

  after(ms: number, run: () => void): () => void {
    this.#timers++
    let isOver = false
    const over = () => {
      if (!isOver) this.#timers--
      isOver = true
    }
    const cancel = this.deliver(Math.max(0, ms), 'timer', () => {
      over()
      run()
    })
    return () => {
      over()
      cancel()
    }
  }

  /** Runs on this process after `ms`, as long as it lives. @returns its cancellation */
  deliver(ms: number, label: string, run: () => void): () => void {
    const item = { label, run, cancelled: false }
    const cancel = this.#scheduler.after(ms, `${this.name} ${label}`, () => {
      if (!this.#alive) return
      if (this.#frozen) this.#held.push(item)
      else run()
    })
    return () => {
      item.cancelled = true
      cancel()
    }
  }

  /** Called once when the process ends, however it does. */
  onEnd(run: () => void): void {
    this.#endings.push(run)
  }

  freeze(): void {
    this.#frozen = true
  }

  thaw(): void {
    if (!this.#frozen) return
    this.#frozen = false
    this.#thawedMs = this.now()
    // Each in a turn of its own, as they would have come.
    for (const item of this.#held.splice(0))
      this.#scheduler.after(0, `${this.name} ${item.label} held`, () => {
        if (!this.#alive || item.cancelled) return
        if (this.#frozen) this.#held.push(item)
        else item.run()
      })
  }

  /** SIGKILL. */
  kill(): void {
    if (!this.#alive) return
    this.#alive = false
    this.#held = []
    for (const run of this.#endings.splice(0)) run()
  }
}
