import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { asking, failure, FILE, OVERRIDE, resolved, world, worldWithFile } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, removalOf, snapshotOf } from '../support/sample-views.ts'

describe('never empty without proof', () => {
  test('an empty snapshot of another epoch is kept aside, visible, and the last view stays', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b')
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:0')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    assert.equal(client.status().quarantined.length, 1)
    assert.equal(made.log.of('warn', 'without a cause').length, 1)
    assert.ok(client.pick('stock'))
    await client.close()
    assert.match(made.disk.files.get(FILE)!.content, /"e:5"/)
  })

  test('it is released once every node has returned or was removed', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b')
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:0')
    await made.network.stream.event('change', changeOf('wiped:0', 'wiped:1', ['b', 'c']), 'wiped:1')
    assert.deepEqual(idsOf((await client.resolve('stock')).view).sort(), ['a', 'b', 'c'])
    assert.equal(client.status().quarantined.length, 1)
    await made.network.stream.event('change', changeOf('wiped:1', 'wiped:2', ['a']), 'wiped:2')
    assert.deepEqual(idsOf((await client.resolve('stock')).view).sort(), ['a', 'b', 'c'])
    assert.deepEqual(client.status().quarantined, [])
    await client.close()
  })

  test('an empty snapshot of the same epoch without a cause is kept aside, and released by a proof', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.event('snapshot', snapshotOf('e:8'), 'e:8')
    assert.equal(client.status().quarantined.length, 1)
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    await made.network.stream.event('snapshot', snapshotOf('e:9', [], { emptied: removalOf('a', 9) }), 'e:9')
    assert.deepEqual((await client.resolve('stock')).nodes, [])
    assert.deepEqual(client.status().quarantined, [])
    await client.close()
  })

  test('a quarantined view is not confirmed by pings: its age shows', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    await made.clock.advance(20_000)
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:0')
    await made.clock.advance(10_000)
    await made.network.stream.event('ping', {}, 'wiped:0')
    assert.equal((await client.resolve('stock')).age, 30_000)
    await client.close()
  })

  test('a change that removes the last node with its cause empties the service', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b')
    const gone = [removalOf('a', 6), removalOf('b', 7, 'lease_expired')]
    await made.network.stream.event('change', changeOf('e:5', 'e:7', [], gone), 'e:7')
    const answer = await client.resolve('stock')
    assert.deepEqual(answer.nodes, [])
    assert.deepEqual(answer.view.emptied, gone[1])
    await client.close()
  })

  test('a restarted registry that lost everything does not empty what a file says', async () => {
    const { start, network } = await worldWithFile('a')
    const client = await start()
    await network.stream.accept()
    await client.resolve('stock')
    await network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:0')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    await client.close()
  })
})

describe('a quarantine is seen', () => {
  test('in the status: which service, what is kept, since when and why', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b')
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:0')
    await made.clock.advance(7_000)
    const expected = { namespace: 'default', service: 'stock', reason: 'unknown', forMs: 7_000, kept: 2 }
    assert.deepEqual(client.status().quarantined, [{ ...expected, nodes: ['a', 'b'], heard: 'wiped:0' }])
    await made.network.stream.event('change', changeOf('wiped:0', 'wiped:4', ['b']), 'wiped:4')
    assert.deepEqual(client.status().quarantined, [
      { ...expected, reason: 'incomplete', kept: 1, nodes: ['a'], heard: 'wiped:4' },
    ])
    assert.equal(client.metrics().quarantines, 1)
    assert.equal(client.metrics().released, 0)
    await client.close()
  })

  test('in the log when it begins, and when it is released, with the proof', async () => {
    const cases = [
      { proof: changeOf('wiped:0', 'wiped:3', ['a', 'b']), present: 2, removed: 0, lapsed: 0 },
      {
        proof: changeOf('wiped:0', 'wiped:3', ['b'], [removalOf('a', 2, 'operator')]),
        present: 1,
        removed: 1,
        lapsed: 0,
      },
    ]
    for (const { proof, ...counts } of cases) {
      const made = world()
      const client = await made.start()
      await resolved(made, client, 'a', 'b')
      await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:0')
      const begun = made.log.lines.filter(({ level }) => level === 'warn')
      assert.deepEqual(begun.at(-1)?.fields, { namespace: 'default', service: 'stock', kept: 2, reason: 'unknown' })
      await made.clock.advance(2_500)
      await made.network.stream.event('change', proof, 'wiped:3')
      const released = made.log.lines.filter(({ message }) => message.startsWith('quarantine released'))
      assert.deepEqual(
        released.map(({ fields }) => fields),
        [{ namespace: 'default', service: 'stock', keptMs: 2_500, ...counts }],
      )
      assert.equal(client.metrics().released, 1)
      assert.deepEqual(client.status().quarantined, [])
      await client.close()
    }
  })

  test('released by time where leases had ten minutes to come back, the log says so', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b')
    await made.network.stream.event('snapshot', snapshotOf('wiped:3', ['a']), 'wiped:3')
    for (let waited = 0; waited <= 600_000; waited += 20_000) {
      await made.clock.advance(20_000)
      await made.network.stream.event('ping', {}, 'wiped:3')
    }
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    const released = made.log.lines.find(({ message }) => message.startsWith('quarantine released'))
    assert.match(JSON.stringify(released?.fields), /"present":1,"removed":0,"lapsed":1/)
    await client.close()
  })

  test('released when the registry speaks of the old history again', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:0')
    await made.network.stream.cut()
    await made.clock.advance(10_000)
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:5')
    assert.deepEqual(client.status().quarantined, [])
    assert.equal(made.log.of('info', 'quarantine released').length, 1)
    await client.close()
  })
})

describe('negative answers', () => {
  test('of a service that was known: the view stays, and so does its file', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.clock.advance(1_000)
    const before = made.disk.files.get(FILE)!.content
    await made.network.stream.event('snapshot', snapshotOf('e:0'), 'e:9')
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:1')
    await made.clock.advance(1_000)
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    for (let waited = 0; waited < 120_000; waited += 20_000) {
      await made.clock.advance(20_000)
      await made.network.stream.event('ping', {}, 'wiped:1')
    }
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    assert.equal(client.status().unknown, 0)
    await client.close()
    assert.equal(made.disk.files.get(FILE)!.content, before)
  })

  test('of a service known to have no nodes: it is still known, with its policy', async () => {
    const made = world()
    const { client, resolving } = await asking(made)
    const policy = { timeout: '1s' }
    await made.network.stream.event('snapshot', snapshotOf('e:4', [], { policy }), 'e:5')
    await resolving
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:1')
    const answer = await client.resolve('stock')
    assert.deepEqual([answer.nodes, answer.policy], [[], policy])
    assert.equal(client.status().quarantined[0]?.reason, 'unknown')
    await made.network.stream.event('change', changeOf('wiped:0', 'wiped:2', ['new']), 'wiped:2')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['new'])
    assert.deepEqual(client.status().quarantined, [])
    await client.close()
  })

  test('while a file of the service is there: the file answers', async () => {
    const { start, network, disk } = await worldWithFile('a')
    const before = disk.files.get(FILE)!.content
    for (const unknown of ['e:0', 'wiped:0']) {
      const client = await start()
      await network.stream.accept()
      await client.resolve('stock')
      await network.stream.event('snapshot', snapshotOf(unknown), 'wiped:1')
      assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'], unknown)
      await client.close()
      assert.equal(disk.files.get(FILE)!.content, before)
    }
  })

  test('while an override is in force: it answers, and once it is gone nothing is known', async () => {
    const { start, network, disk } = world()
    disk.write(OVERRIDE, JSON.stringify({ nodes: [{ host: '10.0.0.9', port: 80 }] }))
    const client = await start()
    await network.stream.accept()
    await client.resolve('stock')
    await network.stream.event('snapshot', snapshotOf('e:0'), 'e:5')
    assert.equal((await client.resolve('stock')).overridden, true)
    disk.files.delete(OVERRIDE)
    disk.announce(OVERRIDE)
    await settle()
    assert.equal((await failure(client.resolve('stock'))).code, 'unknown_service')
    assert.deepEqual([...disk.files.keys()], [])
    await client.close()
  })

  test('are kept for as long as the registry is silent, then asked for anew', async () => {
    const made = world()
    const client = await made.start()
    await made.network.stream.accept()
    const resolving = failure(client.resolve('stock'))
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:0'), 'e:5')
    await resolving
    await made.network.stream.cut('refused')
    await made.clock.advance(3_600_000)
    const error = await failure(client.resolve('stock'))
    assert.equal(error.code, 'unknown_service')
    assert.match(error.message, /never heard of it, as it said 3600000 ms ago; http:\/\/registry:7400: /)
    assert.equal(client.metrics().negativeAnswers, 1)
    await made.network.stream.accept()
    await made.network.stream.event('ping', {}, 'e:5')
    assert.equal(client.status().services, 0)
    await client.close()
  })
})
