/**
 * Which node: one {@link Selector} per service, with the state of each node kept by its id over every change of the
 * view. Candidates are nodes that are `up`, have a weight, and are not ejected for failing calls.
 *
 * Candidates of one weight form a group. Within a group nodes take turns, so only the choice among groups costs more
 * than one step: O(log of the number of distinct weights) a pick, whatever the number of nodes. Groups are built when
 * the view changes or a node is ejected, never during a pick, and a pick allocates nothing.
 *
 * Source of the turns among groups: earliest deadline first, as in Envoy's scheduler; each group of k nodes of weight
 * w is due every 1/(k·w).
 */

import type { Clock, Random } from './clock.ts'
import type { ServiceNode, View } from './protocol.ts'

/** What became of a call: `failed` counts against the node, `ignored` says nothing about it. */
export type Outcome = 'ok' | 'failed' | 'ignored'

/** A chosen node. Valid until `done` is called, once. */
export interface Pick {
  readonly node: ServiceNode
  /** Tells how the call ended: feeds load balancing and ejection. */
  done(outcome: Outcome): void
}

export type SelectorStrategy = 'round_robin' | 'random'

/** No node can be picked. `known` is how many the view holds, whatever their state. */
export class NoNodesError extends Error {
  readonly code = 'no_nodes'
  readonly known: number
  constructor(service: string, known: number) {
    super(known === 0 ? `${service} has no nodes` : `${service} has ${known} nodes, none of them can take traffic`)
    this.name = 'NoNodesError'
    this.known = known
  }
}

/** Below it a single lost packet would eject; above it a dead node costs more retries. */
const CONSECUTIVE_FAILURES = 3
const BASE_EJECTION_MS = 30_000
/** Longer, and a node that recovered after a long fault would stay idle. */
const MAX_EJECTION_MS = 300_000

class NodeState implements Pick {
  node: ServiceNode
  pending = 0
  failures = 0
  ejections = 0
  isEjected = false
  /** When the present ejection ends, or the last one ended. */
  ejectedUntilMs = -Infinity
  readonly #selector: Selector

  constructor(node: ServiceNode, selector: Selector) {
    this.node = node
    this.#selector = selector
  }

  done(outcome: Outcome): void {
    if (this.pending > 0) this.pending--
    if (outcome === 'ok') {
      this.failures = 0
      if (this.isEjected) this.#selector.readmit(this)
    } else if (outcome === 'failed' && ++this.failures >= CONSECUTIVE_FAILURES) this.#selector.eject(this)
  }
}

interface Group {
  readonly states: readonly NodeState[]
  readonly weight: number
  /** The position within the group. */
  turn: number
  /** When the group is due, in its own time. */
  due: number
  /** Up to here the share of all groups, for a random choice. */
  cumulative: number
}

/** A node as its selector sees it. */
export interface NodeReport {
  readonly id: string
  readonly pending: number
  readonly failures: number
  readonly ejectedForMs: number
}

export class Selector {
  readonly #service: string
  readonly #clock: Clock
  readonly #random: Random
  readonly #states = new Map<string, NodeState>()
  #strategy: SelectorStrategy
  /** A binary heap by `due`. */
  #groups: Group[] = []
  #total = 0
  #candidates = 0
  #cancelReturn: () => void = () => {}

  constructor(service: string, clock: Clock, random: Random, strategy: SelectorStrategy = 'round_robin') {
    this.#service = service
    this.#clock = clock
    this.#random = random
    this.#strategy = strategy
  }

  /** Takes over a new view; undefined when nothing is known any more. Nodes that stay keep their state; a node id in a new life starts afresh. */
  update(view: View | undefined, strategy: SelectorStrategy = this.#strategy): void {
    this.#strategy = strategy
    for (const [id, state] of this.#states)
      if (view?.nodes.get(id)?.incarnation !== state.node.incarnation) this.#states.delete(id)
    for (const node of view?.nodes.values() ?? []) {
      const state = this.#states.get(node.id)
      if (state) state.node = node
      else this.#states.set(node.id, new NodeState(node, this))
    }
    this.#build()
  }

  /**
   * @param not nodes that this call has tried already
   * @throws NoNodesError
   */
  pick(not?: ReadonlySet<string>): Pick {
    if (this.#candidates === 0) throw new NoNodesError(this.#service, this.#states.size)
    let state = this.#next()
    if (not && not.size > 0) {
      for (let tries = 0; not.has(state.node.id) && tries <= not.size; tries++) state = this.#next()
      if (not.has(state.node.id)) state = this.#anyBut(not)
    }
    state.pending++
    return state
  }

  /** Each node with what its calls have shown. */
  report(): NodeReport[] {
    const nowMs = this.#clock.now()
    return [...this.#states.values()].map((state) => ({
      id: state.node.id,
      pending: state.pending,
      failures: state.failures,
      ejectedForMs: Math.max(0, state.ejectedUntilMs - nowMs),
    }))
  }

  /** Takes a failing node out for a time that grows with each ejection; never the last candidate. */
  eject(state: NodeState): void {
    const nowMs = this.#clock.now()
    if (state.isEjected || this.#candidates <= 1 || this.#states.get(state.node.id) !== state) return
    state.failures = 0
    // A node that behaved for as long as the longest ejection starts from the shortest again.
    if (nowMs - state.ejectedUntilMs > MAX_EJECTION_MS) state.ejections = 0
    state.ejections++
    state.isEjected = true
    state.ejectedUntilMs = nowMs + Math.min(BASE_EJECTION_MS * state.ejections, MAX_EJECTION_MS)
    this.#build()
  }

  /** An ejected node has answered after all. */
  readmit(state: NodeState): void {
    if (this.#states.get(state.node.id) !== state) return
    state.isEjected = false
    state.ejectedUntilMs = this.#clock.now()
    this.#build()
  }

  /** Calls that still run may end after this: they must not set a timer again. */
  close(): void {
    this.#states.clear()
    this.#groups = []
    this.#candidates = 0
    this.#cancelReturn()
  }

  #next(): NodeState {
    const groups = this.#groups
    let group = groups[0]!
    if (this.#strategy === 'random') {
      if (groups.length > 1) {
        const at = this.#random() * this.#total
        let low = 0
        for (let high = groups.length - 1; low < high;) {
          const middle = (low + high) >> 1
          if (groups[middle]!.cumulative > at) high = middle
          else low = middle + 1
        }
        group = groups[low]!
      }
      return group.states[Math.floor(this.#random() * group.states.length)]!
    }
    const { states } = group
    if (++group.turn >= states.length) group.turn = 0
    if (groups.length > 1) {
      group.due += 1 / (group.weight * states.length)
      sink(groups)
    }
    return states[group.turn]!
  }

  /**
   * Rare: turns alone did not lead past the nodes that were tried. When those were all candidates, an ejected node is
   * the better bet: what failed a while ago may be back, what failed in this very call is not.
   */
  #anyBut(not: ReadonlySet<string>): NodeState {
    for (const group of this.#groups) for (const state of group.states) if (!not.has(state.node.id)) return state
    for (const state of this.#states.values()) if (takesTraffic(state.node) && !not.has(state.node.id)) return state
    throw new NoNodesError(this.#service, this.#states.size)
  }

  #build(): void {
    const nowMs = this.#clock.now()
    const byWeight = new Map<number, NodeState[]>()
    let returnMs = Infinity
    this.#candidates = 0
    const ejected: NodeState[] = []
    for (const state of this.#states.values()) {
      if (!takesTraffic(state.node)) continue
      if (state.ejectedUntilMs <= nowMs) state.isEjected = false
      if (state.isEjected) {
        ejected.push(state)
        returnMs = Math.min(returnMs, state.ejectedUntilMs)
      } else add(byWeight, state)
    }
    // Every other node went while these were out: a node that may work beats none.
    if (byWeight.size === 0) for (const state of ejected) add(byWeight, state)
    const old = new Map(this.#groups.map((group) => [group.weight, group]))
    this.#groups = []
    this.#total = 0
    for (const [weight, states] of byWeight) {
      this.#candidates += states.length
      this.#total += weight * states.length
      this.#groups.push({
        states,
        weight,
        // Clients that start together do not all call the first node first.
        turn: old.get(weight)?.turn ?? Math.floor(this.#random() * states.length),
        due: this.#random() / (weight * states.length),
        cumulative: this.#total,
      })
    }
    // The heap below is an ordered array to begin with; a random choice never reorders it, so `cumulative` stays sorted.
    if (this.#strategy === 'round_robin') this.#groups.sort((a, b) => a.due - b.due)
    this.#cancelReturn()
    this.#cancelReturn = returnMs < Infinity ? this.#clock.after(returnMs - nowMs, () => this.#build()) : () => {}
  }
}

function takesTraffic(node: ServiceNode): boolean {
  return node.status === 'up' && node.weight > 0
}

function add(byWeight: Map<number, NodeState[]>, state: NodeState): void {
  const states = byWeight.get(state.node.weight)
  if (states) states.push(state)
  else byWeight.set(state.node.weight, [state])
}

/** Restores the heap after the root's `due` has grown. */
function sink(heap: Group[]): void {
  const root = heap[0]!
  let at = 0
  for (;;) {
    let child = 2 * at + 1
    if (child >= heap.length) break
    if (child + 1 < heap.length && heap[child + 1]!.due < heap[child]!.due) child++
    if (heap[child]!.due >= root.due) break
    heap[at] = heap[child]!
    at = child
  }
  heap[at] = root
}
