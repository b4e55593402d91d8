import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { fold, type Removal, type View } from '@holdfast/registry-client/protocol'
import type { Session } from '../../registry-client/src/connection.ts'
import { Entry, MemoryCache, type Origin } from '../../registry-client/src/memory-cache.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { idsOf, nodeOf, removalOf, viewOf } from '../support/sample-views.ts'

function world(maxNodes = 1_000, maxServices = 1_000) {
  const evicted: string[] = []
  const clock = new ManualClock()
  const memory = new MemoryCache({ maxNodes, maxServices, clock, evicted: (key) => evicted.push(key) })
  const entry = (key: string, nodes = 0) => {
    const made = new Entry('default', key)
    memory.add(key, made)
    const ids = Array.from({ length: nodes }, (_, index) => `n${index}`)
    if (nodes > 0) memory.offer(key, made, viewOf('e:1', ids), 'registry', { heardMs: 0 })
    return made
  }
  return { memory, evicted, clock, entry }
}

function offers(...views: (readonly [Origin, View])[]) {
  const { memory, entry } = world()
  const made = entry('stock')
  const verdicts = views.map(([origin, view], at) => memory.offer('stock', made, view, origin, { heardMs: at }))
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
    memory.offer('stock', made, viewOf('e:5', ['a']), 'file', { heardMs: -1_000 })
    assert.equal(made.ageMs(clock), 1_000)
    const session: Session = { heardMs: 0 }
    assert.equal(memory.offer('stock', made, viewOf('e:5', ['a']), 'registry', session), 'current')
    assert.deepEqual([made.origin, made.ageMs(clock)], ['registry', 0])
    assert.equal(memory.offer('stock', made, viewOf('e:5', ['a']), 'file', { heardMs: -500 }), 'current')
    assert.deepEqual([made.origin, made.ageMs(clock)], ['registry', 0])
  })

  test('keeps an emptiness without proof aside until nodes or a proof come', () => {
    for (const [release, expected] of [
      [viewOf('e:8', ['b']), ['b']],
      [viewOf('e:8', [], { emptied: removalOf('a', 8) }), []],
      [viewOf('e:5', ['a']), ['a']],
    ] as const) {
      const { memory, entry } = world()
      const made = entry('stock')
      const session = { heardMs: 0 }
      memory.offer('stock', made, viewOf('e:5', ['a']), 'registry', session)
      assert.equal(memory.offer('stock', made, viewOf('e:7'), 'registry', session), 'unproven')
      assert.equal(made.quarantined, true)
      assert.deepEqual(idsOf(made.view), ['a'])
      assert.deepEqual(made.heard?.cursor.revision, 7)
      memory.offer('stock', made, release, 'registry', session)
      assert.deepEqual(idsOf(made.view), expected)
      assert.equal(made.quarantined, false)
    }
  })

  test('an empty file without proof empties nothing either', () => {
    const { verdicts, entry } = offers(['registry', viewOf('e:5', ['a'])], ['file', viewOf('e:9')])
    assert.deepEqual(verdicts, ['accepted', 'unproven'])
    assert.equal(entry.quarantined, false)
  })

  test('whatever is offered in whatever order: within an epoch cursors only grow, and nothing empties without proof', () => {
    const offer = fc.record({
      origin: fc.constantFrom<Origin>('file', 'registry'),
      epoch: fc.constantFrom('e', 'f'),
      revision: fc.integer({ min: 1, max: 9 }),
      nodes: fc.integer({ min: 0, max: 2 }),
      emptied: fc.option(fc.integer({ min: 1, max: 9 }), { nil: undefined }),
    })
    fc.assert(
      fc.property(fc.array(offer, { maxLength: 30 }), (offered) => {
        const { memory, entry } = world()
        const made = entry('stock')
        for (const { origin, epoch, revision, nodes, emptied } of offered) {
          const before = made.view
          const removal = emptied !== undefined && nodes === 0 ? removalOf('a', Math.min(emptied, revision)) : undefined
          const view = viewOf(`${epoch}:${revision}`, ['a', 'b'].slice(0, nodes), removal && { emptied: removal })
          memory.offer('stock', made, view, origin, { heardMs: 0 })
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
    memory.offer('stock', made, viewOf('e:5', ['a']), 'registry', session)
    memory.offer('stock', made, viewOf('f:0'), 'registry', session)
    const next = fold(made.heard, {
      kind: 'change',
      namespace: 'default',
      service: 'stock',
      after: { epoch: 'f', revision: 0 },
      cursor: { epoch: 'f', revision: 1 },
      put: [...viewOf('f:1', ['b']).nodes.values()],
      remove: [],
    })
    assert.equal(memory.offer('stock', made, next!, 'registry', session), 'unproven')
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b'])
  })

  test('after a store was lost its nodes stay until each has returned or was removed', () => {
    const { memory, entry } = world()
    const made = entry('stock')
    const session = { heardMs: 0 }
    const offer = (view: View, removed: Removal[] = []) =>
      memory.offer('stock', made, view, 'registry', session, removed)
    offer(viewOf('e:5', ['a', 'b', 'c']))
    assert.equal(offer(viewOf('f:1', ['a'])), 'unproven')
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b', 'c'])
    assert.equal(offer(viewOf('f:2', [], { emptied: removalOf('a', 2) }), [removalOf('a', 2)]), 'unproven')
    assert.deepEqual(idsOf(made.served).sort(), ['b', 'c'])
    assert.equal(offer(viewOf('f:3', ['b'])), 'unproven')
    assert.equal(offer(viewOf('f:4', ['b', 'c'])), 'accepted')
    assert.deepEqual(idsOf(made.served), ['b', 'c'])
    assert.equal(made.quarantined, false)
  })

  test('a node with a lease that has not returned for long is let go, a static one and the last ones never', async () => {
    const { memory, entry, clock } = world()
    const made = entry('stock')
    const session = { heardMs: 0 }
    const known = viewOf('e:5', ['a', 'b', nodeOf('static', { leased: false })])
    memory.offer('stock', made, known, 'registry', session)
    memory.offer('stock', made, viewOf('f:0'), 'registry', session)
    await clock.advance(3_600_000)
    memory.offer('stock', made, viewOf('f:0'), 'registry', session)
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b', 'static'])
    memory.offer('stock', made, viewOf('f:1', ['a']), 'registry', session)
    await clock.advance(599_999)
    memory.offer('stock', made, viewOf('f:1', ['a']), 'registry', session)
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'b', 'static'])
    await clock.advance(1)
    memory.offer('stock', made, viewOf('f:1', ['a']), 'registry', session)
    assert.deepEqual(idsOf(made.served).sort(), ['a', 'static'])
  })
})

describe('eviction', () => {
  test('counts nodes, as many as an entry has by now, and one for the service', () => {
    const { memory, evicted, entry } = world(10)
    const first = entry('first')
    entry('second')
    entry('third', 7)
    assert.deepEqual(evicted, [])
    memory.offer('first', first, viewOf('e:2', ['a', 'b', 'c']), 'registry', { heardMs: 0 })
    assert.deepEqual(evicted, ['second', 'third'])
    assert.equal(memory.get('first'), first)
    assert.equal(memory.size, 1)
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
    memory.offer('first', first, viewOf('e:9', ['late']), 'file', { heardMs: 0 })
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
