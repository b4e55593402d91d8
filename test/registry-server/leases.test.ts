import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { openEmbeddedStore } from '../../registry-server/src/store/embedded/embedded-store.ts'
import { Leases } from '../../registry-server/src/leases.ts'
import type { Committed, Store } from '../../registry-server/src/store/store.ts'
import { node } from '../store.contract.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { silent, temporaryDirectory } from './support.ts'

const TTL_MS = 10_000

async function setUp(context: TestContext, directory?: string) {
  const clock = new ManualClock()
  let serial = 0
  const identifier = () => `id-${serial++}`
  const inner = await openEmbeddedStore({
    directory: directory ?? (await temporaryDirectory(context)),
    clock,
    log: silent,
    identifier,
    historyRevisions: 100,
    historyChanges: 1_000,
  })
  // Counts and holds what the leases write, so that a test can wait for it or let it fail.
  const writes: Promise<unknown>[] = []
  let refusal: Error | undefined
  const store: Store = {
    epoch: inner.epoch,
    transact: (body) => {
      const outcome = refusal ? Promise.reject(refusal) : inner.transact(body)
      writes.push(outcome.catch(() => {}))
      return outcome
    },
    read: (body) => inner.read(body),
    sync: () => inner.sync(),
    replicas: inner.replicas,
    watch: (listener) => inner.watch(listener),
    status: () => inner.status(),
    close: () => inner.close(),
  }
  const leases = new Leases({ store, clock, log: silent, identifier, maxLeases: 3, holdMs: 300_000 })
  const seen: Committed[] = []
  await store.watch(leases)
  await store.watch({ load() {}, apply: (transactions) => void seen.push(...transactions) })
  context.after(async () => {
    leases.close()
    await store.close()
  })
  const advance = async (ms: number) => {
    await clock.advance(ms)
    await Promise.all(writes)
  }
  const register = (id: string, lease: string) =>
    store.transact((tx) =>
      tx.putNode(
        { namespace: 'default', service: 'stock', id },
        { node: node(id, { leased: true }), lease },
        { cause: 'registered', by: 'test' },
      ),
    )
  const removals = () =>
    seen.flatMap(({ changes }) => changes.flatMap(({ remove }) => remove.map(({ id, cause }) => `${id} ${cause}`)))
  return { clock, store, leases, seen, advance, register, removals, refuse: (error?: Error) => (refusal = error) }
}

test('a lease that is not renewed ends after its ttl, and its nodes go with the cause', async (context) => {
  const { leases, advance, register, removals, seen } = await setUp(context)
  const lease = await leases.grant(TTL_MS, 'me')
  await register('a', lease.id)
  await advance(TTL_MS - 1)
  assert.deepEqual(removals(), [])
  await advance(251)
  assert.deepEqual(removals(), ['a lease_expired'])
  assert.equal(seen.at(-1)?.changes[0]?.items[0]?.by, 'me')
  await assert.rejects(leases.renew(lease.id), { code: 'lease_not_found' })
})

test('a renewal gives the full ttl again', async (context) => {
  const { leases, advance, register, removals } = await setUp(context)
  const lease = await leases.grant(TTL_MS, 'me')
  await register('a', lease.id)
  for (let round = 0; round < 5; round++) {
    await advance(TTL_MS - 500)
    assert.equal((await leases.renew(lease.id)).id, lease.id)
  }
  assert.deepEqual(removals(), [])
})

test('ending a lease removes its nodes as deregistered', async (context) => {
  const { leases, register, removals } = await setUp(context)
  const lease = await leases.grant(TTL_MS, 'me')
  await register('a', lease.id)
  await register('b', lease.id)
  await leases.end(lease.id)
  assert.deepEqual(removals(), ['a deregistered', 'b deregistered'])
  await leases.end(lease.id)
})

test('a node that moved to another lease outlives the one that it left', async (context) => {
  const { leases, register, removals } = await setUp(context)
  const first = await leases.grant(TTL_MS, 'first')
  const second = await leases.grant(TTL_MS, 'second')
  await register('a', first.id)
  await register('a', second.id)
  await leases.end(first.id)
  assert.deepEqual(removals(), [])
})

test('after a restart every lease has its full ttl again', async (context) => {
  const directory = await temporaryDirectory(context)
  const before = await setUp(context, directory)
  const lease = await before.leases.grant(TTL_MS, 'me')
  await before.register('a', lease.id)
  await before.advance(TTL_MS - 500)
  before.leases.close()
  await before.store.close()
  const after = await setUp(context, directory)
  await after.advance(TTL_MS - 500)
  assert.deepEqual(after.removals(), [])
  await after.advance(1_000)
  assert.deepEqual(after.removals(), ['a lease_expired'])
})

test('after a pause of the process every lease has its full ttl again', async (context) => {
  const { clock, leases, advance, register, removals } = await setUp(context)
  const lease = await leases.grant(TTL_MS, 'me')
  await register('a', lease.id)
  await clock.freeze(TTL_MS * 3)
  assert.equal(leases.status().pauses, 1)
  await advance(TTL_MS - 500)
  assert.deepEqual(removals(), [])
  await advance(1_000)
  assert.deepEqual(removals(), ['a lease_expired'])
})

for (const [what, ms] of [
  ['forward, as after a suspension', 3_600_000],
  ['back', -3_600_000],
] as const)
  test(`after the machine's clock was turned ${what}, every lease has its full ttl again`, async (context) => {
    const { clock, leases, advance, register, removals } = await setUp(context)
    const lease = await leases.grant(TTL_MS, 'me')
    await register('a', lease.id)
    await advance(TTL_MS - 500)
    clock.turnWall(ms)
    await advance(1_000)
    assert.deepEqual(removals(), [])
    await advance(TTL_MS)
    assert.deepEqual(removals(), ['a lease_expired'])
  })

test('many leases that run out together end in one transaction', async (context) => {
  const { leases, advance, register, seen } = await setUp(context)
  for (const id of ['a', 'b', 'c']) await register(id, (await leases.grant(TTL_MS, id)).id)
  const before = seen.length
  await advance(TTL_MS + 251)
  assert.equal(seen.length, before + 1)
  assert.equal(seen.at(-1)?.changes[0]?.remove.length, 3)
  assert.deepEqual(
    seen.at(-1)?.changes[0]?.items.map(({ by }) => by),
    ['a', 'b', 'c'],
  )
})

test('an end that cannot be written has not happened: a renewal counts, else it is tried again', async (context) => {
  const { leases, advance, register, removals, refuse } = await setUp(context)
  const kept = await leases.grant(TTL_MS, 'kept')
  const lost = await leases.grant(TTL_MS, 'lost')
  await register('a', kept.id)
  await register('b', lost.id)
  refuse(new Error('no disk'))
  await advance(TTL_MS + 250)
  assert.equal((await leases.renew(kept.id)).id, kept.id)
  refuse(undefined)
  await advance(2_000)
  assert.deepEqual(removals(), ['b lease_expired'])
})

test('the number of leases is bounded', async (context) => {
  const { leases } = await setUp(context)
  for (let index = 0; index < 3; index++) await leases.grant(TTL_MS, 'me')
  await assert.rejects(leases.grant(TTL_MS, 'me'), { code: 'too_many_requests', message: /3 leases/ })
})
