/**
 * The state of a store in memory, and transactions on it with their undoing. Knows no disk: an engine takes the
 * {@link Write}s of a transaction to its own, and calls {@link Draft.undo} when that fails.
 */

import type { Override, PolicyDocument, Removal, RemovalCause, ServiceNode } from '@holdfast/registry-client/protocol'
import type {
  ChangeItem,
  Committed,
  Lease,
  NodeEntry,
  NodeRef,
  ServiceChange,
  ServiceRecord,
  ServiceState,
  StoreReader,
  Transaction,
  Why,
} from './store.ts'

/** One durable record to set, or to remove where `value` is undefined. */
export type Write =
  | { readonly kind: 'node'; readonly ref: NodeRef; readonly value: NodeEntry | undefined }
  | { readonly kind: 'override'; readonly ref: NodeRef; readonly value: Override | undefined }
  | {
      readonly kind: 'policy'
      readonly namespace: string
      readonly service: string
      readonly value: PolicyDocument | undefined
    }
  | {
      readonly kind: 'service'
      readonly namespace: string
      readonly service: string
      readonly value: ServiceRecord | undefined
    }
  | { readonly kind: 'lease'; readonly id: string; readonly value: Lease | undefined }

/** A write as a transaction's body made it: what it changed, and why. */
export type Deed = Write & { readonly why?: Why | undefined }

interface Slot {
  readonly namespace: string
  readonly service: string
  record: ServiceRecord | undefined
  policy: PolicyDocument | undefined
  readonly nodes: Map<string, NodeEntry>
}

export interface StateCounts {
  nodes: number
  overrides: number
  policies: number
  services: number
  leases: number
}

export class StoreMemory implements StoreReader {
  readonly #services = new Map<string, Slot>()
  readonly #overrides = new Map<string, Override>()
  readonly #leases = new Map<string, Lease>()
  /** By lease, the nodes under it, by their keys. Leases without nodes have no entry. */
  readonly #leased = new Map<string, Map<string, NodeRef>>()
  readonly counts: StateCounts = { nodes: 0, overrides: 0, policies: 0, services: 0, leases: 0 }
  revision = 0

  /** Runs a body on this state, which then has its changes. Throws what the body throws, with everything undone. */
  run<T>(body: (tx: Transaction) => T, time: string): { draft: Draft; result: T } {
    const draft = new Draft(this, this.revision + 1, time)
    try {
      const result = body(draft)
      draft.seal()
      return { draft, result }
    } catch (error) {
      draft.undo()
      throw error
    }
  }

  services(): Iterable<ServiceState> {
    return states(this.#services.values())
  }

  leases(): Iterable<Lease> {
    return this.#leases.values()
  }

  node(ref: NodeRef): NodeEntry | undefined {
    return this.#services.get(serviceKey(ref.namespace, ref.service))?.nodes.get(ref.id)
  }

  override(ref: NodeRef): Override | undefined {
    return this.#overrides.get(nodeKey(ref))
  }

  *overrides(): Iterable<{ ref: NodeRef; override: Override }> {
    for (const [key, override] of this.#overrides) {
      const [namespace, service, id] = key.split('/') as [string, string, string]
      yield { ref: { namespace, service, id }, override }
    }
  }

  policy(namespace: string, service: string): PolicyDocument | undefined {
    return this.#services.get(serviceKey(namespace, service))?.policy
  }

  service(namespace: string, service: string): ServiceRecord | undefined {
    return this.#services.get(serviceKey(namespace, service))?.record
  }

  nodeCount(namespace: string, service: string): number {
    return this.#services.get(serviceKey(namespace, service))?.nodes.size ?? 0
  }

  lease(id: string): Lease | undefined {
    return this.#leases.get(id)
  }

  leaseCount(): number {
    return this.counts.leases
  }

  overrideCount(): number {
    return this.counts.overrides
  }

  nodesOfLease(id: string): readonly NodeRef[] {
    return [...(this.#leased.get(id)?.values() ?? [])]
  }

  /** All nodes under leases. */
  *leased(): Iterable<{ readonly ref: NodeRef; readonly lease: string }> {
    for (const [lease, refs] of this.#leased) for (const ref of refs.values()) yield { ref, lease }
  }

  /** Services with content but without a record of their own, which no engine ever writes. */
  *unrecorded(): Iterable<{ readonly namespace: string; readonly service: string }> {
    for (const { namespace, service, record } of this.#services.values())
      if (record === undefined) yield { namespace, service }
  }

  /** Sets one record; returns the write that would set it back. */
  apply(write: Write): Write {
    switch (write.kind) {
      case 'node':
        return { ...write, value: this.#setNode(write.ref, write.value) }
      case 'override':
        return { ...write, value: this.#set(this.#overrides, 'overrides', nodeKey(write.ref), write.value) }
      case 'lease':
        return { ...write, value: this.#set(this.#leases, 'leases', write.id, write.value) }
      case 'policy': {
        const slot = this.#slot(write.namespace, write.service)
        const before = slot.policy
        slot.policy = write.value
        this.counts.policies += Number(write.value !== undefined) - Number(before !== undefined)
        return { ...write, value: before }
      }
      case 'service': {
        const slot = this.#slot(write.namespace, write.service)
        const before = slot.record
        slot.record = write.value
        this.counts.services += Number(write.value !== undefined) - Number(before !== undefined)
        return { ...write, value: before }
      }
    }
  }

  /** Takes back a write by what {@link apply} returned for it. */
  revert(before: Write): void {
    this.apply(before)
    if (before.kind === 'override' || before.kind === 'lease') return
    const { namespace, service } = before.kind === 'node' ? before.ref : before
    const key = serviceKey(namespace, service)
    const slot = this.#services.get(key)
    // A service that was never durable leaves nothing, or refused requests for random names would fill the memory.
    if (slot && slot.record === undefined && slot.policy === undefined && slot.nodes.size === 0)
      this.#services.delete(key)
  }

  #slot(namespace: string, service: string): Slot {
    const key = serviceKey(namespace, service)
    let slot = this.#services.get(key)
    if (slot === undefined) {
      slot = { namespace, service, record: undefined, policy: undefined, nodes: new Map() }
      this.#services.set(key, slot)
    }
    return slot
  }

  #setNode(ref: NodeRef, value: NodeEntry | undefined): NodeEntry | undefined {
    const { nodes } = this.#slot(ref.namespace, ref.service)
    const before = this.#set(nodes, 'nodes', ref.id, value)
    if (before?.lease !== value?.lease) {
      const key = nodeKey(ref)
      if (before?.lease !== undefined) {
        const refs = this.#leased.get(before.lease)
        refs?.delete(key)
        if (refs?.size === 0) this.#leased.delete(before.lease)
      }
      if (value?.lease !== undefined) {
        const refs = this.#leased.get(value.lease)
        if (refs) refs.set(key, ref)
        else this.#leased.set(value.lease, new Map([[key, ref]]))
      }
    }
    return before
  }

  #set<V>(map: Map<string, V>, count: keyof StateCounts, key: string, value: V | undefined): V | undefined {
    const before = map.get(key)
    if (value === undefined) map.delete(key)
    else map.set(key, value)
    this.counts[count] += Number(value !== undefined) - Number(before !== undefined)
    return before
  }
}

/** What one body did to one service. */
interface Touched {
  readonly namespace: string
  readonly service: string
  readonly put: Map<string, ServiceNode>
  readonly remove: Map<string, Removal>
  policy: PolicyDocument | null | undefined
  readonly items: Map<string, ChangeItem & { ids: string[] }>
}

/** One transaction while its body runs, and after it what it did. */
export class Draft implements Transaction {
  readonly #memory: StoreMemory
  readonly #time: string
  readonly #writes: Deed[] = []
  readonly #undo: Write[] = []
  readonly #touched = new Map<string, Touched>()
  readonly #leasesPut = new Map<string, Lease>()
  readonly #leasesRemoved = new Set<string>()
  #committed: Committed | undefined
  readonly revision: number

  constructor(memory: StoreMemory, revision: number, time: string) {
    this.#memory = memory
    this.revision = revision
    this.#time = time
  }

  /** Undefined when the body changed nothing. */
  get committed(): Committed | undefined {
    return this.#committed
  }

  /** In order; those of service records, which follow from the others, come last. */
  get writes(): readonly Deed[] {
    return this.#writes
  }

  node(ref: NodeRef): NodeEntry | undefined {
    return this.#memory.node(ref)
  }

  override(ref: NodeRef): Override | undefined {
    return this.#memory.override(ref)
  }

  policy(namespace: string, service: string): PolicyDocument | undefined {
    return this.#memory.policy(namespace, service)
  }

  lease(id: string): Lease | undefined {
    return this.#memory.lease(id)
  }

  leaseCount(): number {
    return this.#memory.leaseCount()
  }

  overrideCount(): number {
    return this.#memory.overrideCount()
  }

  overrides(): Iterable<{ ref: NodeRef; override: Override }> {
    return this.#memory.overrides()
  }

  nodesOfLease(id: string): readonly NodeRef[] {
    return this.#memory.nodesOfLease(id)
  }

  putNode(ref: NodeRef, entry: NodeEntry, why: Why | undefined): void {
    this.#set({ kind: 'node', ref, value: entry, why })
    const touched = this.#touch(ref.namespace, ref.service)
    touched.remove.delete(ref.id)
    touched.put.set(ref.id, entry.node)
    if (why) note(touched, 'node', why, ref.id)
  }

  removeNode(ref: NodeRef, why: Why & { readonly cause: RemovalCause }): void {
    const entry = this.#memory.node(ref)
    if (entry === undefined) return
    this.#set({ kind: 'node', ref, value: undefined, why })
    const touched = this.#touch(ref.namespace, ref.service)
    touched.put.delete(ref.id)
    const removal = Object.freeze({
      id: ref.id,
      cause: why.cause,
      time: this.#time,
      revision: this.revision,
      incarnation: entry.node.incarnation,
    })
    // Set again at the end: the last entry is the node that went last.
    touched.remove.delete(ref.id)
    touched.remove.set(ref.id, removal)
    note(touched, 'node', why, ref.id)
  }

  putOverride(ref: NodeRef, override: Override | undefined, why: Why): void {
    this.#set({ kind: 'override', ref, value: override, why })
    note(this.#touch(ref.namespace, ref.service), 'override', why, ref.id)
  }

  putPolicy(namespace: string, service: string, policy: PolicyDocument | undefined, why: Why): void {
    this.#set({ kind: 'policy', namespace, service, value: policy, why })
    const touched = this.#touch(namespace, service)
    touched.policy = policy ?? null
    note(touched, 'policy', why)
  }

  putLease(lease: Lease): void {
    this.#set({ kind: 'lease', id: lease.id, value: lease })
    this.#leasesRemoved.delete(lease.id)
    this.#leasesPut.set(lease.id, lease)
  }

  removeLease(id: string): void {
    if (this.#memory.lease(id) === undefined) return
    this.#set({ kind: 'lease', id, value: undefined })
    this.#leasesPut.delete(id)
    this.#leasesRemoved.add(id)
  }

  /** Ends the body: gives every service it touched the new revision. */
  seal(): void {
    if (this.#writes.length === 0) return
    const changes: ServiceChange[] = []
    for (const touched of this.#touched.values()) {
      const { namespace, service } = touched
      const before = this.#memory.service(namespace, service)
      const remove = [...touched.remove.values()]
      const emptied = this.#memory.nodeCount(namespace, service) > 0 ? undefined : (remove.at(-1) ?? before?.emptied)
      const record = Object.freeze({ revision: this.revision, ...(emptied && { emptied }) })
      this.#set({ kind: 'service', namespace, service, value: record })
      changes.push({
        namespace,
        service,
        after: before?.revision ?? 0,
        put: [...touched.put.values()],
        remove,
        ...(touched.policy !== undefined && { policy: touched.policy }),
        ...(emptied && { emptied }),
        items: [...touched.items.values()],
      })
    }
    this.#memory.revision = this.revision
    this.#committed = {
      revision: this.revision,
      time: this.#time,
      changes,
      leases: { put: [...this.#leasesPut.values()], removed: [...this.#leasesRemoved] },
    }
  }

  /** Takes everything back. Of several drafts the youngest first. */
  undo(): void {
    for (let write = this.#undo.pop(); write !== undefined; write = this.#undo.pop()) this.#memory.revert(write)
    if (this.#committed) this.#memory.revision = this.revision - 1
  }

  #set(write: Deed): void {
    this.#undo.push(this.#memory.apply(write))
    this.#writes.push(write)
  }

  #touch(namespace: string, service: string): Touched {
    const key = serviceKey(namespace, service)
    let touched = this.#touched.get(key)
    if (touched === undefined) {
      touched = { namespace, service, put: new Map(), remove: new Map(), policy: undefined, items: new Map() }
      this.#touched.set(key, touched)
    }
    return touched
  }
}

/**
 * Does again what another body did: on the same state it leaves the same, so that everyone who follows the same deeds
 * has the same state.
 */
export function redo(tx: Transaction, deed: Deed): void {
  switch (deed.kind) {
    case 'node':
      if (deed.value) return tx.putNode(deed.ref, deed.value, deed.why)
      return tx.removeNode(deed.ref, deed.why as Why & { readonly cause: RemovalCause })
    case 'override':
      return tx.putOverride(deed.ref, deed.value, deed.why!)
    case 'policy':
      return tx.putPolicy(deed.namespace, deed.service, deed.value, deed.why!)
    case 'lease':
      return deed.value ? tx.putLease(deed.value) : tx.removeLease(deed.id)
    case 'service':
      throw new Error('records of services follow from the rest')
  }
}

function note(touched: Touched, kind: ChangeItem['kind'], why: Why, id?: string): void {
  const key = `${kind} ${why.cause} ${why.by}`
  let item = touched.items.get(key)
  if (item === undefined) touched.items.set(key, (item = { kind, cause: why.cause, by: why.by, ids: [] }))
  if (id !== undefined) item.ids.push(id)
}

function* states(slots: Iterable<Slot>): Iterable<ServiceState> {
  for (const { namespace, service, record, policy, nodes } of slots)
    if (record) yield { namespace, service, record, policy, nodes: nodesOf(nodes) }
}

function* nodesOf(entries: ReadonlyMap<string, NodeEntry>): Iterable<ServiceNode> {
  for (const entry of entries.values()) yield entry.node
}

/** Names cannot hold a slash, so keys cannot collide. */
export function serviceKey(namespace: string, service: string): string {
  return `${namespace}/${service}`
}

export function nodeKey(ref: NodeRef): string {
  return `${ref.namespace}/${ref.service}/${ref.id}`
}
