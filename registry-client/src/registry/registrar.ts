/**
 * Keeps this process's nodes registered for as long as they should be: one lease for all of them, its renewals, and
 * everything again when the registry has forgotten them. It works towards what is wanted, step by step, so that an
 * outage at any point only delays it.
 *
 * A request without an answer may still arrive, at a replica that was frozen, and must not undo what was said since.
 * While the node is there, a higher incarnation refuses it. Once the node is gone nobody remembers its incarnation, but
 * an ended lease takes no node: so a node of which an attempt is missing is only out when the lease that the attempt
 * names has ended. The others move to a new lease before. They move too when the store has a new epoch: what it has
 * under the old lease is of the time of its backup, and ending that lease removes what nobody wants any more.
 */

import { checkObject, registrationOf } from '../checks.ts'
import { Backoff, sleep, type Clock, type Random } from '../clock.ts'
import { RefusedError, UnreachableError, type Answer, type Connection } from './connection.ts'
import type { Log } from '../log.ts'
import { parseCursor, type NodeStatus, type Protocol } from '../protocol.ts'

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
   * @throws TypeError for what cannot be; RefusedError when the registry refuses it: the node then stays what it was
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
/** Leases that wait for their end at once. With so many the present one has to do, until some have ended. */
const MAX_FORMER = 4

/** What the nodes are registered under. */
interface Lease {
  readonly id: string
  /** The store's, when it was granted. */
  readonly epoch: string | undefined
  /** It has to be replaced, and then ended. */
  spent: boolean
}

/** What an attempt that was not answered has said of a node. */
interface Unanswered {
  readonly lease: Lease
  readonly incarnation: number
  readonly version: number
}

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
  /** Under which the registry took it last. */
  lease: Lease | undefined
  /** The last attempt that may still arrive. */
  unanswered: Unanswered | undefined
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
    checkObject(change, 'change')
    const { status = this.wanted.status, weight = this.wanted.weight, labels = this.wanted.labels } = change
    this.wanted = registrationOf({ ...this.wanted, status, weight, labels })
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

  /** Whether an attempt may still arrive that its incarnation does not refuse. */
  get isUnfenced(): boolean {
    return this.unanswered?.incarnation === this.incarnation
  }

  settle(): void {
    for (const resolve of this.settled.splice(0)) resolve()
  }
}

export class Registrar {
  readonly #options: RegistrarOptions
  readonly #nodes = new Set<Registered>()
  #lease: Lease | undefined
  /** To be ended as soon as nothing is registered under them alone. */
  #former: Lease[] = []
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
   * @throws TypeError for what cannot be a node, RefusedError when the registry refuses it
   */
  async register(input: NodeRegistration): Promise<Registration> {
    const { clock, namespace } = this.#options
    const wanted = registrationOf(input)
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
    await this.#endLeases()
    for (const node of this.#nodes) {
      if (node.state !== 'superseded' && node.state !== 'refused') node.state = 'closed'
      node.settle()
    }
    this.#nodes.clear()
  }

  /** Gives up when the registry does not answer in time. */
  async #endLeases(): Promise<void> {
    const { connection, clock, patienceMs, log } = this.#options
    const leases = this.#alive()
    this.#lease = undefined
    this.#former = []
    if (leases.length === 0) return
    const patience = new AbortController()
    const cancel = clock.after(patienceMs, () => patience.abort())
    const end = async ({ id }: Lease) => {
      try {
        await connection.request('DELETE', `/v1/leases/${id}`, undefined, patience.signal)
      } catch (error) {
        log.warn({ reason: (error as Error).message }, 'the lease could not be ended; it will run out')
      }
    }
    await Promise.all(leases.map(end))
    cancel()
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
    if (!this.#closed) await this.#endLeases()
    this.#running = false
    if (this.#nodes.size > 0 && !this.#closed) void this.#run()
  }

  #isDue(): boolean {
    if (this.#former.length > 0 || this.#lease?.spent === true) return true
    for (const node of this.#nodes) if (node.isDue) return true
    return false
  }

  /**
   * One pass over what is due. Throws when the registry cannot be reached: the next pass continues. The renewal comes
   * first, and a node that the registry fails at does not hold up the others.
   */
  async #step(): Promise<void> {
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
    if (this.#lease?.spent === true && this.#former.length < MAX_FORMER) {
      this.#former.push(this.#lease)
      this.#lease = undefined
    }
    if (this.#lease === undefined && this.#hasStaying()) await this.#grant()
    for (const node of this.#nodes) {
      const lease = this.#lease
      // Lost on the way: without it a node would be registered for ever.
      if (lease === undefined) break
      if (node.isDue && !node.leaving) await attempt(() => this.#put(node, lease))
    }
    if (!this.#isMoving()) for (const lease of [...this.#former]) await attempt(() => this.#end(lease))
    if (failure) throw failure
  }

  async #grant(): Promise<void> {
    const { ttlMs, owner } = this.#options
    const answer = await this.#request('POST', '/v1/leases', { ttl: `${ttlMs}ms`, owner })
    const { id } = JSON.parse(answer.body) as { id?: unknown }
    if (typeof id !== 'string') throw new Error('the answer names no lease')
    this.#lease = { id, epoch: epochOf(answer), spent: false }
    this.#plan()
    for (const node of this.#nodes) node.acknowledged = 0
  }

  /** Former leases too, as long as nodes are registered under them alone. */
  async #renew(): Promise<void> {
    if (this.#options.clock.now() < this.#renewMs) return
    for (const lease of this.#alive()) {
      if (lease !== this.#lease && !this.#isMoving()) continue
      try {
        await this.#request('POST', `/v1/leases/${lease.id}/renew`)
      } catch (error) {
        if (!(error instanceof RefusedError) || error.code !== 'lease_not_found') throw error
        this.#lost(lease)
      }
    }
    this.#plan()
  }

  /** Its nodes go with it, and what still arrives in its name is refused. */
  async #end(lease: Lease): Promise<void> {
    try {
      await this.#request('DELETE', `/v1/leases/${lease.id}`)
    } catch (error) {
      if (!(error instanceof RefusedError) || isTransient(error)) throw error
    }
    this.#lost(lease)
  }

  #lost(lease: Lease): void {
    if (this.#lease === lease) this.#lease = undefined
    this.#former = this.#former.filter((other) => other !== lease)
  }

  #alive(): Lease[] {
    return this.#lease === undefined ? this.#former : [this.#lease, ...this.#former]
  }

  /** Whether a node that was registered is not yet so under the present lease. */
  #isMoving(): boolean {
    for (const node of this.#nodes)
      if (!node.leaving && node.lease !== undefined && node.lease !== this.#lease) return true
    return false
  }

  /** Every answer shows whether the store is still the one that has granted the lease. */
  async #request(method: string, path: string, body?: unknown): Promise<Answer> {
    const answer = await this.#options.connection.request(method, path, body)
    const epoch = epochOf(answer)
    const lease = this.#lease
    if (lease !== undefined && epoch !== undefined && epoch !== lease.epoch && !lease.spent) {
      lease.spent = true
      this.#options.log.warn(
        { epoch, before: lease.epoch },
        'the registry has a new epoch; registering everything again',
      )
    }
    return answer
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

  async #put(node: Registered, lease: Lease): Promise<void> {
    const { log, zone: ownZone } = this.#options
    const { host = '127.0.0.1', port, protocol, weight, zone = ownZone, labels, status } = node.wanted
    const { version, wanted } = node
    if (node.isUnfenced && (node.unanswered?.lease !== lease || node.unanswered.version !== version)) this.#raise(node)
    const { incarnation } = node
    const body = { host, port, protocol, weight, zone, labels, status, lease: lease.id, incarnation }
    const unanswered = { lease, incarnation, version }
    try {
      const answer = await this.#request('PUT', node.path, body)
      if (answer.tried.length > 0) node.unanswered = unanswered
      node.cursor = answer.header('holdfast-cursor') ?? node.cursor
    } catch (error) {
      if (!(error instanceof RefusedError) || error.tried.length > 0) node.unanswered = unanswered
      if (!(error instanceof RefusedError) || isTransient(error)) throw error
      if (error.code === 'lease_not_found') {
        this.#lost(lease)
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
        // What the registry holds is what is wanted again, unless the lease was lost meanwhile, or something else may
        // still arrive.
        if (node.acknowledged > 0 && (node.unanswered?.version ?? 0) <= node.acknowledged) node.acknowledged = version
        if (!node.isDue) node.settle()
        return
      }
      node.state = error.code === 'stale_incarnation' ? 'superseded' : 'refused'
      log.error({ service: node.service, node: node.id, reason: error.message }, `registration ${node.state}`)
      // Once the newer instance has left, a late attempt would bring this one back.
      if (this.#isInDoubt(node)) node.unanswered!.lease.spent = true
      this.#nodes.delete(node)
      node.settle()
      return
    }
    node.acknowledged = version
    node.accepted = wanted
    node.lease = lease
    node.state = 'registered'
    if (!node.isDue) node.settle()
  }

  /** By no more than it takes, so that a newer life of the node stays the newer. */
  #raise(node: Registered): void {
    node.incarnation++
    this.#incarnation = Math.max(this.#incarnation, node.incarnation)
  }

  /** Whether an attempt may still register it, in the name of a lease that has not ended. */
  #isInDoubt({ unanswered }: Registered): boolean {
    return unanswered !== undefined && this.#alive().includes(unanswered.lease)
  }

  async #leave(node: Registered): Promise<void> {
    const isInDoubt = this.#isInDoubt(node)
    const lease = isInDoubt ? node.unanswered!.lease : node.lease
    // In doubt it may be there under any of its incarnations, and nothing new comes under a lease that is to end.
    if (isInDoubt) lease!.spent = true
    const incarnation = isInDoubt ? '' : `&incarnation=${node.incarnation}`
    const fence = lease === undefined ? '' : `&lease=${lease.id}`
    try {
      const answer = await this.#request('DELETE', node.path + incarnation + fence)
      node.cursor = answer.header('holdfast-cursor') ?? node.cursor
    } catch (error) {
      // Refused means that the id belongs to someone else by now, which is as good as gone.
      if (!(error instanceof RefusedError) || isTransient(error)) throw error
    }
    // It may come back until that lease has ended.
    if (isInDoubt) return
    node.state = 'closed'
    this.#nodes.delete(node)
    node.settle()
  }
}

/** The registry failed, or asks for patience: the same request may succeed later. */
function isTransient(error: RefusedError): boolean {
  return error.status >= 500 || error.status === 429
}

function epochOf(answer: Answer): string | undefined {
  return parseCursor(answer.header('holdfast-cursor') ?? '')?.epoch
}
