/** Shares over time, against a model that knows nothing of turns: at each pick everyone is due their part of one. */

import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { ServiceNode } from '@holdfast/registry-client/protocol'
import { Selector, type SelectorStrategy } from '../../registry-client/src/selection/selector.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { nodeOf, viewOf } from '../support/sample-views.ts'
import { seededRandom } from '../support/seeded-random.ts'

const SEEDS = 60
const STEPS = 400

interface ModelNode {
  node: ServiceNode
  failures: number
  ejections: number
  untilMs: number
  /** What it was due, and what it got, since it was known under this incarnation. */
  due: number
  got: number
}

/** Everything by looking at everyone. */
class Model {
  readonly nodes = new Map<string, ModelNode>()
  readonly clock: ManualClock

  constructor(clock: ManualClock) {
    this.clock = clock
  }

  update(nodes: readonly ServiceNode[]): void {
    for (const id of [...this.nodes.keys()]) if (!nodes.some((node) => node.id === id)) this.nodes.delete(id)
    for (const node of nodes) {
      const known = this.nodes.get(node.id)
      if (known?.node.incarnation === node.incarnation) known.node = node
      else this.nodes.set(node.id, { node, failures: 0, ejections: 0, untilMs: -Infinity, due: 0, got: 0 })
    }
  }

  isOut({ untilMs }: ModelNode): boolean {
    return untilMs > this.clock.now()
  }

  get takers(): ModelNode[] {
    return [...this.nodes.values()].filter(({ node }) => node.status === 'up' && node.weight > 0)
  }

  get candidates(): ModelNode[] {
    const inside = this.takers.filter((known) => !this.isOut(known))
    return inside.length > 0 ? inside : this.takers
  }

  picked(id: string): void {
    const { candidates } = this
    const total = candidates.reduce((sum, { node }) => sum + node.weight, 0)
    for (const known of candidates) known.due += known.node.weight / total
    const known = candidates.find(({ node }) => node.id === id)
    assert.ok(known, `${id} is no candidate`)
    known.got++
  }

  done(id: string, outcome: 'ok' | 'failed'): void {
    const known = this.nodes.get(id)!
    const nowMs = this.clock.now()
    if (outcome === 'ok') {
      known.failures = 0
      if (this.isOut(known)) known.untilMs = nowMs
    } else if (++known.failures >= 3 && !this.isOut(known)) {
      if (this.takers.filter((other) => !this.isOut(other)).length < 2) return
      if (nowMs - known.untilMs > 300_000) known.ejections = 0
      known.failures = 0
      known.untilMs = nowMs + Math.min(30_000 * ++known.ejections, 300_000)
    }
  }
}

for (const strategy of ['round_robin', 'random'] as const)
  test(`everyone gets their share through changes, ejections and returns (${strategy})`, async () => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      const random = seededRandom(seed)
      const below = (limit: number) => Math.floor(random() * limit)
      const clock = new ManualClock()
      const selector = new Selector('stock', clock, seededRandom(seed + 1_000), strategy)
      const model = new Model(clock)
      const weights = [[100], [1, 2, 5], [1, 10, 100, 1000]][seed % 3]!
      const made = (id: number, incarnation = 1) =>
        nodeOf(`n${id}`, {
          incarnation,
          weight: random() < 0.05 ? 0 : weights[below(weights.length)]!,
          status: (['up', 'up', 'up', 'up', 'up', 'down', 'draining'] as const)[below(7)]!,
        })
      let nodes = Array.from({ length: 1 + below(12) }, (_, id) => made(id))
      selector.update(viewOf('e:1', nodes))
      model.update(nodes)
      for (let step = 2; step < STEPS; step++) {
        const message = `seed ${seed}, step ${step}`
        if (random() < 0.5) {
          // What is replaced keeps its place in the view; what comes stands at its end.
          const changed = made(below(15), 1 + below(3))
          const at = nodes.findIndex(({ id }) => id === changed.id)
          if (at < 0) nodes = [...nodes, changed]
          else nodes = random() < 0.2 ? nodes.toSpliced(at, 1) : nodes.with(at, changed)
          selector.update(viewOf(`e:${step}`, nodes))
          model.update(nodes)
        }
        if (random() < 0.1) await clock.advance(below(40_000))
        for (let picks = below(20); picks > 0 && model.takers.length > 0; picks--) {
          const pick = selector.pick()
          model.picked(pick.node.id)
          assert.equal(pick.node.weight, model.nodes.get(pick.node.id)!.node.weight, message)
          const outcome = random() < 0.3 && pick.node.id < 'n3' ? 'failed' : 'ok'
          pick.done(outcome)
          model.done(pick.node.id, outcome)
        }
        assert.deepEqual(
          selector
            .report()
            .map(({ id, pending, failures, ejectedForMs }) => [id, pending, failures, ejectedForMs])
            .sort(),
          [...model.nodes.values()]
            .map(({ node, failures, untilMs }) => [node.id, 0, failures, Math.max(0, untilMs - clock.now())])
            .sort(),
          message,
        )
      }
      for (const { node, due, got } of model.nodes.values()) {
        // Turns stray from their due only where someone comes or leaves; a draw strays at every pick.
        const bound = 4 * Math.sqrt(due + 1) + 2
        assert.ok(Math.abs(got - due) <= bound, `seed ${seed}: ${node.id} got ${got} of ${due} ± ${bound}`)
      }
    }
  })

describe('a storm of changes, one between each two picks', () => {
  /** How often each was picked. */
  function storm(
    strategy: SelectorStrategy,
    seed: number,
    picks: number,
    nodesAt: (at: number) => (string | ServiceNode)[],
  ): Map<string, number> {
    const selector = new Selector('stock', new ManualClock(), seededRandom(seed), strategy)
    const counts = new Map<string, number>()
    for (let at = 1; at <= picks; at++) {
      selector.update(viewOf(`e:${at}`, nodesAt(at)))
      const pick = selector.pick()
      pick.done('ok')
      counts.set(pick.node.id, (counts.get(pick.node.id) ?? 0) + 1)
    }
    return counts
  }

  const ids = Array.from({ length: 10 }, (_, at) => `n${at}`)

  test('leaves turns as they are when it only describes nodes anew', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const counts = storm('round_robin', seed, 1_000, (at) =>
        ids.map((id) => nodeOf(id, { labels: { build: `${at}` } })),
      )
      assert.deepEqual([...counts.values()], new Array(10).fill(100), `seed ${seed}`)
    }
  })

  const storms: Record<string, (at: number) => (string | ServiceNode)[]> = {
    'a node that comes and goes': (at) => (at % 2 === 0 ? [...ids, 'other'] : ids),
    'a new node each time': (at) => [...ids, `new-${at}`],
    'a node that is up and down in turn': (at) => [
      ...ids,
      nodeOf('other', { status: at % 2 === 0 ? 'up' : 'draining' }),
    ],
    'a node that begins a new life each time': (at) => [...ids, nodeOf('other', { incarnation: at })],
    'a node whose weight changes each time': (at) => [...ids, nodeOf('other', { weight: 100 + (at % 2) })],
    // Not in step with the picks: where a change comes back with each turn of one node, that node can be missed.
    'one weight or the other for everyone': (at) =>
      ids.map((id, index) => nodeOf(id, { weight: 100 + (Math.imul(at * 31 + index * 17, 0x9e3779b1) >>> 31) })),
  }
  for (const [name, nodesAt] of Object.entries(storms))
    test(`gives everyone their share: ${name}`, () => {
      const picks = 4_000
      for (let seed = 1; seed <= 5; seed++) {
        const counts = storm('round_robin', seed, picks, nodesAt)
        const due = new Map<string, number>()
        for (let at = 1; at <= picks; at++) {
          const { nodes } = viewOf('e:1', nodesAt(at))
          const takers = [...nodes.values()].filter(({ status }) => status === 'up')
          const total = takers.reduce((sum, { weight }) => sum + weight, 0)
          for (const { id, weight } of takers) due.set(id, (due.get(id) ?? 0) + weight / total)
        }
        for (const [id, share] of due) {
          const bound = 4 * Math.sqrt(share) + 2
          const got = counts.get(id) ?? 0
          assert.ok(Math.abs(got - share) <= bound, `seed ${seed}: ${id} got ${got} of ${share} ± ${bound}`)
        }
      }
    })
})
