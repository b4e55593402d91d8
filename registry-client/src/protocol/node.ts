import { LIMITS } from './limits.ts'
import { PATTERNS } from './patterns.ts'
import { integer, matching, oneOf, ProtocolError, record } from './reading.ts'

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
