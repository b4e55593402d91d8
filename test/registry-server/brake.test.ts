import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { decide, isQuiet, learn, unknownInterval, type Hold, type Voice } from '../../registry-server/src/brake.ts'
import type { Lease } from '../../registry-server/src/store/store.ts'
import { LeaseCluster, type ClusterOptions } from '../support/lease-cluster.ts'
import { seededRandom } from '../support/seeded-random.ts'

const TTL_MS = 9_000
const BEAT_MS = TTL_MS / 3
const HOLD_MS = 60_000

interface Known extends Voice {
  readonly host: string
}

/** A lease last heard at a time, of a registrant that renews every third of its ttl unless said otherwise. */
function voice(host: string, heardMs: number, how: { ttlMs?: number; intervalMs?: number } = {}): Known {
  const { ttlMs = TTL_MS, intervalMs = ttlMs / 3 } = how
  return { host, heardMs, ttlMs, intervalMs, deadlineMs: heardMs + ttlMs }
}

/** What is decided at a time on these leases, as their hosts. */
function decided(nowMs: number, voices: readonly Known[], holds: readonly Hold[] = []) {
  const { end, wait, hold, begun } = decide({
    nowMs,
    due: voices.filter(({ deadlineMs }) => deadlineMs <= nowMs),
    quiet: voices.filter((item) => isQuiet(item, nowMs)),
    hostOf: ({ host }) => host,
    heardMs: Math.max(...voices.map(({ heardMs }) => heardMs)),
    holds,
    holdMs: HOLD_MS,
  })
  const hosts = (items: readonly Known[]) => items.map(({ host }) => host).join()
  return { end: hosts(end), wait: hosts(wait), hold: hosts(hold.map((item) => item.voice)), begun }
}

test('three hosts that fell silent within one interval are held; two, or three at other times, are not', () => {
  const others = [voice('x', 9_000), voice('y', 8_000)]
  const three = decided(9_000, [voice('a', 0), voice('b', 500), voice('c', 900), ...others])
  assert.deepEqual([three.end, three.hold], ['', 'a'])
  assert.deepEqual(
    three.begun.map(({ reason, leases, hosts, untilMs }) => ({ reason, leases, hosts, untilMs })),
    [{ reason: 'partition', leases: 3, hosts: ['a', 'b', 'c'], untilMs: 69_000 }],
  )
  assert.equal(decided(9_000, [voice('a', 0), voice('b', 500), ...others]).end, 'a')
  assert.equal(decided(9_000, [voice('a', 0), voice('b', -4_500), voice('c', -4_600), ...others]).end, 'a,b,c')
})

test('one lease that runs out before others prove silent waits for them, but not for long', () => {
  const voices = [voice('a', 0), voice('b', 2_500), voice('c', 2_900), voice('x', 9_000)]
  assert.deepEqual(decided(9_000, voices), { end: '', wait: 'a', hold: '', begun: [] })
  assert.equal(decided(9_950, voices).hold, 'a')
  const returned = [voice('a', 0), voice('b', 2_500), voice('c', 9_800), voice('x', 9_000)]
  assert.equal(decided(9_900, returned).end, 'a')
  const slow = { ttlMs: 20_000, intervalMs: 4_400 }
  const undecided = [voice('a', 0), voice('b', 1_000, slow), voice('c', 1_000, slow)]
  assert.equal(decided(9_990, undecided).wait, 'a')
  assert.equal(decided(10_000, undecided).end, 'a')
})

test('when nobody was heard since, our own network is the likeliest cause', () => {
  const fallen = [voice('a', 0), voice('b', 500), voice('c', 900)]
  assert.equal(decided(9_000, fallen).begun[0]?.reason, 'silence')
  assert.equal(decided(9_000, [...fallen, voice('x', 8_000)]).begun[0]?.reason, 'partition')
})

test('those of the same moment join the hold that is in force, and end with it', () => {
  const fallen = [voice('a', 0), voice('b', 500), voice('c', 900)]
  const { begun } = decided(9_000, fallen)
  const later = decided(9_900, fallen.slice(1), begun)
  assert.deepEqual([later.hold, later.begun], ['b,c', []])
  assert.equal(decided(9_000 + HOLD_MS, fallen.slice(1), begun).end, 'b,c')
  assert.equal(decided(30_000, [voice('z', 20_000)], begun).end, 'z')
})

test('leases of one host are one cause, however many, and however many other hosts die at other times', () => {
  const many = Array.from({ length: 50 }, (_, index) => voice('a', index * 20))
  const elsewhen = [voice('b', -9_000), voice('c', -20_000), voice('d', -30_000)]
  const { end, hold } = decided(9_000 + 1_000, [...many, ...elsewhen, voice('x', 9_500)])
  assert.equal(hold, '')
  assert.equal(end.split(',').length, 53)
})

test('slow renewers, and fast ones, are silent by their own measure', () => {
  const slow = { ttlMs: 60_000, intervalMs: 20_000 }
  const quiet = [voice('s1', 1_000, slow), voice('s2', 1_500, slow), voice('s3', 2_000, slow)]
  assert.equal(decided(9_000, [voice('a', 0), ...quiet]).end, 'a')
  const lazy = { intervalMs: 0.8 * TTL_MS }
  assert.equal(decided(9_000, [voice('a', 0), voice('l1', 2_000, lazy), voice('l2', 2_100, lazy)]).end, 'a')
  // Two seconds of ttl leave no time for two intervals and a second.
  const short = { ttlMs: 2_000 }
  assert.equal(decided(2_000, [voice('a', 0, short), voice('b', 300, short), voice('c', 600, short)]).hold, 'a')
  // Half a ttl between renewals neither.
  const half = { intervalMs: TTL_MS / 2 }
  assert.equal(decided(9_000, [voice('a', 0, half), voice('b', 900, half), voice('c', 1_800, half)]).hold, 'a')
})

test('a usual interval is learned; bursts and outages are none', () => {
  const after = (gaps: number[]) => gaps.reduce((known, gap) => learn(known, gap, TTL_MS), unknownInterval(TTL_MS))
  assert.equal(Math.round(after(Array<number>(20).fill(7_000)) / 100), 70)
  assert.equal(Math.round(after(Array<number>(20).fill(1_500)) / 100), 15)
  assert.equal(after([10, 20, 0, 899, 9_001, 60_000]), BEAT_MS)
})

/** Registrants at one replica that renew as real ones do: about every third of the ttl, each in its own phase. */
async function start(context: TestContext, hosts: readonly string[], options: ClusterOptions = {}) {
  const cluster = await LeaseCluster.start('a', { holdMs: HOLD_MS, ...options })
  context.after(() => cluster.close())
  const { leases, log } = cluster.at('a')
  const random = seededRandom(7)
  const all: { readonly lease: Lease; readonly host: string; nextMs: number; speaks: boolean }[] = []
  for (const [index, host] of hosts.entries()) {
    const lease = await cluster.registrant('a', `n${index}`, TTL_MS, host)
    all.push({ lease, host, nextMs: random() * BEAT_MS, speaks: true })
  }
  const run = async (ms: number) => {
    for (let passed = 0; passed < ms; passed += 50) {
      for (const item of all) {
        if (!item.speaks || cluster.clock.now() < item.nextMs) continue
        await leases.renew(item.lease.id)
        item.nextMs = cluster.clock.now() + BEAT_MS * (0.9 + 0.1 * random())
      }
      await cluster.clock.advance(50)
    }
  }
  await run(10_000)
  const speak = (speaks: boolean, isMeant: (host: string) => boolean) => {
    for (const item of all) if (isMeant(item.host)) item.speaks = speaks
  }
  const hostsGone = () => new Set(cluster.removals().map((id) => hosts[Number(id.slice(1))]))
  return { cluster, leases, log, run, speak, hostsGone, all }
}

const HOSTS = Array.from({ length: 12 }, (_, index) => `host-${index}`)
const isCutOff = (host: string) => Number(host.slice(5)) < 3

test('three hosts cut off together are held, with a word on it, and released when they are back', async (context) => {
  for (let offset = 0; offset < 10; offset++) {
    const { leases, log, run, speak, hostsGone } = await start(context, offset % 2 === 0 ? HOSTS : [...HOSTS, ...HOSTS])
    const cutOff = offset % 2 === 0 ? 3 : 6
    await run(offset * 300)
    speak(false, isCutOff)
    await run(30_000)
    assert.deepEqual([...hostsGone()], [], `cut off after ${offset}`)
    assert.deepEqual(leases.status().holds, { partition: 1, silence: 0, store: 0 })
    assert.equal(leases.status().held, cutOff)
    const said = log.lines.filter(({ message }) => message.includes('fell silent together'))
    assert.equal(said.length, 1)
    const fields = said[0]?.fields as Record<string, unknown>
    assert.equal(fields.hostCount, 3)
    assert.deepEqual([...(fields.hosts as string[])].sort(), HOSTS.slice(0, 3))
    assert.match(`${String(fields.silentSince)} ${String(fields.until)}`, /^2026-01-01T00:00:.* 2026-01-01T00:01:/)
    speak(true, isCutOff)
    await run(1_000)
    assert.equal(leases.status().held, 0)
    await run(30_000)
    assert.deepEqual([...hostsGone()], [])
    assert.deepEqual(log.of('info', 'are back').at(-1), `${cutOff} of ${cutOff} held leases are back`)
    assert.ok(log.of('info', 'are back').length <= 2)
  }
})

test('held leases that do not come back end when the time of the hold is over', async (context) => {
  const { leases, log, run, speak, hostsGone, cluster } = await start(context, HOSTS)
  speak(false, isCutOff)
  await run(TTL_MS + HOLD_MS - 4_000)
  assert.deepEqual([...hostsGone()], [])
  // All at once, also the one that ran out last.
  cluster.seen.length = 0
  await run(8_000)
  assert.deepEqual([...hostsGone()].sort(), HOSTS.slice(0, 3))
  assert.equal(cluster.seen.length, 1)
  assert.equal(log.of('warn', 'held long enough').length, 1)
  assert.deepEqual([leases.status().held, leases.status().expired, leases.status().holds.partition], [0, 3, 1])
})

test('a held lease ends at once when its owner says so', async (context) => {
  const { leases, run, speak, cluster, all } = await start(context, HOSTS)
  speak(false, isCutOff)
  await run(TTL_MS + 2_000)
  await leases.end(all[0]!.lease.id)
  assert.deepEqual(cluster.removals(), ['n0'])
  assert.equal(leases.status().held, 2)
})

test('nobody heard at all is held as silence of our own', async (context) => {
  const { leases, log, run, speak, hostsGone } = await start(context, HOSTS)
  speak(false, () => true)
  await run(30_000)
  assert.deepEqual([...hostsGone()], [])
  assert.deepEqual(leases.status().holds, { partition: 0, silence: 1, store: 0 })
  assert.equal(log.of('warn', 'nobody is heard').length, 1)
})

test('one host that dies with its fifty registrants, and two hosts that do, are gone in time', async (context) => {
  const hosts = [...Array<string>(50).fill('host-0'), ...HOSTS.slice(1)]
  for (const isDead of [
    (host: string) => host === 'host-0',
    (host: string) => host === 'host-0' || host === 'host-1',
  ]) {
    const { leases, run, speak, hostsGone } = await start(context, hosts)
    speak(false, isDead)
    await run(TTL_MS + 2_000)
    assert.deepEqual([...hostsGone()].sort(), hosts.filter((host, index) => isDead(host) && index > 48).sort())
    assert.equal(leases.status().held, 0)
  }
})

test('one registrant that dies is gone in time, whatever hosts it speaks for', async (context) => {
  const { cluster, leases, run, speak, all } = await start(context, HOSTS)
  for (const host of ['x', 'y', 'z']) await cluster.register('a', all[5]!.lease, host)
  speak(false, (host) => host === 'host-5')
  await run(TTL_MS + 2_000)
  assert.deepEqual(cluster.removals().sort(), ['n5', 'x', 'y', 'z'])
  assert.equal(leases.status().held, 0)
})

test('hosts that die one by one are not held', async (context) => {
  const { leases, run, speak, hostsGone } = await start(context, HOSTS)
  for (const dead of HOSTS.slice(0, 5)) {
    speak(false, (host) => host === dead)
    await run(2 * BEAT_MS + 1_500)
  }
  await run(TTL_MS + 2_000)
  assert.deepEqual([...hostsGone()], HOSTS.slice(0, 5))
  assert.deepEqual(leases.status().holds, { partition: 0, silence: 0, store: 0 })
})

test('leases without nodes end, and are no sign of anything', async (context) => {
  const { leases, run, speak, hostsGone } = await start(context, HOSTS)
  // As processes leave them behind that were killed, and came back with new ones.
  for (const owner of ['p', 'q', 'r']) await leases.grant(TTL_MS, owner)
  speak(false, (id) => id === HOSTS[0])
  await run(TTL_MS + 2_000)
  assert.deepEqual([...hostsGone()], [HOSTS[0]])
  assert.equal(leases.status().held, 0)
})

test('without a time to hold, all end', async (context) => {
  const { leases, run, speak, hostsGone } = await start(context, HOSTS, { holdMs: 0 })
  speak(false, isCutOff)
  await run(TTL_MS + 2_000)
  assert.deepEqual([...hostsGone()].sort(), HOSTS.slice(0, 3))
  assert.deepEqual(leases.status().holds, { partition: 0, silence: 0, store: 0 })
})
