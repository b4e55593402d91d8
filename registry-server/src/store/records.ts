/** The records of a store on disk: their keys, and values that prove themselves by a checksum over key and value. */

import { crc32 } from 'node:zlib'
import {
  CHANGE_KINDS,
  type ChangeItem,
  type HistoryEntry,
  type Lease,
  type NodeEntry,
  type NodeRef,
  type ServiceRecord,
} from './store.ts'
import type { StateCounts, Write } from './store-state.ts'
import {
  decodeNode,
  NODE_STATUSES,
  REMOVAL_CAUSES,
  type Cause,
  type Override,
  type PolicyDocument,
  type Removal,
} from '@holdfast/registry-client/protocol'

/** Raised by any change that an older version would misread. */
export const FORMAT = 1

export const META_KEY = 'meta'
export const HISTORY_PREFIX = 'history/'

/** Written with every commit: what the rest of the database must agree with. */
export interface Meta {
  readonly format: number
  readonly epoch: string
  readonly revision: number
  readonly counts: StateCounts
}

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

const CHECKSUM_BYTES = 4

/** Writes of one commit; a value that is undefined is a removal. */
export type EncodedWrites = readonly (readonly [key: string, value: Buffer | undefined])[]

/** All values of a commit in one piece of memory: a buffer of its own costs more than what is in it. */
export function encodeValues(values: Iterable<readonly [key: string, value: unknown]>): EncodedWrites {
  const texts: (readonly [key: string, json: string | undefined, bytes: number])[] = []
  let total = 0
  for (const [key, value] of values) {
    const json = value === undefined ? undefined : JSON.stringify(value)
    const bytes = json === undefined ? 0 : CHECKSUM_BYTES + Buffer.byteLength(json)
    total += bytes
    texts.push([key, json, bytes])
  }
  const memory = Buffer.allocUnsafeSlow(total)
  let at = 0
  return texts.map(([key, json, bytes]) => {
    if (json === undefined) return [key, undefined]
    const value = memory.subarray(at, (at += bytes))
    value.write(json, CHECKSUM_BYTES)
    value.writeUInt32LE(crc32(value.subarray(CHECKSUM_BYTES), crc32(key)))
    return [key, value]
  })
}

/** @throws DamagedRecord */
export function decodeValue(key: string, buffer: Buffer): unknown {
  if (buffer.length <= CHECKSUM_BYTES) throw new DamagedRecord(key, 'too short')
  const body = buffer.subarray(CHECKSUM_BYTES)
  if (crc32(body, crc32(key)) !== buffer.readUInt32LE()) throw new DamagedRecord(key, 'the checksum does not match')
  return JSON.parse(body.toString())
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
 * Reads a record other than meta and history back into the write that made it. Undefined for an unknown kind.
 * @throws DamagedRecord, ProtocolError
 */
export function decodeRecord(key: string, value: unknown): Write | undefined {
  const [kind, ...names] = key.split('/') as [string, ...string[]]
  switch (kind) {
    case 'node': {
      const { node, lease } = value as NodeEntry
      const ref = refOf(key, names)
      const entry = Object.freeze({ node: decodeNode(node, key), ...(lease !== undefined && { lease }) })
      if (entry.node.id !== ref.id || entry.node.leased !== (lease !== undefined))
        throw new DamagedRecord(key, 'contradicts itself')
      return { kind, ref, value: entry }
    }
    case 'override': {
      const override = value as Override
      if (override.status !== undefined && !NODE_STATUSES.includes(override.status))
        throw new DamagedRecord(key, 'no such status')
      return { kind, ref: refOf(key, names), value: Object.freeze(override) }
    }
    case 'policy':
      return { kind, ...serviceOf(key, names), value: deepFreeze(value as PolicyDocument) }
    case 'service': {
      const record = value as ServiceRecord
      if (!Number.isSafeInteger(record.revision)) throw new DamagedRecord(key, 'no revision')
      const emptied = record.emptied && Object.freeze<Removal>(record.emptied)
      return {
        kind,
        ...serviceOf(key, names),
        value: Object.freeze({ revision: record.revision, ...(emptied && { emptied }) }),
      }
    }
    case 'lease': {
      const lease = value as Lease
      if (lease.id !== names[0] || !Number.isFinite(lease.ttlMs)) throw new DamagedRecord(key, 'contradicts its key')
      return { kind, id: lease.id, value: Object.freeze(lease) }
    }
    default:
      return undefined
  }
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
