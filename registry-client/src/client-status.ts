/** What a client tells of itself: for people, and as numbers for whatever collects them. */

import type { Clock } from './clock.ts'
import type { ConnectionStatus } from './registry/connection.ts'
import type { FileCacheStatus } from './files/file-cache.ts'
import type { Entry, QuarantineReason } from './cache/entry.ts'
import type { MemoryCacheStatus } from './cache/memory-cache.ts'
import type { OutageProbesStatus } from './selection/outage-probes.ts'
import type { PeersStatus } from './cache/peers.ts'
import { formatCursor } from './protocol.ts'
import type { Source } from './cache/resolved.ts'

/** A service of which the registry leaves out nodes without a cause; they are served all the same. */
export interface QuarantinedService {
  readonly namespace: string
  readonly service: string
  /** `unknown`: it never heard of the service; `empty`: it names no node; `incomplete`: it leaves out some. */
  readonly reason: QuarantineReason
  /** Milliseconds since the registry began to leave them out. */
  readonly forMs: number
  /** Nodes that are served though the registry does not name them. */
  readonly kept: number
  /** Their ids, the first 20. */
  readonly nodes: readonly string[]
  /** Of the registry's last word. */
  readonly heard: string
}

export interface ClientStatus {
  readonly connection: ConnectionStatus
  /** Undefined without a cache directory. */
  readonly file: FileCacheStatus | undefined
  readonly memory: MemoryCacheStatus
  readonly peers: PeersStatus
  /** Undefined where they are not asked for. */
  readonly outageProbes: OutageProbesStatus | undefined
  /** Services that are followed. */
  readonly services: number
  /** Names among them that the registry never heard of. */
  readonly unknown: number
  readonly quarantined: readonly QuarantinedService[]
  /** `namespace/service` of those of which the registry that answers has not reached what is known: they grow older. */
  readonly ahead: readonly string[]
  /** `namespace/service` of those with an operator's override in force. */
  readonly overridden: readonly string[]
  /** Services by where their view comes from, each with the oldest view's age in milliseconds. */
  readonly sources: Readonly<
    Record<Exclude<Source, 'registry'>, { readonly services: number; readonly oldestMs: number }>
  >
  readonly registrations: number
  /** Frames received. */
  readonly snapshots: number
  readonly changes: number
  /** Snapshots asked for because a change did not continue a view. */
  readonly restarts: number
  /** Services that came back to the registry with a cursor, by what it sent. */
  readonly resumes: { readonly nothing: number; readonly change: number; readonly snapshot: number }
  /** Times that a quarantine began, and that one was released by proof. */
  readonly quarantines: number
  readonly released: number
  /** Services dropped because nobody had asked for them for long. */
  readonly idled: number
}

export interface Level {
  /** Calls that the level answered; of the file and of peers: first uses. */
  readonly hits: number
  readonly misses: number
}

export interface ClientMetrics extends ClientStatus {
  readonly levels: Readonly<Record<Source, Level>>
  /** Times that the registry said that it never heard of a name. */
  readonly negativeAnswers: number
}

const NODES_SHOWN = 20

/** What there is to say of each service. Walks over all of them. */
export function countServices(
  entries: Iterable<readonly [string, Entry]>,
  clock: Clock,
): Pick<ClientStatus, 'quarantined' | 'overridden' | 'sources'> {
  const quarantined: QuarantinedService[] = []
  const overridden: string[] = []
  const sources = {
    memory: { services: 0, oldestMs: 0 },
    file: { services: 0, oldestMs: 0 },
    peer: { services: 0, oldestMs: 0 },
  }
  for (const [key, entry] of entries) {
    if (entry.override) overridden.push(key)
    const shown = describe(entry, clock)
    if (shown) quarantined.push(shown)
    if (!entry.view || entry.view.cursor.revision === 0) continue
    const source = sources[entry.origin === 'registry' ? 'memory' : entry.origin]
    source.services++
    source.oldestMs = Math.max(source.oldestMs, entry.ageMs(clock))
  }
  return { quarantined, overridden, sources }
}

function describe(entry: Entry, clock: Clock): QuarantinedService | undefined {
  const { namespace, service, quarantine, carried, heard } = entry
  if (!quarantine || !carried) return undefined
  const ids = carried.kept?.ids ?? []
  const forMs = Math.round(clock.now() - quarantine.sinceMs)
  const cursor = formatCursor((heard ?? carried).cursor)
  const nodes = ids.slice(0, NODES_SHOWN)
  return { namespace, service, reason: quarantine.reason, forMs, kept: ids.length, nodes, heard: cursor }
}
