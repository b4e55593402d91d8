import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { NoNodesError, type Pick } from '@holdfast/registry-client'
import { Selector, type SelectorStrategy } from '../../registry-client/src/selection/selector.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { nodeOf, viewOf } from '../support/sample-views.ts'
import { seededRandom } from '../support/seeded-random.ts'

function selectorOf(
  weights: Readonly<Record<string, number>>,
  options: { seed?: number; strategy?: SelectorStrategy } = {},
): { selector: Selector; clock: ManualClock } {
  const clock = new ManualClock()
  const selector = new Selector('stock', clock, seededRandom(options.seed ?? 1), options.strategy)
  selector.update(weighted(1, weights))
  return { selector, clock }
}

function weighted(revision: number, weights: Readonly<Record<string, number>>) {
  return viewOf(
    `e:${revision}`,
    Object.entries(weights).map(([id, weight]) => nodeOf(id, { weight })),
  )
}

function picks(selector: Selector, count: number, not?: ReadonlySet<string>): string[] {
  return Array.from({ length: count }, () => {
    const pick = selector.pick(not)
    pick.done('ok')
    return pick.node.id
  })
}

function tally(ids: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const id of ids) counts[id] = (counts[id] ?? 0) + 1
  return counts
}

/** Fails calls of one node until it is out, or `calls` have failed. */
function failNode(selector: Selector, id: string, calls = 3): void {
  for (let failed = 0; failed < calls;) {
    const pick = selector.pick()
    if (pick.node.id === id) {
      pick.done('failed')
      failed++
    } else pick.done('ignored')
  }
}

describe('turns', () => {
  test('give every node of one weight the same share, each once a round', () => {
    const { selector } = selectorOf({ a: 100, b: 100, c: 100 })
    const ids = picks(selector, 300)
    assert.deepEqual(tally(ids), { a: 100, b: 100, c: 100 })
    for (let at = 0; at + 3 <= ids.length; at++) assert.equal(new Set(ids.slice(at, at + 3)).size, 3)
  })

  for (const weights of [
    { a: 1, b: 2, c: 3 },
    { a: 5, b: 1, c: 1 },
    { a: 10, b: 90 },
    { a: 1, b: 1, c: 7, d: 7, e: 13 },
    { a: 1000, b: 1, c: 999 },
  ] as Record<string, number>[])
    test(`give ${JSON.stringify(weights)} exactly its shares over each full cycle, whatever the seed`, () => {
      const total = Object.values(weights).reduce((sum, weight) => sum + weight)
      for (let seed = 0; seed < 10; seed++) {
        const { selector } = selectorOf(weights, { seed })
        for (let cycle = 0; cycle < 5; cycle++) assert.deepEqual(sorted(tally(picks(selector, total))), weights)
      }
    })

  test('are smooth: a heavy node is not called in one run', () => {
    for (let seed = 0; seed < 20; seed++) {
      const { selector } = selectorOf({ a: 5, b: 1, c: 1 }, { seed })
      // Five of seven turns: between two turns of another node at most five of them fall together.
      assert.ok(longestRun(picks(selector, 700)) <= 5)
      const even = selectorOf({ a: 3, b: 2 }, { seed })
      assert.ok(longestRun(picks(even.selector, 500)) <= 2)
    }
  })

  test('of clients that start together begin at different nodes', () => {
    const first = new Set<string>()
    for (let seed = 0; seed < 50; seed++)
      first.add(selectorOf({ a: 1, b: 1, c: 1, d: 1 }, { seed }).selector.pick().node.id)
    assert.equal(first.size, 4)
  })

  test('never come to nodes without weight, or that are down or draining', () => {
    const { selector } = selectorOf({})
    selector.update(
      viewOf('e:2', [
        'a',
        nodeOf('zero', { weight: 0 }),
        nodeOf('down', { status: 'down' }),
        nodeOf('draining', { status: 'draining' }),
      ]),
    )
    assert.deepEqual(tally(picks(selector, 100)), { a: 100 })
    selector.update(viewOf('e:3', [nodeOf('zero', { weight: 0 }), nodeOf('down', { status: 'down' })]))
    assert.throws(
      () => selector.pick(),
      (error) => error instanceof NoNodesError && error.known === 2 && error.code === 'no_nodes',
    )
  })

  test('cost the same with ten nodes as with ten thousand of one weight', () => {
    const { selector } = selectorOf(
      Object.fromEntries(Array.from({ length: 10_000 }, (_, index) => [`n${index}`, 100])),
    )
    assert.equal(new Set(picks(selector, 10_000)).size, 10_000)
  })
})

describe('chance', () => {
  test('gives each node its share within four standard deviations', () => {
    const weights = { a: 1, b: 2, c: 3, d: 3, e: 91 } as Record<string, number>
    for (let seed = 1; seed <= 5; seed++) {
      const { selector } = selectorOf(weights, { seed, strategy: 'random' })
      const drawn = 20_000
      const counts = tally(picks(selector, drawn))
      for (const [id, weight] of Object.entries(weights)) {
        const share = weight / 100
        const bound = 4 * Math.sqrt(drawn * share * (1 - share))
        const off = Math.abs(counts[id]! - drawn * share)
        assert.ok(
          off <= bound,
          `seed ${seed}: ${id} was picked ${counts[id]} times, expected ${drawn * share} ± ${bound}`,
        )
      }
    }
  })

  test('draws the same from the same seed', () => {
    const draw = (seed: number) => picks(selectorOf({ a: 1, b: 2 }, { seed, strategy: 'random' }).selector, 50)
    assert.deepEqual(draw(3), draw(3))
    assert.notDeepEqual(draw(3), draw(4))
  })
})

describe('nodes tried already', () => {
  for (const strategy of ['round_robin', 'random'] as const) {
    test(`are passed over (${strategy})`, () => {
      const { selector } = selectorOf({ a: 1, b: 100, c: 1 }, { strategy })
      for (const id of picks(selector, 200, new Set(['b']))) assert.notEqual(id, 'b')
      assert.deepEqual(new Set(picks(selector, 50, new Set(['b', 'c']))), new Set(['a']))
    })

    test(`leave nothing when they are all (${strategy})`, () => {
      const { selector } = selectorOf({ a: 1, b: 2 }, { strategy })
      assert.throws(() => selector.pick(new Set(['a', 'b'])), NoNodesError)
      assert.equal(
        selector.report().reduce((sum, { pending }) => sum + pending, 0),
        0,
      )
      assert.ok(selector.pick(new Set(['gone', 'x', 'y', 'z'])))
    })
  }
})

describe('state', () => {
  test('of a node is kept by its id over changes of the view', () => {
    const { selector } = selectorOf({ a: 1 })
    const running = selector.pick()
    selector.pick().done('failed')
    selector.update(weighted(2, { b: 5, a: 7 }))
    const report = selector.report().find(({ id }) => id === 'a')!
    assert.deepEqual([report.pending, report.failures], [1, 1])
    running.done('ok')
    assert.deepEqual(
      selector.report().map(({ pending, failures }) => [pending, failures]),
      [
        [0, 0],
        [0, 0],
      ],
    )
  })

  test('starts afresh with a new incarnation, and calls of the old life do not count against it', () => {
    const { selector } = selectorOf({ a: 1, b: 1 })
    const old: Pick[] = []
    while (old.length < 3) {
      const pick = selector.pick()
      if (pick.node.id === 'a') old.push(pick)
    }
    selector.update(viewOf('e:2', [nodeOf('a', { incarnation: 2 }), 'b']))
    for (const pick of old) pick.done('failed')
    const report = selector.report().find(({ id }) => id === 'a')!
    assert.deepEqual([report.pending, report.failures, report.ejectedForMs], [0, 0, 0])
  })

  test('of a node that left is gone', () => {
    const { selector } = selectorOf({ a: 1, b: 1 })
    selector.update(weighted(2, { b: 1 }))
    assert.deepEqual(
      selector.report().map(({ id }) => id),
      ['b'],
    )
    assert.deepEqual(tally(picks(selector, 10)), { b: 10 })
    selector.update(undefined)
    assert.throws(() => selector.pick(), /stock has no nodes/)
  })

  test('counts the calls that run', () => {
    const { selector } = selectorOf({ a: 1 })
    const running = [selector.pick(), selector.pick(), selector.pick()]
    assert.equal(selector.report()[0]!.pending, 3)
    running[0]!.done('failed')
    running[1]!.done('ignored')
    running[2]!.done('ok')
    assert.equal(selector.report()[0]!.pending, 0)
  })
})

describe('ejection', () => {
  test('takes a node out after three failures in a row, and brings it back after 30 s', async () => {
    const { selector, clock } = selectorOf({ a: 1, b: 1, c: 1 })
    failNode(selector, 'a', 2)
    assert.ok(picks(selector, 9).includes('a'))
    failNode(selector, 'a')
    assert.deepEqual(tally(picks(selector, 100)), { b: 50, c: 50 })
    assert.equal(selector.report().find(({ id }) => id === 'a')!.ejectedForMs, 30_000)
    await clock.advance(29_999)
    assert.equal(picks(selector, 9).includes('a'), false)
    await clock.advance(1)
    assert.deepEqual(sorted(tally(picks(selector, 9))), { a: 3, b: 3, c: 3 })
  })

  test('does not count failures that a success came between, nor calls that say nothing', () => {
    const { selector } = selectorOf({ a: 1, b: 1 })
    for (let i = 0; i < 10; i++) {
      failNode(selector, 'a', 2)
      let pick: Pick
      do {
        pick = selector.pick()
        if (pick.node.id === 'b') pick.done('ignored')
      } while (pick.node.id !== 'a')
      pick.done('ok')
    }
    for (const { failures, ejectedForMs } of selector.report()) assert.deepEqual([failures, ejectedForMs], [0, 0])
  })

  test('lasts longer each time, up to five minutes, and short again after good conduct', async () => {
    const { selector, clock } = selectorOf({ a: 1, b: 1 })
    const lasted: number[] = []
    for (let i = 0; i < 12; i++) {
      failNode(selector, 'a')
      const { ejectedForMs } = selector.report().find(({ id }) => id === 'a')!
      lasted.push(ejectedForMs / 1_000)
      await clock.advance(ejectedForMs)
    }
    assert.deepEqual(lasted, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300])
    await clock.advance(300_001)
    failNode(selector, 'a')
    assert.equal(selector.report().find(({ id }) => id === 'a')!.ejectedForMs, 30_000)
  })

  test('never takes the last node, however it fails', () => {
    const { selector } = selectorOf({ a: 1, b: 1 })
    failNode(selector, 'a')
    for (let i = 0; i < 20; i++) {
      const pick = selector.pick()
      assert.equal(pick.node.id, 'b')
      pick.done('failed')
    }
    const alone = selectorOf({ only: 1 })
    for (let i = 0; i < 20; i++) alone.selector.pick().done('failed')
    assert.equal(alone.selector.pick().node.id, 'only')
    assert.equal(alone.clock.pending, 0)
  })

  test('is lifted when every other node went: one that may work beats none', () => {
    const { selector } = selectorOf({ a: 1, b: 1, c: 1 })
    failNode(selector, 'a')
    failNode(selector, 'b')
    selector.update(viewOf('e:2', ['a', 'b', nodeOf('c', { status: 'down' })]))
    const ids = Array.from({ length: 10 }, () => selector.pick().node.id)
    assert.deepEqual(sorted(tally(ids)), { a: 5, b: 5 })
  })

  test('ends as soon as the node answers after all', () => {
    const { selector, clock } = selectorOf({ a: 1, b: 1 })
    const running = [selector.pick(), selector.pick()].find(({ node }) => node.id === 'a')!
    failNode(selector, 'a')
    assert.deepEqual(tally(picks(selector, 4)), { b: 4 })
    running.done('ok')
    assert.deepEqual(sorted(tally(picks(selector, 4))), { a: 2, b: 2 })
    assert.equal(clock.pending, 0)
  })

  test('gives way to a call that has tried every other node', () => {
    const { selector } = selectorOf({ a: 1, b: 1 })
    failNode(selector, 'a')
    assert.equal(selector.pick(new Set(['b'])).node.id, 'a')
    assert.throws(() => selector.pick(new Set(['a', 'b'])), NoNodesError)
  })

  test('survives changes of the view', () => {
    const { selector } = selectorOf({ a: 1, b: 1 })
    failNode(selector, 'a')
    selector.update(weighted(2, { a: 3, b: 1, c: 1 }))
    assert.equal(picks(selector, 50).includes('a'), false)
  })

  test('sets no timer after the selector was closed', () => {
    const { selector, clock } = selectorOf({ a: 1, b: 1, c: 1 })
    failNode(selector, 'a')
    assert.equal(clock.pending, 1)
    const running = selector.pick()
    selector.close()
    assert.equal(clock.pending, 0)
    for (let i = 0; i < 5; i++) running.done('failed')
    assert.equal(clock.pending, 0)
    assert.throws(() => selector.pick(), NoNodesError)
  })
})

function sorted(counts: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(counts).sort(([a], [b]) => (a < b ? -1 : 1)))
}

function longestRun(ids: readonly string[]): number {
  let longest = 0
  let run = 0
  for (const [at, id] of ids.entries()) longest = Math.max(longest, (run = id === ids[at - 1] ? run + 1 : 1))
  return longest
}
