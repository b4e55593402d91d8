/** How a call for a service is answered: a view with where it came from, or an error that says what was tried. */

import type { Clock } from '../clock.ts'
import type { Entry } from './entry.ts'
import { parseCursor, type Cursor, type PolicyDocument, type ServiceNode, type View } from '../protocol.ts'
import { show } from '../shown.ts'

/** The levels in the order in which they are asked. */
export const LEVELS = ['memory', 'file', 'peer', 'registry'] as const

/**
 * Where an answer came from: `registry` when this call waited for it, `memory`, or `file` and `peer` for what was read
 * from disk or told by a peer and has not been confirmed by the registry since.
 */
export type Source = (typeof LEVELS)[number]

/** A view as it is answered. Immutable. */
export interface Resolved {
  readonly view: View
  readonly nodes: readonly ServiceNode[]
  readonly policy: PolicyDocument | undefined
  /** The revision of the view's last change. */
  readonly cursor: Cursor
  /**
   * Up to where in the store's history the view is known to be complete: nothing has changed from `cursor` to here. Of an
   * overridden service it tells of the view that the override hides.
   */
  readonly asOf: Cursor
  readonly source: Source
  /** Milliseconds since the view was known to be current; it grows only while the registry is silent. */
  readonly age: number
  /** Whether the registry is connected now. */
  readonly reachable: boolean
  /** Whether an operator's override file is in force. */
  readonly overridden: boolean
}

/**
 * - `unresolved`: no level knows anything of the service, and the registry did not answer in time
 * - `unknown_service`: the registry never heard of it
 * - `stale`: what is known is older than `maxStale` allows
 * - `behind`: what is known is not known to reflect `minRevision`
 * - `closed`: the client is closed
 */
export type ResolveCode = 'unknown_service' | 'unresolved' | 'stale' | 'behind' | 'closed'

/** What one level said. */
export interface Attempt {
  readonly level: Source
  readonly outcome: string
}

/** No view that answers the call. `tried` names each level with what it said, in the order of {@link LEVELS}. */
export class ResolveError extends Error {
  readonly code: ResolveCode
  readonly tried: readonly Attempt[]
  constructor(code: ResolveCode, service: string, tried: readonly Attempt[]) {
    const details = tried.map(({ level, outcome }) => `${level}: ${outcome}`).join('; ')
    super(`${service}: ${code.replace('_', ' ')}${details && ` (${details})`}`)
    this.name = 'ResolveError'
    this.code = code
    this.tried = Object.freeze([...tried])
  }
}

/** A place that an answer has to reflect. Without an epoch: of whatever history the client follows. */
export interface Minimum {
  readonly epoch: string | undefined
  readonly revision: number
}

/** @throws TypeError for what is neither a revision nor a cursor */
export function minimumOf(input: number | string | undefined): Minimum | undefined {
  if (input === undefined) return undefined
  const cursor = typeof input === 'string' ? parseCursor(input) : undefined
  const minimum = typeof input === 'number' ? { epoch: undefined, revision: input } : cursor
  if (minimum === undefined || !Number.isSafeInteger(minimum.revision) || minimum.revision < 0)
    throw new TypeError(`minRevision: must be a revision or epoch:revision, got ${show(input)}`)
  return minimum
}

/** Whether a place of the store's history is at least the one asked for. */
export function reaches(place: Cursor | undefined, minimum: Minimum): boolean {
  return (
    place !== undefined &&
    (minimum.epoch === undefined || place.epoch === minimum.epoch) &&
    place.revision >= minimum.revision
  )
}

/** @param entry one that serves something */
export function resolvedOf(entry: Entry, clock: Clock, reachable: boolean, waited: boolean): Resolved {
  const view = entry.served!
  const overridden = entry.override !== undefined
  return Object.freeze({
    view,
    nodes: nodesOf(view),
    policy: view.policy,
    cursor: view.cursor,
    asOf: entry.asOf!,
    source: overridden ? 'file' : sourceOf(entry, waited),
    age: overridden ? 0 : entry.ageMs(clock),
    reachable,
    overridden,
  })
}

function sourceOf(entry: Entry, waited: boolean): Source {
  if (entry.origin !== 'registry') return entry.origin
  return waited ? 'registry' : 'memory'
}

const nodeLists = new WeakMap<View, readonly ServiceNode[]>()

/** Made once a view: an answer must not cost more for a larger service. */
function nodesOf(view: View): readonly ServiceNode[] {
  let nodes = nodeLists.get(view)
  if (nodes === undefined) nodeLists.set(view, (nodes = Object.freeze([...view.nodes.values()])))
  return nodes
}
