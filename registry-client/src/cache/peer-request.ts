/** One question to one peer: its word is hearsay, so it is decoded as strictly as the registry's, and bounded throughout. */

import { every, type Clock } from '../clock.ts'
import { reasonOf, type Network } from '../network.ts'
import { decodeView, isProven, type View } from '../protocol.ts'
import { show } from '../shown.ts'
import type { ByteBudget, Holding } from './byte-budget.ts'
import type { PeerView } from './peer-choice.ts'

/** The view of over a hundred thousand nodes. */
export const MAX_ANSWER_BYTES = 32 * 1_048_576
/** Time is counted by these, so that a process that stood still for a while does not take that for a peer's silence. */
const TICK_MS = 100
/** A peer answers from memory or from one file; what is silent for longer is in trouble itself. */
const PATIENCE_MS = 1_000
/** What comes more slowly is cut off. */
const BYTES_PER_SECOND = 1_048_576
/**
 * Ten years: what is older counts as this. A file that is dated in the future says nothing of its age and counts as dating
 * from 1970, and not every disk can write down a date that is earlier.
 */
const MAX_AGE_MS = 10 * 365 * 86_400_000

export interface PeerQuestion {
  readonly url: string
  /** The same without a password. */
  readonly peer: string
  readonly namespace: string
  readonly service: string
  readonly network: Network
  readonly clock: Clock
  readonly budget: ByteBudget
  readonly signal: AbortSignal
  /** Whether another peer has answered: from then on this one is waited for no longer than for its first word. */
  readonly isKnown: () => boolean
}

/**
 * What came of it. `crowded`: all answers together held too much, and this one most. `isMute`: the peer kept
 * whoever asked waiting for nothing.
 */
export type PeerAnswer =
  | { readonly outcome: 'answered'; readonly known: PeerView; readonly holding: Holding }
  | { readonly outcome: 'unknown' }
  | { readonly outcome: 'aborted' }
  | { readonly outcome: 'failed' | 'crowded'; readonly reason: string; readonly isMute: boolean }

/** Never rejects. What is `answered` counts against the budget until its holding is released. */
export async function askPeer(question: PeerQuestion): Promise<PeerAnswer> {
  const { url, peer, namespace, service, network, clock, budget, signal, isKnown } = question
  const cut = new AbortController()
  let isCrowded = false
  let isMute = false
  const fail = (reason: string) => cut.abort(new Error(reason))
  const failMute = (reason: string) => {
    isMute = true
    fail(reason)
  }
  const onAbort = () => fail('nobody waits any more')
  signal.addEventListener('abort', onAbort)
  const holding = budget.open(() => {
    isCrowded = true
    fail('too much is answered at once')
  })
  const ticks = { all: 0, silent: 0, known: 0 }
  let bytes = 0
  const stopTicks = every(clock, TICK_MS, () => {
    const patience = PATIENCE_MS / TICK_MS
    if (++ticks.silent >= patience) failMute(`silent for ${PATIENCE_MS} ms`)
    else if (++ticks.all >= patience + bytes / ((BYTES_PER_SECOND * TICK_MS) / 1_000)) failMute('too slow')
    else if (isKnown() && ++ticks.known >= patience) fail('slower than another')
  })
  const askedMs = clock.now()
  try {
    const { status, body } = await network.request({
      method: 'GET',
      url: `${url}/v1/views/${service}?namespace=${namespace}`,
      headers: { accept: 'application/json' },
      maxBytes: MAX_ANSWER_BYTES,
      signal: cut.signal,
      received: (more) => {
        ticks.silent = 0
        bytes += more
        if (bytes <= MAX_ANSWER_BYTES) return holding.grow(more)
        fail(`an answer of over ${MAX_ANSWER_BYTES} bytes`)
      },
    })
    cut.signal.throwIfAborted()
    if (status === 404) {
      holding.release()
      return { outcome: 'unknown' }
    }
    if (status !== 200) throw new Error(`answered ${status}`)
    if (body.length > MAX_ANSWER_BYTES) throw new Error(`an answer of over ${MAX_ANSWER_BYTES} bytes`)
    const { view, ageMs } = read(body, namespace, service)
    holding.keep()
    // Taken before the answer came: a view is rather a little too old than too young.
    return { outcome: 'answered', known: { view, heardMs: askedMs - ageMs, peer }, holding }
  } catch (error) {
    holding.release()
    if (signal.aborted) return { outcome: 'aborted' }
    return { outcome: isCrowded ? 'crowded' : 'failed', reason: reasonOf(error), isMute }
  } finally {
    stopTicks()
    signal.removeEventListener('abort', onAbort)
  }
}

function read(body: string, namespace: string, service: string): { view: View; ageMs: number } {
  const document = JSON.parse(body) as { age?: unknown } | null
  const view = decodeView(document)
  if (view.namespace !== namespace || view.service !== service)
    throw new Error(`it holds ${view.namespace}/${view.service}`)
  // That the registry never heard of a service is no view of it.
  if (view.cursor.revision === 0) throw new Error('it holds no view of the service')
  if (!isProven(view)) throw new Error('it holds no nodes, and no removal of the last')
  const ageMs = document?.age
  if (typeof ageMs !== 'number' || !(ageMs >= 0 && Number.isFinite(ageMs)))
    throw new Error(`age: must be a number of milliseconds of at least 0, got ${show(ageMs)}`)
  return { view, ageMs: Math.min(ageMs, MAX_AGE_MS) }
}
