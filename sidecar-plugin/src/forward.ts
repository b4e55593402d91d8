import { every, type Clock } from '@holdfast/registry-client/clock'
import { SidecarError } from './errors.ts'
import type { OutgoingHttpHeaders } from 'node:http2'
import { linesOf } from './fields.ts'
import type { AnswerHead, Call, Failure } from './http1/client-connection.ts'
import { Pool, type PoolLimits } from './http1/pool.ts'
import { addFields, firstOf, noFields } from './http2/fields.ts'
import { SessionPool, type SessionPoolLimits } from './http2/session-pool.ts'
import { isRepeatable, type Body, type Destination, type Exchange, type Reply, type Tunnel } from './layer.ts'

/**
 * Bounds on what is held towards nodes, in the unit the name ends in; `connections`, `sessions` and `pending` are of one
 * node, which is of one service.
 */
export interface ForwardLimits extends PoolLimits, SessionPoolLimits {
  /** Nodes with a pool at once. */
  readonly pools: number
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
  headFields: 256,
  /** Of HTTP/2, each with as many requests as the node takes. More cost connections for nothing. */
  sessions: 16,
  /** Larger puts more behind one connection, whose lost packets hold up all of them. */
  streams: 1_000,
  /** Shorter costs connects. Servers close theirs later, and say so before. */
  sessionIdleMs: 30_000,
  /** Shorter asks nodes for signs of life that servers of gRPC take for abuse; longer leaves callers with a dead host. */
  quietMs: 30_000,
  /** Shorter cuts nodes that are busy; longer makes callers of dead ones wait. */
  pingMs: 5_000,
  /** Smaller makes long ways slow: no stream brings more than this per round trip. */
  windowBytes: 262_144,
}

export interface ForwardOptions {
  readonly clock: Clock
  readonly limits?: Partial<ForwardLimits>
  /** Fields that are added to each request, flat. */
  readonly fields?: (exchange: Exchange) => readonly string[]
  /** Names in lower case of those of the caller that make room for them. */
  readonly replaces?: readonly string[]
  /** Whether an answer may say by `x-holdfast-reason` that a sidecar made it up: true towards peers, false towards the
   * local service, which could otherwise pretend. */
  readonly trustReason: boolean
}

/** A pool that nobody used for this long is closed. Shorter costs connects, longer keeps what is left of nodes that went. */
const POOL_IDLE_MS = 60_000

/** How often what takes too long is looked for. */
const TICK_MS = 500

const IDEMPOTENT: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE', 'PUT', 'DELETE'])

/**
 * The innermost service: sends an exchange to its destination and streams the answer back. The only upstream sockets.
 *
 * The request's body is not read before a connection stands, and what fails before that is not `delivered`.
 */
export class Forward {
  readonly #options: ForwardOptions
  readonly #limits: ForwardLimits
  readonly #pools = new Map<string, Pool | SessionPool>()
  /** The same by the object that names the node, which is the same for all requests of a view. */
  readonly #known = new WeakMap<Destination, Pool | SessionPool>()
  readonly #now: { ms: number }
  readonly #stopTicks: () => void

  constructor(options: ForwardOptions) {
    this.#options = options
    this.#limits = { ...DEFAULT_FORWARD_LIMITS, ...options.limits }
    this.#now = { ms: options.clock.now() }
    const { connectMs, idleMs } = this.#limits
    this.#stopTicks = every(options.clock, Math.min(TICK_MS, connectMs / 2, idleMs / 2), () => this.#tick())
  }

  /** Nodes with connections, and requests under way to them. */
  get load(): { readonly nodes: number; readonly inFlight: number } {
    let inFlight = 0
    for (const pool of this.#pools.values()) inFlight += pool.inFlight
    return { nodes: this.#pools.size, inFlight }
  }

  /** The service. Throws {@link SidecarError} `upstream_connect`, `upstream_refused`, `upstream_reset`, `upstream_protocol`, `overloaded`. */
  readonly serve = (exchange: Exchange): Promise<Reply> => {
    this.#now.ms = this.#options.clock.now()
    return new Promise<Reply>((resolve, reject) => {
      const { destination, aborted } = exchange
      if (destination === undefined) throw new SidecarError('no_nodes', 'no layer chose a node')
      if (aborted) throw aborted
      const { trustReason } = this.#options
      const pool = this.#pool(exchange.name, destination)
      if (pool instanceof SessionPool) {
        const head = this.#fieldsOf(exchange, destination)
        new Sending(exchange, destination, pool, head, trustReason, resolve, reject).start(false)
      } else {
        const head = this.#headOf(exchange, destination)
        new Sending(exchange, destination, pool, head, trustReason, resolve, reject).start(false)
      }
    })
  }

  /** Cuts every connection. */
  close(): void {
    this.#stopTicks()
    for (const pool of this.#pools.values()) pool.close()
    this.#pools.clear()
  }

  #headOf(exchange: Exchange, destination: Destination): string {
    const { fields, replaces } = this.#options
    const { upgrade, authority, body } = exchange
    let { headers } = exchange
    if (replaces) for (const name of replaces) if (headers.has(name)) headers = headers.without([name])
    let head = `${exchange.method} ${exchange.target} HTTP/1.1\r\n${headers.lines}`
    if (fields) head += linesOf(fields(exchange))
    // Of HTTP/1.0 one may be without.
    if (authority === '' && headers.get('host') === undefined) head += `host: ${originOf(destination)}\r\n`
    if (body !== undefined && headers.contentLength === undefined)
      head += body.length === undefined ? 'transfer-encoding: chunked\r\n' : `content-length: ${body.length}\r\n`
    if (upgrade !== undefined) head += `connection: upgrade\r\nupgrade: ${upgrade}\r\n`
    else if (exchange.takesTrailers) head += 'connection: te\r\nte: trailers\r\n'
    return `${head}\r\n`
  }

  /** The same in HTTP/2 (RFC 9113, section 8.3.1), which knows no change of protocol: a server is free to ignore it. */
  #fieldsOf(exchange: Exchange, destination: Destination): OutgoingHttpHeaders {
    const { fields, replaces } = this.#options
    const { method, target, headers, takesTrailers } = exchange
    const end = addFields(noFields(), headers.list, replaces)
    if (fields) addFields(end, fields(exchange))
    const authority = method === 'CONNECT' ? target : firstOf(end, 'host') || originOf(destination)
    delete end['host']
    if (takesTrailers) end['te'] = 'trailers'
    if (method === 'CONNECT') return { ':method': method, ':authority': authority, ...end }
    return { ':method': method, ':scheme': 'http', ':authority': authority, ':path': target, ...end }
  }

  #pool(service: string, destination: Destination): Pool | SessionPool {
    const known = this.#known.get(destination)
    if (known?.isClosed === false) return known
    const pool = this.#poolOf(service, destination)
    this.#known.set(destination, pool)
    return pool
  }

  /** Of the service, too: behind one sidecar stand several, and one that hangs must not fill what the others need. */
  #poolOf(service: string, destination: Destination): Pool | SessionPool {
    const isHttp2 = destination.protocol === 'h2' || destination.protocol === 'grpc'
    const key = `${service} ${isHttp2 ? 'h2' : 'http'} ${originOf(destination)}`
    let pool = this.#pools.get(key)
    if (pool) return pool
    if (this.#pools.size >= this.#limits.pools) {
      this.#evict()
      if (this.#pools.size >= this.#limits.pools)
        throw new SidecarError('overloaded', `requests are under way to ${this.#pools.size} nodes`)
    }
    pool = new (isHttp2 ? SessionPool : Pool)(destination, this.#limits, this.#now)
    this.#pools.set(key, pool)
    return pool
  }

  #evict(): void {
    let oldest: readonly [string, Pool | SessionPool] | undefined
    for (const entry of this.#pools)
      if (entry[1].inFlight === 0 && (oldest === undefined || entry[1].usedMs < oldest[1].usedMs)) oldest = entry
    if (oldest) this.#drop(...oldest)
  }

  #tick(): void {
    const nowMs = (this.#now.ms = this.#options.clock.now())
    for (const [key, pool] of this.#pools) {
      pool.check()
      if (pool.inFlight === 0 && nowMs - pool.usedMs >= POOL_IDLE_MS) this.#drop(key, pool)
    }
  }

  #drop(key: string, pool: Pool | SessionPool): void {
    this.#pools.delete(key)
    pool.close()
  }
}

/** What requests to one node are given to. */
interface Sender<Head> {
  readonly inFlight: number
  send(call: Call<Head>, fresh: boolean): boolean
  withdraw(call: Call<Head>): boolean
}

/** One request on its way to one node. */
class Sending<Head> implements Call<Head> {
  readonly method: string
  readonly head: Head
  readonly body: Body | undefined
  readonly upgrade: string | undefined
  readonly #exchange: Exchange
  readonly #destination: Destination
  readonly #pool: Sender<Head>
  readonly #trustReason: boolean
  readonly #resolve: (reply: Reply) => void
  readonly #reject: (error: SidecarError) => void
  #isOver = false
  #wasStale = false
  #break: ((error: SidecarError) => void) | undefined

  constructor(
    exchange: Exchange,
    destination: Destination,
    pool: Sender<Head>,
    head: Head,
    trustReason: boolean,
    resolve: (reply: Reply) => void,
    reject: (error: SidecarError) => void,
  ) {
    this.method = exchange.method
    this.head = head
    this.body = exchange.body
    this.upgrade = exchange.upgrade
    this.#exchange = exchange
    this.#destination = destination
    this.#pool = pool
    this.#trustReason = trustReason
    this.#resolve = resolve
    this.#reject = reject
  }

  start(fresh: boolean): void {
    if (!this.#pool.send(this, fresh)) {
      this.#isOver = true
      this.#reject(
        new SidecarError('overloaded', `${this.#pool.inFlight} requests are under way to ${this.#destination.id}`),
      )
    } else if (!fresh) this.#exchange.whenAborted((reason) => this.#abort(reason))
  }

  sentOn(abort: (error: SidecarError) => void): void {
    this.#break = abort
  }

  informed({ status, statusText, fields: headers }: AnswerHead): void {
    this.#exchange.caller?.inform({ status, headers, ...(statusText !== undefined && { statusText }) })
  }

  answered(head: AnswerHead, body: Body | undefined, open: Tunnel['open'] | undefined): void {
    const { status, statusText, fields: headers, control } = head
    const reason = this.#trustReason && control.length > 0 ? reasonOf(control) : undefined
    const tunnel = open && { protocol: head.upgrade, open }
    this.#resolve({ status, statusText, headers, body, tunnel, reason })
  }

  ended(): void {
    this.#isOver = true
  }

  failed({ kind, detail, cause, isStale, isDelivered = kind === 'protocol' || kind === 'reset' }: Failure): void {
    if (this.#isOver) return
    const { aborted } = this.#exchange
    const isSafe = !isDelivered || IDEMPOTENT.has(this.method)
    if (isStale && !this.#wasStale && aborted === undefined && isSafe && isRepeatable(this.body)) {
      // The node closed the connection as it was used: it is there, and takes another one.
      this.#wasStale = true
      this.start(true)
      return
    }
    this.#isOver = true
    if (aborted) return this.#reject(aborted)
    const error =
      cause instanceof SidecarError
        ? cause
        : new SidecarError(`upstream_${kind}`, `${originOf(this.#destination)}: ${detail}`, {
            delivered: isDelivered,
            cause,
          })
    this.#reject(error)
  }

  #abort(reason: SidecarError): void {
    if (this.#isOver) return
    this.#isOver = true
    if (!this.#pool.withdraw(this)) this.#break?.(reason)
    this.#reject(reason)
  }
}

function reasonOf(control: readonly string[]): string | undefined {
  for (let i = 0; i < control.length; i += 2) if (control[i] === 'reason') return control[i + 1]
  return undefined
}

function originOf({ host, port }: { readonly host: string; readonly port: number }): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}
