/**
 * Who is next among members of different weights: each has its share by weight, and no member's share suffers from
 * others that come, go or change their weight meanwhile. Adding and removing cost O(log of the number of distinct
 * weights), and so does a turn, which allocates nothing.
 *
 * Members of one weight form a group, whose members take turns. A group of k members of weight w is due every 1/(k·w).
 *
 * Source of the turns among groups: earliest deadline first, as in Envoy's scheduler.
 */

import type { Random } from '../clock.ts'

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
  /** Its place in the heap. */
  place = 0

  constructor(weight: number) {
    this.weight = weight
  }
}

/** Most have one group or none, and there are many. */
const NOTHING = new Float64Array(0)

export class Turns<M extends Member> {
  readonly #random: Random
  readonly #byWeight = new Map<number, Group>()
  /** A binary heap by when each group is due. */
  readonly #heap: Group[] = []
  /**
   * First the present, which is when the group was due that had the last turn; then when each group is, in the order of
   * the heap. An array, since a field allocates with every number that it takes which is no small integer.
   */
  #times = NOTHING
  /** In the order of the heap: up to where a group's share of all weights reaches. For draws alone. */
  #shares = NOTHING
  #isShared = false
  #size = 0

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
      group = new Group(weight)
      this.#byWeight.set(weight, group)
      group.place = this.#heap.push(group) - 1
      if (this.#heap.length >= this.#times.length) this.#times = grown(this.#times)
      // As far into its wait as if it had been there for ever.
      this.#times[this.#heap.length] = this.#times[0]! + this.#random() / weight
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
      const times = this.#times
      times[0] = times[1]!
      this.#sink(0, times[1]! + 1 / (group.weight * members.length))
      this.#isShared = false
    }
    return member as M
  }

  /** Anyone, with the chance of their weight. Not when there is nobody. */
  draw(): M {
    const heap = this.#heap
    if (!this.#isShared) this.#share()
    const shares = this.#shares
    const at = this.#random() * shares[heap.length - 1]!
    let low = 0
    for (let high = heap.length - 1; low < high;) {
      const middle = (low + high) >> 1
      if (shares[middle]! > at) high = middle
      else low = middle + 1
    }
    const { members, weight } = heap[low]!
    const within = Math.floor((at - (low > 0 ? shares[low - 1]! : 0)) / weight)
    return members[Math.min(within, members.length - 1)] as M
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
    const { members, place } = group
    const times = this.#times
    this.#isShared = false
    if (members.length > 0) {
      const due = times[place + 1]!
      this.#move(place, before === 0 ? due : times[0]! + ((due - times[0]!) * before) / members.length)
      return
    }
    this.#byWeight.delete(group.weight)
    const due = times[this.#heap.length]!
    const last = this.#heap.pop()!
    if (last === group) return
    this.#heap[place] = last
    this.#move(place, due)
  }

  #share(): void {
    const heap = this.#heap
    if (this.#shares.length < heap.length) this.#shares = new Float64Array(this.#times.length)
    let total = 0
    for (let place = 0; place < heap.length; place++)
      this.#shares[place] = total += heap[place]!.weight * heap[place]!.members.length
    this.#isShared = true
  }

  /** Puts the group of a place where it belongs when it is due then. */
  #move(place: number, due: number): void {
    const heap = this.#heap
    const times = this.#times
    const group = heap[place]!
    let at = place
    while (at > 0) {
      const above = (at - 1) >> 1
      if (times[above + 1]! <= due) break
      this.#settle(at, heap[above]!, times[above + 1]!)
      at = above
    }
    heap[at] = group
    this.#sink(at, due)
  }

  /** As {@link Turns.#move}, of a group that can only move away from the root. */
  #sink(place: number, due: number): void {
    const heap = this.#heap
    const times = this.#times
    const group = heap[place]!
    let at = place
    for (;;) {
      let child = 2 * at + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && times[child + 2]! < times[child + 1]!) child++
      if (times[child + 1]! >= due) break
      this.#settle(at, heap[child]!, times[child + 1]!)
      at = child
    }
    this.#settle(at, group, due)
  }

  #settle(place: number, group: Group, due: number): void {
    this.#heap[place] = group
    this.#times[place + 1] = due
    group.place = place
  }
}

function grown(times: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(2 * times.length + 2)
  larger.set(times)
  return larger
}

function put(members: Member[], position: number, member: Member): void {
  members[position] = member
  member.position = position
}
