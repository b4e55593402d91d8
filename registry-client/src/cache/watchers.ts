/** Who waits for a service to change. */

import type { Clock } from '../clock.ts'

export class Watchers {
  readonly #waiting = new Set<() => void>()
  #closed = false

  get size(): number {
    return this.#waiting.size
  }

  /** Something may have changed for those who wait. */
  wake(): void {
    for (const changed of [...this.#waiting]) changed()
  }

  /** Lets everyone go; from now on nobody waits. */
  close(): void {
    this.#closed = true
    this.wake()
  }

  /** Waits until `test` holds after a change; false when the deadline or the signal came first, or the end. */
  until(test: () => boolean, deadlineMs: number, signal: AbortSignal | undefined, clock: Clock): Promise<boolean> {
    return new Promise((resolve) => {
      const end = (result: boolean) => {
        cancel()
        this.#waiting.delete(changed)
        signal?.removeEventListener('abort', aborted)
        resolve(result)
      }
      const changed = () => {
        if (test()) end(true)
        else if (this.#closed) end(false)
      }
      const aborted = () => end(false)
      const cancel = deadlineMs === Infinity ? () => {} : clock.after(deadlineMs, aborted)
      this.#waiting.add(changed)
      signal?.addEventListener('abort', aborted, { once: true })
      if (signal?.aborted) end(false)
      else changed()
    })
  }
}
