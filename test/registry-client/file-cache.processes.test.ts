/** Many processes on one cache directory, of which one is killed every second. `HOLDFAST_CROWD_SECONDS`, default 30. */

import assert from 'node:assert/strict'
import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { sleep, systemClock, type Clock } from '@holdfast/registry-client/clock'
import { CacheDirectory } from '../../registry-client/src/files/cache-directory.ts'
import { systemDisk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { seededRandom } from '../support/seeded-random.ts'

const SECONDS = Number(process.env.HOLDFAST_CROWD_SECONDS ?? 30)
const PROCESSES = 8
const SERVICES = ['stock', 'shop', 'mail', 'a.override']
const WRITER = fileURLToPath(new URL('../support/file-cache-writer.ts', import.meta.url))
/** Two looks of a cache that is told nothing. */
const MENDED_MS = 20_000

interface Message {
  readonly ready?: true
  readonly wrong?: unknown
  readonly highest?: Record<string, number>
}

test(`${PROCESSES} processes write one directory for ${SECONDS} s, one killed every second`, async (context) => {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-crowd-'))
  const random = seededRandom(SECONDS)
  const log = new MemoryLog()
  const wrong: unknown[] = []
  const crowd = new Set<ChildProcess>()
  const startedMs = systemClock.wall()
  const add = async () => {
    const lagMs = Math.floor(random() * 300)
    const child = fork(WRITER, [directory, `${startedMs}`, `${lagMs}`, SERVICES.join(',')], {
      execArgv: ['--import', 'tsx'],
    })
    crowd.add(child)
    child.on('message', ({ wrong: what }: Message) => what !== undefined && wrong.push(what))
    child.once('exit', (code, signal) => {
      if (signal !== 'SIGKILL' && code !== 0) wrong.push({ code, signal })
    })
    await once(child, 'message')
  }
  const revisionOf = async (service: string) => {
    const cache = new FileCache({ directory, disk: systemDisk, clock: systemClock, log })
    const loaded = await cache.load('default', service)
    return loaded?.view.cursor.revision ?? 0
  }

  try {
    await Promise.all(Array.from({ length: PROCESSES }, add))
    // From their first writing on.
    for (const service of SERVICES) while (!(await revisionOf(service))) await sleep(systemClock, 5)
    let killed = 0
    for (const endMs = systemClock.now() + SECONDS * 1_000; systemClock.now() < endMs;) {
      const nextMs = systemClock.now() + 1_000
      while (systemClock.now() < nextMs) {
        for (const service of SERVICES) if (!(await revisionOf(service))) wrong.push(`${service} does not load`)
        await sleep(systemClock, 5)
      }
      const victim = [...crowd][Math.floor(random() * crowd.size)]!
      crowd.delete(victim)
      victim.kill('SIGKILL')
      killed++
      void add()
    }
    // Nobody writes any more: what the survivors know best is what the files come to hold.
    const last = [...crowd].map(
      (child) =>
        new Promise<Record<string, number>>((resolve) => {
          child.on('message', ({ highest }: Message) => highest && resolve(highest))
          child.send('rest')
        }),
    )
    const known = await Promise.all(last)
    const deadlineMs = systemClock.now() + MENDED_MS
    for (const service of SERVICES) {
      const best = Math.max(...known.map((highest) => highest[service] ?? 0))
      let revision = 0
      for (; revision < best && systemClock.now() < deadlineMs; await sleep(systemClock, 50))
        revision = await revisionOf(service)
      assert.equal(revision, best, `${service} went back`)
    }
    await Promise.all(
      [...crowd].map(async (child) => {
        child.send('end')
        await once(child, 'exit')
      }),
    )
    assert.deepEqual(wrong, [])
    assert.deepEqual(log.lines, [])

    const folder = path.join(directory, 'default')
    const left = (await readdir(folder)).filter((name) => name.endsWith('.tmp'))
    context.diagnostic(`killed ${killed}; left by them: ${left.length} temporary files`)
    // A minute later.
    let nowMs = systemClock.now()
    const later: Clock = { ...systemClock, now: () => nowMs, wall: () => systemClock.wall() + 61_000 }
    const isFollowed = () => false
    const bounds = new CacheDirectory({ directory, disk: systemDisk, clock: later, log, maxBytes: 1e9, isFollowed })
    nowMs += 600_000
    await bounds.lookIfDue()
    assert.equal(bounds.leftovers, left.length)
    const names = ['stock', 'shop', 'mail', 'a%2Eoverride'].flatMap((name) => [`${name}.json`, `${name}.json.previous`])
    assert.deepEqual((await readdir(folder)).sort(), names.sort())
  } finally {
    for (const child of crowd) child.kill('SIGKILL')
    await rm(directory, { recursive: true, force: true })
  }
})
