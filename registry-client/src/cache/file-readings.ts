/** When the files of services are read: one reading at a time of each, and the first not waited for without end. */

import { setMaxListeners } from 'node:events'
import { sleep, type Clock } from '../clock.ts'

/** How long the registry waits for a disk that does not answer: then the service is subscribed without a cursor. */
const PATIENCE_MS = 1_000
/** Most of what keeps a file from being read has passed by then: so long do those wait who have asked for the service. */
const SOON_MS = [50, 200]
/** The rest is tried for as long as the service is followed, each time after twice the pause. */
const LATER_MS = 1_000
const MAX_LATER_MS = 60_000

/** Readings of one service's files. Of two that overlap, the one that began first may end last, and undo the other. */
export class FileReadings {
  readonly #read: () => Promise<void>
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined
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
    await this.#read()
    this.#running = undefined
  }
}

/** First readings: what could not be read is tried again, and nobody waits for longer than a second. */
export class FirstReadings {
  readonly #clock: Clock
  readonly #ends = new Set<() => void>()
  readonly #closing = new AbortController()

  constructor(clock: Clock) {
    this.#clock = clock
    // One for each file that is not read yet.
    setMaxListeners(0, this.#closing.signal)
  }

  /** @param isRead whether there is nothing left to read, or nobody who wants it */
  wait(readings: FileReadings, isRead: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const end = () => {
        cancel()
        this.#ends.delete(end)
        resolve()
      }
      const cancel = this.#clock.after(PATIENCE_MS, end)
      this.#ends.add(end)
      void this.#run(readings, isRead, end)
    })
  }

  async #run(readings: FileReadings, isRead: () => boolean, end: () => void): Promise<void> {
    await readings.run()
    for (const soonMs of SOON_MS) {
      if (isRead()) break
      await this.#again(readings, isRead, soonMs)
    }
    end()
    for (let laterMs = LATER_MS; !isRead(); laterMs = Math.min(2 * laterMs, MAX_LATER_MS))
      await this.#again(readings, isRead, laterMs)
  }

  async #again(readings: FileReadings, isRead: () => boolean, waitMs: number): Promise<void> {
    await sleep(this.#clock, waitMs, this.#closing.signal)
    if (!isRead()) await readings.run()
  }

  close(): void {
    this.#closing.abort()
    for (const end of this.#ends) end()
  }
}
