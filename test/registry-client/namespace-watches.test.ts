import assert from 'node:assert/strict'
import { promises as fs } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { systemDisk, type Disk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { viewOf } from '../support/sample-views.ts'

const LOOK_MS = 5_000
const OVERRIDE = '{"nodes":[{"host":"10.0.0.1","port":80}]}'

/** A file cache on the real disk, which counts its watches. */
async function world(t: TestContext) {
  const directory = await fs.mkdtemp(path.join(tmpdir(), 'holdfast-watches-'))
  const clock = new ManualClock()
  const log = new MemoryLog()
  const watched = new Set<string>()
  const told: string[] = []
  const waiting = new Set<() => void>()
  const wake = () => {
    for (const look of waiting) look()
  }
  const disk: Disk = {
    ...systemDisk,
    async watch(folder, changed, ended) {
      const stop = await systemDisk.watch(folder, changed, ended)
      assert.ok(!watched.has(folder), `${folder} is watched twice`)
      watched.add(folder)
      wake()
      return async () => {
        watched.delete(folder)
        wake()
        await stop()
      }
    },
  }
  const files = new FileCache({ directory, disk, clock, log })
  const opening = files.open({
    changed: (namespace, service) => {
      told.push(`${namespace}/${service}`)
      wake()
    },
  })
  await opening
  t.after(async () => {
    await files.close()
    await fs.rm(directory, { recursive: true, force: true })
  })
  const until = (is: () => boolean) =>
    new Promise<void>((resolve) => {
      const look = () => {
        if (!is()) return
        waiting.delete(look)
        resolve()
      }
      waiting.add(look)
      look()
    })
  /** As many turns of the disk as it takes, after the next look has begun. */
  const looked = async (is: () => boolean) => {
    await clock.advance(LOOK_MS)
    for (let turn = 0; !is(); turn++) {
      assert.ok(turn < 100_000, 'it does not come')
      await settle()
    }
  }
  const at = (...names: string[]) => path.join(directory, ...names)
  const put = async (namespace: string, service: string) => {
    await fs.mkdir(at(namespace), { recursive: true })
    await fs.writeFile(at(namespace, `${service}.override.json`), OVERRIDE)
  }
  return { directory, clock, files, log, watched, told, until, looked, at, put }
}

describe('watches of namespaces', () => {
  test('made-up names leave no directory and no watch behind', async (t) => {
    const { directory, files, watched, looked, clock } = await world(t)
    for (let i = 0; i < 3_000; i++) await files.load(`made-up-${i}`, 'stock')
    await looked(() => watched.size === 1)
    await clock.advance(LOOK_MS)
    assert.deepEqual(await fs.readdir(directory), [])
    assert.deepEqual([...watched], [path.join(directory, '')])
    assert.deepEqual(files.status().failures, {})
  })

  test('one begins when the directory appears, and ends with the last service that is followed', async (t) => {
    const { files, watched, told, until, at, put } = await world(t)
    for (const service of ['stock', 'shop']) await files.load('blue', service)
    assert.ok(!watched.has(at('blue')))
    await fs.mkdir(at('blue'))
    await until(() => watched.has(at('blue')))
    await put('blue', 'shop')
    await until(() => told.includes('blue/shop'))
    files.forget('blue', 'shop')
    await settle()
    assert.ok(watched.has(at('blue')))
    files.forget('blue', 'stock')
    await until(() => !watched.has(at('blue')))
    await files.load('blue', 'stock')
    await until(() => watched.has(at('blue')))
  })

  test('an override in a namespace that had no directory is found by the next look, event or none', async (t) => {
    const { files, told, at, looked, put } = await world(t)
    await files.load('green', 'stock')
    await put('green', 'stock')
    await looked(() => told.includes('green/stock'))
    assert.ok(await files.override('green', 'stock', undefined, undefined))
    assert.equal(files.status().overrides, 1)
    // Gone with its directory, it is missed as well.
    told.length = 0
    await fs.rm(at('green'), { recursive: true })
    await looked(() => told.includes('green/stock'))
    assert.equal(await files.override('green', 'stock', undefined, undefined), undefined)
    assert.equal(files.status().overrides, 0)
  })

  test('they begin again after the whole directory was deleted', async (t) => {
    const { directory, files, watched, looked, clock, at, until, told, put } = await world(t)
    const write = async (revision: number) => {
      files.save(viewOf(`e:${revision}`, ['a'], { namespace: 'blue' }))
      for (let turn = 0; files.status().written < revision; turn++) {
        assert.ok(turn < 100_000, 'it is not written')
        await clock.advance(10)
      }
    }
    await write(1)
    await looked(() => watched.has(at('blue')))
    await fs.rm(directory, { recursive: true })
    await until(() => watched.size === 0)
    await write(2)
    await looked(() => watched.size === 2)
    await put('blue', 'stock')
    await until(() => told.includes('blue/stock'))
  })
})
