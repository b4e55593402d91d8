/**
 * What a peer says that does not tell the truth, whether it is broken or means harm. Nodes, epochs and revisions of lies
 * can be told from those of the run, so that what a liar said is found wherever it has got to.
 */

import type { Cursor, View } from '@holdfast/registry-client/protocol'
import type { Random } from '@holdfast/registry-client/clock'
import { CACHE_DIR, type ClientProcess } from './client-process.ts'
import type { Model } from './model.ts'
import type { AnswerMessage } from './sim-wire.ts'

/**
 * - `revision`: of the true epoch, at a place that it will come to or never will, with a node that never was
 * - `ghost`: at the true cursor, with a node that never was
 * - `epoch`: of a store that never was
 * - `empty`: no nodes, with or without a removal that never was
 * - `age`: an age that nothing has
 * - `silence`, `garbage`: no answer, or none that is one
 */
export const LIES = ['revision', 'ghost', 'epoch', 'empty', 'age', 'silence', 'garbage'] as const
export type LieKind = (typeof LIES)[number]

const GHOST = { id: 'ghost', host: '6.6.6.6', port: 6, protocol: 'http', weight: 100, status: 'up', leased: true }
const NEVER = 'never'
const NO_AGES = ['1e14', '1e300', '1e309', '-1', '"1"', 'null']
const GARBAGE = ['', '{', 'null', '[]', '{"nodes":[]}', '<html>']

/** @returns undefined for silence */
export function lieOf(
  kind: LieKind,
  namespace: string,
  service: string,
  truth: Cursor,
  random: Random,
): AnswerMessage | undefined {
  const any = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!
  const { epoch, revision } = truth
  const document = { namespace, service, cursor: `${epoch}:${revision}`, nodes: [GHOST], policy: null, age: 0 }
  switch (kind) {
    case 'silence':
      return undefined
    case 'garbage':
      return random() < 0.3 ? answerOf(any(GARBAGE), 503) : answerOf(any(GARBAGE))
    case 'revision': {
      const far = random() < 0.5 ? Number.MAX_SAFE_INTEGER : revision + 1 + Math.floor(random() * 50)
      return answerOf(JSON.stringify({ ...document, cursor: `${epoch}:${far}` }))
    }
    case 'ghost':
      return answerOf(JSON.stringify(document))
    case 'epoch':
      return answerOf(JSON.stringify({ ...document, cursor: `${NEVER}:${1 + Math.floor(random() * 1_000)}` }))
    case 'age':
      return answerOf(JSON.stringify(document).replace('"age":0', `"age":${any(NO_AGES)}`))
    case 'empty': {
      // Beyond what is ever written, so that it is told from what was empty in truth.
      const cursor = `${epoch}:${revision + 1_000_000}`
      const time = new Date(0).toISOString()
      const emptied = { id: GHOST.id, cause: 'operator', time, revision: revision + 1 }
      return answerOf(JSON.stringify({ ...document, cursor, nodes: [], ...(random() < 0.5 && { emptied }) }))
    }
  }
}

function answerOf(body: string, status = 200): AnswerMessage {
  return { status, headers: { 'content-type': 'application/json' }, body }
}

/** Tells what liars have said in a run from what is true. */
export class Lies {
  readonly #model: Model

  constructor(model: Model) {
    this.#model = model
  }

  /** Whether anything in a view comes from a liar. */
  has(view: View): boolean {
    const { nodes, emptied, cursor } = view
    if (nodes.has(GHOST.id) || emptied?.id === GHOST.id || cursor.epoch === NEVER) return true
    return cursor.revision > (this.#model.epochs.get(cursor.epoch)?.revision ?? Infinity)
  }

  /** Whether the file that a client keeps of a service holds a lie. */
  isInFile({ isCached, disk }: ClientProcess, service: string): boolean {
    const content = isCached ? disk.files.get(`${CACHE_DIR}/default/${service}.json`)?.content : undefined
    if (content === undefined) return false
    // At a glance: it is asked again and again.
    const [, epoch, revision] = /"cursor":"([^":]+):(\d+)"/.exec(content) ?? []
    const isBeyond = Number(revision) > (this.#model.epochs.get(epoch ?? '')?.revision ?? Infinity)
    return isBeyond || epoch === NEVER || content.includes(`"id":"${GHOST.id}"`)
  }
}
