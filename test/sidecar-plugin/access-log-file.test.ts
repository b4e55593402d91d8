import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { constants } from 'node:fs'
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { AccessLogFile, checkAccessLog, type AccessLogFileOptions } from '../../sidecar-plugin/src/access-log-file.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { eventually } from './wire.ts'

/** What stands in each file that had the name, byte by byte, and how many more there is room for. */
class FakeDisk {
  readonly files: string[] = ['']
  readonly writes: number[] = []
  opened = 0
  openNow = 0
  room = Infinity
  isPipe = false
  fails: { open?: string | undefined; write?: string | undefined } = {}
  /** What a write waits for. */
  held: Promise<void> | undefined

  readonly open = async () => {
    if (this.fails.open !== undefined) throw codeError(this.fails.open)
    this.opened++
    this.openNow++
    const file = this.files.length - 1
    return {
      isPipe: this.isPipe,
      write: async (bytes: Buffer) => {
        await this.held
        if (this.fails.write !== undefined) throw codeError(this.fails.write)
        if (this.room === 0) throw codeError(this.isPipe ? 'EAGAIN' : 'ENOSPC')
        const taken = bytes.subarray(0, this.room)
        this.room -= taken.length
        this.files[file] += taken.toString('latin1')
        this.writes.push(taken.length)
        return taken.length
      },
      close: async () => void this.openNow--,
    }
  }

  get text(): string {
    return Buffer.from(this.files.at(-1)!, 'latin1').toString()
  }
}

function codeError(code: string): Error {
  return Object.assign(new Error(`${code}: as the test says`), { code })
}

async function start(over: Partial<AccessLogFileOptions> = {}) {
  const clock = new ManualClock()
  const log = new MemoryLog()
  const disk = new FakeDisk()
  const options = { destination: '/access.log', shared: false, log, clock, random: seededRandom(1), open: disk.open }
  const file = new AccessLogFile({ ...options, ...over })
  await settle()
  return { clock, log, disk, file }
}

/** Of `bytes` bytes. */
function lineOf(letter: string, bytes = 100): string {
  return `${letter.repeat(bytes - 1)}\n`
}

describe('an access log', () => {
  test('is written in whole lines, soon, or at once when many wait', async () => {
    const { clock, disk, file } = await start()
    assert.equal(disk.opened, 1, 'before anything is written')
    file.write(lineOf('a'))
    await clock.advance(249)
    assert.equal(disk.text, '')
    file.write(lineOf('b'))
    await clock.advance(1)
    assert.equal(disk.text, lineOf('a') + lineOf('b'))
    for (let i = 0; i < 200; i++) file.write(lineOf('c'))
    await settle()
    assert.deepEqual(disk.writes.slice(1), [8_200, 11_800])
    file.write(lineOf('d'))
    await clock.advance(250)
    assert.deepEqual(disk.writes.slice(1), [8_200, 11_800, 100])
    assert.equal(clock.pending, 0)
  })

  test('counts the bytes of what is not ASCII', async () => {
    const { clock, disk, file } = await start({ shared: true })
    disk.isPipe = true
    disk.room = 70
    for (let i = 0; i < 2; i++) file.write(`${'é'.repeat(30)}\n`)
    await clock.advance(250)
    disk.room = Infinity
    await clock.advance(250)
    assert.equal(disk.text, `${'é'.repeat(30)}\n`.repeat(2))
  })

  test('in a pipe that others write to comes in pieces that do not mix with theirs', async () => {
    const { clock, disk, file } = await start()
    disk.isPipe = true
    const shared = await start({ shared: true })
    shared.disk.isPipe = true
    shared.file.reopen()
    file.reopen()
    await settle()
    for (const { write } of [
      { write: (line: string) => file.write(line) },
      { write: (line: string) => shared.file.write(line) },
    ])
      for (let i = 0; i < 300; i++) write(lineOf('a'))
    await clock.advance(250)
    await shared.clock.advance(250)
    assert(Math.max(...disk.writes) > 4_096)
    assert(Math.max(...shared.disk.writes) <= 4_096, `${Math.max(...shared.disk.writes)}`)
    assert.equal(shared.disk.text, lineOf('a').repeat(300))
  })

  test('on a full disk waits, and loses and glues nothing when there is room again', async () => {
    const { clock, disk, file, log } = await start()
    disk.room = 250
    for (const letter of ['a', 'b', 'c', 'd']) file.write(lineOf(letter))
    await clock.advance(60_000)
    assert.equal(disk.text, lineOf('a') + lineOf('b') + 'c'.repeat(50))
    assert.deepEqual(log.of('warn'), ['the access log cannot be written'])
    assert.equal(file.dropped, 0)
    disk.room = Infinity
    await clock.advance(5_000)
    assert.equal(disk.text, `${lineOf('a')}${lineOf('b')}${'c'.repeat(50)}\n${lineOf('c')}${lineOf('d')}`)
    assert.deepEqual(log.of('info'), ['the access log is written again'])
    assert.equal(disk.openNow, 1)
    await file.close()
    assert.deepEqual([disk.openNow, clock.pending], [0, 0])
  })

  test('that others write to begins anew after every failure, for theirs may be cut', async () => {
    const { clock, disk, file } = await start({ shared: true })
    disk.room = 0
    file.write(lineOf('a'))
    await clock.advance(60_000)
    disk.room = Infinity
    await clock.advance(5_000)
    assert.equal(disk.text, `\n${lineOf('a')}`)
  })

  test('lets four MiB wait, and counts each line beyond', async () => {
    const { clock, disk, file } = await start()
    disk.fails.write = 'ENOSPC'
    const fits = Math.floor(4_194_304 / 1_000)
    for (let i = 0; i < fits + 7; i++) file.write(lineOf('a', 1_000))
    assert.equal(file.dropped, 7)
    disk.fails = {}
    await clock.advance(5_000)
    assert.equal(disk.text.length, fits * 1_000)
    file.write(lineOf('b'))
    await clock.advance(250)
    assert(disk.text.endsWith(lineOf('b')))
    assert.equal(file.dropped, 7)
  })

  test('in a full pipe goes on where it stopped', async () => {
    const { clock, disk, file, log } = await start()
    disk.isPipe = true
    disk.room = 150
    for (const letter of ['a', 'b']) file.write(lineOf(letter))
    await clock.advance(1_000)
    assert.equal(disk.text, lineOf('a') + 'b'.repeat(50))
    disk.room = Infinity
    await clock.advance(10)
    assert.equal(disk.text, lineOf('a') + lineOf('b'))
    assert.equal(disk.opened, 1)
    assert.deepEqual(log.lines, [])
  })

  test('waits for a reader of a named pipe', async () => {
    const { clock, disk, file, log } = await start()
    disk.fails = { open: 'ENXIO' }
    file.reopen()
    file.write(lineOf('a'))
    await clock.advance(60_000)
    assert.equal(log.of('warn').length, 1)
    disk.fails = {}
    await clock.advance(5_000)
    assert.equal(disk.text, lineOf('a'))
    assert.equal(file.dropped, 0)
  })

  test('whose reader is gone for good counts every line, and tries no more', async () => {
    const { clock, disk, file, log } = await start({ destination: '-' })
    disk.fails.write = 'EPIPE'
    for (let i = 0; i < 200; i++) file.write(lineOf('a'))
    await clock.advance(60_000)
    assert.equal(file.dropped, 200)
    file.write(lineOf('a'))
    assert.equal(file.dropped, 201)
    assert.equal(log.of('warn').length, 1)
    assert.equal(clock.pending, 0)
    await file.close()
  })

  test('is opened again, with what waits, also while it fails', async () => {
    const { clock, disk, file } = await start()
    file.write(lineOf('a'))
    await clock.advance(250)
    file.write(lineOf('b'))
    disk.files.push('')
    file.reopen()
    await clock.advance(250)
    assert.deepEqual(disk.files, [lineOf('a'), lineOf('b')])
    disk.fails.write = 'ENOSPC'
    file.write(lineOf('c'))
    await clock.advance(60_000)
    disk.fails = {}
    disk.files.push('')
    file.reopen()
    await settle()
    await settle()
    assert.deepEqual(disk.files.slice(1), [lineOf('b'), lineOf('c')])
    assert.equal(disk.openNow, 1)
  })

  test('that is closed writes what waits, but gives up on what fails', async () => {
    const whole = await start()
    whole.file.write(lineOf('a'))
    await whole.file.close()
    assert.equal(whole.disk.text, lineOf('a'))

    const full = await start()
    full.disk.room = 0
    full.file.write(lineOf('a'))
    await full.file.close()
    assert.equal(full.file.dropped, 1)
    assert.equal(full.clock.pending, 0)
  })

  test('that is closed while nobody makes room ends after two seconds', async () => {
    const { clock, disk, file, log } = await start()
    disk.isPipe = true
    disk.room = 0
    file.write(lineOf('a'))
    let isClosed = false
    const closed = file.close().then(() => (isClosed = true))
    await clock.advance(1_999)
    assert.equal(isClosed, false)
    await clock.advance(1)
    await closed
    assert.equal(file.dropped, 1)
    assert.equal(log.of('warn', 'are lost').length, 1)
    await clock.advance(60_000)
    assert.equal(clock.pending, 0)

    const hung = await start()
    hung.disk.held = new Promise(() => {})
    hung.file.write(lineOf('a'))
    const over = hung.file.close()
    await hung.clock.advance(2_000)
    await over
  })
})

describe('of the system, an access log', () => {
  async function directoryOf(t: TestContext) {
    const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
    t.after(() => rm(directory, { recursive: true, force: true }))
    return directory
  }

  function openAt(destination: string, log = new MemoryLog()) {
    const options = { shared: false, log, clock: systemClock, random: seededRandom(1) }
    return new AccessLogFile({ destination, ...options })
  }

  test('is appended to, and directories are made for it', async (t) => {
    const destination = join(await directoryOf(t), 'a', 'b', 'access.log')
    for (const letter of ['a', 'b']) {
      const file = openAt(destination)
      file.write(lineOf(letter))
      await file.close()
    }
    assert.equal(await readFile(destination, 'utf8'), lineOf('a') + lineOf('b'))
  })

  test('in a named pipe has a reader, and then the next', async (t) => {
    const destination = join(await directoryOf(t), 'pipe')
    spawnSync('mkfifo', [destination])
    await checkAccessLog(destination)
    const log = new MemoryLog()
    const file = openAt(destination, log)
    await eventually('nobody reads it', () => log.of('warn').length === 1)
    for (const letter of ['a', 'b']) {
      const reader = await open(destination, constants.O_RDONLY | constants.O_NONBLOCK)
      file.write(lineOf(letter))
      let text = ''
      while (!text.includes(lineOf(letter)))
        text += await reader.read(Buffer.alloc(1_000)).then(
          ({ bytesRead, buffer }) => buffer.toString('utf8', 0, bytesRead),
          () => '',
        )
      await reader.close()
    }
    await file.close()
    assert.equal(file.dropped, 0)
  })

  test('that can never be opened is refused', async (t) => {
    const directory = await directoryOf(t)
    await writeFile(join(directory, 'file'), '')
    await mkdir(join(directory, 'directory'))
    for (const [destination, reason] of [
      [join(directory, 'directory'), 'EISDIR'],
      [join(directory, 'file', 'access.log'), 'ENOTDIR'],
      [join(directory, 'x'.repeat(300)), 'ENAMETOOLONG'],
      ['/proc/none/of/these', 'ENOENT'],
    ] as const)
      await assert.rejects(checkAccessLog(destination), (error: Error) => {
        assert.match(error.message, new RegExp(`^accessLog: cannot be opened: ${reason}: .*'/`))
        return true
      })
    await checkAccessLog(join(directory, 'access.log'))
  })
})
