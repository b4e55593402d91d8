/** The records of a store, the same on every engine: their keys, and reading their values back. */

import {
  CHANGE_KINDS,
  type ChangeItem,
  type HistoryEntry,
  type Lease,
  type NodeEntry,
  type NodeRef,
  type ServiceRecord,
} from './store.ts'
import type { Write } from './store-state.ts'
import {
  decodeNode,
  NODE_STATUSES,
  REMOVAL_CAUSES,
  type Cause,
  type Override,
  type PolicyDocument,
  type Removal,
} from '@holdfast/registry-client/protocol'

export const HISTORY_PREFIX = 'history/'

/** A record that is not what was written. */
export class DamagedRecord extends Error {
  constructor(key: string, reason: string) {
    super(`record ${JSON.stringify(key.slice(0, 200))}: ${reason}`)
    this.name = 'DamagedRecord'
  }
}

export function keyOf(write: Write): string {
  switch (write.kind) {
    case 'node':
      return `node/${write.ref.namespace}/${write.ref.service}/${write.ref.id}`
    case 'override':
      return `override/${write.ref.namespace}/${write.ref.service}/${write.ref.id}`
    case 'policy':
    case 'service':
      return `${write.kind}/${write.namespace}/${write.service}`
    case 'lease':
      return `lease/${write.id}`
  }
}

/** Padded, so that the order of keys is the order of revisions. */
export function historyKey(revision: number): string {
  return HISTORY_PREFIX + String(revision).padStart(16, '0')
}

/** What one transaction leaves in history. */
export function encodeHistory(time: string, entries: readonly Omit<HistoryEntry, 'revision' | 'time'>[]): object {
  return { time, entries }
}

/** @throws DamagedRecord */
export function decodeHistory(key: string, value: unknown): HistoryEntry[] {
  const revision = Number(key.slice(HISTORY_PREFIX.length))
  const { time, entries } = value as { time: string; entries: Omit<HistoryEntry, 'revision' | 'time'>[] }
  if (!Number.isSafeInteger(revision) || typeof time !== 'string' || !Array.isArray(entries))
    throw new DamagedRecord(key, 'not a history record')
  return entries.map((entry) => ({ ...entry, revision, time, items: entry.items.map((item) => itemOf(key, item)) }))
}

function itemOf(key: string, item: ChangeItem): ChangeItem {
  const causes: readonly Cause[] = ['registered', ...REMOVAL_CAUSES]
  if (!CHANGE_KINDS.includes(item.kind) || !causes.includes(item.cause) || !Array.isArray(item.ids))
    throw new DamagedRecord(key, 'not a change')
  return item
}

/**
 * Reads a record other than history back into the write that made it.
 * @param value undefined for a removal
 * @returns undefined for an unknown kind
 * @throws DamagedRecord, ProtocolError
 */
export function decodeRecord(key: string, value: unknown): Write | undefined {
  const [kind, ...names] = key.split('/') as [string, ...string[]]
  switch (kind) {
    case 'node': {
      const ref = refOf(key, names)
      return { kind, ref, value: value === undefined ? undefined : nodeEntryOf(key, ref, value as NodeEntry) }
    }
    case 'override':
      return {
        kind,
        ref: refOf(key, names),
        value: value === undefined ? undefined : overrideOf(key, value as Override),
      }
    case 'policy':
      return { kind, ...serviceOf(key, names), value: value === undefined ? undefined : policyOf(key, value) }
    case 'service':
      return { kind, ...serviceOf(key, names), value: value === undefined ? undefined : serviceRecordOf(key, value) }
    case 'lease': {
      const [id] = names
      if (id === undefined || id === '') throw new DamagedRecord(key, 'a key without a lease')
      return { kind, id, value: value === undefined ? undefined : leaseOf(key, id, value as Lease) }
    }
    default:
      return undefined
  }
}

function nodeEntryOf(key: string, ref: NodeRef, { node, lease }: NodeEntry): NodeEntry {
  const entry = Object.freeze({ node: decodeNode(node, key), ...(lease !== undefined && { lease }) })
  if (entry.node.id !== ref.id || entry.node.leased !== (lease !== undefined))
    throw new DamagedRecord(key, 'contradicts itself')
  return entry
}

function overrideOf(key: string, override: Override): Override {
  if (override.status !== undefined && !NODE_STATUSES.includes(override.status))
    throw new DamagedRecord(key, 'no such status')
  return Object.freeze(override)
}

function policyOf(key: string, value: unknown): PolicyDocument {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new DamagedRecord(key, 'no policy')
  return deepFreeze(value as PolicyDocument)
}

function serviceRecordOf(key: string, value: unknown): ServiceRecord {
  const record = value as ServiceRecord
  if (!Number.isSafeInteger(record.revision)) throw new DamagedRecord(key, 'no revision')
  const emptied = record.emptied && Object.freeze<Removal>(record.emptied)
  return Object.freeze({ revision: record.revision, ...(emptied && { emptied }) })
}

function leaseOf(key: string, id: string, lease: Lease): Lease {
  if (lease.id !== id || !Number.isFinite(lease.ttlMs)) throw new DamagedRecord(key, 'contradicts its key')
  return Object.freeze(lease)
}

function serviceOf(key: string, names: readonly string[]): { namespace: string; service: string } {
  const [namespace, service] = names
  if (namespace === undefined || service === undefined) throw new DamagedRecord(key, 'a key without a service')
  return { namespace, service }
}

function refOf(key: string, names: readonly string[]): NodeRef {
  const [, , id] = names
  if (id === undefined) throw new DamagedRecord(key, 'a key without a node')
  return { ...serviceOf(key, names), id }
}

/** Documents are handed to every reader; none may change them for the others. */
export function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value)
    for (const item of Object.values(value)) deepFreeze(item)
  }
  return value
}
