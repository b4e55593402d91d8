/** Three replicas on three members, everything between them broken at random, and nothing lost or told twice. */

import { after, test } from 'node:test'
import { startEtcdCluster, withoutEtcd, type Member } from '../../support/etcd.ts'
import { seededRandom } from '../../support/seeded-random.ts'
import type { TcpProxy } from '../../support/tcp-proxy.ts'
import { checkAgreement, cut, freshPrefix, Ledger, openProxy, openRecorded, until } from './support.ts'

const skip = await withoutEtcd()
/** So that an election takes less than a second. */
const timing = { heartbeatMs: 50, electionMs: 500 }
const cluster = skip ? undefined! : await startEtcdCluster({ after }, 3, { timing })
const CHAOS_MS = 18_000

test('whatever breaks, in whatever order', { skip }, async (context) => {
  const seed = Number(process.env.CHAOS_SEED ?? Date.now() % 1_000_000)
  context.diagnostic(`CHAOS_SEED=${seed}`)
  const random = seededRandom(seed)
  const between = (least: number, most: number) => least + Math.floor(random() * (most - least))
  const oneOf = <T>(items: readonly T[]): T => items[between(0, items.length)]!
  const pause = (ms: number) => {
    const endMs = performance.now() + ms
    return until(() => performance.now() >= endMs, 'time has passed')
  }

  const prefix = freshPrefix()
  // With a short one, whoever is cut off for a while is loaded anew.
  const options = { historyRevisions: oneOf([10_000, 100]) }
  const proxies: TcpProxy[] = []
  for (const member of cluster.members) proxies.push(await openProxy(context, member))
  const endpoints = proxies.map((proxy) => proxy.endpoint)
  const followers = []
  for (let index = 0; index < 3; index++)
    followers.push(await openRecorded(context, endpoints, prefix, { ...options, random: () => index / 3 }))
  const ledgers = followers.map(() => new Ledger())
  const stops = followers.map(({ store }, index) => ledgers[index]!.writeOn(context, store, 3))

  const heal = new Map<TcpProxy | Member, () => void | Promise<void>>()
  const isDown = () => cluster.members.some((member) => heal.has(member))
  const faults: Record<string, () => void | Promise<void>> = {
    async cut() {
      const proxy = oneOf(proxies)
      await cut(proxy)
      heal.set(proxy, () => proxy.restore())
    },
    async cutShortly() {
      const proxy = oneOf(proxies)
      await cut(proxy)
      if (!heal.has(proxy)) proxy.restore()
    },
    hold() {
      const proxy = oneOf(proxies)
      const direction = oneOf(['up', 'down', 'both'] as const)
      proxy.hold(direction)
      const isLost = random() < 0.5
      heal.set(proxy, async () => {
        if (isLost) await cut(proxy)
        proxy.release()
        proxy.restore()
      })
    },
    delay() {
      const proxy = oneOf(proxies)
      proxy.delay(between(1, 40))
      heal.set(proxy, () => {
        proxy.delay(0)
        proxy.restore()
      })
    },
    async kill() {
      if (isDown()) return
      const member = oneOf(cluster.members)
      await member.kill()
      heal.set(member, () => member.start({ wait: false }))
    },
    freeze() {
      if (isDown()) return
      const member = oneOf(cluster.members)
      member.freeze()
      heal.set(member, () => member.thaw())
    },
    async compact() {
      const { gateway } = cluster.members.find((member) => !heal.has(member))!
      // Without a majority it fails, and where nothing was written since.
      const compacted = gateway.revision().then((revision) => gateway.compact(revision))
      await compacted.catch(() => {})
    },
  }

  const done: string[] = []
  const endMs = performance.now() + CHAOS_MS
  while (performance.now() < endMs) {
    await pause(between(50, 900))
    if (heal.size > 0 && random() < 0.5) {
      const [broken, mend] = oneOf([...heal])
      heal.delete(broken)
      await mend()
    } else {
      const fault = oneOf(Object.keys(faults))
      done.push(fault)
      await faults[fault]!()
    }
  }
  for (const mend of heal.values()) await mend()
  for (const proxy of proxies) {
    proxy.release()
    proxy.restore()
    proxy.delay(0)
  }
  await Promise.all(cluster.members.map((member) => member.untilHealthy()))
  await Promise.all(stops.map((stop) => stop()))
  const sum = (count: (ledger: Ledger) => number) => ledgers.reduce((total, ledger) => total + count(ledger), 0)
  context.diagnostic(done.join(' '))
  context.diagnostic(
    `${sum(({ acknowledged }) => acknowledged.size)} acknowledged, ${sum(({ failed }) => failed.size)} refused, ` +
      `loaded ${followers.map(({ recorder }) => recorder.loads).join()}; ` +
      `longest stalls ${ledgers.map(({ stallMs }) => stallMs).join()} ms`,
  )
  const [{ gateway }] = cluster.members as [Member]
  await checkAgreement({ followers, ledgers, gateway, endpoints: cluster.endpoints, prefix, options })
})
