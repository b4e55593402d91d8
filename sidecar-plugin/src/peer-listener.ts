/**
 * What other hosts may read of this one, and nothing else: `GET /v1/views/{service}?namespace=`, the view as the registry
 * last said it. A host that is new in the middle of an outage starts by it.
 *
 * Whoever reaches it learns the addresses of services, as from the registry itself; it commands nothing. Strangers may
 * ask, so everything is bounded: heads, time, connections, and the work that is done for all of them together.
 */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import type { Clock } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { isNamespace, isServiceName } from '@holdfast/registry-client/protocol'
import { refuseBytes, refuseSocket } from './refuse-bytes.ts'

export interface PeerListenerOptions {
  readonly clock: Clock
  readonly log: Log
  /** Of services named without one. */
  readonly namespace: string
  /** Undefined when nothing is known. */
  readonly view: (service: string, namespace: string) => Promise<PeerAnswer | undefined>
  /** Whether `view` answers at once, without a file. Default: never. */
  readonly isAtHand?: (service: string, namespace: string) => boolean
  readonly limits?: Partial<PeerListenerLimits>
}

export interface PeerAnswer {
  readonly document: object
  /** Nodes in it: the work that it takes. */
  readonly nodes: number
}

export interface PeerListenerLimits {
  readonly headBytes: number
  /** For a head to arrive, and for an answer to leave. */
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

const DEFAULTS: PeerListenerLimits = {
  headBytes: 4_096,
  timeoutMs: 5_000,
  connections: 128,
  perSecond: 500,
  burst: 2_000,
  readings: 2,
  waiting: 64,
}
const NODES_PER_TOKEN = 100
const PATH = '/v1/views/'
/** Paths are read as URLs are. */
const BASE = 'http://peer'

export interface PeerListenerStatus {
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

/** More ask than are answered. */
class CrowdedError extends Error {}

export class PeerListener {
  readonly #options: PeerListenerOptions
  readonly #limits: PeerListenerLimits
  readonly #server: Server
  readonly #lookups = new Map<string, Lookup>()
  #readings = 0
  readonly #waiting: (() => void)[] = []
  #tokens: number
  #filledMs: number
  readonly #counts = { answered: 0, unknown: 0, refused: 0 }

  constructor(options: PeerListenerOptions) {
    this.#options = options
    this.#limits = { ...DEFAULTS, ...options.limits }
    const { headBytes, timeoutMs, connections, burst } = this.#limits
    this.#tokens = burst
    this.#filledMs = options.clock.now()
    this.#server = createServer(
      {
        maxHeaderSize: headBytes,
        headersTimeout: timeoutMs,
        requestTimeout: timeoutMs,
        keepAliveTimeout: timeoutMs,
        connectionsCheckingInterval: Math.max(1, timeoutMs / 2),
      },
      (request, response) => {
        this.#serve(request, response).catch((error: unknown) => {
          if (error instanceof CrowdedError) {
            response.setHeader('retry-after', '1')
            return this.#refuse(response, 429, 'too_many_requests', 'Too many ask at once')
          }
          options.log.error({ err: error }, 'a peer could not be answered')
          if (response.headersSent) response.destroy()
          else this.#refuse(response, 500, 'internal_error', 'The sidecar failed')
        })
      },
    )
    this.#server.on('clientError', (error, socket) => {
      if (refuseBytes(error, socket as Socket)) this.#counts.refused++
    })
    // Node lets go of a socket that asks for a tunnel, and would close it without a word.
    this.#server.on('connect', (_request, socket) => {
      this.#counts.refused++
      refuseSocket(socket as Socket, 405, 'method_not_allowed', 'Method Not Allowed')
    })
    this.#server.maxConnections = connections
    this.#server.timeout = timeoutMs
  }

  /**
   * @param port 0 for a free one
   * @returns the port
   * @throws the system's error when the address cannot be used
   */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(port, host, () => {
        this.#server.off('error', reject)
        resolve()
      })
    })
    return (this.#server.address() as AddressInfo).port
  }

  status(): PeerListenerStatus {
    return { ...this.#counts }
  }

  close(): void {
    this.#server.close()
    this.#server.closeAllConnections()
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    // Nobody sends a body with such a request; what comes is not read.
    if (request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) > 0)
      return this.#refuse(response, 400, 'invalid_request', 'A body is not taken')
    const url = request.url ?? '/'
    if (!URL.canParse(url, BASE)) return this.#refuse(response, 400, 'invalid_request', 'Not a path')
    const target = new URL(url, BASE)
    if (!target.pathname.startsWith(PATH)) return this.#refuse(response, 404, 'not_found', 'There is nothing here')
    if (request.method !== 'GET') {
      response.setHeader('allow', 'GET')
      return this.#refuse(response, 405, 'method_not_allowed', 'Only GET')
    }
    const service = target.pathname.slice(PATH.length)
    const namespace = target.searchParams.get('namespace') ?? this.#options.namespace
    if (!isServiceName(service) || !isNamespace(namespace))
      return this.#refuse(response, 400, 'invalid_request', 'Not the name of a service and of a namespace')
    this.#fill()
    if (this.#tokens < 1) throw new CrowdedError()
    this.#tokens--
    const lookup = this.#lookUp(service, namespace)
    const answer = await lookup.found
    // They have gone meanwhile.
    if (response.destroyed) return
    if (answer === undefined) {
      this.#counts.unknown++
      return send(response, 404, problem(404, 'service_not_found', 'Nothing is known of it'))
    }
    this.#fill()
    if (this.#tokens < 0) throw new CrowdedError()
    this.#tokens -= Math.floor(answer.nodes / NODES_PER_TOKEN)
    this.#counts.answered++
    lookup.text ??= textOf(answer.document)
    sendText(response, 200, lookup.text, 'application/json')
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
    else throw new CrowdedError()
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

  #refuse(response: ServerResponse, status: number, code: string, title: string): void {
    this.#counts.refused++
    response.setHeader('connection', 'close')
    send(response, status, problem(status, code, title))
  }
}

function problem(status: number, code: string, title: string): object {
  return { type: `urn:holdfast:problem:${code}`, status, code, title }
}

function textOf(document: object): Buffer {
  return Buffer.from(JSON.stringify(document))
}

function send(response: ServerResponse, status: number, document: object): void {
  sendText(response, status, textOf(document), 'application/problem+json')
}

function sendText(response: ServerResponse, status: number, text: Buffer, type: string): void {
  response.writeHead(status, { 'content-type': type, 'content-length': text.length }).end(text)
}
