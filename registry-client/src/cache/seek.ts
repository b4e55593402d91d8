/** The search for one service among peers, shared by all who wait for it. */

import type { PeerView } from './peer-choice.ts'

/**
 * Whoever comes while it is under way takes part in it, so that callers who wait for less time than peers take are
 * answered by and by. Once nobody waits it ends, but not in the middle of a question.
 */
export class Seek {
  readonly #end = new AbortController()
  readonly #found: Promise<PeerView | undefined>
  #waiting = 0
  #asking = false

  /** @param search asks until something is found, or the seek is not wanted any more */
  constructor(search: (seek: Seek) => Promise<PeerView | undefined>) {
    // Begun once the first has joined.
    this.#found = Promise.resolve().then(() => search(this))
  }

  /** Aborts once nobody waits and nothing is asked. */
  get signal(): AbortSignal {
    return this.#end.signal
  }

  /** @returns undefined when `signal` ended it for this caller, or the search ended */
  join(signal: AbortSignal): Promise<PeerView | undefined> {
    this.#waiting++
    return new Promise((resolve) => {
      const leave = () => {
        this.#waiting--
        this.#endIfLeft()
        resolve(undefined)
      }
      signal.addEventListener('abort', leave, { once: true })
      void this.#found.then((found) => {
        signal.removeEventListener('abort', leave)
        resolve(found)
      })
    })
  }

  /** A question, during which it goes on whether anyone waits or not. */
  async ask<T>(question: () => Promise<T>): Promise<T> {
    this.#asking = true
    try {
      return await question()
    } finally {
      this.#asking = false
      this.#endIfLeft()
    }
  }

  end(): void {
    this.#end.abort()
  }

  #endIfLeft(): void {
    if (this.#waiting === 0 && !this.#asking) this.end()
  }
}
