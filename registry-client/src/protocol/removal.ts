import { LIMITS } from './limits.ts'
import type { ServiceNode } from './node.ts'
import { PATTERNS } from './patterns.ts'
import { integer, matching, oneOf, record } from './reading.ts'

export const REMOVAL_CAUSES = ['deregistered', 'lease_expired', 'operator'] as const
export type RemovalCause = (typeof REMOVAL_CAUSES)[number]
export type Cause = 'registered' | RemovalCause

/** Why a node went, when, and at which revision. The proof without which a client never empties a view. */
export interface Removal {
  readonly id: string
  readonly cause: RemovalCause
  /** ISO 8601, the registry's clock. */
  readonly time: string
  readonly revision: number
  /** Of the life that ended; absent where history has kept only that one did. */
  readonly incarnation?: number
}

/**
 * Whether a removal by the store of another epoch says that this node is gone. A restored backup removes what lived when
 * it was made, which may be an earlier life. A node without a lease has but one.
 */
export function accountsFor(removal: Removal, node: ServiceNode): boolean {
  return removal.id === node.id && (!node.leased || (removal.incarnation ?? -1) >= node.incarnation)
}

export function decodeRemoval(input: unknown, path: string): Removal {
  const doc = record(input, path)
  return Object.freeze({
    id: matching(doc.id, PATTERNS.nodeId, LIMITS.nodeIdChars, `${path}.id`),
    cause: oneOf(doc.cause, REMOVAL_CAUSES, `${path}.cause`),
    time: matching(doc.time, PATTERNS.text, 64, `${path}.time`),
    revision: integer(doc.revision, 0, Number.MAX_SAFE_INTEGER, `${path}.revision`),
    ...(doc.incarnation !== undefined && {
      incarnation: integer(doc.incarnation, 0, Number.MAX_SAFE_INTEGER, `${path}.incarnation`),
    }),
  })
}
