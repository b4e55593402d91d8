/** Bytes that are held at once, within a bound. */

/** What one of those who share a budget holds. */
export interface Holding {
  /** No effect once it has given way. */
  grow(bytes: number): void
  /** From now on it does not give way any more. */
  keep(): void
  release(): void
}

/**
 * Where all together would hold more than the bound, the one that holds most gives way: whoever is large by mistake or
 * malice is let go of before those who are not. One alone may always hold as much as the bound.
 */
export class ByteBudget {
  readonly #limit: number
  readonly #bytes = new Map<Holding, number>()
  readonly #yielding = new Map<Holding, () => void>()
  #held = 0

  constructor(limit: number) {
    this.#limit = limit
  }

  get held(): number {
    return this.#held
  }

  /** @param giveWay called at most once, from within `grow` of any: the holding holds nothing from then on */
  open(giveWay: () => void): Holding {
    const holding: Holding = {
      grow: (bytes) => {
        const before = this.#bytes.get(holding)
        if (before === undefined) return
        this.#bytes.set(holding, before + bytes)
        this.#held += bytes
        while (this.#held > this.#limit && this.#yielding.size > 0) this.#yield()
      },
      keep: () => void this.#yielding.delete(holding),
      release: () => {
        this.#held -= this.#bytes.get(holding) ?? 0
        this.#bytes.delete(holding)
        this.#yielding.delete(holding)
      },
    }
    this.#bytes.set(holding, 0)
    this.#yielding.set(holding, giveWay)
    return holding
  }

  #yield(): void {
    let most: Holding | undefined
    for (const holding of this.#yielding.keys())
      if (most === undefined || this.#bytes.get(holding)! > this.#bytes.get(most)!) most = holding
    const giveWay = this.#yielding.get(most!)!
    most!.release()
    giveWay()
  }
}
