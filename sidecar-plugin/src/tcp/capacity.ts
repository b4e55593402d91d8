/** How many there may be, of all who share it. */
export class Capacity {
  readonly #most: number
  #taken = 0

  constructor(most: number) {
    this.#most = most
  }

  /** @returns false when there are as many as there may be */
  take(): boolean {
    if (this.#taken >= this.#most) return false
    this.#taken++
    return true
  }

  giveBack(): void {
    this.#taken--
  }
}
