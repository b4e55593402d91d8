/**
 * The nodes of a view: a map by id that never changes, of which a changed copy shares everything but what changed.
 * Imports nothing.
 *
 * Each id has a slot for ever, and a trie over the slots, 32 to a branch, holds the nodes. A copy has new branches on
 * the way to the slots that changed: O(log n) each, and two copies of one origin are compared by walking only where
 * their branches differ. Ids are looked up in one plain map from id to slot that all copies of an origin share; it only
 * grows, so an older copy finds in a newer id's slot what it has there: nothing.
 *
 * Order: a node that stays never changes places with another that stays. One that left and returns may take its old
 * place.
 *
 * Source of the trie: P. Bagwell, "Ideal Hash Trees", 2001, over integers as in Clojure's vectors, where nothing hashes.
 */

const BITS = 5
const WIDTH = 1 << BITS
const MASK = WIDTH - 1

interface Identified {
  readonly id: string
}

/** Branches at levels above zero, values or nothing at level zero. Frozen ones would cost six times as much to copy. */
type Branch = readonly unknown[]

export class NodeMap<V extends Identified> implements ReadonlyMap<string, V> {
  readonly size: number
  /** Unlike any other's: a deep comparison of two maps cannot see their content, and must not find them equal. */
  readonly identity = Symbol()
  readonly #trie: Branch
  /** By how many bits a slot is shifted at the root. */
  readonly #level: number
  /** Shared by all copies of one origin; never loses an id. */
  readonly #slots: Map<string, number>
  #list: readonly V[] | undefined

  private constructor(size: number, trie: Branch, level: number, slots: Map<string, number>) {
    this.size = size
    this.#trie = trie
    this.#level = level
    this.#slots = slots
    Object.freeze(this)
  }

  /** Of two values with one id the first stays. */
  static of<V extends Identified>(values: Iterable<V>): NodeMap<V> {
    const slots = new Map<string, number>()
    const held: V[] = []
    for (const value of values) if (!slots.has(value.id)) slots.set(value.id, held.push(value) - 1)
    let level = 0
    let branches: Branch[] = inBranches(held)
    for (; branches.length > 1; level += BITS) branches = inBranches(branches)
    return new NodeMap(held.length, branches[0] ?? EMPTY, level, slots)
  }

  /** `map` itself when it is one already. */
  static from<V extends Identified>(map: ReadonlyMap<string, V>): NodeMap<V> {
    return map instanceof NodeMap ? (map as NodeMap<V>) : NodeMap.of(map.values())
  }

  /** This map without `remove`, then with `put`. */
  with(put: readonly V[], remove: readonly string[]): NodeMap<V> {
    const slots = this.#slots
    let { size } = this
    let [trie, level] = [this.#trie, this.#level]
    const fresh = new Set<Branch>()
    for (const id of remove) {
      if (find(trie, level, slots.get(id)) === undefined) continue
      trie = placed(trie, level, slots.get(id)!, undefined, fresh)
      size--
    }
    for (const value of put) {
      let slot = slots.get(value.id)
      if (slot === undefined) slots.set(value.id, (slot = slots.size))
      for (; slot >>> level >= WIDTH; level += BITS) trie = [trie]
      if (find(trie, level, slot) === undefined) size++
      trie = placed(trie, level, slot, value, fresh)
    }
    const changed = new NodeMap<V>(size, trie, level, slots)
    // Ids that are gone must not add up: at the latest when they are more than those that are here.
    return slots.size > 2 * size + WIDTH ? NodeMap.of(changed.values()) : changed
  }

  /** The ids whose value differs from that in `other`, in no particular order; a value that was replaced differs. */
  changesSince(other: ReadonlyMap<string, V>): string[] {
    const ids: string[] = []
    const kin = other instanceof NodeMap ? (other as NodeMap<V>) : undefined
    if (kin !== undefined && kin.#slots === this.#slots) {
      const level = Math.max(this.#level, kin.#level)
      compare(raised(this.#trie, this.#level, level), raised(kin.#trie, kin.#level, level), level, ids)
    } else {
      for (const value of this.list) if (other.get(value.id) !== value) ids.push(value.id)
      for (const id of other.keys()) if (!this.has(id)) ids.push(id)
    }
    return ids
  }

  /** The values as an array, made once. */
  get list(): readonly V[] {
    if (this.#list === undefined) {
      const list: V[] = []
      collect(this.#trie, this.#level, list)
      this.#list = Object.freeze(list)
    }
    return this.#list
  }

  get(id: string): V | undefined {
    return find(this.#trie, this.#level, this.#slots.get(id)) as V | undefined
  }

  has(id: string): boolean {
    return this.get(id) !== undefined
  }

  forEach(run: (value: V, id: string, map: ReadonlyMap<string, V>) => void): void {
    for (const value of this.list) run(value, value.id, this)
  }

  values() {
    return this.list.values()
  }

  keys() {
    return this.list.map(({ id }) => id).values()
  }

  entries() {
    return this.list.map((value): [string, V] => [value.id, value]).values()
  }

  [Symbol.iterator]() {
    return this.entries()
  }

  /** In consoles and logs as what it stands for. */
  [Symbol.for('nodejs.util.inspect.custom')](): Map<string, V> {
    return new Map(this.entries())
  }
}

const EMPTY: Branch = []

function inBranches(items: readonly unknown[]): Branch[] {
  const branches: Branch[] = []
  for (let at = 0; at < items.length; at += WIDTH) branches.push(items.slice(at, at + WIDTH))
  return branches
}

function find(trie: Branch, level: number, slot: number | undefined): unknown {
  if (slot === undefined || slot >>> level >= WIDTH) return undefined
  let branch: Branch | undefined = trie
  for (let shift = level; shift > 0; shift -= BITS) {
    branch = branch[(slot >>> shift) & MASK] as Branch | undefined
    if (branch === undefined) return undefined
  }
  return branch[slot & MASK]
}

/** The branch with `value` in its slot; branches that this edit has made are changed in place. */
function placed(branch: Branch, level: number, slot: number, value: unknown, fresh: Set<Branch>): Branch {
  const copy = fresh.has(branch) ? (branch as unknown[]) : branch.slice()
  fresh.add(copy)
  const at = (slot >>> level) & MASK
  while (copy.length < at) copy.push(undefined)
  copy[at] = level === 0 ? value : placed((copy[at] as Branch | undefined) ?? EMPTY, level - BITS, slot, value, fresh)
  return copy
}

function raised(trie: Branch, from: number, to: number): Branch {
  let root = trie
  for (let level = from; level < to; level += BITS) root = [root]
  return root
}

function compare(left: Branch, right: Branch, level: number, ids: string[]): void {
  if (left === right) return
  for (let at = 0; at < Math.max(left.length, right.length); at++) {
    const [one, other] = [left[at], right[at]]
    if (one === other) continue
    if (level === 0) ids.push(((one ?? other) as Identified).id)
    else compare((one as Branch | undefined) ?? EMPTY, (other as Branch | undefined) ?? EMPTY, level - BITS, ids)
  }
}

function collect(branch: Branch, level: number, list: unknown[]): void {
  for (const item of branch) {
    if (item === undefined) continue
    if (level === 0) list.push(item)
    else collect(item as Branch, level - BITS, list)
  }
}
