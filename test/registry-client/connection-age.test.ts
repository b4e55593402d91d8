/** What a client makes of a registry that says how old its own state may be. */

import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { connect, type RegistryClient } from '@holdfast/registry-client'
import { decodeEvent } from '@holdfast/registry-client/protocol'
import { FailingDisk } from '../support/failing-disk.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { snapshotOf } from '../support/sample-views.ts'
import { ScriptedNetwork } from '../support/scripted-network.ts'
import { seededRandom } from '../support/seeded-random.ts'

const FILE = '/cache/default/stock.json'

async function world(context: TestContext) {
  const clock = new ManualClock()
  const network = new ScriptedNetwork()
  const disk = new FailingDisk(clock)
  const client = await connect({
    endpoints: ['http://one:1', 'http://two:2'],
    cacheDir: '/cache',
    clock,
    network,
    disk,
    random: seededRandom(1),
  })
  context.after(() => client.close())
  return { clock, network, disk, client }
}

/** With a view of `stock` that the registry has just confirmed. */
async function current(context: TestContext) {
  const made = await world(context)
  await made.network.stream.accept()
  void made.client.resolve('stock')
  await settle()
  await made.network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:5')
  return made
}

async function ageOf(client: RegistryClient): Promise<number> {
  return (await client.resolve('stock')).age
}

test('a ping that names an age confirms what is held only as of then', async (context) => {
  const { clock, network, client } = await current(context)
  await clock.advance(10_000)
  await network.stream.event('ping', { age: 8_000 }, 'e:5')
  assert.equal(await ageOf(client), 8_000)
  await clock.advance(10_000)
  await network.stream.event('ping', { age: 18_000 }, 'e:5')
  assert.equal(await ageOf(client), 18_000)
  await clock.advance(10_000)
  await network.stream.event('ping', {}, 'e:5')
  assert.equal(await ageOf(client), 0)
})

test('an age without end is a year, and confirms nothing', async (context) => {
  const yearMs = 365 * 86_400_000
  for (const age of ['1e309', '1e300', String(yearMs + 1)])
    assert.deepEqual(decodeEvent('ping', undefined, JSON.parse(`{"age":${age}}`)), { event: 'ping', ageMs: yearMs })
  const { clock, network, client } = await current(context)
  await clock.advance(10_000)
  await network.stream.event('ping', { age: 1e300 }, 'e:5')
  const ageMs = await ageOf(client)
  assert.ok(ageMs >= 10_000 && ageMs <= yearMs, `${ageMs}`)
})

test('whatever else an aged registry sends is as old as it said', async (context) => {
  const { clock, network, client } = await world(context)
  await network.stream.accept()
  await network.stream.event('ping', { age: 60_000 })
  const resolving = client.resolve('stock')
  await settle()
  await clock.advance(4_000)
  await network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:5')
  assert.equal((await resolving).age, 64_000)
})

test('a replica that is behind takes nothing from what another one confirmed', async (context) => {
  const { clock, network, client } = await current(context)
  await network.stream.cut()
  await clock.advance(1_000)
  await network.stream.accept()
  await network.stream.event('ping', { age: 60_000 }, 'e:5')
  assert.equal(await ageOf(client), 1_000)
  await clock.advance(9_000)
  await network.stream.event('ping', {}, 'e:5')
  assert.equal(await ageOf(client), 0)
})

test('who waits for a fresh view has it as soon as the registry is current again', async (context) => {
  const { clock, network, client } = await current(context)
  await clock.advance(10_000)
  await network.stream.event('ping', { age: 60_000 }, 'e:5')
  const waiting = client.resolve('stock', { maxStale: '5s', deadline: '30s' })
  await clock.advance(10_000)
  await network.stream.event('ping', { age: 70_000 }, 'e:5')
  let isFresh = false
  void waiting.then(() => (isFresh = true))
  await settle()
  assert.equal(isFresh, false)
  await network.stream.event('ping', {}, 'e:5')
  assert.equal((await waiting).age, 0)
})

test('a file is not dated by a registry that may be behind', async (context) => {
  const { clock, network, disk } = await current(context)
  await clock.advance(5_000)
  const dated = async () => (await disk.stat(FILE))?.modifiedMs
  const writtenMs = await dated()
  for (let count = 1; count <= 10; count++) {
    await clock.advance(10_000)
    await network.stream.event('ping', { age: count * 10_000 }, 'e:5')
  }
  assert.equal(await dated(), writtenMs)
  await network.stream.event('ping', {}, 'e:5')
  await settle()
  assert.equal(await dated(), clock.wall())
})

test('an aged registry that pings is no dead path', async (context) => {
  const { clock, network, client } = await current(context)
  for (let count = 1; count <= 10; count++) {
    await clock.advance(10_000)
    await network.stream.event('ping', { age: count * 10_000 }, 'e:5')
  }
  assert.equal(network.streams.length, 1)
  assert.equal((await client.resolve('stock')).reachable, true)
})
