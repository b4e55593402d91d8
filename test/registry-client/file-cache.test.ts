import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, test } from 'node:test'
import { encodeView, type View } from '@holdfast/registry-client/protocol'
import { systemClock } from '@holdfast/registry-client/clock'
import { systemDisk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { SCHEMA } from '../../registry-client/src/files/view-text.ts'
import { FailingDisk } from '../support/failing-disk.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { idsOf, nodeOf, removalOf, viewOf } from '../support/sample-views.ts'

const RICH = viewOf(
  'epoch-1:42',
  [
    nodeOf('a', { zone: 'z1', labels: { version: 'v2', '1': 'ein Ümlaut ✓' } }),
    nodeOf('b', { host: '::1', status: 'down', override: { status: 'down' }, registered: { status: 'up', weight: 7 } }),
  ],
  { policy: { timeout: '2s', routes: [{ to: [{ labels: { version: 'v2' } }] }] } },
)

function inMemory() {
  const clock = new ManualClock()
  const disk = new FailingDisk(clock)
  const log = new MemoryLog()
  const cache = (directory = '/cache') => new FileCache({ directory, disk, clock, log })
  const load = async () => (await cache().load('default', 'stock'))?.view
  return { clock, disk, log, cache, load, file: '/cache/default/stock.json' }
}

async function saved(view: View, cache: FileCache): Promise<void> {
  cache.save(view)
  await cache.close()
}

function assertSameView(actual: View | undefined, expected: View): void {
  assert.ok(actual)
  assert.deepEqual(encodeView(actual), encodeView(expected))
}

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

describe('writing', () => {
  test('of a thousand saves only a few are written, and the last of them', async () => {
    const { cache, disk, clock, load } = inMemory()
    const files = cache()
    for (let revision = 1; revision <= 1_000; revision++) {
      files.save(viewOf(`e:${revision}`, ['a']))
      await clock.advance(2)
    }
    await clock.advance(1_000)
    const written = disk.count('create')
    assert.ok(written >= 4 && written <= 6, `${written} writes in 2 s`)
    assert.equal((await load())!.cursor.revision, 1_000)
    await files.close()
    assert.equal(clock.pending, 0)
  })

  test('ten thousand services that change at once wait their turn, each with its last view', async () => {
    const { cache, disk, clock } = inMemory()
    let atOnce = 0
    let most = 0
    disk.hold = async () => {
      most = Math.max(most, ++atOnce)
      await Promise.resolve()
      atOnce--
    }
    const files = cache()
    for (let revision = 1; revision <= 3; revision++)
      for (let i = 0; i < 10_000; i++) files.save(viewOf(`e:${revision}`, ['a'], { service: `s${i}` }))
    assert.equal(files.status().waiting, 10_000 - 2)
    await clock.advance(1_000)
    assert.equal(files.status().waiting, 0)
    assert.ok(most <= 3, `${most} operations at once`)
    // Two were begun with their first view, and written again with their last.
    assert.equal(disk.count('create'), 10_000 + 2)
    assert.deepEqual([files.status().written, files.status().coalesced], [10_002, 19_998])
    for (const file of disk.files.values()) assert.match(file.content, /"e:[13]"/)
    await files.close()
  })

  test('a disk that hangs is reported, holds few threads, and closing does not wait for it', async () => {
    const { cache, disk, clock, log } = inMemory()
    const files = cache()
    await files.open({ changed() {} })
    let held = 0
    disk.hold = () => {
      held++
      return new Promise(() => {})
    }
    for (let i = 0; i < 50; i++) {
      files.save(viewOf('e:1', ['a'], { service: `s${i}` }))
      void files.load('default', `s${i}`)
    }
    await clock.advance(30_000)
    assert.ok(held <= 4, `${held} operations`)
    assert.equal(files.status().writable, false)
    assert.ok(files.status().failures.hanging! > 0)
    assert.equal(log.of('warn', 'cannot be written').length, 1)
    const closing = files.close()
    await clock.advance(10_000)
    await closing
    assert.equal(log.of('warn', 'not on disk').length, 1)
    assert.equal(clock.pending, 0)
  })

  test('a disk that hangs at the start does not keep a program from starting', async () => {
    const { cache, disk, clock } = inMemory()
    disk.hold = () => new Promise(() => {})
    const files = cache()
    const opening = files.open({ changed() {} })
    await clock.advance(1_000)
    await opening
  })

  test('on a full disk services that nobody follows any more are not kept for better times', async () => {
    const { cache, disk, clock } = inMemory()
    disk.fail = (operation) => (operation === 'create' ? 'ENOSPC' : undefined)
    const files = cache()
    for (let i = 0; i < 100; i++) {
      files.save(viewOf('e:1', ['a'], { service: `s${i}` }))
      files.forget('default', `s${i}`)
    }
    await clock.advance(1_000)
    assert.equal(files.status().waiting, 0)
    await clock.advance(60_000)
    assert.equal(files.status().failed, 100)
    assert.equal(files.status().writable, true)
  })

  test('a view that a peer had is dated back by its age, and makes no file older than it is', async () => {
    const { cache, clock } = inMemory()
    const files = cache()
    files.save(RICH, 600_000)
    await files.close()
    assert.equal((await cache().load('default', 'stock'))!.ageMs, 600_000)
    await clock.advance(1_000)
    await saved(RICH, cache())
    assert.equal((await cache().load('default', 'stock'))!.ageMs, 0)
    const late = cache()
    late.save(RICH, 600_000)
    await late.close()
    assert.equal((await cache().load('default', 'stock'))!.ageMs, 0)
  })

  test('at most two files are written at the same time', async () => {
    const { cache, disk } = inMemory()
    let atOnce = 0
    let most = 0
    disk.hold = async (operation) => {
      if (operation !== 'create') return
      most = Math.max(most, ++atOnce)
      await settle()
      atOnce--
    }
    const files = cache()
    for (let i = 0; i < 20; i++) files.save(viewOf('e:1', ['a'], { service: `s${i}` }))
    await files.close()
    assert.equal(disk.count('create'), 20)
    assert.equal(most, 2)
  })

  test('the same cursor is not written again, only dated', async () => {
    const { cache, disk, clock } = inMemory()
    await saved(RICH, cache())
    await clock.advance(60_000)
    await saved(RICH, cache())
    assert.equal(disk.count('create'), 1)
    assert.equal((await cache().load('default', 'stock'))!.ageMs, 0)
  })

  test('closing writes at once what waits for its turn', async () => {
    const { cache, clock, load } = inMemory()
    const files = cache()
    await files.open({ changed() {} })
    files.save(viewOf('e:1', ['a']))
    await settle()
    files.save(viewOf('e:2', ['b']))
    assert.ok(clock.nextInMs! > 0)
    await files.close()
    assert.deepEqual(idsOf(await load()), ['b'])
    assert.equal(clock.pending, 0)
  })

  test('closing writes what was saved while a write was under way', async () => {
    const { cache, disk, clock, load } = inMemory()
    let letGo: () => void = () => {}
    const held = new Promise<void>((resolve) => (letGo = resolve))
    disk.hold = (operation) => (operation === 'create' ? held : undefined)
    const files = cache()
    files.save(viewOf('e:1', ['a']))
    await settle()
    files.save(viewOf('e:2', ['b']))
    const closing = files.close()
    letGo()
    await closing
    assert.deepEqual(idsOf(await load()), ['b'])
    assert.equal(clock.pending, 0)
  })

  test('what is saved after closing is left alone', async () => {
    const { cache, disk, clock } = inMemory()
    const files = cache()
    await files.close()
    files.save(RICH)
    files.confirm(RICH)
    await clock.advance(60_000)
    assert.equal(disk.files.size, 0)
  })

  for (const code of ['ENOSPC', 'EROFS', 'EACCES'])
    test(`${code} is one warning, counted, and over when the disk is well again`, async () => {
      const { cache, disk, clock, log, load } = inMemory()
      disk.fail = (operation) => (operation === 'create' || operation === 'makeDirectory' ? code : undefined)
      const files = cache()
      await files.open({ changed() {} })
      for (let revision = 1; revision <= 5; revision++) {
        files.save(viewOf(`e:${revision}`, ['a']))
        await clock.advance(1_000)
      }
      assert.deepEqual([files.status().writable, files.status().written, files.status().failed], [false, 0, 2])
      assert.equal(log.of('warn', 'cannot be written').length, 1)
      disk.fail = () => undefined
      files.save(viewOf('e:6', ['b']))
      await clock.advance(5_000)
      assert.equal(files.status().writable, true)
      assert.equal(log.of('info', 'writable again').length, 1)
      assert.deepEqual(idsOf(await load()), ['b'])
      await files.close()
    })

  test('a failed write loses nothing that was there', async () => {
    const { cache, disk, load } = inMemory()
    await saved(viewOf('e:4', ['old']), cache())
    disk.fail = (operation) => (operation === 'create' ? 'ENOSPC' : undefined)
    for (let revision = 5; revision < 9; revision++) await saved(viewOf(`e:${revision}`, ['new']), cache())
    assert.deepEqual(idsOf(await load()), ['old'])
  })

  test('what crashed writers left is removed, what is being written is not', async () => {
    const { cache, disk, clock } = inMemory()
    disk.write('/cache/default/.stock.json.1.abc.tmp', 'old')
    disk.write('/cache/default/notes.txt', 'mine')
    await clock.advance(61_000)
    disk.write('/cache/default/.stock.json.2.def.tmp', 'young')
    const files = cache()
    await files.open({ changed() {} })
    await clock.advance(5_000)
    assert.deepEqual([...disk.files.keys()].sort(), [
      '/cache/default/.stock.json.2.def.tmp',
      '/cache/default/notes.txt',
    ])
    assert.equal(files.status().leftovers, 1)
    await files.close()
  })
})

describe('confirming', () => {
  test('dates the file of an unchanged view every 30 s, without writing it', async () => {
    const { cache, disk, clock } = inMemory()
    const files = cache()
    files.save(RICH)
    await clock.advance(1_000)
    for (let i = 0; i < 30; i++) {
      await clock.advance(10_000)
      files.confirm(RICH)
      await settle()
    }
    assert.equal(disk.count('create'), 1)
    assert.equal(disk.count('touch'), 10)
    assert.ok((await cache().load('default', 'stock'))!.ageMs <= 30_000)
    await files.close()
  })

  test('does not make a file young that holds another view', async () => {
    const { cache, disk, clock } = inMemory()
    await saved(viewOf('e:4', ['old']), cache())
    await clock.advance(100_000)
    disk.fail = (operation) => (operation === 'create' ? 'ENOSPC' : undefined)
    const files = cache()
    files.save(viewOf('e:5', ['new']))
    await clock.advance(40_000)
    files.confirm(viewOf('e:5', ['new']))
    await clock.advance(1_000)
    const loaded = (await cache().load('default', 'stock'))!
    assert.deepEqual(idsOf(loaded.view), ['old'])
    assert.ok(loaded.ageMs > 140_000, `${loaded.ageMs}`)
    await files.close()
  })

  test('writes again what somebody has deleted', async () => {
    const { cache, disk, clock, load, file } = inMemory()
    const files = cache()
    files.save(RICH)
    await clock.advance(1_000)
    disk.files.delete(file)
    for (let i = 0; i < 8; i++) {
      await clock.advance(10_000)
      files.confirm(RICH)
      await settle()
    }
    assertSameView(await load(), RICH)
    await files.close()
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

test('a service that is forgotten and asked for again is what was to be written, not what the file still holds', async () => {
  const { cache, disk } = inMemory()
  await saved(viewOf('e:5', ['a']), cache())
  const files = cache()
  disk.hold = (operation) => (operation === 'create' ? new Promise(() => {}) : undefined)
  files.save(viewOf('e:7', ['b']))
  files.forget('default', 'stock')
  assert.deepEqual(idsOf((await files.load('default', 'stock'))?.view), ['b'])
})

test('a service that is forgotten keeps its file, and what was still to be written is written', async () => {
  const { cache, clock, load } = inMemory()
  const files = cache()
  files.save(viewOf('e:1', ['a']))
  await settle()
  files.save(viewOf('e:2', [], { emptied: removalOf('a', 2) }))
  files.forget('default', 'stock')
  await clock.advance(1_000)
  assert.equal((await load())!.cursor.revision, 2)
  await files.close()
})
