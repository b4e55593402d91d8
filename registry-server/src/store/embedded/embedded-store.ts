/**
 * The store for one machine: state in memory, made durable by group commit.
 *
 * While one commit waits for the disk, later transactions are decided on the state in memory and queue up; the next
 * commit takes them all with one sync. So the disk's latency bounds how long a write takes, not how many there are.
 */

import type { Clock } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { Database } from './lmdb-database.ts'
import { encodeHistory, historyKey, keyOf } from '../records.ts'
import { changesOf, type HistoryMark, type HistoryMarks, type HistoryPlan } from '../history-marks.ts'
import { openDirectory, type DirectoryOptions } from './store-directory.ts'
import { changeEpoch, initialise, load, readHistory, readMeta, type Loaded } from './store-loader.ts'
import { encodeValues, FORMAT, META_KEY, type EncodedWrites, type Meta } from './stored-values.ts'
import type { StoreMemory } from '../store-state.ts'
import { type Draft } from '../store-state.ts'
import {
  ALONE,
  damaged,
  StoreRefused,
  StoreUnavailable,
  type Committed,
  type Outcome,
  type Replicas,
  type Store,
  type StoreListener,
  type StoreReader,
  type StoreStatus,
  type Transaction,
} from '../store.ts'

/** Transactions that may wait for the disk. Each is a request that waits for its answer; more are refused at once. */
const MAX_PENDING = 20_000

export interface EmbeddedStoreOptions {
  /** Opens the database, at the start and again after the disk failed. */
  readonly open: () => Database
  /** Where it is, for messages. */
  readonly location: string
  readonly clock: Clock
  readonly log: Log
  /** Revisions that history keeps, at least 1. */
  readonly historyRevisions: number
  /** Changes of single nodes that history keeps, however few revisions they came in: what bounds its memory. */
  readonly historyChanges: number
  /** After each commit: how many transactions it held, and how long the disk took. */
  readonly onCommit?: (transactions: number, ms: number) => void
  /** After the store is closed. */
  readonly onClose?: () => Promise<void>
}

interface Pending {
  /** Undefined when there is nothing to write. */
  readonly draft: Draft | undefined
  readonly settle: () => void
  readonly reject: (error: StoreUnavailable) => void
}

/** A batch as it goes to the disk, and what becomes of it there. */
interface Encoded {
  readonly writes: EncodedWrites
  readonly transactions: readonly Committed[]
  readonly history: HistoryPlan
}

export class EmbeddedStore implements Store {
  readonly epoch: string
  readonly replicas: Replicas = ALONE
  readonly #options: EmbeddedStoreOptions
  readonly #memory: StoreMemory
  readonly #listeners = new Set<StoreListener>()
  #database: Database
  #durable: number
  readonly #history: HistoryMarks
  #queue: Pending[] = []
  #draining: Promise<void> | undefined
  /** Set while the database's state is unknown: nothing is written before it is opened and read again. */
  #suspect = false
  #closing = false
  #commits = 0
  #failures = 0

  private constructor(options: EmbeddedStoreOptions, database: Database, loaded: Loaded) {
    this.#options = options
    this.#database = database
    this.epoch = loaded.epoch
    this.#memory = loaded.memory
    this.#durable = loaded.memory.revision
    this.#history = loaded.history
  }

  /**
   * Loads the database into memory, checking every record.
   * @throws StoreRefused when it is damaged
   */
  static async open(options: EmbeddedStoreOptions): Promise<EmbeddedStore> {
    let database: Database | undefined
    try {
      database = options.open()
      return new EmbeddedStore(options, database, await load(database, options))
    } catch (error) {
      await database?.close()
      throw error instanceof StoreRefused ? error : damaged(options.location, error)
    }
  }

  transact<T>(body: (tx: Transaction) => T): Promise<Outcome<T>> {
    if (this.#closing) return Promise.reject(new StoreUnavailable('it is closing'))
    if (this.#queue.length >= MAX_PENDING)
      return Promise.reject(new StoreUnavailable(`${MAX_PENDING} transactions wait for the disk`))
    return new Promise((resolve, reject) => {
      let draft: Draft | undefined
      let settle: () => void
      try {
        const run = this.#memory.run(body, new Date(this.#options.clock.wall()).toISOString())
        if (run.draft.committed) draft = run.draft
        settle = () => resolve({ revision: draft?.revision ?? this.#durable, result: run.result })
      } catch (error) {
        // Refused by what it saw, which may not be durable yet: the refusal must not be told before it is.
        settle = () => reject(error)
      }
      if (draft === undefined && this.#draining === undefined) return settle()
      this.#queue.push({ draft, settle, reject })
      this.#draining ??= this.#drain()
    })
  }

  /** What is in memory ahead of the disk counts only once it is durable. */
  async read<T>(body: (state: StoreReader) => T): Promise<T> {
    return (await this.transact(body)).result
  }

  /** Nobody else writes here, so this is always the newest. */
  async sync(): Promise<void> {}

  async watch(listener: StoreListener): Promise<() => void> {
    while (this.#draining) await this.#draining
    listener.load({
      revision: this.#durable,
      floor: this.#history.floor,
      services: this.#memory.services(),
      leases: this.#memory.leases(),
      history: readHistory(this.#database, this.#history.floor),
    })
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  status(): StoreStatus {
    return {
      kind: 'embedded',
      location: this.#options.location,
      leases: this.#memory.counts.leases,
      overrides: this.#memory.counts.overrides,
      pending: this.#queue.length,
      commits: this.#commits,
      failures: this.#failures,
      ageMs: 0,
      lost: undefined,
      setAside: [],
    }
  }

  async close(): Promise<void> {
    if (this.#closing) return
    this.#closing = true
    await this.#draining
    await this.#database.close()
    await this.#options.onClose?.()
  }

  async #drain(): Promise<void> {
    // One turn later, so that all transactions of this turn share the first commit too.
    await Promise.resolve()
    while (this.#queue.length > 0) {
      const batch = this.#queue
      this.#queue = []
      const drafts = batch.flatMap((pending) => (pending.draft ? [pending.draft] : []))
      let durable: Encoded | undefined
      try {
        if (drafts.length > 0) durable = await this.#commit(drafts)
      } catch (error) {
        this.#fail([...batch, ...this.#queue.splice(0)], error)
        continue
      }
      // Outside: what is durable cannot be taken back, so a listener that throws must end the process.
      if (durable) this.#publish(durable)
      for (const pending of batch) pending.settle()
    }
    this.#draining = undefined
  }

  async #commit(drafts: readonly Draft[]): Promise<Encoded> {
    const { clock, onCommit, log, location } = this.#options
    // Encoded before anything is awaited: from the next turn on the memory is ahead of this batch.
    const encoded = this.#encode(drafts)
    if (this.#suspect) await this.#reopen(this.#durable)
    const startMs = clock.now()
    try {
      await this.#database.commit(encoded.writes)
    } catch (error) {
      this.#failures++
      log.error({ location, error: String(error), transactions: drafts.length }, 'a commit failed')
      // A failure may have come after the point of no return. Only the disk knows.
      this.#suspect = true
      if ((await this.#reopen(this.#durable, drafts.at(-1)!.revision)) === this.#durable) throw error
    }
    this.#commits++
    onCommit?.(drafts.length, clock.now() - startMs)
    return encoded
  }

  #encode(drafts: readonly Draft[]): Encoded {
    // Of a record written twice in one batch only the last is worth encoding.
    const values = new Map<string, unknown>()
    const transactions: Committed[] = []
    const added: HistoryMark[] = []
    for (const draft of drafts) {
      const committed = draft.committed!
      transactions.push(committed)
      for (const write of draft.writes) values.set(keyOf(write), write.value)
      if (committed.changes.length === 0) continue
      const entries = committed.changes.map(({ namespace, service, after, items }) => ({
        namespace,
        service,
        after,
        items,
      }))
      values.set(historyKey(committed.revision), encodeHistory(committed.time, entries))
      added.push({ revision: committed.revision, changes: changesOf(entries) })
    }
    const { revision, counts } = this.#memory
    const history = this.#history.plan(added, revision)
    for (const trimmed of history.trimmed) values.set(historyKey(trimmed.revision), undefined)
    const meta: Meta = { format: FORMAT, epoch: this.epoch, revision, counts }
    values.set(META_KEY, meta)
    return { writes: encodeValues(values), transactions, history }
  }

  #publish({ transactions, history }: Encoded): void {
    this.#durable = transactions.at(-1)!.revision
    this.#history.take(history)
    for (const listener of this.#listeners) listener.apply(transactions, this.#history.floor)
  }

  #fail(batch: readonly Pending[], error: unknown): void {
    // Later transactions were decided on what the failed ones made, so they go with them, the youngest first.
    for (const pending of [...batch].reverse()) pending.draft?.undo()
    const reason = error instanceof Error ? error.message : String(error)
    const refusal = error instanceof StoreUnavailable ? error : new StoreUnavailable(reason, error)
    for (const pending of batch) pending.reject(refusal)
  }

  /**
   * Opens the database anew, as after some errors lmdb refuses all further work.
   * @param expected the revisions it may be at
   * @throws StoreUnavailable when it cannot be opened, or is elsewhere
   */
  async #reopen(...expected: readonly number[]): Promise<number> {
    const { open, location, log } = this.#options
    try {
      await this.#database.close().catch(() => {})
      this.#database = open()
      const { revision } = readMeta(this.#database)
      if (expected.includes(revision)) {
        this.#suspect = false
        return revision
      }
      // A commit that was reported as failed has happened after all, and its authors have been told otherwise.
      throw new Error(`it is at revision ${revision} instead of ${expected.join(' or ')}: restart the registry`)
    } catch (error) {
      log.error({ location, error: String(error) }, 'the store cannot be opened again')
      throw new StoreUnavailable(error instanceof Error ? error.message : String(error), error)
    }
  }
}

export type EmbeddedDirectoryOptions = Omit<EmbeddedStoreOptions, 'open' | 'location' | 'onClose'> &
  Omit<DirectoryOptions, 'initialise'> & {
    /** Gives the store a new epoch once it has proved to be whole. */
    readonly newEpoch?: boolean
  }

/**
 * Opens the store of a data directory, creating it where none is.
 * @throws StoreRefused when another process holds the directory, or when the store is damaged
 */
export async function openEmbeddedStore(options: EmbeddedDirectoryOptions): Promise<EmbeddedStore> {
  const { location, open, release } = await openDirectory({ ...options, initialise })
  try {
    const opened = () => EmbeddedStore.open({ ...options, location, open, onClose: release })
    if (options.newEpoch !== true) return await opened()
    // Read whole before anything is changed, and again after.
    const whole = await EmbeddedStore.open({ ...options, location, open })
    await whole.close()
    const database = open()
    try {
      await changeEpoch(database, options.identifier())
    } finally {
      await database.close()
    }
    return await opened()
  } catch (error) {
    await release()
    throw error
  }
}
