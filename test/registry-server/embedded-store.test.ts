import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { openEmbeddedStore } from '../../registry-server/src/store/embedded/embedded-store.ts'
import type { Database } from '../../registry-server/src/store/embedded/lmdb-database.ts'
import { StoreUnavailable, type Committed, type Store } from '../../registry-server/src/store/store.ts'
import { node, pictureOf, storeContract } from '../store.contract.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { silent, temporaryDirectory } from './support.ts'

let serial = 0

function openIn(directory: string, options: Partial<Parameters<typeof openEmbeddedStore>[0]> = {}) {
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

storeContract('embedded', async () => {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-store-'))
  let store: Store = await openIn(directory)
  return {
    store,
    async reopen() {
      await store.close()
      return (store = await openIn(directory))
    },
    async dispose() {
      await store.close()
      await rm(directory, { recursive: true, force: true })
    },
  }
})

/** A database whose next commits fail: before they reach the disk, or after. */
class FailingDisk {
  fails: 'before' | 'after' | undefined
  broken = false
  commits = 0

  wrap = (database: Database): Database => {
    if (this.broken) throw new Error('EIO: no such disk')
    return {
      get: (key) => database.get(key),
      range: (prefix, after, limit) => database.range(prefix, after, limit),
      close: () => database.close(),
      commit: async (writes) => {
        this.commits++
        if (this.fails === 'before') throw new Error('ENOSPC: no space left on device')
        await database.commit(writes)
        if (this.fails === 'after') throw new Error('EIO: lost in the last moment')
      },
    }
  }
}

async function onFailingDisk(context: TestContext) {
  const disk = new FailingDisk()
  const directory = await temporaryDirectory(context)
  const store = await openIn(directory, { wrap: disk.wrap })
  context.after(() => store.close())
  const put = (id: string) =>
    store.transact((tx) =>
      tx.putNode(
        { namespace: 'default', service: 'stock', id },
        { node: node(id) },
        { cause: 'registered', by: 'test' },
      ),
    )
  return { disk, store, put }
}

test('writes that the disk refuses are refused, and the state is the durable one again', async (context) => {
  const { disk, store, put } = await onFailingDisk(context)
  await put('a')
  const before = await pictureOf(store)
  disk.fails = 'before'
  const outcomes = await Promise.allSettled([put('b'), put('c'), store.transact((tx) => tx.leaseCount())])
  for (const outcome of outcomes)
    assert.ok(outcome.status === 'rejected' && outcome.reason instanceof StoreUnavailable, JSON.stringify(outcome))
  assert.deepEqual(await pictureOf(store), before)
})

test('writes work again as soon as the disk does, with no revision lost', async (context) => {
  const { disk, store, put } = await onFailingDisk(context)
  disk.fails = 'before'
  await assert.rejects(put('a'), { code: 'store_unavailable' })
  disk.fails = undefined
  assert.equal((await put('b')).revision, 1)
  assert.deepEqual(Object.keys((await pictureOf(store)).services), ['default/stock'])
})

test('writes queued behind a commit that fails are refused with it, since they were decided on what it made', async (context) => {
  const { disk, store, put } = await onFailingDisk(context)
  disk.fails = 'before'
  const first = put('a')
  await Promise.resolve()
  await Promise.resolve()
  assert.equal(disk.commits, 1)
  const second = store.transact((tx) => tx.node({ namespace: 'default', service: 'stock', id: 'a' })?.node.id)
  await assert.rejects(first, { code: 'store_unavailable' })
  await assert.rejects(second, { code: 'store_unavailable' })
})

test('a commit that reports a failure after it reached the disk counts as done', async (context) => {
  const { disk, store, put } = await onFailingDisk(context)
  const seen: Committed[] = []
  await store.watch({ load() {}, apply: (transactions) => void seen.push(...transactions) })
  disk.fails = 'after'
  assert.equal((await put('a')).revision, 1)
  assert.equal(seen.length, 1)
})

test('a disk that went away keeps the store unavailable until it is back', async (context) => {
  const { disk, store, put } = await onFailingDisk(context)
  await put('a')
  disk.fails = 'before'
  disk.broken = true
  await assert.rejects(put('b'), { code: 'store_unavailable' })
  await assert.rejects(put('c'), { code: 'store_unavailable' })
  disk.broken = false
  disk.fails = undefined
  assert.equal((await put('d')).revision, 2)
  assert.equal((await pictureOf(store)).services['default/stock']?.nodes.length, 2)
})

test('many transactions share one commit while the disk is busy', async (context) => {
  const { disk, put } = await onFailingDisk(context)
  await Promise.all(Array.from({ length: 500 }, (_, index) => put(`n${index}`)))
  assert.ok(disk.commits <= 3, `${disk.commits} commits`)
})

test('history keeps the configured revisions and no more, also after a restart', async (context) => {
  const directory = await temporaryDirectory(context)
  const bounds = { historyRevisions: 10, historyChanges: 1_000 }
  const store = await openIn(directory, bounds)
  for (let index = 0; index < 25; index++)
    await store.transact((tx) =>
      tx.putNode(
        { namespace: 'default', service: 's', id: `n${index}` },
        { node: node(`n${index}`) },
        {
          cause: 'registered',
          by: 'x',
        },
      ),
    )
  const kept = (await pictureOf(store)).history.map(({ revision }) => revision)
  assert.deepEqual(kept, [16, 17, 18, 19, 20, 21, 22, 23, 24, 25])
  await store.close()
  const again = await openIn(directory, bounds)
  assert.deepEqual(
    (await pictureOf(again)).history.map(({ revision }) => revision),
    kept,
  )
  await again.close()
})

test('history is bounded in changes too, however few revisions they came in', async (context) => {
  const store = await openIn(await temporaryDirectory(context), { historyRevisions: 10_000, historyChanges: 250 })
  for (let round = 0; round < 6; round++)
    await store.transact((tx) => {
      for (let index = 0; index < 100; index++)
        tx.putNode(
          { namespace: 'default', service: 's', id: `n${index}` },
          { node: node(`n${index}`, { port: round + 1 }) },
          {
            cause: 'registered',
            by: 'x',
          },
        )
    })
  assert.deepEqual(
    (await pictureOf(store)).history.map(({ revision }) => revision),
    [5, 6],
  )
  await store.close()
})
