import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { FileStat } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { FailingDisk } from '../support/failing-disk.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { nodeOf, viewOf } from '../support/sample-views.ts'

const HOUR_MS = 3_600_000
/** Of less than a block each, so that each counts as one. */
const BLOCK = 4_096

function world(files = 0) {
  const clock = new ManualClock()
  const disk = new FailingDisk(clock)
  const log = new MemoryLog()
  const cache = (maxBytes?: number) => new FileCache({ directory: '/cache', disk, clock, log, maxBytes })
  const open = async (maxBytes?: number) => {
    const opened = cache(maxBytes)
    await opened.open({ changed: (namespace, service) => void opened.load(namespace, service) })
    return opened
  }
  /** Services `s0`, `s1`, …, the first the oldest, an hour apart. */
  const fill = async () => {
    for (let i = 0; i < files; i++) {
      const writing = cache()
      writing.save(viewOf('e:1', ['a'], { service: `s${i}` }))
      await writing.close()
      await clock.advance(HOUR_MS)
    }
  }
  const names = () => [...disk.files.keys()].map((file) => file.slice('/cache/default/'.length)).sort()
  return { clock, disk, log, open, fill, names }
}

const later = async (clock: ManualClock) => clock.advance(700_000)

describe('a cache directory over its bound', () => {
  test('loses the files that nobody has followed for the longest time, and says so', async () => {
    const { clock, disk, log, open, fill, names } = world(10)
    await fill()
    const files = await open(5 * BLOCK)
    await clock.advance(5_000)
    // Down to nine tenths, so that the next file does not begin it all again.
    assert.deepEqual(names(), ['s6.json', 's7.json', 's8.json', 's9.json'])
    assert.deepEqual([files.status().evicted, files.status().bytes], [6, 4 * BLOCK])
    assert.equal(log.of('info', 'evicted').length, 1)
    await files.close()
    assert.equal(disk.count('remove') >= 6, true)
  })

  test('loses corrupt files and previous generations first', async () => {
    const { clock, disk, open, fill, names } = world(3)
    await fill()
    for (const name of ['s2.json.previous', 's2.json.corrupt', 's1.json.previous'])
      disk.write(`/cache/default/${name}`, 'old')
    const files = await open(4 * BLOCK)
    await clock.advance(5_000)
    assert.deepEqual(names(), ['s0.json', 's1.json', 's2.json'])
    await files.close()
  })

  test('keeps what this process follows, what others have marked a moment ago, overrides and what is not its own', async () => {
    const { clock, disk, open, fill, names } = world(4)
    await fill()
    disk.write('/cache/default/s1.override.json', '{}')
    disk.write('/cache/default/notes.txt', 'mine')
    disk.write('/cache/sidecar-7502.json', 'mine')
    disk.files.get('/cache/default/s1.json')!.changedMs = clock.wall()
    const files = await open(BLOCK)
    await files.load('default', 's0')
    await clock.advance(5_000)
    assert.deepEqual(
      names().filter((name) => name.startsWith('s') && name.endsWith('.json')),
      ['s0.json', 's1.json', 's1.override.json'],
    )
    assert.ok(disk.files.has('/cache/default/notes.txt'))
    assert.ok(disk.files.has('/cache/sidecar-7502.json'))
    await files.close()
  })

  test('keeps in an outage what another process follows, and dates nothing by that', async () => {
    const { clock, disk, open, fill, names } = world(3)
    await fill()
    const modifiedMs = disk.files.get('/cache/default/s0.json')!.modifiedMs
    const following = await open()
    await following.load('default', 's0')
    await clock.advance(HOUR_MS)
    const other = await open(BLOCK)
    await clock.advance(5_000)
    assert.deepEqual(names(), ['s0.json'])
    assert.equal(disk.files.get('/cache/default/s0.json')!.modifiedMs, modifiedMs)
    for (const files of [following, other]) await files.close()
  })

  test('takes back a file that is mended, however full it is', async () => {
    const { clock, disk, open, names } = world()
    const files = await open(2 * BLOCK)
    for (const service of ['a', 'b']) files.save(viewOf('e:1', ['a'], { service }))
    await clock.advance(1_000)
    disk.files.delete('/cache/default/a.json')
    disk.write('/cache/default/c.json', 'of somebody else')
    await clock.advance(60_000)
    assert.deepEqual(names(), ['a.json', 'b.json', 'c.json'])
    await files.close()
  })

  test('under it nothing is evicted, however long the outage', async () => {
    const { clock, open, fill, names } = world(5)
    await fill()
    const files = await open(5 * BLOCK)
    await clock.advance(30 * 24 * HOUR_MS)
    assert.equal(names().length, 5)
    assert.equal(files.status().evicted, 0)
    await files.close()
  })

  test('takes no new service when nothing can go, says so once, and still takes what those that it has become', async () => {
    const { clock, log, open, names } = world()
    const files = await open(3 * BLOCK)
    for (let i = 0; i < 6; i++) {
      files.save(viewOf('e:1', ['a'], { service: `s${i}` }))
      await clock.advance(1_000)
    }
    assert.deepEqual(names(), ['s0.json', 's1.json', 's2.json'])
    assert.equal(files.status().refused, 3)
    assert.equal(log.of('warn', 'full').length, 1)
    files.save(viewOf('e:2', [nodeOf('b')], { service: 's1' }))
    await clock.advance(1_000)
    assert.equal((await files.load('default', 's1'))!.view.cursor.revision, 2)
    await files.close()
  })

  test('shared by two processes it loses each file once, and not more than one would evict', async () => {
    const { clock, open, fill, names } = world(10)
    await fill()
    const both = await Promise.all([open(5 * BLOCK), open(5 * BLOCK)])
    await clock.advance(5_000)
    assert.equal(names().length, 4)
    assert.equal(both[0].status().evicted + both[1].status().evicted, 6)
    for (const files of both) await files.close()
  })

  test('a file that somebody began to follow during the look is kept', async () => {
    const { clock, disk, open, fill, names } = world(4)
    await fill()
    let looked = 0
    disk.hold = (operation, file) => {
      if (operation === 'stat' && file.endsWith('s0.json') && ++looked === 2)
        disk.files.get(file)!.changedMs = clock.wall()
      return undefined
    }
    const files = await open(3 * BLOCK)
    await clock.advance(5_000)
    assert.deepEqual(names(), ['s0.json', 's3.json'])
    await files.close()
  })

  test('dated in the future, by a clock that was wrong, files go before all others', async () => {
    const { clock, disk, open, fill, names } = world(4)
    await fill()
    disk.files.get('/cache/default/s3.json')!.changedMs = clock.wall() + 24 * HOUR_MS
    const files = await open(3 * BLOCK)
    await clock.advance(5_000)
    assert.deepEqual(names(), ['s1.json', 's2.json'])
    await files.close()
  })
})

describe('clean-up', () => {
  const LEFTOVER = '/cache/default/.s0.json.1.abc.tmp'

  for (const [what, turnMs] of [
    ['a minute old', 61_000],
    ['from the future', -24 * HOUR_MS],
  ] as const)
    test(`removes what is ${what} and was being written`, async () => {
      const { clock, disk, open } = world()
      disk.write(LEFTOVER, 'half')
      clock.turnWall(turnMs)
      const files = await open()
      await clock.advance(5_000)
      assert.equal(disk.files.has(LEFTOVER), false)
      assert.equal(files.status().leftovers, 1)
      await files.close()
    })

  test('leaves what is being written, and comes again for what its writer left', async () => {
    const { clock, disk, open } = world()
    const files = await open()
    await clock.advance(4_000)
    disk.write(LEFTOVER, 'half')
    await clock.advance(1_000)
    assert.ok(disk.files.has(LEFTOVER))
    await later(clock)
    assert.equal(disk.files.has(LEFTOVER), false)
    await files.close()
  })

  test('leaves what is being written of a view that a peer had, and is dated back by hours', async () => {
    const { clock, disk, open } = world()
    const files = await open()
    let letGo = () => {}
    disk.hold = (operation) => (operation === 'sync' ? new Promise<void>((resolve) => (letGo = resolve)) : undefined)
    files.save(viewOf('e:1', ['a'], { service: 's0' }), 2 * HOUR_MS)
    await clock.advance(5_000)
    assert.equal([...disk.files.keys()].filter((file) => file.endsWith('.tmp')).length, 1)
    disk.hold = () => undefined
    letGo()
    await clock.advance(1_000)
    assert.equal((await files.load('default', 's0'))!.ageMs, 2 * HOUR_MS + 6_000)
    await files.close()
  })

  test('a writer whose file it took, since the clock was turned, writes another', async () => {
    const { clock, disk, open } = world()
    const files = await open()
    let letGo = () => {}
    disk.hold = (operation) => (operation === 'sync' ? new Promise<void>((resolve) => (letGo = resolve)) : undefined)
    files.save(viewOf('e:1', ['a'], { service: 's0' }))
    await clock.advance(1_000)
    clock.turnWall(24 * HOUR_MS)
    await clock.advance(5_000)
    assert.equal(files.status().leftovers, 1)
    disk.hold = () => undefined
    letGo()
    await clock.advance(10_000)
    assert.ok(disk.files.has('/cache/default/s0.json'))
    await files.close()
  })

  test('keeps a corrupt file for a week', async () => {
    const { clock, disk, open } = world()
    disk.write('/cache/default/s0.json.corrupt', 'bad')
    const files = await open()
    await clock.advance(6 * 24 * HOUR_MS)
    assert.ok(disk.files.has('/cache/default/s0.json.corrupt'))
    await clock.advance(24 * HOUR_MS + 700_000)
    assert.equal(disk.files.has('/cache/default/s0.json.corrupt'), false)
    await files.close()
  })
})

describe('access', () => {
  for (const [what, stat, expected] of [
    ['of this user alone', { mode: 0o700, trusted: true }, undefined],
    ['that others may read', { mode: 0o755, trusted: true }, 'open to others'],
    ['that everyone may write', { mode: 0o777, trusted: false }, 'everyone may write it'],
  ] as const)
    test(`a directory ${what} ${expected ? 'is worth a warning' : 'is not worth a word'}`, async () => {
      const { disk, log, open } = world()
      const plain = disk.stat.bind(disk)
      disk.stat = async (file): Promise<FileStat | undefined> =>
        file === '/cache' ? { modifiedMs: 0, changedMs: 0, bytes: 0, ...stat } : plain(file)
      const files = await open()
      assert.deepEqual(log.of('warn').length, expected ? 1 : 0)
      if (expected) assert.equal(log.of('warn', expected).length, 1)
      await files.close()
    })
})
