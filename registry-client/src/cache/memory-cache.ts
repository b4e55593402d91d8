/**
 * The first level: what this process serves, one entry a service, and the single gate {@link MemoryCache.offer}
 * through which every view comes, wherever it was read.
 */

import { LRUCache } from 'lru-cache'
import type { Clock } from '../clock.ts'
import type { Session } from '../registry/connection.ts'
import {
  accountsFor,
  carryOver,
  isAfter,
  unaccounted,
  type Cursor,
  type Removal,
  type ServiceNode,
  type View,
} from '../protocol.ts'

/** Where a view came from. A view of a file or a peer counts as such until the registry has confirmed it. */
export type Origin = 'file' | 'peer' | 'registry'

/**
 * What became of an offered view: `accepted` is served from now on; `current` was served already and is now confirmed;
 * `older` changes nothing; `unproven` leaves nodes out without a cause, and is served together with them.
 */
export type Verdict = 'accepted' | 'current' | 'older' | 'unproven'

/**
 * Why the registry's last word is not taken as it is: `unknown`, it never heard of the service; `empty`, it names no
 * node, and no removal that took the last; `incomplete`, its history is another one and does not account for some nodes.
 */
export type QuarantineReason = 'unknown' | 'empty' | 'incomplete'

export interface Quarantine {
  readonly sinceMs: number
  readonly reason: QuarantineReason
}

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
   * while it leaves nodes out without proof, or disputes what a peer said.
   */
  heard: View | undefined
  /** `heard` with the nodes of `view` that it does not account for: what is served while there are any. */
  carried: View | undefined
  /** Set while there is `carried`. */
  quarantine: Quarantine | undefined
  /** Nodes of `view` that stores of later epochs have removed with a cause. */
  readonly removed = new Set<string>()
  /** Since when this life of the stream has not accounted for every node. */
  awaited: { readonly session: Session; readonly sinceMs: number } | undefined
  /** What an operator's file says instead of the registry. */
  override: View | undefined
  /** How many watch the service: while anyone does, it is not evicted. */
  pins = 0
  /** Whether anyone has asked since the last look at {@link usedSince}. Keeps the clock out of a pick. */
  touched = true
  #usedMs = 0
  /** As it was counted last. */
  size = 0
  /** The life of the stream that has sent every change of this service. */
  #covered: Session | undefined
  /** What earlier lives have shown. */
  #shown: Cursor | undefined

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

  /** Up to where in the store's history the view is known to be complete; the cursor of the view at least. */
  get asOf(): Cursor | undefined {
    const cursor = (this.carried ?? this.view ?? this.override)?.cursor
    return cursor && later(this.#covered?.asOf, later(this.#shown, cursor))
  }

  /** Milliseconds since the served view was known to be current. */
  ageMs(clock: Clock): number {
    return Math.max(0, clock.now() - this.confirmed.heardMs)
  }

  /** From now on what this life of the stream has sent up to an id includes every change of this service. */
  cover(session: Session | undefined): void {
    if (this.#covered === session) return
    this.#shown = this.asOf
    this.#covered = session
  }

  isCoveredBy(session: Session): boolean {
    return this.#covered === session
  }

  /** When it was last asked for, as far as anyone has looked. */
  usedSince(nowMs: number): number {
    if (this.touched || this.pins > 0) this.#usedMs = nowMs
    this.touched = false
    return this.#usedMs
  }
}

function later(a: Cursor | undefined, b: Cursor): Cursor {
  return a !== undefined && isAfter(a, b) ? a : b
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

export interface MemoryCacheStatus {
  readonly services: number
  readonly pinned: number
  /** Nodes held, of services that are watched and those that are not; one counts again for each view that holds it. */
  readonly nodes: number
  /** Entries that had to make room, by the bound that was met. */
  readonly evicted: { readonly nodes: number; readonly services: number }
}

/**
 * How long a node with a lease has to come back to a registry that has lost its state, while that registry is connected.
 * Longer than most registrants take to see that their lease is gone; a dead node among them is ejected by its calls.
 */
const RETURN_MS = 600_000

export class MemoryCache {
  readonly #options: MemoryCacheOptions
  readonly #pinned = new Map<string, Entry>()
  /** For the order of use; its bounds are kept here, since a change of an entry's size must not count as use. */
  readonly #asked: LRUCache<string, Entry>
  #askedNodes = 0
  readonly #evicted = { nodes: 0, services: 0 }

  constructor(options: MemoryCacheOptions) {
    this.#options = options
    this.#asked = new LRUCache({
      // Not `max`, for which it makes room at once: half a megabyte for those who follow five services.
      maxSize: options.maxServices + 1,
      sizeCalculation: () => 1,
      perf: options.clock,
      dispose: (entry) => (this.#askedNodes -= entry.size),
    })
  }

  get size(): number {
    return this.#pinned.size + this.#asked.size
  }

  status(): MemoryCacheStatus {
    let nodes = this.#askedNodes - this.#asked.size
    for (const entry of this.#pinned.values()) nodes += sizeOf(entry) - 1
    return { services: this.size, pinned: this.#pinned.size, nodes, evicted: { ...this.#evicted } }
  }

  get(key: string): Entry | undefined {
    const entry = this.#pinned.get(key) ?? this.#asked.get(key)
    if (entry) entry.touched = true
    return entry
  }

  /** As `get`, without counting as use. */
  peek(key: string): Entry | undefined {
    return this.#pinned.get(key) ?? this.#asked.peek(key)
  }

  add(key: string, entry: Entry): void {
    if (entry.pins > 0) this.#pinned.set(key, entry)
    else this.#addAsked(key, entry)
  }

  /** Keeps an entry out of eviction until each pin was released. */
  pin(key: string, entry: Entry): void {
    if (entry.pins++ > 0) return
    this.#asked.delete(key)
    this.#pinned.set(key, entry)
  }

  unpin(key: string, entry: Entry): void {
    if (entry.pins === 0 || --entry.pins > 0) return
    entry.touched = true
    // Absent after `clear`.
    if (this.#pinned.delete(key)) this.#addAsked(key, entry)
  }

  /** An operator's word for a service, or its end. */
  override(key: string, entry: Entry, view: View | undefined): void {
    entry.override = view
    this.#measure(key, entry)
  }

  /**
   * The single gate. A cursor never goes back within an epoch; a view never loses its nodes without proof.
   *
   * Cursors of two epochs cannot be compared. There the registry wins, which speaks now, over whatever is held, together
   * with the nodes that it does not account for; a file wins only over nothing. A peer always does.
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
    const verdict = this.#judge(entry, next, origin, confirmed, removed)
    this.#measure(key, entry)
    return verdict
  }

  #judge(entry: Entry, next: View, origin: Origin, confirmed: Session, removed: readonly Removal[]): Verdict {
    const { view } = entry
    if (view !== undefined && origin === 'peer') return 'older'
    if (origin === 'registry') entry.heard = next
    if (view === undefined) return accept(entry, next, origin, confirmed)
    const sameEpoch = view.cursor.epoch === next.cursor.epoch
    const isHearsay = entry.origin === 'peer' && origin === 'registry'
    if (sameEpoch && view.cursor.revision === next.cursor.revision) {
      // Of the same place in the same history the registry knows, and a peer has it from someone.
      if (isHearsay && isProven(next)) return accept(entry, next, origin, confirmed)
      if (origin === 'registry') this.#follow(entry, view)
      if (origin === 'registry') entry.origin = origin
      if (confirmed.heardMs >= entry.confirmed.heardMs) entry.confirmed = confirmed
      return 'current'
    }
    // While the registry speaks of another epoch than what is held, a file of what is held is history.
    const isPast = origin === 'file' && entry.carried && entry.heard?.cursor.epoch !== next.cursor.epoch
    if (isPast || (sameEpoch ? !isAfter(next.cursor, view.cursor) : origin === 'file')) {
      // A word that is older than what we hold cannot carry the next change: resume from what we hold. Unless a peer
      // said that: what the registry says next continues its own word.
      if (origin === 'registry' && !isHearsay) this.#follow(entry, view)
      return 'older'
    }
    if (!sameEpoch)
      for (const removal of removed) {
        const node = view.nodes.get(removal.id)
        if (node && accountsFor(removal, node)) entry.removed.add(removal.id)
      }
    const missing = this.#missing(entry, view, next, confirmed)
    // Never heard of is no word about a view either, not even about one without nodes.
    if (missing.length > 0 || (next.cursor.revision === 0 && view.cursor.revision > 0)) {
      if (origin === 'registry') {
        entry.carried = carryOver(view, next, missing)
        entry.quarantine = { sinceMs: entry.quarantine?.sinceMs ?? this.#options.clock.now(), reason: reasonOf(next) }
      }
      return 'unproven'
    }
    return accept(entry, next, origin, confirmed)
  }

  /** The registry continues what is held. */
  #follow(entry: Entry, view: View): void {
    entry.heard = view
    entry.carried = undefined
    entry.quarantine = undefined
  }

  #missing(entry: Entry, view: View, next: View, session: Session): readonly ServiceNode[] {
    const missing = unaccounted(view, next, entry.removed)
    if (missing.length === 0 || next.nodes.size === 0) return missing
    const nowMs = this.#options.clock.now()
    if (entry.awaited?.session !== session) entry.awaited = { session, sinceMs: nowMs }
    // Registrants come back by themselves. Nobody speaks for a static node but an operator.
    return nowMs - entry.awaited.sinceMs < RETURN_MS ? missing : missing.filter((node) => !node.leased)
  }

  /** Lets an entry go as if it had been evicted, unless someone watches it. */
  evict(key: string): void {
    const entry = this.#asked.peek(key)
    if (entry === undefined) return
    this.#asked.delete(key)
    this.#options.evicted(key, entry)
  }

  *entries(): IterableIterator<[string, Entry]> {
    yield* this.#pinned
    yield* this.#asked.entries()
  }

  clear(): void {
    this.#pinned.clear()
    this.#asked.clear()
  }

  #addAsked(key: string, entry: Entry): void {
    entry.size = sizeOf(entry)
    this.#asked.set(key, entry)
    this.#askedNodes += entry.size
    this.#trim()
  }

  #measure(key: string, entry: Entry): void {
    if (this.#asked.peek(key) !== entry) return
    const size = sizeOf(entry)
    this.#askedNodes += size - entry.size
    entry.size = size
    this.#trim()
  }

  /** One that is larger than everything stays, alone. */
  #trim(): void {
    const { maxNodes, maxServices, evicted } = this.#options
    for (;;) {
      const bound =
        this.#asked.size > maxServices
          ? 'services'
          : this.#askedNodes > maxNodes && this.#asked.size > 1
            ? 'nodes'
            : undefined
      if (bound === undefined) return
      const [key, entry] = this.#asked.rentries().next().value as [string, Entry]
      this.#asked.delete(key)
      this.#evicted[bound]++
      evicted(key, entry)
    }
  }
}

function accept(entry: Entry, next: View, origin: Origin, confirmed: Session): Verdict {
  entry.carried = undefined
  entry.quarantine = undefined
  entry.awaited = undefined
  entry.removed.clear()
  entry.view = next
  entry.origin = origin
  entry.confirmed = confirmed
  return 'accepted'
}

/** What an entry really holds: each view that it keeps, and one for itself. */
function sizeOf({ view, heard, carried, override }: Entry): number {
  let size = 1
  for (const held of new Set([view, heard, carried, override])) size += held?.nodes.size ?? 0
  return size
}

function isProven(view: View): boolean {
  return view.nodes.size > 0 || view.emptied !== undefined
}

function reasonOf(heard: View): QuarantineReason {
  if (heard.cursor.revision === 0) return 'unknown'
  return heard.nodes.size === 0 ? 'empty' : 'incomplete'
}
