/**
 * The wire contract: what a registry and its clients say to each other. Imports nothing but the map of a view's nodes,
 * which imports nothing.
 *
 * A `View` is all that a client knows of one service, at one `Cursor`; a `Frame` turns one view into the next by `fold`.
 * Registry, client library and sidecar share these shapes, so a rule about a valid message stands once, in the file of
 * what it is about.
 */

export { LIMITS } from './protocol/limits.ts'
export { inWords, PATTERNS } from './protocol/patterns.ts'
export { ProtocolError } from './protocol/reading.ts'
export { DEFAULT_NAMESPACE, isNamespace, isServiceName } from './protocol/names.ts'
export { formatCursor, isAfter, isSameCursor, parseCursor, type Cursor } from './protocol/cursor.ts'
export {
  decodeNode,
  NODE_STATUSES,
  PROTOCOLS,
  type NodeStatus,
  type Override,
  type Protocol,
  type ServiceNode,
} from './protocol/node.ts'
export { accountsFor, REMOVAL_CAUSES, type Cause, type Removal, type RemovalCause } from './protocol/removal.ts'
export type { PolicyDocument } from './protocol/policy-document.ts'
export type { Kept } from './protocol/kept.ts'
export { decodeView, encodeView, type View, type ViewDocument } from './protocol/view.ts'
export { isProven, unaccounted } from './protocol/proof.ts'
export { carryOver, takeApart } from './protocol/carry-over.ts'
export { encodeFrame, fold, type ChangeFrame, type Frame, type SnapshotFrame } from './protocol/frame.ts'
export { MAX_SPREAD_MS, type Ping, type PingData } from './protocol/ping.ts'
export { decodeEvent, EVENTS, type StreamEvent } from './protocol/stream-event.ts'
export {
  decodeClientMessage,
  type ClientMessage,
  type ServiceRef,
  type Subscription,
} from './protocol/client-message.ts'
export type { Problem, ProblemCode } from './protocol/problem.ts'
