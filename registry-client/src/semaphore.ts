/** A few places at work that many want. Who waits is let in in the order of coming. */
export class Semaphore {
  #free: number
  readonly #maxWaiting: number
  readonly #waiting = new Set<() => void>()

  /** @param maxWaiting how many may wait; default any number */
  constructor(places: number, maxWaiting = Infinity) {
    this.#free = places
    this.#maxWaiting = maxWaiting
  }

  /**
   * Waits for a place, which {@link leave} gives back.
   * @returns false when there is none to be had: too many wait, or `signal` ended it
   */
  async enter(signal?: AbortSignal): Promise<boolean> {
    if (signal?.aborted) return false
    if (this.#free > 0) {
      this.#free--
      return true
    }
    if (this.#waiting.size >= this.#maxWaiting) return false
    return new Promise((resolve) => {
      const end = (isIn: boolean) => {
        this.#waiting.delete(admit)
        signal?.removeEventListener('abort', giveUp)
        resolve(isIn)
      }
      const admit = () => end(true)
      const giveUp = () => end(false)
      this.#waiting.add(admit)
      signal?.addEventListener('abort', giveUp)
    })
  }

  leave(): void {
    // Whoever is next takes over the place, so that nobody slips in between.
    const [next] = this.#waiting
    if (next) next()
    else this.#free++
  }
}
