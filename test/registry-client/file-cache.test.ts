import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, test } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { systemDisk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { SCHEMA } from '../../registry-client/src/files/view-text.ts'
import { settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { idsOf, viewOf } from '../support/sample-views.ts'
import { assertSameView, inMemory, RICH, saved } from '../support/file-cache-world.ts'

describe('on a real disk', () => {
  let directory: string
  const log = new MemoryLog()
  const open = (at = directory) => new FileCache({ directory: at, disk: systemDisk, clock: systemClock, log })

  before(async () => void (directory = await mkdtemp(path.join(tmpdir(), 'holdfast-files-'))))
  after(() => rm(directory, { recursive: true }))

  test('a view comes back as it was, from a file of this user alone that a person can read', async () => {
    const at = path.join(directory, 'round-trip')
    await saved(RICH, open(at))
    const loaded = await open(at).load('default', 'stock')
    assertSameView(loaded?.view, RICH)
    assert.ok(loaded!.ageMs >= 0 && loaded!.ageMs < 60_000)
    const file = path.join(at, 'default', 'stock.json')
    assert.equal((await stat(file)).mode & 0o777, 0o600)
    assert.equal((await stat(path.join(at, 'default'))).mode & 0o777, 0o700)
    assert.equal((await stat(at)).mode & 0o777, 0o700)
    assert.ok((await readFile(file, 'utf8')).split('\n').length > 8)
    assert.deepEqual(await readdir(path.join(at, 'default')), ['stock.json'])
  })

  test('its age is that of the last confirmation', async () => {
    const at = path.join(directory, 'age')
    await saved(RICH, open(at))
    const file = path.join(at, 'default', 'stock.json')
    const seconds = systemClock.wall() / 1_000 - 3_600
    await utimes(file, seconds, seconds)
    const { ageMs } = (await open(at).load('default', 'stock'))!
    assert.ok(Math.abs(ageMs - 3_600_000) < 60_000, `${ageMs}`)
    // Between two hosts' clocks, and after a small correction of one.
    const soon = systemClock.wall() / 1_000 + 5
    await utimes(file, soon, soon)
    assert.ok((await open(at).load('default', 'stock'))!.ageMs < 5_000)
  })

  test('a broken file is set aside once, and the previous generation is used', async () => {
    const at = path.join(directory, 'aside')
    await saved(viewOf('e:4', ['old']), open(at))
    await saved(viewOf('e:5', ['new']), open(at))
    await writeFile(path.join(at, 'default', 'stock.json'), '{"schema":1,')
    const cache = open(at)
    assert.deepEqual(idsOf((await cache.load('default', 'stock'))?.view), ['old'])
    assert.equal(cache.status().corrupt, 1)
    assert.deepEqual(idsOf((await cache.load('default', 'stock'))?.view), ['old'])
    assert.equal(cache.status().corrupt, 1)
    await cache.close()
    // And written anew from the previous one.
    assert.deepEqual((await readdir(path.join(at, 'default'))).sort(), [
      'stock.json',
      'stock.json.corrupt',
      'stock.json.previous',
    ])
    assert.deepEqual(idsOf((await open(at).load('default', 'stock'))?.view), ['old'])
  })

  test('a file that a person has reflowed is still whole', async () => {
    const at = path.join(directory, 'reflowed')
    await saved(RICH, open(at))
    const file = path.join(at, 'default', 'stock.json')
    await writeFile(file, JSON.stringify(JSON.parse(await readFile(file, 'utf8')), undefined, 8))
    assertSameView((await open(at).load('default', 'stock'))?.view, RICH)
  })

  test('tells of what others write, once it is ready to', async () => {
    const at = path.join(directory, 'watched')
    await saved(viewOf('e:1', ['a']), open(at))
    const heard = new Promise<string>((resolve, reject) => {
      void systemDisk.watch(path.join(at, 'default'), resolve).then(async (stop) => {
        await saved(viewOf('e:2', ['b']), open(at)).catch(reject)
        await heard
        await stop()
      }, reject)
    })
    assert.match(await heard, /stock\.json/)
  })

  test('a watch says when it has ended', async () => {
    const at = path.join(directory, 'ended')
    await systemDisk.makeDirectory(at)
    let stop: () => Promise<void>
    await new Promise<void>((ended) => {
      void systemDisk
        .watch(at, () => {}, ended)
        .then(async (stopping) => {
          stop = stopping
          await rm(at, { recursive: true })
        })
    })
    await stop!()
  })

  test('a replacement that fails leaves nothing behind', async () => {
    const at = path.join(directory, 'leaves')
    // A directory cannot be replaced by a file.
    await systemDisk.makeDirectory(path.join(at, 'default', 'stock.json', 'x'))
    const cache = open(at)
    await saved(RICH, cache)
    assert.deepEqual(cache.status().failures, { EISDIR: 2 })
    assert.deepEqual(await readdir(path.join(at, 'default')), ['stock.json'])
  })

  test('ten instances that save at the same time leave a whole file, and the highest cursor wins', async () => {
    const at = path.join(directory, 'crowd')
    const caches = Array.from({ length: 10 }, () => open(at))
    for (const [index, cache] of caches.entries()) cache.save(viewOf(`e:${index + 1}`, [`n${index + 1}`]))
    await Promise.all(caches.map((cache) => cache.close()))
    // The others may have been faster than they looked; whoever has the highest writes it again with the next change.
    await saved(viewOf('e:10', ['n10']), open(at))
    await saved(viewOf('e:3', ['n3']), open(at))
    assert.deepEqual(idsOf((await open(at).load('default', 'stock'))?.view), ['n10'])
    const names = await readdir(path.join(at, 'default'))
    assert.deepEqual(
      names.filter((name) => !/^stock\.json(\.previous)?$/.test(name)),
      [],
    )
  })
})

describe('generations', () => {
  test('the higher cursor wins between two processes, whoever writes last', async () => {
    const { cache, load } = inMemory()
    await saved(viewOf('e:9', ['new']), cache())
    await saved(viewOf('e:7', ['late']), cache())
    assert.deepEqual(idsOf(await load()), ['new'])
  })

  test('another epoch replaces what is there', async () => {
    const { cache, load } = inMemory()
    await saved(viewOf('e:9', ['old']), cache())
    await saved(viewOf('f:1', ['new']), cache())
    assert.deepEqual(idsOf(await load()), ['new'])
  })

  for (const operation of ['create', 'sync', 'link', 'rename'] as const)
    test(`a crash at the first ${operation} of a write still leaves a file that loads`, async () => {
      const { cache, disk, load, file } = inMemory()
      await saved(viewOf('e:4', ['old']), cache())
      // The process is gone from here on: nothing that follows happens.
      let crashed = false
      disk.fail = (done) => ((crashed ||= done === operation) ? 'crash' : undefined)
      await saved(viewOf('e:5', ['new']), cache())
      assert.ok(crashed)
      disk.fail = () => undefined
      assert.ok(disk.files.has(file))
      assert.deepEqual(idsOf(await load()), ['old'])
      await saved(viewOf('e:6', ['next']), cache())
      assert.deepEqual(idsOf(await load()), ['next'])
    })

  test("another version's file is neither read nor set aside", async () => {
    const { cache, disk, load, file } = inMemory()
    disk.write(file, JSON.stringify({ schema: SCHEMA + 1, checksum: 'x', view: {} }))
    assert.equal(await load(), undefined)
    assert.ok(disk.files.has(file))
    assert.equal(cache().status().corrupt, 0)
  })

  test('a file under the name of another service is not taken for its own', async () => {
    const { cache, disk } = inMemory()
    await saved(viewOf('e:5', ['a']), cache())
    disk.files.set('/cache/default/shop.json', disk.files.get('/cache/default/stock.json')!)
    assert.equal(await cache().load('default', 'shop'), undefined)
    assert.ok(disk.files.has('/cache/default/shop.json.corrupt'))
  })

  test('a file that cannot be read now is left where it is', async () => {
    const { cache, disk, load, file } = inMemory()
    await saved(viewOf('e:5', ['a']), cache())
    disk.fail = (operation) => (operation === 'read' ? 'EIO' : undefined)
    assert.equal(await load(), undefined)
    disk.fail = () => undefined
    assert.ok(disk.files.has(file))
    assert.deepEqual(idsOf(await load()), ['a'])
  })

  test('services whose names end like override files do not collide', async () => {
    const { cache, disk } = inMemory()
    const names = ['a', 'a.override', 'a.override.override', 'a.json', 'a.json.previous', 'override']
    for (const service of names) await saved(viewOf('e:5', [service.replaceAll('.', '-')], { service }), cache())
    for (const service of names) {
      assert.deepEqual(idsOf((await cache().load('default', service))?.view), [service.replaceAll('.', '-')])
      assert.equal(await cache().override('default', service, undefined, undefined), undefined)
    }
    assert.equal(new Set(disk.files.keys()).size, names.length)
    const heard: string[] = []
    const watching = cache()
    await watching.open({ changed: (_namespace, service) => heard.push(service) })
    for (const service of names) await watching.load('default', service)
    await settle()
    // What is known already is not worth a word.
    for (const file of [...disk.files.keys()]) disk.announce(file)
    await settle()
    assert.deepEqual(heard, [])
    for (const file of disk.files.values()) file.content = ' '
    for (const file of [...disk.files.keys()]) disk.announce(file)
    disk.announce('/cache/default/a.override.json')
    disk.announce('/cache/default/a.override.override.json')
    disk.announce('/cache/default/.a.json.1.abc.tmp')
    disk.announce('/cache/elsewhere')
    await settle()
    assert.deepEqual(heard.sort(), [...names, 'a', 'a.override'].sort())
    await watching.close()
  })
})

test('names that could lead out of the directory are refused', async () => {
  const { cache, disk } = inMemory()
  for (const [namespace, service] of [
    ['..', 'passwd'],
    ['default', '../../etc/passwd'],
    ['default', '..'],
    ['a/b', 'c'],
    ['default', 'a/b'],
    ['default', '.hidden'],
    ['default', 'a\\b'],
    ['default', 'nul\0'],
    ['', 'a'],
  ] as const) {
    await assert.rejects(cache().load(namespace, service), TypeError)
    await assert.rejects(cache().override(namespace, service, undefined, undefined), TypeError)
    assert.throws(() => cache().save({ ...RICH, namespace, service }), TypeError)
  }
  assert.deepEqual(disk.done, [])
})
