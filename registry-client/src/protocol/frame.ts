import { NodeMap } from '../node-map.ts'
import { cursorOf, formatCursor, type Cursor } from './cursor.ts'
import { namespaceOf, serviceOf } from './names.ts'
import { decodeNode, type ServiceNode } from './node.ts'
import { policyOf, type PolicyDocument } from './policy-document.ts'
import { list, record } from './reading.ts'
import { decodeRemoval, type Removal } from './removal.ts'
import { encodeView, type View } from './view.ts'

export interface SnapshotFrame {
  readonly kind: 'snapshot'
  readonly view: View
}

/** The net effect of all that happened to one service between `after` and `cursor`. */
export interface ChangeFrame {
  readonly kind: 'change'
  readonly namespace: string
  readonly service: string
  readonly after: Cursor
  readonly cursor: Cursor
  readonly put: readonly ServiceNode[]
  readonly remove: readonly Removal[]
  /** Absent: unchanged. Null: the service has no policy any more. */
  readonly policy?: PolicyDocument | null
}

export type Frame = SnapshotFrame | ChangeFrame

/**
 * The view after a frame. Pure.
 *
 * A change carries absolute states, so it may be applied to any view from its `after` up to its `cursor`; one that
 * is not newer returns `current` itself. Undefined means that the frame does not continue this view (a gap, another
 * epoch, no view at all): ask for a snapshot. There is no other recovery.
 */
export function fold(current: View | undefined, frame: Frame): View | undefined {
  if (frame.kind === 'snapshot') return frame.view
  if (current === undefined || current.cursor.epoch !== frame.cursor.epoch || frame.after.epoch !== frame.cursor.epoch)
    return undefined
  if (current.cursor.revision >= frame.cursor.revision) return current
  if (frame.after.revision > current.cursor.revision) return undefined
  const removed = frame.remove.map(({ id }) => id)
  const nodes = NodeMap.from(current.nodes).with(frame.put, removed)
  const last = nodes.size === 0 ? (latest(frame.remove) ?? current.emptied) : undefined
  return Object.freeze({
    namespace: current.namespace,
    service: current.service,
    cursor: frame.cursor,
    nodes,
    policy: frame.policy === undefined ? current.policy : (frame.policy ?? undefined),
    ...(last && { emptied: last }),
  })
}

function latest(removals: readonly Removal[]): Removal | undefined {
  let last: Removal | undefined
  for (const removal of removals) if (last === undefined || removal.revision >= last.revision) last = removal
  return last
}

/** The `data` of a frame's event. */
export function encodeFrame(frame: Frame): object {
  if (frame.kind === 'snapshot') return encodeView(frame.view)
  return {
    namespace: frame.namespace,
    service: frame.service,
    after: formatCursor(frame.after),
    cursor: formatCursor(frame.cursor),
    put: frame.put,
    remove: frame.remove,
    ...(frame.policy !== undefined && { policy: frame.policy }),
  }
}

/**
 * Reads the `data` of a change's event from parsed JSON.
 * @throws ProtocolError with the path of the offending field
 */
export function decodeChange(input: unknown, path = 'change'): ChangeFrame {
  const doc = record(input, path)
  return {
    kind: 'change',
    namespace: namespaceOf(doc.namespace, `${path}.namespace`),
    service: serviceOf(doc.service, `${path}.service`),
    after: cursorOf(doc.after, `${path}.after`),
    cursor: Object.freeze(cursorOf(doc.cursor, `${path}.cursor`)),
    put: list(doc.put, `${path}.put`).map((item, index) => decodeNode(item, `${path}.put.${index}`)),
    remove: list(doc.remove, `${path}.remove`).map((item, index) => decodeRemoval(item, `${path}.remove.${index}`)),
    ...(doc.policy !== undefined && { policy: doc.policy === null ? null : policyOf(doc.policy, `${path}.policy`) }),
  }
}
