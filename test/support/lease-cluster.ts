/**
 * Replicas without a cluster: several `Leases` on one store in memory, so that all see the same transactions in the
 * same order, and a script for who is alive, who is cut off, and who hears what the others tell.
 */

import { Leases } from '../../registry-server/src/leases.ts'
import { EmbeddedStore } from '../../registry-server/src/store/embedded/embedded-store.ts'
import type { Database } from '../../registry-server/src/store/embedded/lmdb-database.ts'
import { initialise } from '../../registry-server/src/store/embedded/store-loader.ts'
import {
  StoreUnavailable,
  type Committed,
  type Lease,
  type Outcome,
  type Replica,
  type Replicas,
  type ReplicasListener,
  type Store,
  type StoreListener,
  type StoreReader,
  type StoreStatus,
  type Transaction,
} from '../../registry-server/src/store/store.ts'
import { node } from '../store.contract.ts'
import { ManualClock, settle } from './manual-clock.ts'
import { MemoryLog } from './memory-log.ts'

/** From the death of a replica until the store gives it up. */
export const DETECT_MS = 8_000
/** From the loss of the store until a replica takes itself for given up. */
const DOUBT_MS = 7_000
const TELL_MS = 500
/** How long a store that cannot be reached says nothing of it. */
const PATIENCE_MS = 4_000

export interface ClusterOptions {
  readonly holdMs?: number
  readonly maxLeases?: number
  /** One registry without others, as on the embedded store. */
  readonly alone?: boolean
}

export class LeaseCluster {
  readonly clock = new ManualClock()
  readonly alive = new Set<string>()
  readonly members = new Map<string, Member>()
  readonly seen: Committed[] = []
  readonly options: ClusterOptions
  readonly store: Store
  #serial = 0

  private constructor(store: Store, clock: ManualClock, options: ClusterOptions) {
    this.store = store
    this.clock = clock
    this.options = options
  }

  static async start(names: string, options: ClusterOptions = {}): Promise<LeaseCluster> {
    const clock = new ManualClock()
    const database = memoryDatabase()
    await initialise(database, 'epoch')
    const store = await EmbeddedStore.open({
      open: () => database,
      location: 'memory',
      clock,
      log: new MemoryLog(),
      historyRevisions: 10,
      historyChanges: 100,
    })
    const cluster = new LeaseCluster(store, clock, options)
    await store.watch({ load() {}, apply: (transactions) => void cluster.seen.push(...transactions) })
    for (const name of names.split(' ')) await cluster.join(name)
    return cluster
  }

  async join(name: string): Promise<Member> {
    const member = new Member(name, this)
    this.members.set(name, member)
    this.alive.add(name)
    await this.store.watch(member.feed)
    this.changed()
    return member
  }

  at(name: string): Member {
    return this.members.get(name)!
  }

  /** The process dies; the others learn of it when the store gives it up. */
  kill(name: string): void {
    const member = this.at(name)
    member.isRunning = false
    member.leases.close()
    member.giveUpAfter(DETECT_MS)
  }

  identifier = () => `lease-${this.#serial++}`

  changed(): void {
    for (const member of this.members.values()) member.membersChanged()
  }

  holderOf(id: string): Promise<string | undefined> {
    return this.store.read((state) => state.lease(id)?.holder)
  }

  /** Registers a node as the route does. */
  async register(at: string, lease: Lease, id: string, host = id): Promise<void> {
    const { store, leases } = this.at(at)
    const entry = { node: node(id, { leased: true, host }), lease: lease.id }
    const ref = { namespace: 'default', service: 'stock', id }
    await store.transact((tx) => tx.putNode(ref, entry, { cause: 'registered', by: 'test' }))
    leases.touch(lease.id)
  }

  /** A lease of its own for one node. */
  async registrant(at: string, id: string, ttlMs: number, host = id): Promise<Lease> {
    const lease = await this.at(at).leases.grant(ttlMs, id)
    await this.register(at, lease, id, host)
    return lease
  }

  removals(): string[] {
    return this.seen.flatMap(({ changes }) => changes.flatMap(({ remove }) => remove.map(({ id }) => id)))
  }

  /** Moves time on in steps, and says after which time something holds first; undefined when it never does. */
  async until(holds: () => boolean, maxMs: number): Promise<number | undefined> {
    for (let ms = 0; ms <= maxMs; ms += 50) {
      if (holds()) return ms
      await this.clock.advance(50)
    }
    return undefined
  }

  async close(): Promise<void> {
    for (const { leases } of this.members.values()) leases.close()
    await settle()
    await this.store.close()
  }
}

/** One replica: its view of the store and of the others. */
export class Member {
  readonly name: string
  readonly store: Store
  readonly leases: Leases
  readonly log = new MemoryLog()
  readonly #cluster: LeaseCluster
  readonly #listeners: ReplicasListener[] = []
  #watcher: StoreListener | undefined
  isRunning = true
  /** Transactions that it asked for. */
  transactions = 0
  syncs = 0
  /** What its transactions wait for before they reach the store. */
  gate: Promise<void> | undefined
  #lost: string | undefined
  #cutMs = -Infinity
  /** Transactions that it has not been told of yet. */
  #late: Committed[] | undefined
  #knownAlive: ReadonlySet<string> = new Set()
  #told = new Set<string>()
  #deafToTelling = false
  #cancelGivingUp: () => void = () => {}
  #cancelDoubt: () => void = () => {}

  constructor(name: string, cluster: LeaseCluster) {
    this.name = name
    this.#cluster = cluster
    const { store: inner, clock, options } = cluster
    const replicas: Replicas = {
      self: options.alone === true ? undefined : name,
      isAlive: (id) => this.#isAlive(id),
      tell: (id) => this.#tell(id),
      list: (): readonly Replica[] => [...this.#alive()].map((id) => ({ id, name: id, since: '' })),
      listen: (listener) => void this.#listeners.push(listener),
    }
    this.store = {
      epoch: inner.epoch,
      replicas,
      transact: (body) => this.#transact(body),
      read: <T>(body: (state: StoreReader) => T) => inner.read(body),
      sync: async () => {
        this.syncs++
        if (this.#lost !== undefined) throw new StoreUnavailable(this.#lost)
        this.listen()
      },
      watch: async (listener) => {
        this.#watcher = listener
        return () => {}
      },
      status: (): StoreStatus => {
        const ageMs = this.isCut ? Math.max(1, clock.now() - this.#cutMs) : 0
        return { ...inner.status(), ageMs, lost: ageMs >= PATIENCE_MS ? this.#lost : undefined }
      },
      close: async () => {},
    }
    this.leases = new Leases({
      store: this.store,
      clock,
      log: this.log,
      identifier: cluster.identifier,
      maxLeases: options.maxLeases ?? 100_000,
      holdMs: options.holdMs ?? 300_000,
    })
    this.#watcher = this.leases
  }

  readonly feed: StoreListener = {
    load: (state) => this.#watcher!.load(state),
    apply: (transactions, floor) => {
      if (!this.isRunning) return
      if (this.#late) this.#late.push(...transactions)
      else this.#watcher!.apply(transactions, floor)
    },
  }

  membersChanged(): void {
    if (!this.isRunning || this.#lost !== undefined) return
    for (const listener of this.#listeners) listener.membersChanged()
  }

  /** From now on transactions reach it late: with {@link listen}, or when it asks for them. */
  lag(): void {
    this.#late ??= []
  }

  listen(): void {
    const late = this.#late ?? []
    this.#late = undefined
    if (late.length > 0) this.#watcher!.apply(late, 0)
  }

  /** What the others tell does not arrive here any more. */
  deafen(isDeaf = true): void {
    this.#deafToTelling = isDeaf
  }

  /** The store cannot be reached from here. */
  cut(): void {
    const { clock } = this.#cluster
    this.#knownAlive = new Set(this.#cluster.alive)
    this.#lost = 'cut off'
    this.#cutMs = clock.now()
    this.lag()
    this.giveUpAfter(DETECT_MS)
    this.#cancelDoubt = clock.after(DOUBT_MS, () => {
      for (const listener of this.#listeners) listener.membersChanged()
    })
  }

  heal(): void {
    this.#cancelGivingUp()
    this.#cancelDoubt()
    this.listen()
    this.#lost = undefined
    const isNews = !this.#cluster.alive.has(this.name)
    this.#cluster.alive.add(this.name)
    if (isNews) this.#cluster.changed()
    else this.membersChanged()
  }

  giveUpAfter(ms: number): void {
    this.#cancelGivingUp()
    this.#cancelGivingUp = this.#cluster.clock.after(ms, () => {
      this.#cluster.alive.delete(this.name)
      this.#cluster.changed()
    })
  }

  get isCut(): boolean {
    return this.#lost !== undefined
  }

  #alive(): ReadonlySet<string> {
    return this.#lost === undefined ? this.#cluster.alive : this.#knownAlive
  }

  #isAlive(id: string): boolean {
    if (id === this.name && this.#lost !== undefined) return this.#cluster.clock.now() < this.#cutMs + DOUBT_MS
    return this.#alive().has(id)
  }

  async #transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    this.transactions++
    if (!this.isRunning || this.#lost !== undefined) throw new StoreUnavailable(this.#lost ?? 'dead')
    if (this.gate) await this.gate
    return this.#cluster.store.transact(body)
  }

  #tell(id: string): void {
    if (this.#told.size === 0) this.#cluster.clock.after(TELL_MS, () => this.#tellNow())
    this.#told.add(id)
  }

  #tellNow(): void {
    const told = [...this.#told]
    this.#told.clear()
    if (!this.isRunning) return
    if (this.#lost !== undefined) return told.forEach((id) => this.#tell(id))
    for (const member of this.#cluster.members.values()) {
      if (member === this || !member.isRunning || member.#lost !== undefined || member.#deafToTelling) continue
      for (const listener of member.#listeners) listener.heard(told, this.name)
    }
  }
}

function memoryDatabase(): Database {
  const records = new Map<string, Buffer>()
  return {
    async commit(writes) {
      for (const [key, value] of writes) {
        if (value) records.set(key, value)
        else records.delete(key)
      }
    },
    get: (key) => records.get(key),
    range: (prefix, after = '', limit) =>
      [...records.keys()]
        .filter((key) => key.startsWith(prefix) && key > after)
        .sort()
        .slice(0, limit)
        .map((key) => ({ key, value: records.get(key)! })),
    close: async () => {},
  }
}
