import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { failure, FILE, OVERRIDE, resolved, world, worldWithFile } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, snapshotOf } from '../support/sample-views.ts'

describe('start-up', () => {
  test('with the registry down a service is answered from its file at once', async () => {
    const { start, clock } = await worldWithFile('a', 'b')
    const client = await start()
    const before = clock.now()
    const answer = await client.resolve('stock')
    assert.equal(clock.now(), before)
    assert.deepEqual(idsOf(answer.view), ['a', 'b'])
    assert.equal(answer.source, 'file')
    assert.equal(answer.reachable, false)
    assert.ok(['a', 'b'].includes(client.pick('stock').node.id))
    await client.close()
  })

  test('a service read from file is subscribed as soon as the registry returns, with the cursor of the file', async () => {
    const { start, network, clock } = await worldWithFile('a')
    const client = await start()
    await network.stream.cut('refused')
    await client.resolve('stock')
    for (let i = 0; i < 5; i++) {
      await clock.advance(10_000)
      await network.stream.cut('refused')
    }
    await clock.advance(10_000)
    await network.stream.accept()
    assert.deepEqual(network.stream.subscribed, [{ namespace: 'default', service: 'stock', cursor: 'e:5' }])
    await network.stream.event('change', changeOf('e:5', 'e:9', ['b']), 'e:9')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    await client.close()
  })

  test('the age of a view from file counts from its last confirmation, across the restart', async () => {
    const { start, clock } = await worldWithFile('a')
    await clock.advance(90_000)
    const client = await start()
    assert.equal((await client.resolve('stock')).age, 90_000)
    await clock.advance(10_000)
    assert.equal((await client.resolve('stock')).age, 100_000)
    await client.close()
  })

  test('a view from file counts as file until the registry confirms it, without a frame', async () => {
    const { start, clock, network } = await worldWithFile('a')
    await clock.advance(3_600_000)
    const client = await start()
    await network.stream.accept()
    assert.equal((await client.resolve('stock')).source, 'file')
    await network.stream.event('ping', {}, 'e:7')
    const confirmed = await client.resolve('stock')
    assert.equal(confirmed.source, 'memory')
    assert.equal(confirmed.age, 0)
    await client.close()
  })

  test('a ping of another epoch confirms nothing', async () => {
    const { start, network } = await worldWithFile('a')
    const client = await start()
    await network.stream.accept()
    await client.resolve('stock')
    await network.stream.event('ping', {}, 'other:7')
    assert.equal((await client.resolve('stock')).source, 'file')
    await client.close()
  })

  test('a resolve that waits for a fresh view is answered when the registry confirms the old one', async () => {
    const { start, clock, network } = await worldWithFile('a')
    await clock.advance(3_600_000)
    const client = await start()
    await network.stream.accept()
    const resolving = client.resolve('stock', { maxStale: '10m' })
    await settle()
    await network.stream.event('ping', {}, 'e:5')
    const fresh = await resolving
    assert.equal(fresh.source, 'registry')
    assert.equal(fresh.age, 0)
    await client.close()
  })

  test('a disk that hangs holds up neither the deadline nor the subscription', async () => {
    const { start, clock, network, disk } = await worldWithFile('a')
    disk.hold = (operation) => (operation === 'read' ? new Promise(() => {}) : undefined)
    const client = await start()
    await network.stream.accept()
    const impatient = failure(client.resolve('stock', { deadline: 100 }))
    await clock.advance(100)
    assert.equal((await impatient).code, 'unresolved')
    const patient = client.resolve('stock')
    await clock.advance(1_000)
    assert.deepEqual(network.stream.subscribed, [{ namespace: 'default', service: 'stock' }])
    await network.stream.event('snapshot', snapshotOf('e:6', ['b']), 'e:6')
    assert.equal((await patient).source, 'registry')
    // Its files cannot be closed; that is the disk's doing.
    void client.close()
  })

  test('a disk of which everything fails costs only the file', async () => {
    const { start, network, disk, log, clock } = world()
    disk.fail = () => 'EIO'
    const client = await start()
    await network.stream.accept()
    const resolving = client.resolve('stock')
    await settle()
    await network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:5')
    assert.equal((await resolving).source, 'registry')
    await clock.advance(60_000)
    assert.equal(log.of('warn', 'cannot be written').length, 1)
    assert.equal(client.status().file?.writable, false)
    await client.close()
  })

  test('options that cannot be used are refused', async () => {
    const { start } = world()
    await assert.rejects(start({ endpoints: [] }), /at least one/)
    await assert.rejects(start({ endpoints: ['registry:7400'] }), /not an http URL/)
    await assert.rejects(start({ endpoints: ['http://registry:99999'] }), /not an http URL/)
    await assert.rejects(start({ namespace: 'Not One' }), /namespace/)
    await assert.rejects(start({ leaseTtlMs: 1_000 }), /leaseTtlMs/)
  })
})

describe('outage', () => {
  test('keeps serving the last view for as long as the registry is down, and only its age grows', async () => {
    const made = world()
    const client = await made.start()
    const first = await resolved(made, client, 'a')
    assert.equal(first.age, 0)
    await made.network.stream.cut()
    for (let hours = 1; hours <= 24; hours++) {
      await made.clock.advance(3_600_000)
      const answer = await client.resolve('stock')
      assert.equal(answer.view, first.view)
      assert.equal(answer.age, hours * 3_600_000)
      assert.equal(answer.reachable, false)
      client.pick('stock').done('ok')
    }
    await made.network.stream.accept()
    await made.network.stream.event('ping', {}, 'e:5')
    const back = await client.resolve('stock')
    assert.equal(back.age, 0)
    assert.equal(back.reachable, true)
    await client.close()
  })

  test('the age does not grow while the registry pings', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    for (let i = 0; i < 30; i++) {
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'e:5')
      assert.equal((await client.resolve('stock')).age, 0)
    }
    await client.close()
  })

  test('nor when another process confirms the same view in the file that both share', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const other = await made.start()
    const [stream, otherStream] = made.network.streams as [typeof made.network.stream, typeof made.network.stream]
    await otherStream.accept()
    await other.resolve('stock')
    for (let i = 0; i < 12; i++) {
      await made.clock.advance(5_000)
      await otherStream.event('ping', {}, 'e:5')
      made.disk.announce(FILE)
      await made.clock.advance(5_000)
      await stream.event('ping', {}, 'e:5')
      assert.deepEqual([(await client.resolve('stock')).age, (await client.resolve('stock')).source], [0, 'memory'])
    }
    await client.close()
    await other.close()
  })

  test('a stream that has only just opened does not make old views young', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    await made.clock.advance(60_000)
    await made.network.stream.accept()
    assert.equal((await client.resolve('stock')).age, 60_000)
    await client.close()
  })

  test('a file whose last write failed is not dated as if it held the present view', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.clock.advance(1_000)
    made.disk.fail = (operation) => (operation === 'create' ? 'ENOSPC' : undefined)
    await made.network.stream.event('change', changeOf('e:5', 'e:6', ['b']), 'e:6')
    await made.clock.advance(1_000)
    for (let i = 0; i < 12; i++) {
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'e:6')
    }
    await client.close()
    const again = await made.start()
    const answer = await again.resolve('stock')
    assert.deepEqual(idsOf(answer.view), ['a'])
    assert.ok(answer.age > 120_000, `${answer.age}`)
    await again.close()
  })

  test('a view that could not be written is written once the disk is well again', async () => {
    const made = world()
    const client = await made.start()
    made.disk.fail = (operation) => (operation === 'create' ? 'ENOSPC' : undefined)
    await resolved(made, client, 'a')
    await made.clock.advance(1_000)
    assert.equal(client.status().file?.writable, false)
    made.disk.fail = () => undefined
    for (let i = 0; i < 4; i++) {
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'e:5')
    }
    assert.ok(made.disk.files.has(FILE))
    assert.equal(client.status().file?.writable, true)
    assert.equal(made.log.of('info', 'writable again').length, 1)
    await client.close()
  })
})

describe('shared cache directory', () => {
  test('what another process wrote is taken over while the registry is down', async () => {
    const made = world()
    const first = await made.start()
    const firstStream = made.network.stream
    await resolved(made, first, 'a')
    const second = await made.start()
    assert.deepEqual(idsOf((await second.resolve('stock')).view), ['a'])
    await made.clock.advance(1_000)
    await firstStream.event('change', changeOf('e:5', 'e:6', ['b']), 'e:6')
    await made.clock.advance(1_000)
    made.disk.announce(FILE)
    await settle()
    assert.deepEqual(idsOf((await second.resolve('stock')).view), ['a', 'b'])
    await first.close()
    await second.close()
  })
})

describe('override file', () => {
  const nodes = [{ host: '10.0.0.9', port: 80 }]

  test('wins over what the registry and the file say from the first answer on', async () => {
    const made = await worldWithFile('a')
    made.disk.write(OVERRIDE, JSON.stringify({ nodes }))
    const client = await made.start()
    const views = client.watch('stock')
    const first = (await views.next()).value!
    assert.deepEqual(idsOf(first.view), ['10.0.0.9:80'])
    assert.equal(first.overridden, true)
    assert.equal(first.source, 'file')
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('e:9', ['b']), 'e:9')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['10.0.0.9:80'])
    assert.equal(client.pick('stock').node.host, '10.0.0.9')
    assert.deepEqual(client.status().overridden, ['default/stock'])
    await views.return()
    await client.close()
  })

  test('comes into force and leaves without a restart', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    made.disk.write(OVERRIDE, JSON.stringify({ nodes }))
    await settle()
    assert.equal(client.pick('stock').node.id, '10.0.0.9:80')
    made.disk.files.delete(OVERRIDE)
    made.disk.announce(OVERRIDE)
    await settle()
    assert.equal(client.pick('stock').node.id, 'a')
    assert.equal((await client.resolve('stock')).overridden, false)
    await client.close()
  })

  test('is found without a file event too, even for a service of which nothing is known', async () => {
    const made = world()
    made.disk.fail = (operation) => (operation === 'watch' ? 'ENOSPC' : undefined)
    const client = await made.start()
    const resolving = client.resolve('stock', { deadline: '1m' })
    await settle()
    made.disk.write(OVERRIDE, JSON.stringify({ nodes }))
    await made.clock.advance(5_000)
    assert.deepEqual(idsOf((await resolving).view), ['10.0.0.9:80'])
    made.disk.files.delete(OVERRIDE)
    await made.clock.advance(5_000)
    assert.equal(client.peek('stock'), undefined)
    await client.close()
  })

  test('in force unchanged it is not yielded again', async () => {
    const made = world()
    made.disk.write(OVERRIDE, JSON.stringify({ nodes, policy: { timeout: '1s' } }))
    const client = await made.start()
    const views = client.watch('stock')
    await views.next()
    let yielded = 0
    void views.next().then(({ done }) => (yielded += done ? 0 : 1))
    await made.clock.advance(60_000)
    assert.equal(yielded, 0)
    await client.close()
  })

  test('is as old as now: maxStale does not reject it', async () => {
    const made = await worldWithFile('a')
    await made.clock.advance(3_600_000)
    made.disk.write(OVERRIDE, JSON.stringify({ nodes }))
    const client = await made.start()
    assert.equal((await client.resolve('stock', { maxStale: '1s' })).age, 0)
    await client.close()
  })
})
