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

import { registrationOf } from '../checks.ts'
import { Backoff, sleep } from '../clock.ts'
import { RefusedError, UnreachableError } from './connection.ts'
import { isTransient, Leases, type Lease, type LeasesOptions } from './leases.ts'
import { Registered, type Registration } from './registration.ts'
import type { NodeRegistration } from '../node-registration.ts'

export interface RegistrarOptions extends LeasesOptions {
  readonly namespace: string
  readonly zone: string | undefined
  /** How long `register`, `update` and `close` wait for a registry that cannot be reached. */
  readonly patienceMs: number
}

const RETRY = { baseMs: 200, capMs: 5_000 }

/** Incarnations in a millisecond. */
const PER_MS = 1_000

export class Registrar {
  readonly #options: RegistrarOptions
  readonly #nodes = new Set<Registered>()
  readonly #leases: Leases
  #incarnation = 0
  #running = false
  #closed = false
  /** Cuts the present wait short. */
  #nudge = new AbortController()

  constructor(options: RegistrarOptions) {
    this.#options = options
    this.#leases = new Leases(options)
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
    const { clock, random, namespace } = this.#options
    const wanted = registrationOf(input)
    if (this.#closed) throw new Error('the client is closed')
    // The date orders the lives of one node id over restarts; a clock that was turned back is mended by the answer.
    // Within this process it only grows, so that the removal of one life never hits the next; and of two processes that
    // take one id within a millisecond one is the newer.
    this.#incarnation = Math.max(this.#incarnation + 1, Math.floor(PER_MS * (clock.wall() + random())))
    const node = new Registered(wanted, wanted.namespace ?? namespace, this.#incarnation, (due) => this.#wake(due))
    for (const other of this.#nodes)
      if (
        other.service === node.service &&
        other.namespace === node.namespace &&
        other.id === node.id &&
        !other.leaving
      )
        throw new Error(`${node.service}/${node.id} is registered by this client already`)
    this.#nodes.add(node)
    await this.#wake(node)
    if (node.refused) throw node.refused
    return node
  }

  /** Works on what is due at once, and waits for one node of it as long as patience allows. */
  async #wake(node: Registered): Promise<void> {
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
    this.#leases.nudge()
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
    await this.#leases.endAll()
    for (const node of this.#nodes) {
      if (node.state !== 'superseded' && node.state !== 'refused') node.state = 'closed'
      node.settle()
    }
    this.#nodes.clear()
  }

  async #run(): Promise<void> {
    this.#running = true
    const { clock, random, log } = this.#options
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
          waitMs = this.#leases.waitMs
        }
      } catch (error) {
        waitMs = Math.min(backoff.next(), this.#leases.renewalMs)
        const reason = (error as Error).message
        if (error instanceof UnreachableError) log.debug({ reason }, 'registration waits for the registry')
        else log.error({ reason }, 'registration failed; trying again')
      }
      if (waitMs > 0 && !this.#closed && this.#nodes.size > 0) await sleep(clock, waitMs, this.#nudge.signal)
    }
    // The last node left: the lease has nothing to keep alive any more.
    if (!this.#closed) await this.#leases.endAll()
    this.#running = false
    if (this.#nodes.size > 0 && !this.#closed) void this.#run()
  }

  #isDue(): boolean {
    if (this.#leases.isDue) return true
    for (const node of this.#nodes) if (node.isDue) return true
    return false
  }

  /**
   * One pass over what is due. Throws when the registry cannot be reached: the next pass continues. The renewal comes
   * first, and a node that the registry fails at does not hold up the others.
   */
  async #step(): Promise<void> {
    await this.#leases.renew(() => this.#isMoving())
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
    this.#leases.retire()
    if (this.#leases.present === undefined && this.#hasStaying()) {
      await this.#leases.grant()
      for (const node of this.#nodes) node.acknowledged = 0
    }
    for (const node of this.#nodes) {
      const lease = this.#leases.present
      // Lost on the way: without it a node would be registered for ever.
      if (lease === undefined) break
      if (node.isDue && !node.leaving) await attempt(() => this.#put(node, lease))
    }
    if (!this.#isMoving()) for (const lease of [...this.#leases.former]) await attempt(() => this.#leases.end(lease))
    if (failure) throw failure
  }

  /** Whether a node that was registered is not yet so under the present lease. */
  #isMoving(): boolean {
    for (const node of this.#nodes)
      if (!node.leaving && node.lease !== undefined && node.lease !== this.#leases.present) return true
    return false
  }

  #hasStaying(): boolean {
    for (const node of this.#nodes) if (!node.leaving) return true
    return false
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
      const answer = await this.#leases.request('PUT', node.path, body)
      if (answer.tried.length > 0) node.unanswered = unanswered
      node.cursor = answer.header('holdfast-cursor') ?? node.cursor
    } catch (error) {
      if (!(error instanceof RefusedError) || error.tried.length > 0) node.unanswered = unanswered
      if (!(error instanceof RefusedError) || isTransient(error)) throw error
      if (error.code === 'lease_not_found') {
        this.#leases.lost(lease)
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
        node.incarnation = held + 1 + Math.floor(PER_MS * this.#options.random())
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
    return unanswered !== undefined && this.#leases.holds(unanswered.lease)
  }

  async #leave(node: Registered): Promise<void> {
    const isInDoubt = this.#isInDoubt(node)
    const lease = isInDoubt ? node.unanswered!.lease : node.lease
    // In doubt it may be there under any of its incarnations, and nothing new comes under a lease that is to end.
    if (isInDoubt) lease!.spent = true
    const incarnation = isInDoubt ? '' : `&incarnation=${node.incarnation}`
    const fence = lease === undefined ? '' : `&lease=${lease.id}`
    try {
      const answer = await this.#leases.request('DELETE', node.path + incarnation + fence)
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
