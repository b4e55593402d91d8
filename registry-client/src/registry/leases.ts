/**
 * The leases of one process: the present one, under which its nodes are registered, and former ones that have to be ended.
 */

import type { Clock, Random } from '../clock.ts'
import { RefusedError, type Answer, type Connection } from './connection.ts'
import type { Log } from '../log.ts'
import { parseCursor } from '../protocol.ts'

/** Three renewals may be lost before the lease is. */
const RENEWALS_PER_TTL = 3
/** Leases that wait for their end at once. With so many the present one has to do, until some have ended. */
const MAX_FORMER = 4

/** What the nodes are registered under. */
export interface Lease {
  readonly id: string
  /** The store's, when it was granted. */
  readonly epoch: string | undefined
  /** It has to be replaced, and then ended. */
  spent: boolean
}

export interface LeasesOptions {
  readonly connection: Pick<Connection, 'request'>
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly owner: string
  readonly ttlMs: number
  /** How long `endAll` waits for a registry that cannot be reached. */
  readonly patienceMs: number
}

export class Leases {
  readonly #options: LeasesOptions
  #present: Lease | undefined
  /** To be ended as soon as nothing is registered under them alone. */
  #former: Lease[] = []
  #renewMs = 0

  constructor(options: LeasesOptions) {
    this.#options = options
  }

  get present(): Lease | undefined {
    return this.#present
  }

  get former(): readonly Lease[] {
    return this.#former
  }

  get isDue(): boolean {
    return this.#former.length > 0 || this.#present?.spent === true
  }

  /** The time between two renewals at most. */
  get renewalMs(): number {
    return this.#options.ttlMs / RENEWALS_PER_TTL
  }

  /** Until the next renewal. */
  get waitMs(): number {
    return Math.max(0, this.#renewMs - this.#options.clock.now())
  }

  /** The registry may have forgotten them: the next renewal is now. */
  nudge(): void {
    this.#renewMs = -Infinity
  }

  /** Whether it has neither ended nor been lost. */
  holds(lease: Lease): boolean {
    return this.#alive().includes(lease)
  }

  /** Makes room for the next lease where the present one has to be replaced. */
  retire(): void {
    if (this.#present?.spent !== true || this.#former.length >= MAX_FORMER) return
    this.#former.push(this.#present)
    this.#present = undefined
  }

  async grant(): Promise<void> {
    const { ttlMs, owner } = this.#options
    const answer = await this.request('POST', '/v1/leases', { ttl: `${ttlMs}ms`, owner })
    const { id } = JSON.parse(answer.body) as { id?: unknown }
    if (typeof id !== 'string') throw new Error('the answer names no lease')
    this.#present = { id, epoch: epochOf(answer), spent: false }
    this.#plan()
  }

  /**
   * When it is time. Former leases too, as long as nodes are registered under them alone.
   * @param isMoving whether some are
   */
  async renew(isMoving: () => boolean): Promise<void> {
    if (this.#options.clock.now() < this.#renewMs) return
    for (const lease of this.#alive()) {
      if (lease !== this.#present && !isMoving()) continue
      try {
        await this.request('POST', `/v1/leases/${lease.id}/renew`)
      } catch (error) {
        if (!(error instanceof RefusedError) || error.code !== 'lease_not_found') throw error
        this.lost(lease)
      }
    }
    this.#plan()
  }

  /** Its nodes go with it, and what still arrives in its name is refused. */
  async end(lease: Lease): Promise<void> {
    try {
      await this.request('DELETE', `/v1/leases/${lease.id}`)
    } catch (error) {
      if (!(error instanceof RefusedError) || isTransient(error)) throw error
    }
    this.lost(lease)
  }

  lost(lease: Lease): void {
    if (this.#present === lease) this.#present = undefined
    this.#former = this.#former.filter((other) => other !== lease)
  }

  /** Ends them, and so every registration under them; gives up when the registry does not answer in time. */
  async endAll(): Promise<void> {
    const { connection, clock, patienceMs, log } = this.#options
    const leases = this.#alive()
    this.#present = undefined
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

  /** Every answer shows whether the store is still the one that has granted the lease. */
  async request(method: string, path: string, body?: unknown): Promise<Answer> {
    const answer = await this.#options.connection.request(method, path, body)
    const epoch = epochOf(answer)
    const lease = this.#present
    if (lease !== undefined && epoch !== undefined && epoch !== lease.epoch && !lease.spent) {
      lease.spent = true
      this.#options.log.warn(
        { epoch, before: lease.epoch },
        'the registry has a new epoch; registering everything again',
      )
    }
    return answer
  }

  #alive(): Lease[] {
    return this.#present === undefined ? this.#former : [this.#present, ...this.#former]
  }

  /** Spread by a tenth, so that registrants that started together do not renew together for ever. */
  #plan(): void {
    const { clock, random } = this.#options
    this.#renewMs = clock.now() + this.renewalMs * (0.9 + 0.1 * random())
  }
}

/** The registry failed, or asks for patience: the same request may succeed later. */
export function isTransient(error: RefusedError): boolean {
  return error.status >= 500 || error.status === 429
}

function epochOf(answer: Answer): string | undefined {
  return parseCursor(answer.header('holdfast-cursor') ?? '')?.epoch
}
