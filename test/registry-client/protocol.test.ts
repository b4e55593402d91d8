import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  decodeClientMessage,
  decodeEvent,
  decodeNode,
  decodeView,
  encodeFrame,
  encodeView,
  fold,
  formatCursor,
  isAfter,
  carryOver,
  unaccounted,
  LIMITS,
  parseCursor,
  ProtocolError,
  type ChangeFrame,
  type Cursor,
  type Removal,
  type View,
} from '@holdfast/registry-client/protocol'
import { changeOf, idsOf, nodeOf, removalOf, snapshotOf, viewOf } from '../support/sample-views.ts'

function change(...args: Parameters<typeof changeOf>): ChangeFrame {
  const event = decodeEvent('change', undefined, changeOf(...args))
  assert.ok(event.event === 'change')
  return event.frame
}

function pathOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    assert.ok(error instanceof ProtocolError, String(error))
    assert.ok(error.message.length < 500, error.message)
    return error.path
  }
  return assert.fail('it was accepted')
}

describe('fold', () => {
  const view = viewOf('e:5', ['a', 'b'], { policy: { timeout: '1s' } })

  test('a snapshot replaces whatever was known', () => {
    const next = viewOf('f:1', ['c'])
    assert.equal(fold(view, { kind: 'snapshot', view: next }), next)
    assert.equal(fold(undefined, { kind: 'snapshot', view: next }), next)
  })

  test('a change puts, replaces and removes, and leaves the old view as it was', () => {
    const next = fold(view, change('e:5', 'e:6', [nodeOf('b', { weight: 1 }), 'c'], [removalOf('a', 6)]))!
    assert.deepEqual(idsOf(next), ['b', 'c'])
    assert.equal(next.nodes.get('b')!.weight, 1)
    assert.deepEqual(next.cursor, { epoch: 'e', revision: 6 })
    assert.deepEqual(next.policy, { timeout: '1s' })
    assert.deepEqual(idsOf(view), ['a', 'b'])
    assert.equal(next.nodes.get('b') === view.nodes.get('b'), false)
  })

  test('a gap, another epoch or no view at all asks for a snapshot', () => {
    assert.equal(fold(undefined, change('e:5', 'e:6', ['c'])), undefined)
    assert.equal(fold(view, change('e:6', 'e:7', ['c'])), undefined)
    assert.equal(fold(view, change('f:5', 'f:6', ['c'])), undefined)
    assert.equal(fold(view, change('f:5', 'e:6', ['c'])), undefined)
  })

  test('what is not newer changes nothing', () => {
    assert.equal(fold(view, change('e:4', 'e:5', ['x'])), view)
    assert.equal(fold(view, change('e:1', 'e:2', ['x'])), view)
  })

  test('a merged change applies to any view between its ends', () => {
    for (const at of [2, 3, 4]) {
      const next = fold(viewOf(`e:${at}`, ['a', 'b']), change('e:2', 'e:9', ['c'], [removalOf('a', 7)]))
      assert.deepEqual(idsOf(next), ['b', 'c'])
    }
  })

  test('a policy is set, kept or removed', () => {
    assert.deepEqual(fold(view, change('e:5', 'e:6', [], [], { policy: { timeout: '9s' } }))!.policy, { timeout: '9s' })
    assert.deepEqual(fold(view, change('e:5', 'e:6', ['c']))!.policy, { timeout: '1s' })
    assert.equal(fold(view, change('e:5', 'e:6', [], [], { policy: null }))!.policy, undefined)
  })

  test('a view that is emptied names the latest removal, wherever it stands in the list', () => {
    const late = removalOf('a', 8, 'lease_expired')
    const next = fold(view, change('e:5', 'e:8', [], [late, removalOf('b', 6)]))!
    assert.deepEqual(next.emptied, late)
    assert.deepEqual(unaccounted(viewOf('e:7', ['a']), next), [])
    const still = fold(next, change('e:8', 'e:9', [], [], { policy: null }))!
    assert.deepEqual(still.emptied, late)
    assert.equal(fold(still, change('e:9', 'e:10', ['c']))!.emptied, undefined)
  })

  test('a chain of changes and one merged change lead to the same view', () => {
    const step = fc.record({ id: fc.constantFrom('a', 'b', 'c', 'd'), put: fc.boolean() })
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 12 }), fc.nat({ max: 11 }), (steps, from) => {
        const start = viewOf('e:0', ['a', 'b'])
        const views: View[] = [start]
        for (const [at, { id, put }] of steps.entries())
          views.push(
            fold(
              views[at],
              change(
                `e:${at}`,
                `e:${at + 1}`,
                put ? [nodeOf(id, { port: at + 1 })] : [],
                put ? [] : [removalOf(id, at + 1)],
              ),
            )!,
          )
        const last = views.at(-1)!
        const touched = [...new Set(steps.map(({ id }) => id))]
        const merged = change(
          'e:0',
          `e:${steps.length}`,
          touched.flatMap((id) => last.nodes.get(id) ?? []),
          touched.flatMap((id) => {
            if (last.nodes.has(id)) return []
            return [removalOf(id, 1 + steps.findLastIndex((one) => one.id === id && !one.put))]
          }),
        )
        const next = fold(views[Math.min(from, steps.length)], merged)!
        const sort = (view: View) => encodeView(view).nodes.toSorted((x, y) => (x.id < y.id ? -1 : 1))
        assert.deepEqual(sort(next), sort(last))
      }),
    )
  })
})

describe('proof', () => {
  test('within an epoch only a removal later than what was known empties a service', () => {
    const known = viewOf('e:5', ['a', 'b'])
    const emptyAt = (cursor: string, removed?: number) =>
      viewOf(cursor, [], removed === undefined ? {} : { emptied: removalOf('a', removed) })
    assert.deepEqual(unaccounted(known, emptyAt('e:9', 6)), [])
    assert.notEqual(unaccounted(known, emptyAt('e:9', 5)).length, 0)
    assert.notEqual(unaccounted(known, emptyAt('e:9')).length, 0)
    assert.deepEqual(unaccounted(undefined, emptyAt('e:9')), [])
    assert.deepEqual(unaccounted(emptyAt('e:1'), emptyAt('f:9')), [])
  })

  test('across epochs each node needs to be there, or to have been removed by the new store', () => {
    const known = viewOf('e:5', ['a', 'b', 'c'])
    const left = (next: View, removed: string[] = []) => unaccounted(known, next, new Set(removed)).map(({ id }) => id)
    assert.deepEqual(left(viewOf('f:0')), ['a', 'b', 'c'])
    assert.deepEqual(left(viewOf('f:1', ['z'])), ['a', 'b', 'c'])
    assert.deepEqual(left(viewOf('f:2', ['b', 'z'])), ['a', 'c'])
    assert.deepEqual(left(viewOf('f:3', ['b']), ['a', 'c']), [])
    assert.deepEqual(left(viewOf('f:4', [], { emptied: removalOf('b', 4) }), ['a']), ['c'])
  })

  test('across epochs the removal of an earlier life says nothing of a node with a lease', () => {
    const known = viewOf('e:9', [nodeOf('a', { incarnation: 2 })])
    const left = (emptied: Removal) => unaccounted(known, viewOf('f:12', [], { emptied })).map(({ id }) => id)
    // As a backup has it that was made while the node was away.
    assert.deepEqual(left(removalOf('a', 7, 'deregistered', 1)), ['a'])
    assert.deepEqual(left(removalOf('a', 11, 'deregistered', 2)), [])
    const { incarnation, ...unknown } = removalOf('a', 11)
    assert.equal(incarnation, 1)
    assert.deepEqual(left(unknown), ['a'])
    const permanent = viewOf('e:9', [nodeOf('a', { incarnation: 2, leased: false })])
    assert.deepEqual(unaccounted(permanent, viewOf('f:12', [], { emptied: removalOf('a', 7) })), [])
  })

  test('what is carried over stands beside what is there, and gives way to it', () => {
    const known = viewOf('e:5', ['a', 'b'])
    const next = viewOf('f:2', ['b', 'z'])
    const carried = carryOver(known, next, unaccounted(known, next))
    assert.deepEqual(idsOf(carried).sort(), ['a', 'b', 'z'])
    assert.equal(carried.nodes.get('b'), next.nodes.get('b'))
    assert.deepEqual(carried.cursor, next.cursor)
  })
})

describe('cursors', () => {
  test('written and read again are the same', () => {
    const epoch = fc.stringMatching(/^[A-Za-z0-9_-]{1,64}$/)
    fc.assert(
      fc.property(epoch, fc.maxSafeNat(), (name, revision) => {
        assert.deepEqual(parseCursor(formatCursor({ epoch: name, revision })), { epoch: name, revision })
      }),
    )
  })

  test('that cannot be read are undefined', () => {
    const bad = [
      '',
      ':',
      'e',
      'e:',
      ':5',
      'e:-1',
      'e:1.5',
      'e:1e3',
      'e: 1',
      ' e:1',
      'e:1 ',
      'e:1\n',
      'e:0x1',
      'e:1:2',
      'ä:1',
      `${'e'.repeat(65)}:1`,
      'e:9999999999999999',
      `e:${'0'.repeat(17)}`,
    ]
    for (const text of bad) assert.equal(parseCursor(text), undefined, JSON.stringify(text))
  })

  test('of two epochs are in no order', () => {
    const at = (epoch: string, revision: number): Cursor => ({ epoch, revision })
    assert.equal(isAfter(at('e', 2), at('e', 1)), true)
    assert.equal(isAfter(at('e', 1), at('e', 1)), false)
    assert.equal(isAfter(at('f', 9), at('e', 1)), false)
  })
})

describe('decoding', () => {
  test('a view that was encoded comes back, frozen in every part', () => {
    const view = viewOf('e:5', [nodeOf('a', { zone: 'z', labels: { k: 'v' }, override: { weight: 3 } })], {
      policy: { routes: [{ to: [{ labels: { v: '1' } }] }] },
    })
    const again = decodeView(JSON.parse(JSON.stringify(encodeView(view))))
    assert.deepEqual(encodeView(again), encodeView(view))
    const seen: unknown[] = [again, ...again.nodes.values(), again.policy, again.cursor]
    while (seen.length > 0) {
      const part = seen.pop()
      if (typeof part !== 'object' || part === null) continue
      assert.ok(Object.isFrozen(part), JSON.stringify(part))
      seen.push(...(Object.values(part) as unknown[]))
    }
    for (const change of [
      () => (again.nodes as Map<string, unknown>).clear(),
      () => (again.nodes as Map<string, unknown>).set('x', 1),
    ])
      assert.throws(change, TypeError)
  })

  test('a frame that was encoded comes back', () => {
    const frame = change('e:5', 'e:9', ['a'], [removalOf('b', 8)], { policy: null })
    const again = decodeEvent('change', 'e:9', JSON.parse(JSON.stringify(encodeFrame(frame))))
    assert.deepEqual(again, { event: 'change', id: { epoch: 'e', revision: 9 }, frame })
    assert.deepEqual(decodeEvent('ping', undefined, undefined), { event: 'ping' })
  })

  test('fields that a newer registry adds are ignored', () => {
    const document = { ...(snapshotOf('e:5', ['a']) as { nodes: object[] }), colour: 'blue' }
    const view = decodeView({ ...document, nodes: [{ ...document.nodes[0], mood: 'good' }] })
    assert.equal('colour' in view, false)
    assert.equal('mood' in view.nodes.get('a')!, false)
  })

  test('fields that a client must not send are refused, with their path', () => {
    assert.equal(
      pathOf(() => decodeClientMessage({ type: 'ack', cursor: 'e:1', more: 1 })),
      'more',
    )
    assert.equal(
      pathOf(() => decodeClientMessage({ type: 'ack', services: [] })),
      'services',
    )
    const services =
      (item: object, type = 'subscribe') =>
      () =>
        decodeClientMessage({ type, services: [{ service: 'a' }, item] })
    assert.equal(pathOf(services({ service: 'a', colour: 1 })), 'services.1.colour')
    assert.equal(pathOf(services({ service: 'a', cursor: 'e:1' }, 'unsubscribe')), 'services.1.cursor')
    assert.equal(pathOf(services({ service: 'A' })), 'services.1.service')
    assert.equal(pathOf(services({ service: 'a', namespace: '../x' })), 'services.1.namespace')
    assert.equal(pathOf(services({ service: 'a', cursor: 'new' })), 'services.1.cursor')
    assert.equal(
      pathOf(() => decodeClientMessage({ type: 'shout' })),
      'type',
    )
    assert.equal(
      pathOf(() => decodeClientMessage([])),
      'message',
    )
    const many = Array.from({ length: LIMITS.subscribeServices + 1 }, () => ({ service: 'a' }))
    assert.equal(
      pathOf(() => decodeClientMessage({ type: 'subscribe', services: many })),
      'services',
    )
  })

  test('what a client may send is read', () => {
    assert.deepEqual(decodeClientMessage({ type: 'subscribe', services: [], reach: 'e:07', ref: 3 }), {
      type: 'subscribe',
      services: [],
      reach: 'e:7',
      ref: 3,
    })
    assert.deepEqual(decodeClientMessage({ type: 'ack', cursor: 'e:0001' }), { type: 'ack', cursor: 'e:1' })
    const services = [
      { service: '*', namespace: '*' },
      { service: 'stock', cursor: 'e:7' },
    ]
    assert.deepEqual(decodeClientMessage({ type: 'subscribe', services }), { type: 'subscribe', services })
  })

  for (const [path, broken] of [
    ['node.id', { id: '../x' }],
    ['node.id', { id: '' }],
    ['node.host', { host: 'a b' }],
    ['node.port', { port: 0 }],
    ['node.port', { port: '80' }],
    ['node.port', { port: 65_536 }],
    ['node.weight', { weight: 1.5 }],
    ['node.weight', { weight: 1_001 }],
    ['node.zone', { zone: 'Z' }],
    ['node.status', { status: 'fine' }],
    ['node.protocol', { protocol: 'smtp' }],
    ['node.incarnation', { incarnation: -1 }],
    ['node.labels', { labels: [] }],
    ['node.labels.__proto__', { labels: JSON.parse('{"__proto__":"x"}') as object }],
    ['node.labels.k', { labels: { k: 'a\nb' } }],
    ['node.labels', { labels: Object.fromEntries(Array.from({ length: 65 }, (_, at) => [`k${at}`, ''])) }],
    ['node.registered.status', { registered: { weight: 1 } }],
    ['node.override.weight', { override: { weight: -1 } }],
  ] as const)
    test(`a node with a bad part is refused at ${path} (${JSON.stringify(broken).slice(0, 40)})`, () => {
      assert.equal(
        pathOf(() => decodeNode({ ...nodeOf('a'), ...broken })),
        path,
      )
    })

  test('a node twice in one view is refused', () => {
    const node = nodeOf('a')
    assert.equal(
      pathOf(() => decodeView({ ...snapshotOf('e:1'), nodes: [node, node] })),
      'view.nodes.1.id',
    )
  })

  test('whatever JSON is sent, nothing but a ProtocolError comes of it', () => {
    const hostile = fc.oneof(
      fc.jsonValue({ maxDepth: 5 }),
      fc.string().map((text) => ({ [text]: text })),
    )
    const decoders: ((input: unknown) => unknown)[] = [
      decodeView,
      (input) => decodeNode(input),
      decodeClientMessage,
      (input) => decodeEvent('snapshot', undefined, input),
      (input) => decodeEvent('change', undefined, input),
      (input) => decodeEvent(input, input, input),
    ]
    const onlyProtocolErrors = (run: () => unknown) => {
      try {
        run()
      } catch (error) {
        assert.ok(error instanceof ProtocolError, String(error))
      }
    }
    fc.assert(
      fc.property(hostile, (input) => {
        for (const decode of decoders) onlyProtocolErrors(() => decode(input))
      }),
    )
    // Nearly right messages come further: one field of a good one is anything.
    const good: Record<string, unknown>[] = [
      { ...snapshotOf('e:5', ['a'], { policy: { a: 1 } }) },
      { ...changeOf('e:5', 'e:6', ['a'], [removalOf('b', 6)]) },
      { ...nodeOf('a') },
      { type: 'subscribe', services: [{ service: 'a' }] },
    ]
    fc.assert(
      fc.property(fc.constantFrom(...good), fc.nat(), hostile, (message, at, input) => {
        const keys = Object.keys(message)
        const broken = { ...message, [keys[at % keys.length]!]: input }
        for (const decode of decoders) onlyProtocolErrors(() => decode(broken))
      }),
    )
  })

  test('nesting without end is refused like anything else', () => {
    const deep = JSON.parse(`${'['.repeat(200_000)}${']'.repeat(200_000)}`) as unknown
    assert.equal(
      pathOf(() => decodeClientMessage(deep)),
      'message',
    )
    assert.equal(
      pathOf(() => decodeClientMessage({ type: deep })),
      'type',
    )
    assert.equal(
      pathOf(() => decodeView({ ...snapshotOf('e:1'), cursor: deep })),
      'view.cursor',
    )
    assert.equal(
      pathOf(() => decodeView({ ...snapshotOf('e:1'), policy: { routes: deep } })),
      'view.policy',
    )
  })
})
