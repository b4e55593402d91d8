/** One replica's connection to etcd fails in every way there is, and neither it nor the others lose anything. */

import assert from 'node:assert/strict'
import { after, test, type TestContext } from 'node:test'
import type { EtcdStoreOptions } from '../../../registry-server/src/store/etcd/etcd-store.ts'
import { decodeMeta } from '../../../registry-server/src/store/etcd/layout.ts'
import { StoreUnavailable, type Transaction } from '../../../registry-server/src/store/store.ts'
import { node } from '../../store.contract.ts'
import { startEtcd, withoutEtcd } from '../../support/etcd.ts'
import {
  checkAgreement,
  cut,
  freshPrefix,
  Ledger,
  openProxy,
  openRecorded,
  openThroughProxy,
  ref,
  until,
} from './support.ts'

const skip = await withoutEtcd()
const member = skip ? undefined! : await startEtcd({ after })
const where = (prefix: string) => ({ gateway: member?.gateway, endpoints: [member?.endpoint], prefix })

async function revisionIn(prefix: string): Promise<number> {
  return decodeMeta(Buffer.from((await member.gateway.get(`${prefix}meta`))!)).revision
}

/** One whose connection fails, and one whose connection does not. */
async function openPair(context: TestContext, options: Partial<EtcdStoreOptions> = {}) {
  const prefix = freshPrefix()
  const one = await openThroughProxy(context, member, prefix, options)
  const other = await openRecorded(context, [member.endpoint], prefix, options)
  const ledger = new Ledger()
  const agree = () => checkAgreement({ followers: [one, other], ledgers: [ledger], ...where(prefix), options })
  return { prefix, one, other, ledger, agree }
}

/** One that goes on through a second connection when the first fails, and one whose connection does not. */
async function openWithSpare(context: TestContext) {
  const prefix = freshPrefix()
  const [first, second] = [await openProxy(context, member), await openProxy(context, member)]
  // It begins with the first of the list.
  const one = await openRecorded(context, [first.endpoint, second.endpoint], prefix, { random: () => 0 })
  const other = await openRecorded(context, [member.endpoint], prefix)
  const ledger = new Ledger()
  const agree = () => checkAgreement({ followers: [one, other], ledgers: [ledger], ...where(prefix) })
  return { prefix, one, first, other, ledger, agree }
}

/** One that never rests, and one far away: whatever it compares with, the other was faster. */
async function openNearAndFar(context: TestContext) {
  const prefix = freshPrefix()
  const near = await openRecorded(context, [member.endpoint], prefix)
  const far = await openThroughProxy(context, member, prefix)
  far.proxy.delay(15)
  const ledger = new Ledger()
  const stop = ledger.writeOn(context, near.store, 1)
  await until(() => ledger.acknowledged.size > 20, 'it writes')
  const agree = async (...ledgers: readonly Ledger[]) => {
    await stop()
    far.proxy.delay(0)
    await checkAgreement({ followers: [near, far], ledgers: [ledger, ...ledgers], ...where(prefix) })
  }
  return { near, far, agree }
}

test('cut before a backlog has arrived, it misses nothing and hears nothing twice', { skip }, async (context) => {
  const { one, other, ledger, agree } = await openPair(context)
  one.proxy.hold('down')
  for (let count = 0; count < 100; count++) await ledger.write(other.store)
  await one.proxy.waitForHeld('down', 1_000)
  await cut(one.proxy)
  one.proxy.restore()
  await until(() => one.recorder.revision === 100, 'it has followed')
  assert.equal(one.recorder.loads, 1)
  await ledger.write(one.store)
  await agree()
})

test('cut again while it catches up, it misses nothing and hears nothing twice', { skip }, async (context) => {
  const { one, other, ledger, agree } = await openPair(context)
  await cut(one.proxy)
  for (let count = 0; count < 300; count++) await ledger.write(other.store)
  one.proxy.delay(100, 'down')
  one.proxy.restore()
  // What it missed is on its way.
  await one.proxy.waitForHeld('down', 10_000)
  assert.equal(one.recorder.revision, 0)
  await cut(one.proxy)
  one.proxy.delay(0, 'down')
  one.proxy.restore()
  await until(() => one.recorder.revision === 300, 'it has followed')
  assert.equal(one.recorder.loads, 1)
  await agree()
})

test('etcd forgets its past while it is cut off, and it misses nothing', { skip }, async (context) => {
  const { one, other, ledger, agree } = await openPair(context)
  await cut(one.proxy)
  for (let count = 0; count < 50; count++) await ledger.write(other.store)
  await member.gateway.compact(await member.gateway.revision())
  one.proxy.restore()
  await until(() => one.recorder.revision === 50, 'it has followed')
  assert.equal(one.recorder.loads, 1)
  assert.equal(one.recorder.seen.length, 50)
  await agree()
})

test(
  'cut off for longer than history reaches back, it is loaded anew and goes on from there',
  { skip },
  async (context) => {
    const { one, other, ledger, agree } = await openPair(context, { historyRevisions: 10 })
    for (let count = 0; count < 5; count++) await ledger.write(one.store)
    await cut(one.proxy)
    for (let count = 0; count < 40; count++) await ledger.write(other.store)
    one.proxy.restore()
    await until(() => one.recorder.loads === 2, 'it is loaded')
    assert.equal(one.recorder.revision, 45)
    for (let count = 0; count < 5; count++) await ledger.write(count % 2 ? one.store : other.store)
    await agree()
  },
)

test(
  'its log gone with the answer, a commit is not tried again: nobody knows whether it happened',
  { skip },
  async (context) => {
    const { prefix, one, other, ledger, agree } = await openPair(context, { historyRevisions: 10 })
    one.proxy.hold('down')
    const lost = one.store.transact((tx) => {
      tx.putNode(ref('a'), { node: node('a') }, { cause: 'registered', by: 'lost' })
    })
    const refused = assert.rejects(lost, (error: Error) => {
      assert.ok(error instanceof StoreUnavailable)
      assert.match(error.message, /nobody knows whether it happened/)
      return true
    })
    await until(async () => (await revisionIn(prefix)) === 1, 'it has happened')
    await cut(one.proxy)
    for (let count = 0; count < 40; count++) await ledger.write(other.store)
    one.proxy.restore()
    await refused
    const by = other.recorder.seen.flatMap(({ changes }) =>
      changes.flatMap(({ items }) => items.map((item) => item.by)),
    )
    assert.equal(by.filter((name) => name === 'lost').length, 1)
    assert.equal(one.recorder.loads, 2)
    await agree()
  },
)

test('the answer of a commit is lost, and its author hears that it happened, once', { skip }, async (context) => {
  const { prefix, one, ledger, agree } = await openPair(context)
  for (let round = 1; round <= 5; round++) {
    await one.store.sync()
    one.proxy.hold('down')
    const written = ledger.write(one.store)
    await until(async () => (await revisionIn(prefix)) === round, 'it has happened')
    await cut(one.proxy)
    one.proxy.restore()
    assert.equal(await written, true)
  }
  assert.equal(one.recorder.revision, 5)
  await agree()
})

test(
  'a commit that is held up and tried elsewhere happens once, also when it arrives in the end',
  { skip },
  async (context) => {
    const { prefix, one, first, other, ledger, agree } = await openWithSpare(context)
    await ledger.write(one.store)
    const bytes = first.bytes.up
    first.hold('up')
    const startMs = performance.now()
    assert.equal(await ledger.write(one.store), true)
    context.diagnostic(`acknowledged through the second connection after ${Math.round(performance.now() - startMs)} ms`)
    first.release('up')
    await first.waitForNone()
    assert.ok(first.bytes.up > bytes + 200, 'the request has arrived')
    assert.equal(await revisionIn(prefix), 2)
    await ledger.write(other.store)
    await ledger.write(one.store)
    assert.equal(one.recorder.revision, 4)
    await agree()
  },
)

test(
  'three replicas that count in the same place lose no step, and nobody waits for luck',
  { skip },
  async (context) => {
    const prefix = freshPrefix()
    const stores = [
      await openThroughProxy(context, member, prefix),
      await openThroughProxy(context, member, prefix),
      await openThroughProxy(context, member, prefix),
    ]
    const reader = await openThroughProxy(context, member, prefix)
    const count = (tx: Transaction) => {
      const incarnation = (tx.node(ref('counter'))?.node.incarnation ?? 0) + 1
      tx.putNode(ref('counter'), { node: node('counter', { incarnation }) }, { cause: 'registered', by: 'test' })
      return incarnation
    }
    const results: number[] = []
    const startMs = performance.now()
    const took = await Promise.all(
      stores.map(async ({ store }) => {
        const lane = async () => {
          for (let step = 0; step < 100; step++) results.push((await store.transact(count)).result)
        }
        await Promise.all(Array.from({ length: 5 }, lane))
        return Math.round(performance.now() - startMs)
      }),
    )
    assert.deepEqual(
      results.sort((a, b) => a - b),
      Array.from({ length: 1_500 }, (_, index) => index + 1),
    )
    context.diagnostic(`1500 steps; the replicas were done after ${took.join(', ')} ms`)
    // An answer that the watch has overtaken is no reason to take etcd for another one.
    for (const { proxy } of [...stores, reader]) assert.equal(proxy.accepted, 1)
    await checkAgreement({ followers: [...stores, reader], ...where(prefix) })
  },
)

test('whoever only reads is answered however fast others write', { skip }, async (context) => {
  const { near, far, agree } = await openNearAndFar(context)
  for (let round = 0; round < 10; round++) {
    const before = near.recorder.revision
    await far.store.sync()
    assert.ok(far.recorder.revision >= before)
    const { result } = await far.store.transact((tx) => tx.node(ref('n1', 'left')))
    assert.ok(result === undefined || result.node.id === 'n1')
  }
  await agree()
})

test('one that is far from etcd gets to write beside one that is near and never rests', { skip }, async (context) => {
  const { far, agree } = await openNearAndFar(context)
  const ledger = new Ledger()
  for (let round = 0; round < 5; round++) {
    const startMs = performance.now()
    assert.equal(await ledger.write(far.store), true)
    context.diagnostic(`written after ${Math.round(performance.now() - startMs)} ms`)
  }
  await agree(ledger)
})

test('a connection that looks alive and is silent is replaced within seconds', { skip }, async (context) => {
  const { one, first, other, ledger, agree } = await openWithSpare(context)
  first.hold('down')
  const startMs = performance.now()
  await ledger.write(other.store)
  await until(() => one.recorder.revision === 1, 'it is told')
  const tookMs = Math.round(performance.now() - startMs)
  context.diagnostic(`told through the second connection after ${tookMs} ms`)
  await agree()
})

test('a connection that hangs while it is made does not hold up the next', { skip }, async (context) => {
  const prefix = freshPrefix()
  const one = await openThroughProxy(context, member, prefix)
  await cut(one.proxy)
  one.proxy.hold('up')
  one.proxy.restore()
  await one.proxy.waitForHeld('up')
  const hangsMs = performance.now()
  const since = one.proxy.accepted
  await one.proxy.waitForConnection(since)
  // Those that hang go on hanging; the ones after them pass.
  await cut(one.proxy)
  one.proxy.restore()
  const startMs = performance.now()
  await until(() => one.store.status().ageMs === 0 && one.store.status().lost === undefined, 'it follows again')
  context.diagnostic(`the next was tried after ${Math.round(startMs - hangsMs)} ms`)
  context.diagnostic(`follows again after ${Math.round(performance.now() - startMs)} ms`)
  await checkAgreement({ followers: [one], ...where(prefix) })
})

test('stores of one process share no connection', { skip }, async (context) => {
  const prefix = freshPrefix()
  const one = await openThroughProxy(context, member, prefix)
  await openRecorded(context, [one.proxy.endpoint], prefix)
  assert.equal(one.proxy.accepted, 2)
})

test('closing while another writes ends, with every transaction answered', { skip }, async (context) => {
  const prefix = freshPrefix()
  const other = await openRecorded(context, [member.endpoint], prefix)
  const ledger = new Ledger()
  const stop = ledger.writeOn(context, other.store)
  for (let round = 0; round < 10; round++) {
    const one = await openRecorded(context, [member.endpoint], prefix)
    const written = Array.from({ length: 20 }, () => ledger.write(one.store))
    await written[0]
    written.push(ledger.write(one.store), ledger.write(one.store))
    const [closed, again] = [one.store.close(), one.store.close()]
    assert.deepEqual(new Set(await Promise.all(written)), new Set([true]))
    await Promise.all([closed, again])
    assert.deepEqual(one.recorder.broken, [])
  }
  await stop()
  await checkAgreement({ followers: [other], ledgers: [ledger], ...where(prefix) })
})

test('closing while etcd is out of reach refuses what waits, at once', { skip }, async (context) => {
  const prefix = freshPrefix()
  const one = await openThroughProxy(context, member, prefix)
  const ledger = new Ledger()
  await cut(one.proxy)
  await until(() => one.store.status().ageMs > 0, 'it is cut off')
  const waiting = ledger.write(one.store)
  const startMs = performance.now()
  await one.store.close()
  assert.equal(await waiting, false)
  assert.ok(performance.now() - startMs < 1_000)
})

test('a listener that comes while others are told is told nothing twice', { skip }, async (context) => {
  const prefix = freshPrefix()
  const { store } = await openRecorded(context, [member.endpoint], prefix)
  const ledger = new Ledger()
  const told: string[] = []
  let joined: Promise<unknown> | undefined
  const late = {
    load: ({ revision }: { readonly revision: number }) => void told.push(`state ${revision}`),
    apply: (items: readonly { readonly revision: number }[]) =>
      void told.push(...items.map(({ revision }) => `${revision}`)),
  }
  await store.watch({ load() {}, apply: () => void (joined ??= store.watch(late)) })
  await ledger.write(store)
  await joined
  await ledger.write(store)
  assert.deepEqual(told, ['state 1', '2'])
})
