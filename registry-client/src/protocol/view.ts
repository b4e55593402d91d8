import { NodeMap } from '../node-map.ts'
import { cursorOf, formatCursor, type Cursor } from './cursor.ts'
import { decodeKept, type Kept } from './kept.ts'
import { namespaceOf, serviceOf } from './names.ts'
import { decodeNode, type ServiceNode } from './node.ts'
import { policyOf, type PolicyDocument } from './policy-document.ts'
import { list, ProtocolError, record } from './reading.ts'
import { decodeRemoval, type Removal } from './removal.ts'

/** All that a client knows of one service. Immutable: every part of it is frozen by `fold` and {@link decodeView}. */
export interface View {
  readonly namespace: string
  readonly service: string
  /** The revision of the service's last change; revision 0 for a service the registry never heard of. */
  readonly cursor: Cursor
  readonly nodes: ReadonlyMap<string, ServiceNode>
  readonly policy: PolicyDocument | undefined
  /** For a view without nodes: the removal that took the last one. A store knows it for ever, so it outlives history. */
  readonly emptied?: Removal
  /** For a view that a client has made of two: which nodes the registry does not name, and where they are known from. */
  readonly kept?: Kept
}

/** `nodes` as an array: the form of a view on the wire and on disk. */
export interface ViewDocument extends Omit<View, 'nodes' | 'cursor' | 'policy' | 'kept'> {
  readonly cursor: string
  readonly nodes: readonly ServiceNode[]
  readonly policy: PolicyDocument | null
  readonly kept?: Omit<Kept, 'cursor'> & { readonly cursor: string }
}

/** A view's wire form. */
export function encodeView(view: View): ViewDocument {
  return {
    namespace: view.namespace,
    service: view.service,
    cursor: formatCursor(view.cursor),
    nodes: [...view.nodes.values()],
    policy: view.policy ?? null,
    ...(view.emptied && { emptied: view.emptied }),
    ...(view.kept && { kept: { ...view.kept, cursor: formatCursor(view.kept.cursor) } }),
  }
}

/**
 * Reads a view from parsed JSON, deeply frozen. Unknown fields are ignored, so that a newer registry can talk to an
 * older client; everything that is read is checked.
 * @throws ProtocolError with the path of the offending field
 */
export function decodeView(input: unknown, path = 'view'): View {
  const doc = record(input, path)
  const decoded = list(doc.nodes, `${path}.nodes`).map((item, index) => decodeNode(item, `${path}.nodes.${index}`))
  const nodes = NodeMap.of(decoded)
  if (nodes.size < decoded.length) {
    const index = decoded.findIndex((node) => nodes.get(node.id) !== node)
    throw new ProtocolError(`${path}.nodes.${index}.id`, `a second node ${decoded[index]!.id}`)
  }
  return Object.freeze({
    namespace: namespaceOf(doc.namespace, `${path}.namespace`),
    service: serviceOf(doc.service, `${path}.service`),
    cursor: Object.freeze(cursorOf(doc.cursor, `${path}.cursor`)),
    nodes,
    policy: doc.policy == null ? undefined : policyOf(doc.policy, `${path}.policy`),
    ...(doc.emptied !== undefined && { emptied: decodeRemoval(doc.emptied, `${path}.emptied`) }),
    ...(doc.kept !== undefined && { kept: decodeKept(doc.kept, nodes, `${path}.kept`) }),
  })
}
