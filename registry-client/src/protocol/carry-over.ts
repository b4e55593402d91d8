/** One view of two: what the registry says, and what it has left out without a word about why. */

import { NodeMap } from '../node-map.ts'
import type { Kept } from './kept.ts'
import type { ServiceNode } from './node.ts'
import type { View } from './view.ts'

/** `next` with the nodes of `current` that it does not account for, and with its policy where it has none. */
export function carryOver(current: View, next: View, missing: readonly ServiceNode[]): View {
  const { namespace, service, cursor } = next
  const nodes = NodeMap.from(next.nodes).with(missing, [])
  const policy = next.policy ?? current.policy
  const kept = Object.freeze({
    cursor: current.cursor,
    ids: Object.freeze(missing.map(({ id }) => id)),
    policy: next.policy === undefined && policy !== undefined,
  })
  return Object.freeze({ namespace, service, cursor, nodes, policy, kept })
}

/** The two views that {@link carryOver} has made one of: what was known, as far as it is kept, and what the registry said. */
export function takeApart(view: View, kept: Kept): { readonly known: View; readonly heard: View } {
  const { namespace, service, policy } = view
  const { cursor, ids } = kept
  const nodes = NodeMap.from(view.nodes)
  const known = NodeMap.of(ids.map((id) => view.nodes.get(id)!))
  return {
    known: Object.freeze({ namespace, service, cursor, nodes: known, policy }),
    heard: Object.freeze({
      namespace,
      service,
      cursor: view.cursor,
      nodes: nodes.with([], ids),
      policy: kept.policy ? undefined : policy,
    }),
  }
}
