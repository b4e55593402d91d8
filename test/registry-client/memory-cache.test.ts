import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { fold, type Removal, type View } from '@holdfast/registry-client/protocol'
import type { Session } from '../../registry-client/src/registry/connection.ts'
import { Entry, type Origin } from '../../registry-client/src/cache/entry.ts'
import { judge } from '../../registry-client/src/cache/gate.ts'
import { MemoryCache } from '../../registry-client/src/cache/memory-cache.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { idsOf, nodeOf, removalOf, viewOf } from '../support/sample-views.ts'

function world(maxNodes = 1_000, maxServices = 1_000) {
  const evicted: string[] = []
  const clock = new ManualClock()
  const memory = new MemoryCache({ maxNodes, maxServices, clock, evicted: (key) => evicted.push(key) })
  const entry = (key: string, nodes = 0) => {
    const made = new Entry('default', key)
    made.isFileKnown = true
    memory.add(key, made)
    memory.unpin(key, made)
    const ids = Array.from({ length: nodes }, (_, index) => `n${index}`)
    if (nodes > 0) offer(memory, key, made, viewOf('e:1', ids), 'registry', { heardMs: 0 })
    return made
  }
  return { memory, evicted, clock, entry }
}

function offer(
  memory: MemoryCache,
  key: string,
  entry: Entry,
  view: View,
  origin: Origin,
  confirmed: Session,
  removed: readonly Removal[] = [],
) {
  return memory.offer(key, entry, { view, origin, confirmed, removed })
}

function offers(...views: (readonly [Origin, View])[]) {
  const { memory, entry } = world()
  const made = entry('stock')
  const verdicts = views.map(([origin, view], at) => offer(memory, 'stock', made, view, origin, { heardMs: at }))
  return { verdicts, entry: made }
}

describe('the gate', () => {
  test('accepts anything over nothing', () => {
    assert.deepEqual(offers(['file', viewOf('e:1', ['a'])]).verdicts, ['accepted'])
    assert.deepEqual(offers(['registry', viewOf('e:1')]).verdicts, ['accepted'])
  })

  test('never goes back within an epoch, whoever speaks', () => {
    for (const origin of ['file', 'registry'] as const) {
      const { verdicts, entry } = offers(['registry', viewOf('e:5', ['a'])], [origin, viewOf('e:4', ['b'])])
      assert.deepEqual(verdicts, ['accepted', 'older'])
      assert.deepEqual(idsOf(entry.view), ['a'])
    }
  })

  test('takes a newer file, as another process wrote it', () => {
    const { verdicts, entry } = offers(['registry', viewOf('e:5', ['a'])], ['file', viewOf('e:6', ['b'])])
    assert.deepEqual(verdicts, ['accepted', 'accepted'])
    assert.equal(entry.origin, 'file')
  })

  test('lets the registry win over another epoch, and a file only over nothing', () => {
    const registry = offers(['registry', viewOf('e:500', ['a'])], ['registry', viewOf('f:1', ['b', 'a'])])
    assert.deepEqual(registry.verdicts, ['accepted', 'accepted'])
    const file = offers(['registry', viewOf('e:5', ['a'])], ['file', viewOf('f:900', ['b'])])
    assert.deepEqual(file.verdicts, ['accepted', 'older'])
    assert.deepEqual(idsOf(file.entry.view), ['a'])
    assert.deepEqual(file.entry.heard?.cursor, { epoch: 'e', revision: 5 })
  })

  test('counts the same cursor as a confirmation, which never goes back', () => {
    const { memory, entry, clock } = world()
    const made = entry('stock')
    offer(memory, 'stock', made, viewOf('e:5', ['a']), 'file', { heardMs: -1_000 })
    assert.equal(made.ageMs(clock), 1_000)
    const session: Session = { heardMs: 0 }
    assert.equal(offer(memory, 'stock', made, viewOf('e:5', ['a']), 'registry', session), 'current')
    assert.deepEqual([made.origin, made.ageMs(clock)], ['registry', 0])
    assert.equal(offer(memory, 'stock', made, viewOf('e:5', ['a']), 'file', { heardMs: -500 }), 'current')
    assert.deepEqual([made.origin, made.ageMs(clock)], ['registry', 0])
  })

  test('keeps an emptiness without proof aside until nodes or a proof come', () => {
    for (const [release, expected] of [
      [viewOf('e:8', ['b']), ['b']],
      [viewOf('e:8', [], { emptied: removalOf('a', 8) }), []],
    ] as const) {
      const { memory, entry } = world()
      const made = entry('stock')
      const session = { heardMs: 0 }
      offer(memory, 'stock', made, viewOf('e:5', ['a']), 'registry', session)
      assert.equal(offer(memory, 'stock', made, viewOf('e:7'), 'registry', session), 'unproven')
      assert.equal(made.quarantined, true)
      assert.deepEqual(idsOf(made.view), ['a'])
      assert.deepEqual(made.heard?.cursor.revision, 7)
      offer(memory, 'stock', made, release, 'registry', session)
      assert.deepEqual(idsOf(made.view), expected)
      assert.equal(made.quarantined, false)
    }
  })

  test('while it is kept aside the registry does not go back either', () => {
    const { verdicts, entry } = offers(
      ['registry', viewOf('e:5', ['a'])],
      ['registry', viewOf('e:7')],
      ['registry', viewOf('e:5', ['a'])],
      ['registry', viewOf('e:8', ['a', 'b'])],
    )
    assert.deepEqual(verdicts, ['accepted', 'unproven', 'older', 'accepted'])
    const revisions: (number | undefined)[] = []
    for (const revision of [9, 8, 7]) {
      entry.carried = viewOf('f:9', ['a'])
      entry.heard = viewOf('f:9')
      judge(entry, { view: viewOf(`f:${revision}`), origin: 'registry', confirmed: { heardMs: 0 } }, 0)
      revisions.push(entry.heard.cursor.revision)
    }
    assert.deepEqual(revisions, [9, 9, 9])
  })

  test('an empty file without proof empties nothing either', () => {
    const { verdicts, entry } = offers(['registry', viewOf('e:5', ['a'])], ['file', viewOf('e:9')])
    assert.deepEqual(verdicts, ['accepted', 'unproven'])
    assert.equal(entry.quarantined, false)
  })

  test('whatever is offered in whatever order: within an epoch cursors only grow, and nothing empties without proof', () => {
    const anOffer = fc.record({
      origin: fc.constantFrom<Origin>('file', 'registry'),
      epoch: fc.constantFrom('e', 'f'),
      revision: fc.integer({ min: 1, max: 9 }),
      nodes: fc.integer({ min: 0, max: 2 }),
      emptied: fc.option(fc.integer({ min: 1, max: 9 }), { nil: undefined }),
    })
    fc.assert(
      fc.property(fc.array(anOffer, { maxLength: 30 }), (offered) => {
        const { memory, entry } = world()
        const made = entry('stock')
        for (const { origin, epoch, revision, nodes, emptied } of offered) {
          const before = made.view
          const removal = emptied !== undefined && nodes === 0 ? removalOf('a', Math.min(emptied, revision)) : undefined
          const view = viewOf(`${epoch}:${revision}`, ['a', 'b'].slice(0, nodes), removal && { emptied: removal })
          offer(memory, 'stock', made, view, origin, { heardMs: 0 })
          const now = made.view!
          if (before?.cursor.epoch === now.cursor.epoch) assert.ok(now.cursor.revision >= before.cursor.revision)
          else if (before) assert.equal(origin, 'registry')
          if (before && before.nodes.size > 0 && now.nodes.size === 0) {
            assert.ok(now.emptied)
            if (now.cursor.epoch === before.cursor.epoch) assert.ok(now.emptied.revision > before.cursor.revision)
            else assert.deepEqual(idsOf(before), [now.emptied.id])
          }
        }
      }),
    )
  })

  test('what it heard carries on: a change after a quarantined view folds onto that', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    const session = { heardMs: 0 }
    offer(memory, 'stock', made, viewOf('e:5', ['a']), 'registry', session)
    offer(memory, 'stock', made, viewOf('f:0'), 'registry', session)
    const next = fold(made.heard, {
      kind: 'change',
      namespace: 'default',
      service: 'stock',
      after: { epoch: 'f', revision: 0 },
      cursor: { epoch: 'f', revision: 1 },
      put: [...viewOf('f:1', ['b']).nodes.values()],
      remove: [],
    })
    assert.equal(offer(memory, 'stock', made, next!, 'registry', session), 'unproven')
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b'])
  })

  test('after a store was lost its nodes stay until each has returned or was removed', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    const session = { heardMs: 0 }
    const hear = (view: View, removed: Removal[] = []) =>
      offer(memory, 'stock', made, view, 'registry', session, removed)
    hear(viewOf('e:5', ['a', 'b', 'c']))
    assert.equal(hear(viewOf('f:1', ['a'])), 'unproven')
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b', 'c'])
    assert.equal(hear(viewOf('f:2', [], { emptied: removalOf('a', 2) }), [removalOf('a', 2)]), 'unproven')
    assert.deepEqual(idsOf(made.served).sort(), ['b', 'c'])
    assert.equal(hear(viewOf('f:3', ['b'])), 'unproven')
    assert.equal(hear(viewOf('f:4', ['b', 'c'])), 'accepted')
    assert.deepEqual(idsOf(made.served), ['b', 'c'])
    assert.equal(made.quarantined, false)
  })

  test('while the registry speaks of another epoch, a file of the one before is history', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    offer(memory, 'stock', made, viewOf('e:5', ['a', 'b']), 'registry', { heardMs: 0 })
    assert.equal(offer(memory, 'stock', made, viewOf('f:2', ['c']), 'registry', { heardMs: 1 }), 'unproven')
    assert.equal(offer(memory, 'stock', made, viewOf('e:9', ['a']), 'file', { heardMs: 2 }), 'older')
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b', 'c'])
    assert.ok(made.quarantined)
    assert.deepEqual(made.served?.cursor, { epoch: 'f', revision: 2 })
  })

  test('a removal of an earlier life in the new epoch is no proof', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    const session = { heardMs: 0 }
    const late = nodeOf('a', { incarnation: 5 })
    offer(memory, 'stock', made, viewOf('e:5', [late]), 'registry', session)
    const gone = (incarnation: number, revision: number) => {
      const removal = removalOf('a', revision, 'lease_expired', incarnation)
      return offer(memory, 'stock', made, viewOf(`f:${revision}`, [], { emptied: removal }), 'registry', session, [
        removal,
      ])
    }
    assert.equal(gone(4, 8), 'unproven')
    assert.deepEqual(idsOf(made.served), ['a'])
    assert.equal(gone(5, 9), 'accepted')
    assert.deepEqual(idsOf(made.served), [])
  })

  test('a node with a lease that has not returned for long is let go, a static one and the last ones never', async () => {
    const { memory, entry, clock } = world()
    const made = entry('stock')
    const session = { heardMs: 0 }
    const known = viewOf('e:5', ['a', 'b', nodeOf('static', { leased: false })])
    offer(memory, 'stock', made, known, 'registry', session)
    offer(memory, 'stock', made, viewOf('f:0'), 'registry', session)
    await clock.advance(3_600_000)
    offer(memory, 'stock', made, viewOf('f:0'), 'registry', session)
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b', 'static'])
    offer(memory, 'stock', made, viewOf('f:1', ['a']), 'registry', session)
    await clock.advance(599_999)
    offer(memory, 'stock', made, viewOf('f:1', ['a']), 'registry', session)
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b', 'static'])
    await clock.advance(1)
    offer(memory, 'stock', made, viewOf('f:1', ['a']), 'registry', session)
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'static'])
  })
})

describe("a peer's word", () => {
  const session: Session = { heardMs: 1 }

  test('counts only where there is nothing', () => {
    assert.deepEqual(offers(['peer', viewOf('e:5', ['a'])]).verdicts, ['accepted'])
    for (const origin of ['file', 'peer', 'registry'] as const)
      for (const cursor of ['e:4', 'e:6', 'f:9']) {
        const { verdicts, entry } = offers([origin, viewOf('e:5', ['a'])], ['peer', viewOf(cursor, ['b'])])
        assert.deepEqual(verdicts, ['accepted', 'older'])
        assert.deepEqual([idsOf(entry.view), entry.origin], [['a'], origin])
      }
  })

  test('gives way to the registry, which knows the same place better', () => {
    const { verdicts, entry } = offers(['peer', viewOf('e:5', ['forged'])], ['registry', viewOf('e:5', ['a'])])
    assert.deepEqual(verdicts, ['accepted', 'accepted'])
    assert.deepEqual([idsOf(entry.view), entry.origin], [['a'], 'registry'])
  })

  test('is not emptied without proof', () => {
    for (const empty of ['e:5', 'e:7', 'f:0', 'f:3']) {
      const { entry } = offers(['peer', viewOf('e:5', ['a'])], ['registry', viewOf(empty)])
      assert.deepEqual(idsOf(entry.served), ['a'], empty)
    }
    const proof = viewOf('e:7', [], { emptied: removalOf('a', 7) })
    assert.deepEqual(idsOf(offers(['peer', viewOf('e:5', ['a'])], ['registry', proof]).entry.served), [])
  })

  test('that is later than the registry stays, until the registry has gone past it', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    offer(memory, 'stock', made, viewOf('e:9', ['peer']), 'peer', { heardMs: 0 })
    assert.equal(offer(memory, 'stock', made, viewOf('e:7', ['a']), 'registry', session), 'older')
    assert.deepEqual([idsOf(made.served), made.origin], [['peer'], 'peer'])
    // The base of the next change is what the registry said.
    assert.deepEqual(made.heard?.cursor, { epoch: 'e', revision: 7 })
    assert.equal(offer(memory, 'stock', made, viewOf('e:10', ['a', 'b']), 'registry', session), 'accepted')
    assert.deepEqual([idsOf(made.served), made.origin], [['a', 'b'], 'registry'])
  })
})

describe('negative answers', () => {
  test('never stand in the place of a view, not even of one without nodes', () => {
    const known = [
      viewOf('e:5', ['a']),
      viewOf('e:5', [], { emptied: removalOf('a', 5) }),
      viewOf('e:5', [], { policy: { timeout: '1s' } }),
    ]
    for (const view of known)
      for (const unknown of ['e:0', 'f:0'])
        for (const origin of ['file', 'registry'] as const) {
          const { entry } = offers([origin, view], ['registry', viewOf(unknown)])
          assert.equal(entry.view, view)
          assert.deepEqual(idsOf(entry.served), idsOf(view))
          assert.deepEqual(entry.served?.policy, view.policy)
          assert.equal(entry.quarantine?.reason, unknown === 'f:0' ? 'unknown' : undefined)
        }
  })

  test('give way to a view', () => {
    for (const [origin, cursor] of [
      ['registry', 'e:1'],
      ['registry', 'f:1'],
      ['file', 'e:1'],
    ] as const) {
      const { verdicts } = offers(['registry', viewOf('e:0')], [origin, viewOf(cursor, ['a'])])
      assert.deepEqual(verdicts, ['accepted', 'accepted'])
    }
  })
})

describe('what a view is known to reflect', () => {
  test('is its own cursor until a life of the stream covers it, then as far as that has told, and never goes back', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    assert.equal(made.asOf, undefined)
    offer(memory, 'stock', made, viewOf('e:5', ['a']), 'file', { heardMs: 0 })
    assert.deepEqual(made.asOf, { epoch: 'e', revision: 5 })
    const session: Session = { heardMs: 1, asOf: { epoch: 'e', revision: 9 } }
    made.cover(session)
    assert.deepEqual(made.asOf, { epoch: 'e', revision: 9 })
    session.asOf = { epoch: 'e', revision: 12 }
    assert.deepEqual(made.asOf, { epoch: 'e', revision: 12 })
    made.cover({ heardMs: 2, asOf: { epoch: 'e', revision: 10 } })
    assert.deepEqual(made.asOf, { epoch: 'e', revision: 12 })
    made.cover(undefined)
    assert.deepEqual(made.asOf, { epoch: 'e', revision: 12 })
  })

  test('is of the history of what is served', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    const session: Session = { heardMs: 1, asOf: { epoch: 'e', revision: 9 } }
    offer(memory, 'stock', made, viewOf('e:5', ['a']), 'registry', session)
    made.cover(session)
    offer(memory, 'stock', made, viewOf('f:2', ['b']), 'registry', session)
    assert.equal(made.quarantined, true)
    assert.deepEqual(made.asOf, { epoch: 'f', revision: 2 })
  })
})

describe('eviction', () => {
  test('counts nodes, as many as an entry has by now, and one for the service; a change is no use', () => {
    const { memory, evicted, entry } = world(11)
    const first = entry('first', 1)
    const second = entry('second', 1)
    entry('third', 6)
    assert.deepEqual(evicted, [])
    memory.get('first')
    offer(memory, 'second', second, viewOf('e:2', ['a', 'b', 'c']), 'registry', { heardMs: 0 })
    assert.deepEqual(evicted, ['second'])
    offer(memory, 'first', first, viewOf('e:2', ['a', 'b', 'c', 'd']), 'registry', { heardMs: 0 })
    assert.deepEqual(evicted, ['second', 'third'])
    assert.equal(memory.get('first'), first)
    assert.deepEqual(memory.status(), {
      services: 1,
      pinned: 0,
      nodes: 4,
      evicted: { nodes: 2, services: 0, names: 0 },
    })
  })

  test('counts every view that an entry holds: what the registry said, what is carried on, and an override', () => {
    const { memory, entry } = world(100)
    const made = entry('stock', 3)
    assert.equal(memory.status().nodes, 3)
    offer(memory, 'stock', made, viewOf('f:1', ['n0', 'new']), 'registry', { heardMs: 0 })
    assert.equal(made.quarantined, true)
    assert.equal(memory.status().nodes, 3 + 2 + 4)
    memory.override('stock', made, viewOf('f:1', ['x', 'y']))
    assert.equal(memory.status().nodes, 3 + 2 + 4 + 2)
    memory.pin('stock', made)
    assert.equal(memory.status().nodes, 11)
    memory.override('stock', made, undefined)
    memory.unpin('stock', made)
    assert.equal(memory.status().nodes, 9)
    offer(memory, 'stock', made, viewOf('f:2', ['n0', 'n1', 'n2']), 'registry', { heardMs: 0 })
    assert.equal(memory.status().nodes, 3)
    memory.evict('stock')
    assert.equal(memory.status().nodes, 0)
  })

  test('an override and what is carried on make others give way too', () => {
    const { memory, evicted, entry } = world(8)
    entry('other', 2)
    const made = entry('stock', 3)
    assert.deepEqual(evicted, [])
    memory.override('stock', made, viewOf('e:1', ['x', 'y']))
    assert.deepEqual(evicted, ['other'])
  })

  test('counts which bound was met', () => {
    const { memory, evicted, entry } = world(1_000, 2)
    for (const key of ['a', 'b', 'c', 'd']) entry(key, 1)
    assert.deepEqual(evicted, ['a', 'b'])
    assert.deepEqual(memory.status().evicted, { nodes: 0, services: 2, names: 0 })
  })

  test('takes what was used least recently', () => {
    const { memory, evicted, entry } = world(6)
    entry('a', 1)
    entry('b', 1)
    entry('c', 1)
    memory.get('a')
    memory.peek('b')
    entry('d', 1)
    assert.deepEqual(evicted, ['b'])
  })

  test('keeps a service that is larger than all of the cache', () => {
    const { memory, entry } = world(3)
    entry('small', 1)
    const large = entry('large', 10)
    assert.equal(memory.get('large'), large)
    assert.equal(large.view?.nodes.size, 10)
  })

  test('leaves alone what is pinned, until the last pin is released', () => {
    const { memory, evicted, entry } = world(4)
    const pinned = entry('pinned', 3)
    memory.pin('pinned', pinned)
    memory.pin('pinned', pinned)
    entry('a', 3)
    entry('b', 3)
    assert.deepEqual(evicted, ['a'])
    memory.unpin('pinned', pinned)
    assert.equal(memory.peek('pinned'), pinned)
    entry('c', 3)
    assert.deepEqual(evicted, ['a', 'b'])
    memory.unpin('pinned', pinned)
    assert.deepEqual(evicted, ['a', 'b', 'c'])
    assert.equal(memory.peek('pinned'), pinned)
    memory.unpin('pinned', pinned)
    entry('d', 3)
    assert.deepEqual(evicted, ['a', 'b', 'c', 'pinned'])
  })

  test('an evicted entry does not come back by a late offer', () => {
    const { memory, evicted, entry } = world(4)
    const first = entry('first', 3)
    entry('second', 3)
    assert.deepEqual(evicted, ['first'])
    offer(memory, 'first', first, viewOf('e:9', ['late']), 'file', { heardMs: 0 })
    assert.equal(memory.peek('first'), undefined)
    assert.equal(memory.size, 1)
  })

  test('clearing takes pinned ones too, and they do not come back when they are released', () => {
    const { memory, evicted, entry } = world()
    const pinned = entry('pinned', 1)
    entry('a', 1)
    memory.pin('pinned', pinned)
    assert.deepEqual([...memory.entries()].map(([key]) => key).sort(), ['a', 'pinned'])
    memory.clear()
    memory.unpin('pinned', pinned)
    assert.equal(memory.size, 0)
    assert.deepEqual(evicted, [])
  })
})
