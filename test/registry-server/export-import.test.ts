import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, watch, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Readable } from 'node:stream'
import { test, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import type { NodeEntry, ServiceRecord } from '../../registry-server/src/store/store.ts'
import type { PortableRecord } from '../../registry-server/src/store/archive.ts'
import { checkSettings, checkStore } from '../../registry-server/src/commands/check.ts'
import type { CommandContext } from '../../registry-server/src/commands/command.ts'
import { exportSettings, exportStore } from '../../registry-server/src/commands/export.ts'
import { importSettings, importStore } from '../../registry-server/src/commands/import.ts'
import { embeddedArchive } from '../../registry-server/src/store/embedded/embedded-archive.ts'
import { openEmbeddedStore } from '../../registry-server/src/store/embedded/embedded-store.ts'
import { openLmdb } from '../../registry-server/src/store/embedded/lmdb-database.ts'
import { encodeExport, readExport } from '../../registry-server/src/store/portable.ts'
import { node, pictureOf } from '../store.contract.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { sampleRecords } from '../support/sample-store.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { deferred, silent, startRegistry, temporaryDirectory } from './support.ts'

const PROGRAM = fileURLToPath(new URL('../../registry-server/bin/holdfast-registry.js', import.meta.url))
const IDENTITY = { epoch: 'e1', revision: 6 }

let serial = 0
const identifier = () => `id${++serial}`

function program(args: readonly string[]) {
  const child = spawn(process.execPath, [PROGRAM, ...args], { stdio: 'pipe' })
  const said = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk: Buffer) => (said.stdout += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (said.stderr += chunk.toString()))
  const ended = once(child, 'close').then(([code]) => ({ code: code as number | null, ...said }))
  return { child, said, ended }
}

const run = (...args: readonly string[]) => program(args).ended

function archiveIn(directory: string) {
  return embeddedArchive({ directory, identifier })
}

async function sampleIn(context: TestContext, records = sampleRecords()): Promise<string> {
  const directory = await temporaryDirectory(context)
  await archiveIn(directory).create(IDENTITY, records)
  return directory
}

function openIn(directory: string) {
  return openEmbeddedStore({
    directory,
    clock: new ManualClock(),
    log: silent,
    identifier,
    historyRevisions: 10_000,
    historyChanges: 1_000_000,
  })
}

/** A command in this process, on the embedded store of a directory. */
function contextIn(directory: string, fields: Partial<CommandContext> = {}, input = '') {
  const said = { stdout: '', stderr: [] as string[] }
  const context: CommandContext = {
    archive: archiveIn(directory),
    terminal: {
      input: () => Readable.from([Buffer.from(input)]),
      write: async (text) => void (said.stdout += text),
      say: (line) => void said.stderr.push(line),
      isWatched: false,
    },
    clock: new ManualClock(),
    identifier,
    signal: new AbortController().signal,
    ...fields,
  }
  return { context, said }
}

async function exportOf(directory: string): Promise<string> {
  const { context, said } = contextIn(directory)
  assert.equal(await exportStore(exportSettings.parse({}), context), 0)
  return said.stdout
}

async function importInto(directory: string, input: string, settings: object = {}) {
  const { context, said } = contextIn(directory, {}, input)
  assert.equal(await importStore(importSettings.parse(settings), context), 0)
  return said
}

async function encoded(records: readonly PortableRecord[], identity = IDENTITY): Promise<string> {
  const header = { ...identity, time: '2026-01-01T00:00:00.000Z', version: '0.1.0' }
  let text = ''
  for await (const chunk of encodeExport(header, Readable.from(records) as AsyncIterable<PortableRecord>)) text += chunk
  return text
}

/** Everything but the lines that tell the time and the sum over it. */
const body = (text: string) => text.split('\n').slice(1, -2).join('\n')

test('what a registry wrote goes through export and import unchanged, and the registry on the copy goes on', async (context) => {
  const [from, to] = [await temporaryDirectory(context), await temporaryDirectory(context)]
  const original = await startRegistry(context, { directory: from })
  const { call } = original
  const lease = (await call('POST', '/v1/leases', { ttl: '15s', owner: 'sidecar on host-1' })).body.id
  for (const id of ['a', 'b', 'c'])
    await call('PUT', `/v1/services/stock/nodes/${id}`, {
      host: '10.0.0.1',
      port: 8080,
      lease,
      labels: { z: '1', a: '2' },
    })
  await call('PUT', '/v1/services/cart/nodes/x', { host: '10.0.0.2', port: 80, zone: 'eu-1', ttl: '5s' })
  await call('PATCH', '/v1/services/stock/nodes/b', { override: { status: 'draining', weight: 7 } })
  await call('PUT', '/v1/services/stock/policy', { timeout: '3s' })
  await call('PUT', '/v1/services/gone/nodes/x', { host: '10.0.0.2', port: 80 })
  await call('DELETE', '/v1/services/gone/nodes/x?incarnation=1')
  const view = (await call('GET', '/v1/services/stock')).text
  const { epoch, revision } = (await call('GET', '/v1/status')).body
  const picture = await pictureOf(original.registry.parts.store)
  await original.registry.close()

  const text = await exportOf(from)
  assert.deepEqual(JSON.parse(text.split('\n')[0]!), {
    holdfast: 'export',
    format: 1,
    epoch,
    revision,
    time: new Date(new ManualClock().wall()).toISOString(),
    version: (
      JSON.parse(readFileSync(new URL('../../registry-server/package.json', import.meta.url), 'utf8')) as {
        version: string
      }
    ).version,
  })
  const keys = body(text)
    .split('\n')
    .map((line) => (JSON.parse(line) as { key: string }).key)
  assert.deepEqual(keys, [...keys].sort())
  await importInto(to, text)
  assert.equal(body(await exportOf(to)), body(text))

  const store = await openIn(to)
  assert.equal(store.epoch, epoch)
  assert.deepEqual(await pictureOf(store), picture)
  await store.close()
  const copy = await startRegistry(context, { directory: to })
  assert.equal((await copy.call('GET', '/v1/services/stock')).text, view)
  await copy.call('DELETE', `/v1/leases/${lease}`)
  assert.equal((await copy.call('GET', '/v1/status')).body.revision, revision + 1)
})

test('a copy can have an identity of its own', async (context) => {
  const from = await sampleIn(context)
  const to = await temporaryDirectory(context)
  const { stderr } = await importInto(to, await exportOf(from), { newEpoch: true })
  const store = await openIn(to)
  assert.match(store.epoch, /^id\d+$/)
  assert.deepEqual(stderr, [
    `imported 11 records at revision 6 into ${path.join(to, 'store')}, with the new epoch ${store.epoch}`,
  ])
  await store.close()
})

test('an export of a registry that writes all the time is of one moment, and writes nothing there', async (context) => {
  const directory = await temporaryDirectory(context)
  const { registry } = await startRegistry(context, { directory })
  const { store, hub } = registry.parts
  const padding = Object.fromEntries(Array.from({ length: 40 }, (_, index) => [`l${index}`, 'x'.repeat(200)]))
  // Each transaction writes the same number into every node, so that two moments in one picture show.
  const write = (round: number) =>
    store.transact((tx) => {
      const lease = { id: `lease${round}`, ttlMs: 15_000, owner: 'test' }
      tx.putLease(lease)
      for (let index = 0; index < 50; index++) {
        const id = `n${index}`
        const labels = { ...padding, round: String(round) }
        const entry = { node: node(id, { labels, leased: true }), lease: lease.id }
        tx.putNode({ namespace: 'default', service: `s${index % 5}`, id }, entry, { cause: 'registered', by: 'test' })
      }
      if (round > 0) tx.removeLease(`lease${round - 1}`)
    })
  for (let round = 0; round < 50; round++) await write(round)
  let stopped = false
  const writeOn = async () => {
    for (let round = 50; !stopped; round++) await write(round)
  }
  const writing = writeOn()
  const files = () => [directory, path.join(directory, 'store')].flatMap((at) => readdirSync(at).sort())
  const before = files()
  for (let round = 0; round < 2; round++) {
    const acknowledged = hub.cursor.revision
    const { code, stdout, stderr } = await run('export', '--data-dir', directory)
    assert.deepEqual([code, stderr.split(' ')[0]], [0, 'exported'], stderr)
    const { header, records } = await readExport(Readable.from([Buffer.from(stdout)]))
    assert.ok(header.revision >= acknowledged, 'what was acknowledged before is in it')
    assert.ok(hub.cursor.revision > header.revision, 'the registry went on meanwhile')
    const rounds = records.flatMap(({ key, value }) =>
      key.startsWith('node/') ? [(value as NodeEntry).node.labels.round] : [],
    )
    assert.equal(rounds.length, 50)
    assert.equal(new Set(rounds).size, 1, `rounds ${[...new Set(rounds)].join()}`)
    for (const { key, value } of records)
      if (key.startsWith('service/')) assert.equal((value as ServiceRecord).revision, header.revision, key)
    const checked = await run('check', '--data-dir', directory)
    assert.match(checked.stdout, /^checked [\d,]+ records at revision \d+: sound\n$/)
    assert.equal(checked.code, 0)
  }
  stopped = true
  await writing
  assert.deepEqual(files(), before)
})

test('an import refuses a place where a store is, and changes nothing there', async (context) => {
  const directory = await sampleIn(context)
  const file = path.join(directory, 'store', 'data.mdb')
  const before = readFileSync(file)
  const records = sampleRecords().filter(({ key }) => !key.startsWith('policy/'))
  await assert.rejects(importInto(directory, await encoded(records)), {
    code: 'store_refused',
    message: `there is a store in ${path.dirname(file)} already, and nothing was changed: name an empty --data-dir`,
  })
  await assert.rejects(archiveIn(directory).create(IDENTITY, records), { code: 'store_refused' })
  assert.deepEqual(readFileSync(file), before)
  assert.deepEqual(readdirSync(directory), ['store'])
})

test('an import refuses a directory that a registry is just about to use', async (context) => {
  const directory = await temporaryDirectory(context)
  const { context: command } = contextIn(directory, {}, await encoded(sampleRecords()))
  const { archive } = command
  // Between the first look and the creation.
  const create: typeof archive.create = async (identity, records) => {
    const store = await openIn(directory)
    try {
      await archive.create(identity, records)
    } finally {
      await store.close()
    }
  }
  await assert.rejects(importStore(importSettings.parse({}), { ...command, archive: { ...archive, create } }), {
    code: 'store_refused',
    message: /in use by another holdfast-registry/,
  })
})

test('whatever is wrong with an export, nothing is made of it', async (context) => {
  const directory = path.join(await temporaryDirectory(context), 'new')
  const seed = 11
  const random = seededRandom(seed)
  const whole = await encoded(sampleRecords())
  for (let round = 0; round < 200; round++) {
    const at = Math.floor(random() * whole.length)
    const text = round % 2 === 0 ? whole.slice(0, at) : `${whole.slice(0, at)}~${whole.slice(at + 1)}`
    await assert.rejects(importInto(directory, text), { code: 'unsound' }, `seed ${seed}, round ${round}`)
    assert.ok(!existsSync(directory))
  }
})

test('a creation that fails leaves nothing', async (context) => {
  const directory = await temporaryDirectory(context)
  const failing = function* () {
    yield* sampleRecords()
    throw new Error('no more')
  }
  await assert.rejects(archiveIn(directory).create(IDENTITY, failing()), {
    code: 'store_refused',
    message: /cannot create .+: Error: no more/,
  })
  assert.deepEqual(readdirSync(directory), [])
})

test('an import that is killed leaves no store or a whole one, and can be begun anew', async (context) => {
  const records = sampleRecords()
  const { node: sample } = records.find(({ key }) => key === 'node/default/stock/b')!.value as NodeEntry
  const plain = { ...sample, status: 'up', override: undefined }
  for (let index = 0; index < 15_000; index++)
    records.push({ key: `node/default/stock/n${index}`, value: { node: { ...plain, id: `n${index}` } } })
  const file = path.join(await temporaryDirectory(context), 'export')
  writeFileSync(file, await encoded(records))

  /** Resolves when the directory tells of something of that name for the `times`th time, or the program has ended. */
  const told = async (directory: string, name: string, times: number, ended: Promise<unknown>) => {
    const { promise, resolve } = deferred<void>()
    let left = times
    const watcher = watch(directory, (_event, changed) => {
      if (changed === name && --left === 0) resolve()
    })
    await Promise.race([promise, ended])
    watcher.close()
  }
  const kills: ((directory: string, ended: Promise<unknown>) => Promise<void>)[] = [
    (directory, ended) => told(directory, 'store.new', 1, ended),
    (directory, ended) => told(directory, 'store', 1, ended),
    ...[1, 2].map((times) => async (directory: string, ended: Promise<unknown>) => {
      await told(directory, 'store.new', 1, ended)
      if (existsSync(path.join(directory, 'store.new')))
        await told(path.join(directory, 'store.new'), 'data.mdb', times, ended)
    }),
  ]
  for (const [round, kill] of kills.entries()) {
    const directory = await temporaryDirectory(context)
    const { child, ended } = program(['import', '--data-dir', directory, '--file', file])
    await kill(directory, ended)
    child.kill('SIGKILL')
    await ended
    if (!existsSync(path.join(directory, 'store'))) {
      const again = await run('import', '--data-dir', directory, '--file', file)
      assert.equal(again.code, 0, again.stderr)
    }
    const { lines } = await checked(directory)
    assert.deepEqual(lines, ['checked 15,011 records at revision 6: sound'], `kill ${round}`)
    assert.deepEqual(
      readdirSync(directory).filter((name) => !name.endsWith('.sock')),
      ['store'],
    )
  }
})

/** Changes a closed store below its feet. */
async function tamper(directory: string, writes: readonly (readonly [key: string, value: Buffer | undefined])[]) {
  const database = openLmdb(path.join(directory, 'store'))
  await database.commit(writes)
  await database.close()
}

async function checked(directory: string, settings: object = {}) {
  const { context, said } = contextIn(directory)
  const code = await checkStore(checkSettings.parse(settings), context)
  return { code, lines: said.stdout.trimEnd().split('\n') }
}

test('check finds a sound store sound', async (context) => {
  const directory = await sampleIn(context)
  assert.deepEqual(await checked(directory), { code: 0, lines: ['checked 11 records at revision 6: sound'] })
})

test('check names a damaged record, and a record that is missing', async (context) => {
  const directory = await sampleIn(context)
  await tamper(directory, [
    ['policy/default/stock', Buffer.from('\0\0\0\0{"timeout":"9s"}')],
    ['override/default/stock/b', Buffer.from('x')],
    ['node/default/stock/a', undefined],
  ])
  assert.deepEqual(await checked(directory), {
    code: 1,
    lines: [
      'override/default/stock/b: too short',
      'policy/default/stock: the checksum does not match',
      'meta: there are 1 nodes, not 2',
      'checked 10 records at revision 6: 3 problems',
    ],
  })
})

test('check finds what contradicts the rest', async (context) => {
  const without = (key: string) => sampleRecords().filter((record) => record.key !== key)
  const cases: [PortableRecord[], string][] = [
    [without('lease/l1'), 'node/default/stock/a: its lease is missing'],
    [
      [...sampleRecords(), { key: 'policy/default/new', value: {} }],
      'policy/default/new: service default/new has no record',
    ],
    [[...sampleRecords(), { key: 'strange/x', value: {} }], 'strange/x: is of no known kind'],
  ]
  for (const [records, line] of cases)
    assert.deepEqual(await checked(await sampleIn(context, records)), {
      code: 1,
      lines: [line, `checked ${records.length} records at revision 6: 1 problem`],
    })
  const old = await temporaryDirectory(context)
  await archiveIn(old).create({ epoch: 'e1', revision: 4 }, sampleRecords())
  const { code, lines } = await checked(old)
  assert.equal(code, 1)
  assert.ok(lines.includes('service/default/stock: is of revision 5, after the last, 4'), lines.join('\n'))
  assert.ok(lines.includes('history/0000000000000005: is of revision 5, after the last, 4'), lines.join('\n'))
})

test('check answers a program in JSON', async (context) => {
  const records = sampleRecords().filter(({ key }) => key !== 'lease/l1')
  const directory = await sampleIn(context, records)
  const { code, lines } = await checked(directory, { json: true })
  assert.equal(code, 1)
  assert.deepEqual(JSON.parse(lines.join('\n')), {
    store: 'embedded',
    location: path.join(directory, 'store'),
    ...IDENTITY,
    records: 10,
    sound: false,
    problems: [{ key: 'node/default/stock/a', reason: 'its lease is missing' }],
  })
})

test('an export of a store with problems is given up without its last line, and no file is left', async (context) => {
  const directory = await sampleIn(context)
  await tamper(directory, [['policy/default/stock', Buffer.from('\0\0\0\0{"timeout":"9s"}')]])
  const { context: command, said } = contextIn(directory)
  const refused = { code: 'unsound', message: /given up:\npolicy\/default\/stock: the checksum does not match$/ }
  await assert.rejects(exportStore(exportSettings.parse({}), command), refused)
  assert.doesNotMatch(said.stdout, /"end"/)
  const target = await temporaryDirectory(context)
  const file = path.join(target, 'backup')
  writeFileSync(file, 'the one before')
  await assert.rejects(exportStore(exportSettings.parse({ file }), command), refused)
  assert.equal(readFileSync(file, 'utf8'), 'the one before')
  assert.deepEqual(readdirSync(target), ['backup'])
})

test('a store whose file is damaged is refused by check and export with a word, whatever page it is', async (context) => {
  const directory = await temporaryDirectory(context)
  const store = await openIn(directory)
  await store.transact((tx) => {
    for (let index = 0; index < 500; index++) {
      const ref = { namespace: 'default', service: `s${index % 10}`, id: `n${index}` }
      tx.putNode(ref, { node: node(ref.id) }, { cause: 'registered', by: 'test' })
    }
  })
  await store.close()
  const file = path.join(directory, 'store', 'data.mdb')
  const whole = readFileSync(file)
  const random = seededRandom(5)
  for (let round = 0; round < 16; round++) {
    const bytes = Buffer.from(whole)
    const at = Math.floor((random() * bytes.length) / 4096) * 4096
    bytes.fill(round % 2 === 0 ? 0 : 0xa5, at, at + 4096)
    writeFileSync(file, bytes)
    const result = await checked(directory).catch((error: Error) => error)
    if (result instanceof Error) assert.match(result.message, /damaged and was not opened/, `round ${round}`)
    else assert.match(result.lines.at(-1)!, result.code === 0 ? /^checked 511 records .+: sound$/ : /problems?$/)
  }
  writeFileSync(file, whole.subarray(0, 3 * 4096))
  const { code, stdout, stderr } = await run('export', '--data-dir', directory)
  assert.deepEqual([code, stdout], [1, ''])
  assert.match(stderr, /^holdfast-registry: the store in .+ is damaged/)
})

test('who waits is told each second how far it is, and everyone how it ended, as the log level says', async (context) => {
  const directory = await sampleIn(context)
  const said = async (isWatched: boolean, logLevel: string) => {
    const clock = new ManualClock()
    const { context: command, said } = contextIn(directory, { clock })
    const terminal = { ...command.terminal, isWatched }
    const archive = {
      ...command.archive,
      read: async () => {
        const picture = await command.archive.read()
        const slow = async function* () {
          for await (const record of picture.records) {
            await clock.advance(400)
            yield record
          }
        }
        return { ...picture, records: slow() }
      },
    }
    await exportStore(exportSettings.parse({ logLevel }), { ...command, terminal, archive })
    return said.stderr
  }
  const progress = [3, 6, 9].map((count) => `exported ${count} records so far`)
  const summary = 'exported 11 records at revision 6'
  assert.deepEqual(await said(true, 'info'), [...progress, summary])
  assert.deepEqual(await said(false, 'info'), [summary])
  assert.deepEqual(await said(false, 'debug'), [...progress, summary])
  assert.deepEqual(await said(true, 'warn'), [])
})

test('a command that is interrupted ends, and leaves nothing', async (context) => {
  const from = await sampleIn(context)
  const stopped = AbortSignal.abort()
  const to = path.join(await temporaryDirectory(context), 'x')
  const exporting = contextIn(from, { signal: stopped }).context
  await assert.rejects(exportStore(exportSettings.parse({ file: to }), exporting), /stopped before the end/)
  const importing = contextIn(to, { signal: stopped }, await encoded(sampleRecords())).context
  await assert.rejects(importStore(importSettings.parse({}), importing), /stopped before the end/)
  await assert.rejects(checkStore(checkSettings.parse({}), exporting), /stopped before the end/)
  assert.deepEqual(readdirSync(path.dirname(to)), [])
})

test('the program: import waits for its standard input until it is interrupted', async (context) => {
  const directory = await temporaryDirectory(context)
  const { child, ended } = program(['import', '--data-dir', directory, '--log-level', 'debug'])
  child.stdin.on('error', () => {})
  const [head] = (await encoded(sampleRecords())).split('\n')
  // Only a command that reads takes this much.
  while (child.stdin.write(`${head}\n${' '.repeat(100_000)}`));
  await once(child.stdin, 'drain')
  child.kill('SIGINT')
  const { code, stderr } = await ended
  assert.deepEqual([code, stderr], [1, 'holdfast-registry: stopped before the end\n'])
  assert.deepEqual(readdirSync(directory), [])
})

test('the program: a backup to a file and back, with its exit codes', async (context) => {
  const from = await sampleIn(context)
  const to = path.join(await temporaryDirectory(context), 'a', 'b')
  const place = await temporaryDirectory(context)
  const file = path.join(place, 'backup.ndjson')
  const linked = path.join(place, 'latest')
  symlinkSync(file, linked)
  writeFileSync(file, 'old', { mode: 0o644 })
  assert.deepEqual(await run('export', '--data-dir', from, '--file', linked), {
    code: 0,
    stdout: '',
    stderr: `exported 11 records at revision 6 to ${linked}\n`,
  })
  assert.equal(statSync(file).mode & 0o777, 0o600)
  assert.deepEqual(readdirSync(place).sort(), ['backup.ndjson', 'latest'])
  assert.deepEqual(await run('import', '--data-dir', to, '--file', file), {
    code: 0,
    stdout: '',
    stderr: `imported 11 records at revision 6 into ${path.join(to, 'store')}, of epoch e1\n`,
  })
  const again = await run('import', '--data-dir', to, '--file', file)
  assert.equal(again.code, 1)
  assert.match(again.stderr, /^holdfast-registry: there is a store in .+ already, and nothing was changed/)
  assert.equal((await run('check', '--data-dir', to)).code, 0)
  const none = path.join(place, 'none')
  assert.deepEqual(await run('export', '--data-dir', none), {
    code: 1,
    stdout: '',
    stderr: `holdfast-registry: there is no store in ${none}/store: is --data-dir right?\n`,
  })
  assert.ok(!existsSync(none))
  const missing = await run('import', '--data-dir', none, '--file', path.join(place, 'nothing'))
  assert.equal(missing.code, 1)
  assert.match(missing.stderr, /^holdfast-registry: ENOENT.+\n$/)
  mkdirSync(none)
  const onto = await run('export', '--data-dir', from, '--file', none)
  assert.equal(onto.code, 2)
  assert.match(onto.stderr, /file: .+ is there and is no file\n$/)
})

test('the program: export to a reader that goes away says so, and is not taken for done', async (context) => {
  const directory = await temporaryDirectory(context)
  const store = await openIn(directory)
  await store.transact((tx) => {
    for (let index = 0; index < 5_000; index++) {
      const ref = { namespace: 'default', service: 'stock', id: `n${index}` }
      tx.putNode(ref, { node: node(ref.id) }, { cause: 'registered', by: 'test' })
    }
  })
  await store.close()
  const child = spawn(process.execPath, [PROGRAM, 'export', '--data-dir', directory], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stderr = ''
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
  child.stdout.once('data', () => child.stdout.destroy())
  const [code] = (await once(child, 'close')) as [number]
  assert.equal(code, 1)
  assert.match(stderr, /^holdfast-registry: .*EPIPE.*\n$/)
})
