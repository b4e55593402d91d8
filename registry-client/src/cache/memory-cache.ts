/**
 * The first level: what this process serves, one entry a service, within bounds. What enters it is judged by the
 * {@link judge gate}; what leaves it, by what would be lost.
 */

import { LRUCache } from 'lru-cache'
import type { Clock } from '../clock.ts'
import type { Entry } from './entry.ts'
import { judge, type Offer, type Verdict } from './gate.ts'
import type { View } from '../protocol.ts'

export interface MemoryCacheOptions {
  /** At most so many nodes in entries that nobody watches; a service counts one more for itself. */
  readonly maxNodes: number
  /** At most so many such entries of services of which something is known. */
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
  readonly evicted: { readonly nodes: number; readonly services: number; readonly names: number }
}

/** Names of which nothing is known. A stranger can think of any number of them. */
const MAX_NAMES = 1_000

export class MemoryCache {
  readonly #options: MemoryCacheOptions
  readonly #pinned = new Map<string, Entry>()
  /** What only a peer has said. A liar knows every name, so it makes room first. */
  readonly #hearsay: Recency
  /** What the registry would say again. */
  readonly #known: Recency
  /** What it would not: views in quarantine, and those that an operator has overruled. They make room last. */
  readonly #kept: Recency
  /** Names of which nothing is known, with a bound of their own: no number of them costs a view. */
  readonly #names: Recency
  readonly #lists: readonly Recency[]
  readonly #evicted = { nodes: 0, services: 0, names: 0 }

  constructor(options: MemoryCacheOptions) {
    this.#options = options
    this.#hearsay = new Recency(options.clock)
    this.#known = new Recency(options.clock)
    this.#kept = new Recency(options.clock)
    this.#names = new Recency(options.clock)
    this.#lists = [this.#known, this.#kept, this.#hearsay, this.#names]
  }

  get size(): number {
    return this.#lists.reduce((size, list) => size + list.size, this.#pinned.size)
  }

  status(): MemoryCacheStatus {
    let nodes = 0
    for (const [, entry] of this.entries()) nodes += sizeOf(entry) - 1
    return { services: this.size, pinned: this.#pinned.size, nodes, evicted: { ...this.#evicted } }
  }

  get(key: string): Entry | undefined {
    let entry = this.#pinned.get(key)
    for (let list = 0; entry === undefined && list < this.#lists.length; list++) entry = this.#lists[list]!.get(key)
    if (entry) entry.touched = true
    return entry
  }

  /** As `get`, without counting as use. */
  peek(key: string): Entry | undefined {
    return this.#pinned.get(key) ?? this.#listOf(key)?.peek(key)
  }

  /** Takes in an entry and pins it. */
  add(key: string, entry: Entry): void {
    entry.pins++
    this.#pinned.set(key, entry)
  }

  /** Keeps an entry out of eviction until each pin was released. */
  pin(key: string, entry: Entry): void {
    if (entry.pins++ > 0) return
    this.#listOf(key)?.delete(key)
    this.#pinned.set(key, entry)
  }

  unpin(key: string, entry: Entry): void {
    if (entry.pins === 0 || --entry.pins > 0) return
    entry.touched = true
    // Absent after `clear`.
    if (this.#pinned.delete(key)) this.#add(key, entry)
  }

  /** An operator's word for a service, or its end. */
  override(key: string, entry: Entry, view: View | undefined): void {
    entry.override = view
    this.#measure(key, entry)
  }

  /** Lets the gate judge a view. */
  offer(key: string, entry: Entry, offer: Offer): Verdict {
    const verdict = judge(entry, offer, this.#options.clock.now())
    this.#measure(key, entry)
    return verdict
  }

  /** Lets an entry go as if it had been evicted, unless someone watches it. */
  evict(key: string): void {
    const list = this.#listOf(key)
    if (list) this.#options.evicted(key, list.delete(key)!)
  }

  *entries(): IterableIterator<[string, Entry]> {
    yield* this.#pinned
    for (const list of this.#lists) yield* list.entries()
  }

  clear(): void {
    this.#pinned.clear()
    for (const list of this.#lists) list.clear()
  }

  #listOf(key: string): Recency | undefined {
    return this.#lists.find((list) => list.has(key))
  }

  /** Where an entry belongs by what it holds now. */
  #place(entry: Entry): Recency {
    if (entry.override) return this.#kept
    if (!hasView(entry)) return this.#names
    if (entry.origin === 'peer') return this.#hearsay
    return entry.quarantined ? this.#kept : this.#known
  }

  #add(key: string, entry: Entry): void {
    this.#place(entry).add(key, entry)
    this.#trim()
  }

  #measure(key: string, entry: Entry): void {
    const list = this.#listOf(key)
    if (list?.peek(key) !== entry) return
    if (list === this.#place(entry)) list.measure(entry)
    else {
      list.delete(key)
      this.#place(entry).add(key, entry)
    }
    this.#trim()
  }

  #trim(): void {
    const { maxNodes, maxServices } = this.#options
    while (this.#names.size > Math.min(MAX_NAMES, maxServices)) this.#drop(this.#names, 'names')
    const inOrder = [this.#hearsay, this.#known, this.#kept]
    for (;;) {
      const services = inOrder.reduce((sum, list) => sum + list.size, 0)
      const nodes = inOrder.reduce((sum, list) => sum + list.nodes, 0)
      // One that is larger than everything stays, alone.
      if (services <= maxServices && (nodes <= maxNodes || services <= 1)) return
      this.#drop(
        inOrder.find((list) => list.size > 0)!,
        services > maxServices ? 'services' : 'nodes',
      )
    }
  }

  #drop(list: Recency, bound: keyof MemoryCacheStatus['evicted']): void {
    const [key, entry] = list.oldest
    list.delete(key)
    this.#evicted[bound]++
    this.#options.evicted(key, entry)
  }
}

/** Entries in the order of their use, with what they hold. */
class Recency {
  readonly #entries: LRUCache<string, Entry>
  nodes = 0

  constructor(clock: Clock) {
    this.#entries = new LRUCache({
      // The bounds are kept outside, since a change of an entry's size must not count as use. Not `max`, for which it
      // makes room at once: half a megabyte for those who follow five services.
      maxSize: Number.MAX_SAFE_INTEGER,
      sizeCalculation: () => 1,
      perf: clock,
    })
  }

  get size(): number {
    return this.#entries.size
  }

  /** Of one that is not empty. */
  get oldest(): [string, Entry] {
    return this.#entries.rentries().next().value as [string, Entry]
  }

  get(key: string): Entry | undefined {
    return this.#entries.get(key)
  }

  peek(key: string): Entry | undefined {
    return this.#entries.peek(key)
  }

  has(key: string): boolean {
    return this.#entries.has(key)
  }

  entries(): Generator<[string, Entry]> {
    return this.#entries.entries()
  }

  add(key: string, entry: Entry): void {
    entry.size = sizeOf(entry)
    this.nodes += entry.size
    this.#entries.set(key, entry)
  }

  measure(entry: Entry): void {
    const size = sizeOf(entry)
    this.nodes += size - entry.size
    entry.size = size
  }

  delete(key: string): Entry | undefined {
    const entry = this.#entries.peek(key)
    if (entry) this.nodes -= entry.size
    this.#entries.delete(key)
    return entry
  }

  clear(): void {
    this.#entries.clear()
    this.nodes = 0
  }
}

/** Whether anything is known of the service, beyond that the registry never heard of it. */
function hasView({ view }: Entry): boolean {
  return view !== undefined && view.cursor.revision > 0
}

/** What an entry really holds: each view that it keeps, and one for itself. */
function sizeOf({ view, heard, carried, override }: Entry): number {
  let size = 1
  for (const held of new Set([view, heard, carried, override])) size += held?.nodes.size ?? 0
  return size
}
