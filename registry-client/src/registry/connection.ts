/**
 * The only talk to the registry: one watch stream for every service of the process, and requests beside it.
 *
 * The stream is reopened for ever, on the next endpoint each time, with full jitter, after a loss over as long as the
 * lost registry asked for; each subscription resumes by the cursor of the view that the client holds, so that a client
 * whose views are current is sent nothing.
 */

import { Backoff, type Clock, type Random } from '../clock.ts'
import type { Log } from '../log.ts'
import { maskUrl, reasonOf, type HttpAnswer, type Network, type Stream } from '../network.ts'
import {
  decodeEvent,
  formatCursor,
  isAfter,
  type ClientMessage,
  type Cursor,
  type Problem,
  type StreamEvent,
  type Subscription,
} from '../protocol.ts'

/** The registry pings every 10 s; two and a half silent intervals mean that the path is dead, however alive it looks. */
const SILENCE_MS = 25_000
const RECONNECT = { baseMs: 200, capMs: 10_000 }
/** Keeps a subscribe message far below the size that a registry accepts. */
const SERVICES_PER_MESSAGE = 500
/** A registry that is there opens the stream sooner; one that takes longer at the start is waited for elsewhere too. */
const PENDING_MS = 500
/** Of one try at one endpoint: long enough for a busy registry's disk, short enough to reach the next endpoint. */
const REQUEST_TIMEOUT_MS = 5_000

/** No endpoint answered. `tried` names each with its reason. */
export class UnreachableError extends Error {
  readonly code = 'registry_unreachable'
  readonly tried: readonly string[]
  constructor(tried: readonly string[]) {
    super(`no registry answered: ${tried.join('; ')}`)
    this.name = 'UnreachableError'
    this.tried = tried
  }
}

/** The registry answered, and refused. */
export class RefusedError extends Error {
  readonly code: string
  readonly status: number
  readonly problem: Problem | undefined
  /** Endpoints that were asked before and did not answer, each with its reason. */
  readonly tried: readonly string[]
  constructor(status: number, problem: Problem | undefined, what: string, tried: readonly string[] = []) {
    const fields = problem?.errors?.map((error) => `${error.path}: ${error.message}`).join('; ')
    super(`${what}: ${status} ${problem?.code ?? ''} ${fields || (problem?.detail ?? '')}`.trim())
    this.name = 'RefusedError'
    this.code = problem?.code ?? 'refused'
    this.status = status
    this.problem = problem
    this.tried = tried
  }
}

/** An answer, and the endpoints that were asked before and did not give one: what they were sent may yet arrive. */
export interface Answer extends HttpAnswer {
  readonly tried: readonly string[]
}

/**
 * One life of the stream. `heardMs` (monotonic) outlives it: what it confirmed stays confirmed until then. It is when the
 * registry knew that it was current, which may be earlier than when it said so.
 */
export interface Session {
  heardMs: number
  /** The last id: everything up to here has been sent on this stream. */
  asOf?: Cursor
}

/** What a client has of a service, for its subscription. */
export interface Held {
  /** Only what changed since is sent; undefined asks for a snapshot. */
  readonly cursor?: Cursor | undefined
  /** A place of the history that the registry has to have reached before it answers. */
  readonly reach?: Cursor | undefined
}

export interface ConnectionEvents {
  /** Each event of the stream, in order. `session` is the life of the stream that brought it. */
  event(event: StreamEvent, session: Session): void
  /** The stream opened; or it was lost, or could not be opened for a moment. Each is told once. */
  reachable(reachable: boolean): void
  held(key: string): Held
}

export interface ConnectionOptions {
  readonly endpoints: readonly string[]
  readonly network: Network
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
}

export interface ConnectionStatus {
  readonly reachable: boolean
  /** The one in use or tried last, its password masked. */
  readonly endpoint: string
  /** Tries to open the stream again. */
  readonly reconnects: number
  /** Times that the stream opened. */
  readonly opened: number
  readonly lastError: string | undefined
  readonly subscriptions: number
}

interface Endpoint {
  readonly url: string
  /** What is shown of it: the URL may hold a password. */
  readonly name: string
}

export class Connection {
  readonly #options: ConnectionOptions
  readonly #endpoints: readonly Endpoint[]
  readonly #events: ConnectionEvents
  readonly #backoff: Backoff
  /** By `namespace/service`. */
  readonly #subscriptions = new Map<string, Subscription>()
  #endpoint: number
  /**
   * Where requests begin: at the stream's endpoint, until it does not answer and another does. A stream to a registry
   * that is frozen looks alive for long, and a renewal that waits for it each time comes too late.
   */
  #answering: number
  #stream: Stream | undefined
  #session: Session | undefined
  /** When the present stream last brought anything. */
  #heardMs = 0
  /** What the last ping of the present stream said: how old the registry's state may be. */
  #ageMs = 0
  /** What the present stream said last: over which time its clients come back when it is lost. */
  #spreadMs = 0
  #cancelTimer: () => void = () => {}
  readonly #requests = new Set<AbortController>()
  #openedMs = 0
  #acked = ''
  #closed = false
  #reconnects = 0
  #opened = 0
  /** Whether the stream was lost, or could not be opened. Neither this nor reachable: it is being opened at the start. */
  #down = false
  #cancelPending: () => void = () => {}
  /** The number of the last `subscribe` message, and of the last that the present stream has answered in full. */
  #ref = 0
  #subscribed = 0
  /** The message by which the present stream was first asked for a service. */
  readonly #refs = new Map<string, number>()
  #lastError: string | undefined

  constructor(options: ConnectionOptions, events: ConnectionEvents) {
    this.#options = options
    this.#events = events
    this.#endpoints = options.endpoints.map((url) => ({ url, name: maskUrl(url) }))
    this.#backoff = new Backoff(options.random, RECONNECT)
    // Clients that share a list of endpoints spread over it instead of all taking the first.
    this.#endpoint = Math.floor(options.random() * options.endpoints.length)
    this.#answering = this.#endpoint
  }

  get reachable(): boolean {
    return this.#session !== undefined
  }

  /** Whether the stream was lost, or could not be opened for a moment. */
  get isDown(): boolean {
    return this.#down
  }

  status(): ConnectionStatus {
    return {
      reachable: this.reachable,
      endpoint: this.#current().name,
      reconnects: this.#reconnects,
      opened: this.#opened,
      lastError: this.#lastError,
      subscriptions: this.#subscriptions.size,
    }
  }

  /** Opens the stream and keeps it open. It carries no service yet; what it tells is that the registry is there. */
  open(): void {
    this.#cancelPending = this.#options.clock.after(PENDING_MS, () => this.#goDown())
    this.#open()
  }

  /** Follows a service from now on, over every reconnection. */
  subscribe(key: string, namespace: string, service: string): void {
    if (this.#closed) return
    this.#subscriptions.set(key, { namespace, service })
    if (this.#session) this.#sendSubscribe([key])
  }

  unsubscribe(key: string): void {
    const subscription = this.#subscriptions.get(key)
    if (subscription === undefined) return
    this.#subscriptions.delete(key)
    if (this.#session === undefined) return
    this.#refs.delete(key)
    this.#send({ type: 'unsubscribe', services: [subscription] })
  }

  /**
   * Whether the registry has sent all that was asked of this service on the present stream. An id alone does not show that:
   * it may have been under way before the registry heard of the subscription.
   */
  covers(key: string): boolean {
    return (this.#refs.get(key) ?? Infinity) <= this.#subscribed
  }

  /** Subscribes a service once more, with what is held of it now. */
  ask(key: string): void {
    if (this.#session && this.#subscriptions.has(key)) this.#sendSubscribe([key])
  }

  /** Asks how far the registry is now, unless an answer that tells it is under way. */
  refresh(): void {
    if (this.#session && this.#ref === this.#subscribed)
      this.#send({ type: 'subscribe', services: [], ref: ++this.#ref })
  }

  /** Asks for a fresh snapshot of a service whose frames no longer continue its view. */
  restart(key: string): void {
    const subscription = this.#subscriptions.get(key)
    if (subscription === undefined || this.#session === undefined) return
    const ref = ++this.#ref
    this.#refs.set(key, ref)
    this.#send({ type: 'subscribe', services: [subscription], ref })
  }

  /**
   * Sends a request to the endpoint that is known to answer, then to the others.
   * @param signal ends the request early; it then rejects with UnreachableError
   * @throws UnreachableError when none answered; RefusedError for a status of 400 and above
   */
  async request(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<Answer> {
    const { clock, network } = this.#options
    const endpoints = this.#endpoints
    const tried: string[] = []
    const begin = this.#answering
    for (let attempt = 0; attempt < endpoints.length && !signal?.aborted && !this.#closed; attempt++) {
      const index = (begin + attempt) % endpoints.length
      const { url, name } = endpoints[index]!
      const timeout = new AbortController()
      this.#requests.add(timeout)
      const cancel = clock.after(REQUEST_TIMEOUT_MS, () =>
        timeout.abort(new Error(`no answer in ${REQUEST_TIMEOUT_MS} ms`)),
      )
      try {
        const answer = await network.request({
          method,
          url: url + path,
          signal: signal ? AbortSignal.any([signal, timeout.signal]) : timeout.signal,
          ...(body !== undefined && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
        })
        // A replica without its store, or one that still loads, says 503: another may do better.
        if (answer.status === 503) {
          tried.push(`${name}: ${problemOf(answer)?.code ?? answer.status}`)
          continue
        }
        this.#answering = index
        if (answer.status >= 400) throw new RefusedError(answer.status, problemOf(answer), `${method} ${path}`, tried)
        return { ...answer, tried }
      } catch (error) {
        if (error instanceof RefusedError) throw error
        tried.push(`${name}: ${reasonOf(error)}`)
      } finally {
        cancel()
        this.#requests.delete(timeout)
      }
    }
    const ended = this.#closed ? ['the client is closed'] : signal?.aborted ? ['the deadline passed'] : []
    throw new UnreachableError([...tried, ...ended])
  }

  close(): void {
    this.#closed = true
    this.#cancelTimer()
    this.#cancelPending()
    for (const request of this.#requests) request.abort(new Error('the client is closed'))
    this.#stream?.close()
    if (this.reachable) this.#lost()
  }

  #current(): Endpoint {
    return this.#endpoints[this.#endpoint % this.#endpoints.length]!
  }

  #open(): void {
    const session: Session = { heardMs: 0 }
    // Handlers of an earlier stream may still fire; they must not touch the present one.
    const isPresent = () => this.#stream === stream && !this.#closed
    const stream = this.#options.network.open(`${this.#current().url}/v1/watch`, {
      open: () => {
        if (!isPresent()) return
        session.heardMs = this.#heardMs = this.#openedMs = this.#options.clock.now()
        this.#session = session
        this.#ageMs = this.#spreadMs = 0
        this.#lastError = undefined
        this.#acked = ''
        this.#opened++
        this.#down = false
        this.#cancelPending()
        this.#refs.clear()
        // Of messages of this stream: those of earlier ones are answered by nobody.
        this.#subscribed = this.#ref
        this.#answering = this.#endpoint
        this.#options.log.info({ endpoint: this.#current().name }, 'registry connected')
        this.#watchSilence()
        this.#sendSubscribe([...this.#subscriptions.keys()])
        this.#events.reachable(true)
      },
      message: (text) => {
        if (isPresent()) this.#receive(text, session)
      },
      close: (reason) => {
        if (!isPresent()) return
        this.#reopen(maskUrl(reason))
      },
    })
    this.#stream = stream
  }

  #receive(text: string, session: Session): void {
    this.#heardMs = this.#options.clock.now()
    let event: StreamEvent
    try {
      const message = JSON.parse(text) as { event?: unknown; id?: unknown; data?: unknown }
      event = decodeEvent(message.event, message.id, message.data)
    } catch (error) {
      // Dropping one frame would be a silent gap; a new stream resumes by cursor and so repairs it.
      this.#reopen(`a frame that cannot be read: ${reasonOf(error)}`)
      return
    }
    if (event.event === 'ping') {
      this.#ageMs = event.ageMs ?? 0
      this.#spreadMs = event.spreadMs ?? this.#spreadMs
      this.#subscribed = Math.max(this.#subscribed, event.subscribed ?? 0)
      session.heardMs = this.#heardMs - this.#ageMs
    } else if (this.#ageMs === 0) session.heardMs = this.#heardMs
    if (event.id) session.asOf = event.id
    this.#events.event(event, session)
    if (event.id) this.#ack(formatCursor(event.id))
  }

  #ack(cursor: string): void {
    if (cursor === this.#acked) return
    this.#acked = cursor
    this.#send({ type: 'ack', cursor })
  }

  #watchSilence(): void {
    const leftMs = this.#heardMs + SILENCE_MS - this.#options.clock.now()
    if (leftMs <= 0) this.#reopen(`silent for ${SILENCE_MS} ms`)
    else this.#cancelTimer = this.#options.clock.after(leftMs, () => this.#watchSilence())
  }

  #reopen(reason: string): void {
    this.#cancelTimer()
    const stream = this.#stream
    // Only a stream that lasted proves that the endpoint serves us. One that is lost again and again, for the same
    // frame that we cannot read or by a registry that starts over and over, must not be asked for without pause.
    if (this.#session && this.#options.clock.now() - this.#openedMs >= RECONNECT.capMs) this.#backoff.reset()
    // All clients of a registry that is lost lose it at the same moment, so that only it could say how many they are.
    const spreadMs = this.#session ? this.#spreadMs : 0
    const delayMs = Math.max(this.#backoff.next(), spreadMs > 0 ? this.#options.random() * spreadMs : 0)
    this.#reconnects++
    if (this.#session || reason !== this.#lastError)
      this.#options.log.warn({ endpoint: this.#current().name, reason }, 'registry unreachable; what is known is kept')
    this.#lastError = reason
    const isFirst = this.#current() === this.#endpoints[this.#answering % this.#endpoints.length]
    this.#endpoint++
    if (isFirst) this.#answering = this.#endpoint
    this.#stream = undefined
    stream?.close()
    this.#lost()
    this.#cancelTimer = this.#options.clock.after(delayMs, () => this.#open())
  }

  #lost(): void {
    this.#session = undefined
    this.#goDown()
  }

  #goDown(): void {
    this.#cancelPending()
    if (this.#down) return
    this.#down = true
    this.#events.reachable(false)
  }

  #sendSubscribe(keys: readonly string[]): void {
    for (let at = 0; at < keys.length; at += SERVICES_PER_MESSAGE) {
      const part = keys.slice(at, at + SERVICES_PER_MESSAGE)
      const ref = ++this.#ref
      let reach: Cursor | undefined
      const services = part.map((key) => {
        const held = this.#events.held(key)
        // Of places in two histories either: the registry knows one of them.
        if (held.reach && (reach === undefined || isAfter(held.reach, reach))) reach = held.reach
        if (!this.#refs.has(key)) this.#refs.set(key, ref)
        return { ...this.#subscriptions.get(key)!, ...(held.cursor && { cursor: formatCursor(held.cursor) }) }
      })
      this.#send({ type: 'subscribe', services, ...(reach && { reach: formatCursor(reach) }), ref })
    }
  }

  #send(message: ClientMessage): void {
    this.#stream?.send(JSON.stringify(message))
  }
}

function problemOf(answer: HttpAnswer): Problem | undefined {
  try {
    return JSON.parse(answer.body) as Problem
  } catch {
    return undefined
  }
}
