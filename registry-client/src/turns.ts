/**
 * Who is next among members of different weights: each has its share by weight, and no member's share suffers from
 * others that come, go or change their weight meanwhile. Adding and removing cost O(log of the number of distinct
 * weights), and so does a turn, which allocates nothing.
 *
 * Members of one weight form a group, whose members take turns. A group of k members of weight w is due every 1/(k·w).
 *
 * Source of the turns among groups: earliest deadline first, as in Envoy's scheduler.
 */

import type { Random } from './clock.ts'

/** What takes part; both fields are {@link Turns}' own. */
export interface Member {
  group: Group | undefined
  position: number
}

/** Members of one weight. */
class Group {
  readonly weight: number
  readonly members: Member[] = []
  /** In the round that runs, those before it have had their turn; it and those after it have not. */
  next = 0
  /** When its next turn is, in the time of {@link Turns}. */
  due: number
  /** Its place in the heap. */
  place = 0
  /** Up to here the share of all groups, for a draw. */
  cumulative = 0

  constructor(weight: number, due: number) {
    this.weight = weight
    this.due = due
  }
}

export class Turns<M extends Member> {
  readonly #random: Random
  readonly #byWeight = new Map<number, Group>()
  /** A binary heap by `due`. */
  readonly #heap: Group[] = []
  /** When the group that had the last turn was due. */
  #now = 0
  #size = 0
  /** The sum of all weights; NaN while it and the groups' shares have to be summed up anew. */
  #total = NaN

  constructor(random: Random) {
    this.#random = random
  }

  get size(): number {
    return this.#size
  }

  /** @param weight above zero */
  add(member: M, weight: number): void {
    let group = this.#byWeight.get(weight)
    if (group === undefined) {
      // As far into its wait as if it had been there for ever.
      group = new Group(weight, this.#now + this.#random() / weight)
      this.#byWeight.set(weight, group)
      group.place = this.#heap.push(group) - 1
    }
    this.#insert(group, member)
    this.#resized(group, group.members.length - 1)
    this.#size++
  }

  remove(member: M): void {
    const { group, position } = member
    if (group === undefined) return
    const { members } = group
    member.group = undefined
    let hole = position
    if (hole < group.next) {
      // Those that had their turn stay together: the last of them takes the place.
      put(members, hole, members[--group.next]!)
      hole = group.next
    }
    const last = members.pop()!
    if (hole < members.length) put(members, hole, last)
    if (group.next === members.length) group.next = 0
    this.#resized(group, members.length + 1)
    this.#size--
  }

  /** Who has the next turn. Not when there is nobody. */
  next(): M {
    const group = this.#heap[0]!
    const { members } = group
    const member = members[group.next]!
    if (++group.next === members.length) group.next = 0
    if (this.#heap.length > 1) {
      this.#now = group.due
      group.due += 1 / (group.weight * members.length)
      this.#sink(group)
      this.#total = NaN
    }
    return member as M
  }

  /** Anyone, with the chance of their weight. Not when there is nobody. */
  draw(): M {
    const heap = this.#heap
    let low = 0
    if (heap.length > 1) {
      if (Number.isNaN(this.#total)) this.#sum()
      const at = this.#random() * this.#total
      for (let high = heap.length - 1; low < high;) {
        const middle = (low + high) >> 1
        if (heap[middle]!.cumulative > at) high = middle
        else low = middle + 1
      }
    }
    const { members } = heap[low]!
    return members[Math.floor(this.#random() * members.length)] as M
  }

  /** Everyone, in no particular order. */
  *[Symbol.iterator](): Generator<M, undefined> {
    for (const { members } of this.#heap) for (const member of members) yield member as M
  }

  /**
   * Puts a member at a place drawn evenly over the whole round. Always at its end, one that leaves and returns again and
   * again would be next each time; always among those that had their turn, never. Drawn, it is next once in a round, and
   * clients that start together walk in different orders.
   */
  #insert(group: Group, member: M): void {
    const { members } = group
    let place = Math.floor(this.#random() * (members.length + 1))
    if (place < group.next) {
      const first = group.next++
      put(members, members.length, members[first]!)
      put(members, first, members[place]!)
    } else if (place < members.length) put(members, members.length, members[place]!)
    else place = members.length
    put(members, place, member)
    member.group = group
  }

  /** A group now comes more or less often, and what is left of its wait shrinks or grows with it. */
  #resized(group: Group, before: number): void {
    const { length } = group.members
    this.#total = NaN
    if (length === 0) {
      this.#byWeight.delete(group.weight)
      const last = this.#heap.pop()!
      if (last === group) return
      this.#heap[group.place] = last
      last.place = group.place
      this.#rise(last)
      this.#sink(last)
    } else if (before > 0) {
      group.due = this.#now + ((group.due - this.#now) * before) / length
      this.#rise(group)
      this.#sink(group)
    } else this.#rise(group)
  }

  #sum(): void {
    this.#total = 0
    for (const group of this.#heap) group.cumulative = this.#total += group.weight * group.members.length
  }

  #rise(group: Group): void {
    const heap = this.#heap
    let at = group.place
    while (at > 0) {
      const above = (at - 1) >> 1
      if (heap[above]!.due <= group.due) break
      heap[at] = heap[above]!
      heap[at]!.place = at
      at = above
    }
    heap[at] = group
    group.place = at
  }

  #sink(group: Group): void {
    const heap = this.#heap
    let at = group.place
    for (;;) {
      let child = 2 * at + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && heap[child + 1]!.due < heap[child]!.due) child++
      if (heap[child]!.due >= group.due) break
      heap[at] = heap[child]!
      heap[at]!.place = at
      at = child
    }
    heap[at] = group
    group.place = at
  }
}

function put(members: Member[], position: number, member: Member): void {
  members[position] = member
  member.position = position
}
