/** What leases do to a store's transaction, and how they refuse. */

import type { Lease, Transaction } from './store/store.ts'

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

/** Removes a lease and all its nodes. */
export function endLease(tx: Transaction, lease: Lease, cause: 'deregistered' | 'lease_expired'): void {
  for (const ref of tx.nodesOfLease(lease.id)) tx.removeNode(ref, { cause, by: lease.owner })
  tx.removeLease(lease.id)
}

/** After a node left a lease: ends the lease if it was made for that node and holds no other. */
export function dropOwnLease(tx: Transaction, id: string | undefined): void {
  if (id !== undefined && tx.lease(id)?.own === true && tx.nodesOfLease(id).length === 0) tx.removeLease(id)
}
