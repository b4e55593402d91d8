import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { encodeView } from '@holdfast/registry-client/protocol'
import { failure, resolved, world, worldWithFile } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, nodeOf, removalOf, snapshotOf, viewOf } from '../support/sample-views.ts'
import { answer } from '../support/scripted-network.ts'

const FILE = '/cache/default/stock.json'
const OVERRIDE = '/cache/default/stock.override.json'

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

describe('watch', () => {
  test('yields the current view, then each change', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const views = client.watch('stock')
    assert.deepEqual(idsOf((await views.next()).value!.view), ['a'])
    const next = views.next()
    await made.network.stream.event('change', changeOf('e:5', 'e:6', ['b']), 'e:6')
    assert.deepEqual(idsOf((await next).value!.view), ['a', 'b'])
    await views.return()
    await client.close()
  })

  test('a slow consumer gets the latest, not each', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const views = client.watch('stock')
    await views.next()
    for (let revision = 5; revision < 105; revision++)
      await made.network.stream.event(
        'change',
        changeOf(`e:${revision}`, `e:${revision + 1}`, [nodeOf('a', { weight: revision })]),
      )
    assert.equal((await views.next()).value!.cursor.revision, 105)
    await views.return()
    await client.close()
  })

  test('what is confirmed but unchanged is not yielded again', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    const views = client.watch('stock')
    await views.next()
    let yielded = 0
    void views.next().then(({ done }) => (yielded += done ? 0 : 1))
    for (let i = 0; i < 5; i++) await made.network.stream.event('ping', {}, 'e:5')
    await settle()
    assert.equal(yielded, 0)
    await client.close()
  })

  test('waits through an outage at the start', async () => {
    const { start, network, clock } = world()
    const client = await start()
    const first = client.watch('stock').next()
    await network.stream.cut()
    await clock.advance(60_000)
    await network.stream.accept()
    await network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:5')
    assert.deepEqual(idsOf((await first).value!.view), ['a'])
    await client.close()
  })

  test('ends when the client closes, and when its signal aborts', async () => {
    const made = world()
    const client = await made.start()
    const stop = new AbortController()
    const aborted = client.watch('stock', { signal: stop.signal }).next()
    const closed = client.watch('stock').next()
    await settle()
    stop.abort()
    assert.deepEqual(await aborted, { done: true, value: undefined })
    await client.close()
    assert.deepEqual(await closed, { done: true, value: undefined })
  })

  test('goes on when an override of an unknown service goes away, without spinning', async () => {
    const made = world()
    made.disk.write(OVERRIDE, '{"nodes":[{"host":"10.0.0.9","port":9}]}')
    const client = await made.start()
    await made.network.stream.accept()
    const views = client.watch('stock')
    assert.deepEqual(idsOf((await views.next()).value!.view), ['10.0.0.9:9'])
    await made.network.stream.event('snapshot', snapshotOf('e:0'), 'e:3')
    let next: string[] | undefined
    const later = views.next().then(({ value }) => (next = idsOf(value!.view)))
    made.disk.files.delete(OVERRIDE)
    made.disk.announce(OVERRIDE)
    await settle()
    assert.equal(client.peek('stock'), undefined)
    assert.equal(next, undefined)
    await made.network.stream.event('change', changeOf('e:0', 'e:4', ['a']), 'e:4')
    await later
    assert.deepEqual(next, ['a'])
    await client.close()
  })

  test('a watched service is never evicted', async () => {
    const made = world()
    const client = await made.start({ maxNodes: 3 })
    await resolved(made, client, 'a')
    const views = client.watch('stock')
    await views.next()
    for (const service of ['b', 'c', 'd', 'e']) {
      const resolving = client.resolve(service)
      await settle()
      await made.network.stream.event('snapshot', snapshotOf('e:5', ['n'], { service }), 'e:5')
      await resolving
    }
    assert.ok(client.peek('stock'))
    assert.equal(client.peek('b'), undefined)
    await views.return()
    const resolving = client.resolve('f')
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['n', 'm'], { service: 'f' }), 'e:5')
    await resolving
    assert.equal(client.peek('stock'), undefined)
    await client.close()
  })
})

describe('eviction', () => {
  test('unsubscribes what has to make room, and follows it afresh when it is asked for again', async () => {
    const made = world()
    const client = await made.start({ maxNodes: 4 })
    await resolved(made, client, 'a', 'b')
    const other = client.resolve('other')
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['x'], { service: 'other' }), 'e:5')
    await other
    assert.deepEqual(
      made.network.stream.sent.filter((message) => message.type === 'unsubscribe'),
      [{ type: 'unsubscribe', services: [{ namespace: 'default', service: 'stock' }] }],
    )
    assert.equal(client.peek('stock'), undefined)
    assert.throws(() => client.pick('stock'))
    const again = await client.resolve('stock')
    assert.equal(again.source, 'file')
    assert.ok(client.pick('stock'))
    await settle()
    assert.deepEqual(made.network.stream.subscribed.at(-1), { namespace: 'default', service: 'stock', cursor: 'e:5' })
    await client.close()
  })

  test('a service that was evicted while its file was read for long does not come back by itself', async () => {
    const made = await worldWithFile('a')
    let letGo: () => void = () => {}
    const held = new Promise<void>((resolve) => (letGo = resolve))
    made.disk.hold = (operation, file) => (operation === 'read' && file.startsWith(FILE) ? held : undefined)
    const client = await made.start({ maxServices: 1 })
    await made.network.stream.accept()
    const stop = new AbortController()
    const given = failure(client.resolve('stock', { signal: stop.signal }))
    stop.abort()
    await given
    // So long it is held.
    await made.clock.advance(1_000)
    const other = failure(client.resolve('other', { deadline: 2 }))
    await made.clock.advance(2)
    await other
    letGo()
    await settle()
    assert.equal(client.peek('stock'), undefined)
    await client.close()
  })

  test('a service whose file is read is held until there is something to judge its worth by', async () => {
    const made = await worldWithFile('a')
    let letGo: () => void = () => {}
    const held = new Promise<void>((resolve) => (letGo = resolve))
    made.disk.hold = (operation, file) => (operation === 'read' && file.startsWith(FILE) ? held : undefined)
    const client = await made.start({ maxServices: 1 })
    await made.network.stream.accept()
    const resolving = client.resolve('stock')
    for (const name of ['x', 'y', 'z']) {
      const other = failure(client.resolve(name, { deadline: 1 }))
      await made.clock.advance(1)
      await other
    }
    letGo()
    assert.deepEqual(idsOf((await resolving).view), ['a'])
    await client.close()
  })

  test('a service that is waited for is not evicted', async () => {
    const made = world()
    const client = await made.start({ maxNodes: 1 })
    await made.network.stream.accept()
    const services = ['a', 'b', 'c']
    const resolving = services.map((service) => client.resolve(service))
    await settle()
    for (const service of services)
      await made.network.stream.event('snapshot', snapshotOf('e:5', [service], { service }), 'e:5')
    assert.deepEqual(
      (await Promise.all(resolving)).map(({ nodes }) => nodes[0]!.id),
      services,
    )
    await client.close()
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
  const client = await made.start()
  await made.network.stream.accept()
  const resolving = client.resolve('stock')
  await settle()
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
