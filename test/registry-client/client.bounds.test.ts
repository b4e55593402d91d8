import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { RegistryClient } from '@holdfast/registry-client'
import { failure, OVERRIDE, pass, resolved, world, worldWithFile, type World } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, removalOf, snapshotOf, viewOf } from '../support/sample-views.ts'

const HOUR_MS = 3_600_000

async function resolveAs(made: World, client: RegistryClient, service: string): Promise<void> {
  const resolving = client.resolve(service)
  await settle()
  await made.network.stream.event('snapshot', snapshotOf('e:5', ['n'], { service }), 'e:5')
  await resolving
}

const unsubscribed = ({ network }: World) =>
  network.stream.sent
    .filter(({ type }) => type === 'unsubscribe')
    .flatMap(({ services }) => (services as { service: string }[]).map(({ service }) => service))

describe('a service that nobody asks for any more', () => {
  test('is dropped and unsubscribed after an hour; one that is resolved, picked from or watched is not', async () => {
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a')
    for (const service of ['resolved', 'picked', 'watched']) await resolveAs(made, client, service)
    const watching = client.watch('watched')
    await watching.next()
    for (let minutes = 0; minutes < 70; minutes += 10) {
      await pass(made, 600_000)
      await client.resolve('resolved')
      client.pick('picked').done('ok')
      // Looking is no use.
      client.peek('stock')
      client.views()
      client.nodeReports('stock')
      await client.lookup('stock')
      await client.rehearse()
    }
    assert.deepEqual(unsubscribed(made), ['stock'])
    assert.equal(client.peek('stock'), undefined)
    assert.deepEqual(
      client
        .views()
        .map(({ view }) => view.service)
        .sort(),
      ['picked', 'resolved', 'watched'],
    )
    assert.equal(client.metrics().idled, 1)
    // What was known is not lost by it.
    const again = await client.resolve('stock')
    assert.deepEqual([idsOf(again.view), again.source], [['a'], 'file'])
    await watching.return()
    await pass(made, 2 * HOUR_MS)
    assert.equal(client.status().services, 0)
    await client.close()
  })

  test('stays for ever where that is what was asked for, and goes sooner where that was', async () => {
    for (const [idleAfter, left] of [
      [false, 1],
      [0, 1],
      ['30s', 0],
      [30_000, 0],
    ] as const) {
      const made = world()
      const client = await made.start({ idleAfter })
      await resolved(made, client, 'a')
      await pass(made, idleAfter ? 60_000 : 3 * HOUR_MS)
      assert.equal(client.status().services, left, `${idleAfter}`)
      await client.close()
    }
    await assert.rejects(world().start({ idleAfter: '1 hour' }), /idleAfter: must be a duration/)
    await assert.rejects(world().start({ idleAfter: -1 }), /idleAfter/)
  })

  test('is kept for as long as the registry is silent, cut off from its store, or has not confirmed it', async () => {
    const made = world()
    const client = await made.start({ idleAfter: '1m' })
    await resolved(made, client, 'a')
    await made.network.stream.cut()
    await made.clock.advance(24 * HOUR_MS)
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    await made.network.stream.accept()
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    for (let i = 0; i < 20; i++) {
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', { age: 5_000 }, 'e:5')
    }
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    // A frame of the service itself, or a word of its epoch, is what confirms it.
    for (let i = 0; i < 20; i++) {
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'other:5')
    }
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    await pass(made, 200_000)
    assert.equal(client.peek('stock'), undefined)
    await client.close()
  })

  test('is kept while its nodes are kept without proof', async () => {
    const made = world()
    const client = await made.start({ idleAfter: '1m' })
    await resolved(made, client, 'a')
    await made.network.stream.event('snapshot', snapshotOf('e:5', [], { service: 'stock' }), 'e:5')
    await made.network.stream.event('snapshot', snapshotOf('wiped:0'), 'wiped:5')
    for (let i = 0; i < 60; i++) {
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'wiped:5')
    }
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    await client.close()
  })

  test('is kept where its file does not hold it, and dropped where there is no file level', async () => {
    const made = world()
    const client = await made.start({ idleAfter: '1m' })
    made.disk.fail = (operation) => (operation === 'read' || operation === 'create' ? 'EIO' : undefined)
    await resolved(made, client, 'a')
    await pass(made, HOUR_MS)
    assert.deepEqual(idsOf(client.peek('stock')?.view), ['a'])
    made.disk.fail = () => undefined
    await pass(made, 600_000)
    assert.equal(client.peek('stock'), undefined)
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    await client.close()

    const bare = world()
    const other = await bare.start({ idleAfter: '1m', cacheDir: undefined })
    await resolved(bare, other, 'a')
    await pass(bare, 120_000)
    assert.equal(other.status().services, 0)
    await other.close()
  })

  test('is looked for in slices: of ten thousand, a ping looks at few, and all go in the end', async () => {
    const made = world()
    const client = await made.start({ idleAfter: '1m', cacheDir: undefined })
    await made.network.stream.accept()
    const services = Array.from({ length: 2_000 }, (_, index) => `s${index}`)
    const resolving = services.map((service) => client.resolve(service))
    await settle()
    for (const service of services)
      made.network.stream.handlers.message(
        JSON.stringify({ event: 'snapshot', data: snapshotOf('e:5', ['n'], { service }), id: 'e:5' }),
      )
    await Promise.all(resolving)
    let most = 0
    for (let i = 0; i < 60; i++) {
      const before = client.status().services
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'e:5')
      most = Math.max(most, before - client.status().services)
    }
    assert.equal(client.status().services, 0)
    assert.ok(most <= 500, `${most} at once`)
    assert.equal(client.metrics().idled, 2_000)
    await client.close()
  })
})

test('a service that grows over the bound may be the one that makes room, and leaves nothing behind', async () => {
  const made = world()
  const client = await made.start({ maxNodes: 5 })
  await resolved(made, client, 'a')
  const running = client.pick('stock')
  await resolveAs(made, client, 'other')
  await made.network.stream.event('change', changeOf('e:5', 'e:6', ['b', 'c']), 'e:6')
  assert.deepEqual(unsubscribed(made), ['stock'])
  assert.deepEqual([client.peek('stock'), client.status().memory.evicted.nodes], [undefined, 1])
  assert.throws(() => client.pick('stock'), { code: 'no_nodes' })
  for (let i = 0; i < 5; i++) running.done('failed')
  await made.network.stream.event('ping', {}, 'e:6')
  assert.equal((await client.resolve('stock')).source, 'file')
  await client.close()
  assert.equal(made.clock.pending, 0)
})

/** Tries to change everything that can be reached; returns what could be changed. */
function changeable(value: unknown, path: string, seen = new Set<unknown>()): string[] {
  if (typeof value !== 'object' || value === null || seen.has(value)) return []
  seen.add(value)
  const found: string[] = []
  const attempt = (what: string, change: () => unknown) => {
    try {
      if (change() !== false) found.push(`${path} ${what}`)
    } catch {
      // As it should be.
    }
  }
  attempt('takes a field', () => Reflect.set(value, 'forged', 1) && Reflect.deleteProperty(value, 'forged'))
  const methods = ['set', 'delete', 'clear', 'push', 'pop', 'splice', 'sort', 'reverse', 'fill'] as const
  for (const method of methods) {
    const mutate = (value as Partial<Record<string, (...args: unknown[]) => unknown>>)[method]
    if (typeof mutate === 'function') attempt(`.${method}()`, () => mutate.call(value, 'forged', { id: 'forged' }))
  }
  if ('get' in value && 'keys' in value)
    for (const inner of [...(value as Map<unknown, unknown>).values()])
      found.push(...changeable(inner, `${path}.get()`, seen))
  for (const key of Reflect.ownKeys(value)) {
    const descriptor = Reflect.getOwnPropertyDescriptor(value, key)!
    const inner = (value as Record<PropertyKey, unknown>)[key]
    if (descriptor.writable || descriptor.configurable) found.push(`${path}.${String(key)}`)
    found.push(...changeable(inner, `${path}.${String(key)}`, seen))
  }
  return found
}

describe('what is handed out cannot be changed', () => {
  const policy = { timeout: '1s', retry: { attempts: 2, on: ['connect_failure', '5xx'] } }
  const labelled = { labels: { version: 'v1' }, override: { weight: 5 } }

  async function everyKind(): Promise<{ client: RegistryClient; made: World }> {
    const made = await worldWithFile('a')
    const client = await made.start()
    await made.network.stream.accept()
    await client.resolve('stock')
    const node = { ...viewOf('e:6', ['a']).nodes.get('a')!, ...labelled }
    await made.network.stream.event('snapshot', snapshotOf('e:6', [node, 'b'], { policy }), 'e:6')
    await made.network.stream.event('change', changeOf('e:6', 'e:7', ['c'], [removalOf('b', 7)]), 'e:7')
    return { client, made }
  }

  test('neither an answer, nor a view that is watched, looked at or kept without proof', async () => {
    const { client, made } = await everyKind()
    const look = async () => {
      const watching = client.watch('stock')
      const shown = [
        await client.resolve('stock'),
        client.peek('stock'),
        client.views()[0],
        (await watching.next()).value,
        (await client.lookup('stock'))!.view,
        client.pick('stock').node,
      ]
      await watching.return()
      return shown
    }
    for (const [index, shown] of (await look()).entries()) assert.deepEqual(changeable(shown, `${index}`), [])
    await made.network.stream.event('snapshot', snapshotOf('wiped:3', ['new'], { policy }), 'wiped:3')
    assert.equal(client.status().quarantined.length, 1)
    for (const [index, shown] of (await look()).entries()) assert.deepEqual(changeable(shown, `kept ${index}`), [])
    made.disk.write(
      OVERRIDE,
      JSON.stringify({ nodes: [80, 81].map((port) => ({ host: '10.0.0.9', port, labels: { a: 'b' } })), policy }),
    )
    await made.clock.advance(10_000)
    // What checks its policy is loaded with the first one.
    while (!client.peek('stock')?.overridden) await settle()
    for (const [index, shown] of (await look()).entries()) assert.deepEqual(changeable(shown, `override ${index}`), [])
    await client.close()
  })

  test('and what is a copy changes nothing when it is changed', async () => {
    const { client } = await everyKind()
    const before = JSON.stringify([client.status(), client.metrics(), client.nodeReports('stock')])
    const views = client.views()
    views.length = 0
    client.nodeReports('stock').length = 0
    const status = client.status() as unknown as { quarantined: unknown[]; overridden: string[]; services: number }
    status.services = 99
    status.quarantined.push('forged')
    status.overridden.push('forged')
    Object.assign(client.metrics().levels.memory, { hits: 99 })
    Object.assign(client.metrics().resumes, { nothing: 99 })
    Object.assign(client.metrics().memory.evicted, { nodes: 99 })
    assert.equal(JSON.stringify([client.status(), client.metrics(), client.nodeReports('stock')]), before)
    await client.close()
  })
})

describe('what makes room', () => {
  const follow = async (made: World, client: RegistryClient, service: string, cursor = 'e:5', nodes = ['q']) => {
    const resolving = client.resolve(service)
    await settle()
    await made.network.stream.event('snapshot', snapshotOf(cursor, nodes, { service }), cursor)
    return resolving
  }

  test('a view in quarantine goes last, since nobody would say it again', async () => {
    const made = world()
    const client = await made.start({ cacheDir: undefined, maxServices: 2 })
    await resolved(made, client, 'a', 'b')
    await made.network.stream.event('snapshot', snapshotOf('new:3'), 'new:3')
    for (const service of ['o1', 'o2', 'o3']) await follow(made, client, service, 'new:3')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    assert.equal(client.status().quarantined.length, 1)
    assert.deepEqual(client.status().memory.evicted, { nodes: 0, services: 2, names: 0 })
    await client.close()
  })

  test('made-up names cost no view, in an outage or out of it', async () => {
    const made = world()
    const client = await made.start({ cacheDir: undefined, maxServices: 20 })
    await resolved(made, client, 'a', 'b')
    for (let name = 0; name < 30; name++) {
      const unknown = failure(client.resolve(`up${name}`))
      await settle()
      await made.network.stream.event('snapshot', snapshotOf('e:0', [], { service: `up${name}` }), 'e:5')
      await unknown
    }
    assert.equal(client.status().memory.evicted.names, 10)
    await made.network.stream.cut('dead')
    for (let name = 0; name < 50; name++) {
      const unknown = failure(client.resolve(`down${name}`, { deadline: 1 }))
      await made.clock.advance(1)
      await unknown
    }
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    const { services, memory } = client.status()
    assert.deepEqual([services, memory.evicted], [21, { nodes: 0, services: 0, names: 60 }])
    await client.close()
  })
})
