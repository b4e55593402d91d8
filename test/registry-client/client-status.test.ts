import assert from 'node:assert/strict'
import { test } from 'node:test'
import { failure, resolved, world, worldWithFile } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, snapshotOf } from '../support/sample-views.ts'
import { answer, problem } from '../support/scripted-network.ts'

test('each level counts what it answered and what it could not', async () => {
  const made = await worldWithFile('a')
  made.network.respond = ({ path }) =>
    path.includes('/shop?')
      ? answer(200, { ...snapshotOf('e:5', ['s'], { service: 'shop' }), age: 20_000 })
      : problem(404, 'service_not_found')
  const client = await made.start({ peers: ['http://one:7503'] })
  await made.network.stream.cut('refused')
  await client.resolve('stock')
  await client.resolve('stock')
  await client.resolve('shop')
  const failing = failure(client.resolve('never', { deadline: '1s' }))
  await made.clock.advance(1_000)
  await failing
  await made.clock.advance(10_000)
  await made.network.stream.accept()
  const late = client.resolve('late')
  await settle()
  await made.network.stream.event('snapshot', snapshotOf('e:5', ['n'], { service: 'late' }), 'e:9')
  await late
  assert.deepEqual(client.metrics().levels, {
    memory: { hits: 1, misses: 4 },
    file: { hits: 1, misses: 3 },
    peer: { hits: 1, misses: 1 },
    registry: { hits: 1, misses: 1 },
  })
  const { asked, answered, unknown, failed } = client.metrics().peers
  assert.deepEqual([answered, failed, asked === answered + unknown], [1, 0, true])
  await client.close()
})

test('views are counted by where they come from, with the age of the oldest', async () => {
  const made = await worldWithFile('a')
  await made.clock.advance(90_000)
  made.network.respond = () => answer(200, { ...snapshotOf('e:5', ['s'], { service: 'shop' }), age: 20_000 })
  const client = await made.start({ peers: ['http://one:7503'] })
  await made.network.stream.cut('refused')
  await client.resolve('stock')
  await client.resolve('shop')
  assert.deepEqual(client.metrics().sources, {
    memory: { services: 0, oldestMs: 0 },
    file: { services: 1, oldestMs: 90_000 },
    peer: { services: 1, oldestMs: 20_000 },
  })
  await made.clock.advance(10_000)
  await made.network.stream.accept()
  await made.network.stream.event('snapshot', snapshotOf('e:5', ['s'], { service: 'shop' }), 'e:5')
  await made.network.stream.event('ping', {}, 'e:5')
  await made.clock.advance(3_000)
  assert.deepEqual(client.metrics().sources, {
    memory: { services: 2, oldestMs: 3_000 },
    file: { services: 0, oldestMs: 0 },
    peer: { services: 0, oldestMs: 0 },
  })
  await client.close()
})

test('services that come back with a cursor are counted by what they were sent', async () => {
  const made = world()
  const client = await made.start()
  await made.network.stream.accept()
  for (const service of ['nothing', 'change', 'snapshot']) {
    const resolving = client.resolve(service)
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['a'], { service }), 'e:5')
    await resolving
  }
  await made.network.stream.event('ping', {}, 'e:5')
  assert.deepEqual(client.metrics().resumes, { nothing: 0, change: 0, snapshot: 0 })
  await made.network.stream.cut()
  await made.clock.advance(10_000)
  await made.network.stream.accept()
  await made.network.stream.event('change', changeOf('e:5', 'e:6', ['b'], [], { service: 'change' }))
  await made.network.stream.event('change', changeOf('e:6', 'e:7', ['c'], [], { service: 'change' }))
  await made.network.stream.event('snapshot', snapshotOf('e:7', ['b'], { service: 'snapshot' }), 'e:7')
  await made.network.stream.event('ping', {}, 'e:7')
  assert.deepEqual(client.metrics().resumes, { nothing: 1, change: 1, snapshot: 1 })
  const { connection, snapshots, changes } = client.metrics()
  assert.deepEqual([connection.opened, connection.reconnects, snapshots, changes], [2, 1, 4, 2])
  await client.close()
})

test('a file is a resume token: a process that starts from it is counted as resumed', async () => {
  const made = await worldWithFile('a')
  const client = await made.start()
  await made.network.stream.accept()
  await client.resolve('stock')
  await made.network.stream.event('ping', {}, 'e:5')
  assert.deepEqual(client.metrics().resumes, { nothing: 1, change: 0, snapshot: 0 })
  await client.close()
})

test('the bounds that were met are counted', async () => {
  const made = world()
  const client = await made.start({ maxServices: 2 })
  await resolved(made, client, 'a')
  for (const service of ['b', 'c', 'd']) {
    const resolving = client.resolve(service)
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['n'], { service }), 'e:5')
    await resolving
  }
  assert.deepEqual(client.metrics().memory, {
    services: 2,
    pinned: 0,
    nodes: 2,
    evicted: { nodes: 0, services: 2, names: 0 },
  })
  await client.close()
})
