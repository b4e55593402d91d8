/** What would be left of each service if the registry died now, level by level. Changes nothing of what is served. */

import type { Clock } from '../clock.ts'
import type { FileCache } from '../files/file-cache.ts'
import type { Peers, PeersRehearsal } from './peers.ts'
import { isProven, type View } from '../protocol.ts'

/** Services rehearsed at once: each reads a file and asks every peer. */
const AT_ONCE = 16

export interface ServiceName {
  readonly service: string
  /** Default: the client's. */
  readonly namespace?: string
}

/** What one level would answer. */
export interface LevelRehearsal {
  /** Whether there is a view, with nodes or with proof that there are none, or an operator's override file. */
  readonly resolves: boolean
  /** Milliseconds since the registry confirmed it, 0 of an override file; absent where nothing resolves. */
  readonly age?: number
  /** An operator's override file answers instead of the view. */
  readonly overridden?: true
  /** Nodes known, and those of them that are up and take traffic. */
  readonly nodes?: number
  readonly usable?: number
  /** Why nothing resolves. */
  readonly reason?: string
  /** Peers that gave no answer, or were not asked since they had given none for another service, each with the reason. */
  readonly unanswered?: readonly string[]
}

export const REHEARSED = ['memory', 'file', 'peer'] as const
export type RehearsedLevel = (typeof REHEARSED)[number]

export interface Rehearsal {
  readonly namespace: string
  readonly service: string
  readonly resolves: boolean
  /** The level that would answer; absent where none would. */
  readonly level?: RehearsedLevel
  /** `memory` as the process is now; `file` after a restart; `peer` on a new host. */
  readonly levels: Readonly<Record<RehearsedLevel, LevelRehearsal>>
}

interface Known {
  readonly view: View
  readonly ageMs: number
  readonly overridden: boolean
}

export interface RehearsalLevels {
  readonly memory: (name: Required<ServiceName>) => Known | undefined
  /** Left out: there is no cache directory. */
  readonly file?: Pick<FileCache, 'peek' | 'peekOverride'>
  readonly peers?: Pick<Peers, 'rehearsal'>
  readonly clock: Clock
}

/**
 * In the order of `names`.
 * @throws the reason of `signal` once that has aborted
 */
export async function rehearse(
  names: readonly Required<ServiceName>[],
  levels: RehearsalLevels,
  signal: AbortSignal,
): Promise<Rehearsal[]> {
  const results: Rehearsal[] = []
  const queue = names.entries()
  const peers = levels.peers?.rehearsal(signal)
  const work = async () => {
    for (const [index, name] of queue) {
      results[index] = await rehearseOne(name, levels, peers)
      signal.throwIfAborted()
    }
  }
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, names.length) }, work))
  return results
}

async function rehearseOne(
  name: Required<ServiceName>,
  { memory, file, clock }: RehearsalLevels,
  peers: PeersRehearsal | undefined,
): Promise<Rehearsal> {
  const { namespace, service } = name
  const [fromFile, asked] = await Promise.all([file && restarted(file, name), peers?.ask(namespace, service)])
  const told = asked?.found
  const fromPeer = told && { view: told.view, ageMs: clock.now() - told.heardMs, overridden: false }
  const found = {
    memory: judge(memory(name), 'not in memory'),
    file: judge(fromFile, file ? 'no file that can be read' : 'no cache directory'),
    peer: {
      ...judge(fromPeer, peers ? 'no peer knows it' : 'no peers are configured'),
      ...(asked && asked.unanswered.length > 0 && { unanswered: asked.unanswered }),
    },
  }
  const level = REHEARSED.find((candidate) => found[candidate].resolves)
  return { namespace, service, resolves: level !== undefined, ...(level && { level }), levels: found }
}

/** What a process that starts now would serve. */
async function restarted(
  file: Pick<FileCache, 'peek' | 'peekOverride'>,
  { namespace, service }: Required<ServiceName>,
): Promise<Known | undefined> {
  const loaded = await file.peek(namespace, service)
  const override = await file.peekOverride(namespace, service, loaded?.view)
  if (override) return { view: override, ageMs: 0, overridden: true }
  return loaded && { ...loaded, overridden: false }
}

function judge(known: Known | undefined, reason: string): LevelRehearsal {
  if (known === undefined) return { resolves: false, reason }
  const { view, ageMs, overridden } = known
  // An operator needs no proof.
  if (!overridden && !isProven(view)) return { resolves: false, reason: 'no nodes, and no removal of the last' }
  let usable = 0
  for (const node of view.nodes.values()) if (node.status === 'up' && node.weight > 0) usable++
  return {
    resolves: true,
    age: Math.round(ageMs),
    ...(overridden && { overridden }),
    nodes: view.nodes.size,
    usable,
  }
}
