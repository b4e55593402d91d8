/** Which of several peers' answers for one service is taken. */

import { unaccounted, type View } from '../protocol.ts'

/** What a peer knew. */
export interface PeerView {
  readonly view: View
  /** When the registry last confirmed it, on this process's clock. */
  readonly heardMs: number
  readonly peer: string
}

/**
 * Within an epoch the highest cursor; of several epochs, which cannot be compared, the one that the registry confirmed
 * last. One without nodes gives way to one with nodes that it does not account for.
 *
 * Answers come one by one, and what cannot be taken any more is let go of at once.
 */
export class PeerChoice {
  readonly #confirmedMs = new Map<string, number>()
  /** The highest with nodes, by epoch: which epoch is taken may change with every answer. */
  readonly #highest = new Map<string, PeerView>()
  readonly #empty: PeerView[] = []

  /** @returns what is let go of: one that was added before, or `next` itself */
  add(next: PeerView): PeerView | undefined {
    const { epoch } = next.view.cursor
    this.#confirmedMs.set(epoch, Math.max(this.#confirmedMs.get(epoch) ?? -Infinity, next.heardMs))
    if (next.view.nodes.size === 0) {
      this.#empty.push(next)
      return undefined
    }
    const highest = this.#highest.get(epoch)
    if (highest && this.#compare(next, highest) < 0) return next
    this.#highest.set(epoch, next)
    return highest
  }

  get best(): PeerView | undefined {
    let best: PeerView | undefined
    const candidates = [...this.#highest.values(), ...this.#empty]
    for (const next of candidates.sort((a, b) => this.#compare(a, b)))
      if (best === undefined || next.view.nodes.size > 0 || unaccounted(best.view, next.view).length === 0) best = next
    return best
  }

  #compare(a: PeerView, b: PeerView): number {
    const [one, two] = [a.view.cursor, b.view.cursor]
    return (
      this.#confirmedMs.get(one.epoch)! - this.#confirmedMs.get(two.epoch)! ||
      (one.epoch < two.epoch ? -1 : one.epoch > two.epoch ? 1 : 0) ||
      one.revision - two.revision ||
      a.heardMs - b.heardMs
    )
  }
}
