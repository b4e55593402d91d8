/**
 * Which node: one {@link Selector} per service, with the state of each node kept by its id over every change of the
 * view. Candidates are nodes that are `up` and have a weight. Those that are not ejected for failing calls take turns;
 * those that are, only when nothing else is left.
 *
 * A change of the view costs what has changed, and a pick O(log of the number of distinct weights), whatever the number
 * of nodes; a pick allocates nothing.
 */

import type { Clock, Random } from '../clock.ts'
import { NodeMap } from '../node-map.ts'
import type { ServiceNode, View } from '../protocol.ts'
import { Turns, type Member } from './turns.ts'

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
/** From a probe that failed on: longer than two visits of a probe lie apart, so that only a probe or a call ends it. */
const MISSED_EJECTION_MS = 45_000
/** Longer, and a node that recovered after a long fault would stay idle. */
const MAX_EJECTION_MS = 300_000

class NodeState implements Pick, Member {
  node: ServiceNode
  pending = 0
  /** Calls that failed in a row. */
  failures = 0
  /** Probes that failed in a row since a call was answered. */
  missed = 0
  /** Whether a call was answered since the last probe asked. */
  answered = false
  ejections = 0
  isEjected = false
  /** When the present ejection ends, or the last one ended. */
  ejectedUntilMs = -Infinity
  /** Where it takes turns; undefined while it takes no traffic. */
  turns: Turns<NodeState> | undefined
  group: Member['group'] = undefined
  position = 0
  readonly #selector: Selector

  constructor(node: ServiceNode, selector: Selector) {
    this.node = node
    this.#selector = selector
  }

  done(outcome: Outcome): void {
    if (this.pending > 0) this.pending--
    if (outcome === 'ok') {
      this.failures = 0
      this.missed = 0
      this.answered = true
      if (this.isEjected) this.#selector.readmit(this)
    } else if (outcome === 'failed') {
      this.failures++
      if (this.isSuspect) this.#selector.eject(this)
    }
  }

  get isSuspect(): boolean {
    return this.failures + this.missed >= CONSECUTIVE_FAILURES
  }
}

/** A node as its selector sees it. */
export interface NodeReport {
  readonly id: string
  readonly pending: number
  readonly failures: number
  readonly ejectedForMs: number
}

const NO_NODES: NodeMap<ServiceNode> = NodeMap.of([])

export class Selector {
  readonly #service: string
  readonly #clock: Clock
  readonly #states = new Map<string, NodeState>()
  readonly #candidates: Turns<NodeState>
  /** A node that may work beats none. */
  readonly #ejected: Turns<NodeState>
  #nodes = NO_NODES
  #strategy: SelectorStrategy
  /** The earliest end of an ejection, and the cancellation of the timer for it. */
  #returnMs = Infinity
  #cancelReturn: () => void = () => {}

  constructor(service: string, clock: Clock, random: Random, strategy: SelectorStrategy = 'round_robin') {
    this.#service = service
    this.#clock = clock
    this.#candidates = new Turns(random)
    this.#ejected = new Turns(random)
    this.#strategy = strategy
  }

  /** Takes over a new view; undefined when nothing is known any more. Nodes that stay keep their state; a node id in a new life starts afresh. */
  update(view: View | undefined, strategy: SelectorStrategy = this.#strategy): void {
    this.#strategy = strategy
    const nodes = view ? NodeMap.from(view.nodes) : NO_NODES
    for (const id of nodes.changesSince(this.#nodes)) {
      const node = nodes.get(id)
      let state = this.#states.get(id)
      if (state !== undefined && state.node.incarnation !== node?.incarnation) {
        this.#states.delete(id)
        this.#place(state)
        state = undefined
      }
      if (node === undefined) continue
      if (state === undefined) this.#states.set(id, (state = new NodeState(node, this)))
      state.node = node
      this.#place(state)
    }
    this.#nodes = nodes
  }

  /**
   * @param not nodes that this call has tried already
   * @throws NoNodesError
   */
  pick(not?: ReadonlySet<string>): Pick {
    const turns = this.#candidates.size > 0 ? this.#candidates : this.#ejected
    if (turns.size === 0) throw new NoNodesError(this.#service, this.#states.size)
    let state = this.#next(turns)
    if (not && not.size > 0) {
      for (let tries = 0; not.has(state.node.id) && tries <= not.size; tries++) state = this.#next(turns)
      if (not.has(state.node.id)) state = this.#anyBut(not)
    }
    state.pending++
    return state
  }

  /** Each node with what its calls have shown. */
  report(): NodeReport[] {
    const nowMs = this.#clock.now()
    return Array.from(this.#states.values(), (state) => ({
      id: state.node.id,
      pending: state.pending,
      failures: state.failures,
      ejectedForMs: Math.max(0, state.ejectedUntilMs - nowMs),
    }))
  }

  /** Takes a failing node out for a time that grows with each ejection; never the last candidate. */
  eject(state: NodeState): void {
    const nowMs = this.#clock.now()
    if (state.isEjected || this.#candidates.size <= 1 || this.#states.get(state.node.id) !== state) return
    state.failures = 0
    // A node that behaved for as long as the longest ejection starts from the shortest again.
    if (nowMs - state.ejectedUntilMs > MAX_EJECTION_MS) state.ejections = 0
    state.ejections++
    state.isEjected = true
    state.ejectedUntilMs = nowMs + Math.min(BASE_EJECTION_MS * state.ejections, MAX_EJECTION_MS)
    this.#place(state)
  }

  /** An ejected node has answered after all. */
  readmit(state: NodeState): void {
    if (this.#states.get(state.node.id) !== state) return
    state.ejectedUntilMs = this.#clock.now()
    this.#place(state)
  }

  /** The nodes of which a probe may tell something: of one node alone it makes no difference. */
  probeable(): ServiceNode[] {
    if (this.#candidates.size + this.#ejected.size < 2) return []
    return [...this.#candidates, ...this.#ejected].map(({ node }) => node)
  }

  /** Whether calls of a node were answered since this was asked last: they tell more than a probe would. */
  tookCalls({ id }: ServiceNode): boolean {
    const state = this.#states.get(id)
    if (state?.answered !== true) return false
    state.answered = false
    return true
  }

  /**
   * What a probe has shown. One that failed counts like a failed call, and puts off the return of a node that is out. One
   * that succeeded brings such a node back, on trial: that something listens does not say that it answers.
   */
  probed({ id, incarnation }: ServiceNode, isUp: boolean): void {
    const state = this.#states.get(id)
    if (state?.node.incarnation !== incarnation) return
    if (!isUp) {
      state.missed++
      if (state.isEjected) state.ejectedUntilMs = Math.max(state.ejectedUntilMs, this.#clock.now() + MISSED_EJECTION_MS)
      else if (state.isSuspect) this.eject(state)
    } else if (state.isEjected) {
      this.readmit(state)
      state.failures = CONSECUTIVE_FAILURES - 1
    } else state.missed = 0
  }

  /** Takes back what probes have done. */
  disregardProbes(): void {
    for (const state of this.#states.values())
      if (state.missed > 0) {
        state.missed = 0
        if (state.isEjected) this.readmit(state)
      }
  }

  /** Calls that still run may end after this: they find nothing of theirs any more. */
  close(): void {
    this.update(undefined)
  }

  #next(turns: Turns<NodeState>): NodeState {
    return this.#strategy === 'random' ? turns.draw() : turns.next()
  }

  /**
   * Rare: turns alone did not lead past the nodes that were tried. When those were all candidates, an ejected node is
   * the better bet: what failed a while ago may be back, what failed in this very call is not.
   */
  #anyBut(not: ReadonlySet<string>): NodeState {
    for (const turns of [this.#candidates, this.#ejected])
      for (const state of turns) if (!not.has(state.node.id)) return state
    throw new NoNodesError(this.#service, this.#states.size)
  }

  /** Lets a node take turns where it should. */
  #place(state: NodeState): void {
    const { node } = state
    if (state.isEjected && state.ejectedUntilMs <= this.#clock.now()) {
      state.isEjected = false
      state.missed = 0
    }
    const isCandidate = this.#states.get(node.id) === state && node.status === 'up' && node.weight > 0
    const turns = !isCandidate ? undefined : state.isEjected ? this.#ejected : this.#candidates
    if (state.turns !== turns || (turns && state.group?.weight !== node.weight)) {
      state.turns?.remove(state)
      state.turns = turns
      turns?.add(state, node.weight)
    }
    if (this.#ejected.size === 0) this.#wakeAt(Infinity)
    else if (turns === this.#ejected && state.ejectedUntilMs < this.#returnMs) this.#wakeAt(state.ejectedUntilMs)
  }

  #wakeAt(returnMs: number): void {
    if (returnMs === this.#returnMs) return
    this.#cancelReturn()
    this.#returnMs = returnMs
    this.#cancelReturn =
      returnMs < Infinity ? this.#clock.after(returnMs - this.#clock.now(), () => this.#return()) : () => {}
  }

  /** Takes those back whose time is over. */
  #return(): void {
    this.#returnMs = Infinity
    for (const state of [...this.#ejected]) this.#place(state)
  }
}
