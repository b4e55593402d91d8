import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { settle } from '../support/manual-clock.ts'
import { idsOf, removalOf, viewOf } from '../support/sample-views.ts'
import { assertSameView, inMemory, RICH, saved } from '../support/file-cache-world.ts'

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
