/** Who is there, as the replicas of one etcd see it of each other. */

import assert from 'node:assert/strict'
import { after, test, type TestContext } from 'node:test'
import type { EtcdStore } from '../../../registry-server/src/store/etcd/etcd-store.ts'
import type { ReplicasListener } from '../../../registry-server/src/store/store.ts'
import { startEtcd, withoutEtcd } from '../../support/etcd.ts'
import { checkAgreement, cut, freshPrefix, Ledger, openRecorded, openThroughProxy, until } from './support.ts'

const skip = await withoutEtcd()
const member = skip ? undefined! : await startEtcd({ after })

class Heard implements ReplicasListener {
  readonly leases: string[] = []
  changes = 0

  membersChanged(): void {
    this.changes++
  }

  heard(leases: readonly string[], at: string): void {
    this.leases.push(...leases.map((lease) => `${lease} at ${at}`))
  }
}

function listenTo({ replicas }: EtcdStore): Heard {
  const heard = new Heard()
  replicas.listen(heard)
  return heard
}

const see = (one: EtcdStore, other: EtcdStore) => one.replicas.isAlive(other.replicas.self)
const sees = (one: EtcdStore, other: EtcdStore) => until(() => see(one, other), 'it sees the other')

async function openPair(context: TestContext, prefix: string) {
  const one = await openThroughProxy(context, member, prefix, { name: 'one' })
  const other = await openRecorded(context, [member.endpoint], prefix, { name: 'other' })
  await sees(one.store, other.store)
  await sees(other.store, one.store)
  return { one, other }
}

test('replicas know each other by name, and one that leaves is gone at once', { skip }, async (context) => {
  const prefix = freshPrefix()
  const { one, other } = await openPair(context, prefix)
  const names = (store: EtcdStore) => store.replicas.list().map(({ name }) => name)
  assert.deepEqual(names(one.store), ['one', 'other'])
  assert.deepEqual(names(other.store), ['other', 'one'])
  const heard = listenTo(other.store)
  const startMs = performance.now()
  await one.store.close()
  await until(() => !see(other.store, one.store), 'it is gone')
  assert.ok(performance.now() - startMs < 2_000)
  assert.ok(heard.changes > 0)
  assert.equal(see(one.store, one.store), false)
  assert.deepEqual(names(other.store), ['other'])
  assert.deepEqual(await member.gateway.keys(`${prefix}feed/replica/`), [
    `${prefix}feed/replica/${other.store.replicas.self}`,
  ])
})

test('what one hears reaches the others, and not itself', { skip }, async (context) => {
  const prefix = freshPrefix()
  const { one, other } = await openPair(context, prefix)
  const [heardAtOne, heardAtOther] = [listenTo(one.store), listenTo(other.store)]
  for (let round = 0; round < 3; round++) for (const lease of ['a', 'b']) one.store.replicas.tell(`${lease}${round}`)
  await until(() => heardAtOther.leases.length === 6, 'it is told')
  assert.deepEqual(heardAtOther.leases[0], `a0 at ${one.store.replicas.self}`)
  await cut(one.proxy)
  await until(() => one.store.status().ageMs > 0, 'it is cut off')
  one.store.replicas.tell('late')
  one.proxy.restore()
  // Once more, where the answer to the first time was lost.
  await until(() => heardAtOther.leases.includes(`late at ${one.store.replicas.self}`), 'it is told in the end')
  assert.deepEqual(heardAtOne.leases, [])

  // And the other way round: told while one was not there to hear it.
  await cut(one.proxy)
  other.store.replicas.tell('missed')
  await until(async () => (await other.store.sync(), true), 'the other one works')
  await until(
    async () => (await member.gateway.get(`${prefix}feed/heard/${other.store.replicas.self}`)) === '["missed"]',
    'it is told',
  )
  assert.deepEqual(heardAtOne.leases, [])
  one.proxy.restore()
  await until(() => heardAtOne.leases.length > 0, 'it hears of it when it is back')
  assert.deepEqual(heardAtOne.leases, [`missed at ${other.store.replicas.self}`])
})

test('one that is cut off takes itself for gone before the others do, and comes back', { skip }, async (context) => {
  const prefix = freshPrefix()
  const { one, other } = await openPair(context, prefix)
  const [heardAtOne, heardAtOther] = [listenTo(one.store), listenTo(other.store)]
  await cut(one.proxy)
  const cutMs = performance.now()
  await until(() => !see(one.store, one.store), 'it gives itself up')
  const gaveUpMs = performance.now()
  assert.equal(see(other.store, one.store), true)
  assert.deepEqual(
    one.store.replicas.list().map(({ name }) => name),
    ['other'],
  )
  await until(() => heardAtOne.changes > 0, 'its listeners hear of it')
  await until(() => !see(other.store, one.store), 'the other gives it up')
  const goneMs = performance.now()
  const ms = [gaveUpMs, goneMs].map((at) => Math.round(at - cutMs))
  context.diagnostic(`gave itself up after ${ms[0]} ms; given up after ${ms[1]} ms`)
  const before = heardAtOther.changes
  one.proxy.restore()
  await until(() => see(one.store, one.store), 'it is back')
  await sees(other.store, one.store)
  assert.equal(heardAtOther.changes, before + 1)
  await checkAgreement({ followers: [one, other], gateway: member.gateway, endpoints: [member.endpoint], prefix })
})

test('one whose key is taken away joins again', { skip }, async (context) => {
  const prefix = freshPrefix()
  const { one, other } = await openPair(context, prefix)
  const key = `${prefix}feed/replica/${one.store.replicas.self}`
  const heard = listenTo(other.store)
  await member.gateway.delete(key)
  await until(() => heard.changes >= 2, 'it went and came')
  await until(() => see(one.store, one.store) && see(other.store, one.store), 'it is back')
  // Also while it is cut off, with its lease alive.
  await cut(one.proxy)
  await member.gateway.delete(key)
  one.proxy.restore()
  await until(async () => (await member.gateway.get(key)) !== undefined, 'its key is there')
  await until(() => see(one.store, one.store) && see(other.store, one.store), 'it is back')
  const [entry] = await member.gateway.entries(key)
  await one.store.close()
  assert.equal((await member.gateway.leases()).includes(entry!.lease), false)
})

test(
  'joining that is broken off leaves it neither unseen nor with a key that nobody renews',
  { skip },
  async (context) => {
    const prefix = freshPrefix()
    const { one, other } = await openPair(context, prefix)
    const key = `${prefix}feed/replica/${one.store.replicas.self}`
    for (const bytes of [400, 700, 1_000, 1_300, 1_600]) {
      await cut(one.proxy)
      await member.gateway.delete(key)
      const until1 = one.proxy.bytes.up + bytes
      one.proxy.restore()
      // Somewhere between catching up and having joined, each time a little later.
      await until(() => one.proxy.bytes.up >= until1, 'it is about to join')
      await cut(one.proxy)
      one.proxy.restore()
      await until(async () => (await member.gateway.get(key)) !== undefined, 'its key is there')
      await until(() => see(one.store, one.store) && see(other.store, one.store), 'it is back')
    }
    const heard = listenTo(other.store)
    const [before] = await member.gateway.entries(key)
    const startMs = performance.now()
    // The leases of broken tries run out meanwhile.
    await until(async () => (await member.gateway.leases()).length <= 2, 'only those that are renewed are left')
    context.diagnostic(`the other leases ran out in ${Math.round(performance.now() - startMs)} ms`)
    assert.equal(heard.changes, 0)
    assert.deepEqual(await member.gateway.entries(key), [before])
  },
)

test('etcd starts anew, and nobody looks dead', { skip }, async (context) => {
  const prefix = freshPrefix()
  const { one, other } = await openPair(context, prefix)
  const heard = [listenTo(one.store), listenTo(other.store)]
  const ledger = new Ledger()
  await ledger.write(one.store)
  await member.kill()
  await until(() => one.store.status().ageMs > 0 && other.store.status().ageMs > 0, 'both know')
  await member.start()
  await until(() => [one, other].every(({ store }) => store.status().ageMs === 0), 'both follow again')
  await until(() => ledger.write(other.store), 'it writes again')
  await one.store.sync()
  assert.deepEqual(
    heard.map(({ changes }) => changes),
    [0, 0],
  )
  assert.ok(see(one.store, other.store) && see(other.store, one.store) && see(one.store, one.store))
  const { gateway, endpoint } = member
  await checkAgreement({ followers: [one, other], ledgers: [ledger], gateway, endpoints: [endpoint], prefix })
})
