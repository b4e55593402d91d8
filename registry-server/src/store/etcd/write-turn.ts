/**
 * Lets a replica write that would always be too slow: one that is farther from etcd, beside one that never rests. After
 * some losses it asks, and the others pause for a moment. Its wish is worth nothing but this courtesy: what is written,
 * and in which order, depends on the conditions of commits alone.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { FeedEvent, Operation } from './etcd-connection.ts'
import { TURN } from './layout.ts'

/** Commits lost in a row to faster ones, after which a replica asks the others to let it write. */
const LOSSES = 3
/** How long they let it; it takes a few round trips of its own. */
const TURN_MS = 300

export interface WriteTurnOptions {
  /** This replica's id. */
  readonly self: string
  readonly clock: Clock
}

export class WriteTurn {
  readonly #options: WriteTurnOptions
  /** In a row. */
  #losses = 0
  /** Of another replica. */
  #turn: { readonly of: string; readonly over: Promise<void>; readonly end: () => void } | undefined

  constructor(options: WriteTurnOptions) {
    this.#options = options
  }

  /** When another replica's turn is over; nothing is to be written before. Undefined when it is nobody's. */
  get over(): Promise<void> | undefined {
    return this.#turn?.over
  }

  /** What is to be done when a commit is lost, if it is time to ask. */
  get wish(): readonly Operation[] {
    return this.#losses < LOSSES ? [] : [{ put: TURN, value: Buffer.from(this.#options.self) }]
  }

  /** A commit of this replica was lost to a faster one. */
  lost(): void {
    this.#losses++
  }

  /** A commit of this replica was the fastest. */
  won(): void {
    this.#losses = 0
  }

  /** @returns whether the event was about turns */
  receive({ key, value }: FeedEvent): boolean {
    if (key !== TURN) return false
    if (value) this.#give(value.toString())
    return true
  }

  /** Another replica has written. */
  taken(author: string): void {
    if (this.#turn && author.startsWith(`${this.#turn.of}.`)) this.#turn.end()
  }

  end(): void {
    this.#turn?.end()
  }

  #give(replica: string): void {
    this.#turn?.end()
    // Of several that ask the last goes first.
    if (replica === this.#options.self) return
    let end = () => {}
    const over = new Promise<void>((resolve) => {
      const cancel = this.#options.clock.after(TURN_MS, () => end())
      end = () => {
        cancel()
        this.#turn = undefined
        resolve()
      }
    })
    this.#turn = { of: replica, over, end }
  }
}
