/**
 * The last level: other processes that follow the registry too, asked for a service of which this one knows nothing
 * while the registry cannot be reached. A host that is new in the middle of an outage starts by them.
 *
 * A peer tells what it has from memory or file and asks nobody in turn. Its word keeps the age that it has there, and
 * gives way to the registry.
 */

import { setMaxListeners } from 'node:events'
import { Backoff, sleep, type Clock, type Random } from '../clock.ts'
import type { Log } from '../log.ts'
import { maskUrl, type Network } from '../network.ts'
import { ByteBudget, type Holding } from './byte-budget.ts'
import { MutePeers, type Speech } from './mute-peers.ts'
import { PeerChoice, type PeerView } from './peer-choice.ts'
import { askPeer, MAX_ANSWER_BYTES, type PeerAnswer } from './peer-request.ts'
import { Seek } from './seek.ts'
import { Semaphore } from '../semaphore.ts'

/** Services asked about at once; at the start of a host, many are missing at the same moment. */
const MAX_SEEKING = 32
/** Rehearsals have places of their own, so that none keeps those waiting who need an answer. */
const MAX_REHEARSING = 8
const MAX_REHEARSALS_WAITING = 64
/** Of answers under way, and of those among which is chosen, as text: two of the largest. */
const MAX_BYTES_AT_ONCE = 2 * MAX_ANSWER_BYTES
/** A node is seldom written in more than a few hundred. */
const BYTES_PER_NODE = 2_048
/** A view with its policy. */
const LEAST_BYTES = 1_048_576
const AGAIN = { baseMs: 500, capMs: 10_000 }
/** However the jitter falls: a peer that knows nothing now is not asked again at once. */
const LEAST_PAUSE_MS = 100

export interface PeersOptions {
  readonly urls: readonly string[]
  /** As many as the client holds: an answer with many more is of no use, and is not read. Default: any number. */
  readonly maxNodes?: number
  readonly network: Network
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
}

export interface PeersStatus {
  /** Without passwords. */
  readonly urls: readonly string[]
  /** Requests sent. */
  readonly asked: number
  /** Answers with a view. */
  readonly answered: number
  /** Answers of peers that know nothing of the service. */
  readonly unknown: number
  /** No answer, or one that is no view of the service. */
  readonly failed: number
  /** Answers cut off because all together were too large. */
  readonly crowded: number
  /** Requests not sent, since the peer was silent for another service. */
  readonly skipped: number
  readonly lastError: string | undefined
}

/** What all peers said of one service. */
export interface PeersAnswer {
  readonly found: PeerView | undefined
  /** Peers that gave no answer, or were not asked, each with the reason. */
  readonly unanswered: readonly string[]
}

/** Asks as an outage would; a peer that was silent for one service is not waited for again. */
export interface PeersRehearsal {
  ask(namespace: string, service: string): Promise<PeersAnswer>
}

/** Those who ask for the same reason, and share what they may take. */
class Lane {
  readonly slots: Semaphore
  readonly budget = new ByteBudget(MAX_BYTES_AT_ONCE)

  constructor(places: number, maxWaiting?: number) {
    this.slots = new Semaphore(places, maxWaiting)
  }
}

export class Peers {
  readonly #options: PeersOptions
  readonly #shown: readonly string[]
  readonly #maxBytes: number
  readonly #seeking = new Lane(MAX_SEEKING)
  readonly #rehearsing = new Lane(MAX_REHEARSING, MAX_REHEARSALS_WAITING)
  readonly #seeks = new Map<string, Seek>()
  /** One seek at a time finds out whether a silent peer speaks again. */
  readonly #mute = new MutePeers(1)
  readonly #counts = { asked: 0, answered: 0, unknown: 0, failed: 0, crowded: 0, skipped: 0 }
  #lastError: string | undefined

  constructor(options: PeersOptions) {
    this.#options = options
    this.#shown = options.urls.map(maskUrl)
    const { maxNodes = Infinity } = options
    this.#maxBytes = Math.min(MAX_ANSWER_BYTES, Math.max(LEAST_BYTES, maxNodes * BYTES_PER_NODE))
  }

  get isEmpty(): boolean {
    return this.#options.urls.length === 0
  }

  status(): PeersStatus {
    return { urls: this.#shown, ...this.#counts, lastError: this.#lastError }
  }

  /**
   * Asks until a peer knows the service, with pauses that grow.
   * @returns undefined when `signal` ended it
   */
  async seek(namespace: string, service: string, signal: AbortSignal): Promise<PeerView | undefined> {
    if (signal.aborted) return undefined
    const key = `${namespace}/${service}`
    const underWay = this.#seeks.get(key)
    if (underWay && !underWay.signal.aborted) return underWay.join(signal)
    const seek = new Seek(async () => {
      const found = await this.#search(namespace, service, seek)
      if (this.#seeks.get(key) === seek) this.#seeks.delete(key)
      return found
    })
    this.#seeks.set(key, seek)
    return seek.join(signal)
  }

  /** Ends what nobody waits for any more. */
  close(): void {
    for (const seek of this.#seeks.values()) seek.end()
  }

  async #search(namespace: string, service: string, seek: Seek): Promise<PeerView | undefined> {
    const { clock, random } = this.#options
    const { slots } = this.#seeking
    const { signal } = seek
    const backoff = new Backoff(random, AGAIN)
    while (await slots.enter(signal)) {
      const asked = seek.ask(() => this.#ask(this.#seeking.budget, namespace, service, signal, this.#mute))
      const { found } = await asked.finally(() => slots.leave())
      if (found) return found
      await sleep(clock, LEAST_PAUSE_MS + backoff.next(), signal)
    }
    return undefined
  }

  /** @param signal nobody wants to know any more */
  rehearsal(signal: AbortSignal): PeersRehearsal {
    const { slots, budget } = this.#rehearsing
    const mute = new MutePeers(0)
    return {
      ask: async (namespace, service) => {
        if (!(await slots.enter(signal))) return { found: undefined, unanswered: ['too many ask at once'] }
        return this.#ask(budget, namespace, service, signal, mute).finally(() => slots.leave())
      },
    }
  }

  /** Asks all peers at once, and chooses among what they know. Never rejects. */
  async #ask(
    budget: ByteBudget,
    namespace: string,
    service: string,
    signal: AbortSignal,
    mute: MutePeers,
  ): Promise<PeersAnswer> {
    const { urls, network, clock, log } = this.#options
    // One for each peer of each service asked about: many listeners are no leak here.
    setMaxListeners(0, signal)
    const choice = new PeerChoice()
    const holdings = new Map<PeerView, Holding>()
    const unanswered: string[] = []
    const askOne = async (url: string, index: number) => {
      const peer = this.#shown[index]!
      const heard = mute.begin(url)
      if (typeof heard === 'string') {
        this.#counts.skipped++
        return void unanswered.push(`${peer}: skipped: ${heard}`)
      }
      this.#counts.asked++
      const isKnown = () => holdings.size > 0
      const maxBytes = this.#maxBytes
      const answer = await askPeer({ url, peer, namespace, service, network, clock, budget, maxBytes, signal, isKnown })
      heard(speechOf(answer))
      if (answer.outcome === 'aborted') return
      this.#counts[answer.outcome]++
      if (answer.outcome === 'answered') {
        holdings.set(answer.known, answer.holding)
        const gone = choice.add(answer.known)
        if (gone) {
          holdings.get(gone)!.release()
          holdings.delete(gone)
        }
      } else if (answer.outcome !== 'unknown') {
        const { reason } = answer
        this.#lastError = `${peer}: ${reason}`
        unanswered.push(this.#lastError)
        log.debug({ peer, namespace, service, reason }, 'a peer could not be asked')
      }
    }
    try {
      await Promise.all(urls.map(askOne))
      return { found: signal.aborted ? undefined : choice.best, unanswered }
    } finally {
      for (const holding of holdings.values()) holding.release()
    }
  }
}

function speechOf(answer: PeerAnswer): Speech {
  if (answer.outcome === 'aborted') return 'unsaid'
  return 'isMute' in answer && answer.isMute ? { silent: answer.reason } : 'spoke'
}
