/** One store under several registries of a test, as replicas share one. Each hears of commits when the test lets it. */

import type { TestContext } from 'node:test'
import { openEmbeddedStore } from '../../registry-server/src/store/embedded/embedded-store.ts'
import {
  ALONE,
  StoreUnavailable,
  type Committed,
  type Outcome,
  type Store,
  type StoreListener,
  type StoreReader,
  type StoreStatus,
  type Transaction,
} from '../../registry-server/src/store/store.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { silent, startRegistry, temporaryDirectory, type StartOptions, type TestRegistry } from './support.ts'

/** What one registry has of the shared store. */
export class ReplicaStore implements Store {
  readonly #inner: Store
  readonly replicas = ALONE
  /** Whether commits reach this replica only when it asks by a sync. */
  isLagging = false
  /** Whether a sync fails. */
  isCutOff = false
  syncs = 0
  readonly #waiting: (() => void)[] = []

  constructor(inner: Store) {
    this.#inner = inner
  }

  get epoch(): string {
    return this.#inner.epoch
  }

  transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    return this.#inner.transact(body)
  }

  read<T>(body: (state: StoreReader) => T): Promise<T> {
    return this.#inner.read(body)
  }

  async sync(): Promise<void> {
    this.syncs++
    await this.#inner.sync()
    if (this.isCutOff) throw new StoreUnavailable('cut off')
    for (const tell of this.#waiting.splice(0)) tell()
  }

  watch(listener: StoreListener): Promise<() => void> {
    const apply = (transactions: readonly Committed[], floor: number) => {
      if (this.isLagging) this.#waiting.push(() => listener.apply(transactions, floor))
      else listener.apply(transactions, floor)
    }
    return this.#inner.watch({ load: (state) => listener.load(state), apply })
  }

  status(): StoreStatus {
    return this.#inner.status()
  }

  /** The others still need it. */
  async close(): Promise<void> {}
}

export interface TestReplica extends TestRegistry {
  readonly store: ReplicaStore
}

/** So many registries on one store, which all end with the test. */
export async function startReplicas(
  context: TestContext,
  count: number,
  options: Omit<StartOptions, 'openStore'> = {},
): Promise<TestReplica[]> {
  const inner = await openEmbeddedStore({
    directory: await temporaryDirectory(context),
    identifier: () => 'shared',
    clock: new ManualClock(),
    log: silent,
    historyRevisions: 10_000,
    historyChanges: 100_000,
  })
  const replicas: TestReplica[] = []
  for (let made = 0; made < count; made++) {
    const store = new ReplicaStore(inner)
    replicas.push({ ...(await startRegistry(context, { ...options, openStore: async () => store })), store })
  }
  // Hooks run in order: after the registries have ended.
  context.after(() => inner.close())
  return replicas
}
