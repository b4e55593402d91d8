import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { ResolveError } from '@holdfast/registry-client'
import { asking, failure, FILE, slowReads, world, worldWithFile, type World } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { idsOf, removalOf, snapshotOf } from '../support/sample-views.ts'

/** What a file's reading meets, from a process's start on. */
const TROUBLES: Record<string, (made: World) => void> = {
  'a disk that answers after 3 s': (made) => slowReads(made, 3_000),
  'EIO at the first three tries': ({ disk }) => {
    let left = 3
    disk.fail = (operation, file) => (operation === 'read' && file.startsWith(FILE) && left-- > 0 ? 'EIO' : undefined)
  },
  'EMFILE for ten seconds': ({ disk, clock }) => {
    const endMs = clock.now() + 10_000
    disk.fail = (operation, file) =>
      operation === 'read' && file.startsWith(FILE) && clock.now() < endMs ? 'EMFILE' : undefined
  },
}

/** What a registry of a new epoch says before the file was read. */
const WORDS = [
  { said: 'never heard of it', cursor: 'new:0', nodes: [], reason: 'unknown' },
  { said: 'no nodes', cursor: 'new:7', nodes: [], reason: 'empty' },
  { said: 'one other node', cursor: 'new:7', nodes: ['z'], reason: 'incomplete' },
]

describe('a file that is read after the registry of a new epoch spoke', () => {
  for (const [trouble, make] of Object.entries(TROUBLES))
    for (const { said, cursor, nodes, reason } of WORDS)
      test(`${trouble}, while it says: ${said}`, async () => {
        const made = await worldWithFile('a', 'b')
        make(made)
        const { client, resolving } = await asking(made)
        const outcome = resolving.then(
          ({ view }) => (view.nodes.size > 0 ? 'nodes' : 'none'),
          ({ code }: ResolveError) => code,
        )
        await made.clock.advance(1_100)
        await made.network.stream.event('snapshot', snapshotOf(cursor, nodes), 'new:7')
        await made.network.stream.event('ping', {}, 'new:7')
        await made.clock.advance(20_000)
        assert.match(await outcome, /^(nodes|unresolved)$/)
        await made.network.stream.event('ping', {}, 'new:8')
        assert.deepEqual(idsOf((await client.resolve('stock')).view).sort(), ['a', 'b', ...nodes])
        assert.deepEqual(
          client.status().quarantined.map((quarantined) => quarantined.reason),
          [reason],
        )
        assert.match(made.disk.files.get(FILE)!.content, /"e:5"/)
        await client.close()
        assert.match(made.disk.files.get(FILE)!.content, /"e:5"/)
        assert.equal(made.clock.pending, 0)
      })

  test('is released like any other once its nodes are back, and the file follows', async () => {
    const made = await worldWithFile('a', 'b')
    TROUBLES['EIO at the first three tries']!(made)
    const { client, resolving } = await asking(made)
    await made.network.stream.event('snapshot', snapshotOf('new:7', ['z']), 'new:7')
    await resolving
    await made.clock.advance(20_000)
    assert.equal(client.status().quarantined.length, 1)
    await made.network.stream.event('snapshot', snapshotOf('new:9', ['a', 'b', 'z']), 'new:9')
    assert.deepEqual([client.status().quarantined.length, client.status().released], [0, 1])
    await client.close()
    assert.match(made.disk.files.get(FILE)!.content, /"new:9"/)
  })

  test('counts once: later files of that epoch are history', async () => {
    const made = await worldWithFile('a', 'b')
    const old = made.disk.files.get(FILE)!.content
    TROUBLES['EIO at the first three tries']!(made)
    const { client, resolving } = await asking(made)
    await made.network.stream.event('snapshot', snapshotOf('new:7', ['z']), 'new:7')
    await resolving
    await made.clock.advance(20_000)
    await made.network.stream.event('snapshot', snapshotOf('new:9', ['a', 'b', 'z']), 'new:9')
    await made.clock.advance(1_000)
    await made.network.stream.event('snapshot', snapshotOf('new:12', ['z']), 'new:12')
    await made.clock.advance(1_000)
    made.disk.write(FILE, old)
    for (let pings = 0; pings < 4; pings++) {
      await made.clock.advance(10_000)
      await made.network.stream.event('ping', {}, 'new:12')
    }
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['z'])
    await client.close()
    assert.match(made.disk.files.get(FILE)!.content, /"new:12"/)
  })

  test('a file of another process that has followed further is taken within the epoch', async () => {
    const made = await worldWithFile('a', 'b')
    TROUBLES['a disk that answers after 3 s']!(made)
    const { client, resolving } = await asking(made)
    await made.clock.advance(1_100)
    // A replica that is behind what the file knows.
    await made.network.stream.event('snapshot', snapshotOf('e:3', ['a']), 'e:3')
    assert.deepEqual(idsOf((await resolving).view), ['a'])
    await made.clock.advance(5_000)
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    await client.close()
    assert.match(made.disk.files.get(FILE)!.content, /"e:5"/)
  })

  test('a file that cannot be read once is read before the registry is asked', async () => {
    const made = await worldWithFile('a', 'b')
    let left = 2
    made.disk.fail = (operation, file) =>
      operation === 'read' && file.startsWith(FILE) && left-- > 0 ? 'EMFILE' : undefined
    const { client, resolving } = await asking(made)
    await made.clock.advance(300)
    assert.deepEqual(idsOf((await resolving).view), ['a', 'b'])
    assert.deepEqual(made.network.stream.subscribed, [{ namespace: 'default', service: 'stock', cursor: 'e:5' }])
    await client.close()
    assert.equal(made.clock.pending, 0)
  })

  test('without proof nobody is told that there are no nodes, nor that the name is not known, before the file was read', async () => {
    for (const cursor of ['new:0', 'new:7']) {
      const made = await worldWithFile('a', 'b')
      made.disk.fail = (operation, file) => (operation === 'read' && file.startsWith(FILE) ? 'EIO' : undefined)
      const { client, resolving } = await asking(made)
      const failed = failure(resolving)
      await made.clock.advance(300)
      await made.network.stream.event('snapshot', snapshotOf(cursor), 'new:7')
      await made.clock.advance(5_000)
      const { code, tried } = await failed
      assert.equal(code, 'unresolved')
      assert.deepEqual(tried.slice(0, 2), [
        { level: 'memory', outcome: 'nothing' },
        { level: 'file', outcome: 'not read yet, or not readable' },
      ])
      assert.match(tried[2]!.outcome, cursor === 'new:0' ? /never heard of it/ : /names no node/)
      assert.equal(client.peek('stock'), undefined)
      made.disk.fail = () => undefined
      await made.clock.advance(10_000)
      assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
      await client.close()
    }
  })

  test('an emptiness with a proof is not told either, since the file may hold more than that proof accounts for', async () => {
    const made = await worldWithFile('a', 'b')
    TROUBLES['EMFILE for ten seconds']!(made)
    const client = await made.start()
    await made.network.stream.accept()
    const resolving = failure(client.resolve('stock', { deadline: '2s' }))
    await made.clock.advance(300)
    await made.network.stream.event('snapshot', snapshotOf('new:7', [], { emptied: removalOf('c', 7) }), 'new:7')
    await made.clock.advance(2_000)
    assert.equal((await resolving).code, 'unresolved')
    await made.clock.advance(15_000)
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    await client.close()
  })

  test('a file that can never be read keeps nothing from being answered, and is replaced after a minute', async () => {
    const made = await worldWithFile('a', 'b')
    made.disk.fail = (operation, file) =>
      operation === 'read' && file === FILE && made.disk.files.get(FILE)!.content.includes('"e:5"') ? 'EIO' : undefined
    const { client, resolving } = await asking(made)
    await made.clock.advance(300)
    await made.network.stream.event('snapshot', snapshotOf('new:7', ['z']), 'new:7')
    assert.deepEqual(idsOf((await resolving).view), ['z'])
    await made.clock.advance(50_000)
    assert.equal(client.status().file?.writable, false)
    assert.ok((client.status().file?.failures.EIO ?? 0) > 1)
    assert.match(made.disk.files.get(FILE)!.content, /"e:5"/)
    await made.clock.advance(20_000)
    assert.equal(client.status().file?.writable, true)
    await client.close()
    assert.match(made.disk.files.get(FILE)!.content, /"new:7"/)
  })

  test('on a disk that reads nothing names are answered as the registry knows them, after a minute at once', async () => {
    const made = world()
    made.disk.fail = (operation) => (operation === 'read' ? 'EIO' : undefined)
    const client = await made.start()
    await made.network.stream.accept()
    for (const [name, expected] of [
      ['first', 'unresolved'],
      ['second', 'unknown_service'],
    ] as const) {
      const unknown = failure(client.resolve(name, { deadline: '3s' }))
      await made.clock.advance(300)
      await made.network.stream.event('snapshot', snapshotOf('e:0', [], { service: name }), 'e:7')
      await made.clock.advance(3_000)
      assert.equal((await unknown).code, expected)
      await made.clock.advance(60_000)
      await made.network.stream.accept().catch(() => {})
    }
    await client.close()
  })
})

test('without a file nothing waits: the first word is written at once', async () => {
  const made = world()
  const { client, resolving } = await asking(made)
  await made.network.stream.event('snapshot', snapshotOf('new:7', ['z']), 'new:7')
  await resolving
  await settle()
  assert.match(made.disk.files.get(FILE)!.content, /"new:7"/)
  await client.close()
})

for (const outageMs of [10_000, 600_000])
  test(`a file that could not be read for ${outageMs / 1000} s serves as soon as it can, with the registry away all along`, async () => {
    const made = await worldWithFile('a', 'b')
    const { disk, clock } = made
    const endMs = clock.now() + outageMs
    disk.fail = (operation) => (operation === 'read' && clock.now() < endMs ? 'EMFILE' : undefined)
    const client = await made.start()
    const waiting = client.resolve('stock', { deadline: outageMs + 60_000 })
    await clock.advance(outageMs + 60_000)
    const { source, view } = await waiting
    assert.deepEqual([source, idsOf(view).sort()], ['file', ['a', 'b']])
    const readings = disk.done.filter(({ operation, file }) => operation === 'read' && file === FILE).length
    assert.ok(readings < 30, `${readings} readings`)
    await client.close()
    assert.equal(clock.pending, 0)
  })
