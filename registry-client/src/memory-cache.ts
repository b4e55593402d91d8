/**
 * The first level: what this process serves, one entry a service, and the single gate {@link MemoryCache.offer}
 * through which every view comes, wherever it was read.
 */

import { LRUCache } from 'lru-cache'
import type { Clock } from './clock.ts'
import type { Session } from './connection.ts'
import { carryOver, isAfter, unaccounted, type Removal, type View } from './protocol.ts'

/** Where a view came from. A file's view counts as `file` until the registry has confirmed it. */
export type Origin = 'file' | 'registry'

/**
 * What became of an offered view: `accepted` is served from now on; `current` was served already and is now confirmed;
 * `older` changes nothing; `unproven` leaves nodes out without a cause, and is served together with them.
 */
export type Verdict = 'accepted' | 'current' | 'older' | 'unproven'

/** One service in memory. */
export class Entry {
  readonly namespace: string
  readonly service: string
  /** What is served; undefined until anything is known. */
  view: View | undefined
  origin: Origin = 'registry'
  /** Until when the view is known to have been current, by the life of the stream (or the file) that said so. */
  confirmed: Session = { heardMs: -Infinity }
  /**
   * The registry's last word: the base of its next change and the cursor to resume from. It differs from `view` only
   * while it leaves nodes out without proof.
   */
  heard: View | undefined
  /** `heard` with the nodes of `view` that it does not account for: what is served while there are any. */
  carried: View | undefined
  /** Nodes of `view` that stores of later epochs have removed with a cause. */
  readonly removed = new Set<string>()
  /** Since when this life of the stream has not accounted for every node. */
  awaited: { readonly session: Session; readonly sinceMs: number } | undefined
  /** What an operator's file says instead of the registry. */
  override: View | undefined
  /** How many watch the service: while anyone does, it is not evicted. */
  pins = 0

  constructor(namespace: string, service: string) {
    this.namespace = namespace
    this.service = service
  }

  /** What answers a caller. */
  get served(): View | undefined {
    return this.override ?? this.carried ?? this.view
  }

  /** Whether the registry's last word leaves nodes out without proof, and they are served all the same. */
  get quarantined(): boolean {
    return this.carried !== undefined
  }

  /** Milliseconds since the served view was known to be current. */
  ageMs(clock: Clock): number {
    return Math.max(0, clock.now() - this.confirmed.heardMs)
  }
}

export interface MemoryCacheOptions {
  /** At most so many nodes in entries that nobody watches; a service counts one more for itself. */
  readonly maxNodes: number
  /** At most so many such entries. */
  readonly maxServices: number
  readonly clock: Clock
  /** An entry went: its subscription should too. */
  readonly evicted: (key: string, entry: Entry) => void
}

/**
 * How long a node with a lease has to come back to a registry that has lost its state, while that registry is connected.
 * Longer than most registrants take to see that their lease is gone; a dead node among them is ejected by its calls.
 */
const RETURN_MS = 600_000

export class MemoryCache {
  readonly #clock: Clock
  readonly #evicted: MemoryCacheOptions['evicted']
  readonly #pinned = new Map<string, Entry>()
  readonly #asked: LRUCache<string, Entry>

  constructor(options: MemoryCacheOptions) {
    this.#clock = options.clock
    this.#evicted = options.evicted
    this.#asked = new LRUCache({
      max: options.maxServices,
      maxSize: options.maxNodes,
      // Capped, since lru-cache silently refuses an entry that is larger than all of it.
      sizeCalculation: (entry) => Math.min(1 + (entry.view?.nodes.size ?? 0), options.maxNodes),
      perf: options.clock,
      dispose: (entry, key, reason) => {
        if (reason === 'evict') this.#evicted(key, entry)
      },
    })
  }

  get size(): number {
    return this.#pinned.size + this.#asked.size
  }

  get(key: string): Entry | undefined {
    return this.#pinned.get(key) ?? this.#asked.get(key)
  }

  /** As `get`, without counting as use. */
  peek(key: string): Entry | undefined {
    return this.#pinned.get(key) ?? this.#asked.peek(key)
  }

  add(key: string, entry: Entry): void {
    if (entry.pins > 0) this.#pinned.set(key, entry)
    else this.#asked.set(key, entry)
  }

  /** Keeps an entry out of eviction until each pin was released. */
  pin(key: string, entry: Entry): void {
    if (entry.pins++ > 0) return
    this.#asked.delete(key)
    this.#pinned.set(key, entry)
  }

  unpin(key: string, entry: Entry): void {
    if (entry.pins === 0 || --entry.pins > 0) return
    // Absent after `clear`.
    if (this.#pinned.delete(key)) this.#asked.set(key, entry)
  }

  /**
   * The single gate. A cursor never goes back within an epoch; a view never loses its nodes without proof.
   *
   * Cursors of two epochs cannot be compared. There the registry wins, which speaks now, over whatever is held, together
   * with the nodes that it does not account for; a file wins only over nothing.
   * @param removed what the frame behind `next` says it removed
   */
  offer(
    key: string,
    entry: Entry,
    next: View,
    origin: Origin,
    confirmed: Session,
    removed: readonly Removal[] = [],
  ): Verdict {
    const { view } = entry
    if (origin === 'registry') entry.heard = next
    if (view !== undefined) {
      const sameEpoch = view.cursor.epoch === next.cursor.epoch
      if (sameEpoch && view.cursor.revision === next.cursor.revision) {
        if (origin === 'registry') {
          entry.heard = view
          entry.carried = undefined
          entry.origin = origin
        }
        if (confirmed.heardMs >= entry.confirmed.heardMs) entry.confirmed = confirmed
        return 'current'
      }
      if (sameEpoch ? !isAfter(next.cursor, view.cursor) : origin === 'file') {
        // A word that is older than what we hold cannot carry the next change: resume from what we hold.
        if (origin === 'registry') {
          entry.heard = view
          entry.carried = undefined
        }
        return 'older'
      }
      if (!sameEpoch) for (const { id } of removed) if (view.nodes.has(id)) entry.removed.add(id)
      const missing = this.#missing(entry, view, next, confirmed)
      if (missing.length > 0) {
        if (origin === 'registry') entry.carried = carryOver(view, next, missing)
        return 'unproven'
      }
    }
    entry.carried = undefined
    entry.awaited = undefined
    entry.removed.clear()
    entry.view = next
    entry.origin = origin
    entry.confirmed = confirmed
    // Its size has changed: lru-cache measures on set only, and not when the value is the one it holds already.
    if (entry.pins === 0 && this.#asked.delete(key)) this.#asked.set(key, entry)
    return 'accepted'
  }

  #missing(entry: Entry, view: View, next: View, session: Session) {
    const missing = unaccounted(view, next, entry.removed)
    if (missing.length === 0 || next.nodes.size === 0) return missing
    const nowMs = this.#clock.now()
    if (entry.awaited?.session !== session) entry.awaited = { session, sinceMs: nowMs }
    // Registrants come back by themselves. Nobody speaks for a static node but an operator.
    return nowMs - entry.awaited.sinceMs < RETURN_MS ? missing : missing.filter((node) => !node.leased)
  }

  /** Lets an entry go as if it had been evicted, unless someone watches it. */
  evict(key: string): void {
    const entry = this.#asked.peek(key)
    if (entry === undefined) return
    this.#asked.delete(key)
    this.#evicted(key, entry)
  }

  *entries(): IterableIterator<[string, Entry]> {
    yield* this.#pinned
    yield* this.#asked.entries()
  }

  clear(): void {
    this.#pinned.clear()
    this.#asked.clear()
  }
}
