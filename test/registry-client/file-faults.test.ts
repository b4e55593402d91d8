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
import path from 'node:path'
import { describe, test } from 'node:test'
import { ResolveError, type RegistryClient } from '@holdfast/registry-client'
import { systemClock } from '@holdfast/registry-client/clock'
import { systemDisk, type Disk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { renderView, SCHEMA } from '../../registry-client/src/files/view-text.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { idsOf, snapshotOf, viewOf } from '../support/sample-views.ts'
import { place, revisionIn, start, type Place } from '../support/file-faults-world.ts'

const isRoot = process.platform === 'linux' && process.getuid?.() === 0
const NOBODY = 65_534

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
