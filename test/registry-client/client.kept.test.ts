import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { RegistryClient } from '@holdfast/registry-client'
import { encodeView, formatCursor } from '@holdfast/registry-client/protocol'
import { asking, FILE, pass, world, type World } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, nodeOf, removalOf, snapshotOf } from '../support/sample-views.ts'
import { answer } from '../support/scripted-network.ts'

const STATIC = nodeOf('s1', { leased: false })

/** A client that knew two nodes with leases and a static one, of a store that was wiped since. */
async function wiped(): Promise<{ made: World; client: RegistryClient }> {
  const made = world()
  const { client, resolving } = await asking(made)
  await made.network.stream.event('snapshot', snapshotOf('old:5', ['a', 'b', STATIC]), 'old:5')
  await resolving
  await made.clock.advance(1_000)
  await made.network.stream.cut('wiped')
  await made.clock.advance(1_000)
  await made.network.stream.accept()
  await made.network.stream.event('snapshot', snapshotOf('new:3', ['x']), 'new:3')
  await made.network.stream.event('ping', {}, 'new:3')
  return { made, client }
}

const served = async (client: RegistryClient) => idsOf((await client.resolve('stock')).view).sort()

describe('nodes of a history that is gone, kept beside what a new one names', () => {
  test('are in the file, which says which they are: a restart goes on from there', async () => {
    const { made, client } = await wiped()
    await client.close()
    const content = made.disk.files.get(FILE)!.content
    assert.match(content, /"cursor":"new:3"/)
    assert.match(content, /"kept":\{"cursor":"old:5","ids":\["a","b","s1"\],"policy":false\}/)
    made.network.streams.length = 0
    const again = await made.start()
    await made.network.stream.accept()
    assert.deepEqual(await served(again), ['a', 'b', 's1', 'x'])
    await settle()
    assert.equal(made.network.stream.subscribed.at(-1)!.cursor, 'new:3')
    assert.deepEqual(
      again.status().quarantined.map(({ reason, nodes }) => [reason, nodes]),
      [['incomplete', ['a', 'b', 's1']]],
    )
    const removed = [{ ...removalOf('a', 4), incarnation: 1 }]
    await made.network.stream.event('change', changeOf('new:3', 'new:4', ['b'], removed), 'new:4')
    assert.deepEqual(await served(again), ['b', 's1', 'x'])
    await made.network.stream.event('change', changeOf('new:4', 'new:5', [STATIC]), 'new:5')
    assert.deepEqual(await served(again), ['b', 's1', 'x'])
    assert.deepEqual([again.status().quarantined.length, again.status().released], [0, 1])
    await again.close()
    assert.doesNotMatch(made.disk.files.get(FILE)!.content, /kept/)
  })

  test('are not written over by one who could not read them, and hears only of what the new one names', async () => {
    const { made, client } = await wiped()
    await client.close()
    made.network.streams.length = 0
    const endMs = made.clock.now() + 20_000
    made.disk.fail = (operation) => (operation === 'read' && made.clock.now() < endMs ? 'EIO' : undefined)
    const again = await made.start()
    await made.network.stream.accept()
    const resolving = again.resolve('stock')
    await made.clock.advance(1_100)
    await made.network.stream.event('snapshot', snapshotOf('new:9', ['x', 'y']), 'new:9')
    assert.deepEqual(idsOf((await resolving).view).sort(), ['x', 'y'])
    await made.clock.advance(60_000)
    assert.deepEqual(await served(again), ['a', 'b', 's1', 'x', 'y'])
    await again.close()
    const content = made.disk.files.get(FILE)!.content
    assert.match(content, /"cursor":"new:9"/)
    assert.match(content, /"kept":\{"cursor":"old:5","ids":\["a","b","s1"\],"policy":false\}/)
  })

  test('a static one holds up neither the file, nor what peers are told, nor the age of the rest', async () => {
    const { made, client } = await wiped()
    await pass(made, 620_000, 'new:3')
    await made.network.stream.event('change', changeOf('new:3', 'new:9', ['y', 'z'], [removalOf('x', 8)]), 'new:9')
    await pass(made, 3_600_000, 'new:9')
    assert.deepEqual(await served(client), ['s1', 'y', 'z'])
    assert.equal((await client.resolve('stock')).age, 0)
    assert.equal(client.status().quarantined.length, 1)
    const told = await client.lookup('stock')
    assert.deepEqual([idsOf(told!.view).sort(), formatCursor(told!.view.cursor)], [['s1', 'y', 'z'], 'new:9'])
    assert.ok((await client.resolve('stock', { maxStale: '1m' })).age < 60_000)
    await client.close()
    made.network.streams.length = 0
    const again = await made.start()
    await made.network.stream.cut('dead')
    assert.deepEqual(await served(again), ['s1', 'y', 'z'])
    await again.close()
  })

  test('wait for ten minutes of a registry that is there, over however many streams', async () => {
    const { made, client } = await wiped()
    for (let life = 0; life < 5; life++) {
      await pass(made, 130_000, 'new:3')
      if (life < 4) assert.deepEqual(await served(client), ['a', 'b', 's1', 'x'])
      await made.network.stream.cut('again')
      await made.clock.advance(30_000)
      await made.network.stream.accept()
      await made.network.stream.event('ping', {}, 'new:3')
    }
    assert.deepEqual(await served(client), ['s1', 'x'])
    await client.close()
  })

  test('and a policy of that history, which is not taken for one that the new one has', async () => {
    const made = world()
    const { client, resolving } = await asking(made)
    await made.network.stream.event('snapshot', snapshotOf('old:5', ['a'], { policy: { timeout: '7s' } }), 'old:5')
    await resolving
    await made.network.stream.event('snapshot', snapshotOf('new:3', ['x']), 'new:3')
    assert.deepEqual((await client.resolve('stock')).policy, { timeout: '7s' })
    await client.close()
    made.network.streams.length = 0
    const again = await made.start()
    await made.network.stream.accept()
    assert.deepEqual((await again.resolve('stock')).policy, { timeout: '7s' })
    await settle()
    await made.network.stream.event('change', changeOf('new:3', 'new:4', ['a']), 'new:4')
    assert.equal((await again.resolve('stock')).policy, undefined)
    await again.close()
  })

  test('are written once, and not with every ping', async () => {
    const { made, client } = await wiped()
    await made.clock.advance(1_000)
    const { written } = client.status().file!
    await pass(made, 300_000, 'new:3')
    assert.equal(client.status().file!.written, written)
    await client.close()
  })

  test('are kept by a new host that has them from a peer', async () => {
    const { made, client } = await wiped()
    const told = (await client.lookup('stock'))!
    await client.close()
    const fresh = world()
    fresh.network.respond = () => answer(200, { ...encodeView(told.view), age: 0, source: 'memory' })
    const host = await fresh.start({ peers: ['http://peer:7503'] })
    await fresh.network.stream.cut('dead')
    assert.deepEqual(await served(host), ['a', 'b', 's1', 'x'])
    await fresh.clock.advance(20_000)
    await fresh.network.stream.accept()
    await fresh.network.stream.event('snapshot', snapshotOf('new:4', ['x']), 'new:4')
    await fresh.network.stream.event('ping', {}, 'new:4')
    assert.deepEqual(await served(host), ['a', 'b', 's1', 'x'])
    assert.equal(host.status().quarantined.length, 1)
    await host.close()
    assert.equal(made.clock.pending, 0)
  })
})
