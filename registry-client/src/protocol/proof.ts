/** What a view has to say of the nodes that it does not name any more. */

import type { ServiceNode } from './node.ts'
import { accountsFor } from './removal.ts'
import type { View } from './view.ts'

/**
 * The nodes of `current` that are missing in `next` without a word about why: never empty without proof.
 *
 * Within one epoch a store removes nothing without a cause, so only a view without nodes needs proof: the removal that
 * emptied the service, later than what the client knew, accounts for them all. Across epochs each node has to be
 * accounted for on its own: a store that was wiped or restored knows nothing of the nodes of the old one, and its first
 * word must not send all traffic to the first of them that returns.
 * @param removed ids of nodes that removals of the new store have accounted for
 */
export function unaccounted(current: View | undefined, next: View, removed?: ReadonlySet<string>): ServiceNode[] {
  if (current === undefined) return []
  const { emptied } = next
  if (current.cursor.epoch === next.cursor.epoch) {
    const isProven = next.nodes.size > 0 || (emptied !== undefined && emptied.revision > current.cursor.revision)
    return isProven ? [] : [...current.nodes.values()]
  }
  return [...current.nodes.values()].filter((node) => {
    if (next.nodes.has(node.id) || removed?.has(node.id) === true) return false
    return emptied === undefined || !accountsFor(emptied, node)
  })
}

/** Whether a view can be taken for what it is by those who know nothing else: it names nodes, or the removal of the last. */
export function isProven(view: View): boolean {
  return view.nodes.size > 0 || view.emptied !== undefined
}
