/**
 * What is true in a run: every revision of every store that there was, read from what was committed to etcd, in the turn
 * in which it was. Nothing of it comes from what a replica or a client believes.
 */

import type { Override, PolicyDocument, Removal, ServiceNode } from '@holdfast/registry-client/protocol'
import { decodeMeta, LOG, META, STATE } from '../../registry-server/src/store/etcd/layout.ts'
import { decodeLogEntry } from '../../registry-server/src/store/etcd/log-entry.ts'
import { decodeRecord } from '../../registry-server/src/store/records.ts'
import type { Deed, Write } from '../../registry-server/src/store/store-state.ts'
import type { Lease, NodeEntry } from '../../registry-server/src/store/store.ts'
import type { TwinRevision } from './etcd-twin.ts'

/** A service as of one revision. */
export interface ServiceVersion {
  readonly revision: number
  readonly atMs: number
  readonly nodes: ReadonlyMap<string, NodeEntry>
  readonly policy: PolicyDocument | undefined
}

export interface LeaseTruth {
  readonly lease: Lease
  readonly grantedMs: number
  /** When the requests were sent by which it was renewed, of those that were answered: the last two. */
  renewedMs: number[]
  endedMs: number | undefined
  endCause: Removal['cause'] | undefined
}

/** A removal, with the node that went. */
export interface Removed {
  readonly key: string
  readonly entry: NodeEntry
  readonly cause: Removal['cause']
  readonly by: string
  readonly revision: number
  readonly atMs: number
}

/** One store, from its first revision. */
export class Epoch {
  readonly id: string
  readonly sinceMs: number
  revision: number
  readonly services = new Map<string, ServiceVersion[]>()
  readonly leases = new Map<string, LeaseTruth>()
  readonly overrides = new Map<string, Override>()
  /** Ids of nodes that were removed with a cause, by service. */
  readonly removed = new Map<string, Removed[]>()

  constructor(id: string, revision: number, sinceMs: number) {
    this.id = id
    this.revision = revision
    this.sinceMs = sinceMs
  }

  /** The newest version at or before a revision. */
  at(key: string, revision: number): ServiceVersion | undefined {
    const versions = this.services.get(key)
    if (versions === undefined) return undefined
    for (let index = versions.length - 1; index >= 0; index--)
      if (versions[index]!.revision <= revision) return versions[index]
    return undefined
  }

  newest(key: string): ServiceVersion | undefined {
    return this.services.get(key)?.at(-1)
  }

  /** What a service was from a time on: the version then, and all after it. */
  sinceTime(key: string, atMs: number): readonly (ServiceVersion | undefined)[] {
    const versions = this.services.get(key) ?? []
    const from = versions.findLastIndex((version) => version.atMs <= atMs)
    return from < 0 ? [undefined, ...versions] : versions.slice(from)
  }
}

export interface ModelOptions {
  readonly nowMs: () => number
  /** All keys below a prefix in etcd, now. */
  readonly keys: (prefix: string) => Iterable<{ readonly key: string; readonly value: Buffer }>
  readonly removed: (removed: Removed) => void
  readonly leaseEnded: (lease: LeaseTruth) => void
}

export class Model {
  readonly #options: ModelOptions
  readonly epochs = new Map<string, Epoch>()
  #current: Epoch | undefined

  constructor(options: ModelOptions) {
    this.#options = options
  }

  get current(): Epoch | undefined {
    return this.#current
  }

  /** What etcd has taken, in the turn in which it did. */
  committed({ events }: TwinRevision): void {
    const meta = events.find(({ key }) => key === META)
    if (meta?.value === undefined) return
    const { epoch, revision } = decodeMeta(meta.value)
    if (this.#current?.id !== epoch) this.#begin(epoch, revision)
    const entry = events.find(({ key, value }) => key.startsWith(LOG) && value !== undefined)
    if (entry) this.#append(entry.key, entry.value!)
  }

  /** The operator has taken the store away. */
  emptied(): void {
    this.#current = undefined
  }

  #begin(id: string, revision: number): void {
    const epoch = new Epoch(id, revision, this.#options.nowMs())
    this.#current = epoch
    this.epochs.set(id, epoch)
    const writes: Write[] = []
    for (const { key, value } of this.#options.keys(STATE)) {
      const write = decodeRecord(key.slice(STATE.length), JSON.parse(value.toString()))
      if (write) writes.push(write)
    }
    const revisions = new Map<string, number>()
    for (const write of writes)
      if (write.kind === 'service' && write.value)
        revisions.set(`${write.namespace}/${write.service}`, write.value.revision)
    const touched = new Map<string, Draft>()
    // One without nodes has a record all the same.
    for (const key of revisions.keys()) this.#draft(epoch, key, touched)
    for (const write of writes) this.#apply(epoch, { ...write, why: undefined }, touched, revision)
    for (const [key, { nodes, policy }] of touched)
      epoch.services.set(key, [
        { revision: revisions.get(key) ?? revision, atMs: this.#options.nowMs(), nodes, policy },
      ])
  }

  #append(key: string, value: Buffer): void {
    const epoch = this.#current!
    const entry = decodeLogEntry(key, value)
    for (const [index, { deeds, history }] of entry.transactions.entries()) {
      const revision = entry.first + index
      if (revision !== epoch.revision + 1)
        throw new Error(`the log goes on at ${revision}, and the model is at ${epoch.revision}`)
      epoch.revision = revision
      const touched = new Map<string, Draft>()
      for (const { namespace, service } of history) this.#draft(epoch, `${namespace}/${service}`, touched)
      for (const deed of deeds) this.#apply(epoch, deed, touched, revision)
      for (const [service, { nodes, policy }] of touched) {
        let versions = epoch.services.get(service)
        if (versions === undefined) epoch.services.set(service, (versions = []))
        versions.push({ revision, atMs: this.#options.nowMs(), nodes, policy })
      }
    }
  }

  #draft(epoch: Epoch, key: string, touched: Map<string, Draft>): Draft {
    let draft = touched.get(key)
    if (draft === undefined) {
      const before = epoch.newest(key)
      draft = { nodes: new Map(before?.nodes), policy: before?.policy }
      touched.set(key, draft)
    }
    return draft
  }

  #apply(epoch: Epoch, deed: Deed, touched: Map<string, Draft>, revision: number): void {
    const atMs = this.#options.nowMs()
    switch (deed.kind) {
      case 'node': {
        const key = `${deed.ref.namespace}/${deed.ref.service}`
        const { nodes } = this.#draft(epoch, key, touched)
        const before = nodes.get(deed.ref.id)
        if (deed.value) nodes.set(deed.ref.id, deed.value)
        else if (before) {
          nodes.delete(deed.ref.id)
          const cause = deed.why!.cause as Removal['cause']
          const removed = { key, entry: before, cause, by: deed.why!.by, revision, atMs }
          const list = epoch.removed.get(key)
          if (list) list.push(removed)
          else epoch.removed.set(key, [removed])
          const lease = before.lease === undefined ? undefined : epoch.leases.get(before.lease)
          if (lease && cause === 'lease_expired') lease.endCause = cause
          this.#options.removed(removed)
        }
        return
      }
      case 'policy':
        this.#draft(epoch, `${deed.namespace}/${deed.service}`, touched).policy = deed.value
        return
      case 'override': {
        const key = `${deed.ref.namespace}/${deed.ref.service}`
        this.#draft(epoch, key, touched)
        if (deed.value) epoch.overrides.set(`${key}/${deed.ref.id}`, deed.value)
        else epoch.overrides.delete(`${key}/${deed.ref.id}`)
        return
      }
      case 'lease': {
        const known = epoch.leases.get(deed.id)
        if (deed.value) {
          const before = known ?? { grantedMs: atMs, renewedMs: [], endedMs: undefined, endCause: undefined }
          epoch.leases.set(deed.id, { ...before, lease: deed.value })
        } else if (known) {
          known.endedMs = atMs
          this.#options.leaseEnded(known)
        }
        return
      }
      case 'service':
    }
  }
}

interface Draft {
  readonly nodes: Map<string, NodeEntry>
  policy: PolicyDocument | undefined
}

const texts = new WeakMap<ServiceNode, string>()

/** A node's whole content, to compare by. */
export function textOf(node: ServiceNode): string {
  let text = texts.get(node)
  if (text === undefined)
    texts.set(node, (text = JSON.stringify(Object.entries(node).sort(([a], [b]) => (a < b ? -1 : 1)))))
  return text
}
