import { Readable } from 'node:stream'
import { Pool, type Dispatcher } from 'undici'
import { every, type Clock } from '@holdfast/registry-client/clock'
import { asSidecarError, SidecarError } from './errors.ts'
import { controlFields, endToEnd, framingFaultOf, without } from './headers.ts'
import type { Exchange, Reply } from './layer.ts'

/** Bounds on what is held towards nodes, in the unit the name ends in. */
export interface ForwardLimits {
  /** To one node. */
  readonly connections: number
  /** Requests that wait for a connection to one node; more are answered `overloaded`. */
  readonly pending: number
  /** Nodes with a pool at once. */
  readonly pools: number
  readonly connectMs: number
  /** How long a connection may wait for its next request. */
  readonly keepAliveMs: number
  /** Between two pieces of an answer's body. */
  readonly idleMs: number
  readonly headBytes: number
}

export const DEFAULT_FORWARD_LIMITS: ForwardLimits = {
  connections: 1_024,
  pending: 1_024,
  pools: 4_096,
  /** Longer makes callers wait for a host that has vanished; shorter than 1 s takes one lost SYN for a dead node. */
  connectMs: 2_000,
  /** Must stay below the other side's limit, or requests meet connections that are just being closed. */
  keepAliveMs: 4_000,
  idleMs: 300_000,
  headBytes: 61_440,
}

export interface ForwardOptions {
  readonly clock: Clock
  readonly limits?: Partial<ForwardLimits>
  /** Fields that are added to each request, flat. They replace fields of the same name. */
  readonly fields?: (exchange: Exchange) => readonly string[]
  /** Whether an answer may say by `x-holdfast-reason` that a sidecar made it up: true towards peers, false towards the
   * local service, which could otherwise pretend. */
  readonly trustReason: boolean
}

interface Node {
  readonly pool: Pool
  inFlight: number
  usedMs: number
}

/** A pool that nobody used for this long is closed. Shorter costs connects, longer keeps what is left of nodes that went. */
const POOL_IDLE_MS = 60_000

/**
 * The innermost service: sends an exchange to its destination and streams the answer back. The only upstream sockets.
 *
 * The request's body is not read before a connection stands, and what fails before that is not `delivered`.
 */
export class Forward {
  readonly #options: ForwardOptions
  readonly #limits: ForwardLimits
  readonly #nodes = new Map<string, Node>()
  readonly #stopSweep: () => void

  constructor(options: ForwardOptions) {
    this.#options = options
    this.#limits = { ...DEFAULT_FORWARD_LIMITS, ...options.limits }
    this.#stopSweep = every(options.clock, POOL_IDLE_MS / 2, () => this.#sweep())
  }

  /** Nodes with connections, and requests under way to them. */
  get load(): { readonly nodes: number; readonly inFlight: number } {
    let inFlight = 0
    for (const node of this.#nodes.values()) inFlight += node.inFlight
    return { nodes: this.#nodes.size, inFlight }
  }

  /** The service. Throws {@link SidecarError} `upstream_connect`, `upstream_reset`, `upstream_protocol`, `overloaded`. */
  readonly serve = async (exchange: Exchange): Promise<Reply> => {
    const { destination, signal } = exchange
    if (destination === undefined) throw new SidecarError('no_nodes', 'no layer chose a node')
    if (signal.aborted) throw asSidecarError(signal.reason)
    // Of the asterisk form and its kin the client library knows nothing.
    if (!exchange.target.startsWith('/'))
      throw new SidecarError('not_supported', 'only requests for a path or a URL are forwarded')
    const node = this.#node(originOf(destination))
    if (node.inFlight >= this.#limits.connections + this.#limits.pending)
      throw new SidecarError('overloaded', `${node.inFlight} requests are under way to ${destination.id}`)
    node.inFlight++
    node.usedMs = this.#options.clock.now()
    return this.#send(exchange, node.pool, () => {
      node.inFlight--
      node.usedMs = this.#options.clock.now()
    })
  }

  /** Cuts every connection. */
  async close(): Promise<void> {
    this.#stopSweep()
    const pools = [...this.#nodes.values()].map((node) => node.pool.destroy())
    this.#nodes.clear()
    await Promise.allSettled(pools)
  }

  #send(exchange: Exchange, pool: Pool, onEnd: () => void): Promise<Reply> {
    const { signal } = exchange
    return new Promise<Reply>((resolve, reject) => {
      let controller: Dispatcher.DispatchController | undefined
      let answer: Readable | undefined
      let over = false
      const end = () => {
        if (over) return
        over = true
        signal.removeEventListener('abort', abort)
        onEnd()
      }
      const fail = (error: SidecarError) => {
        end()
        if (answer) answer.destroy(error)
        else reject(error)
      }
      const abort = () => {
        const reason = asSidecarError(signal.reason)
        if (controller) controller.abort(reason)
        fail(reason)
      }
      signal.addEventListener('abort', abort, { once: true })
      pool.dispatch(
        {
          method: exchange.method,
          path: exchange.target,
          headers: this.#headersOf(exchange),
          body: exchange.body?.stream() ?? null,
          // How long to wait for the head is a layer's decision.
          headersTimeout: 0,
          bodyTimeout: this.#limits.idleMs,
        },
        {
          onRequestStart: (started) => {
            controller = started
            if (over) started.abort(asSidecarError(signal.reason))
          },
          onResponseStart: (current, status, _parsed, statusText) => {
            if (status < 200) return
            const headers = (current.rawHeaders as readonly Buffer[]).map((part) => part.toString('latin1'))
            const fault = framingFaultOf(headers)
            if (fault !== undefined) {
              const refused = new SidecarError('upstream_protocol', `the answer has ${fault}`, { delivered: true })
              current.abort(refused)
              return fail(refused)
            }
            answer = new Readable({
              read: () => current.resume(),
              destroy: (error, done) => {
                if (!over) current.abort(error ?? new Error('nobody reads the answer'))
                done(error)
              },
            })
            resolve(this.#replyOf(status, statusText, headers, answer))
          },
          onResponseData: (current, chunk) => {
            if (answer?.push(chunk) === false) current.pause()
          },
          onResponseEnd: () => {
            end()
            answer?.push(null)
          },
          onResponseError: (_current, error) => fail(errorOf(error, exchange, controller !== undefined)),
        },
      )
    })
  }

  #headersOf(exchange: Exchange): string[] {
    let headers = without(exchange.headers, 'expect')
    const fields = this.#options.fields?.(exchange) ?? []
    for (let i = 0; i < fields.length; i += 2) headers = without(headers, fields[i]!)
    headers.push(...fields)
    return headers
  }

  #replyOf(status: number, statusText: string | undefined, headers: readonly string[], body: Readable): Reply {
    const reason = this.#options.trustReason ? controlFields(headers).get('reason') : undefined
    return {
      status,
      ...(statusText && { statusText }),
      headers: endToEnd(headers),
      body,
      ...(reason !== undefined && { reason }),
    }
  }

  #node(origin: string): Node {
    let node = this.#nodes.get(origin)
    if (node) return node
    if (this.#nodes.size >= this.#limits.pools) {
      this.#evict()
      if (this.#nodes.size >= this.#limits.pools)
        throw new SidecarError('overloaded', `requests are under way to ${this.#nodes.size} nodes`)
    }
    const pool = new Pool(origin, {
      connections: this.#limits.connections,
      pipelining: 1,
      keepAliveTimeout: this.#limits.keepAliveMs,
      // A server's hint may shorten this, never lengthen it: see ForwardLimits.
      keepAliveMaxTimeout: this.#limits.keepAliveMs,
      maxHeaderSize: this.#limits.headBytes,
      connectTimeout: this.#limits.connectMs,
      allowH2: false,
    })
    node = { pool, inFlight: 0, usedMs: this.#options.clock.now() }
    this.#nodes.set(origin, node)
    return node
  }

  #evict(): void {
    let oldest: readonly [string, Node] | undefined
    for (const entry of this.#nodes)
      if (entry[1].inFlight === 0 && (oldest === undefined || entry[1].usedMs < oldest[1].usedMs)) oldest = entry
    if (oldest) this.#drop(...oldest)
  }

  #sweep(): void {
    const now = this.#options.clock.now()
    for (const [origin, node] of this.#nodes)
      if (node.inFlight === 0 && now - node.usedMs >= POOL_IDLE_MS) this.#drop(origin, node)
  }

  #drop(origin: string, node: Node): void {
    this.#nodes.delete(origin)
    void node.pool.close()
  }
}

function originOf(destination: { readonly host: string; readonly port: number }): string {
  const host = destination.host.includes(':') ? `[${destination.host}]` : destination.host
  return `http://${host}:${destination.port}`
}

const PROTOCOL_CODES: ReadonlySet<string> = new Set(['UND_ERR_HEADERS_OVERFLOW', 'UND_ERR_RES_CONTENT_LENGTH_MISMATCH'])

function errorOf(error: Error, exchange: Exchange, started: boolean): SidecarError {
  if (error instanceof SidecarError) return error
  const code = (error as NodeJS.ErrnoException).code ?? error.name
  if (code === 'UND_ERR_INVALID_ARG' || code === 'UND_ERR_NOT_SUPPORTED')
    return new SidecarError('bad_request', error.message, { cause: error })
  const where = exchange.destination ? `${exchange.destination.host}:${exchange.destination.port}` : 'the node'
  if (!started) return new SidecarError('upstream_connect', `${where}: ${code}`, { cause: error })
  const options = { delivered: true, cause: error }
  if (code.startsWith('HPE_') || PROTOCOL_CODES.has(code) || error.name === 'HTTPParserError')
    return new SidecarError('upstream_protocol', `${where}: ${code}`, options)
  return new SidecarError('upstream_reset', `${where}: ${code}`, options)
}
