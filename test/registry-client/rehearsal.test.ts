import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { resolved, world, worldWithFile } from '../support/client-world.ts'
import { nodeOf, removalOf, snapshotOf } from '../support/sample-views.ts'
import { answer, problem } from '../support/scripted-network.ts'

const PEERS = ['http://one:7503']

describe('a rehearsal', () => {
  test('tells of each level whether it would answer, how old, and how many nodes take traffic', async () => {
    const made = await worldWithFile('a')
    await made.clock.advance(60_000)
    const client = await made.start({ peers: PEERS })
    await made.network.stream.accept()
    await client.resolve('stock')
    const nodes = [nodeOf('a'), nodeOf('b', { weight: 0 }), nodeOf('c', { status: 'draining' })]
    await made.network.stream.event('snapshot', snapshotOf('e:9', nodes), 'e:9')
    made.disk.fail = (operation) => (operation === 'create' ? 'ENOSPC' : undefined)
    await made.network.stream.event('snapshot', snapshotOf('e:10', nodes), 'e:10')
    await made.clock.advance(5_000)
    made.network.respond = () => answer(200, { ...snapshotOf('e:3', ['x', 'y']), age: 30_000 })
    assert.deepEqual(await client.rehearse([{ service: 'stock' }]), [
      {
        namespace: 'default',
        service: 'stock',
        resolves: true,
        level: 'memory',
        levels: {
          memory: { resolves: true, age: 5_000, nodes: 3, usable: 1 },
          file: { resolves: true, age: 5_000, nodes: 3, usable: 1 },
          peer: { resolves: true, age: 30_000, nodes: 2, usable: 2 },
        },
      },
    ])
    await client.close()
  })

  test('really reads the file, and really asks: what is only thought to be there does not pass', async () => {
    const made = world()
    const client = await made.start({ peers: PEERS })
    await resolved(made, client, 'a')
    await made.clock.advance(5_000)
    made.network.respond = () => answer(200, { ...snapshotOf('e:5', ['a'], { service: 'other' }), age: 0 })
    const broken = { content: '{"schema":', at: '/cache/default/stock.json' }
    made.disk.write(broken.at, broken.content)
    const [found] = await client.rehearse()
    assert.deepEqual([found?.resolves, found?.level], [true, 'memory'])
    assert.deepEqual(found?.levels.file, { resolves: false, reason: 'no file that can be read' })
    assert.deepEqual(found?.levels.peer, {
      resolves: false,
      reason: 'no peer knows it',
      unanswered: ['http://one:7503: it holds default/other'],
    })
    await client.close()
  })

  test('of a service that is not followed begins with its file, then with a peer, then with nothing', async () => {
    const made = await worldWithFile('a')
    made.network.respond = (call) =>
      call.path.includes('/shop?')
        ? answer(200, { ...snapshotOf('e:5', ['s'], { service: 'shop' }), age: 1 })
        : problem(404, 'service_not_found')
    const client = await made.start({ peers: PEERS })
    const found = await client.rehearse([
      { service: 'stock' },
      { service: 'shop' },
      { service: 'never', namespace: 'blue' },
    ])
    assert.deepEqual(
      found.map(({ namespace, service, resolves, level }) => [namespace, service, resolves, level]),
      [
        ['default', 'stock', true, 'file'],
        ['default', 'shop', true, 'peer'],
        ['blue', 'never', false, undefined],
      ],
    )
    await assert.rejects(client.rehearse([{ service: 'No Name' }]), TypeError)
    await client.close()
  })

  test('says where a level is not there at all', async () => {
    const client = await world().start({ cacheDir: undefined })
    const [found] = await client.rehearse([{ service: 'stock' }])
    assert.deepEqual(
      Object.values(found!.levels).map(({ reason }) => reason),
      ['not in memory', 'no cache directory', 'no peers are configured'],
    )
    assert.deepEqual(await client.rehearse(), [])
    await client.close()
  })

  test('a service without nodes resolves, to none', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.event('snapshot', snapshotOf('e:6', [], { emptied: removalOf('a', 6) }), 'e:6')
    const [found] = await client.rehearse()
    assert.deepEqual(found?.levels.memory, { resolves: true, age: 0, nodes: 0, usable: 0 })
    await client.close()
  })

  test('a view without nodes and without proof of that would answer nobody', async () => {
    const made = world()
    made.network.respond = () => answer(200, { ...snapshotOf('e:5', []), age: 0 })
    const client = await made.start({ peers: PEERS })
    await resolved(made, client)
    await made.clock.advance(5_000)
    const [found] = await client.rehearse()
    assert.deepEqual([found?.resolves, found?.level], [false, undefined])
    const reason = 'no nodes, and no removal of the last'
    assert.deepEqual(found?.levels.memory, { resolves: false, reason })
    assert.equal(found?.levels.peer.resolves, false)
    await client.close()
  })

  test('changes nothing of what is served, followed or counted as use, and nothing on disk', async () => {
    const made = await worldWithFile('a')
    made.network.respond = () => answer(200, { ...snapshotOf('e:99', ['forged']), age: 0 })
    const client = await made.start({ peers: PEERS, idleAfter: '1m', maxServices: 2 })
    await made.network.stream.accept()
    await client.resolve('stock')
    await made.network.stream.event('ping', {}, 'e:5')
    made.disk.write('/cache/default/other.json', 'broken')
    const disk = () => JSON.stringify([...made.disk.files])
    const told = () => JSON.stringify([client.views(), made.network.stream.sent, client.status().memory])
    const said = () => made.log.lines.filter(({ level }) => level !== 'debug').length
    const before = [disk(), told(), said()]
    for (let i = 0; i < 20; i++) {
      await client.rehearse()
      await client.rehearse(['stock', 'other', 'never', 'x', 'y'].map((service) => ({ service })))
    }
    assert.deepEqual([disk(), told(), said()], before)
    assert.equal(client.status().file?.corrupt, 0)
    for (let i = 0; i < 12; i++) {
      await client.rehearse()
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'e:5')
    }
    // Rehearsed all the time, and idle all the same.
    assert.equal(client.status().services, 0)
    await client.close()
  })

  describe("beside an operator's override file", () => {
    const FILE = '/cache/default/stock.override.json'
    const drained = {
      nodes: [
        { host: '10.0.0.1', port: 80, status: 'draining' },
        { host: '10.0.0.2', port: 80 },
      ],
    }

    test('tells of memory and of file what it makes of them', async () => {
      const made = await worldWithFile('a', 'b', 'c')
      await made.clock.advance(10_000)
      made.disk.write(FILE, JSON.stringify(drained))
      const client = await made.start()
      const before = await client.rehearse([{ service: 'stock' }])
      assert.equal(before[0]?.level, 'file')
      const expected = { resolves: true, age: 0, overridden: true, nodes: 2, usable: 1 }
      assert.deepEqual(before[0]?.levels.file, expected)
      // Rehearsed only: nothing was put in force.
      assert.equal(client.status().file?.overrides, 0)
      await made.network.stream.cut('connect ECONNREFUSED')
      await client.resolve('stock')
      const after = await client.rehearse([{ service: 'stock' }])
      assert.deepEqual([after[0]?.levels.memory, after[0]?.levels.file], [expected, expected])
      await client.close()
    })

    test('that leaves no node, resolves to none, without proof', async () => {
      const made = await worldWithFile('a')
      made.disk.write(FILE, JSON.stringify({ nodes: [] }))
      const client = await made.start()
      const [found] = await client.rehearse([{ service: 'stock' }])
      assert.deepEqual(found?.levels.file, { resolves: true, age: 0, overridden: true, nodes: 0, usable: 0 })
      await client.close()
    })

    test('that is all there is, resolves by it', async () => {
      const made = world()
      made.disk.write(FILE, JSON.stringify(drained))
      const client = await made.start()
      await made.network.stream.cut('connect ECONNREFUSED')
      await client.resolve('stock')
      const [found] = await client.rehearse()
      const expected = { resolves: true, age: 0, overridden: true, nodes: 2, usable: 1 }
      assert.deepEqual([found?.levels.memory, found?.levels.file], [expected, expected])
      await client.close()
    })

    test('that a restart could not use, passes over it, and says and counts nothing', async () => {
      const made = await worldWithFile('a')
      const client = await made.start()
      made.disk.write(FILE, '{"nodes": [{"host": "x"}]}')
      const lines = made.log.lines.length
      const [found] = await client.rehearse([{ service: 'stock' }])
      assert.deepEqual(found?.levels.file, { resolves: true, age: 0, nodes: 1, usable: 1 })
      assert.deepEqual([made.log.lines.length, client.status().file?.malformedOverrides], [lines, 0])
      await client.close()
    })
  })
})
