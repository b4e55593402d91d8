/**
 * The last level: other processes that follow the registry too, asked for a service of which this one knows nothing
 * while the registry cannot be reached. A host that is new in the middle of an outage starts by them.
 *
 * A peer tells what it has from memory or file and asks nobody in turn. Its word is hearsay: it is decoded as strictly as
 * the registry's, keeps the age that it has there, and gives way to the registry.
 */

import { Backoff, sleep, type Clock, type Random } from '../clock.ts'
import type { Log } from '../log.ts'
import { reasonOf, type Network } from '../network.ts'
import { decodeView, isProven, unaccounted, type View } from '../protocol.ts'

/** A peer answers from memory or from one file; what takes longer is in trouble itself. */
const TIMEOUT_MS = 1_000
/** The view of a hundred thousand nodes. All peers' answers for one service are held at once. */
const MAX_BYTES = 32 * 1_048_576
/** Services asked about at once; at the start of a host, many are missing at the same moment. */
const MAX_ASKING = 32
/** Ten years: no outage is longer, and a date before it need not be one that a disk can write down. */
const MAX_AGE_MS = 10 * 365 * 86_400_000
const AGAIN = { baseMs: 500, capMs: 10_000 }
/** However the jitter falls: a peer that knows nothing now is not asked again at once. */
const LEAST_PAUSE_MS = 100

/** What a peer knew. */
export interface PeerView {
  readonly view: View
  /** When the registry last confirmed it, on this process's clock. */
  readonly heardMs: number
  readonly peer: string
}

export interface PeersOptions {
  readonly urls: readonly string[]
  readonly network: Network
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
}

export interface PeersStatus {
  readonly urls: readonly string[]
  /** Requests sent. */
  readonly asked: number
  /** Answers with a view. */
  readonly answered: number
  /** Answers of peers that know nothing of the service. */
  readonly unknown: number
  /** No answer, or one that is no view of the service. */
  readonly failed: number
  readonly lastError: string | undefined
}

export class Peers {
  readonly #options: PeersOptions
  #asking = 0
  readonly #queue: (() => void)[] = []
  readonly #counts = { asked: 0, answered: 0, unknown: 0, failed: 0 }
  #lastError: string | undefined

  constructor(options: PeersOptions) {
    this.#options = options
  }

  get isEmpty(): boolean {
    return this.#options.urls.length === 0
  }

  status(): PeersStatus {
    return { urls: this.#options.urls, ...this.#counts, lastError: this.#lastError }
  }

  /**
   * Asks until a peer knows the service, with pauses that grow.
   * @returns undefined when `signal` ended it
   */
  async seek(namespace: string, service: string, signal: AbortSignal): Promise<PeerView | undefined> {
    const { clock, random } = this.#options
    const backoff = new Backoff(random, AGAIN)
    while (!signal.aborted) {
      const found = await this.ask(namespace, service, signal)
      if (found) return found
      await sleep(clock, LEAST_PAUSE_MS + backoff.next(), signal)
    }
    return undefined
  }

  /** Asks all peers at once, and chooses among what they know. Never rejects. */
  async ask(namespace: string, service: string, signal: AbortSignal): Promise<PeerView | undefined> {
    if (this.#asking >= MAX_ASKING) await new Promise<void>((resolve) => this.#queue.push(resolve))
    else this.#asking++
    try {
      if (signal.aborted) return undefined
      const asked = this.#options.urls.map((peer) => this.#askOne(peer, namespace, service, signal))
      return choose((await Promise.all(asked)).filter((found) => found !== undefined))
    } finally {
      const next = this.#queue.shift()
      if (next) next()
      else this.#asking--
    }
  }

  async #askOne(peer: string, namespace: string, service: string, signal: AbortSignal): Promise<PeerView | undefined> {
    const { network, clock, log } = this.#options
    const timeout = new AbortController()
    const cancel = clock.after(TIMEOUT_MS, () => timeout.abort(new Error(`no answer in ${TIMEOUT_MS} ms`)))
    const askedMs = clock.now()
    this.#counts.asked++
    try {
      const { status, body } = await network.request({
        method: 'GET',
        url: `${peer}/v1/views/${service}?namespace=${namespace}`,
        headers: { accept: 'application/json' },
        maxBytes: MAX_BYTES,
        signal: AbortSignal.any([signal, timeout.signal]),
      })
      if (status === 404) {
        this.#counts.unknown++
        return undefined
      }
      if (status !== 200) throw new Error(`answered ${status}`)
      if (Buffer.byteLength(body) > MAX_BYTES) throw new Error(`an answer of over ${MAX_BYTES} bytes`)
      const { view, ageMs } = read(body, namespace, service)
      this.#counts.answered++
      // Taken before the answer came: a view is rather a little too old than too young.
      return { view, heardMs: askedMs - ageMs, peer }
    } catch (error) {
      if (signal.aborted) return undefined
      this.#counts.failed++
      this.#lastError = `${peer}: ${reasonOf(error)}`
      log.debug({ peer, namespace, service, reason: reasonOf(error) }, 'a peer could not be asked')
      return undefined
    } finally {
      cancel()
    }
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
  if (typeof ageMs !== 'number' || !(ageMs >= 0 && ageMs <= MAX_AGE_MS))
    throw new Error(`age: must be milliseconds, 0..${MAX_AGE_MS}, got ${String(ageMs).slice(0, 40)}`)
  return { view, ageMs }
}

/**
 * Within an epoch the highest cursor; of several epochs, which cannot be compared, the one that the registry confirmed
 * last. One without nodes gives way to one with nodes that it does not account for.
 */
export function choose(found: readonly PeerView[]): PeerView | undefined {
  const confirmedMs = new Map<string, number>()
  for (const { view, heardMs } of found)
    confirmedMs.set(view.cursor.epoch, Math.max(confirmedMs.get(view.cursor.epoch) ?? -Infinity, heardMs))
  const epochMs = ({ view }: PeerView) => confirmedMs.get(view.cursor.epoch)!
  const order = (a: PeerView, b: PeerView) =>
    epochMs(a) - epochMs(b) ||
    (a.view.cursor.epoch < b.view.cursor.epoch ? -1 : a.view.cursor.epoch > b.view.cursor.epoch ? 1 : 0) ||
    a.view.cursor.revision - b.view.cursor.revision ||
    a.heardMs - b.heardMs
  let best: PeerView | undefined
  for (const next of [...found].sort(order))
    if (best === undefined || next.view.nodes.size > 0 || unaccounted(best.view, next.view).length === 0) best = next
  return best
}
