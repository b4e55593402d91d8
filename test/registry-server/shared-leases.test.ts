import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import fc from 'fast-check'
import { registerNode } from '../../registry-server/src/registration.ts'
import type { Lease } from '../../registry-server/src/store/store.ts'
import { DETECT_MS, LeaseCluster, type ClusterOptions } from '../support/lease-cluster.ts'
import { settle } from '../support/manual-clock.ts'
import { deferred } from './support.ts'

const TTL_MS = 10_000
/** What the end of a lease may take longer than its ttl. */
const LATE_MS = 2_000

async function start(context: TestContext, names: string, options?: ClusterOptions): Promise<LeaseCluster> {
  const cluster = await LeaseCluster.start(names, options)
  context.after(() => cluster.close())
  return cluster
}

const counted = (cluster: LeaseCluster) =>
  [...cluster.members.values()].filter(({ isRunning }) => isRunning).map(({ leases }) => leases.status().counted)

test('a lease is counted where it was granted, and known everywhere', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await cluster.at('b').leases.grant(TTL_MS, 'me')
  assert.equal(lease.holder, 'b')
  assert.deepEqual(counted(cluster), [0, 1])
  assert.equal(cluster.at('a').leases.status().active, 1)
})

test('ten thousand leases that are renewed, at their holder or in turn at both, write nothing', async (context) => {
  const cluster = await start(context, 'a b')
  const [a, b] = [cluster.at('a'), cluster.at('b')]
  const ids: string[] = []
  for (let index = 0; index < 10_000; index++) ids.push((await a.leases.grant(TTL_MS, `owner ${index}`)).id)
  const before = a.transactions + b.transactions
  for (let round = 0; round < 15; round++) {
    await cluster.clock.advance(TTL_MS / 3)
    for (const [index, id] of ids.entries()) await (index % 2 === 0 || round % 2 === 0 ? a : b).leases.renew(id)
  }
  assert.equal(a.transactions + b.transactions, before)
  assert.deepEqual(counted(cluster), [10_000, 0])
})

test('renewals through another replica reach the holder', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await cluster.registrant('a', 'n', TTL_MS)
  for (let round = 0; round < 5; round++) {
    await cluster.clock.advance(TTL_MS - 1_000)
    assert.equal((await cluster.at('b').leases.renew(lease.id)).id, lease.id)
  }
  assert.deepEqual(cluster.removals(), [])
})

test('a renewal that another replica acknowledged in the last moment counts, though its holder hears of it later', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await cluster.registrant('a', 'n', TTL_MS)
  // A word that has just been told, so that the next one has to wait.
  const other = await cluster.registrant('a', 'other', TTL_MS)
  for (let round = 0; round < 3; round++) {
    await cluster.clock.advance(TTL_MS - 400)
    await cluster.at('b').leases.renew(other.id)
    await cluster.clock.advance(350)
    await cluster.at('b').leases.renew(lease.id)
  }
  await cluster.clock.advance(1_000)
  assert.deepEqual(cluster.removals(), [])
})

test('the nodes of a registrant that dies are gone within its ttl and two seconds, wherever it renewed last', async (context) => {
  for (const at of ['a', 'b']) {
    const cluster = await start(context, 'a b')
    const lease = await cluster.registrant('a', 'n', TTL_MS)
    await cluster.clock.advance(3_210)
    await cluster.at(at).leases.renew(lease.id)
    const tookMs = await cluster.until(() => cluster.removals().length > 0, TTL_MS * 3)
    assert.ok(tookMs! >= TTL_MS && tookMs! <= TTL_MS + LATE_MS, `${at}: ${tookMs} ms`)
    // Only the holder has tried.
    assert.equal(cluster.at('b').transactions, 0)
  }
})

test("a killed replica's leases move to those that hear of them, in few transactions, and no node is removed", async (context) => {
  const cluster = await start(context, 'a b c')
  const leases: Lease[] = []
  for (let index = 0; index < 1_200; index++) leases.push(await cluster.registrant('a', `n${index}`, TTL_MS))
  const [b, c] = [cluster.at('b'), cluster.at('c')]
  cluster.kill('a')
  for (let round = 0; round < 12; round++) {
    for (const [index, { id }] of leases.entries()) await (index % 3 === 0 ? b : c).leases.renew(id)
    await cluster.clock.advance(TTL_MS / 3)
  }
  assert.deepEqual(cluster.removals(), [])
  assert.deepEqual(counted(cluster), [400, 800])
  assert.equal(await cluster.holderOf(leases[0]!.id), 'b')
  assert.equal(await cluster.holderOf(leases[1]!.id), 'c')
  assert.deepEqual([b.transactions, c.transactions], [1, 2])
})

test('a registrant that dies with its holder is gone after the detection of that death, its ttl and two seconds', async (context) => {
  const cluster = await start(context, 'a b c')
  await cluster.registrant('c', 'n', TTL_MS)
  cluster.kill('c')
  const tookMs = await cluster.until(() => cluster.removals().length > 0, DETECT_MS + TTL_MS * 3)
  assert.ok(tookMs! >= DETECT_MS + TTL_MS && tookMs! <= DETECT_MS + TTL_MS + LATE_MS, `${tookMs} ms`)
  // One after the other tries: the first did.
  assert.deepEqual([cluster.at('a').transactions, cluster.at('b').transactions], [1, 0])
})

test('when the first replica fails to end a lease whose holder is gone, the next one does', async (context) => {
  const cluster = await start(context, 'a b c')
  await cluster.registrant('c', 'n', TTL_MS)
  cluster.at('a').gate = new Promise(() => {})
  cluster.kill('c')
  const tookMs = await cluster.until(() => cluster.removals().length > 0, DETECT_MS + TTL_MS * 3)
  assert.ok(tookMs! <= DETECT_MS + TTL_MS + LATE_MS, `${tookMs} ms`)
  assert.deepEqual([cluster.at('a').transactions, cluster.at('b').transactions], [1, 1])
})

/** A lease whose holder is gone, shortly before it runs out. */
async function orphan(context: TestContext, leftMs = 300) {
  const cluster = await start(context, 'a b c')
  const lease = await cluster.registrant('c', 'n', TTL_MS)
  cluster.kill('c')
  await cluster.clock.advance(DETECT_MS + TTL_MS - leftMs)
  const [a, b] = [cluster.at('a'), cluster.at('b')]
  // So that the store alone decides.
  a.deafen()
  return { cluster, lease, a, b }
}

test('an end that comes after a claim, which its author does not know of yet, removes nothing', async (context) => {
  const { cluster, lease, a, b } = await orphan(context)
  a.lag()
  await b.leases.renew(lease.id)
  await cluster.clock.advance(1_000)
  assert.equal(await cluster.holderOf(lease.id), 'b')
  assert.equal(a.transactions, 1)
  a.listen()
  await cluster.clock.advance(TTL_MS - 1_500)
  assert.deepEqual(cluster.removals(), [])
  assert.deepEqual(counted(cluster), [0, 1])
})

test('an end that was asked for before a claim, but comes after it, removes nothing', async (context) => {
  const { cluster, lease, a, b } = await orphan(context)
  const gate = deferred<void>()
  a.gate = gate.promise
  await cluster.clock.advance(400)
  assert.equal(a.transactions, 1)
  await b.leases.renew(lease.id)
  await cluster.clock.advance(250)
  gate.resolve()
  await cluster.clock.advance(250)
  assert.deepEqual(cluster.removals(), [])
  assert.equal(await cluster.holderOf(lease.id), 'b')
})

test('an end that waits for the store is called off by a renewal', async (context) => {
  const { cluster, lease, a } = await orphan(context)
  const gate = deferred<void>()
  a.gate = gate.promise
  await cluster.clock.advance(400)
  assert.equal(a.transactions, 1)
  const renewed = a.leases.renew(lease.id)
  gate.resolve()
  assert.equal((await renewed).id, lease.id)
  assert.deepEqual(cluster.removals(), [])
})

test('of two replicas that claim the same lease, the later leaves it to the first', async (context) => {
  const { cluster, lease, a, b } = await orphan(context)
  const gate = deferred<void>()
  a.gate = gate.promise
  await Promise.all([a.leases.renew(lease.id), b.leases.renew(lease.id)])
  await cluster.clock.advance(250)
  assert.deepEqual([a.transactions, b.transactions], [1, 1])
  gate.resolve()
  await settle()
  assert.equal(await cluster.holderOf(lease.id), 'b')
  assert.deepEqual(counted(cluster), [0, 1])
})

test('a claim that comes after the end brings nothing back, and the registrant learns of it', async (context) => {
  const { cluster, lease, b } = await orphan(context)
  const gate = deferred<void>()
  b.gate = gate.promise
  await b.leases.renew(lease.id)
  await cluster.clock.advance(1_000)
  gate.resolve()
  await settle()
  assert.deepEqual(cluster.removals(), ['n'])
  assert.equal(await cluster.store.read((state) => state.leaseCount()), 0)
  await assert.rejects(b.leases.renew(lease.id), { code: 'lease_not_found' })
})

test('a lease without a holder has its time again wherever it is heard of, also while its claim cannot be written', async (context) => {
  const { cluster, lease, a, b } = await orphan(context, 1_000)
  a.deafen(false)
  b.gate = new Promise(() => {})
  await b.leases.renew(lease.id)
  await cluster.clock.advance(TTL_MS)
  assert.deepEqual(cluster.removals(), [])
  await cluster.clock.advance(1_000)
  assert.deepEqual(cluster.removals(), ['n'])
})

test('a registrant that moved for good costs one write; one that is spread over replicas none', async (context) => {
  const cluster = await start(context, 'a b')
  const [a, b] = [cluster.at('a'), cluster.at('b')]
  const moved = await cluster.registrant('a', 'moved', TTL_MS)
  const spread = await cluster.registrant('a', 'spread', TTL_MS)
  const before = a.transactions + b.transactions
  for (let round = 1; round <= 30; round++) {
    await cluster.clock.advance(TTL_MS / 3)
    await b.leases.renew(moved.id)
    await (round % 8 === 0 ? a : b).leases.renew(spread.id)
    await cluster.clock.advance(800)
    assert.equal(await cluster.holderOf(moved.id), round < 8 ? 'a' : 'b', `round ${round}`)
    assert.deepEqual(counted(cluster), round < 8 ? [2, 0] : [1, 1])
  }
  assert.equal(await cluster.holderOf(spread.id), 'a')
  assert.equal(a.transactions + b.transactions, before + 1)
  assert.deepEqual(cluster.removals(), [])
})

test('renewals that come through two other replicas in turn move a lease to neither', async (context) => {
  const cluster = await start(context, 'a b c')
  const lease = await cluster.registrant('a', 'n', TTL_MS)
  for (let round = 0; round < 20; round++) {
    await cluster.clock.advance(TTL_MS / 3)
    await cluster.at(round % 2 === 0 ? 'b' : 'c').leases.renew(lease.id)
  }
  assert.equal(await cluster.holderOf(lease.id), 'a')
})

test('a registrant that comes back before its lease is handed over keeps its holder', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await cluster.registrant('a', 'n', TTL_MS)
  const { leases } = cluster.at('a')
  for (let round = 0; round < 8; round++) {
    await cluster.clock.advance(TTL_MS / 4)
    leases.heard([lease.id], 'b')
  }
  await leases.renew(lease.id)
  await cluster.clock.advance(1_000)
  assert.equal(await cluster.holderOf(lease.id), 'a')
})

test('a burst of registrations through another replica does not move a lease', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await cluster.registrant('a', 'n0', 60_000)
  for (let index = 1; index < 20; index++) {
    await cluster.register('b', lease, `n${index}`)
    await cluster.clock.advance(600)
  }
  assert.equal(await cluster.holderOf(lease.id), 'a')
})

test('a renewal at a replica that was given up is refused, and remembered', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await cluster.registrant('a', 'n', TTL_MS)
  const a = cluster.at('a')
  a.cut()
  await cluster.clock.advance(DETECT_MS)
  await assert.rejects(a.leases.renew(lease.id), { code: 'store_unavailable' })
  await assert.rejects(a.leases.renew('unknown'), { code: 'store_unavailable' })
  assert.deepEqual(counted(cluster), [1, 1])
  // Nobody renews it any more: it ends at the other replica.
  assert.ok((await cluster.until(() => cluster.removals().length > 0, TTL_MS + LATE_MS)) !== undefined)
})

test('a replica that lost the store answers for its own leases, and refuses those that it would have to tell of', async (context) => {
  const cluster = await start(context, 'a b')
  const own = await cluster.registrant('a', 'own', TTL_MS)
  const foreign = await cluster.registrant('b', 'foreign', TTL_MS)
  const a = cluster.at('a')
  a.cut()
  assert.equal((await a.leases.renew(own.id)).id, own.id)
  await assert.rejects(a.leases.renew(foreign.id), { code: 'store_unavailable' })
})

test('a store that says nothing for longer than a pause counts as lost before it says so', async (context) => {
  const cluster = await start(context, 'a b')
  await cluster.registrant('a', 'n', TTL_MS)
  const a = cluster.at('a')
  await cluster.clock.advance(TTL_MS - 3_000)
  a.cut()
  await cluster.clock.advance(2_500)
  a.heal()
  await cluster.clock.advance(TTL_MS - 1_000)
  assert.deepEqual(cluster.removals(), [])
  assert.deepEqual([a.leases.status().holds.store, a.leases.status().pauses], [1, 1])
})

test('while the store is lost nothing ends, and afterwards every lease has its full ttl again', async (context) => {
  const cluster = await start(context, 'a b')
  await cluster.registrant('a', 'n', TTL_MS)
  const a = cluster.at('a')
  await cluster.clock.advance(TTL_MS - 1_500)
  const before = a.transactions
  a.cut()
  await cluster.clock.advance(5_000)
  assert.equal(a.transactions, before)
  a.heal()
  await cluster.clock.advance(TTL_MS - 1_000)
  assert.deepEqual(cluster.removals(), [])
  assert.deepEqual([a.leases.status().holds.store, a.leases.status().pauses], [1, 1])
  assert.equal(a.log.of('warn', 'full ttl again').length, 1)
  await cluster.clock.advance(1_000 + LATE_MS)
  assert.deepEqual(cluster.removals(), ['n'])
})

test('a replica that was given up and is back counts its leases from the start, and the others cease to', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await cluster.registrant('a', 'n', 30_000)
  const a = cluster.at('a')
  a.cut()
  await cluster.clock.advance(DETECT_MS + 1)
  assert.deepEqual(counted(cluster), [1, 1])
  await cluster.clock.advance(29_000)
  a.heal()
  assert.deepEqual(counted(cluster), [1, 0])
  await cluster.clock.advance(29_000)
  assert.deepEqual(cluster.removals(), [])
  assert.equal(await cluster.holderOf(lease.id), 'a')
  await cluster.clock.advance(2_000)
  assert.deepEqual(cluster.removals(), ['n'])
})

test('also when it was given up for so short a time that no sweep saw it', async (context) => {
  const cluster = await start(context, 'a b')
  await cluster.registrant('a', 'n', TTL_MS)
  await cluster.clock.advance(TTL_MS - 1_000)
  cluster.alive.delete('a')
  cluster.changed()
  cluster.alive.add('a')
  cluster.changed()
  await cluster.clock.advance(TTL_MS - 1_000)
  assert.deepEqual(cluster.removals(), [])
})

test('a lease granted elsewhere an instant ago is found by asking the store', async (context) => {
  const cluster = await start(context, 'a b')
  const b = cluster.at('b')
  b.lag()
  const lease = await cluster.at('a').leases.grant(TTL_MS, 'me')
  assert.equal((await b.leases.renew(lease.id)).id, lease.id)
  await assert.rejects(b.leases.renew('none'), { code: 'lease_not_found' })
  assert.equal(b.syncs, 2)
  await b.leases.renew(lease.id)
  assert.equal(b.syncs, 2)
})

test('a state that is loaded again keeps deadlines, adds what is new and drops what is gone', async (context) => {
  const cluster = await start(context, 'a')
  const a = cluster.at('a')
  const gone = await cluster.registrant('a', 'gone', TTL_MS)
  await cluster.registrant('a', 'old', TTL_MS)
  await cluster.clock.advance(5_000)
  a.lag()
  await a.leases.end(gone.id)
  await cluster.registrant('a', 'young', TTL_MS)
  await cluster.store.watch({ load: (state) => a.leases.load(state), apply() {} })
  assert.deepEqual([a.leases.status().active, a.leases.status().counted], [2, 2])
  await cluster.clock.advance(6_500)
  assert.deepEqual(cluster.removals(), ['gone', 'old'])
  await cluster.clock.advance(5_000)
  assert.deepEqual(cluster.removals(), ['gone', 'old', 'young'])
})

test('where there are no replicas, a holder means nothing', async (context) => {
  const cluster = await start(context, 'a', { alone: true })
  const lease = await cluster.registrant('a', 'n', TTL_MS)
  assert.equal(lease.holder, undefined)
  await cluster.store.transact((tx) => tx.putLease({ ...lease, id: 'left', holder: 'stranger' }))
  const before = cluster.seen.length
  await cluster.clock.advance(5_000)
  await cluster.at('a').leases.renew('left')
  await cluster.clock.advance(TTL_MS - 1_000)
  assert.deepEqual(
    cluster.seen.slice(before).map(({ leases }) => leases.removed),
    [[lease.id]],
  )
  await cluster.clock.advance(1_500)
  assert.equal(cluster.at('a').leases.status().active, 0)
})

async function withManyNodes(cluster: LeaseCluster, count: number): Promise<Lease> {
  const lease = await cluster.registrant('a', 'n0', TTL_MS)
  for (let index = 1; index < count; index++) await cluster.register('a', lease, `n${index}`, 'host')
  cluster.seen.length = 0
  return lease
}

const sizes = (cluster: LeaseCluster) =>
  cluster.seen.map(({ changes }) => changes.reduce((sum, { remove }) => sum + remove.length, 0))

test('a lease with thousands of nodes ends in pieces: by its owner, and when it runs out', async (context) => {
  for (const how of ['end', 'expiry']) {
    const cluster = await start(context, 'a b')
    const lease = await withManyNodes(cluster, 2_500)
    if (how === 'end') await cluster.at('b').leases.end(lease.id)
    else await cluster.clock.advance(TTL_MS + LATE_MS)
    assert.deepEqual(sizes(cluster), [1_000, 1_000, 500], how)
    assert.equal(await cluster.store.read((state) => state.leaseCount()), 0)
    assert.deepEqual(counted(cluster), [0, 0])
    assert.equal(cluster.at('a').leases.status().expired, how === 'end' ? 0 : 1)
  }
})

test('a lease whose end has begun is not renewed back to life, and another replica ends it when its author dies', async (context) => {
  const cluster = await start(context, 'a b')
  const lease = await withManyNodes(cluster, 1_500)
  const [a, b] = [cluster.at('a'), cluster.at('b')]
  const never = new Promise<void>(() => {})
  await cluster.store.watch({ load() {}, apply: () => void (b.gate = never) })
  void b.leases.end(lease.id)
  await settle()
  assert.deepEqual(sizes(cluster), [1_000])
  for (const { leases } of [a, b]) await assert.rejects(leases.renew(lease.id), { code: 'lease_not_found' })
  const late = { namespace: 'default', service: 'stock', id: 'late' }
  const spec = { host: '10.0.0.1', port: 1, lease: lease.id }
  await assert.rejects(
    cluster.store.transact((tx) => registerNode(tx, a.leases, late, spec, 'test')),
    { code: 'lease_not_found' },
  )
  a.leases.heard([lease.id], 'b')
  a.leases.touch(lease.id)
  // Not at once: most likely its author is about to.
  await cluster.clock.advance(4_500)
  assert.deepEqual(sizes(cluster), [1_000])
  await cluster.clock.advance(1_000)
  assert.deepEqual(sizes(cluster), [1_000, 500])
})

test('a mass expiry is of some hundred leases and about a thousand nodes at once', async (context) => {
  const cluster = await start(context, 'a')
  for (let index = 0; index < 1_200; index++) {
    const lease = await cluster.registrant('a', `n${index}`, TTL_MS, 'host')
    if (index < 300) for (const more of ['x', 'y', 'z']) await cluster.register('a', lease, `n${index}${more}`, 'host')
  }
  cluster.seen.length = 0
  await cluster.clock.advance(TTL_MS + 500)
  assert.equal(cluster.at('a').leases.status().active, 0)
  assert.equal(
    sizes(cluster).reduce((sum, size) => sum + size),
    2_100,
  )
  for (const { leases } of cluster.seen) assert.ok(leases.removed.length <= 500)
  for (const size of sizes(cluster)) assert.ok(size <= 1_000)
  assert.ok(cluster.seen.length <= 4, `${cluster.seen.length} transactions`)
})

/** What may happen to replicas between two renewals. The first replica of the three is never touched. */
const event = fc.record({
  what: fc.constantFrom('kill', 'cut', 'heal', 'nothing', 'nothing'),
  which: fc.constantFrom('b', 'c'),
  afterMs: fc.integer({ min: 100, max: 4_300 }),
  /** Where each registrant turns to first. */
  first: fc.array(fc.constantFrom('a', 'b', 'c'), { minLength: 4, maxLength: 4 }),
})

test('whatever happens to replicas, a registrant that finds one to renew at keeps its lease', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(event, { minLength: 5, maxLength: 40 }), async (events) => {
      const cluster = await LeaseCluster.start('a b c')
      try {
        const leases: Lease[] = []
        for (const at of ['a', 'b', 'c', 'a']) leases.push(await cluster.registrant(at, `n${leases.length}`, TTL_MS))
        let born = 0
        const named = new Map(['a', 'b', 'c'].map((name) => [name, name]))
        const renewAll = async (first: (index: number) => string) => {
          for (const [index, { id }] of leases.entries()) {
            const codes: unknown[] = []
            for (const name of [first(index), 'a', 'b', 'c']) {
              const outcome = await cluster
                .at(named.get(name)!)
                .leases.renew(id)
                .catch((error: { code?: string }) => error)
              if ('id' in outcome) break
              codes.push(outcome.code)
            }
            assert.ok(codes.length < 4 && codes.every((code) => code === 'store_unavailable'), String(codes))
          }
          assert.deepEqual(cluster.removals(), [])
        }
        for (const { what, which, afterMs, first } of events) {
          // What a replica has heard and not told yet dies with it, and is a renewal that was lost.
          await cluster.clock.advance(600)
          const member = cluster.at(named.get(which)!)
          if (what === 'kill') {
            cluster.kill(member.name)
            // Started again it is another one.
            const name = `${which}${++born}`
            named.set(which, name)
            await cluster.join(name)
          } else if (what === 'cut' && !member.isCut) member.cut()
          else if (what === 'heal' && member.isCut) member.heal()
          await cluster.clock.advance(afterMs)
          await renewAll((index) => first[index]!)
        }
        for (const member of cluster.members.values()) if (member.isRunning && member.isCut) member.heal()
        for (let round = 0; round < 4; round++) {
          await cluster.clock.advance(4_500)
          await renewAll(() => 'a')
        }
        await cluster.clock.advance(1_000)
        const total = counted(cluster).reduce((sum, count) => sum + count)
        assert.equal(total, leases.length, 'each is counted by one replica')
        // And when all registrants die, none of their leases outlives them.
        await cluster.clock.advance(TTL_MS + LATE_MS + 300_000 + LATE_MS)
        assert.equal(cluster.removals().length, leases.length)
      } finally {
        await cluster.close()
      }
    }),
    { numRuns: 60 },
  )
})
