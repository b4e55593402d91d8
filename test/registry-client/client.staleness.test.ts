import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { failure, OVERRIDE, resolved, world, worldWithFile } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, removalOf, snapshotOf } from '../support/sample-views.ts'
import { answer } from '../support/scripted-network.ts'

describe('maxStale', () => {
  test('shorter than the time between pings asks the registry, once for all who wait', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.event('ping', {}, 'e:5')
    await made.clock.advance(8_000)
    const sent = made.network.stream.sent.length
    const calls = [client.resolve('stock', { maxStale: '1s' }), client.resolve('stock', { maxStale: 0 })]
    await settle()
    assert.deepEqual(made.network.stream.sent.slice(sent), [{ type: 'subscribe', services: [], ref: 2 }])
    await made.clock.advance(20)
    await made.network.stream.event('ping', {}, 'e:6')
    for (const { age, source, asOf } of await Promise.all(calls))
      assert.deepEqual([age, source, asOf], [0, 'registry', { epoch: 'e', revision: 6 }])
    await client.close()
  })

  test('asks again on a stream that is new, and for calls that come after an answer', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const lost = client.resolve('stock', { maxStale: 0 })
    await settle()
    await made.network.stream.cut()
    await made.clock.advance(1_000)
    await made.network.stream.accept()
    await made.network.stream.event('ping', {}, 'e:5')
    assert.equal((await lost).age, 0)
    for (let call = 0; call < 2; call++) {
      await made.clock.advance(1)
      const asking = client.resolve('stock', { maxStale: 0 })
      await settle()
      assert.deepEqual(made.network.stream.sent.at(-1)!.services, [])
      await made.network.stream.event('ping', {}, 'e:5')
      assert.equal((await asking).age, 0)
    }
    await client.close()
  })

  test('is not met by a registry that says that it is behind', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.clock.advance(3_000)
    const asking = failure(client.resolve('stock', { maxStale: '1s', deadline: '2s' }))
    await settle()
    await made.network.stream.event('ping', { age: 3_000 }, 'e:5')
    await made.clock.advance(2_000)
    assert.equal((await asking).code, 'stale')
    await client.close()
  })
})

describe('a registry that has not reached what is known', () => {
  test('confirms nothing: the view ages, is named, and is confirmed once it has', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    await made.clock.advance(1_000)
    await made.network.stream.accept()
    // Another replica, which waited for what was asked of it in vain.
    await made.network.stream.event('ping', {}, 'e:3')
    await made.clock.advance(10_000)
    await made.network.stream.event('ping', {}, 'e:4')
    assert.equal((await client.resolve('stock')).age, 11_000)
    assert.deepEqual(client.status().ahead, ['default/stock'])
    assert.equal(made.log.of('warn', 'has not reached').length, 1)
    await made.network.stream.event('ping', {}, 'e:5')
    assert.equal((await client.resolve('stock')).age, 0)
    assert.deepEqual(client.status().ahead, [])
    await client.close()
  })
})

describe('a registry that has not reached what another one has shown', () => {
  test('confirms no view either that has not changed since, and is asked to come as far first', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.event('ping', {}, 'e:1000')
    await made.network.stream.cut()
    await made.clock.advance(1_000)
    await made.network.stream.accept()
    assert.equal(made.network.stream.sent.find(({ type }) => type === 'subscribe')!.reach, 'e:1000')
    await made.network.stream.event('ping', {}, 'e:6')
    await made.clock.advance(10_000)
    await made.network.stream.event('ping', {}, 'e:7')
    assert.equal((await client.resolve('stock')).age, 11_000)
    assert.deepEqual(client.status().ahead, ['default/stock'])
    await made.network.stream.event('ping', {}, 'e:1000')
    assert.equal((await client.resolve('stock')).age, 0)
    await client.close()
  })
})

describe('a disk that gives nothing out', () => {
  test('makes nobody forget how far the registry was: what waits to be written is no news', async () => {
    const made = world()
    made.disk.fail = (operation) => (operation === 'read' ? 'EMFILE' : undefined)
    const client = await made.start()
    await made.network.stream.accept()
    const resolving = client.resolve('stock')
    await made.clock.advance(300)
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:1000')
    await resolving
    await made.network.stream.event('ping', { subscribed: 1 }, 'e:1000')
    await made.network.stream.cut()
    await made.clock.advance(1_000)
    await made.network.stream.accept()
    await made.network.stream.event('ping', { subscribed: 2 }, 'e:6')
    // Its file is tried again and again meanwhile.
    await made.clock.advance(20_000)
    await made.network.stream.event('ping', {}, 'e:7')
    assert.equal((await client.resolve('stock')).age, 21_000)
    assert.deepEqual(client.status().ahead, ['default/stock'])
    await client.close()
  })
})

describe('minRevision', () => {
  test('is answered from memory where the stream has confirmed as much', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.event('ping', {}, 'e:30')
    const answer = await client.resolve('stock', { minRevision: 30 })
    assert.deepEqual(answer.cursor, { epoch: 'e', revision: 5 })
    assert.deepEqual(answer.asOf, { epoch: 'e', revision: 30 })
    assert.equal(answer.source, 'memory')
    assert.equal((await client.resolve('stock', { minRevision: 'e:30' })).source, 'memory')
    await client.close()
  })

  test('waits for the change that brings it', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const resolving = client.resolve('stock', { minRevision: 'e:9' })
    await settle()
    await made.network.stream.event('change', changeOf('e:5', 'e:9', ['b']), 'e:9')
    const answer = await resolving
    assert.deepEqual(idsOf(answer.view), ['a', 'b'])
    assert.equal(answer.source, 'registry')
    await client.close()
  })

  test('asks a registry that has not said as much, so that a replica catches up and answers at once', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const resolving = client.resolve('stock', { minRevision: 40 })
    await settle()
    assert.deepEqual(made.network.stream.sent.at(-1), {
      type: 'subscribe',
      services: [{ namespace: 'default', service: 'stock', cursor: 'e:5' }],
      reach: 'e:40',
      ref: 2,
    })
    await made.network.stream.event('ping', {}, 'e:41')
    const answer = await resolving
    assert.deepEqual([idsOf(answer.view), answer.asOf], [['a'], { epoch: 'e', revision: 41 }])
    await client.close()
  })

  test('is not met by an id that was on its way before the registry heard of the service', async () => {
    const { start, network } = await worldWithFile('old')
    const client = await start()
    await network.stream.accept()
    const resolving = client.resolve('stock', { minRevision: 'e:8' })
    await settle()
    let isAnswered = false
    void resolving.then(() => (isAnswered = true))
    await network.stream.event('ping', { subscribed: undefined }, 'e:9')
    await network.stream.event('snapshot', snapshotOf('e:9', ['x'], { service: 'other' }), 'e:9')
    assert.equal(isAnswered, false)
    assert.equal(client.peek('stock')?.source, 'file')
    await network.stream.event('change', changeOf('e:5', 'e:8', ['new'], [removalOf('old', 7)]), 'e:9')
    assert.deepEqual(idsOf((await resolving).view), ['new'])
    await client.close()
  })

  test('is not met by a change of an earlier subscription on the same stream', async () => {
    const made = world()
    const client = await made.start({ maxServices: 1 })
    const { stream } = made.network
    await resolved(made, client, 'a')
    const other = client.resolve('other')
    await settle()
    await stream.event('snapshot', snapshotOf('e:5', ['x'], { service: 'other' }), 'e:6')
    await other
    const resolving = client.resolve('stock', { minRevision: 'e:8' })
    await settle()
    let isAnswered = false
    void resolving.then(() => (isAnswered = true))
    // Sent before the registry let go of the service; what changed since comes with the answer to the new subscription.
    await stream.event('change', changeOf('e:5', 'e:6', ['b']))
    await stream.event('ping', { subscribed: 2 }, 'e:9')
    assert.equal(isAnswered, false)
    await stream.event('snapshot', snapshotOf('e:8', ['a', 'b', 'c']), 'e:9')
    assert.deepEqual(idsOf((await resolving).view), ['a', 'b', 'c'])
    await client.close()
  })

  test('is asked for again on the next stream', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    const resolving = client.resolve('stock', { minRevision: 'e:40', deadline: '1m' })
    await made.clock.advance(10_000)
    await made.network.stream.accept()
    assert.deepEqual([made.network.stream.sent[0]?.reach, made.network.stream.subscribed[0]?.cursor], ['e:40', 'e:5'])
    await made.network.stream.event('change', changeOf('e:5', 'e:40', ['b']), 'e:40')
    assert.deepEqual(idsOf((await resolving).view), ['a', 'b'])
    await client.close()
  })

  test('of a service that nobody knows yet waits for its first view', async () => {
    const made = world()
    const client = await made.start()
    await made.network.stream.accept()
    const resolving = client.resolve('stock', { minRevision: 'e:7' })
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:0'), 'e:6')
    await made.network.stream.event('change', changeOf('e:0', 'e:7', ['a']), 'e:7')
    assert.deepEqual(idsOf((await resolving).view), ['a'])
    const unknown = failure(client.resolve('other', { minRevision: 'e:7' }))
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:0', [], { service: 'other' }))
    await made.network.stream.event('ping', {}, 'e:8')
    assert.equal((await unknown).code, 'unknown_service')
    await client.close()
  })

  test('of another epoch waits for the registry', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    const resolving = client.resolve('stock', { minRevision: 'f:2', deadline: '1m' })
    await made.clock.advance(10_000)
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('f:3', ['a', 'b']), 'f:3')
    assert.deepEqual((await resolving).asOf, { epoch: 'f', revision: 3 })
    await client.close()
  })

  test('not reached by the deadline is an error of its own, and the view stays for others', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    for (const minRevision of [6, 'e:6', 'f:1']) {
      const failing = failure(client.resolve('stock', { minRevision, deadline: '1s' }))
      await made.clock.advance(1_000)
      const error = await failing
      assert.equal(error.code, 'behind')
      assert.match(error.tried[0]!.outcome, /^\d+ ms old, known as of e:5$/)
      assert.match(error.message, /^stock: behind \(memory: .* ms old, known as of e:5; file: .*registry: connected/)
    }
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    assert.equal(made.clock.nextInMs !== undefined, true)
    await client.close()
    assert.equal(made.clock.pending, 0)
  })

  test('and maxStale both have to be met', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    await made.clock.advance(60_000)
    const failing = failure(client.resolve('stock', { minRevision: 5, maxStale: '30s', deadline: 1 }))
    await made.clock.advance(1)
    assert.equal((await failing).code, 'stale')
    assert.equal((await client.resolve('stock', { minRevision: 5, maxStale: '2m' })).reachable, false)
    await client.close()
  })

  test('does not hold up an operator, whose word is newer than any revision', async () => {
    const made = world()
    made.disk.write(OVERRIDE, JSON.stringify({ nodes: [{ host: '10.0.0.9', port: 80 }] }))
    const client = await made.start()
    assert.equal((await client.resolve('stock', { minRevision: 'e:9' })).overridden, true)
    await client.close()
  })

  test('is a revision or a cursor, and anything else a TypeError', async () => {
    const client = await world().start()
    for (const minRevision of [-1, 1.5, NaN, Infinity, '7', 'e:', 'e:x', ':7'])
      await assert.rejects(
        client.resolve('stock', { minRevision }),
        /minRevision: must be a revision or epoch:revision/,
      )
    await client.close()
  })

  test('makes a process read what another has written: a registration names its cursor', async () => {
    const made = world()
    made.network.respond = (call) => {
      if (call.path === '/v1/leases') return answer(201, { id: 'L1' })
      return { ...answer(200, {}), header: (name) => (name === 'holdfast-cursor' ? 'e:12' : undefined) }
    }
    const client = await made.start()
    await made.network.stream.accept()
    const registration = await client.register({ service: 'stock', port: 8080, id: 'a' })
    assert.equal(registration.cursor, 'e:12')
    const resolving = client.resolve('stock', { minRevision: registration.cursor })
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:10', ['old']), 'e:10')
    await made.network.stream.event('change', changeOf('e:10', 'e:12', ['a']), 'e:12')
    assert.deepEqual(idsOf((await resolving).view), ['a', 'old'])
    await client.close()
  })
})

test('every answer says where it came from, how old it is, and what it reflects', async () => {
  const made = await worldWithFile('a')
  await made.clock.advance(90_000)
  const client = await made.start()
  const { view, nodes, policy, ...told } = await client.resolve('stock')
  assert.deepEqual([idsOf(view), nodes.length, policy], [['a'], 1, undefined])
  assert.deepEqual(told, {
    cursor: { epoch: 'e', revision: 5 },
    asOf: { epoch: 'e', revision: 5 },
    source: 'file',
    age: 90_000,
    reachable: false,
    overridden: false,
  })
  await client.close()
})
