import assert from 'node:assert/strict'
import fs from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, test } from 'node:test'
import { connect } from '@holdfast/registry-client'
import { systemClock } from '@holdfast/registry-client/clock'
import { systemDisk, type Disk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import type { View } from '../../registry-client/src/protocol.ts'
import { FailingDisk } from '../support/failing-disk.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { idsOf, viewOf } from '../support/sample-views.ts'
import { ScriptedNetwork } from '../support/scripted-network.ts'

const RICH = viewOf('epoch-1:42', ['a', 'b'], { policy: { timeout: '2s' } })

function inMemory() {
  const clock = new ManualClock()
  const disk = new FailingDisk(clock)
  const log = new MemoryLog()
  const cache = () => new FileCache({ directory: '/cache', disk, clock, log })
  return { clock, disk, log, cache }
}

describe('an override file', () => {
  const file = '/cache/default/stock.override.json'
  const text = (document: unknown) => JSON.stringify(document)

  test('needs no more than the addresses', async () => {
    const { cache, disk } = inMemory()
    disk.write(
      file,
      text({
        nodes: [
          { host: '10.0.0.1', port: 80 },
          { host: '::1', port: 81, id: 'x', weight: 5 },
        ],
      }),
    )
    const view = (await cache().override('default', 'stock', undefined, undefined))!
    const [first, second] = [...view.nodes.values()]
    assert.deepEqual(
      [first!.id, first!.protocol, first!.weight, first!.status, first!.leased],
      ['10.0.0.1:80', 'http', 100, 'up', false],
    )
    assert.deepEqual([second!.id, second!.host, second!.weight], ['x', '::1', 5])
    assert.ok(Object.isFrozen(first))
  })

  test('an IPv6 address gets an id too', async () => {
    const { cache, disk } = inMemory()
    disk.write(file, text({ nodes: [{ host: '::1', port: 80 }] }))
    const view = await cache().override('default', 'stock', undefined, undefined)
    assert.equal(view?.nodes.size, 1)
  })

  test('with a policy that the registry would refuse is ignored as a whole, with every path and reason', async () => {
    const { cache, disk, log } = inMemory()
    const files = cache()
    const node = { host: '10.0.0.1', port: 80 }
    const read = (before?: View) => files.override('default', 'stock', undefined, before)
    disk.write(file, text({ nodes: [node], policy: { timeout: '2s' } }))
    const good = await read()
    assert.deepEqual(good?.policy, { timeout: '2s' })
    disk.write(file, text({ nodes: [node], policy: { timeout: 2, retries: { attempts: 3 }, retry: { attempts: 99 } } }))
    assert.equal(await read(good), good)
    const { reason, inForce } = log.lines.at(-1)!.fields as { reason: string; inForce: boolean }
    assert.deepEqual(log.of('error'), ['override file cannot be read: ignored'])
    assert.match(reason, /policy\.timeout: .*policy\.retry\.attempts: /)
    assert.match(reason, /policy\.retries: /)
    assert.equal(inForce, true)
    assert.equal(files.status().malformedOverrides, 1)
    disk.write(file, text({ nodes: [node], policy: { loadBalancing: { strategy: 'random' } } }))
    assert.deepEqual((await read(good))?.policy, { loadBalancing: { strategy: 'random' } })
    disk.write(file, `{"nodes":[],"policy":{"__proto__":{"timeout":"1s"},"constructor":1}}`)
    assert.deepEqual((await read(good))?.policy, { timeout: '2s' })
  })

  test('takes the policy from the registry unless it has one or says that there is none', async () => {
    const { cache, disk } = inMemory()
    const base = viewOf('e:5', ['a'], { policy: { timeout: '1s' } })
    const nodes = [{ host: '10.0.0.1', port: 80 }]
    for (const [document, expected] of [
      [{ nodes }, { timeout: '1s' }],
      [{ nodes, policy: { timeout: '9s' } }, { timeout: '9s' }],
      [{ nodes, policy: null }, undefined],
    ] as const) {
      disk.write(file, text(document))
      const view = (await cache().override('default', 'stock', base, undefined))!
      assert.deepEqual(view.policy, expected)
      assert.deepEqual(view.cursor, base.cursor)
      if (view.policy) assert.ok(Object.isFrozen(view.policy))
    }
  })

  test('may take every node out', async () => {
    const { cache, disk } = inMemory()
    disk.write(file, text({ nodes: [] }))
    assert.equal((await cache().override('default', 'stock', RICH, undefined))?.nodes.size, 0)
  })

  test('is announced once when it comes into force, and once when it is gone', async () => {
    const { cache, disk, log } = inMemory()
    const files = cache()
    disk.write(file, text({ nodes: [{ host: '10.0.0.1', port: 80 }] }))
    const first = await files.override('default', 'stock', RICH, undefined)
    const second = await files.override('default', 'stock', RICH, first)
    assert.equal(second, first)
    assert.equal(log.of('warn', 'in force').length, 1)
    disk.files.delete(file)
    assert.equal(await files.override('default', 'stock', RICH, first), undefined)
    assert.equal(await files.override('default', 'stock', RICH, undefined), undefined)
    assert.equal(log.of('warn', 'gone').length, 1)
  })

  for (const [what, content] of [
    ['no JSON', '{"nodes": ['],
    ['null', 'null'],
    ['without nodes', '{}'],
    ['with a node that is null', '{"nodes":[null]}'],
    ['with a bad port', '{"nodes":[{"host":"a","port":0}]}'],
    ['with the same node twice', '{"nodes":[{"host":"a","port":1},{"host":"a","port":1}]}'],
    ['with a policy that is no object', '{"nodes":[],"policy":"fast"}'],
  ] as const)
    test(`that is ${what} is reported once and ignored: what was in force stays`, async () => {
      const { cache, disk, log } = inMemory()
      const files = cache()
      disk.write(file, text({ nodes: [{ host: '10.0.0.1', port: 80 }] }))
      const good = await files.override('default', 'stock', undefined, undefined)
      disk.write(file, content)
      for (let i = 0; i < 3; i++) assert.equal(await files.override('default', 'stock', undefined, good), good)
      assert.equal(log.of('error', 'override file cannot be read').length, 1)
      assert.equal(await files.override('default', 'stock', undefined, undefined), undefined)
    })

  test('that a slow reading finds malformed does not bring back what another has replaced meanwhile', async () => {
    const { disk, clock, log } = inMemory()
    const network = new ScriptedNetwork()
    const order = (host: string) => disk.write(file, text({ nodes: [{ host, port: 80 }] }))
    order('10.0.0.1')
    const client = await connect({ endpoints: ['http://r:1'], cacheDir: '/cache', disk, network, clock, log })
    const served: string[] = []
    const watching = (async () => {
      for await (const { nodes } of client.watch('stock')) served.push(nodes[0]!.host)
    })()
    await settle()
    let release = () => {}
    const held = new Promise<void>((resolve) => (release = resolve))
    disk.hold = (operation, name) => {
      if (operation !== 'read' || name !== file) return undefined
      disk.hold = () => undefined
      return held
    }
    disk.announce(file)
    await settle()
    order('10.0.0.2')
    await settle()
    disk.files.set(file, { content: '{"nodes":[', modifiedMs: 0 })
    release()
    await settle()
    const last = served.at(-1)
    assert.ok(log.of('error', 'override file cannot be read').length > 0)
    assert.equal(served.indexOf(last!), served.length - 1, served.join())
    order('10.0.0.3')
    await settle()
    assert.equal(served.at(-1), '10.0.0.3')
    await client.close()
    await watching
  })

  test('is looked for every 5 s, in case no event came', async () => {
    const { cache, disk, clock } = inMemory()
    const files = cache()
    const heard: string[] = []
    await files.open({ changed: (namespace, service) => heard.push(`${namespace}/${service}`) })
    await files.load('default', 'stock')
    disk.files.set(file, { content: '{}', modifiedMs: 0 })
    await clock.advance(4_999)
    assert.deepEqual(heard, [])
    await clock.advance(1)
    assert.deepEqual(heard, ['default/stock'])
    await files.close()
    assert.equal(clock.pending, 0)
  })

  test('is not read again by a look that finds it as it was, malformed or not', async () => {
    for (const content of [text({ nodes: [] }), '{']) {
      const { cache, disk, clock } = inMemory()
      const files = cache()
      disk.write(file, content)
      const heard: string[] = []
      await files.open({ changed: (_namespace, service) => heard.push(service) })
      await files.load('default', 'stock')
      await files.override('default', 'stock', undefined, undefined)
      await clock.advance(60_000)
      assert.deepEqual(heard, [])
      disk.files.delete(file)
      await clock.advance(5_000)
      assert.deepEqual(heard, ['stock'])
      await files.close()
    }
  })

  test('that cannot be read now is tried again at each look, and what was in force stays', async () => {
    const { cache, disk, clock, log } = inMemory()
    const files = cache()
    disk.write(file, text({ nodes: [] }))
    let heard = 0
    await files.open({ changed: () => heard++ })
    await files.load('default', 'stock')
    const before = await files.override('default', 'stock', undefined, undefined)
    for (const code of ['EMFILE', 'EIO']) {
      disk.fail = (operation, name) => (operation === 'read' && name === file ? code : undefined)
      assert.equal(await files.override('default', 'stock', undefined, before), before)
    }
    disk.fail = () => undefined
    await clock.advance(10_000)
    assert.equal(heard, 2)
    assert.equal(log.of('error', 'override file cannot be read').length, 2)
    assert.deepEqual([files.status().overrides, files.status().malformedOverrides], [1, 2])
    await files.close()
  })

  test('of somebody else is no order', async () => {
    const { cache, disk, log } = inMemory()
    disk.files.set(file, { content: text({ nodes: [] }), modifiedMs: 0, trusted: false })
    assert.equal(await cache().override('default', 'stock', RICH, undefined), undefined)
    assert.equal(log.of('error', 'override file cannot be read').length, 1)
  })
})

/** Events as the disk tells them, or not. */
const TELLINGS: Record<string, (disk: Disk) => Disk['watch']> = {
  'as they come': (disk) => (directory, changed, ended) => disk.watch(directory, changed, ended),
  lost: () => () => Promise.resolve(() => Promise.resolve()),
  doubled: (disk) => (directory, changed, ended) =>
    disk.watch(
      directory,
      (file, event) => {
        for (let i = 0; i < 3; i++) changed(file, event)
      },
      ended,
    ),
  late: (disk) => (directory, changed, ended) =>
    disk.watch(directory, (file, event) => void systemClock.after(300, () => changed(file, event)), ended),
  'before anything has changed': (disk) => (directory, changed, ended) => {
    changed(path.join(directory, 'stock.override.json'), 'rename')
    return disk.watch(directory, changed, ended)
  },
}

describe('on a real disk, through connect(), an override comes into force, changes, breaks and goes, with events', () => {
  for (const [telling, watchOf] of Object.entries(TELLINGS))
    test(telling, async (context) => {
      const directory = await fs.mkdtemp(path.join(tmpdir(), 'holdfast-override-'))
      const file = path.join(directory, 'default', 'stock.override.json')
      const log = new MemoryLog()
      const clock = new ManualClock(systemClock.wall())
      const network = new ScriptedNetwork()
      const disk = { ...systemDisk, watch: watchOf(systemDisk) }
      const client = await connect({ endpoints: ['http://r:1'], cacheDir: directory, disk, network, clock, log })
      context.after(() => client.close())
      const hosts = () =>
        client
          .peek('stock')
          ?.nodes.map(({ host }) => host)
          .join()
      // The look that finds what no event told, however often it takes; no time of the test passes but the clock's.
      const until = async (is: () => boolean) => {
        for (let i = 0; !is(); i++) {
          assert.ok(i < 20_000, 'it does not come')
          await clock.advance(100)
          await settle()
        }
      }
      const resolving = client.resolve('stock', { deadline: '1h' })
      const put = (text: string) => fs.writeFile(file, text)
      await until(() => network.streams.length > 0)
      await systemDisk.makeDirectory(path.dirname(file))
      await put('{"nodes":[{"host":"10.0.0.1","port":80}]}')
      await until(() => hosts() === '10.0.0.1')
      assert.equal((await resolving).overridden, true)
      await put('{"nodes":[{"host":"10.0.0.22","port":80}]}')
      await until(() => hosts() === '10.0.0.22')
      await put('{"nodes":[{"host":"10.0.0.3",')
      await until(() => log.of('error', 'override file cannot be read').length > 0)
      assert.equal(hosts(), '10.0.0.22')
      // As an editor, or a configuration system, replaces it.
      await fs.writeFile(`${file}.new`, '{"nodes":[{"host":"10.0.0.4","port":80}]}')
      await fs.rename(`${file}.new`, file)
      await until(() => hosts() === '10.0.0.4')
      await fs.rm(file)
      await until(() => client.peek('stock') === undefined)
      assert.equal(log.of('warn', 'override file in force').length, 3)
      assert.equal(log.of('warn', 'override file is gone').length, 1)
      assert.equal(client.status().file!.overrides, 0)
      assert.ok(client.status().file!.malformedOverrides > 0)
      await client.close()
      await fs.rm(directory, { recursive: true })
    })

  test('a link to it is read through, as configuration systems mount files', async () => {
    const directory = await fs.mkdtemp(path.join(tmpdir(), 'holdfast-override-'))
    const mounted = path.join(directory, 'mounted')
    await systemDisk.makeDirectory(path.join(directory, 'default'))
    await fs.writeFile(mounted, '{"nodes":[{"host":"10.0.0.1","port":80}]}')
    await fs.symlink(mounted, path.join(directory, 'default', 'stock.override.json'))
    const cache = new FileCache({ directory, disk: systemDisk, clock: systemClock, log: new MemoryLog() })
    const view = await cache.override('default', 'stock', undefined, undefined)
    assert.deepEqual(idsOf(view), ['10.0.0.1:80'])
    await fs.rm(directory, { recursive: true })
  })
})
