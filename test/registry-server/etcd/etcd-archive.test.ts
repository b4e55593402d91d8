/** Exporting, importing and checking a store on etcd, and moving between the engines. */

import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { after, test } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import type { PortableRecord, StoreArchive } from '../../../registry-server/src/store/archive.ts'
import { embeddedArchive } from '../../../registry-server/src/store/embedded/embedded-archive.ts'
import { openEmbeddedStore } from '../../../registry-server/src/store/embedded/embedded-store.ts'
import { etcdArchive } from '../../../registry-server/src/store/etcd/etcd-archive.ts'
import { encodeExport, readExport } from '../../../registry-server/src/store/portable.ts'
import { Verification } from '../../../registry-server/src/store/verification.ts'
import { node, pictureOf } from '../../store.contract.ts'
import { startEtcd, withoutEtcd, type Member } from '../../support/etcd.ts'
import { sampleRecords } from '../../support/sample-store.ts'
import { silent, temporaryDirectory } from '../support.ts'
import { freshPrefix, openStore, ref } from './support.ts'

const skip = await withoutEtcd()
const etcd: Member = skip ? (undefined as unknown as Member) : await startEtcd({ after })
const IDENTITY = { epoch: 'e1', revision: 6 }
const why = { cause: 'registered', by: 'test' } as const

let serial = 0
const identifier = () => `id${++serial}`

const archiveAt = (prefix: string) =>
  etcdArchive({ endpoints: [etcd.endpoint], access: { tls: false }, prefix, identifier, clock: systemClock })

async function* recordsOf(archive: StoreArchive): AsyncIterable<PortableRecord> {
  const { records } = await archive.read()
  for await (const item of records) {
    assert.ok('value' in item, JSON.stringify(item))
    yield item
  }
}

async function contentOf(archive: StoreArchive): Promise<PortableRecord[]> {
  const found: PortableRecord[] = []
  for await (const item of recordsOf(archive)) found.push(item)
  return found
}

test('what was created is read back, in the order of the keys, and is a store that works', { skip }, async () => {
  const prefix = freshPrefix()
  const archive = archiveAt(prefix)
  await archive.refuseUnlessEmpty()
  await archive.create(IDENTITY, sampleRecords())
  assert.deepEqual(await contentOf(archive), sampleRecords())
  const { epoch, revision } = await archive.read()
  assert.deepEqual({ epoch, revision }, IDENTITY)

  const store = await openStore({ endpoints: [etcd.endpoint], prefix })
  try {
    assert.equal(store.epoch, 'e1')
    assert.deepEqual(store.status().setAside, [])
    const picture = await pictureOf(store)
    assert.equal(picture.revision, 6)
    assert.deepEqual(
      picture.history.map(({ revision: at, service }) => [at, service]),
      [
        [3, 'gone'],
        [4, 'gone'],
        [5, 'stock'],
      ],
    )
    const next = await store.transact((tx) => tx.putNode(ref('new'), { node: node('new') }, why))
    assert.equal(next.revision, 7)
  } finally {
    await store.close()
  }
})

test(
  'a store moves from one machine to etcd and back with its cursor, its views and its history',
  { skip },
  async (t) => {
    const directory = await temporaryDirectory(t)
    const options = { clock: systemClock, log: silent, identifier, historyRevisions: 10_000, historyChanges: 1_000_000 }
    const embedded = await openEmbeddedStore({ ...options, directory })
    for (let index = 0; index < 700; index++)
      await embedded.transact((tx) => {
        // Leases alone make revisions that no service's history knows of.
        if (index % 3 === 0) tx.putLease({ id: `l${index}`, ttlMs: 15_000, owner: 'someone' })
        else tx.putNode(ref(`n${index % 50}`, `s${index % 7}`), { node: node(`n${index % 50}`, { port: index }) }, why)
      })
    const before = await pictureOf(embedded)
    await embedded.close()

    const prefix = freshPrefix()
    const source = await embeddedArchive({ directory, identifier }).read()
    const records: PortableRecord[] = []
    for await (const item of source.records) if ('value' in item) records.push(item)
    await archiveAt(prefix).create(source, records)
    const onEtcd = await openStore({ endpoints: [etcd.endpoint], prefix })
    assert.equal(onEtcd.epoch, source.epoch)
    assert.deepEqual(onEtcd.status().setAside, [])
    assert.deepEqual(await pictureOf(onEtcd), before)
    await onEtcd.transact((tx) => tx.removeNode(ref('n1', 's1'), { cause: 'operator', by: 'test' }))
    const moved = await pictureOf(onEtcd)
    await onEtcd.close()

    const back = await temporaryDirectory(t)
    const copy = await archiveAt(prefix).read()
    await embeddedArchive({ directory: back, identifier }).create(copy, await contentOf(archiveAt(prefix)))
    const again = await openEmbeddedStore({ ...options, directory: back })
    assert.equal(again.epoch, source.epoch)
    assert.deepEqual(await pictureOf(again), moved)
    await again.close()
  },
)

test('an export is of one moment, while replicas write', { skip }, async () => {
  const prefix = freshPrefix()
  const store = await openStore({ endpoints: [etcd.endpoint], prefix })
  let stopped = false
  const writing = Promise.all(
    Array.from({ length: 4 }, async (_, lane) => {
      for (let count = 1; !stopped; count++)
        await store.transact((tx) => {
          for (const side of ['left', 'right'])
            tx.putNode(
              ref(`n${lane}-${count % 30}`, side),
              { node: node(`n${lane}-${count % 30}`, { port: count }) },
              why,
            )
        })
    }),
  )
  for (let round = 0; round < 10; round++) {
    const picture = await archiveAt(prefix).read()
    const problems: object[] = []
    const verification = new Verification(picture.revision, (finding) => problems.push(finding))
    const ports = new Map<string, number[]>()
    for await (const item of picture.records) {
      assert.ok('value' in item)
      verification.add(item.key, item.value)
      const [kind, , service, id] = item.key.split('/')
      if (kind !== 'node') continue
      const { port } = (item.value as { node: { port: number } }).node
      ports.set(id!, [...(ports.get(id!) ?? []), port])
      assert.ok(service === 'left' || service === 'right')
    }
    verification.finish()
    assert.deepEqual(problems, [])
    for (const [id, both] of ports) assert.ok(both.length === 2 && both[0] === both[1], `${id}: ${both.join()}`)
  }
  stopped = true
  await writing
  await store.close()
})

test('an import that was cut off leaves no store, and the next one begins again', { skip }, async () => {
  const prefix = freshPrefix()
  const archive = archiveAt(prefix)
  function* cutOff(): Iterable<PortableRecord> {
    for (let index = 0; index < 3_000; index++)
      yield { key: `node/default/left-over/n${index}`, value: { node: node(`n${index}`) } }
    throw new Error('cut off')
  }
  await assert.rejects(archive.create(IDENTITY, cutOff()), /cut off/)
  assert.ok((await etcd.gateway.keys(`${prefix}state/`)).length >= 1_000)
  await assert.rejects(archive.read(), { code: 'store_refused', message: /an import into .* was cut off/ })
  await assert.rejects(openStore({ endpoints: [etcd.endpoint], prefix }), {
    code: 'store_refused',
    message: /an import into .* was cut off: .* run it again/,
  })
  await archive.refuseUnlessEmpty()
  await archive.create(IDENTITY, sampleRecords())
  assert.deepEqual(await contentOf(archive), sampleRecords())
  assert.equal(await etcd.gateway.get(`${prefix}import`), undefined)
})

test('of two imports at the same time one makes the store, and nothing of the other is in it', { skip }, async () => {
  for (let round = 0; round < 5; round++) {
    const prefix = freshPrefix()
    const many = (by: string) => [
      { key: `service/default/${by}`, value: { revision: 5 } },
      ...Array.from({ length: 2_500 }, (_, index) => ({
        key: `node/default/${by}/n${index}`,
        value: { node: node(`n${index}`) },
      })),
    ]
    const results = await Promise.allSettled(
      ['one', 'two'].map((by) => archiveAt(prefix).create({ ...IDENTITY, epoch: by }, many(by))),
    )
    const won = results.filter(({ status }) => status === 'fulfilled')
    assert.ok(won.length <= 1)
    for (const result of results)
      if (result.status === 'rejected') assert.match(String(result.reason), /someone else|already|under way/)
    if (won.length === 0) continue
    const { epoch } = await archiveAt(prefix).read()
    for (const { key } of await contentOf(archiveAt(prefix))) assert.equal(key.split('/')[2], epoch)
  }
})

test('nothing is created where something is', { skip }, async () => {
  const prefix = freshPrefix()
  const archive = archiveAt(prefix)
  await assert.rejects(archive.read(), { code: 'store_refused', message: /there is no store in etcd:\/\// })
  await archive.create(IDENTITY, sampleRecords())
  await assert.rejects(archive.create(IDENTITY, []), {
    code: 'store_refused',
    message: /there is a store in .* already/,
  })
  await assert.rejects(async () => archive.refuseUnlessEmpty(), { code: 'store_refused' })
  assert.deepEqual(await contentOf(archive), sampleRecords())

  const foreign = freshPrefix()
  await etcd.gateway.put(`${foreign}config/theirs`, 'x')
  await assert.rejects(async () => archiveAt(foreign).refuseUnlessEmpty(), {
    code: 'store_refused',
    message: /holds "config\/theirs" but no store of Holdfast/,
  })
})

test('what cannot be read is named, and the rest is read', { skip }, async () => {
  const prefix = freshPrefix()
  const archive = archiveAt(prefix)
  await archive.create(IDENTITY, sampleRecords())
  await etcd.gateway.put(`${prefix}state/node/default/stock/a`, 'no json')
  await etcd.gateway.put(`${prefix}feed/log/0000000000000003`, 'no entry')
  const { records } = await archive.read()
  const problems: string[] = []
  let read = 0
  for await (const item of records) {
    if ('problem' in item) problems.push(item.key)
    else read++
  }
  assert.deepEqual(problems, ['feed/log/0000000000000003', 'node/default/stock/a'])
  assert.equal(read, sampleRecords().length - 4)
})

test('an etcd that is not there is named with the reason of each member', { skip }, async () => {
  const archive = etcdArchive({
    endpoints: ['127.0.0.1:1', '127.0.0.1:2'],
    access: { tls: false },
    prefix: '/holdfast/',
    identifier,
    clock: systemClock,
  })
  await assert.rejects(archive.read(), { code: 'store_refused', message: /127\.0\.0\.1:1: .*; 127\.0\.0\.1:2: / })
})

test('the text of an export is the same from both engines', { skip }, async (t) => {
  const prefix = freshPrefix()
  await archiveAt(prefix).create(IDENTITY, sampleRecords())
  const directory = await temporaryDirectory(t)
  await embeddedArchive({ directory, identifier }).create(IDENTITY, sampleRecords())
  const header = { ...IDENTITY, time: '2026-01-01T00:00:00.000Z', version: '1' }
  const texts: string[] = []
  for (const archive of [archiveAt(prefix), embeddedArchive({ directory, identifier })]) {
    let text = ''
    for await (const chunk of encodeExport(header, recordsOf(archive))) text += chunk
    texts.push(text)
  }
  assert.equal(texts[0], texts[1])
  const { records } = await readExport(Readable.from([Buffer.from(texts[0]!)]))
  assert.deepEqual(records, sampleRecords())
})
