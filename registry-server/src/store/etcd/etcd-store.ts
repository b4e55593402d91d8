/**
 * The store on etcd, for any number of replicas.
 *
 * Each replica holds the whole state in memory and follows one log, whose entries say what was done. To write, it runs
 * the waiting transactions on what it knows and offers the outcome to etcd as the next entry, on the condition that
 * nobody else was faster; then it reads what the faster one did, and runs them again. So every transaction is decided
 * on the newest state, revisions have no gaps, and what a replica knows is always what the log says up to some
 * revision.
 *
 * {@link EtcdFollower} has the memory and follows, {@link EtcdWriter} writes, over the {@link EtcdSession} that there
 * is, and {@link EtcdReplicas} knows who else does.
 */

import { formatDuration, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import {
  StoreRefused,
  type Outcome,
  type Store,
  type StoreListener,
  type StoreReader,
  type StoreStatus,
  type Transaction,
} from '../store.ts'
import { EtcdConnection, EtcdFailure, type EtcdAccess } from './etcd-connection.ts'
import { EtcdFollower } from './etcd-follower.ts'
import { EtcdReplicas } from './etcd-replicas.ts'
import { EtcdSession } from './etcd-session.ts'
import { EtcdWriter } from './etcd-writer.ts'
import { locationOf } from './layout.ts'
import { WriteTurn } from './write-turn.ts'

export interface EtcdStoreOptions {
  readonly endpoints: readonly string[]
  readonly access: EtcdAccess
  readonly prefix: string
  /** What etcd takes in one request: its `--max-request-bytes`. */
  readonly maxRequestBytes: number
  /** For how long to wait for etcd at the start; undefined: for ever. */
  readonly timeoutMs: number | undefined
  /** Ends the waiting. */
  readonly signal?: AbortSignal | undefined
  /** Gives the store a new identity. */
  readonly newEpoch: boolean
  /** Where this replica runs, for people. */
  readonly name: string
  readonly identifier: () => string
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly historyRevisions: number
  readonly historyChanges: number
  /** After each commit: how many transactions it held, and how long etcd took. */
  readonly onCommit?: (transactions: number, ms: number) => void
  /** Begins a connection to one member. Default: over the network that there is. */
  readonly connect?: (endpoint: string) => EtcdConnection
}

export class EtcdStore implements Store {
  readonly replicas: EtcdReplicas
  readonly #location: string
  readonly #log: Log
  readonly #follower: EtcdFollower
  readonly #session: EtcdSession
  readonly #writer: EtcdWriter
  #closed: Promise<void> | undefined

  private constructor(options: EtcdStoreOptions) {
    const { clock, log, endpoints, access, prefix } = options
    this.#location = locationOf(endpoints, access.tls, prefix)
    this.#log = log
    const self = { id: options.identifier(), name: options.name, since: new Date(clock.wall()).toISOString() }
    const turn = new WriteTurn({ self: self.id, clock })
    this.replicas = new EtcdReplicas({ self, clock, log })
    this.#follower = new EtcdFollower({ ...options, location: this.#location, replicas: this.replicas, turn })
    this.#session = new EtcdSession({
      ...options,
      connect: options.connect ?? ((endpoint) => new EtcdConnection({ endpoint, access, prefix, clock })),
      follower: this.#follower,
      opening: (connection) => this.replicas.join(connection),
      opened: () => this.#writer.pump(),
      disconnected: () => {
        this.replicas.leave()
        this.#writer.disconnected()
      },
    })
    this.#writer = new EtcdWriter({
      ...options,
      self: self.id,
      follower: this.#follower,
      session: this.#session,
      turn,
    })
  }

  /**
   * Waits for etcd, and loads.
   * @throws StoreRefused when what is there must not be used, or when it cannot be reached in time
   */
  static async open(options: EtcdStoreOptions): Promise<EtcdStore> {
    const store = new EtcdStore(options)
    const { clock, timeoutMs, signal } = options
    let cancel = () => {}
    const late = new Promise<never>((_, reject) => {
      const stopped = () => reject(new StoreRefused('stopped while waiting for etcd'))
      if (signal?.aborted === true) stopped()
      signal?.addEventListener('abort', stopped, { once: true })
      if (timeoutMs === undefined) return
      cancel = clock.after(timeoutMs, () =>
        reject(
          new StoreRefused(
            `${store.#location} could not be used within ${formatDuration(timeoutMs)}, as --store-timeout says: ` +
              `${store.#session.lost?.reason}`,
          ),
        ),
      )
    })
    try {
      await Promise.race([store.#session.open(finalFor(options.endpoints)), late])
      return store
    } catch (error) {
      await store.#session.close()
      await store.replicas.close()
      if (error instanceof EtcdFailure)
        throw new StoreRefused(`${store.#location} cannot be used: ${error.message}`, error)
      throw error
    } finally {
      cancel()
    }
  }

  get epoch(): string {
    return this.#follower.epoch
  }

  transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    return this.#writer.transact(body)
  }

  read<T>(body: (state: StoreReader) => T): Promise<T> {
    return new Promise((resolve, reject) =>
      this.#writer.whenSettled(() => {
        try {
          resolve(body(this.#follower.memory))
        } catch (error) {
          reject(error)
        }
      }),
    )
  }

  /** Those that ask together, and those that write meanwhile, share one question to etcd. */
  async sync(): Promise<void> {
    await this.transact(() => {})
  }

  watch(listener: StoreListener): Promise<() => void> {
    return this.read(() => this.#follower.watch(listener))
  }

  status(): StoreStatus {
    const { leases, overrides } = this.#follower.memory.counts
    return {
      kind: 'etcd',
      location: this.#location,
      leases,
      overrides,
      ...this.#writer.status(),
      ageMs: this.#session.ageMs,
      setAside: this.#follower.setAside,
    }
  }

  close(): Promise<void> {
    return (this.#closed ??= this.#close())
  }

  async #close(): Promise<void> {
    await this.#writer.close()
    await this.replicas.close().catch((error: unknown) => {
      this.#log.debug({ error: String(error) }, 'the replica could not sign off; its time will run out')
    })
    await this.#session.close()
  }
}

/**
 * What ends the waiting before the first session: later, whatever etcd says, what is known is served. One member with a
 * wrong certificate does not count, when all of them have one there is nothing to wait for.
 */
function finalFor(endpoints: readonly string[]): (error: Error) => boolean {
  let members = 0
  return (error) => {
    if (error instanceof StoreRefused || (error instanceof EtcdFailure && error.kind === 'denied')) return true
    members = error instanceof EtcdFailure && error.isLasting ? members + 1 : 0
    return members >= endpoints.length
  }
}
