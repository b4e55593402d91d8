/** Members of a cluster die and hang while two replicas write, and no acknowledged write is lost. */

import assert from 'node:assert/strict'
import { after, test, type TestContext } from 'node:test'
import { StoreUnavailable } from '../../../registry-server/src/store/store.ts'
import { pictureOf } from '../../store.contract.ts'
import { startEtcdCluster, withoutEtcd, type Member } from '../../support/etcd.ts'
import { checkAgreement, freshPrefix, Ledger, openRecorded, ref, until } from './support.ts'

const skip = await withoutEtcd()
const cluster = skip ? undefined! : await startEtcdCluster({ after })
/** As many writes show that it works. */
const SOME = 40

interface Fault {
  /** Which member it is about, and the one that the second replica is connected to. */
  readonly choose: () => Promise<readonly [victim: Member, other: Member]>
  readonly strike: (victim: Member) => void | Promise<void>
  readonly heal: (victim: Member) => void | Promise<void>
}

const follower = async (): Promise<readonly [Member, Member]> => {
  const [victim, other] = await cluster.followers()
  return [victim!, other!]
}
const leader = async (): Promise<readonly [Member, Member]> => {
  const [other] = await cluster.followers()
  return [await cluster.leader(), other!]
}
const kill = { strike: (victim: Member) => victim.kill(), heal: (victim: Member) => victim.start() }
const freeze = { strike: (victim: Member) => victim.freeze(), heal: (victim: Member) => victim.thaw() }

/** Both replicas write on; the first is connected to the victim, the second to another member. */
async function writeThrough(context: TestContext, { choose, strike, heal }: Fault): Promise<void> {
  await Promise.all(cluster.members.map((member) => member.untilHealthy()))
  const prefix = freshPrefix()
  const [victim, other] = await choose()
  const from = (first: Member) => [first, ...cluster.members.filter((member) => member !== first)]
  const endpoints = (first: Member) => from(first).map((member) => member.endpoint)
  const followers = [
    await openRecorded(context, endpoints(victim), prefix, { random: () => 0 }),
    await openRecorded(context, endpoints(other), prefix, { random: () => 0 }),
  ]
  const ledgers = followers.map(() => new Ledger())
  const stops = followers.map(({ store }, index) => ledgers[index]!.writeOn(context, store))
  const someMore = async (what: string) => {
    const before = ledgers.map(({ acknowledged }) => acknowledged.size)
    const wrote = (ledger: Ledger, index: number) => ledger.acknowledged.size >= before[index]! + SOME
    await until(() => ledgers.every(wrote), what)
  }
  await someMore('both write')
  for (const ledger of ledgers) ledger.resetStall()
  await strike(victim)
  await someMore('both write on')
  const stalls = ledgers.map(({ stallMs, failed }) => `${stallMs} ms, ${failed.size} refused`)
  context.diagnostic(`writes stood still: at the victim ${stalls[0]}; elsewhere ${stalls[1]}`)
  await heal(victim)
  await someMore('both write on after it is back')
  await Promise.all(stops.map((stop) => stop()))
  await victim.untilHealthy()
  await checkAgreement({ followers, ledgers, gateway: other.gateway, endpoints: cluster.endpoints, prefix })
}

test('a member is killed', { skip }, (context) => writeThrough(context, { choose: follower, ...kill }))
test('the leader is killed', { skip }, (context) => writeThrough(context, { choose: leader, ...kill }))
test('a member hangs, and comes to itself again', { skip }, (context) =>
  writeThrough(context, { choose: follower, ...freeze }),
)
test('the leader hangs, and comes to itself again', { skip }, (context) =>
  writeThrough(context, { choose: leader, ...freeze }),
)

test('the whole cluster is down: reads answer, writes are refused, and nothing is lost', { skip }, async (context) => {
  await Promise.all(cluster.members.map((member) => member.untilHealthy()))
  const prefix = freshPrefix()
  const { endpoints } = cluster
  const followers = [await openRecorded(context, endpoints, prefix), await openRecorded(context, endpoints, prefix)]
  const [{ store }] = followers as [(typeof followers)[0]]
  const ledger = new Ledger()
  const stops = followers.map((item) => ledger.writeOn(context, item.store))
  await until(() => ledger.acknowledged.size > SOME, 'both write')
  await cluster.killAll()
  await Promise.all(stops.map((stop) => stop()))
  assert.equal(store.status().pending, 0)
  await until(() => store.status().lost !== undefined, 'it says so')
  const { lost, ageMs } = store.status()
  assert.match(lost!, /^127\.0\.0\.1:\d+: .*refused/)
  assert.ok(ageMs >= 4_000, `${ageMs}`)
  context.diagnostic(`after ${Math.round(ageMs)} ms: ${lost}`)
  assert.ok(await store.read((state) => state.node(ref('n1', 'left'))))
  assert.ok((await pictureOf(store)).revision > SOME)
  const startMs = performance.now()
  await assert.rejects(
    store.transact(() => {}),
    StoreUnavailable,
  )
  await assert.rejects(store.sync(), StoreUnavailable)
  assert.ok(performance.now() - startMs < 100, 'refused at once')
  assert.ok(store.status().ageMs > ageMs)
  const downMs = performance.now()
  await cluster.startAll()
  const upMs = performance.now()
  ledger.resetStall()
  assert.equal(await until(() => ledger.write(store), 'it writes again').then(() => store.status().lost), undefined)
  context.diagnostic(
    `etcd took ${Math.round(upMs - downMs)} ms to start; written ${Math.round(performance.now() - upMs)} ms after`,
  )
  await until(() => store.status().ageMs === 0, 'it is current again')
  const [{ gateway }] = cluster.members as [Member]
  await checkAgreement({ followers, ledgers: [ledger], gateway, endpoints, prefix })
})

test(
  'what waits while etcd is away is refused once it has waited long enough, and not later',
  { skip },
  async (context) => {
    await Promise.all(cluster.members.map((member) => member.untilHealthy()))
    const prefix = freshPrefix()
    const { endpoints } = cluster
    const { store } = await openRecorded(context, endpoints, prefix)
    const ledger = new Ledger()
    await ledger.write(store)
    await cluster.killAll()
    const waits: number[] = []
    const write = async () => {
      const startMs = performance.now()
      assert.equal(await ledger.write(store), false)
      waits.push(performance.now() - startMs)
    }
    const writing: Promise<void>[] = []
    await until(() => {
      writing.push(write())
      return writing.length > 100
    }, 'several ask, one after the other')
    await Promise.all(writing)
    context.diagnostic(`refused after ${Math.round(Math.min(...waits))} to ${Math.round(Math.max(...waits))} ms`)
    assert.ok(Math.max(...waits) < 5_000)
    await cluster.startAll()
    const [{ gateway }] = cluster.members as [Member]
    await until(() => ledger.write(store), 'it writes again')
    const { recorder } = await openRecorded(context, endpoints, prefix)
    await checkAgreement({ followers: [{ store, recorder }], ledgers: [ledger], gateway, endpoints, prefix })
  },
)
