import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Connection } from '../../registry-client/src/registry/connection.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { changeOf, snapshotOf } from '../support/sample-views.ts'
import { ScriptedNetwork } from '../support/scripted-network.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { world } from '../support/connection-world.ts'

describe('the stream', () => {
  test('is one for all services, and subscribes them on opening with the cursors that are held', async () => {
    const { connection, network, cursors } = world()
    cursors.set('default/stock', { epoch: 'e', revision: 7 })
    connection.open()
    connection.subscribe('default/stock', 'default', 'stock')
    connection.subscribe('default/shop', 'default', 'shop')
    assert.equal(network.stream.url, 'http://one:1/v1/watch')
    assert.deepEqual(network.stream.sent, [])
    await network.stream.accept()
    assert.deepEqual(network.stream.sent, [
      {
        type: 'subscribe',
        services: [
          { namespace: 'default', service: 'stock', cursor: 'e:7' },
          { namespace: 'default', service: 'shop' },
        ],
        ref: 1,
      },
    ])
    connection.subscribe('default/cart', 'default', 'cart')
    connection.unsubscribe('default/shop')
    connection.unsubscribe('default/never')
    assert.deepEqual(network.stream.sent.slice(1), [
      { type: 'subscribe', services: [{ namespace: 'default', service: 'cart' }], ref: 2 },
      { type: 'unsubscribe', services: [{ namespace: 'default', service: 'shop' }] },
    ])
    assert.equal(network.streams.length, 1)
    connection.close()
  })

  test('splits a thousand services over messages that a registry accepts', async () => {
    const { connection, network } = world()
    for (let i = 0; i < 1_200; i++) connection.subscribe(`default/s${i}`, 'default', `s${i}`)
    connection.open()
    await network.stream.accept()
    assert.deepEqual(
      network.stream.sent.map((message) => (message.services as unknown[]).length),
      [500, 500, 200],
    )
    assert.equal(new Set(network.stream.subscribed.map(({ service }) => service)).size, 1_200)
    connection.close()
  })

  test('resumes after a cut with the cursors held by then, without what was unsubscribed', async () => {
    const { connection, network, cursors, clock, reachable } = world()
    connection.open()
    connection.subscribe('default/stock', 'default', 'stock')
    connection.subscribe('default/shop', 'default', 'shop')
    await network.stream.accept()
    cursors.set('default/stock', { epoch: 'e', revision: 12 })
    await network.stream.cut()
    connection.unsubscribe('default/shop')
    await clock.advance(0)
    await network.stream.accept()
    assert.equal(network.streams.length, 2)
    assert.deepEqual(network.stream.subscribed, [{ namespace: 'default', service: 'stock', cursor: 'e:12' }])
    assert.deepEqual(reachable, [true, false, true])
    assert.equal(connection.status().reconnects, 1)
    connection.close()
  })

  test('a restart asks for a service without a cursor', async () => {
    const { connection, network, cursors } = world()
    cursors.set('default/stock', { epoch: 'e', revision: 12 })
    connection.open()
    connection.subscribe('default/stock', 'default', 'stock')
    await network.stream.accept()
    connection.restart('default/stock')
    connection.restart('default/never')
    assert.deepEqual(network.stream.sent.slice(1), [
      { type: 'subscribe', services: [{ namespace: 'default', service: 'stock' }], ref: 2 },
    ])
    connection.close()
  })

  test('covers a service once the registry has sent all that was asked of it, on this stream and since it was asked', async () => {
    const { connection, network, clock, cursors } = world()
    cursors.set('default/stock', { epoch: 'e', revision: 12 })
    const covers = () => ['stock', 'shop'].map((name) => connection.covers(`default/${name}`))
    connection.open()
    connection.subscribe('default/stock', 'default', 'stock')
    await network.stream.accept()
    await network.stream.event('ping', { subscribed: undefined }, 'e:20')
    assert.deepEqual(covers(), [false, false])
    connection.subscribe('default/shop', 'default', 'shop')
    await network.stream.event('ping', { subscribed: 1 }, 'e:20')
    assert.deepEqual(covers(), [true, false])
    await network.stream.event('ping', { subscribed: 2 }, 'e:20')
    assert.deepEqual(covers(), [true, true])
    // Asking once more takes nothing back; a fresh snapshot does, and so does a new subscription.
    connection.ask('default/stock')
    assert.deepEqual(covers(), [true, true])
    connection.restart('default/stock')
    assert.deepEqual(covers(), [false, true])
    await network.stream.event('ping', {}, 'e:20')
    connection.unsubscribe('default/shop')
    connection.subscribe('default/shop', 'default', 'shop')
    assert.deepEqual(covers(), [true, false])
    await network.stream.cut()
    await clock.advance(10_000)
    await network.stream.accept()
    await network.stream.event('ping', { subscribed: undefined }, 'e:20')
    assert.deepEqual(covers(), [false, false])
    await network.stream.event('ping', {}, 'e:20')
    assert.deepEqual(covers(), [true, true])
    connection.close()
  })

  test('tells once that the registry cannot be reached: when it is lost, refuses, or takes its time at the start', async () => {
    const refusing = world()
    refusing.connection.open()
    await refusing.network.stream.cut('refused')
    for (let i = 0; i < 5; i++) {
      await refusing.clock.advance(10_000)
      await refusing.network.stream.cut('refused')
    }
    assert.deepEqual([refusing.reachable, refusing.connection.isDown], [[false], true])
    await refusing.clock.advance(10_000)
    await refusing.network.stream.accept()
    assert.deepEqual([refusing.reachable, refusing.connection.isDown], [[false, true], false])
    refusing.connection.close()

    const slow = world()
    slow.connection.open()
    await slow.clock.advance(499)
    assert.deepEqual(slow.reachable, [])
    await slow.clock.advance(1)
    assert.deepEqual(slow.reachable, [false])
    await slow.network.stream.accept()
    await slow.network.stream.cut()
    assert.deepEqual(slow.reachable, [false, true, false])
    slow.connection.close()
    assert.equal(slow.clock.pending, 0)
  })

  test('takes the next endpoint after each failure', async () => {
    const { connection, network, clock } = world({ endpoints: ['http://one:1', 'http://two:2', 'http://three:3'] })
    connection.open()
    for (let i = 0; i < 3; i++) {
      await network.stream.cut('refused')
      await clock.advance(0)
    }
    assert.deepEqual(
      network.streams.map(({ url }) => new URL(url).hostname),
      ['one', 'two', 'three', 'one'],
    )
    connection.close()
  })

  test('clients spread over the endpoints at the start', () => {
    const first = new Map<string, number>()
    const random = seededRandom(3)
    for (let i = 0; i < 900; i++) {
      const { connection, network } = world({ endpoints: ['http://one:1', 'http://two:2', 'http://three:3'], random })
      connection.open()
      const { hostname } = new URL(network.stream.url)
      first.set(hostname, (first.get(hostname) ?? 0) + 1)
      connection.close()
    }
    for (const host of ['one', 'two', 'three']) assert.ok(first.get(host)! > 240, `${host}: ${first.get(host)}`)
  })

  test('waits between tries for a delay with full jitter below a ceiling that doubles from 200 ms to 10 s', async () => {
    const almost = 1 - Number.EPSILON
    for (const [draw, ceilings] of [
      [almost, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]],
      [0.5, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]],
      [0, [0, 0, 0]],
    ] as const) {
      const { connection, network, clock } = world({ random: () => draw })
      connection.open()
      for (const ceiling of ceilings) {
        await network.stream.cut('refused')
        assert.ok(Math.abs(clock.nextInMs! - ceiling) < 1, `${clock.nextInMs} instead of ${ceiling}`)
        await clock.advance(clock.nextInMs!)
      }
      connection.close()
      assert.equal(clock.pending, 0)
    }
  })

  for (const [what, spread, waitMs] of [
    ['that a registry named', 5_000, 2_500],
    ['of at most half a minute', 86_400_000, 15_000],
    ['shorter than the backoff, which is kept', 100, 100],
    ['that cannot be read, which is left out', 'soon', 100],
  ] as const)
    test(`after a loss the first wait is drawn from a time ${what}`, async () => {
      const { connection, network, clock } = world({ endpoints: ['http://one:1', 'http://two:2'], random: () => 0.5 })
      connection.open()
      const first = await network.stream.accept()
      await first.event('ping', { spread }, 'e:1')
      await first.event('change', changeOf('e:1', 'e:2'), 'e:2')
      await first.cut()
      assert.equal(clock.nextInMs, waitMs)
      await clock.advance(waitMs)
      assert.notEqual(new URL(network.stream.url).hostname, new URL(first.url).hostname)
      await network.stream.cut('refused')
      assert.equal(clock.nextInMs, 200, 'then the backoff goes on')
      await clock.advance(200)
      await network.stream.accept()
      await network.stream.cut()
      assert.equal(clock.nextInMs, 400, 'a registry that named nothing is not bound by what another one did')
      connection.close()
    })

  test('five thousand clients of a lost registry come back evenly over the time that it named', async () => {
    const random = seededRandom(7)
    const buckets = new Array<number>(10).fill(0)
    for (let count = 0; count < 5_000; count++) {
      const { connection, network, clock } = world({ random })
      connection.open()
      await network.stream.accept()
      network.stream.handlers.message('{"event":"ping","data":{"spread":5000}}')
      network.stream.handlers.close('connection reset')
      buckets[Math.floor(clock.nextInMs! / 500)]!++
      connection.close()
    }
    for (const count of buckets) assert.ok(count > 400 && count < 600, buckets.join(' '))
  })

  test('only a stream that lasted makes the next wait short again', async () => {
    const { connection, network, clock } = world({ random: () => 0.5 })
    connection.open()
    const delays: number[] = []
    for (const livesMs of [0, 1_000, 1_000, 20_000]) {
      await network.stream.accept()
      await clock.advance(livesMs)
      await network.stream.event('ping', {}, 'e:1')
      await network.stream.cut()
      delays.push(clock.nextInMs!)
      await clock.advance(clock.nextInMs!)
    }
    assert.deepEqual(delays, [100, 200, 400, 100])
    connection.close()
  })

  test('one that is silent for 25 s is taken for dead; a ping is enough to live', async () => {
    const { connection, network, clock } = world()
    connection.open()
    const first = await network.stream.accept()
    for (let i = 0; i < 10; i++) {
      await clock.advance(24_999)
      await first.event('ping')
    }
    assert.equal(first.closed, false)
    await clock.advance(24_999)
    assert.equal(connection.reachable, true)
    await clock.advance(1)
    assert.equal(first.closed, true)
    assert.equal(connection.status().lastError, 'silent for 25000 ms')
    await clock.advance(0)
    assert.equal(network.streams.length, 2)
    connection.close()
  })

  for (const [what, text] of [
    ['no JSON', '{"event":'],
    ['no object', 'null'],
    ['an unknown event', '{"event":"gossip","data":{}}'],
    ['a snapshot with a bad node', JSON.stringify({ event: 'snapshot', data: { ...snapshotOf('e:1'), nodes: [{}] } })],
    [
      'a change without its cursor',
      JSON.stringify({ event: 'change', data: { ...changeOf('e:1', 'e:2'), cursor: 1 } }),
    ],
    ['a bad id', '{"event":"ping","id":"nonsense","data":{}}'],
    ['JSON without end', `{"event":"snapshot","data":${'['.repeat(100_000)}${']'.repeat(100_000)}}`],
  ] as const)
    test(`a frame that is ${what} brings a new stream, and reaches nobody`, async () => {
      const { connection, network, clock, events } = world()
      connection.open()
      const first = await network.stream.accept()
      await first.raw(text)
      assert.equal(first.closed, true)
      assert.deepEqual(events, [])
      assert.match(connection.status().lastError!, /^a frame that cannot be read: /)
      await clock.advance(0)
      assert.equal(network.streams.length, 2)
      connection.close()
    })

  test('acknowledges each id once', async () => {
    const { connection, network } = world()
    connection.open()
    const stream = await network.stream.accept()
    await stream.event('snapshot', snapshotOf('e:1'))
    await stream.event('snapshot', snapshotOf('e:2', [], { service: 'shop' }), 'e:2')
    await stream.event('ping', {}, 'e:2')
    await stream.event('change', changeOf('e:2', 'e:3', ['a']), 'e:3')
    assert.deepEqual(
      stream.sent.filter(({ type }) => type === 'ack'),
      [
        { type: 'ack', cursor: 'e:2' },
        { type: 'ack', cursor: 'e:3' },
      ],
    )
    connection.close()
  })

  test('an acknowledgement follows what it acknowledges', async () => {
    const order: string[] = []
    const clock = new ManualClock()
    const network = new ScriptedNetwork()
    const connection = new Connection(
      { endpoints: ['http://one:1'], network, clock, random: () => 0, log: new MemoryLog() },
      {
        event: () =>
          order.push(`applied after ${network.stream.sent.filter(({ type }) => type === 'ack').length} acks`),
        reachable() {},
        held: () => ({}),
      },
    )
    connection.open()
    await network.stream.accept()
    await network.stream.event('change', changeOf('e:2', 'e:3'), 'e:3')
    assert.deepEqual(order, ['applied after 0 acks'])
    assert.equal(network.stream.sent.filter(({ type }) => type === 'ack').length, 1)
    connection.close()
  })

  test('what an old stream still says is not heard', async () => {
    const { connection, network, clock, events, reachable } = world()
    connection.open()
    const old = await network.stream.accept()
    await clock.advance(25_000)
    await clock.advance(0)
    const present = await network.stream.accept()
    await old.event('snapshot', snapshotOf('e:1'), 'e:1')
    await old.raw('rubbish')
    await old.cut()
    old.handlers.open()
    assert.deepEqual(events, [])
    assert.deepEqual(reachable, [true, false, true])
    assert.equal(present.closed, false)
    assert.equal(network.streams.length, 2)
    connection.close()
  })

  test('each life of the stream is a session of its own', async () => {
    const { connection, network, clock, events } = world()
    connection.open()
    const first = await network.stream.accept()
    await first.event('ping')
    await first.event('ping')
    await first.cut()
    await clock.advance(0)
    await (await network.stream.accept()).event('ping')
    assert.equal(events[0]!.session, events[1]!.session)
    assert.notEqual(events[1]!.session, events[2]!.session)
    connection.close()
  })

  test('an outage is one warning, not one per try', async () => {
    const { connection, network, clock, log } = world()
    connection.open()
    await network.stream.accept()
    await network.stream.cut('reset')
    for (let i = 0; i < 20; i++) {
      await clock.advance(10_000)
      await network.stream.cut('refused')
    }
    assert.equal(log.of('warn').length, 2)
    connection.close()
  })

  for (const when of ['opening', 'open', 'waiting to reopen'] as const)
    test(`closed while ${when} it leaves no timer, no stream and no further word`, async () => {
      const { connection, network, clock, events, reachable } = world({ random: () => 0.5 })
      connection.open()
      if (when !== 'opening') await network.stream.accept()
      if (when === 'waiting to reopen') await network.stream.cut()
      connection.close()
      assert.equal(clock.pending, 0)
      await network.stream.accept()
      await network.stream.event('ping', {}, 'e:1')
      await network.stream.cut()
      await clock.advance(60_000)
      assert.equal(network.streams.length, 1)
      assert.deepEqual(events, [])
      assert.deepEqual(reachable, when === 'opening' ? [] : [true, false])
      connection.subscribe('default/stock', 'default', 'stock')
      assert.equal(connection.status().subscriptions, 0)
    })
})
