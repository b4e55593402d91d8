/** What each level said to a call that could not be answered. */

import type { Clock } from '../clock.ts'
import type { ConnectionStatus } from '../registry/connection.ts'
import type { Entry } from './entry.ts'
import type { PeersStatus } from './peers.ts'
import { formatCursor } from '../protocol.ts'
import type { Attempt, Minimum } from './resolved.ts'

export interface Levels {
  readonly clock: Clock
  readonly hasFiles: boolean
  readonly peers: PeersStatus
  readonly connection: ConnectionStatus
}

/** In the order in which they are asked. */
export function attemptsAt(entry: Entry, minimum: Minimum | undefined, levels: Levels): Attempt[] {
  const { clock, hasFiles, peers, connection } = levels
  const { asOf, served } = entry
  const known = served && asOf && `${ageOf(entry, clock)} old${minimum ? `, known as of ${formatCursor(asOf)}` : ''}`
  const isFile = entry.view && entry.origin === 'file'
  const file = isFile ? 'nothing newer' : entry.isFileKnown ? 'nothing readable' : 'not read yet, or not readable'
  return [
    { level: 'memory', outcome: known ?? 'nothing' },
    { level: 'file', outcome: hasFiles ? file : 'no cache directory' },
    ...(peers.urls.length > 0 ? [{ level: 'peer' as const, outcome: outcomeOfPeers(entry, levels) }] : []),
    { level: 'registry', outcome: connection.reachable ? answerOf(entry) : whyNot(connection) },
  ]
}

/** Of a registry that is connected. */
function answerOf({ view, served }: Entry): string {
  if (view === undefined || served !== undefined) return 'connected, no answer in time'
  return view.cursor.revision === 0 ? 'never heard of it' : 'names no node, and no removal of the last'
}

/** Of a name that the registry says it never heard of; it may have said so a while ago. */
export function unknownAttempt(entry: Entry, { clock, connection }: Levels): Attempt {
  const silence = connection.reachable ? '' : `, as it said ${ageOf(entry, clock)} ago; ${whyNot(connection)}`
  return { level: 'registry', outcome: `never heard of it${silence}` }
}

function outcomeOfPeers(entry: Entry, { peers, connection }: Levels): string {
  if (entry.view !== undefined || connection.reachable || peers.asked === 0) return 'not asked'
  return `none of ${peers.urls.length} knows it${peers.lastError ? `; ${peers.lastError}` : ''}`
}

function whyNot({ endpoint, lastError }: ConnectionStatus): string {
  return `${endpoint}: ${lastError ?? 'not connected yet'}`
}

function ageOf(entry: Entry, clock: Clock): string {
  return `${Math.round(entry.ageMs(clock))} ms`
}
