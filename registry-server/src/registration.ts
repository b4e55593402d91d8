/** What a write does to a node: pure decisions on a store's transaction. */

import { PROTOCOLS, type NodeStatus, type Override, type ServiceNode } from '@holdfast/registry-client/protocol'
import { dropOwnLease, isEnding, LeaseNotFound, type LeaseGranter } from './lease-rules.ts'
import type { Lease, NodeRef, Transaction } from './store/store.ts'

/** The node is held by a newer instance than the one that speaks. */
export class StaleIncarnation extends Error {
  readonly code = 'stale_incarnation'
  /** The one that the registry holds. */
  readonly incarnation: number
  constructor(incarnation: number) {
    super(`the registry holds incarnation ${incarnation} of this node`)
    this.name = 'StaleIncarnation'
    this.incarnation = incarnation
  }
}

/** The registry holds as many overrides as it may. */
export class TooManyOverrides extends Error {
  readonly code = 'too_many_requests'
  constructor(max: number) {
    super(
      `the registry holds ${max} overrides, as many as it may; GET /v1/overrides?namespace=* lists them, also those of ` +
        'nodes that are gone, which may be cleared',
    )
    this.name = 'TooManyOverrides'
  }
}

/** What a registrant says of a node. */
export interface NodeSpec {
  readonly host: string
  readonly port: number
  readonly protocol?: ServiceNode['protocol']
  readonly weight?: number
  readonly zone?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly status?: NodeStatus
  readonly incarnation?: number
  /** The lease to register under, or the ttl of one for this node alone; without both the node is static. */
  readonly lease?: string
  readonly ttlMs?: number
}

export interface Registered {
  readonly created: boolean
  readonly node: ServiceNode
  /** The node's lease, if any: to be renewed now, as registering does. */
  readonly lease: string | undefined
  /** That lease was made for this node alone. */
  readonly isOwn: boolean
}

const NO_LABELS: ServiceNode['labels'] = Object.freeze({})

/**
 * Registers a node or says it again. Saying the same changes nothing.
 * @throws StaleIncarnation, LeaseNotFound, TooManyLeases
 */
export function registerNode(
  tx: Transaction,
  leases: LeaseGranter,
  ref: NodeRef,
  spec: NodeSpec,
  by: string,
): Registered {
  const before = tx.node(ref)
  const incarnation = spec.incarnation ?? before?.node.incarnation ?? 1
  if (before && incarnation < before.node.incarnation) throw new StaleIncarnation(before.node.incarnation)
  const lease = leaseFor(tx, leases, spec, by, before?.node.incarnation === incarnation ? before.lease : undefined)
  const node = nodeOf(ref, spec, incarnation, lease !== undefined, tx.override(ref))
  if (!before || before.lease !== lease?.id || !isSame(before.node, node)) {
    const entry = Object.freeze({ node, ...(lease && { lease: lease.id }) })
    tx.putNode(ref, entry, { cause: 'registered', by: lease?.owner ?? by })
    if (before?.lease !== lease?.id) dropOwnLease(tx, before?.lease)
  }
  return { created: before === undefined, node, lease: lease?.id, isOwn: lease?.own === true }
}

function leaseFor(
  tx: Transaction,
  leases: LeaseGranter,
  spec: NodeSpec,
  by: string,
  heldId: string | undefined,
): Lease | undefined {
  if (spec.lease !== undefined) {
    const lease = tx.lease(spec.lease)
    // One that is ending takes what is still put under it along.
    if (lease === undefined || isEnding(lease)) throw new LeaseNotFound()
    return lease
  }
  if (spec.ttlMs === undefined) return undefined
  const held = heldId === undefined ? undefined : tx.lease(heldId)
  if (held?.own !== true) return leases.grantIn(tx, { ttlMs: spec.ttlMs, owner: by, own: true })
  if (held.ttlMs === spec.ttlMs) return held
  const changed = Object.freeze({ ...held, ttlMs: spec.ttlMs })
  tx.putLease(changed)
  return changed
}

function nodeOf(
  { id }: NodeRef,
  spec: NodeSpec,
  incarnation: number,
  leased: boolean,
  override: Override | undefined,
): ServiceNode {
  const registered = statement(spec.status ?? 'up', spec.weight ?? 100)
  return Object.freeze({
    id,
    host: spec.host,
    port: spec.port,
    protocol: spec.protocol ?? PROTOCOLS[0],
    weight: override?.weight ?? registered.weight,
    ...(spec.zone !== undefined && { zone: spec.zone }),
    labels: labelsOf(spec.labels),
    status: override?.status ?? registered.status,
    incarnation,
    leased,
    registered,
    ...(override && { override }),
  })
}

/** In the order of their keys, so that the same labels in another order are the same node. */
function labelsOf(labels: ServiceNode['labels'] | undefined): ServiceNode['labels'] {
  const entries = Object.entries(labels ?? {})
  if (entries.length === 0) return NO_LABELS
  return Object.freeze(Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1))))
}

const statements = new Map<string, ServiceNode['registered']>()

/** Nearly all nodes say the same, so they share the object. There are three thousand at most. */
function statement(status: NodeStatus, weight: number): ServiceNode['registered'] {
  const key = `${status} ${weight}`
  let kept = statements.get(key)
  if (kept === undefined) statements.set(key, (kept = Object.freeze({ status, weight })))
  return kept
}

function isSame(a: ServiceNode, b: ServiceNode): boolean {
  return JSON.stringify(a) === JSON.stringify(b)
}

/** Which instance a removal means. Without both it is an operator's word, and takes the override along. */
export interface Fence {
  readonly incarnation?: number
  readonly lease?: string
}

/** @throws StaleIncarnation when the node is not the one that is meant */
export function removeNode(tx: Transaction, ref: NodeRef, fence: Fence, remote: string): void {
  const isOperator = fence.incarnation === undefined && fence.lease === undefined
  const held = tx.node(ref)
  if (held) {
    const { incarnation } = held.node
    if (fence.incarnation !== undefined && fence.incarnation !== incarnation) throw new StaleIncarnation(incarnation)
    if (fence.lease !== undefined && fence.lease !== held.lease) throw new StaleIncarnation(incarnation)
    const owner = held.lease === undefined ? undefined : tx.lease(held.lease)?.owner
    if (isOperator) tx.removeNode(ref, { cause: 'operator', by: operator(remote) })
    else tx.removeNode(ref, { cause: 'deregistered', by: owner ?? anonymous(remote) })
    dropOwnLease(tx, held.lease)
  }
  if (isOperator && tx.override(ref)) tx.putOverride(ref, undefined, { cause: 'operator', by: operator(remote) })
}

/** Null clears; a field left out stays. */
export type OverridePatch = { readonly status?: NodeStatus | null; readonly weight?: number | null } | null

export interface OverrideTerms {
  readonly patch: OverridePatch
  readonly max: number
  readonly remote: string
}

/**
 * @returns the node as it is then; `cleared` for one that is not there, whose override can only be taken back;
 * `absent` when there is nothing that the patch could mean
 * @throws TooManyOverrides
 */
export function overrideNode(
  tx: Transaction,
  ref: NodeRef,
  { patch, max, remote }: OverrideTerms,
): ServiceNode | 'cleared' | 'absent' {
  const held = tx.node(ref)
  const before = tx.override(ref)
  if (held === undefined) {
    const sets = patch !== null && Object.values(patch).some((value) => value !== null)
    if (before === undefined || sets) return 'absent'
  }
  const status = patch === null || patch.status === null ? undefined : (patch.status ?? before?.status)
  const weight = patch === null || patch.weight === null ? undefined : (patch.weight ?? before?.weight)
  const override =
    status === undefined && weight === undefined
      ? undefined
      : Object.freeze({ ...(status !== undefined && { status }), ...(weight !== undefined && { weight }) })
  if (before?.status === status && before?.weight === weight) return held?.node ?? 'cleared'
  if (before === undefined && tx.overrideCount() >= max) throw new TooManyOverrides(max)
  const why = { cause: 'operator', by: operator(remote) } as const
  tx.putOverride(ref, override, why)
  if (held === undefined) return 'cleared'
  const { registered } = held.node
  const changed = { ...held.node, status: status ?? registered.status, weight: weight ?? registered.weight }
  delete changed.override
  const node: ServiceNode = Object.freeze({ ...changed, ...(override && { override }) })
  // One change, told once: what the override does to the node is part of the override.
  tx.putNode(ref, Object.freeze({ ...held, node }), undefined)
  return node
}

export function anonymous(remote: string): string {
  return `anonymous@${remote}`
}

export function operator(remote: string): string {
  return `operator@${remote}`
}
