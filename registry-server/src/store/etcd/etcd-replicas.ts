/**
 * The replicas on one etcd. Each keeps a key under an etcd lease of its own, so that it is etcd that says who is gone,
 * to all in one order. This lease is all that a replica has to renew there, however many registrants it serves.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { Replica, Replicas, ReplicasListener } from '../store.ts'
import { EtcdFailure, type EtcdConnection, type FeedEvent, type KeyValue } from './etcd-connection.ts'
import { HEARD, REPLICA } from './layout.ts'

/** Longer than an election and a new connection take together, so that neither looks like a death. */
const TTL_SECONDS = 8
/**
 * By how much earlier than etcd a replica takes itself for given up. Its own count begins when it asks for the renewal
 * and etcd's when it answers, so that this is spare for clocks that do not run alike.
 */
const SAFETY_MS = 1_000
const RENEW_MS = 2_000
const TELL_MS = 500
/** Long enough for those that come together. */
const TELL_FIRST_MS = 20
/** Ids in one message, far below what etcd takes; the rest follows with the next. */
const TOLD_AT_ONCE = 20_000

export interface EtcdReplicasOptions {
  readonly self: Replica
  readonly clock: Clock
  readonly log: Log
}

export class EtcdReplicas implements Replicas {
  readonly #options: EtcdReplicasOptions
  readonly #members = new Map<string, Replica>()
  readonly #listeners = new Set<ReplicasListener>()
  #connection: EtcdConnection | undefined
  /** Of etcd; undefined while the key is not known to be there. */
  #lease: string | undefined
  /** Of etcd, when the key was put. */
  #entered = 0
  #confirmedMs = -Infinity
  #heard = new Set<string>()
  #toldMs = -Infinity
  #renewing: Promise<unknown> = Promise.resolve()
  #cancelRenewal: () => void = () => {}
  /** Undefined while nothing is to be told, and none of it under way. */
  #cancelTell: (() => void) | undefined
  #closed = false
  #cancelDoubt: () => void = () => {}

  constructor(options: EtcdReplicasOptions) {
    this.#options = options
  }

  get self(): string {
    return this.#options.self.id
  }

  isAlive(id: string): boolean {
    if (id !== this.self) return this.#members.has(id)
    return this.#options.clock.now() < this.#confirmedMs + TTL_SECONDS * 1000 - SAFETY_MS
  }

  tell(lease: string): void {
    if (this.#closed) return
    this.#heard.add(lease)
    const { clock } = this.#options
    // The first after a pause at once, or nearly: what was not told yet dies with this replica.
    const waitMs = Math.max(TELL_FIRST_MS, this.#toldMs + TELL_MS - clock.now())
    this.#cancelTell ??= clock.after(waitMs, () => void this.#tellNow())
  }

  list(): readonly Replica[] {
    const others = [...this.#members.values()].filter(({ id }) => id !== this.self)
    return this.isAlive(this.self) ? [this.#options.self, ...others] : others
  }

  listen(listener: ReplicasListener): void {
    this.#listeners.add(listener)
  }

  /** All keys of replicas that there are now. */
  load(items: readonly KeyValue[]): void {
    const before = [...this.#members.keys()].sort().join()
    this.#members.clear()
    for (const { key, value } of items) this.#add(key, value)
    // Its lease may live on, when someone took the key away.
    if (!this.#members.has(this.self)) this.#forget()
    if ([...this.#members.keys()].sort().join() !== before) this.#changed()
  }

  /** @returns whether the event was about replicas */
  receive({ key, value, revision }: FeedEvent): boolean {
    if (key.startsWith(REPLICA)) {
      const id = key.slice(REPLICA.length)
      const wasThere = this.#members.has(id)
      if (value) this.#add(key, value)
      else this.#remove(id, revision)
      // The own coming is no news here, however late it arrives: what made it alive has told of it.
      if (this.#members.has(id) !== wasThere && !(value && id === this.self)) this.#changed()
      return true
    }
    if (!key.startsWith(HEARD)) return false
    const from = key.slice(HEARD.length)
    if (value && from !== this.self) this.#receiveHeard(from, value)
    return true
  }

  /** Joins, or joins again, over a new connection, and goes on renewing. */
  async join(connection: EtcdConnection): Promise<void> {
    this.#connection = connection
    this.#cancelRenewal()
    try {
      await this.#renew(connection)
    } catch (error) {
      if (!(error instanceof EtcdFailure) || error.kind !== 'no_space') throw error
      this.#options.log.warn({ error: error.message }, 'this replica cannot join; it follows all the same')
      this.#renewAfter(RENEW_MS, connection)
    }
  }

  /** The connection is lost. Time runs on: this replica counts as alive until etcd may have given it up. */
  leave(): void {
    this.#connection = undefined
    this.#cancelRenewal()
  }

  /** Leaves for good, at once, so that nobody waits for this replica's time to run out. */
  async close(): Promise<void> {
    const connection = this.#connection
    this.#closed = true
    this.leave()
    this.#cancelTell?.()
    this.#cancelDoubt()
    this.#confirmedMs = -Infinity
    // It may be about to put the key.
    await this.#renewing
    if (connection && this.#lease !== undefined) await connection.revokeLease(this.#lease)
  }

  /** One at a time: of two that enter, the key could stay with the lease that is not renewed. */
  #renew(connection: EtcdConnection): Promise<void> {
    const renewed = this.#renewing.then(() => this.#renewNow(connection))
    this.#renewing = renewed.catch(() => {})
    return renewed
  }

  async #renewNow(connection: EtcdConnection): Promise<void> {
    if (connection !== this.#connection) return
    const sentMs = this.#options.clock.now()
    let lease = this.#lease
    if (lease === undefined || !(await connection.renewLease(lease))) lease = await this.#enter(connection)
    // When the key was taken away meanwhile, the next renewal is on its way.
    if (connection !== this.#connection || lease !== this.#lease) return
    const wasAlive = this.isAlive(this.self)
    this.#confirmedMs = sentMs
    this.#doubtLater()
    this.#renewAfter(RENEW_MS, connection)
    if (!wasAlive) this.#changed()
  }

  async #enter(connection: EtcdConnection): Promise<string> {
    const { name, since } = this.#options.self
    const key = REPLICA + this.self
    const lease = await connection.grantLease(TTL_SECONDS)
    const { item } = await connection.get(key)
    // Otherwise an earlier try that comes late would take the key back to a lease that is not renewed.
    const { succeeded, revision } = await connection.transact({
      compare: [{ key, revision: item?.revision ?? 0 }],
      success: [{ put: key, value: Buffer.from(JSON.stringify({ name, since })), lease }],
      failure: [],
    })
    if (!succeeded) throw new EtcdFailure('unreachable', 'an earlier try to join came in between')
    this.#lease = lease
    this.#entered = revision
    return lease
  }

  #renewAfter(ms: number, connection: EtcdConnection): void {
    this.#cancelRenewal()
    this.#cancelRenewal = this.#options.clock.after(ms, () => {
      this.#renew(connection).catch((error: unknown) => {
        if (connection !== this.#connection) return
        this.#options.log.warn({ error: String(error) }, 'this replica could not be renewed; trying again')
        this.#renewAfter(RENEW_MS / 2, connection)
      })
    })
  }

  /** Whoever counts on this replica being alive learns when it can no longer be sure. */
  #doubtLater(): void {
    this.#cancelDoubt()
    this.#cancelDoubt = this.#options.clock.after(TTL_SECONDS * 1000 - SAFETY_MS, () => {
      this.#options.log.warn({ replica: this.self }, 'cut off for so long that others may have taken over')
      this.#changed()
    })
  }

  #add(key: string, value: Buffer): void {
    const id = key.slice(REPLICA.length)
    let said: { name?: string; since?: string } = {}
    try {
      said = JSON.parse(value.toString()) as typeof said
    } catch {
      // That it is there is what counts.
    }
    const { name = '', since = '' } = said
    this.#members.set(id, { id, name, since })
  }

  #remove(id: string, revision: number): void {
    this.#members.delete(id)
    // Of the time before it joined again, when that is not news any more.
    if (id !== this.self || revision < this.#entered) return
    this.#forget()
    if (this.#connection) this.#renewAfter(0, this.#connection)
  }

  /** etcd has spoken, whatever our own count says. */
  #forget(): void {
    this.#confirmedMs = -Infinity
    this.#lease = undefined
  }

  #changed(): void {
    // Who leaves needs no word about it.
    if (this.#closed) return
    for (const listener of this.#listeners) listener.membersChanged()
  }

  #receiveHeard(from: string, value: Buffer): void {
    let leases: unknown
    try {
      leases = JSON.parse(value.toString())
    } catch {
      leases = undefined
    }
    if (!Array.isArray(leases)) {
      this.#options.log.warn({ replica: from }, 'a message of another replica cannot be read')
      return
    }
    const ids = leases.filter((id): id is string => typeof id === 'string')
    for (const listener of this.#listeners) listener.heard(ids, from)
  }

  async #tellNow(): Promise<void> {
    const { clock, log } = this.#options
    const connection = this.#connection
    if (connection && this.#lease !== undefined && this.#heard.size > 0) {
      const told = [...this.#heard].slice(0, TOLD_AT_ONCE)
      this.#toldMs = clock.now()
      for (const id of told) this.#heard.delete(id)
      try {
        await connection.put(HEARD + this.self, Buffer.from(JSON.stringify(told)), this.#lease)
      } catch (error) {
        for (const id of told) this.#heard.add(id)
        log.debug({ error: String(error) }, 'what was heard could not be told; trying again')
      }
    }
    const goesOn = this.#heard.size > 0 && !this.#closed
    this.#cancelTell = goesOn ? clock.after(TELL_MS, () => void this.#tellNow()) : undefined
  }
}
