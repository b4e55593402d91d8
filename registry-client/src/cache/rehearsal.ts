/** What would be left of each service if the registry died now, level by level. Changes nothing of what is served. */

import type { Clock } from '../clock.ts'
import type { FileCache } from '../files/file-cache.ts'
import type { Peers } from './peers.ts'
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
  /** Whether there is a view, with nodes or with proof that there are none. */
  readonly resolves: boolean
  /** Milliseconds since the registry confirmed it; absent where nothing resolves. */
  readonly age?: number
  /** Nodes known, and those of them that are up and take traffic. */
  readonly nodes?: number
  readonly usable?: number
  /** Why nothing resolves. */
  readonly reason?: string
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
}

export interface RehearsalLevels {
  readonly memory: (name: Required<ServiceName>) => Known | undefined
  /** Left out: there is no cache directory. */
  readonly file?: Pick<FileCache, 'peek'>
  readonly peers?: Pick<Peers, 'ask'>
  readonly clock: Clock
}

/** In the order of `names`. */
export async function rehearse(names: readonly Required<ServiceName>[], levels: RehearsalLevels): Promise<Rehearsal[]> {
  const results: Rehearsal[] = []
  const queue = names.entries()
  const work = async () => {
    for (const [index, name] of queue) results[index] = await rehearseOne(name, levels)
  }
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, names.length) }, work))
  return results
}

async function rehearseOne(name: Required<ServiceName>, levels: RehearsalLevels): Promise<Rehearsal> {
  const { namespace, service } = name
  const { memory, file, peers, clock } = levels
  const [fromFile, fromPeer] = await Promise.all([
    file?.peek(namespace, service),
    peers?.ask(namespace, service, new AbortController().signal),
  ])
  const found = {
    memory: judge(memory(name), 'not in memory'),
    file: judge(fromFile, file ? 'no file that can be read' : 'no cache directory'),
    peer: judge(
      fromPeer && { view: fromPeer.view, ageMs: clock.now() - fromPeer.heardMs },
      peers ? 'no peer knows it' : 'no peers are configured',
    ),
  }
  const level = REHEARSED.find((candidate) => found[candidate].resolves)
  return { namespace, service, resolves: level !== undefined, ...(level && { level }), levels: found }
}

function judge(known: Known | undefined, reason: string): LevelRehearsal {
  if (known === undefined) return { resolves: false, reason }
  if (!isProven(known.view)) return { resolves: false, reason: 'no nodes, and no removal of the last' }
  let usable = 0
  for (const node of known.view.nodes.values()) if (node.status === 'up' && node.weight > 0) usable++
  return { resolves: true, age: Math.round(known.ageMs), nodes: known.view.nodes.size, usable }
}
