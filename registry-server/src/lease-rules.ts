/** What leases do to a store's transaction, and how they refuse. */

import type { Lease, Transaction } from './store/store.ts'

/** Nodes that go in one transaction. A shared store takes some thousand operations in one. */
export const NODES_AT_ONCE = 1_000

/** The lease has ended, or never was: register again. */
export class LeaseNotFound extends Error {
  readonly code = 'lease_not_found'
  constructor() {
    super('no such lease: it has ended, so register again')
    this.name = 'LeaseNotFound'
  }
}

/** The registry holds as many leases as it may. */
export class TooManyLeases extends Error {
  readonly code = 'too_many_requests'
  constructor(max: number) {
    super(`the registry holds ${max} leases, as many as it may`)
    this.name = 'TooManyLeases'
  }
}

export interface LeaseGranter {
  /** Grants a lease within a transaction. @throws TooManyLeases */
  grantIn(tx: Transaction, terms: Omit<Lease, 'id'>): Lease
}

/**
 * Removes a lease and its nodes, or as many of them as one transaction takes. From then on the lease is ending, for
 * whoever shares the store: it goes on to its end, whoever writes the rest, and nothing renews it. Its registrant, told
 * that it is gone, registers everything again, and not only what it happens to miss.
 * @returns whether it is gone
 */
export function endLease(tx: Transaction, lease: Lease, cause: 'deregistered' | 'lease_expired'): boolean {
  const refs = tx.nodesOfLease(lease.id)
  for (const ref of refs.slice(0, NODES_AT_ONCE)) tx.removeNode(ref, { cause, by: lease.owner })
  const isLast = refs.length <= NODES_AT_ONCE
  if (isLast) tx.removeLease(lease.id)
  else if (!isEnding(lease)) tx.putLease(Object.freeze({ ...lease, ttlMs: 0 }))
  return isLast
}

/** Whether part of a lease's nodes are gone already, and the rest will be. */
export function isEnding(lease: Lease): boolean {
  return lease.ttlMs === 0
}

/** After a node left a lease: ends the lease if it was made for that node and holds no other. */
export function dropOwnLease(tx: Transaction, id: string | undefined): void {
  if (id !== undefined && tx.lease(id)?.own === true && tx.nodesOfLease(id).length === 0) tx.removeLease(id)
}
