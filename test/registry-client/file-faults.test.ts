/**
 * What a disk can do to a cache, and what a program sees of it: the fault matrix.
 *
 * In each row a host has two generations of `stock`, `e:5` with the node `a` and before it `e:4` with the node `old`.
 * Then comes the fault, and a program starts while the registry is dead; then the registry returns with `e:6` and the
 * node `b`, and the program ends. On the real disk wherever root can make it fail, otherwise one operation is made to.
 */

import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, describe, test } from 'node:test'
import { connect, ResolveError, type RegistryClient } from '@holdfast/registry-client'
import { systemClock, type Clock } from '@holdfast/registry-client/clock'
import { systemDisk, type Disk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { parseView, renderView, SCHEMA } from '../../registry-client/src/files/view-text.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { encodeView } from '@holdfast/registry-client/protocol'
import { changeOf, idsOf, snapshotOf, viewOf } from '../support/sample-views.ts'
import { ScriptedNetwork } from '../support/scripted-network.ts'

const isRoot = process.platform === 'linux' && process.getuid?.() === 0
const NOBODY = 65_534

interface Place {
  readonly directory: string
  readonly file: string
}

type Undo = () => unknown

interface Row {
  readonly fault: string
  /** Makes it so; answers how it is undone before the directory is looked at in the end. */
  readonly make?: (place: Place) => Promise<Undo | void> | Undo | void
  /** Or the operations that fail, with what; `to` is the name that a file is to get. */
  readonly fails?: (operation: keyof Disk, file: string, to?: string) => string | undefined
  /** By how much the machine's clock is turned. */
  readonly turnMs?: number
  /** What resolving answers while the registry is dead; `none`: an error that says so. */
  readonly answers: 'a' | 'old' | 'none'
  /** A line of the log. */
  readonly says: RegExp
  /** Under what it is counted in `status().file.failures`. */
  readonly counted: string
  /** The revision in the files when all is over. */
  readonly leaves: number
}

const write = (content: string) => async (place: Place) => fs.writeFile(place.file, content)
const swap = (make: (place: Place) => unknown) => async (place: Place) => {
  await fs.rm(place.file)
  await make(place)
}
const sh = (command: string, ...args: string[]) => void execFileSync(command, args, { stdio: 'pipe' })
const isTemporary = (file: string | undefined) => file?.endsWith('.tmp') === true
const isView = (file: string | undefined) => file?.endsWith('stock.json') === true

const UNREADABLE = /cache file cannot be read/
const UNWRITABLE = /cache directory cannot be written/

const ROWS: readonly Row[] = [
  { fault: 'an empty file', make: write(''), answers: 'old', says: UNREADABLE, counted: 'corrupt', leaves: 6 },
  { fault: 'noise', make: write('\0'.repeat(5_000)), answers: 'old', says: UNREADABLE, counted: 'corrupt', leaves: 6 },
  {
    fault: "another service's file",
    make: write(renderView(viewOf('e:9', ['x'], { service: 'shop' })).text),
    answers: 'old',
    says: UNREADABLE,
    counted: 'corrupt',
    leaves: 6,
  },
  {
    fault: 'a directory in its place',
    make: swap(({ file }) => fs.mkdir(file)),
    answers: 'old',
    says: UNREADABLE,
    counted: 'EISDIR',
    // It is somebody's directory. What is written stays in memory until they have taken it away.
    leaves: 4,
  },
  {
    fault: 'a pipe in its place',
    make: swap(({ file }) => sh('mkfifo', file)),
    answers: 'old',
    says: UNREADABLE,
    counted: 'EINVAL',
    leaves: 6,
  },
  {
    fault: 'a link to a whole file elsewhere',
    make: swap(async ({ directory, file }) => {
      const elsewhere = path.join(directory, 'elsewhere')
      await fs.writeFile(elsewhere, renderView(viewOf('e:99', ['evil'])).text)
      await fs.symlink(elsewhere, file)
    }),
    answers: 'old',
    says: UNREADABLE,
    counted: 'ELOOP',
    leaves: 6,
  },
  {
    fault: 'a link to itself',
    make: swap(({ file }) => fs.symlink(file, file)),
    answers: 'old',
    says: UNREADABLE,
    counted: 'ELOOP',
    leaves: 6,
  },
  {
    fault: 'a link to nothing',
    make: swap(({ directory, file }) => fs.symlink(path.join(directory, 'nothing'), file)),
    answers: 'old',
    says: UNREADABLE,
    counted: 'ELOOP',
    leaves: 6,
  },
  {
    fault: 'a file of another user',
    make: ({ file }) => fs.chown(file, NOBODY, NOBODY),
    answers: 'old',
    says: UNREADABLE,
    counted: 'untrusted',
    leaves: 6,
  },
  {
    fault: 'a file that everyone may write',
    make: ({ file }) => fs.chmod(file, 0o666),
    answers: 'old',
    says: UNREADABLE,
    counted: 'untrusted',
    leaves: 6,
  },
  {
    fault: 'files that may not be read',
    make: () => {
      process.seteuid!(NOBODY)
      return () => process.seteuid!(0)
    },
    answers: 'none',
    says: UNREADABLE,
    counted: 'EACCES',
    leaves: 5,
  },
  {
    fault: 'a directory that cannot be changed',
    make: ({ file }) => {
      sh('chattr', '+i', path.dirname(file))
      return () => sh('chattr', '-i', path.dirname(file))
    },
    answers: 'a',
    says: UNWRITABLE,
    counted: 'EPERM',
    leaves: 5,
  },
  {
    fault: 'a read-only file system',
    make: ({ directory }) => {
      sh('mount', '--bind', directory, directory)
      sh('mount', '-o', 'remount,bind,ro', directory)
      return () => sh('umount', directory)
    },
    answers: 'a',
    says: UNWRITABLE,
    counted: 'EROFS',
    leaves: 5,
  },
  {
    fault: 'a full file system',
    make: async ({ directory, file }) => {
      const folder = path.dirname(file)
      const copy = `${directory}.copy`
      await fs.cp(folder, copy, { recursive: true, preserveTimestamps: true })
      sh('mount', '-t', 'tmpfs', '-o', 'size=64k,mode=700', 'tmpfs', folder)
      await fs.cp(copy, folder, { recursive: true, preserveTimestamps: true })
      await fs.rm(copy, { recursive: true })
      await fs.writeFile(path.join(folder, 'filler'), Buffer.alloc(1_000_000)).catch(() => {})
      return async () => {
        assert.equal((await revisionIn(directory)) ?? 0, 5)
        sh('umount', folder)
      }
    },
    answers: 'a',
    says: UNWRITABLE,
    counted: 'ENOSPC',
    leaves: 5,
  },
  {
    fault: 'ENOSPC at fsync',
    fails: (operation, file) => (operation === 'sync' && isTemporary(file) ? 'ENOSPC' : undefined),
    answers: 'a',
    says: UNWRITABLE,
    counted: 'ENOSPC',
    leaves: 5,
  },
  {
    fault: 'ENOSPC at rename',
    fails: (operation, _file, to) => (operation === 'rename' && isView(to) ? 'ENOSPC' : undefined),
    answers: 'a',
    says: UNWRITABLE,
    counted: 'ENOSPC',
    leaves: 5,
  },
  {
    fault: 'EIO when the directory is synced',
    fails: (operation, file) => (operation === 'sync' && !isTemporary(file) ? 'EIO' : undefined),
    answers: 'a',
    says: UNWRITABLE,
    counted: 'EIO',
    leaves: 6,
  },
  {
    fault: 'a file system without links',
    fails: (operation) => (operation === 'link' ? 'EPERM' : undefined),
    answers: 'a',
    // Of no importance, so there is no line.
    says: /^$/,
    counted: 'EPERM',
    leaves: 6,
  },
  {
    fault: 'EMFILE',
    make: async () => {
      const self = ['--pid', `${process.pid}`]
      const limits = execFileSync('prlimit', [...self, '--nofile', '-o', 'SOFT,HARD', '--noheadings']).toString()
      const [soft, hard] = limits.trim().split(/\s+/)
      // Begun now, since nothing can be begun without a free handle.
      const healer = spawn('sh', ['-c', `read word; exec prlimit ${self.join(' ')} --nofile=${soft}:${hard}`])
      await once(healer, 'spawn')
      sh('prlimit', ...self, `--nofile=3:${hard}`)
      return async () => {
        healer.stdin.end('\n')
        await once(healer, 'exit')
      }
    },
    answers: 'none',
    says: UNREADABLE,
    counted: 'EMFILE',
    leaves: 5,
  },
  {
    fault: 'EIO on reading the file',
    fails: (operation, file) => (operation === 'read' && isView(file) ? 'EIO' : undefined),
    answers: 'old',
    says: UNREADABLE,
    counted: 'EIO',
    // What cannot be read may hold what must not be lost: it is written once it can be read.
    leaves: 5,
  },
  {
    fault: 'EIO on reading anything',
    fails: (operation) => (['read', 'stat', 'startsWith', 'list'].includes(operation) ? 'EIO' : undefined),
    answers: 'none',
    says: UNREADABLE,
    counted: 'EIO',
    leaves: 5,
  },
  {
    fault: "another version's file",
    make: write(JSON.stringify({ schema: SCHEMA + 1, whatever: true })),
    answers: 'old',
    says: /another version's cache file/,
    counted: 'schema',
    leaves: 6,
  },
]

async function place(): Promise<Place> {
  const directory = await fs.mkdtemp(path.join(tmpdir(), 'holdfast-faults-'))
  for (const view of [viewOf('e:4', ['old']), viewOf('e:5', ['a'])]) {
    const cache = new FileCache({ directory, disk: systemDisk, clock: systemClock, log: new MemoryLog() })
    cache.save(view)
    await cache.close()
  }
  return { directory, file: path.join(directory, 'default', 'stock.json') }
}

/** What a process would read that starts now, and reads only. */
async function revisionIn(directory: string): Promise<number | undefined> {
  const cache = new FileCache({ directory, disk: systemDisk, clock: systemClock, log: new MemoryLog() })
  await cache.close()
  return (await cache.load('default', 'stock'))?.view.cursor.revision
}

function faulty(fails: NonNullable<Row['fails']>): Disk {
  return new Proxy(systemDisk, {
    get: (disk, name: keyof Disk) => {
      const operation = Reflect.get(disk, name) as (...args: unknown[]) => Promise<unknown>
      return (...args: string[]) => {
        const code = fails(name, args[0]!, args[1])
        if (code === undefined) return operation.apply(disk, args)
        return Promise.reject(Object.assign(new Error(`${code}: as the test says`), { code }))
      }
    },
  })
}

/** Closed after each test, so that one that fails does not go on for ever. */
const clients: RegistryClient[] = []
afterEach(() => Promise.all(clients.splice(0).map((client) => client.close())))

async function start(directory: string, more: { disk?: Disk; clock?: Clock } = {}) {
  const network = new ScriptedNetwork()
  const log = new MemoryLog()
  const client = await connect({ endpoints: ['http://registry:7400'], cacheDir: directory, network, log, ...more })
  clients.push(client)
  return { network, log, client }
}

/** The nodes of an answer; `none` for the error that says that there is none. */
async function answerOf(client: RegistryClient): Promise<string> {
  try {
    return idsOf((await client.resolve('stock', { deadline: 300 })).view).join()
  } catch (error) {
    assert.ok(error instanceof ResolveError, String(error))
    assert.equal(error.code, 'unresolved')
    return 'none'
  }
}

describe(
  'a program starts in an outage, and meets',
  { skip: !isRoot && 'only root on Linux can make disks fail' },
  () => {
    for (const row of ROWS)
      test(row.fault, async () => {
        const at = await place()
        let undo: Undo | void = undefined
        try {
          undo = await row.make?.(at)
          const { network, log, client } = await start(at.directory, row.fails && { disk: faulty(row.fails) })
          assert.equal(await answerOf(client), row.answers)
          await network.stream.accept()
          await network.stream.event('snapshot', snapshotOf('e:6', ['b']), 'e:6')
          assert.equal(await answerOf(client), 'b')
          await client.close()
          const { file } = client.status()
          await undo?.()
          undo = undefined
          assert.ok(
            row.says.source === '^$' || log.lines.some(({ message }) => row.says.test(message)),
            JSON.stringify(log.lines),
          )
          assert.ok((file?.failures[row.counted] ?? 0) > 0, JSON.stringify(file))
          assert.equal(await revisionIn(at.directory), row.leaves)
          const names = await fs.readdir(path.dirname(at.file))
          assert.deepEqual(names.filter(isTemporary), [])
        } finally {
          await undo?.()
          await fs.rm(at.directory, { recursive: true })
        }
      })

    test('a link, which is replaced itself: what it led to stays as it was', async () => {
      const at = await place()
      const elsewhere = path.join(at.directory, 'elsewhere')
      await fs.writeFile(elsewhere, 'mine')
      await fs.rm(at.file)
      await fs.symlink(elsewhere, at.file)
      const cache = new FileCache({
        directory: at.directory,
        disk: systemDisk,
        clock: systemClock,
        log: new MemoryLog(),
      })
      cache.save(viewOf('e:6', ['b']))
      await cache.close()
      assert.equal(await fs.readFile(elsewhere, 'utf8'), 'mine')
      assert.ok((await fs.lstat(at.file)).isFile())
      await fs.rm(at.directory, { recursive: true })
    })
  },
)

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
