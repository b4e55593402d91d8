/**
 * The wire contract: what a registry and its clients say to each other. Imports nothing but the map of a view's nodes,
 * which imports nothing.
 *
 * A {@link View} is all that a client knows of one service, at one {@link Cursor}; a {@link Frame} turns one
 * view into the next by {@link fold}. Registry, client library and sidecar share these shapes, so a rule about a
 * valid message stands here once.
 */

import { NodeMap } from './node-map.ts'

export const DEFAULT_NAMESPACE = 'default'

/** What a stranger may send at most, in the unit the name ends in. A larger value is refused, never cut. */
export const LIMITS = {
  nameChars: 128,
  namespaceChars: 63,
  nodeIdChars: 128,
  hostChars: 253,
  labels: 64,
  labelKeyChars: 63,
  labelValueChars: 256,
  weight: 1000,
  ownerChars: 128,
  leaseTtlMinMs: 2_000,
  leaseTtlMaxMs: 3_600_000,
  batchNodes: 10_000,
  bodyBytes: 1_048_576,
  /** Services named in one subscribe message or one stream's query. */
  subscribeServices: 10_000,
} as const

const OCTET = '(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
const IPV4 = `(?:${OCTET}\\.){3}${OCTET}`

/** Labels of up to 63; the last is not a number, or the name would be a malformed IPv4 address to most resolvers. */
function dnsName(): string {
  const label = '(?!-)[A-Za-z0-9_-]{1,63}(?<!-)'
  return `(?:${label}\\.)*(?![0-9]+\\.?$)${label}\\.?`
}

/** RFC 4291, section 2.2: eight groups, one run of which may be `::`, the last two of which may be an IPv4 address. */
function ipv6(): string {
  const group = '[0-9A-Fa-f]{1,4}'
  const tail = `(?:${group}:${group}|${IPV4})`
  const forms = [`(?:${group}:){6}${tail}`]
  for (let left = 0; left <= 5; left++) {
    const before = left === 0 ? '' : `(?:${group}:){0,${left - 1}}${group}`
    forms.push(`(?:${before})?::(?:${group}:){${5 - left}}${tail}`)
  }
  forms.push(`(?:(?:${group}:){0,5}${group})?::${group}`, `(?:(?:${group}:){0,6}${group})?::`)
  return `(?:${forms.join('|')})`
}

/** Sources of regular expressions, unanchored inside so that JSON Schema and `RegExp` can both anchor them. */
export const PATTERNS = {
  /** Lower-case letters, digits, `.` and `-`, no `..`: a service name is a host name that a lightweight client can send. */
  service: '^(?!.*\\.\\.)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?$',
  namespace: '^[a-z0-9-]+$',
  zone: '^[a-z0-9-]+$',
  nodeId: '^[A-Za-z0-9][A-Za-z0-9._:-]*$',
  /** A DNS name, an IPv4 address, or an IPv6 address without brackets and zone. */
  host: `^(?:${dnsName()}|${IPV4}|${ipv6()})$`,
  labelKey: '^[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?$',
  /** Printable, without control characters: label values and owners end up in logs and headers. */
  text: '^[^\\u0000-\\u001f\\u007f]*$',
  cursor: '^[A-Za-z0-9_-]{1,64}:[0-9]{1,16}$',
  duration: '^\\d{1,9}(\\.\\d{1,6})?(ms|s|m|h|d)$',
} as const

/** What each pattern takes, for people. */
const IN_WORDS: Readonly<Record<keyof typeof PATTERNS, string>> = {
  service: 'a service name: lower-case letters, digits, . and -, without ..',
  namespace: 'lower-case letters, digits and -',
  zone: 'lower-case letters, digits and -',
  nodeId: 'a node id: letters, digits, . _ : and -, the first a letter or digit',
  host: 'an IP address or a DNS name',
  labelKey: 'a label key: letters, digits, . _ / and -, the first and last a letter or digit',
  text: 'text without control characters',
  cursor: 'epoch:revision',
  duration: 'a duration with its unit, such as 250ms, 15s or 10m',
}

/** What one of {@link PATTERNS} takes, for people; any other pattern as it is. */
export function inWords(pattern: string): string {
  for (const [name, own] of Object.entries(PATTERNS))
    if (own === pattern) return IN_WORDS[name as keyof typeof PATTERNS]
  return pattern
}

const SERVICE = new RegExp(PATTERNS.service)
const NAMESPACE = new RegExp(PATTERNS.namespace)
const CURSOR = new RegExp(PATTERNS.cursor)

export function isServiceName(text: string): boolean {
  return text.length <= LIMITS.nameChars && SERVICE.test(text)
}

export function isNamespace(text: string): boolean {
  return text.length <= LIMITS.namespaceChars && NAMESPACE.test(text)
}

/**
 * A place in the registry's history: `epoch` is the identity of one store, `revision` an integer that only grows
 * within it. Cursors of different epochs cannot be compared: neither is older.
 */
export interface Cursor {
  readonly epoch: string
  readonly revision: number
}

/** The written form, `epoch:revision`, as in headers, `ETag` and event ids. */
export function formatCursor(cursor: Cursor): string {
  return `${cursor.epoch}:${cursor.revision}`
}

/** Reads the written form; undefined when it cannot be read. */
export function parseCursor(text: string): Cursor | undefined {
  if (!CURSOR.test(text)) return undefined
  const colon = text.indexOf(':')
  const revision = Number(text.slice(colon + 1))
  return Number.isSafeInteger(revision) ? { epoch: text.slice(0, colon), revision } : undefined
}

/** Whether `a` is a later place of the same history than `b`. False across epochs. */
export function isAfter(a: Cursor, b: Cursor): boolean {
  return a.epoch === b.epoch && a.revision > b.revision
}

export const NODE_STATUSES = ['up', 'draining', 'down'] as const
/** `draining`: finish what runs, send nothing new. */
export type NodeStatus = (typeof NODE_STATUSES)[number]

export const PROTOCOLS = ['http', 'h2', 'grpc', 'tcp'] as const
export type Protocol = (typeof PROTOCOLS)[number]

/** One running instance. `status` and `weight` are the effective ones: the operator's override, else the registrant's. */
export interface ServiceNode {
  readonly id: string
  readonly host: string
  readonly port: number
  readonly protocol: Protocol
  /** 0 to 1000; 0 takes no traffic. */
  readonly weight: number
  readonly zone?: string
  readonly labels: Readonly<Record<string, string>>
  readonly status: NodeStatus
  /** Grows with each new life of the same node id; an older one can neither replace nor remove a newer one. */
  readonly incarnation: number
  /** Whether its life hangs on a lease; false for a static node. */
  readonly leased: boolean
  /** What the registrant said. */
  readonly registered: { readonly status: NodeStatus; readonly weight: number }
  /** What an operator said instead; absent when nobody did. */
  readonly override?: Override
}

export interface Override {
  readonly status?: NodeStatus
  readonly weight?: number
}

export const REMOVAL_CAUSES = ['deregistered', 'lease_expired', 'operator'] as const
export type RemovalCause = (typeof REMOVAL_CAUSES)[number]
export type Cause = 'registered' | RemovalCause

/** Why a node went, when, and at which revision. The proof without which a client never empties a view. */
export interface Removal {
  readonly id: string
  readonly cause: RemovalCause
  /** ISO 8601, the registry's clock. */
  readonly time: string
  readonly revision: number
  /** Of the life that ended; absent where history has kept only that one did. */
  readonly incarnation?: number
}

/** A policy as stored and carried: a JSON object whose meaning is `policy.ts`'s business. */
export type PolicyDocument = Readonly<Record<string, unknown>>

/** All that a client knows of one service. Immutable: every part of it is frozen by {@link fold} and {@link decodeView}. */
export interface View {
  readonly namespace: string
  readonly service: string
  /** The revision of the service's last change; revision 0 for a service the registry never heard of. */
  readonly cursor: Cursor
  readonly nodes: ReadonlyMap<string, ServiceNode>
  readonly policy: PolicyDocument | undefined
  /** For a view without nodes: the removal that took the last one. A store knows it for ever, so it outlives history. */
  readonly emptied?: Removal
  /** For a view that a client has made of two: which nodes the registry does not name, and where they are known from. */
  readonly kept?: Kept
}

export interface Kept {
  readonly cursor: Cursor
  readonly ids: readonly string[]
  /** Whether the policy is from there too. */
  readonly policy: boolean
}

/** `nodes` as an array: the form of a view on the wire and on disk. */
export interface ViewDocument extends Omit<View, 'nodes' | 'cursor' | 'policy' | 'kept'> {
  readonly cursor: string
  readonly nodes: readonly ServiceNode[]
  readonly policy: PolicyDocument | null
  readonly kept?: Omit<Kept, 'cursor'> & { readonly cursor: string }
}

export interface SnapshotFrame {
  readonly kind: 'snapshot'
  readonly view: View
}

/** The net effect of all that happened to one service between `after` and `cursor`. */
export interface ChangeFrame {
  readonly kind: 'change'
  readonly namespace: string
  readonly service: string
  readonly after: Cursor
  readonly cursor: Cursor
  readonly put: readonly ServiceNode[]
  readonly remove: readonly Removal[]
  /** Absent: unchanged. Null: the service has no policy any more. */
  readonly policy?: PolicyDocument | null
}

export type Frame = SnapshotFrame | ChangeFrame

/**
 * The view after a frame. Pure.
 *
 * A change carries absolute states, so it may be applied to any view from its `after` up to its `cursor`; one that
 * is not newer returns `current` itself. Undefined means that the frame does not continue this view (a gap, another
 * epoch, no view at all): ask for a snapshot. There is no other recovery.
 */
export function fold(current: View | undefined, frame: Frame): View | undefined {
  if (frame.kind === 'snapshot') return frame.view
  if (current === undefined || current.cursor.epoch !== frame.cursor.epoch || frame.after.epoch !== frame.cursor.epoch)
    return undefined
  if (current.cursor.revision >= frame.cursor.revision) return current
  if (frame.after.revision > current.cursor.revision) return undefined
  const removed = frame.remove.map(({ id }) => id)
  const nodes = NodeMap.from(current.nodes).with(frame.put, removed)
  const last = nodes.size === 0 ? (latest(frame.remove) ?? current.emptied) : undefined
  return Object.freeze({
    namespace: current.namespace,
    service: current.service,
    cursor: frame.cursor,
    nodes,
    policy: frame.policy === undefined ? current.policy : (frame.policy ?? undefined),
    ...(last && { emptied: last }),
  })
}

function latest(removals: readonly Removal[]): Removal | undefined {
  let last: Removal | undefined
  for (const removal of removals) if (last === undefined || removal.revision >= last.revision) last = removal
  return last
}

/**
 * Whether a removal by the store of another epoch says that this node is gone. A restored backup removes what lived when
 * it was made, which may be an earlier life. A node without a lease has but one.
 */
export function accountsFor(removal: Removal, node: ServiceNode): boolean {
  return removal.id === node.id && (!node.leased || (removal.incarnation ?? -1) >= node.incarnation)
}

/**
 * The nodes of `current` that are missing in `next` without a word about why: never empty without proof.
 *
 * Within one epoch a store removes nothing without a cause, so only a view without nodes needs proof: the removal that
 * emptied the service, later than what the client knew, accounts for them all. Across epochs each node has to be
 * accounted for on its own: a store that was wiped or restored knows nothing of the nodes of the old one, and its first
 * word must not send all traffic to the first of them that returns.
 * @param removed ids of nodes that removals of the new store have accounted for
 */
export function unaccounted(current: View | undefined, next: View, removed?: ReadonlySet<string>): ServiceNode[] {
  if (current === undefined) return []
  const { emptied } = next
  if (current.cursor.epoch === next.cursor.epoch) {
    const isProven = next.nodes.size > 0 || (emptied !== undefined && emptied.revision > current.cursor.revision)
    return isProven ? [] : [...current.nodes.values()]
  }
  return [...current.nodes.values()].filter((node) => {
    if (next.nodes.has(node.id) || removed?.has(node.id) === true) return false
    return emptied === undefined || !accountsFor(emptied, node)
  })
}

/** Whether a view can be taken for what it is by those who know nothing else: it names nodes, or the removal of the last. */
export function isProven(view: View): boolean {
  return view.nodes.size > 0 || view.emptied !== undefined
}

/** `next` with the nodes of `current` that it does not account for, and with its policy where it has none. */
export function carryOver(current: View, next: View, missing: readonly ServiceNode[]): View {
  const { namespace, service, cursor } = next
  const nodes = NodeMap.from(next.nodes).with(missing, [])
  const policy = next.policy ?? current.policy
  const kept = Object.freeze({
    cursor: current.cursor,
    ids: Object.freeze(missing.map(({ id }) => id)),
    policy: next.policy === undefined && policy !== undefined,
  })
  return Object.freeze({ namespace, service, cursor, nodes, policy, kept })
}

/** The two views that {@link carryOver} has made one of: what was known, as far as it is kept, and what the registry said. */
export function takeApart(view: View, kept: Kept): { readonly known: View; readonly heard: View } {
  const { namespace, service, policy } = view
  const { cursor, ids } = kept
  const nodes = NodeMap.from(view.nodes)
  const known = NodeMap.of(ids.map((id) => view.nodes.get(id)!))
  return {
    known: Object.freeze({ namespace, service, cursor, nodes: known, policy }),
    heard: Object.freeze({
      namespace,
      service,
      cursor: view.cursor,
      nodes: nodes.with([], ids),
      policy: kept.policy ? undefined : policy,
    }),
  }
}

/** A message that breaks the contract. `path` is where, in dots, from the message's root. */
export class ProtocolError extends Error {
  readonly code = 'bad_message'
  readonly path: string
  constructor(path: string, reason: string) {
    super(`${path}: ${reason}`)
    this.name = 'ProtocolError'
    this.path = path
  }
}

/** What a client sends on the WebSocket. One connection carries every service of a process. */
export type ClientMessage =
  | {
      readonly type: 'subscribe'
      readonly services: readonly Subscription[]
      /** A cursor that the registry is to have caught up with first, whichever service it is of. */
      readonly reach?: string
      /** Asks for a ping with this number in `subscribed`. Numbers grow on a stream. */
      readonly ref?: number
    }
  | { readonly type: 'unsubscribe'; readonly services: readonly ServiceRef[] }
  | { readonly type: 'ack'; readonly cursor: string }

export interface ServiceRef {
  readonly namespace?: string
  readonly service: string
}

/** `cursor` is that of the view the client has: it gets only what changed since, or nothing. */
export interface Subscription extends ServiceRef {
  readonly cursor?: string
}

/** The longest time over which a registry asks its clients to spread, and to which they agree. */
export const MAX_SPREAD_MS = 30_000
/** A year: what is said to be older counts as this, since JSON may hold a number without end. */
const MAX_AGE_MS = 365 * 86_400_000

/** The `data` of a ping. Advice, not state: what a client cannot read of it, it does without. */
export interface PingData {
  /** When this registry is lost: the time, in milliseconds, over which its clients come back, each at random. */
  readonly spread?: number
  /** For how many milliseconds what this registry knows may have been overtaken; absent when it is current. */
  readonly age?: number
  /** All that the `subscribe` message of this `ref`, and those before it, asked for has been sent. */
  readonly subscribed?: number
}

export const EVENTS = ['snapshot', 'change', 'ping'] as const

/**
 * One event of a watch stream, the same on both transports: on Server-Sent Events the fields `event`, `id` and
 * `data`; on the WebSocket one text message `{"event":…,"id":…,"data":…}`.
 *
 * `id`, where present, promises that everything up to it has been sent on this stream.
 */
export type StreamEvent =
  | { readonly event: 'snapshot'; readonly id?: Cursor; readonly frame: SnapshotFrame }
  | { readonly event: 'change'; readonly id?: Cursor; readonly frame: ChangeFrame }
  | ({ readonly event: 'ping'; readonly id?: Cursor } & Ping)

/** What a client has read of a ping's data. */
export interface Ping {
  readonly spreadMs?: number
  readonly ageMs?: number
  readonly subscribed?: number
}

/** A view's wire form. */
export function encodeView(view: View): ViewDocument {
  return {
    namespace: view.namespace,
    service: view.service,
    cursor: formatCursor(view.cursor),
    nodes: [...view.nodes.values()],
    policy: view.policy ?? null,
    ...(view.emptied && { emptied: view.emptied }),
    ...(view.kept && { kept: { ...view.kept, cursor: formatCursor(view.kept.cursor) } }),
  }
}

/** The `data` of a frame's event. */
export function encodeFrame(frame: Frame): object {
  if (frame.kind === 'snapshot') return encodeView(frame.view)
  return {
    namespace: frame.namespace,
    service: frame.service,
    after: formatCursor(frame.after),
    cursor: formatCursor(frame.cursor),
    put: frame.put,
    remove: frame.remove,
    ...(frame.policy !== undefined && { policy: frame.policy }),
  }
}

/**
 * Reads a view from parsed JSON, deeply frozen. Unknown fields are ignored, so that a newer registry can talk to an
 * older client; everything that is read is checked.
 * @throws ProtocolError with the path of the offending field
 */
export function decodeView(input: unknown, path = 'view'): View {
  const doc = record(input, path)
  const decoded = list(doc.nodes, `${path}.nodes`).map((item, index) => decodeNode(item, `${path}.nodes.${index}`))
  const nodes = NodeMap.of(decoded)
  if (nodes.size < decoded.length) {
    const index = decoded.findIndex((node) => nodes.get(node.id) !== node)
    throw new ProtocolError(`${path}.nodes.${index}.id`, `a second node ${decoded[index]!.id}`)
  }
  return Object.freeze({
    namespace: namespaceOf(doc.namespace, `${path}.namespace`),
    service: serviceOf(doc.service, `${path}.service`),
    cursor: Object.freeze(cursorOf(doc.cursor, `${path}.cursor`)),
    nodes,
    policy: doc.policy == null ? undefined : policyOf(doc.policy, `${path}.policy`),
    ...(doc.emptied !== undefined && { emptied: decodeRemoval(doc.emptied, `${path}.emptied`) }),
    ...(doc.kept !== undefined && { kept: decodeKept(doc.kept, nodes, `${path}.kept`) }),
  })
}

function decodeKept(input: unknown, nodes: ReadonlyMap<string, ServiceNode>, path: string): Kept {
  const doc = record(input, path)
  const ids = list(doc.ids, `${path}.ids`).map((id, index) => {
    if (typeof id !== 'string' || !nodes.has(id))
      throw new ProtocolError(`${path}.ids.${index}`, 'not one of the nodes')
    return id
  })
  const cursor = Object.freeze(cursorOf(doc.cursor, `${path}.cursor`))
  return Object.freeze({ cursor, ids: Object.freeze(ids), policy: doc.policy === true })
}

/**
 * Reads a node from parsed JSON, frozen.
 * @throws ProtocolError with the path of the offending field
 */
export function decodeNode(input: unknown, path = 'node'): ServiceNode {
  const doc = record(input, path)
  const status = oneOf(doc.status, NODE_STATUSES, `${path}.status`)
  const weight = integer(doc.weight, 0, LIMITS.weight, `${path}.weight`)
  const registered =
    doc.registered === undefined ? registeredOf(status, weight) : decodeRegistered(doc.registered, `${path}.registered`)
  const node: { -readonly [name in keyof ServiceNode]: ServiceNode[name] } = {
    id: matching(doc.id, PATTERNS.nodeId, LIMITS.nodeIdChars, `${path}.id`),
    host: matching(doc.host, PATTERNS.host, LIMITS.hostChars, `${path}.host`),
    port: integer(doc.port, 1, 65_535, `${path}.port`),
    protocol: oneOf(doc.protocol ?? 'http', PROTOCOLS, `${path}.protocol`),
    weight,
    labels: labelsOf(doc.labels, `${path}.labels`),
    status,
    incarnation: integer(doc.incarnation ?? 0, 0, Number.MAX_SAFE_INTEGER, `${path}.incarnation`),
    leased: doc.leased === true,
    registered,
  }
  if (doc.zone !== undefined) node.zone = matching(doc.zone, PATTERNS.zone, LIMITS.namespaceChars, `${path}.zone`)
  if (doc.override !== undefined) node.override = overrideOf(doc.override, `${path}.override`)
  return Object.freeze(node)
}

function decodeRegistered(input: unknown, path: string): ServiceNode['registered'] {
  const doc = record(input, path)
  return registeredOf(
    oneOf(doc.status, NODE_STATUSES, `${path}.status`),
    integer(doc.weight, 0, LIMITS.weight, `${path}.weight`),
  )
}

const registrations = new Map<number, ServiceNode['registered']>()

/** The same object for the same values, of which there are few: most nodes of a service share one. */
function registeredOf(status: NodeStatus, weight: number): ServiceNode['registered'] {
  const key = weight * NODE_STATUSES.length + NODE_STATUSES.indexOf(status)
  let registered = registrations.get(key)
  if (registered === undefined) registrations.set(key, (registered = Object.freeze({ status, weight })))
  return registered
}

/**
 * Reads one event of a watch stream.
 * @param data parsed JSON
 * @throws ProtocolError with the path of the offending field
 */
export function decodeEvent(event: unknown, id: unknown, data: unknown): StreamEvent {
  const at = id === undefined ? undefined : cursorOf(id, 'id')
  const position = at && { id: at }
  switch (oneOf(event, EVENTS, 'event')) {
    case 'ping':
      return { event: 'ping', ...position, ...decodePing(data) }
    case 'snapshot':
      return { event: 'snapshot', ...position, frame: { kind: 'snapshot', view: decodeView(data, 'data') } }
    case 'change': {
      const doc = record(data, 'data')
      const frame: ChangeFrame = {
        kind: 'change',
        namespace: namespaceOf(doc.namespace, 'data.namespace'),
        service: serviceOf(doc.service, 'data.service'),
        after: cursorOf(doc.after, 'data.after'),
        cursor: Object.freeze(cursorOf(doc.cursor, 'data.cursor')),
        put: list(doc.put, 'data.put').map((item, index) => decodeNode(item, `data.put.${index}`)),
        remove: list(doc.remove, 'data.remove').map((item, index) => decodeRemoval(item, `data.remove.${index}`)),
        ...(doc.policy !== undefined && { policy: doc.policy === null ? null : policyOf(doc.policy, 'data.policy') }),
      }
      return { event: 'change', ...position, frame }
    }
  }
}

function decodePing(input: unknown): Ping {
  const { spread, age, subscribed } = (input ?? {}) as Record<keyof PingData, unknown>
  return {
    ...(isDuration(spread) && { spreadMs: Math.min(spread, MAX_SPREAD_MS) }),
    ...(isDuration(age) && age > 0 && { ageMs: Math.min(age, MAX_AGE_MS) }),
    ...(Number.isSafeInteger(subscribed) && { subscribed: subscribed as number }),
  }
}

function isDuration(input: unknown): input is number {
  return typeof input === 'number' && input >= 0
}

/**
 * Reads what a client sent on the WebSocket.
 * @throws ProtocolError with the path of the offending field
 */
export function decodeClientMessage(input: unknown): ClientMessage {
  const doc = record(input, 'message')
  const type = oneOf(doc.type, ['subscribe', 'unsubscribe', 'ack'] as const, 'type')
  only(doc, KNOWN_FIELDS[type], '')
  if (type === 'ack') return { type, cursor: formatCursor(cursorOf(doc.cursor, 'cursor')) }
  const items = list(doc.services, 'services')
  if (items.length > LIMITS.subscribeServices)
    throw new ProtocolError('services', `at most ${LIMITS.subscribeServices} in one message, got ${items.length}`)
  const services = items.map((item, index) => {
    const path = `services.${index}`
    const ref = record(item, path)
    only(ref, type === 'subscribe' ? ['namespace', 'service', 'cursor'] : ['namespace', 'service'], `${path}.`)
    return {
      service: ref.service === '*' ? '*' : serviceOf(ref.service, `${path}.service`),
      ...(ref.namespace !== undefined && {
        namespace: ref.namespace === '*' ? '*' : namespaceOf(ref.namespace, `${path}.namespace`),
      }),
      ...(ref.cursor !== undefined && { cursor: formatCursor(cursorOf(ref.cursor, `${path}.cursor`)) }),
    }
  })
  if (type === 'unsubscribe') return { type, services }
  return {
    type,
    services,
    ...(doc.reach !== undefined && { reach: formatCursor(cursorOf(doc.reach, 'reach')) }),
    ...(doc.ref !== undefined && { ref: integer(doc.ref, 0, Number.MAX_SAFE_INTEGER, 'ref') }),
  }
}

/** Of the messages of a client. */
const KNOWN_FIELDS = {
  subscribe: ['type', 'services', 'reach', 'ref'],
  unsubscribe: ['type', 'services'],
  ack: ['type', 'cursor'],
} as const

function decodeRemoval(input: unknown, path: string): Removal {
  const doc = record(input, path)
  return Object.freeze({
    id: matching(doc.id, PATTERNS.nodeId, LIMITS.nodeIdChars, `${path}.id`),
    cause: oneOf(doc.cause, REMOVAL_CAUSES, `${path}.cause`),
    time: matching(doc.time, PATTERNS.text, 64, `${path}.time`),
    revision: integer(doc.revision, 0, Number.MAX_SAFE_INTEGER, `${path}.revision`),
    ...(doc.incarnation !== undefined && {
      incarnation: integer(doc.incarnation, 0, Number.MAX_SAFE_INTEGER, `${path}.incarnation`),
    }),
  })
}

function overrideOf(input: unknown, path: string): Override {
  const doc = record(input, path)
  return Object.freeze({
    ...(doc.status !== undefined && { status: oneOf(doc.status, NODE_STATUSES, `${path}.status`) }),
    ...(doc.weight !== undefined && { weight: integer(doc.weight, 0, LIMITS.weight, `${path}.weight`) }),
  })
}

const NO_LABELS: Readonly<Record<string, string>> = Object.freeze({})
/** Those that were read last: most nodes of a service have the same, and then share them. */
let lastLabels = NO_LABELS

function labelsOf(input: unknown, path: string): Readonly<Record<string, string>> {
  if (input === undefined) return NO_LABELS
  const doc = record(input, path)
  const keys = Object.keys(doc)
  if (keys.length === 0) return NO_LABELS
  if (keys.length > LIMITS.labels) throw new ProtocolError(path, `at most ${LIMITS.labels} labels`)
  if (isSameAs(lastLabels, doc, keys)) return lastLabels
  const labels: Record<string, string> = {}
  for (const key of keys) {
    matching(key, PATTERNS.labelKey, LIMITS.labelKeyChars, `${path}.${key}`)
    labels[key] = matching(doc[key], PATTERNS.text, LIMITS.labelValueChars, `${path}.${key}`)
  }
  return (lastLabels = Object.freeze(labels))
}

function isSameAs(labels: Readonly<Record<string, string>>, doc: Record<string, unknown>, keys: string[]): boolean {
  const known = Object.keys(labels)
  return known.length === keys.length && known.every((key, at) => key === keys[at] && labels[key] === doc[key])
}

function policyOf(input: unknown, path: string): PolicyDocument {
  return deepFreeze(record(input, path), path, MAX_DEPTH)
}

/** Far deeper than any policy; what a stranger nests deeper would exhaust the stack of whoever walks it. */
const MAX_DEPTH = 64

function deepFreeze<T extends object>(value: T, path: string, depth: number): T {
  if (depth === 0) throw new ProtocolError(path, `nested deeper than ${MAX_DEPTH}`)
  for (const item of Object.values(value))
    if (typeof item === 'object' && item !== null) deepFreeze(item as object, path, depth - 1)
  return Object.freeze(value)
}

function namespaceOf(input: unknown, path: string): string {
  return matching(input, PATTERNS.namespace, LIMITS.namespaceChars, path)
}

function serviceOf(input: unknown, path: string): string {
  return matching(input, PATTERNS.service, LIMITS.nameChars, path)
}

function cursorOf(input: unknown, path: string): Cursor {
  const cursor = typeof input === 'string' ? parseCursor(input) : undefined
  if (cursor === undefined) throw new ProtocolError(path, `must be epoch:revision, got ${show(input)}`)
  return cursor
}

function record(input: unknown, path: string): Record<string, unknown> {
  if (typeof input !== 'object' || input === null || Array.isArray(input))
    throw new ProtocolError(path, `must be an object, got ${show(input)}`)
  return input as Record<string, unknown>
}

function list(input: unknown, path: string): readonly unknown[] {
  if (!Array.isArray(input)) throw new ProtocolError(path, `must be an array, got ${show(input)}`)
  return input
}

function integer(input: unknown, min: number, max: number, path: string): number {
  if (typeof input !== 'number' || !Number.isInteger(input) || input < min || input > max)
    throw new ProtocolError(path, `must be an integer from ${min} to ${max}, got ${show(input)}`)
  return input
}

function oneOf<const T extends readonly string[]>(input: unknown, allowed: T, path: string): T[number] {
  if (typeof input !== 'string' || !allowed.includes(input))
    throw new ProtocolError(path, `must be one of ${allowed.join(', ')}, got ${show(input)}`)
  return input
}

const compiled = new Map<string, RegExp>()

function matching(input: unknown, pattern: string, maxChars: number, path: string): string {
  let expression = compiled.get(pattern)
  if (expression === undefined) compiled.set(pattern, (expression = new RegExp(pattern)))
  if (typeof input !== 'string' || input.length > maxChars || !expression.test(input))
    throw new ProtocolError(path, `must be ${inWords(pattern)}, at most ${maxChars} characters, got ${show(input)}`)
  return input
}

function only(doc: Record<string, unknown>, allowed: readonly string[], path: string): void {
  for (const key of Object.keys(doc))
    if (!allowed.includes(key)) throw new ProtocolError(path + key, `unknown field; known: ${allowed.join(', ')}`)
}

/** A value in an error's text: short, on one line, whatever was sent; what nests is named, not walked. */
function show(input: unknown): string {
  if (Array.isArray(input)) return 'an array'
  if (input === undefined) return 'nothing'
  if (typeof input === 'object' && input !== null) return 'an object'
  const text = typeof input === 'bigint' ? `${input}` : (JSON.stringify(input) ?? typeof input)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}

/** The `code` of a problem document: stable, for programs. */
export type ProblemCode =
  | 'invalid_request'
  | 'bad_cursor'
  | 'not_found'
  | 'service_not_found'
  | 'node_not_found'
  | 'policy_not_found'
  | 'lease_not_found'
  | 'stale_incarnation'
  | 'method_not_allowed'
  | 'not_acceptable'
  | 'request_timeout'
  | 'body_too_large'
  | 'unsupported_media_type'
  | 'expectation_failed'
  | 'header_too_large'
  | 'too_many_requests'
  | 'store_unavailable'
  | 'not_ready'
  | 'internal_error'

/** RFC 9457, as every error of the registry is answered. */
export interface Problem {
  readonly type: string
  readonly title: string
  readonly status: number
  readonly code: ProblemCode
  readonly detail?: string
  /** Each offending field with its path. */
  readonly errors?: readonly { readonly path: string; readonly message: string }[]
  /** With `stale_incarnation`: the incarnation that the registry holds. */
  readonly incarnation?: number
}
