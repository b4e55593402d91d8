import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { failure, FILE, pass, resolved, slowReads, world, worldWithFile, type World } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { changeOf, idsOf, removalOf, snapshotOf } from '../support/sample-views.ts'
import { answer } from '../support/scripted-network.ts'

const HIGHEST = Number.MAX_SAFE_INTEGER

const told = (cursor: string, nodes: string[]) =>
  answer(200, { ...snapshotOf(cursor, nodes), source: 'memory', age: 0, reachable: false })

/** A client without a file that has asked a peer, the registry being dead. */
async function deceived(cursor = `e:${HIGHEST}`, nodes = ['liar']) {
  const made = world()
  made.network.respond = () => told(cursor, nodes)
  const client = await made.start({ peers: ['http://peer:7503'] })
  await made.network.stream.cut('refused')
  const { view, source } = await client.resolve('stock')
  assert.deepEqual([idsOf(view), source], [nodes, 'peer'])
  await made.clock.advance(20_000)
  return { made, client }
}

async function return_(made: World, cursor: string, nodes: string[], more: object = {}) {
  await made.network.stream.accept()
  await made.network.stream.event('snapshot', snapshotOf(cursor, nodes, more), cursor)
}

describe('what a peer claimed to know', () => {
  test('gives way once the registry has answered, whatever revision was claimed; and in the file', async () => {
    const { made, client } = await deceived()
    await return_(made, 'e:10', ['a', 'b'])
    // It may be behind what the peer knows: until it says that it has caught up.
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['liar'])
    await made.network.stream.event('ping', {}, 'e:10')
    const found = await client.resolve('stock')
    assert.deepEqual([idsOf(found.view), found.source, found.age], [['a', 'b'], 'memory', 0])
    assert.deepEqual(found.asOf, { epoch: 'e', revision: 10 })
    await made.network.stream.event('change', changeOf('e:10', 'e:11', ['c']), 'e:11')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b', 'c'])
    await made.clock.advance(1_000)
    assert.match(made.disk.files.get(FILE)!.content, /"e:11"/)
    assert.doesNotMatch(made.disk.files.get(FILE)!.content, /"origin":"peer"/)
    await client.close()
  })

  test('is still a peer’s word after a restart, and gives way then', async () => {
    const { made, client } = await deceived()
    await client.close()
    assert.match(made.disk.files.get(FILE)!.content, /"origin":"peer"/)
    made.network.streams.length = 0
    const again = await made.start()
    await made.network.stream.accept()
    assert.equal((await again.resolve('stock')).source, 'peer')
    await settle()
    // Asked for in full, as of what it is said to be.
    const { services, reach } = made.network.stream.sent.at(-1) as { services?: object[]; reach?: string }
    assert.deepEqual([services, reach], [[{ namespace: 'default', service: 'stock' }], `e:${HIGHEST}`])
    await made.network.stream.event('snapshot', snapshotOf('e:10', ['a']), 'e:10')
    await made.network.stream.event('ping', {}, 'e:10')
    assert.deepEqual(idsOf((await again.resolve('stock')).view), ['a'])
    await again.close()
    assert.match(made.disk.files.get(FILE)!.content, /"e:10"/)
  })

  test('is kept while the registry says that it is behind', async () => {
    const { made, client } = await deceived('e:80', ['a', 'new'])
    await return_(made, 'e:10', ['a'])
    await made.network.stream.event('ping', { age: 30_000 }, 'e:10')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'new'])
    await made.network.stream.event('change', changeOf('e:10', 'e:90', ['new']), 'e:90')
    await made.network.stream.event('ping', {}, 'e:90')
    const found = await client.resolve('stock')
    assert.deepEqual([idsOf(found.view), found.source], [['a', 'new'], 'memory'])
    await client.close()
  })

  test('empties by a proof, whatever revision was claimed, and is not emptied without one', async () => {
    for (const [more, expected] of [
      [{ emptied: removalOf('a', 9) }, []],
      [{}, ['liar']],
    ] as const) {
      const { made, client } = await deceived()
      await return_(made, 'e:10', [], more)
      await made.network.stream.event('ping', {}, 'e:10')
      assert.deepEqual(idsOf((await client.resolve('stock')).view), expected)
      assert.equal(client.status().quarantined.length, expected.length)
      await client.close()
    }
  })

  test('ends with the registry’s word that it never heard of the service; and its file goes', async () => {
    const { made, client } = await deceived()
    assert.ok(made.disk.files.has(FILE))
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('e:0'), 'e:10')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['liar'])
    await made.network.stream.event('ping', {}, 'e:10')
    assert.equal((await failure(client.resolve('stock'))).code, 'unknown_service')
    assert.deepEqual(client.status().quarantined, [])
    await made.clock.advance(1_000)
    assert.deepEqual([...made.disk.files.keys()], [])
    await client.close()
  })

  test('is no knowledge of a place of the history', async () => {
    const { client, made } = await deceived()
    const asking = failure(client.resolve('stock', { minRevision: 'e:20', deadline: '1s' }))
    await made.clock.advance(1_000)
    assert.equal((await asking).code, 'behind')
    await client.close()
  })

  test('makes room before what the registry said: a liar knows every name', async () => {
    const made = world()
    made.network.respond = (call) => {
      const [, service] = /views\/(\w+)/.exec(call.path) ?? []
      return answer(200, { ...snapshotOf('e:5', ['liar'], { service: service! }), source: 'memory', age: 0 })
    }
    const client = await made.start({ peers: ['http://peer:7503'], cacheDir: undefined, maxServices: 2 })
    await resolved(made, client, 'a')
    await made.network.stream.cut('dead')
    for (const name of ['one', 'two', 'three']) assert.equal((await client.resolve(name)).source, 'peer')
    assert.equal(client.peek('stock')?.nodes[0]?.id, 'a')
    await client.close()
  })

  test('of a history that never was, lapses beside what the registry names', async () => {
    const made = world()
    const fixed = { id: 'liar', host: '127.0.0.1', port: 1, protocol: 'http', weight: 1, status: 'up', incarnation: 1 }
    made.network.respond = () =>
      answer(200, { ...snapshotOf('never:9'), nodes: [fixed], source: 'memory', age: 0, reachable: false })
    const client = await made.start({ peers: ['http://peer:7503'] })
    await made.network.stream.cut('refused')
    await client.resolve('stock')
    await made.clock.advance(20_000)
    await return_(made, 'e:10', ['a'])
    await made.network.stream.event('ping', {}, 'e:10')
    assert.deepEqual(idsOf((await client.resolve('stock')).view).sort(), ['a', 'liar'])
    await pass(made, 620_000, 'e:10')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    await client.close()
  })

  test('displaces no file that is read later', async () => {
    const made = await worldWithFile('a')
    slowReads(made, 3_000)
    made.network.respond = () => told(`e:${HIGHEST}`, ['liar'])
    const client = await made.start({ peers: ['http://peer:7503'] })
    await made.network.stream.cut('refused')
    const asking = client.resolve('stock')
    await made.clock.advance(1_500)
    assert.deepEqual(idsOf((await asking).view), ['liar'])
    await made.clock.advance(10_000)
    const found = await client.resolve('stock')
    assert.deepEqual([idsOf(found.view), found.source], [['a'], 'file'])
    await client.close()
    assert.match(made.disk.files.get(FILE)!.content, /"e:5"/)
  })
})
