/**
 * What other hosts may read of this one, and nothing else: `GET /v1/views/{service}?namespace=`, the view as the registry
 * last said it. A host that is new in the middle of an outage starts by it.
 *
 * Whoever reaches it learns the addresses of services, as from the registry itself; it commands nothing. Strangers may
 * ask, so everything is bounded: heads, time, connections, and the work that is done for all of them together.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { isNamespace, isServiceName } from '@holdfast/registry-client/protocol'
import { Fields } from '../fields.ts'
import { stack, type Exchange, type Layer, type Reply, type Service } from '../layer.ts'
import { cleanHead } from '../layers/clean-head.ts'
import { problemReply } from '../problem-reply.ts'
import { invalid, Refusal, refusals } from './refusal.ts'
import { SharedContent } from './reply.ts'
import { router, type Listening } from './router.ts'

export interface PeerApiOptions {
  readonly clock: Clock
  readonly log: Log
  /** Of services named without one. */
  readonly namespace: string
  /** Undefined when nothing is known. */
  readonly view: (service: string, namespace: string) => Promise<PeerAnswer | undefined>
  /** Whether `view` answers at once, without a file. Default: never. */
  readonly isAtHand?: (service: string, namespace: string) => boolean
  readonly limits?: Partial<PeerApiLimits>
}

export interface PeerAnswer {
  readonly document: object
  /** Nodes in it: the work that it takes. */
  readonly nodes: number
}

export interface PeerApiLimits {
  readonly headBytes: number
  /** For a head to arrive, for an answer to leave, and for the next request. */
  readonly timeoutMs: number
  readonly connections: number
  /**
   * What all peers together are answered in a second, and in a moment at most: an answer costs one, and one more for
   * every hundred nodes. A host that starts asks for all its services at once.
   */
  readonly perSecond: number
  readonly burst: number
  /** Views that are read from file at once, and that wait for it: a disk that hangs holds up nothing else. */
  readonly readings: number
  readonly waiting: number
}

const DEFAULTS: PeerApiLimits = {
  headBytes: 4_096,
  timeoutMs: 5_000,
  connections: 128,
  perSecond: 500,
  burst: 2_000,
  readings: 2,
  waiting: 64,
}
const NODES_PER_TOKEN = 100

export interface PeerApiStatus {
  readonly answered: number
  readonly unknown: number
  /** Requests that were not answered with a view for what they are, or because there were too many. */
  readonly refused: number
}

/** One look for a service, and the text of what it found: both are shared by all who ask at that moment. */
interface Lookup {
  readonly found: Promise<PeerAnswer | undefined>
  text?: Buffer
}

export class PeerApi {
  readonly listening: Listening
  readonly #options: PeerApiOptions
  readonly #limits: PeerApiLimits
  readonly #lookups = new Map<string, Lookup>()
  #readings = 0
  readonly #waiting: (() => void)[] = []
  #tokens: number
  #filledMs: number
  readonly #counts = { answered: 0, unknown: 0, refused: 0 }

  constructor(options: PeerApiOptions) {
    this.#options = options
    this.#limits = { ...DEFAULTS, ...options.limits }
    const { headBytes, timeoutMs, connections, burst } = this.#limits
    this.#tokens = burst
    this.#filledMs = options.clock.now()
    this.listening = {
      direction: 'inbound',
      // A connection is one question at a time, or there would be more at once than connections.
      http2: false,
      // Those who have gone cost the others nothing.
      allowHalfOpen: false,
      limits: { headBytes, headMs: timeoutMs, idleMs: timeoutMs, keepAliveMs: timeoutMs, connections },
      serve: this.#service(),
      onMalformed: () => void this.#counts.refused++,
    }
  }

  status(): PeerApiStatus {
    return { ...this.#counts }
  }

  #service(): Service {
    // Whoever was refused has to connect anew.
    const refused = (reply: Reply) => {
      this.#counts.refused++
      return { ...reply, isLast: true }
    }
    return stack(
      [refusals(this.#options.log, refused), cleanHead(), withoutBody],
      router({
        'GET /v1/views/:service': ({ exchange, search }, service) => {
          const namespace = search.get('namespace') ?? this.#options.namespace
          if (!isServiceName(service)) throw invalid([{ path: 'service', message: 'must be a service name' }])
          if (!isNamespace(namespace)) throw invalid([{ path: 'query.namespace', message: 'must be a namespace' }])
          return this.#answer(service, namespace, exchange)
        },
      }),
    )
  }

  async #answer(service: string, namespace: string, exchange: Exchange): Promise<Reply> {
    this.#fill()
    if (this.#tokens < 1) throw crowded()
    this.#tokens--
    const lookup = this.#lookUp(service, namespace)
    const answer = await lookup.found
    // They have gone meanwhile.
    if (exchange.aborted) throw exchange.aborted
    if (answer === undefined) {
      this.#counts.unknown++
      return problemReply({ status: 404, code: 'service_not_found', title: 'Nothing is known of it' })
    }
    this.#fill()
    if (this.#tokens < 0) throw crowded()
    this.#tokens -= Math.floor(answer.nodes / NODES_PER_TOKEN)
    this.#counts.answered++
    lookup.text ??= Buffer.from(JSON.stringify(answer.document))
    return { status: 200, headers: JSON_FIELDS, body: new SharedContent(lookup.text) }
  }

  #lookUp(service: string, namespace: string): Lookup {
    const key = `${namespace}/${service}`
    let lookup = this.#lookups.get(key)
    if (lookup === undefined) {
      lookup = { found: this.#find(service, namespace).finally(() => this.#lookups.delete(key)) }
      this.#lookups.set(key, lookup)
    }
    return lookup
  }

  async #find(service: string, namespace: string): Promise<PeerAnswer | undefined> {
    const { view, isAtHand } = this.#options
    if (isAtHand?.(service, namespace) === true) return view(service, namespace)
    const { readings, waiting } = this.#limits
    if (this.#readings < readings) this.#readings++
    else if (this.#waiting.length < waiting) await new Promise<void>((resolve) => this.#waiting.push(resolve))
    else throw crowded()
    try {
      return await view(service, namespace)
    } finally {
      // Whoever is next takes over the place.
      const next = this.#waiting.shift()
      if (next) next()
      else this.#readings--
    }
  }

  /**
   * A bucket of tokens. An answer that turned out larger leaves it in debt, which the next ones wait for, those that came
   * while it was looked for among them.
   */
  #fill(): void {
    const { perSecond, burst } = this.#limits
    const nowMs = this.#options.clock.now()
    this.#tokens = Math.min(burst, this.#tokens + ((nowMs - this.#filledMs) / 1_000) * perSecond)
    this.#filledMs = nowMs
  }
}

const JSON_FIELDS = Fields.of(['content-type', 'application/json'])

/** Nobody sends one with such a request; what comes is not read. */
const withoutBody: Layer = (inner) => (exchange) => {
  if (exchange.body !== undefined) throw invalid([{ path: '(body)', message: 'must be empty' }])
  return inner(exchange)
}

function crowded(): Refusal {
  const problem = { status: 429, code: 'too_many_requests', title: 'Too many ask at once' }
  return new Refusal(problem, ['retry-after', '1'])
}
