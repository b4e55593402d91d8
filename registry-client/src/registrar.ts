/**
 * Keeps this process's nodes registered for as long as they should be: one lease for all of them, its renewals, and
 * everything again when the registry has forgotten them. It works towards what is wanted, step by step, so that an
 * outage at any point only delays it.
 */

import { Backoff, sleep, type Clock, type Random } from './clock.ts'
import { RefusedError, UnreachableError, type Connection } from './connection.ts'
import type { Log } from './log.ts'
import type { NodeStatus, Protocol } from './protocol.ts'

export interface NodeRegistration {
  readonly service: string
  /** Default: the client's. */
  readonly namespace?: string
  /** Default: `host:port`, so that a new life of the same instance replaces the old one. */
  readonly id?: string
  /** Where others reach the node. Default `127.0.0.1`. */
  readonly host?: string
  readonly port: number
  readonly protocol?: Protocol
  readonly weight?: number
  /** Default: the client's. */
  readonly zone?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly status?: NodeStatus
}

/**
 * `pending`: not acknowledged yet. `superseded`: a newer instance has taken the node id over, and this one has let go.
 */
export type RegistrationState = 'pending' | 'registered' | 'superseded' | 'refused' | 'closed'

export interface Registration {
  readonly service: string
  readonly namespace: string
  readonly id: string
  readonly state: RegistrationState
  /**
   * Where the store's history stood once the registry had acknowledged the last change of this node, as
   * `epoch:revision`: whoever resolves with this as `minRevision` sees it. Undefined until then.
   */
  readonly cursor: string | undefined
  /**
   * Changes what the node says of itself. Returns once the registry has acknowledged, or after a while without it.
   * @throws RefusedError when the registry refuses the change; the node then stays what it was
   */
  update(change: Partial<Pick<NodeRegistration, 'status' | 'weight' | 'labels'>>): Promise<void>
  /** Takes the node out. Returns once acknowledged, or after a while without the registry; it goes on trying then. */
  close(): Promise<void>
}

export interface RegistrarOptions {
  readonly connection: Pick<Connection, 'request'>
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly owner: string
  readonly namespace: string
  readonly zone: string | undefined
  readonly ttlMs: number
  /** How long `register`, `update` and `close` wait for a registry that cannot be reached. */
  readonly patienceMs: number
}

const RETRY = { baseMs: 200, capMs: 5_000 }
/** Three renewals may be lost before the lease is. */
const RENEWALS_PER_TTL = 3

class Registered implements Registration {
  readonly service: string
  readonly namespace: string
  readonly id: string
  wanted: NodeRegistration
  state: RegistrationState = 'pending'
  cursor: string | undefined
  incarnation: number
  /** Grows with every change of what is wanted; what the registry has is `acknowledged`. */
  version = 1
  acknowledged = 0
  /** What the registry took last: what a refused change falls back to. */
  accepted: NodeRegistration | undefined
  leaving = false
  refused: RefusedError | undefined
  settled: (() => void)[] = []
  readonly #registrar: Registrar

  constructor(wanted: NodeRegistration, namespace: string, incarnation: number, registrar: Registrar) {
    this.wanted = wanted
    this.service = wanted.service
    this.namespace = namespace
    // An id begins with a letter or digit, the host `::1` does not.
    this.id = wanted.id ?? `${wanted.host ?? '127.0.0.1'}:${wanted.port}`.replace(/^:+/, '')
    this.incarnation = incarnation
    this.#registrar = registrar
  }

  async update(change: Partial<NodeRegistration>): Promise<void> {
    this.wanted = { ...this.wanted, ...change }
    this.version++
    if (this.state === 'registered') this.refused = undefined
    await this.#registrar.wake(this)
    // One that was superseded says so by its state.
    if (this.refused && this.state !== 'superseded') throw this.refused
  }

  async close(): Promise<void> {
    if (this.leaving || this.state === 'superseded' || this.state === 'refused') return
    this.leaving = true
    await this.#registrar.wake(this)
  }

  get path(): string {
    return `/v1/services/${this.service}/nodes/${encodeURIComponent(this.id)}?namespace=${this.namespace}`
  }

  get isDue(): boolean {
    return this.leaving || this.acknowledged < this.version
  }

  settle(): void {
    for (const resolve of this.settled.splice(0)) resolve()
  }
}

export class Registrar {
  readonly #options: RegistrarOptions
  readonly #nodes = new Set<Registered>()
  #lease: string | undefined
  #renewMs = 0
  #incarnation = 0
  #running = false
  #closed = false
  /** Cuts the present wait short. */
  #nudge = new AbortController()

  constructor(options: RegistrarOptions) {
    this.#options = options
  }

  get registrations(): readonly Registration[] {
    return [...this.#nodes]
  }

  /**
   * Registers a node and keeps it registered. Returns once the registry has acknowledged; when it cannot be reached,
   * after a few seconds and with the state `pending`.
   * @throws RefusedError when the registry refuses the node
   */
  async register(wanted: NodeRegistration): Promise<Registration> {
    const { clock, namespace } = this.#options
    if (this.#closed) throw new Error('the client is closed')
    // The date orders the lives of one node id over restarts; a clock that was turned back is mended by the answer.
    // Within this process it only grows, so that the removal of one life never hits the next.
    this.#incarnation = Math.max(this.#incarnation + 1, Math.floor(clock.wall()))
    const node = new Registered(wanted, wanted.namespace ?? namespace, this.#incarnation, this)
    for (const other of this.#nodes)
      if (
        other.service === node.service &&
        other.namespace === node.namespace &&
        other.id === node.id &&
        !other.leaving
      )
        throw new Error(`${node.service}/${node.id} is registered by this client already`)
    this.#nodes.add(node)
    await this.wake(node)
    if (node.refused) throw node.refused
    return node
  }

  /** Works on what is due at once, and waits for one node of it as long as patience allows. */
  async wake(node: Registered): Promise<void> {
    const { clock, patienceMs } = this.#options
    if (!node.isDue || !this.#nodes.has(node)) return
    const patience = new AbortController()
    const settled = () => patience.abort()
    node.settled.push(settled)
    this.#wakeUp()
    await sleep(clock, patienceMs, patience.signal)
    node.settled = node.settled.filter((other) => other !== settled)
  }

  /** The registry may have come back, and forgotten our lease: find out now. */
  nudge(): void {
    this.#renewMs = -Infinity
    this.#wakeUp()
  }

  #wakeUp(): void {
    this.#nudge.abort()
    if (!this.#running && !this.#closed && this.#nodes.size > 0) void this.#run()
  }

  /** Ends the lease and so every registration; gives up when the registry does not answer in time. */
  async close(): Promise<void> {
    this.#closed = true
    this.#nudge.abort()
    const lease = this.#lease
    this.#lease = undefined
    if (lease !== undefined) await this.#endLease(lease)
    for (const node of this.#nodes) {
      if (node.state !== 'superseded' && node.state !== 'refused') node.state = 'closed'
      node.settle()
    }
    this.#nodes.clear()
  }

  async #endLease(lease: string): Promise<void> {
    const { connection, clock, patienceMs, log } = this.#options
    const patience = new AbortController()
    const cancel = clock.after(patienceMs, () => patience.abort())
    try {
      await connection.request('DELETE', `/v1/leases/${lease}`, undefined, patience.signal)
    } catch (error) {
      log.warn({ reason: (error as Error).message }, 'the lease could not be ended; it will run out')
    } finally {
      cancel()
    }
  }

  async #run(): Promise<void> {
    this.#running = true
    const { clock, random, log, ttlMs } = this.#options
    const backoff = new Backoff(random, RETRY)
    let unfinished = 0
    while (!this.#closed && this.#nodes.size > 0) {
      this.#nudge = new AbortController()
      let waitMs: number
      try {
        await this.#step()
        if (this.#isDue()) {
          // Something has changed on the way, such as a lease that was lost: at once, but not again and again. Replicas
          // that disagree about a lease would be asked without pause.
          waitMs = unfinished++ === 0 ? 0 : backoff.next()
        } else {
          backoff.reset()
          unfinished = 0
          waitMs = Math.max(0, this.#renewMs - clock.now())
        }
      } catch (error) {
        waitMs = Math.min(backoff.next(), ttlMs / RENEWALS_PER_TTL)
        const reason = (error as Error).message
        if (error instanceof UnreachableError) log.debug({ reason }, 'registration waits for the registry')
        else log.error({ reason }, 'registration failed; trying again')
      }
      if (waitMs > 0 && !this.#closed && this.#nodes.size > 0) await sleep(clock, waitMs, this.#nudge.signal)
    }
    // The last node left: the lease has nothing to keep alive any more.
    const lease = this.#lease
    if (lease !== undefined && !this.#closed) {
      this.#lease = undefined
      await this.#endLease(lease)
    }
    this.#running = false
    if (this.#nodes.size > 0 && !this.#closed) void this.#run()
  }

  #isDue(): boolean {
    for (const node of this.#nodes) if (node.isDue) return true
    return false
  }

  /**
   * One pass over what is due. Throws when the registry cannot be reached: the next pass continues. The renewal comes
   * first, and a node that the registry fails at does not hold up the others.
   */
  async #step(): Promise<void> {
    const { connection, ttlMs, owner } = this.#options
    await this.#renew()
    let failure: RefusedError | undefined
    const attempt = async (work: () => Promise<void>) => {
      try {
        await work()
      } catch (error) {
        if (!(error instanceof RefusedError)) throw error
        failure = error
      }
    }
    for (const node of this.#nodes) if (node.leaving) await attempt(() => this.#leave(node))
    if (this.#lease === undefined && this.#hasStaying()) {
      const answer = await connection.request('POST', '/v1/leases', { ttl: `${ttlMs}ms`, owner })
      const { id } = JSON.parse(answer.body) as { id?: unknown }
      if (typeof id !== 'string') throw new Error('the answer names no lease')
      this.#lease = id
      this.#plan()
      for (const node of this.#nodes) node.acknowledged = 0
    }
    for (const node of this.#nodes) {
      const lease = this.#lease
      // Lost on the way: without it a node would be registered for ever.
      if (lease === undefined) break
      if (node.isDue && !node.leaving) await attempt(() => this.#put(node, lease))
    }
    if (failure) throw failure
  }

  async #renew(): Promise<void> {
    const { connection, clock } = this.#options
    if (this.#lease === undefined || clock.now() < this.#renewMs) return
    try {
      await connection.request('POST', `/v1/leases/${this.#lease}/renew`)
      this.#plan()
    } catch (error) {
      if (!(error instanceof RefusedError) || error.code !== 'lease_not_found') throw error
      this.#lease = undefined
    }
  }

  #hasStaying(): boolean {
    for (const node of this.#nodes) if (!node.leaving) return true
    return false
  }

  /** Spread by a tenth, so that registrants that started together do not renew together for ever. */
  #plan(): void {
    const { clock, random, ttlMs } = this.#options
    this.#renewMs = clock.now() + (ttlMs / RENEWALS_PER_TTL) * (0.9 + 0.1 * random())
  }

  async #put(node: Registered, lease: string): Promise<void> {
    const { connection, log, zone: ownZone } = this.#options
    const { host = '127.0.0.1', port, protocol, weight, zone = ownZone, labels, status } = node.wanted
    const { version, incarnation, wanted } = node
    const body = { host, port, protocol, weight, zone, labels, status, lease, incarnation }
    try {
      const answer = await connection.request('PUT', node.path, body)
      node.cursor = answer.header('holdfast-cursor') ?? node.cursor
    } catch (error) {
      if (!(error instanceof RefusedError) || isTransient(error)) throw error
      if (error.code === 'lease_not_found') {
        this.#lease = undefined
        return
      }
      const held = error.problem?.incarnation
      if (
        error.code === 'stale_incarnation' &&
        node.acknowledged === 0 &&
        node.state === 'pending' &&
        held !== undefined
      ) {
        // Never registered yet, so this is the newer life, whatever its clock says.
        node.incarnation = held + 1
        return
      }
      node.refused = error
      if (error.code !== 'stale_incarnation' && node.accepted !== undefined && node.accepted !== wanted) {
        log.error({ service: node.service, node: node.id, reason: error.message }, 'change of a registration refused')
        if (node.wanted === wanted) node.wanted = node.accepted
        // What the registry holds is what is wanted again, unless the lease was lost meanwhile.
        if (node.acknowledged > 0) node.acknowledged = version
        if (!node.isDue) node.settle()
        return
      }
      node.state = error.code === 'stale_incarnation' ? 'superseded' : 'refused'
      log.error({ service: node.service, node: node.id, reason: error.message }, `registration ${node.state}`)
      this.#nodes.delete(node)
      node.settle()
      return
    }
    node.acknowledged = version
    node.accepted = wanted
    node.state = 'registered'
    if (!node.isDue) node.settle()
  }

  async #leave(node: Registered): Promise<void> {
    const fence = this.#lease === undefined ? '' : `&lease=${this.#lease}`
    try {
      const path = `${node.path}&incarnation=${node.incarnation}${fence}`
      const answer = await this.#options.connection.request('DELETE', path)
      node.cursor = answer.header('holdfast-cursor') ?? node.cursor
    } catch (error) {
      // Refused means that the id belongs to someone else by now, which is as good as gone.
      if (!(error instanceof RefusedError) || isTransient(error)) throw error
    }
    node.state = 'closed'
    this.#nodes.delete(node)
    node.settle()
  }
}

/** The registry failed, or asks for patience: the same request may succeed later. */
function isTransient(error: RefusedError): boolean {
  return error.status >= 500 || error.status === 429
}
