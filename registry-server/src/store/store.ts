/**
 * What a store is: the registry's durable state and the only place where writes are decided.
 *
 * Every engine keeps these promises, and `test/store.contract.ts` checks them on each:
 *
 * 1. A transaction is durable before it is acknowledged, and before anyone is told of it.
 * 2. It is one revision, all of it or nothing. Revisions only grow within an epoch, without gaps.
 * 3. Listeners learn of each in order, exactly once, and before its author is answered.
 * 4. A body that throws writes nothing. One that changes nothing makes no revision, and is answered only when all that
 *    it saw is durable.
 * 5. When the disk or the cluster behind it fails, every transaction that is not known to be durable is refused with
 *    {@link StoreUnavailable}, and the state is the last durable one again. Later transactions work as soon as it does.
 * 6. A transaction is decided on the newest state there is, whoever wrote it, also one that changes nothing.
 */

import type {
  Cause,
  Override,
  PolicyDocument,
  Removal,
  RemovalCause,
  ServiceNode,
} from '@holdfast/registry-client/protocol'

export interface NodeRef {
  readonly namespace: string
  readonly service: string
  readonly id: string
}

/** A node and the lease that its life hangs on; without one it is static. */
export interface NodeEntry {
  readonly node: ServiceNode
  readonly lease?: string
}

/** The life of one registrant. Renewals are not written: an engine knows that a lease exists, not how long it has left. */
export interface Lease {
  /** Not guessable: whoever knows it may end it. */
  readonly id: string
  readonly ttlMs: number
  readonly owner: string
  /** Made by one node's registration for that node alone, and gone with it. */
  readonly own?: true
  /** The replica that counts its time, by {@link Replicas.self}. */
  readonly holder?: string
}

/** What outlives a service's nodes, for ever: a cursor that clients hold must mean something after any restart. */
export interface ServiceRecord {
  /** Of the last change of the service's view. */
  readonly revision: number
  /** While it has no nodes: the removal of the last one. */
  readonly emptied?: Removal
}

export const CHANGE_KINDS = ['node', 'override', 'policy'] as const
export type ChangeKind = (typeof CHANGE_KINDS)[number]

/** Who did what to which nodes of one service in one transaction. `ids` is empty for a policy. */
export interface ChangeItem {
  readonly kind: ChangeKind
  readonly cause: Cause
  readonly by: string
  readonly ids: readonly string[]
}

/** The net effect of one transaction on one service. */
export interface ServiceChange {
  readonly namespace: string
  readonly service: string
  /** The revision of the service's previous change; 0 when this is its first. */
  readonly after: number
  readonly put: readonly ServiceNode[]
  readonly remove: readonly Removal[]
  /** Absent: unchanged. Null: removed. */
  readonly policy?: PolicyDocument | null
  /** Set when this change took the last node, or none was there before or after. */
  readonly emptied?: Removal
  readonly items: readonly ChangeItem[]
}

/** A durable transaction. */
export interface Committed {
  readonly revision: number
  /** ISO 8601, the registry's clock. */
  readonly time: string
  readonly changes: readonly ServiceChange[]
  readonly leases: { readonly put: readonly Lease[]; readonly removed: readonly string[] }
}

/** What history keeps of one change of one service: who did it, not the state it made. */
export interface HistoryEntry {
  readonly namespace: string
  readonly service: string
  readonly revision: number
  readonly time: string
  readonly after: number
  readonly items: readonly ChangeItem[]
}

/** A service as it is durably. */
export interface ServiceState {
  readonly namespace: string
  readonly service: string
  readonly record: ServiceRecord
  readonly nodes: Iterable<ServiceNode>
  readonly policy: PolicyDocument | undefined
}

/** All durable state, for the moment of one call. */
export interface StoreState {
  readonly revision: number
  /** What happened at or before this revision has left history. */
  readonly floor: number
  readonly services: Iterable<ServiceState>
  readonly leases: Iterable<Lease>
  /** Oldest first. */
  readonly history: Iterable<HistoryEntry>
}

export interface StoreListener {
  /**
   * Called before any transaction, and again when the store was cut off for longer than history reaches back: the state
   * then takes the place of what was known, and is never older.
   */
  load(state: StoreState): void
  /** The transactions of one group commit, in order, and how far history has been trimmed with them. Must not throw. */
  apply(transactions: readonly Committed[], floor: number): void
}

/** State for the moment of one call. */
export interface StoreReader {
  node(ref: NodeRef): NodeEntry | undefined
  override(ref: NodeRef): Override | undefined
  policy(namespace: string, service: string): PolicyDocument | undefined
  lease(id: string): Lease | undefined
  leaseCount(): number
  overrideCount(): number
  /** Those of nodes that are not there included, in no order. */
  overrides(): Iterable<{ readonly ref: NodeRef; readonly override: Override }>
  nodesOfLease(id: string): readonly NodeRef[]
}

/**
 * The latest state, which may not be durable yet, and what a body wants changed in it. Reads see the body's own writes.
 * Valid only while the body runs.
 */
export interface Transaction extends StoreReader {
  /** @param why left out when the same body notes the reason with an override */
  putNode(ref: NodeRef, entry: NodeEntry, why: Why | undefined): void
  removeNode(ref: NodeRef, why: Why & { readonly cause: RemovalCause }): void
  /** Undefined clears it. The node itself, if there, must be put in the same body. */
  putOverride(ref: NodeRef, override: Override | undefined, why: Why): void
  putPolicy(namespace: string, service: string, policy: PolicyDocument | undefined, why: Why): void
  putLease(lease: Lease): void
  /** Its nodes must have gone in the same body. */
  removeLease(id: string): void
}

export interface Why {
  readonly cause: Cause
  /** A lease's owner, or whoever sent the request. */
  readonly by: string
}

export interface Outcome<T> {
  /** Of this transaction; of the last durable one when it changed nothing. */
  readonly revision: number
  readonly result: T
}

export interface StoreStatus {
  readonly kind: string
  /** Where the state is, for people. */
  readonly location: string
  readonly leases: number
  readonly overrides: number
  /** Transactions that wait for the disk. */
  readonly pending: number
  readonly commits: number
  readonly failures: number
  /** For how long the state may have been overtaken by writes elsewhere; 0 where nobody else writes. */
  readonly ageMs: number
  /** Why nothing can be written now; undefined when it can. */
  readonly lost: string | undefined
  /** Records that cannot be read, and are left out. */
  readonly setAside: readonly { readonly key: string; readonly reason: string }[]
}

/** One process on a store that several share. */
export interface Replica {
  readonly id: string
  /** For people: where it runs. */
  readonly name: string
  /** ISO 8601, when it joined. */
  readonly since: string
}

export interface ReplicasListener {
  /** Others have come or gone, or this one was given up and is back. */
  membersChanged(): void
  /** Leases that were renewed at another replica. */
  heard(leases: readonly string[], at: string): void
}

/** The processes that share a store. Who is gone is agreed upon by the store's own leases, not by each on its own. */
export interface Replicas {
  /** This process, as in {@link Lease.holder}. Undefined where there can be no other. */
  readonly self: string | undefined
  /** Also this one, by the same measure: once false, others may have taken its leases over. */
  isAlive(id: string): boolean
  /** Tells all others, soon and together with more, which leases were renewed here. Best effort. */
  tell(lease: string): void
  list(): readonly Replica[]
  listen(listener: ReplicasListener): void
}

/** Nobody else. */
export const ALONE: Replicas = {
  self: undefined,
  isAlive: () => false,
  tell() {},
  list: () => [],
  listen() {},
}

export interface Store {
  /** The identity of this history. A new store has a new one. */
  readonly epoch: string
  /**
   * Runs `body` on the latest state and makes what it wrote durable.
   * @param body synchronous, without effects of its own: an engine may run it again on newer state
   * @throws StoreUnavailable when it is not known to be durable; whatever `body` throws
   */
  transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>>
  /** Runs `body` on the last durable state that is known here, also while nothing can be written. */
  read<T>(body: (state: StoreReader) => T): Promise<T>
  /**
   * Resolves once listeners have been told of everything that anyone was acknowledged before this call.
   * @throws StoreUnavailable when that cannot be known
   */
  sync(): Promise<void>
  readonly replicas: Replicas
  /** Tells a listener the durable state, then each transaction after it. Returns how to stop. */
  watch(listener: StoreListener): Promise<() => void>
  status(): StoreStatus
  /** Finishes what was accepted; later transactions are refused. */
  close(): Promise<void>
}

/** The engine cannot make anything durable now. Whether the refused write happened is then known only by reading. */
export class StoreUnavailable extends Error {
  readonly code = 'store_unavailable'
  readonly retryable = true
  constructor(reason: string, cause?: unknown) {
    super(`the store cannot write: ${reason}`, { cause })
    this.name = 'StoreUnavailable'
  }
}

/** A transaction of more than the engine takes in one piece. Nothing of it was written. */
export class TransactionTooLarge extends Error {
  readonly code = 'body_too_large'
  constructor(reason: string) {
    super(`too much for one transaction: ${reason}`)
    this.name = 'TransactionTooLarge'
  }
}

/** A store that must not be opened: damaged, of another format, or in use. The message says how to go on. */
export class StoreRefused extends Error {
  readonly code = 'store_refused'
  constructor(message: string, cause?: unknown) {
    super(message, { cause })
    this.name = 'StoreRefused'
  }
}

/** What to tell an operator whose store cannot be trusted. */
export function damaged(location: string, error: unknown): StoreRefused {
  const reason = error instanceof Error ? error.message : String(error)
  return new StoreRefused(
    `the store in ${location} is damaged and was not opened: ${reason}. Nothing was changed. To go on, move the ` +
      'directory away and start again with an empty one: registrants register again by themselves, and clients keep ' +
      'serving from their caches meanwhile; policies, overrides and static nodes have to be written again. Or put a ' +
      'backup of the directory in its place and start once with --new-epoch: clients have seen more than it holds, and ' +
      'would otherwise take what it says for old.',
    error,
  )
}
