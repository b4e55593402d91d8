import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { encodeView } from '@holdfast/registry-client/protocol'
import { asking, failure, FILE, OVERRIDE, resolved, world, worldWithFile } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, removalOf, snapshotOf, viewOf } from '../support/sample-views.ts'
import { answer } from '../support/scripted-network.ts'

describe('resolve', () => {
  test('waits for the registry, then answers from memory', async () => {
    const made = world()
    const client = await made.start()
    const first = await resolved(made, client, 'a')
    assert.equal(first.source, 'registry')
    assert.deepEqual(idsOf(first.view), ['a'])
    const second = await client.resolve('stock')
    assert.equal(second.source, 'memory')
    assert.equal(second.view, first.view)
    assert.deepEqual(second.cursor, { epoch: 'e', revision: 5 })
    await client.close()
  })

  test('a failure to resolve is not kept as an empty list', async () => {
    const made = world()
    const { network, disk, clock } = made
    const client = await made.start()
    const failing = failure(client.resolve('stock', { deadline: '1s' }))
    await clock.advance(1_000)
    assert.equal((await failing).code, 'unresolved')
    assert.equal(client.peek('stock'), undefined)
    assert.deepEqual(client.views(), [])
    assert.equal(disk.files.size, 0)
    await network.stream.accept()
    const again = client.resolve('stock')
    await network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:5')
    assert.deepEqual(idsOf((await again).view), ['a'])
    await client.close()
  })

  test('an unresolved service tells what was tried', async () => {
    const { start, network, clock } = world()
    const client = await start()
    await network.stream.cut('connect ECONNREFUSED 10.0.0.1:7400')
    const failing = failure(client.resolve('stock', { deadline: 250 }))
    await clock.advance(250)
    const error = await failing
    assert.deepEqual(error.tried, [
      { level: 'memory', outcome: 'nothing' },
      { level: 'file', outcome: 'nothing readable' },
      { level: 'registry', outcome: 'http://registry:7400: connect ECONNREFUSED 10.0.0.1:7400' },
    ])
    assert.match(error.message, /^stock: unresolved \(memory: nothing; file: .*ECONNREFUSED/)
    await client.close()
  })

  test('a service that the registry never heard of is an error of its own, and nothing is written', async () => {
    const { start, network, disk, clock } = world()
    const client = await start()
    await network.stream.accept()
    const resolving = failure(client.resolve('stock'))
    await settle()
    await network.stream.event('snapshot', snapshotOf('e:0'), 'e:5')
    assert.equal((await resolving).code, 'unknown_service')
    assert.equal((await failure(client.resolve('stock'))).code, 'unknown_service')
    assert.equal(client.peek('stock'), undefined)
    await clock.advance(60_000)
    await network.stream.event('ping', {}, 'e:5')
    await client.close()
    assert.equal(disk.files.size, 0)
  })

  test('of names that nobody registered few are followed, and none for long', async () => {
    const { start, network, clock } = world()
    const client = await start()
    const { stream } = network
    await stream.accept()
    const ask = async (name: string) => {
      const resolving = failure(client.resolve(name))
      await settle()
      await stream.event('snapshot', snapshotOf('e:0', [], { service: name }), 'e:5')
      assert.equal((await resolving).code, 'unknown_service')
    }
    for (let index = 0; index < 1_010; index++) await ask(`nobody-${index}`)
    assert.equal(client.status().services, 1_000)
    assert.equal(stream.sent.filter(({ type }) => type === 'unsubscribe').length, 10)
    await clock.advance(20_000)
    await stream.event('ping', {}, 'e:5')
    await ask('late')
    for (let waited = 0; waited < 60_000; waited += 20_000) {
      await clock.advance(20_000)
      await stream.event('ping', {}, 'e:5')
    }
    assert.equal(client.status().services, 0)
    await client.close()
  })

  test('a name that was unknown is found once it is registered, and stays', async () => {
    const made = world()
    const client = await made.start()
    const { stream } = made.network
    await stream.accept()
    const resolving = failure(client.resolve('stock'))
    await settle()
    await stream.event('snapshot', snapshotOf('e:0'), 'e:5')
    await resolving
    await stream.event('change', changeOf('e:0', 'e:6', ['a']), 'e:6')
    await made.clock.advance(24_000)
    await stream.event('ping', {}, 'e:6')
    for (let waited = 0; waited < 120_000; waited += 20_000) {
      await made.clock.advance(20_000)
      await stream.event('ping', {}, 'e:6')
    }
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    await client.close()
  })

  test('an unknown service is written neither while an operator overrides it', async () => {
    const { start, network, disk, clock } = world()
    disk.write(OVERRIDE, JSON.stringify({ nodes: [{ host: '10.0.0.9', port: 80 }] }))
    const client = await start()
    await network.stream.accept()
    assert.equal((await client.resolve('stock')).overridden, true)
    await network.stream.event('snapshot', snapshotOf('e:0'), 'e:5')
    await clock.advance(60_000)
    await network.stream.event('ping', {}, 'e:5')
    await client.close()
    assert.deepEqual([...disk.files.keys()], [OVERRIDE])
  })

  test('a known service without nodes is an answer', async () => {
    const { start, network } = world()
    const client = await start()
    await network.stream.accept()
    const resolving = client.resolve('stock')
    await settle()
    await network.stream.event('snapshot', snapshotOf('e:4', [], { emptied: removalOf('a', 4) }), 'e:5')
    assert.deepEqual((await resolving).nodes, [])
    assert.throws(() => client.pick('stock'), /stock has no nodes/)
    await client.close()
  })

  test('maxStale bounds the age of what is accepted during an outage', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    await made.clock.advance(60_000)
    assert.equal((await client.resolve('stock', { maxStale: '2m' })).age, 60_000)
    const failing = failure(client.resolve('stock', { maxStale: '30s', deadline: '1s' }))
    await made.clock.advance(1_000)
    const error = await failing
    assert.equal(error.code, 'stale')
    assert.deepEqual(error.tried[0], { level: 'memory', outcome: '61000 ms old' })
    // The call was refused; the view is still there for those who accept it.
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    await client.close()
  })

  test('an aborted signal ends the wait', async () => {
    const { start } = world()
    const client = await start()
    const stop = new AbortController()
    const failing = failure(client.resolve('stock', { signal: stop.signal }))
    stop.abort()
    assert.equal((await failing).code, 'unresolved')
    await client.close()
  })

  test('names and durations that cannot be are refused with a TypeError', async () => {
    const { start } = world()
    const client = await start()
    for (const name of ['', 'Stock', '../etc/passwd', 'a..b', 'a/b', `${'a'.repeat(129)}`])
      await assert.rejects(client.resolve(name), TypeError, name)
    await assert.rejects(client.resolve('stock', { namespace: '../x' }), TypeError)
    await assert.rejects(client.resolve('stock', { maxStale: '10' }), /maxStale: must be a duration with its unit/)
    await assert.rejects(client.resolve('stock', { deadline: NaN }), /deadline/)
    await assert.rejects(client.resolve('stock', { deadline: -1 }), /deadline/)
    await client.close()
  })

  test('what is handed out cannot be changed', async () => {
    const made = world()
    const client = await made.start()
    const answer = await resolved(made, client, 'a')
    const nodes = answer.view.nodes as Map<string, unknown>
    assert.throws(() => nodes.delete('a'), TypeError)
    assert.throws(() => nodes.set('b', {}), TypeError)
    assert.throws(() => nodes.clear(), TypeError)
    for (const part of [answer, answer.view, answer.nodes, answer.cursor, answer.nodes[0]!, answer.nodes[0]!.labels])
      assert.ok(Object.isFrozen(part))
    await made.network.stream.event('change', changeOf('e:5', 'e:6', ['b']), 'e:6')
    const next = (await client.resolve('stock')).view.nodes as Map<string, unknown>
    assert.throws(() => next.delete('a'), TypeError)
    assert.deepEqual([...next.keys()], ['a', 'b'])
    assert.deepEqual(idsOf(answer.view), ['a'])
    await client.close()
  })

  test('a view of 10,000 nodes is resolved, changed, saved and read again', async () => {
    const made = world()
    const ids = Array.from({ length: 10_000 }, (_, index) => `node-${index}`)
    const client = await made.start()
    assert.equal((await resolved(made, client, ...ids)).nodes.length, 10_000)
    await made.network.stream.event('change', changeOf('e:5', 'e:6', [], [removalOf('node-7', 6)]), 'e:6')
    assert.equal((await client.resolve('stock')).nodes.length, 9_999)
    await client.close()
    const again = await made.start()
    const answer = await again.resolve('stock')
    assert.equal(answer.source, 'file')
    assert.equal(answer.nodes.length, 9_999)
    assert.equal(answer.view.nodes.has('node-7'), false)
    await again.close()
  })
})

describe('frames', () => {
  test('a cursor never goes back within an epoch', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b')
    await made.network.stream.event('snapshot', snapshotOf('e:3', ['old']), 'e:3')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    await made.network.stream.event('change', changeOf('e:3', 'e:4', ['older']), 'e:5')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    await made.network.stream.event('change', changeOf('e:5', 'e:6', ['c']), 'e:6')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b', 'c'])
    await client.close()
  })

  test('a gap asks for one snapshot, however many frames follow before it comes', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const { stream } = made.network
    for (let revision = 8; revision < 12; revision++)
      await stream.event(
        'change',
        changeOf(`e:${revision}`, `e:${revision + 1}`, [`n${revision}`]),
        `e:${revision + 1}`,
      )
    assert.deepEqual(stream.subscribed.slice(1), [{ namespace: 'default', service: 'stock' }])
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    assert.equal(client.status().restarts, 1)
    await stream.event('snapshot', snapshotOf('e:12', ['a', 'b']), 'e:12')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    await stream.event('change', changeOf('e:20', 'e:21', ['x']), 'e:21')
    assert.equal(client.status().restarts, 2)
    await client.close()
  })

  test('a view that waits for its snapshot is not confirmed meanwhile', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    await made.clock.advance(20_000)
    await made.network.stream.accept()
    await made.network.stream.event('change', changeOf('e:8', 'e:9', ['b']), 'e:9')
    // Under way before the registry was asked for the snapshot.
    await made.network.stream.event('ping', { subscribed: 2 }, 'e:9')
    assert.equal((await client.resolve('stock')).age, 20_000)
    await client.close()
  })

  test('frames of services that nobody asked for change nothing', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.network.stream.event('snapshot', snapshotOf('e:6', ['x'], { service: 'other' }), 'e:6')
    assert.equal(client.peek('other'), undefined)
    assert.equal(client.status().services, 1)
    await client.close()
  })

  test('two namespaces keep their services apart', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const other = client.resolve('stock', { namespace: 'blue' })
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:6', ['b'], { namespace: 'blue' }), 'e:6')
    assert.deepEqual(idsOf((await other).view), ['b'])
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    assert.equal(client.pick('stock', { namespace: 'blue' }).node.id, 'b')
    await client.close()
  })
})

describe('close', () => {
  test('writes what is not yet on disk, and leaves no timer and no watcher', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    await made.clock.advance(100)
    for (let revision = 5; revision < 9; revision++)
      await made.network.stream.event('change', changeOf(`e:${revision}`, `e:${revision + 1}`, [`n${revision}`]))
    await client.close()
    assert.equal(made.clock.pending, 0)
    assert.equal(made.disk.watchers, 0)
    assert.match(made.disk.files.get(FILE)!.content, /"e:9"/)
  })

  test('leaves no timer when nodes are ejected, calls still run and the registry does not answer', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b', 'c')
    const running = Array.from({ length: 12 }, () => client.pick('stock'))
    for (const pick of running.slice(0, 9)) pick.done('failed')
    made.network.respond = () => new Promise(() => {})
    const registering = client.register({ service: 'shop', port: 1 })
    await made.clock.advance(3_000)
    assert.equal((await registering).state, 'pending')
    const closing = client.close()
    await made.clock.advance(3_000)
    await closing
    for (const pick of running.slice(9)) for (let i = 0; i < 3; i++) pick.done('failed')
    assert.equal(made.clock.pending, 0)
  })

  test('ends what waits, and refuses what comes after', async () => {
    const made = world()
    const client = await made.start()
    const waiting = failure(client.resolve('stock', { deadline: '1h' }))
    await settle()
    await client.close()
    assert.equal((await waiting).code, 'closed')
    assert.equal((await failure(client.resolve('stock'))).code, 'closed')
    await assert.rejects(client.register({ service: 'stock', port: 1 }), /closed/)
    await client.close()
    assert.equal(made.clock.pending, 0)
  })

  test('while a file is read subscribes nothing', async () => {
    const made = await worldWithFile('a')
    const client = await made.start()
    await made.network.stream.accept()
    const waiting = failure(client.resolve('stock'))
    await client.close()
    assert.equal((await waiting).code, 'closed')
    assert.deepEqual(made.network.stream.subscribed, [])
    assert.deepEqual(client.views(), [])
    assert.equal(made.clock.pending, 0)
  })

  test('ends the lease of what is registered', async () => {
    const made = world()
    made.network.respond = (call) => (call.path === '/v1/leases' ? answer(201, { id: 'L1' }) : answer(200, {}))
    const client = await made.start()
    const registration = await client.register({ service: 'stock', port: 8080 })
    assert.equal(registration.state, 'registered')
    assert.equal(client.status().registrations, 1)
    await client.close()
    assert.equal(registration.state, 'closed')
    assert.equal(`${made.network.calls.at(-1)!.method} ${made.network.calls.at(-1)!.path}`, 'DELETE /v1/leases/L1')
    assert.equal(made.clock.pending, 0)
  })
})

test('the policy chooses the strategy, and one that cannot be read falls back to taking turns', async () => {
  const made = world()
  const { client, resolving } = await asking(made)
  const policies: object[] = [
    { loadBalancing: { strategy: 'random' } },
    { loadBalancing: 7 },
    { loadBalancing: null },
    {},
  ]
  for (const [index, policy] of policies.entries()) {
    const view = viewOf(`e:${index + 5}`, ['a', 'b', 'c'], { policy })
    await made.network.stream.event('snapshot', encodeView(view), `e:${index + 5}`)
    const picked = Array.from({ length: 30 }, () => client.pick('stock').node.id)
    const repeats = picked.some((id, at) => id === picked[at + 1])
    assert.equal(repeats, index === 0, JSON.stringify(policy))
  }
  await resolving
  await client.close()
})
