import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { PortableRecord } from '../../registry-server/src/store/archive.ts'
import { encodeExport, readExport, type ExportHeader } from '../../registry-server/src/store/portable.ts'
import { Verification, type Finding } from '../../registry-server/src/store/verification.ts'
import { sampleRecords } from '../support/sample-store.ts'
import { seededRandom } from '../support/seeded-random.ts'

const header: ExportHeader = { epoch: 'e1', revision: 6, time: '2026-01-01T00:00:00.000Z', version: '0.1.0' }

async function* each<T>(items: Iterable<T>): AsyncGenerator<T> {
  yield* items
}

async function exported(records: readonly PortableRecord[], fields: Partial<ExportHeader> = {}): Promise<Buffer> {
  let text = ''
  for await (const chunk of encodeExport({ ...header, ...fields }, each(records))) text += chunk
  return Buffer.from(text)
}

const read = (bytes: Buffer) => readExport(each([bytes]))

async function refusal(bytes: Buffer | AsyncIterable<Buffer>): Promise<string> {
  try {
    await readExport(Buffer.isBuffer(bytes) ? each([bytes]) : bytes)
  } catch (error) {
    assert.equal((error as { code?: string }).code, 'unsound', String((error as Error).stack))
    return (error as Error).message
  }
  return assert.fail('it was taken')
}

/** The sample with some of its records changed; undefined takes one away. */
function changed(changes: Readonly<Record<string, unknown>>): PortableRecord[] {
  const values = new Map<string, unknown>(sampleRecords().map(({ key, value }) => [key, value]))
  for (const [key, value] of Object.entries(changes)) {
    if (value === undefined) values.delete(key)
    else values.set(key, value)
  }
  return [...values].map(([key, value]) => ({ key, value }))
}

const stored = (key: string) => sampleRecords().find((record) => record.key === key)!.value as Record<string, unknown>
const a = stored('node/default/stock/a') as { node: object; lease: string }

function findings(records: readonly PortableRecord[]): Finding[] {
  const found: Finding[] = []
  const verification = new Verification(header.revision, (finding) => found.push(finding))
  for (const { key, value } of records) verification.add(key, value)
  verification.finish()
  return found
}

test('what was written is read back, however it is cut into pieces and in whatever order its records are', async () => {
  const bytes = await exported(sampleRecords())
  assert.deepEqual(await read(bytes), { header, records: sampleRecords() })
  for (const size of [1, 7, 1000]) {
    const pieces = Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) =>
      bytes.subarray(index * size, (index + 1) * size),
    )
    assert.deepEqual((await readExport(each(pieces))).records, sampleRecords(), `pieces of ${size}`)
  }
  const backwards = sampleRecords().reverse()
  assert.deepEqual((await read(await exported(backwards))).records, backwards)
})

test('an empty store can be written and read', async () => {
  assert.deepEqual((await read(await exported([], { revision: 0 }))).records, [])
})

test('the replica that counts a lease stays behind', async () => {
  const held = changed({ 'lease/l1': { ...stored('lease/l1'), holder: 'replica-1' } })
  assert.deepEqual((await read(await exported(held))).records, sampleRecords())
})

test('a lease whose end is under way is part of a copy like any other', async () => {
  const ending = changed({ 'lease/l1': { ...stored('lease/l1'), ttlMs: 0 } })
  assert.deepEqual((await read(await exported(ending))).records, ending)
})

test('a file that was cut anywhere is refused', async () => {
  const bytes = await exported(sampleRecords())
  for (let length = 0; length < bytes.length; length++) {
    const message = await refusal(bytes.subarray(0, length))
    assert.match(message, length === 0 ? /line 1: there is nothing/ : /cut off/, `${length} bytes`)
  }
  const lines = bytes.toString().split('\n')
  const without = [...lines.slice(0, 4), ...lines.slice(5)].join('\n')
  assert.match(await refusal(Buffer.from(without)), /the checksum is another/)
})

test('a file with any byte changed is refused', async () => {
  const seed = 7
  const random = seededRandom(seed)
  const bytes = await exported(sampleRecords())
  for (let at = 0; at < bytes.length; at++) {
    const damaged = Buffer.from(bytes)
    damaged[at]! ^= 1 << Math.floor(random() * 8)
    await refusal(damaged)
  }
})

test('garbage is refused, and with nothing but a list of problems', async () => {
  const random = seededRandom(20_260_101)
  const whole = await exported(sampleRecords())
  const [head, ...lines] = whole.toString().trimEnd().split('\n') as [string, ...string[]]
  const values = ['null', '0', '""', '[]', '{}', '[[[]]]', '1e400', '{"__proto__":1}', '"\\ud800"', '-1', 'true']
  const keys = ['', '/', 'node', 'node/', 'node/a/b', 'node/a/b/c/d', 'history/', 'history/x', 'lease/', '__proto__/a']
  for (const key of [...keys, ...sampleRecords().map((record) => record.key)])
    for (const value of values)
      await refusal(Buffer.from(`${head}\n{"key":${JSON.stringify(key)},"value":${value}}\n${lines.at(-1)}\n`))
  for (let round = 0; round < 300; round++) {
    const bytes = Buffer.from(Array.from({ length: Math.floor(random() * 300) }, () => Math.floor(random() * 256)))
    await refusal(bytes)
    await refusal(Buffer.concat([Buffer.from(`${head}\n`), bytes]))
    const shuffled = lines.map((line) => line.slice(Math.floor(random() * line.length)) + line.slice(0, 9))
    await refusal(Buffer.from([head, ...shuffled].join('\n')))
  }
  for (const deep of ['['.repeat(1_000_000), '{"a":'.repeat(1_000_000)])
    await refusal(Buffer.from(`${head}\n${deep}\n`))
})

test('a policy that nests deeper than clients read is refused', async () => {
  const nested = (depth: number): object => (depth === 0 ? {} : { a: nested(depth - 1) })
  const records = (depth: number) => changed({ 'policy/default/stock': nested(depth) })
  assert.deepEqual(findings(records(50)), [])
  for (const depth of [64, 5_000]) assert.match(findings(records(depth))[0]!.reason, /nested deeper than 64/)
})

test('a line without end is refused before it fills the memory', async () => {
  let pieces = 0
  const endless = async function* () {
    for (;;) {
      pieces++
      yield Buffer.alloc(1_048_576, 0x20)
    }
  }
  assert.match(await refusal(endless()), /line 1: is longer than \d+ bytes/)
  assert.ok(pieces <= 65, `${pieces} MiB were read`)
})

test('what is no export, or one of another version, is refused with its first line', async () => {
  const cases: [string | Buffer, RegExp][] = [
    ['{}\n', /line 1: is not the beginning of an export/],
    ['hello\n', /line 1: is not JSON/],
    [Buffer.from([0x1f, 0x8b, 0xff, 0x0a]), /line 1: is not UTF-8/],
    ['{"holdfast":"export","format":2}\n', /line 1: has another format than this version reads, 1/],
    ['{"holdfast":"export","format":1,"epoch":"a b","revision":-1}\n', /epoch: must be an epoch\nline 1: revision: /],
  ]
  for (const [text, says] of cases) {
    const message = await refusal(Buffer.from(text))
    assert.match(message, says)
    assert.match(message, /^the export cannot be imported, and nothing was changed:\nline 1/)
  }
})

test('what follows the last line is refused', async () => {
  const bytes = await exported(sampleRecords())
  assert.match(await refusal(Buffer.concat([bytes, bytes])), /there is more after the last line/)
  assert.match(await refusal(Buffer.concat([bytes, Buffer.from('\n')])), /there is more after the last line/)
})

test('each problem is told with its line and its key: the first twenty, and how many more', async () => {
  const bad = { ...a, node: { ...a.node, port: 0 } }
  const one = await exported(changed({ 'node/default/stock/a': bad }))
  const line =
    1 +
    one
      .toString()
      .split('\n')
      .findIndex((text) => text.includes('"node/default/stock/a"'))
  assert.equal(
    await refusal(one),
    'the export cannot be imported, and nothing was changed:\n' +
      `line ${line}: node/default/stock/a: port: must be an integer from 1 to 65535, got 0`,
  )
  const many = Array.from({ length: 25 }, (_, index) => ({ key: `strange/${index}`, value: {} }))
  const message = await refusal(await exported(many))
  assert.equal(message.split('\n').length, 22)
  assert.match(message, /line 2: strange\/0: is of no known kind\n/)
  assert.match(message, /\nand 5 more$/)
})

test('a key that comes twice is refused', async () => {
  const twice = [...sampleRecords(), { key: 'lease/l1', value: stored('lease/l1') }]
  assert.match(await refusal(await exported(twice)), /lease\/l1: is there twice/)
})

const b = stored('node/default/stock/b') as { node: object }
const history = stored('history/0000000000000004') as { time: string; entries: readonly object[] }
const planted: [what: string, changes: Readonly<Record<string, unknown>>, key: string, says: RegExp][] = [
  [
    'a node whose service has no record',
    { 'service/default/stock': undefined },
    'node/default/stock/a',
    /service default\/stock has no record/,
  ],
  ['a node under a lease that is missing', { 'lease/l1': undefined }, 'node/default/stock/a', /its lease is missing/],
  ['a node under another name', { 'node/default/stock/x': b }, 'node/default/stock/x', /contradicts itself/],
  [
    'a node that says it is leased',
    { 'node/default/stock/b': { ...b, lease: 'l1' } },
    'node/default/stock/b',
    /contradicts itself/,
  ],
  ['a service name that is none', { 'policy/default/St..k': {} }, 'policy/default/St..k', /of no valid service/],
  ['a namespace that is none', { 'policy/de fault/stock': {} }, 'policy/de fault/stock', /of no valid namespace/],
  ['a key with too many names', { 'policy/default/stock/x': {} }, 'policy/default/stock/x', /no key of a record/],
  [
    'an override of no node id',
    { 'override/default/stock/-': { weight: 1 } },
    'override/default/stock/-',
    /of no valid node/,
  ],
  [
    'an override that overrides nothing',
    { 'override/default/stock/z': {} },
    'override/default/stock/z',
    /overrides nothing/,
  ],
  [
    'an override out of bounds',
    { 'override/default/stock/z': { weight: 1001 } },
    'override/default/stock/z',
    /weight: must be 0\.\.1000, got 1001/,
  ],
  [
    'an override that its node does not carry',
    { 'override/default/stock/b': undefined },
    'node/default/stock/b',
    /contradicts override\/default\/stock\/b/,
  ],
  ['a policy that is none', { 'policy/default/stock': [] }, 'policy/default/stock', /must be an object/],
  ['a lease that is not its key', { 'lease/l2': stored('lease/l1') }, 'lease/l2', /contradicts its key/],
  [
    'a lease without an end',
    { 'lease/l2': { id: 'l2', ttlMs: 1e12, owner: 'x' } },
    'lease/l2',
    /ttlMs: must be 2000\.\.3600000/,
  ],
  [
    'a service newer than the store',
    { 'service/default/stock': { revision: 7 } },
    'service/default/stock',
    /is of revision 7, after the last, 6/,
  ],
  [
    'an emptied service with nodes',
    { 'service/default/stock': { revision: 5, emptied: { id: 'a', cause: 'operator', time: 't', revision: 5 } } },
    'service/default/stock',
    /is emptied, and has nodes/,
  ],
  [
    'history newer than the store',
    { 'history/0000000000000009': history },
    'history/0000000000000009',
    /is of revision 9, after the last, 6/,
  ],
  ['history of no revision', { 'history/4': history }, 'history/4', /is of no revision/],
  [
    'history without entries',
    { 'history/0000000000000004': { ...history, entries: [] } },
    'history/0000000000000004',
    /entries/,
  ],
  [
    'history with a gap',
    { 'history/0000000000000004': undefined },
    'service/default/gone',
    /its last change, revision 4, is not in history/,
  ],
  [
    'a service behind its history',
    { 'service/default/stock': { revision: 4 } },
    'service/default/stock',
    /is at revision 4, its history at 5/,
  ],
  [
    'history that starts anew',
    { 'history/0000000000000004': { ...history, entries: [{ ...history.entries[0], after: 0 }] } },
    'history/0000000000000004',
    /follows revision 0 instead of 3/,
  ],
  ['an unknown kind', { 'secret/x': {} }, 'secret/x', /of no known kind/],
]

for (const [what, changes, key, says] of planted)
  test(`found by its key: ${what}`, () => {
    const found = findings(changed(changes)).filter((finding) => finding.key === key)
    assert.equal(found.length, 1, JSON.stringify(findings(changed(changes))))
    assert.match(found[0]!.reason, says)
  })

test('the sample is sound, and one damaged record is one problem, not one for each that refers to it', () => {
  assert.deepEqual(findings(sampleRecords()), [])
  for (const { key } of sampleRecords()) {
    const found: Finding[] = []
    const verification = new Verification(header.revision, (finding) => found.push(finding))
    for (const record of sampleRecords())
      if (record.key === key) verification.addUnreadable(key, 'the checksum does not match')
      else verification.add(record.key, record.value)
    verification.finish()
    assert.deepEqual(found, [{ key, reason: 'the checksum does not match' }])
  }
})
