import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { test, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import { openEmbeddedStore } from '../../registry-server/src/store/embedded/embedded-store.ts'
import { openLmdb } from '../../registry-server/src/store/embedded/lmdb-database.ts'
import { encodeValues } from '../../registry-server/src/store/embedded/stored-values.ts'
import { node, pictureOf } from '../store.contract.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { silent, temporaryDirectory } from './support.ts'

const PROGRAM = fileURLToPath(new URL('../../registry-server/bin/holdfast-registry.js', import.meta.url))
const PAGE = 4096

let serial = 0

function openIn(directory: string, options: { newEpoch?: boolean } = {}) {
  return openEmbeddedStore({
    directory,
    clock: new ManualClock(),
    log: silent,
    identifier: () => `id${++serial}`,
    historyRevisions: 10_000,
    historyChanges: 1_000_000,
    ...options,
  })
}

/** A closed store with some hundred pages of records. */
async function filled(context: TestContext): Promise<{ directory: string; file: string }> {
  const directory = await temporaryDirectory(context)
  const store = await openIn(directory)
  for (let round = 0; round < 5; round++)
    await store.transact((tx) => {
      for (let index = 0; index < 200; index++) {
        const id = `n${round}-${index}`
        tx.putNode(
          { namespace: 'default', service: `s${index % 10}`, id },
          { node: node(id) },
          {
            cause: 'registered',
            by: 'test',
          },
        )
      }
    })
  await store.close()
  return { directory, file: path.join(directory, 'store', 'data.mdb') }
}

interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly stdout: string
  readonly stderr: string
}

function registryOn(directory: string) {
  return spawn(process.execPath, [PROGRAM, '--port', '0', '--data-dir', directory, '--log-level', 'error'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
}

/** Runs the program until it ends by itself, or is ready and then stopped. */
async function runOn(directory: string): Promise<Ended> {
  const child = registryOn(directory)
  let stdout = ''
  let stderr = ''
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
  createInterface({ input: child.stdout }).on('line', (line) => {
    stdout += line
    child.kill('SIGTERM')
  })
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  return { code, signal, stdout, stderr }
}

async function refuses(directory: string, what: RegExp): Promise<void> {
  await assert.rejects(openIn(directory), (error: Error & { code: string }) => {
    assert.equal(error.code, 'store_refused')
    assert.match(error.message, what)
    assert.ok(error.message.includes(path.join(directory, 'store')), error.message)
    assert.match(error.message, /move the directory away/)
    assert.match(error.message, /backup .* --new-epoch/)
    return true
  })
}

const damages: [what: string, damage: (bytes: Buffer) => Buffer, says: RegExp][] = [
  ['an empty file', () => Buffer.alloc(0), /data\.mdb is empty/],
  ['a file cut inside its first page', (bytes) => bytes.subarray(0, 100), /damaged/],
  ['a file cut in half', (bytes) => bytes.subarray(0, Math.floor(bytes.length / 2 / PAGE) * PAGE), /damaged/],
  ['a file without its last quarter', (bytes) => bytes.subarray(0, Math.floor(bytes.length * 0.75)), /damaged/],
  ['zeros all over', (bytes) => Buffer.alloc(bytes.length), /damaged/],
  ['text', () => Buffer.from('this is not a database\n'.repeat(1_000)), /damaged/],
  ['both meta pages zeroed', (bytes) => bytes.fill(0, 0, 2 * PAGE), /damaged/],
  ['everything after the meta pages zeroed', (bytes) => bytes.fill(0, 2 * PAGE), /damaged/],
]

for (const [what, damage, says] of damages)
  test(`a store that is ${what} is refused with a word on how to go on`, async (context) => {
    const { directory, file } = await filled(context)
    const damaged = damage(readFileSync(file))
    writeFileSync(file, damaged)
    await refuses(directory, says)
    assert.deepEqual(readFileSync(file).length, damaged.length, 'nothing was changed')
  })

test('a store without its database file is refused instead of begun anew', async (context) => {
  const { directory, file } = await filled(context)
  rmSync(file)
  await refuses(directory, /data\.mdb is missing/)
})

test('one changed byte of a record is found by its checksum', async (context) => {
  const { directory, file } = await filled(context)
  const bytes = readFileSync(file)
  // Every copy of the page that may be the one in use.
  for (let at = bytes.indexOf('"n2-17"'); at >= 0; at = bytes.indexOf('"n2-17"', at + 1)) bytes.write('X', at + 1)
  writeFileSync(file, bytes)
  await assert.rejects(openIn(directory), { code: 'store_refused', message: /the checksum does not match/ })
})

test('a store of another version is refused by its format', async (context) => {
  const { directory, file } = await filled(context)
  const database = openLmdb(path.dirname(file))
  await database.commit(encodeValues([['meta', { format: 99, epoch: 'e', revision: 1, counts: {} }]]))
  await database.close()
  await assert.rejects(openIn(directory), { message: /format 99, this version reads 1/ })
})

test('a record that is missing is found by the counts', async (context) => {
  const { directory, file } = await filled(context)
  const database = openLmdb(path.dirname(file))
  await database.commit([['node/default/s3/n0-3', undefined]])
  await database.close()
  await assert.rejects(openIn(directory), { message: /999 nodes are left of 1000/ })
})

test('a record that was put in another place is found', async (context) => {
  const { directory, file } = await filled(context)
  const database = openLmdb(path.dirname(file))
  const value = database.get('node/default/s3/n0-3')
  await database.commit([
    ['node/default/s3/n0-3', undefined],
    ['node/default/s3/moved', value],
  ])
  await database.close()
  await assert.rejects(openIn(directory), { message: /the checksum does not match/ })
})

test('the program ends with status 1 and one message on a damaged store, without a stack', async (context) => {
  const { directory, file } = await filled(context)
  writeFileSync(file, readFileSync(file).subarray(0, 10 * PAGE))
  const { code, signal, stdout, stderr } = await runOn(directory)
  assert.deepEqual({ code, signal, stdout }, { code: 1, signal: null, stdout: '' })
  assert.match(stderr, /damaged and was not opened/)
  assert.doesNotMatch(stderr, /\n {4}at /)
})

test('whatever page is damaged, the store is refused or has every record; nobody dies of it', async (context) => {
  const seed = 20_260_101
  const random = seededRandom(seed)
  const { directory, file } = await filled(context)
  const whole = readFileSync(file)
  for (let round = 0; round < 40; round++) {
    const bytes = Buffer.from(whole)
    const at = Math.floor(random() * (bytes.length / PAGE)) * PAGE
    for (let index = 0; index < PAGE; index++) bytes[at + index] = round % 2 === 0 ? 0 : Math.floor(random() * 256)
    writeFileSync(file, bytes)
    const opened = await openIn(directory).catch((error: Error) => error)
    if (opened instanceof Error) {
      assert.match(opened.message, /damaged and was not opened/, `seed ${seed}, round ${round}`)
      continue
    }
    const { services } = await pictureOf(opened)
    await opened.close()
    const nodes = Object.values(services).reduce((sum, service) => sum + service.nodes.length, 0)
    assert.equal(nodes, 1000, `seed ${seed}, round ${round}`)
  }
})

test('a restored backup gets a new epoch when it is asked for, with all that it holds', async (context) => {
  const { directory } = await filled(context)
  const before = await openIn(directory)
  const [{ epoch }, picture] = [before, await pictureOf(before)]
  await before.close()
  const renamed = await openIn(directory, { newEpoch: true })
  assert.notEqual(renamed.epoch, epoch)
  assert.deepEqual(await pictureOf(renamed), picture)
  await renamed.transact((tx) => tx.putLease({ id: 'l', ttlMs: 5_000, owner: 'x' }))
  await renamed.close()
  const after = await openIn(directory)
  assert.equal(after.epoch, renamed.epoch)
  assert.equal((await pictureOf(after)).revision, picture.revision + 1)
  await after.close()
})

test('a damaged store gets no new epoch', async (context) => {
  const { directory, file } = await filled(context)
  writeFileSync(file, readFileSync(file).subarray(0, 10 * PAGE))
  const damaged = readFileSync(file)
  await assert.rejects(openIn(directory, { newEpoch: true }), { code: 'store_refused' })
  assert.deepEqual(readFileSync(file), damaged)
})

test('a creation that was interrupted is begun anew', async (context) => {
  const directory = await temporaryDirectory(context)
  mkdirSync(path.join(directory, 'store.new'))
  writeFileSync(path.join(directory, 'store.new', 'data.mdb'), '')
  const store = await openIn(directory)
  assert.equal((await pictureOf(store)).revision, 0)
  await store.close()
})

test('a second registry on the same directory is refused, and the first goes on', async (context) => {
  const directory = await temporaryDirectory(context)
  const store = await openIn(directory)
  const { code, stderr } = await runOn(directory)
  assert.equal(code, 1)
  assert.match(stderr, /is in use by another holdfast-registry/)
  await store.transact((tx) => tx.putLease({ id: 'l', ttlMs: 5_000, owner: 'x' }))
  await store.close()
})

test('a registry that was killed leaves no lock behind', async (context) => {
  const directory = await temporaryDirectory(context)
  const child = registryOn(directory)
  await once(createInterface({ input: child.stdout }), 'line')
  child.kill('SIGKILL')
  await once(child, 'close')
  assert.ok(
    readdirSync(directory).some((name) => name.endsWith('.sock')),
    'the dead socket is still there',
  )
  const store = await openIn(directory)
  assert.equal(readdirSync(directory).filter((name) => name.endsWith('.sock')).length, 1)
  await store.close()
  assert.equal(readdirSync(directory).filter((name) => name.endsWith('.sock')).length, 0)
})

test('of many that open one directory at the same moment, at most one has it', async (context) => {
  const directory = await temporaryDirectory(context)
  const attempts = await Promise.allSettled(Array.from({ length: 5 }, () => openIn(directory)))
  const opened = attempts.flatMap((attempt) => (attempt.status === 'fulfilled' ? [attempt.value] : []))
  assert.ok(opened.length <= 1, `${opened.length} have it`)
  for (const attempt of attempts)
    if (attempt.status === 'rejected') assert.match(String(attempt.reason), /in use|cannot create/)
  for (const store of opened) await store.close()
})

test('a directory whose path is longer than a socket address can be locked', async (context) => {
  const directory = path.join(await temporaryDirectory(context), 'd'.repeat(120), 'e'.repeat(120))
  const store = await openIn(directory)
  await assert.rejects(openIn(directory), { message: /in use/ })
  await store.close()
})
