/** What is done to the bytes of a cache, to its files and to the clock behind the back of those who use it. */

import assert from 'node:assert/strict'
import fs from 'node:fs/promises'
import path from 'node:path'
import { describe, test } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { systemDisk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { parseView, renderView, SCHEMA } from '../../registry-client/src/files/view-text.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { encodeView } from '@holdfast/registry-client/protocol'
import { changeOf, idsOf, viewOf } from '../support/sample-views.ts'
import { place, revisionIn, start, type Place } from '../support/file-faults-world.ts'

describe('whatever is done to the bytes of the file, the previous one answers', () => {
  const current = viewOf('e:5', ['a'], { policy: { timeout: '2s' } })
  const { text } = renderView(current)
  const whole = Buffer.from(text)

  test('cut short at every byte, on the real disk', async () => {
    const at = await place()
    for (let bytes = 0; bytes < whole.length; bytes++) {
      await fs.writeFile(at.file, whole.subarray(0, bytes))
      // Without its last byte, which is the end of the line, nothing is missing.
      assert.equal(await revisionIn(at.directory), bytes === whole.length - 1 ? 5 : 4, `cut to ${bytes} bytes`)
    }
    await fs.rm(at.directory, { recursive: true })
  })

  test('with every bit turned, one at a time', (context) => {
    let noticed = 0
    for (let bit = 0; bit < whole.length * 8; bit++) {
      const turned = Buffer.from(whole)
      turned[bit >> 3]! ^= 1 << (bit & 7)
      let view
      try {
        view = parseView(turned.toString('utf8'), 'default', 'stock').view
      } catch {
        noticed++
        continue
      }
      // White space between the values may turn into other white space.
      assert.deepEqual(encodeView(view), encodeView(current), `bit ${bit & 7} of byte ${bit >> 3}`)
    }
    context.diagnostic(`${noticed} of ${whole.length * 8} turned bits were noticed; the others changed nothing`)
    assert.ok(noticed > whole.length * 7)
  })

  test('with one bit of every byte turned, on the real disk', async () => {
    const at = await place()
    for (let byte = 0; byte < whole.length; byte++) {
      const turned = Buffer.from(whole)
      turned[byte]! ^= 1 << (byte % 8)
      await fs.writeFile(at.file, turned)
      assert.ok([4, 5].includes((await revisionIn(at.directory))!), `byte ${byte}`)
    }
    await fs.rm(at.directory, { recursive: true })
  })
})

describe('the clock of the machine is turned', () => {
  const DAY_MS = 86_400_000

  for (const turnMs of [DAY_MS, -DAY_MS])
    test(`by ${turnMs > 0 ? 'a day ahead' : 'a day back'}: what is known is served, and does not pass for younger than it is`, async () => {
      const at = await place()
      const clock = { ...systemClock, wall: () => systemClock.wall() + turnMs }
      const { client, network } = await start(at.directory, { clock })
      const answer = await client.resolve('stock', { deadline: 300 })
      assert.deepEqual(idsOf(answer.view), ['a'])
      assert.ok(answer.age >= DAY_MS - 60_000, `${answer.age}`)
      await assert.rejects(client.resolve('stock', { maxStale: '10m', deadline: 10 }), { code: 'stale' })
      // The registry says that it is current: the next start knows how old it is.
      await network.stream.accept()
      await network.stream.event('ping', {}, 'e:5')
      await client.close()
      const again = await start(at.directory, { clock })
      assert.ok((await again.client.resolve('stock', { maxStale: '10m' })).age < 60_000)
      await again.client.close()
      await fs.rm(at.directory, { recursive: true })
    })

  test('while a program runs, which does not notice', async () => {
    const at = await place()
    let turnMs = 0
    const clock = { ...systemClock, wall: () => systemClock.wall() + turnMs }
    const { client } = await start(at.directory, { clock })
    for (turnMs of [0, DAY_MS, -DAY_MS, 0]) assert.ok((await client.resolve('stock', { deadline: 300 })).age < 60_000)
    await client.close()
    await fs.rm(at.directory, { recursive: true })
  })
})

test('two schema versions side by side keep out of the way of each other', async () => {
  const at = await place()
  const theirs = JSON.stringify({ schema: SCHEMA + 1, whatever: true })
  await fs.writeFile(at.file, theirs)
  const cache = () =>
    new FileCache({ directory: at.directory, disk: systemDisk, clock: systemClock, log: new MemoryLog() })
  for (const revision of [7, 8]) {
    const writing = cache()
    writing.save(viewOf(`e:${revision}`, [`n${revision}`]))
    await writing.close()
    assert.equal(await fs.readFile(at.file, 'utf8'), theirs)
    assert.equal(await revisionIn(at.directory), revision)
  }
  // Nobody has dated it for two days: the other version is gone, and the name is free.
  const longAgo = systemClock.wall() / 1_000 - 2 * 86_400
  await fs.utimes(at.file, longAgo, longAgo)
  const writing = cache()
  writing.save(viewOf('e:9', ['n9']))
  await writing.close()
  assert.match(await fs.readFile(at.file, 'utf8'), /"e:9"/)
  await fs.rm(at.directory, { recursive: true })
})

for (const [what, of] of [
  ['directory', (at: Place) => at.directory],
  ["namespace's directory", (at: Place) => path.dirname(at.file)],
  ['file', (at: Place) => at.file],
] as const)
  test(`the ${what} is deleted while a program runs: it goes on, and the file is back at the next look`, async () => {
    const at = await place()
    const clock = new ManualClock(systemClock.wall())
    const { client, network, log } = await start(at.directory, { clock })
    assert.equal((await client.resolve('stock')).source, 'file')
    await network.stream.accept()
    await network.stream.event('change', changeOf('e:5', 'e:6', ['b']), 'e:6')
    await network.stream.cut()
    const until = async (test: () => Promise<boolean>) => {
      for (let i = 0; !(await test()); i++) {
        assert.ok(i < 20_000, 'it does not come')
        await settle()
      }
    }
    await until(async () => (await revisionIn(at.directory)) === 6)
    await fs.rm(of(at), { recursive: true })
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'])
    await clock.advance(6_000)
    await until(async () => {
      await clock.advance(100)
      return (await revisionIn(at.directory)) === 6
    })
    assert.ok(client.status().file!.mended > 0)
    assert.deepEqual(log.of('error'), [])
    await client.close()
    await fs.rm(at.directory, { recursive: true })
  })
