import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { failure, FILE, OVERRIDE, resolved, world, worldWithFile } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, nodeOf, snapshotOf } from '../support/sample-views.ts'

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
