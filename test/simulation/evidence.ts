/** What accounts for a node that is left out of a view, by what is true and not by what anyone believes. */

import type { View } from '@holdfast/registry-client/protocol'
import { keyOf } from './differences.ts'
import type { Model } from './model.ts'

/** How long registrants have to come back to a store that was lost. */
export const RETURN_MS = 600_000

export class Evidence {
  readonly #model: Model
  readonly #nowMs: () => number

  constructor(model: Model, nowMs: () => number) {
    this.#model = model
    this.#nowMs = nowMs
  }

  /** The first node of one view that the next leaves out, and nobody has removed; undefined when there is none. */
  missing(before: View, after: View): string | undefined {
    const isSame = before.cursor.epoch === after.cursor.epoch
    // What one store tells one after the other is compared with the truth; only nothing at all needs proof.
    if (isSame && after.nodes.size > 0) return undefined
    const lostMs = this.#nowMs() - (this.#model.epochs.get(after.cursor.epoch)?.sinceMs ?? 0)
    for (const [id, { leased, incarnation }] of before.nodes) {
      if (after.nodes.has(id) || this.#isRemoved(id, incarnation, before, after)) continue
      if (!isSame && after.nodes.size > 0 && leased && lostMs >= RETURN_MS) continue
      return id
    }
    return undefined
  }

  #isRemoved(id: string, incarnation: number, { service, cursor }: View, after: View): boolean {
    const epochs = [...this.#model.epochs.values()]
    const from = epochs.findIndex((epoch) => epoch.id === cursor.epoch)
    const to = epochs.findIndex((epoch) => epoch.id === after.cursor.epoch)
    return epochs.slice(Math.max(0, from), to + 1).some((epoch) =>
      epoch.removed.get(keyOf(service))?.some(
        ({ entry, revision }) =>
          entry.node.id === id &&
          // An operator has removed it, and its owner has put it back: a backup of the time between shows the first only.
          (epoch.id !== cursor.epoch || revision > cursor.revision || entry.node.incarnation >= incarnation),
      ),
    )
  }
}
