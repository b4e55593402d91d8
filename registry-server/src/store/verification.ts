/** Whether records make a store: each by itself, and all together. Pure; the same for what is stored and what is read in. */

import {
  isNamespace,
  isServiceName,
  LIMITS,
  NODE_STATUSES,
  PATTERNS,
  ProtocolError,
  REMOVAL_CAUSES,
  type Override,
} from '@holdfast/registry-client/protocol'
import { problemsOf, show } from '@holdfast/registry-client/settings'
import * as z from 'zod'
import type { PortableRecord } from './archive.ts'
import { DamagedRecord, decodeRecord, encodeHistory, HISTORY_PREFIX, historyKey, keyOf } from './records.ts'
import { nodeKey, serviceKey, type Write } from './store-state.ts'
import { CHANGE_KINDS } from './store.ts'

/** What is wrong with one record. */
export interface Finding {
  readonly key: string
  readonly reason: string
  /** Of the file that it was read from. */
  readonly line?: number
}

/** Clients refuse a policy that nests deeper. */
const MAX_DEPTH = 64
const NODE_ID = new RegExp(PATTERNS.nodeId)

const text = (maxChars: number) =>
  z.string().max(maxChars).regex(new RegExp(PATTERNS.text), 'must be without control characters')
const nodeId = z.string().max(LIMITS.nodeIdChars).regex(NODE_ID, 'must be a node id')
const whole = (min: number, max: number) =>
  z.number().refine((value) => Number.isSafeInteger(value) && value >= min && value <= max, {
    error: ({ input }) => `must be ${min}..${max}, got ${show(input)}`,
  })
const revision = whole(0, Number.MAX_SAFE_INTEGER)
const time = text(64)

/** What a record must be besides what reading it checks. Fields that are not here are left out. */
const schemas: Readonly<Record<Write['kind'], z.ZodType>> = {
  node: z.object({ node: z.unknown(), lease: z.string().optional() }),
  override: z
    .object({ status: z.enum(NODE_STATUSES).optional(), weight: whole(0, LIMITS.weight).optional() })
    .refine((override) => Object.keys(override).length > 0, 'overrides nothing'),
  policy: z.looseObject({}).refine((policy) => !isDeeper(policy, MAX_DEPTH), `is nested deeper than ${MAX_DEPTH}`),
  service: z.object({
    revision: whole(1, Number.MAX_SAFE_INTEGER),
    emptied: z
      .object({ id: nodeId, cause: z.enum(REMOVAL_CAUSES), time, revision, incarnation: revision.optional() })
      .optional(),
  }),
  // Without its holder: a replica elsewhere means nothing.
  lease: z.object({
    id: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'must be a lease id'),
    // 0: its end is under way, piece by piece.
    ttlMs: z.number().refine((ms) => ms === 0 || (ms >= LIMITS.leaseTtlMinMs && ms <= LIMITS.leaseTtlMaxMs), {
      error: ({ input }) => `must be ${LIMITS.leaseTtlMinMs}..${LIMITS.leaseTtlMaxMs}, got ${show(input)}`,
    }),
    owner: text(256),
    own: z.literal(true).optional(),
  }),
}

const history = z.object({
  time,
  entries: z
    .array(
      z.object({
        namespace: z.string().refine(isNamespace, 'must be a namespace'),
        service: z.string().refine(isServiceName, 'must be a service name'),
        after: revision,
        items: z.array(
          z.object({
            kind: z.enum(CHANGE_KINDS),
            cause: z.enum(['registered', ...REMOVAL_CAUSES]),
            by: text(256),
            ids: z.array(nodeId),
          }),
        ),
      }),
    )
    .min(1),
})

/** A record whose counterparts may still come. */
interface Place {
  readonly key: string
  readonly line: number | undefined
}

interface NodePlace extends Place {
  readonly service: string
  readonly lease: string | undefined
  readonly overrideKey: string
  readonly override: Override | undefined
}

interface ServicePlace extends Place {
  readonly revision: number
  readonly isEmptied: boolean
}

interface HistoryPlace extends Place {
  readonly revision: number
  readonly after: number
}

export class Verification {
  readonly #revision: number
  readonly #report: (finding: Finding) => void
  /** Also of records that cannot be read: they are there, and what refers to them is not to blame. */
  readonly #keys = new Set<string>()
  readonly #nodes: NodePlace[] = []
  readonly #overrides = new Map<string, Override>()
  readonly #services = new Map<string, ServicePlace>()
  /** Overrides and policies, by the service that must be there. */
  readonly #dependents: (Place & { readonly service: string })[] = []
  readonly #history = new Map<string, HistoryPlace[]>()
  #isHistoryDamaged = false

  /** @param revision of the store: nothing in it is newer */
  constructor(revision: number, report: (finding: Finding) => void) {
    this.#revision = revision
    this.#report = report
  }

  /**
   * Checks a record by itself, and keeps of it what the whole needs.
   * @returns the record with what is read of it and nothing else; undefined when it was reported
   */
  add(key: string, value: unknown, line?: number): PortableRecord | undefined {
    const place = { key, line }
    if (this.#keys.has(key)) return this.#refuse(place, 'is there twice')
    this.#keys.add(key)
    try {
      return key.startsWith(HISTORY_PREFIX) ? this.#addHistory(place, value) : this.#addRecord(place, value)
    } catch (error) {
      return this.#refuse(place, reasonOf(key, error))
    }
  }

  /** Reports a record that is there and cannot be read. */
  addUnreadable(key: string, reason: string): void {
    this.#keys.add(key)
    this.#refuse({ key, line: undefined }, reason)
  }

  /** Checks the records against one another, once all are there. */
  finish(): void {
    const inhabited = new Set<string>()
    for (const node of this.#nodes) {
      inhabited.add(node.service)
      this.#expectService(node)
      if (node.lease !== undefined && !this.#keys.has(`lease/${node.lease}`)) this.#refuse(node, 'its lease is missing')
      const recorded = this.#overrides.get(node.overrideKey)
      const isDamaged = recorded === undefined && this.#keys.has(node.overrideKey)
      if (!isDamaged && !isSame(recorded, node.override)) this.#refuse(node, `contradicts ${node.overrideKey}`)
    }
    for (const dependent of this.#dependents) this.#expectService(dependent)
    for (const [service, place] of this.#services)
      if (place.isEmptied && inhabited.has(service)) this.#refuse(place, 'is emptied, and has nodes')
    this.#finishHistory()
  }

  #addRecord(place: Place, value: unknown): PortableRecord | undefined {
    const { key } = place
    const kind = key.slice(0, Math.max(0, key.indexOf('/')))
    if (!Object.hasOwn(schemas, kind)) return this.#refuse(place, 'is of no known kind')
    const checked = this.#check(place, schemas[kind as Write['kind']], value)
    if (checked === undefined) return undefined
    const write = decodeRecord(key, checked)
    if (write?.value === undefined || keyOf(write) !== key) return this.#refuse(place, 'is no key of a record')
    if (write.kind === 'lease') return { key, value: write.value }
    const { namespace, service } = 'ref' in write ? write.ref : write
    if (!isNamespace(namespace)) return this.#refuse(place, 'is of no valid namespace')
    if (!isServiceName(service)) return this.#refuse(place, 'is of no valid service')
    switch (write.kind) {
      case 'node': {
        const { node, lease } = write.value
        const overrideKey = `override/${nodeKey(write.ref)}`
        this.#nodes.push({
          ...place,
          service: serviceKey(namespace, service),
          lease,
          overrideKey,
          override: node.override,
        })
        break
      }
      case 'override':
        if (write.ref.id.length > LIMITS.nodeIdChars || !NODE_ID.test(write.ref.id))
          return this.#refuse(place, 'is of no valid node')
        this.#overrides.set(key, write.value)
        this.#dependents.push({ ...place, service: serviceKey(namespace, service) })
        break
      case 'policy':
        this.#dependents.push({ ...place, service: serviceKey(namespace, service) })
        break
      case 'service': {
        const { revision, emptied } = write.value
        if (revision > this.#revision) return this.#refuse(place, this.#tooNew(revision))
        if (emptied && emptied.revision > revision)
          return this.#refuse(place, `was emptied at revision ${emptied.revision}, after its last, ${revision}`)
        const isEmptied = emptied !== undefined
        this.#services.set(serviceKey(namespace, service), { ...place, revision, isEmptied })
      }
    }
    return { key, value: write.value }
  }

  #addHistory(place: Place, value: unknown): PortableRecord | undefined {
    const { key } = place
    const revision = Number(key.slice(HISTORY_PREFIX.length))
    if (!Number.isSafeInteger(revision) || revision < 1 || historyKey(revision) !== key)
      return this.#refuse(place, 'is of no revision')
    if (revision > this.#revision) return this.#refuse(place, this.#tooNew(revision))
    const checked = this.#check(place, history, value) as z.output<typeof history> | undefined
    if (checked === undefined) return undefined
    for (const { namespace, service, after } of checked.entries) {
      if (after >= revision) return this.#refuse(place, `follows revision ${after}`)
      const name = serviceKey(namespace, service)
      const places = this.#history.get(name)
      if (places) places.push({ ...place, revision, after })
      else this.#history.set(name, [{ ...place, revision, after }])
    }
    return { key, value: encodeHistory(checked.time, checked.entries) }
  }

  /** Only what is oldest leaves history, so what is left of a service's changes follows one on the other up to its last. */
  #finishHistory(): void {
    let oldest = Infinity
    for (const key of this.#keys)
      if (key.startsWith(HISTORY_PREFIX)) oldest = Math.min(oldest, Number(key.slice(HISTORY_PREFIX.length)))
    const isMissing = (revision: number) => revision >= oldest && !this.#keys.has(historyKey(revision))
    for (const [service, places] of this.#history) {
      let before: HistoryPlace | undefined
      for (const place of places.sort((a, b) => a.revision - b.revision)) {
        if (isMissing(place.after))
          this.#refuse(place, `of ${service} follows revision ${place.after}, which is missing`)
        else if (before && place.after !== before.revision && !this.#isHistoryDamaged)
          this.#refuse(place, `of ${service} follows revision ${place.after} instead of ${before.revision}`)
        before = place
      }
      const last = this.#services.get(service)
      if (last && before && before.revision > last.revision)
        this.#refuse(last, `is at revision ${last.revision}, its history at ${before.revision}`)
      this.#expectService({ ...places[0]!, service })
    }
    for (const place of this.#services.values())
      if (isMissing(place.revision))
        this.#refuse(place, `its last change, revision ${place.revision}, is not in history`)
  }

  #expectService(place: Place & { readonly service: string }): void {
    if (!this.#keys.has(`service/${place.service}`)) this.#refuse(place, `service ${place.service} has no record`)
  }

  #check(place: Place, schema: z.ZodType, value: unknown): unknown {
    const result = schema.safeParse(value, { reportInput: true })
    if (result.success) return result.data
    for (const { path, message } of problemsOf(result.error, schema))
      this.#refuse(place, path === '(document)' ? message : `${path}: ${message}`)
    return undefined
  }

  #tooNew(revision: number): string {
    return `is of revision ${revision}, after the last, ${this.#revision}`
  }

  #refuse({ key, line }: Place, reason: string): undefined {
    if (key.startsWith(HISTORY_PREFIX)) this.#isHistoryDamaged = true
    this.#report({ key, reason, ...(line !== undefined && { line }) })
  }
}

/** Why a record cannot be read, without its key. */
export function reasonOf(key: string, error: unknown): string {
  const reason = error instanceof Error ? error.message : String(error)
  // Both begin with the key, which a finding has already.
  if (error instanceof ProtocolError) return reason.slice(Math.min(key.length + 1, reason.length)).trimStart()
  if (error instanceof DamagedRecord) return reason.slice(reason.indexOf('": ') + 3)
  return `cannot be read: ${reason}`
}

function isSame(a: Override | undefined, b: Override | undefined): boolean {
  return a?.status === b?.status && a?.weight === b?.weight
}

function isDeeper(value: unknown, depth: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  return depth === 0 || Object.values(value).some((item) => isDeeper(item, depth - 1))
}

/** Of many problems the first, and how many more there are. */
export class Problems {
  static readonly #SHOWN = 20
  readonly #first: string[] = []
  #count = 0

  get count(): number {
    return this.#count
  }

  add(problem: string): void {
    if (this.#count++ < Problems.#SHOWN) this.#first.push(problem)
  }

  toString(): string {
    const more = this.#count - this.#first.length
    return [...this.#first, ...(more > 0 ? [`and ${more} more`] : [])].join('\n')
  }
}

/** Records that make no store. The message lists the first problems. */
export class Unsound extends Error {
  readonly code = 'unsound'
  constructor(sentence: string, problems: Problems) {
    super(`${sentence}:\n${problems.toString()}`)
    this.name = 'Unsound'
  }
}

export function formatFinding({ key, reason, line }: Finding): string {
  const at = line === undefined ? '' : `line ${line}: `
  return `${at}${printable(key)}: ${reason}`
}

/** A key is a stranger's until it was checked. */
function printable(key: string): string {
  const plain = key.replaceAll(/[^\x20-\x7e]/g, '?')
  return plain.length > 500 ? `${plain.slice(0, 497)}...` : plain
}
