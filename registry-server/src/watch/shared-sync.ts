/** One question to the store for all who need its answer: five thousand clients that move at once ask it once or twice. */

import { sleep, type Clock } from '@holdfast/registry-client/clock'

/** A stream whose client waits longer is better served with what there is. */
const PATIENCE_MS = 2_000

export class SharedSync {
  readonly #sync: () => Promise<void>
  readonly #clock: Clock
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined

  /** @param sync the store's */
  constructor(sync: () => Promise<void>, clock: Clock) {
    this.#sync = sync
    this.#clock = clock
  }

  /** Resolves after a sync that begins no earlier than this call, whether it succeeds, fails or takes too long. */
  join(): Promise<void> {
    if (this.#running === undefined && this.#next === undefined) return (this.#running = this.#run())
    // The one that runs may have begun before what this caller has seen elsewhere.
    return (this.#next ??= this.#running!.then(() => {
      this.#next = undefined
      return (this.#running = this.#run())
    }))
  }

  async #run(): Promise<void> {
    const done = new AbortController()
    this.#sync().then(
      () => done.abort(),
      () => done.abort(),
    )
    await sleep(this.#clock, PATIENCE_MS, done.signal)
    this.#running = undefined
  }
}
