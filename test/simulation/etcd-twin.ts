/**
 * What etcd does with keys, leases and watches, in memory: one history of revisions, as its members agree on it. Which
 * of them answers, and when, is the business of {@link EtcdMembers}.
 *
 * Held against a real etcd by `etcd-twin.test.ts`.
 */

import {
  EtcdFailure,
  type FeedEvent,
  type KeyValue,
  type RangeAnswer,
} from '../../registry-server/src/store/etcd/etcd-connection.ts'
import type {
  Operation,
  RangeRequest,
  TransactionAnswer,
  TransactionRequest,
} from '../../registry-server/src/store/etcd/etcd-connection.ts'

/** As etcd's `--max-request-bytes`, and what EtcdConnection offers beyond it. */
const MAX_REQUEST_BYTES = 1_572_864

interface Version {
  readonly revision: number
  /** Undefined: removed. */
  readonly value: Buffer | undefined
}

interface TwinLease {
  readonly id: string
  readonly ttlMs: number
  endsMs: number
  readonly keys: Set<string>
}

/** All changes of one revision, in their order. */
export interface TwinRevision {
  readonly revision: number
  readonly events: readonly FeedEvent[]
}

export interface EtcdTwinOptions {
  readonly nowMs: () => number
  /** Called with each revision in the turn in which it is made. */
  readonly committed?: (revision: TwinRevision) => void
}

export class EtcdTwin {
  readonly #options: EtcdTwinOptions
  readonly #keys = new Map<string, Version[]>()
  #sorted: string[] = []
  readonly #log: TwinRevision[] = []
  readonly #leases = new Map<string, TwinLease>()
  readonly #leaseOf = new Map<string, string>()
  #revision = 1
  #compacted = 0
  #lastLease = 0
  /** Writes are refused, as with a full disk. */
  noSpace = false

  constructor(options: EtcdTwinOptions) {
    this.#options = options
  }

  get revision(): number {
    return this.#revision
  }

  get compacted(): number {
    return this.#compacted
  }

  /** Keys that are there now. */
  get size(): number {
    return this.#sorted.length
  }

  get leases(): number {
    return this.#leases.size
  }

  get(key: string): RangeAnswer {
    const item = this.#at(key, this.#revision)
    return { revision: this.#revision, items: item ? [item] : [], more: false }
  }

  range({ prefix, after, limit, at, keysOnly }: RangeRequest): RangeAnswer {
    if (at !== undefined && at < this.#compacted)
      throw new EtcdFailure('compacted', 'mvcc: required revision has been compacted')
    if (at !== undefined && at > this.#revision)
      throw new EtcdFailure('unreachable', 'mvcc: required revision is a future revision')
    // Keys that are gone now may have been there then.
    const keys = at === undefined || at === this.#revision ? this.#sorted : [...this.#keys.keys()].sort()
    const items: KeyValue[] = []
    const first = after === undefined || after < prefix ? prefix : after
    for (let index = lowerBound(keys, first); index < keys.length; index++) {
      const key = keys[index]!
      if (!key.startsWith(prefix)) {
        if (key > prefix) break
        continue
      }
      if (after !== undefined && key <= after) continue
      const item = this.#at(key, at ?? this.#revision)
      if (item === undefined) continue
      if (limit !== undefined && items.length === limit) return { revision: this.#revision, items, more: true }
      items.push(keysOnly === true ? { ...item, value: Buffer.alloc(0) } : item)
    }
    return { revision: this.#revision, items, more: false }
  }

  put(key: string, value: Buffer, lease?: string): number {
    return this.transact({
      compare: [],
      success: [{ put: key, value, ...(lease !== undefined && { lease }) }],
      failure: [],
    }).revision
  }

  transact({ compare, success, failure }: TransactionRequest): TransactionAnswer {
    let bytes = 0
    for (const item of [...success, ...failure]) if ('put' in item) bytes += item.put.length + item.value.length
    if (bytes > MAX_REQUEST_BYTES) throw new EtcdFailure('too_large', 'request is too large')
    checkKeys(success)
    checkKeys(failure)
    const succeeded = compare.every(({ key, revision }) => (this.#at(key, this.#revision)?.revision ?? 0) === revision)
    const operations = succeeded ? success : failure
    const writes = operations.some((item) => 'put' in item || 'remove' in item || 'removeRange' in item)
    if (writes && this.noSpace && operations.some((item) => 'put' in item))
      throw new EtcdFailure('no_space', 'mvcc: database space exceeded')
    for (const item of operations)
      if ('put' in item && item.lease !== undefined && !this.#leases.has(item.lease))
        throw new EtcdFailure('unreachable', 'requested lease not found')
    const next = this.#revision + 1
    const events: FeedEvent[] = []
    const found: RangeAnswer[] = []
    for (const item of operations) {
      if ('put' in item) this.#put(item.put, item.value, item.lease, next, events)
      else if ('remove' in item) this.#remove(item.remove, next, events)
      else if ('removeRange' in item) {
        const [from, to] = item.removeRange
        for (const key of this.#sorted.slice(lowerBound(this.#sorted, from), lowerBound(this.#sorted, to)))
          this.#remove(key, next, events)
      } else {
        const visible = events.length > 0 ? next : this.#revision
        found.push({ ...this.#foundAt(item, visible), revision: visible })
      }
    }
    this.#commit(events)
    return { revision: this.#revision, succeeded, found }
  }

  grantLease(ttlSeconds: number): string {
    const id = String(++this.#lastLease)
    const ttlMs = ttlSeconds * 1000
    this.#leases.set(id, { id, ttlMs, endsMs: this.#options.nowMs() + ttlMs, keys: new Set() })
    return id
  }

  renewLease(id: string): boolean {
    const lease = this.#leases.get(id)
    if (lease) lease.endsMs = this.#options.nowMs() + lease.ttlMs
    return lease !== undefined
  }

  revokeLease(id: string): void {
    const lease = this.#leases.get(id)
    if (lease === undefined) throw new EtcdFailure('unreachable', 'requested lease not found')
    this.#leases.delete(id)
    const events: FeedEvent[] = []
    for (const key of [...lease.keys].sort()) this.#remove(key, this.#revision + 1, events)
    this.#commit(events)
  }

  /** What a leader does twice a second. */
  expireLeases(): void {
    const nowMs = this.#options.nowMs()
    for (const { id, endsMs } of [...this.#leases.values()]) if (endsMs <= nowMs) this.revokeLease(id)
  }

  /** What a new leader does, which does not know when they were renewed last. */
  extendLeases(): void {
    for (const lease of this.#leases.values()) lease.endsMs = this.#options.nowMs() + lease.ttlMs
  }

  compact(revision: number): void {
    if (revision <= this.#compacted || revision > this.#revision) return
    this.#compacted = revision
    const from = this.#log.findIndex((item) => item.revision >= revision)
    this.#log.splice(0, from < 0 ? this.#log.length : from)
    for (const [key, versions] of this.#keys) {
      let last = -1
      for (let index = 0; index < versions.length && versions[index]!.revision <= revision; index++) last = index
      // The newest before it is what a reading at it finds.
      if (last > 0) versions.splice(0, last)
      if (versions.length === 1 && versions[0]!.value === undefined) this.#keys.delete(key)
    }
  }

  /** What a watch from `revision` on has to tell. @returns undefined when it is compacted */
  since(revision: number): readonly TwinRevision[] | undefined {
    if (revision < this.#compacted) return undefined
    const from = this.#log.findIndex((item) => item.revision >= revision)
    return from < 0 ? [] : this.#log.slice(from)
  }

  /** All that is there, to be put back later. */
  backup(): ReadonlyMap<string, Buffer> {
    return new Map(this.#sorted.map((key) => [key, this.#at(key, this.#revision)!.value]))
  }

  /** What an operator does who empties etcd, or restores a backup into it: other content, without a lease. */
  replace(content: ReadonlyMap<string, Buffer>): void {
    this.#keys.clear()
    this.#sorted = []
    this.#log.length = 0
    this.#leases.clear()
    this.#leaseOf.clear()
    this.#compacted = 0
    this.#revision = 1
    const events: FeedEvent[] = []
    for (const [key, value] of content) this.#put(key, value, undefined, 2, events)
    if (events.length === 0) return
    // Told to nobody: there is nobody who listens, and nothing has happened to the store.
    this.#log.push({ revision: ++this.#revision, events })
  }

  #foundAt(item: { readonly range: RangeRequest } | { readonly get: string }, revision: number): RangeAnswer {
    if ('range' in item) {
      if (item.range.at !== undefined) return this.range(item.range)
      const before = this.#revision
      // Within a transaction its own changes can be seen.
      this.#revision = revision
      try {
        return this.range(item.range)
      } finally {
        this.#revision = before
      }
    }
    const found = this.#at(item.get, revision)
    return { revision, items: found ? [found] : [], more: false }
  }

  #at(key: string, revision: number): KeyValue | undefined {
    const versions = this.#keys.get(key)
    if (versions === undefined) return undefined
    for (let index = versions.length - 1; index >= 0; index--) {
      const version = versions[index]!
      if (version.revision <= revision)
        return version.value && { key, value: version.value, revision: version.revision }
    }
    return undefined
  }

  #put(key: string, value: Buffer, lease: string | undefined, revision: number, events: FeedEvent[]): void {
    let versions = this.#keys.get(key)
    if (versions === undefined) this.#keys.set(key, (versions = []))
    if (versions.at(-1)?.value === undefined) this.#sorted.splice(lowerBound(this.#sorted, key), 0, key)
    versions.push({ revision, value })
    this.#attach(key, lease)
    events.push({ key, value, revision })
  }

  #remove(key: string, revision: number, events: FeedEvent[]): void {
    const versions = this.#keys.get(key)
    if (versions?.at(-1)?.value === undefined) return
    versions.push({ revision, value: undefined })
    this.#sorted.splice(lowerBound(this.#sorted, key), 1)
    this.#attach(key, undefined)
    events.push({ key, value: undefined, revision })
  }

  #attach(key: string, lease: string | undefined): void {
    const before = this.#leaseOf.get(key)
    if (before !== undefined) this.#leases.get(before)?.keys.delete(key)
    if (lease === undefined) this.#leaseOf.delete(key)
    else {
      this.#leaseOf.set(key, lease)
      this.#leases.get(lease)!.keys.add(key)
    }
  }

  #commit(events: readonly FeedEvent[]): void {
    if (events.length === 0) return
    const committed = { revision: ++this.#revision, events }
    this.#log.push(committed)
    this.#options.committed?.(committed)
  }
}

/** etcd refuses to change a key twice in one transaction. */
function checkKeys(operations: readonly Operation[]): void {
  const put = new Set<string>()
  for (const item of operations)
    if ('put' in item) {
      if (put.has(item.put)) throw duplicate()
      put.add(item.put)
    }
  for (const item of operations) {
    if ('remove' in item && put.has(item.remove)) throw duplicate()
    if ('removeRange' in item)
      for (const key of put) if (key >= item.removeRange[0] && key < item.removeRange[1]) throw duplicate()
  }
}

function duplicate(): EtcdFailure {
  return new EtcdFailure('unreachable', 'duplicate key given in txn request')
}

/** The index of the first key that is not before `key`. */
function lowerBound(keys: readonly string[], key: string): number {
  let low = 0
  let high = keys.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (keys[middle]! < key) low = middle + 1
    else high = middle
  }
  return low
}
