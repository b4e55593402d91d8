/** When the files of services are read: one reading at a time of each, and the first one not waited for without end. */

import type { Clock } from '../clock.ts'

/** How long the registry waits for a disk that does not answer: then the service is subscribed without a cursor. */
const PATIENCE_MS = 1_000

/** Readings of one service's files. Of two that overlap, the one that began first may end last, and undo the other. */
export class FileReadings {
  readonly #read: () => Promise<void>
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined
  /** Whether everything has been read once that there is to read. */
  isComplete = false

  /** @param read must not reject */
  constructor(read: () => Promise<void>) {
    this.#read = read
  }

  run(): Promise<void> {
    if (this.#running === undefined) return (this.#running = this.#turn())
    // Whoever asks meanwhile shares the next, which sees whatever was written before it begins.
    return (this.#next ??= this.#running.then(() => {
      this.#next = undefined
      return this.run()
    }))
  }

  async #turn(): Promise<void> {
    try {
      await this.#read()
    } finally {
      this.#running = undefined
    }
  }
}

/** Waits for first readings, each for a second at most. */
export class Patience {
  readonly #clock: Clock
  readonly #ends = new Set<() => void>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  wait(reading: Promise<void>): Promise<void> {
    return new Promise((resolve) => {
      const end = () => {
        cancel()
        this.#ends.delete(end)
        resolve()
      }
      const cancel = this.#clock.after(PATIENCE_MS, end)
      this.#ends.add(end)
      void reading.then(end, end)
    })
  }

  end(): void {
    for (const end of this.#ends) end()
  }
}
