import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import { systemNetwork } from '../../registry-client/src/network.ts'
import { OutageProbes } from '../../registry-client/src/selection/outage-probes.ts'
import { Selector } from '../../registry-client/src/selection/selector.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { nodeOf, viewOf } from '../support/sample-views.ts'
import { seededRandom } from '../support/seeded-random.ts'

/** A host per node, so that its address tells which it is. */
function viewWith(ids: readonly string[], revision = 1, service = 'stock') {
  return viewOf(
    `e:${revision}`,
    ids.map((id) => nodeOf(id, { host: id })),
    { service },
  )
}

function idsUpTo(count: number): string[] {
  return Array.from({ length: count }, (_, at) => `n${at}`)
}

interface Sent {
  readonly host: string
  readonly atMs: number
}

/** One client that has lost its registry, or will. */
class Host {
  readonly clock: ManualClock
  readonly log = new MemoryLog()
  readonly sent: Sent[] = []
  readonly selectors = new Map<string, Selector>()
  readonly probes: OutageProbes
  /** What an address answers; undefined: nothing until the signal aborts. */
  answer: (host: string) => 'ok' | 'failed' | 'ignored' | undefined = () => 'ok'
  running = 0
  mostRunning = 0

  constructor(services: Record<string, readonly string[]>, seed = 1, clock = new ManualClock()) {
    this.clock = clock
    const random = seededRandom(seed)
    for (const [key, ids] of Object.entries(services)) {
      const selector = new Selector(key, clock, random)
      selector.update(viewWith(ids, 1, key))
      this.selectors.set(key, selector)
    }
    this.probes = new OutageProbes({
      services: () => [...this.selectors].map(([key, selector]) => ({ key, selector })),
      network: { probe: (host, _port, signal) => this.#probe(host, signal) },
      clock,
      random,
      log: this.log,
    })
  }

  async #probe(host: string, signal: AbortSignal): Promise<'ok' | 'failed' | 'ignored'> {
    this.sent.push({ host, atMs: this.clock.now() })
    this.mostRunning = Math.max(this.mostRunning, ++this.running)
    const outcome = this.answer(host)
    if (outcome === undefined)
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
    this.running--
    return outcome ?? 'failed'
  }

  get selector(): Selector {
    return this.selectors.values().next().value!
  }

  /** Nodes that take their turns. */
  inTurn(): string[] {
    const ids = new Set<string>()
    for (let at = 0; at < 2 * this.selector.report().length; at++) {
      const pick = this.selector.pick()
      pick.done('ignored')
      ids.add(pick.node.id)
    }
    return [...ids].sort()
  }
}

describe('probes', () => {
  test('begin some while after the registry was lost, and end as soon as it is back', async () => {
    for (let seed = 1; seed <= 20; seed++) {
      const host = new Host({ stock: idsUpTo(10) }, seed)
      host.probes.reachable(false)
      await host.clock.advance(4_999)
      assert.equal(host.sent.length, 0)
      await host.clock.advance(60_000)
      assert.ok(host.sent.length > 0)
      assert.ok(host.sent[0]!.atMs <= 20_000)
      host.answer = () => undefined
      await host.clock.advance(3_000)
      assert.ok(host.running > 0)
      host.probes.reachable(true)
      await settle()
      const { length } = host.sent
      assert.deepEqual([host.running, host.clock.pending, host.probes.status().nodes], [0, 0, 0], `seed ${seed}`)
      await host.clock.advance(600_000)
      assert.equal(host.sent.length, length)
      // What was under way says nothing: it was cut off.
      for (const { failures, ejectedForMs } of host.selector.report())
        assert.deepEqual([failures, ejectedForMs], [0, 0])
    }
  })

  test('do not begin over a registry that comes back at once, nor again while it stays away', async () => {
    const host = new Host({ stock: idsUpTo(10) })
    for (let at = 0; at < 100; at++) {
      host.probes.reachable(false)
      await host.clock.advance(4_000)
      host.probes.reachable(true)
    }
    assert.deepEqual([host.sent.length, host.clock.pending], [0, 0])
    host.probes.reachable(false)
    host.probes.reachable(false)
    assert.equal(host.clock.pending, 1)
  })

  test('take out a node that does not answer three times, keep it out, and bring it back when it does', async () => {
    const host = new Host({ stock: idsUpTo(10) })
    host.answer = (id) => (id === 'n3' ? 'failed' : 'ok')
    host.probes.reachable(false)
    const asked = () => host.sent.filter((probe) => probe.host === 'n3').length
    while (asked() < 2) await host.clock.advance(100)
    assert.ok(host.inTurn().includes('n3'))
    while (asked() < 3) await host.clock.advance(100)
    assert.ok(host.clock.now() < 90_000)
    assert.deepEqual(
      host.inTurn(),
      idsUpTo(10).filter((id) => id !== 'n3'),
    )
    // Its own time would be over after 30 s.
    for (let second = 0; second < 600; second++) {
      await host.clock.advance(1_000)
      assert.equal(host.inTurn().includes('n3'), false)
    }
    host.answer = () => 'ok'
    await host.clock.advance(30_000)
    assert.deepEqual(host.inTurn(), idsUpTo(10))
  })

  test('bring a node back on trial: one failed call, and it is out again', async () => {
    const host = new Host({ stock: idsUpTo(4) })
    host.probes.reachable(false)
    const fail = () => {
      for (;;) {
        const pick = host.selector.pick()
        pick.done(pick.node.id === 'n0' ? 'failed' : 'ignored')
        if (pick.node.id === 'n0') return
      }
    }
    for (let call = 0; call < 3; call++) fail()
    assert.equal(host.inTurn().includes('n0'), false)
    while (!host.inTurn().includes('n0')) await host.clock.advance(100)
    assert.ok(host.clock.now() < 30_000, 'by the probe, not by its time')
    fail()
    assert.equal(host.inTurn().includes('n0'), false)
  })

  test('leave its time to a node that they put out, once the registry is back', async () => {
    const host = new Host({ stock: idsUpTo(4) })
    host.answer = (id) => (id === 'n0' ? 'failed' : 'ok')
    host.probes.reachable(false)
    await host.clock.advance(300_000)
    host.probes.reachable(true)
    assert.equal(host.inTurn().includes('n0'), false)
    await host.clock.advance(45_000)
    assert.deepEqual(host.inTurn(), idsUpTo(4))
    assert.equal(host.clock.pending, 0)
  })

  test('are not believed while most nodes look dead, which is counted, and said once', async () => {
    const host = new Host({ stock: idsUpTo(9) })
    const dead = new Set(['n0', 'n1', 'n2', 'n3'])
    host.answer = (id) => (dead.has(id) ? 'failed' : 'ok')
    host.probes.reachable(false)
    await host.clock.advance(120_000)
    assert.deepEqual(host.inTurn(), ['n4', 'n5', 'n6', 'n7', 'n8'])
    dead.add('n4')
    await host.clock.advance(25_000)
    assert.deepEqual(host.inTurn(), ['n4', 'n5', 'n6', 'n7', 'n8'], 'it may have been one lost packet')
    while (host.probes.status().disbelieved === 0) await host.clock.advance(100)
    assert.ok(host.clock.now() < 210_000)
    assert.deepEqual(host.inTurn(), idsUpTo(9), 'half of them would be left with twice the load')
    assert.deepEqual(host.probes.status().disbelievedServices, ['stock'])
    dead.delete('n4')
    await host.clock.advance(120_000)
    assert.deepEqual(host.inTurn(), ['n4', 'n5', 'n6', 'n7', 'n8'])
    for (const id of idsUpTo(9)) dead.add(id)
    await host.clock.advance(120_000)
    assert.deepEqual(host.inTurn(), idsUpTo(9))
    assert.equal(host.probes.status().disbelieved, 2)
    assert.equal(host.log.lines.length, 1)
  })

  test('bring nobody back over one lost packet where half of the nodes are dead', async () => {
    for (let seed = 1; seed <= 20; seed++) {
      const host = new Host({ stock: idsUpTo(10) }, seed)
      const living = ['n5', 'n6', 'n7', 'n8', 'n9']
      host.answer = (id) => (living.includes(id) ? 'ok' : 'failed')
      host.probes.reachable(false)
      await host.clock.advance(120_000)
      for (let lost = 0; lost < 20; lost++) {
        let left = 1
        host.answer = (id) => (living.includes(id) && left-- <= 0 ? 'ok' : 'failed')
        await host.clock.advance(60_000)
        assert.deepEqual(host.inTurn(), living, `seed ${seed}`)
      }
    }
  })

  test('are believed of one service while they are not of another', async () => {
    const host = new Host({ near: idsUpTo(6), far: ['f0', 'f1', 'f2'] })
    host.answer = (id) => (id.startsWith('f') || id === 'n1' ? 'failed' : 'ok')
    host.probes.reachable(false)
    await host.clock.advance(120_000)
    assert.deepEqual(host.inTurn(), ['n0', 'n2', 'n3', 'n4', 'n5'])
    assert.deepEqual(host.probes.status().disbelievedServices, ['far'])
    for (const { ejectedForMs } of host.selectors.get('far')!.report()) assert.equal(ejectedForMs, 0)
  })

  test('never put out the last node, nor ask one that is alone', async () => {
    const host = new Host({ stock: ['a', 'b'], alone: ['c'] })
    host.answer = (id) => (id === 'a' ? 'failed' : 'ok')
    host.probes.reachable(false)
    await host.clock.advance(120_000)
    assert.deepEqual(host.inTurn(), ['b'])
    host.answer = () => 'failed'
    await host.clock.advance(120_000)
    assert.deepEqual(host.inTurn(), ['a', 'b'])
    assert.equal(
      host.sent.some((probe) => probe.host === 'c'),
      false,
    )
  })

  test('spare nodes that have answered a call since', async () => {
    const host = new Host({ stock: idsUpTo(5) })
    host.probes.reachable(false)
    for (let second = 0; second < 300; second++) {
      await host.clock.advance(1_000)
      for (let call = 0; call < 5; call++) {
        const pick = host.selector.pick()
        pick.done(pick.node.id === 'n0' ? 'ignored' : 'ok')
      }
    }
    assert.deepEqual(new Set(host.sent.map((probe) => probe.host)), new Set(['n0']))
    assert.ok(host.probes.status().spared > 50)
  })

  test('say nothing where this host could not even try', async () => {
    const host = new Host({ stock: idsUpTo(5) })
    host.answer = () => 'ignored'
    host.probes.reachable(false)
    await host.clock.advance(300_000)
    assert.deepEqual(host.inTurn(), idsUpTo(5))
    assert.deepEqual([host.probes.status().disbelieved, host.probes.status().failed], [0, 0])
    assert.ok(host.sent.length > 50)
  })

  test('ask an address once for all services that have a node there', async () => {
    const host = new Host({ stock: idsUpTo(4), shop: idsUpTo(4) })
    host.answer = (id) => (id === 'n0' ? 'failed' : 'ok')
    host.probes.reachable(false)
    await host.clock.advance(120_000)
    assert.equal(host.probes.status().nodes, 4)
    for (const selector of host.selectors.values())
      assert.ok(selector.report().find(({ id }) => id === 'n0')!.ejectedForMs > 0)
  })

  test('ask at most 250 nodes of a service and 1,000 in all, 67 a second, 128 at a time, and each no oftener than it may', async () => {
    const many = (service: string, count: number) => idsUpTo(count).map((id) => `${service}-${id}`)
    const host = new Host({
      ...{ a: many('a', 3_000), b: many('b', 200), c: many('c', 250), d: many('d', 250) },
      ...{ e: many('e', 250), f: many('f', 250) },
    })
    host.answer = () => undefined
    host.probes.reachable(false)
    await host.clock.advance(120_000)
    assert.equal(host.probes.status().nodes, 1_000)
    assert.ok(host.mostRunning <= 128, `${host.mostRunning} at a time`)
    assert.ok(host.probes.status().crowded > 0)
    const inMinute = host.sent.filter(({ atMs }) => atMs >= 60_000).length
    assert.ok(inMinute <= 67 * 60 * 1.1, `${inMinute} in a minute`)
    const last = new Map<string, number>()
    for (const { host: address, atMs } of host.sent) {
      const gapMs = atMs - (last.get(address) ?? -Infinity)
      assert.ok(gapMs >= 7_500, `${address} again after ${gapMs} ms`)
      last.set(address, atMs)
    }
  })

  test('of clients that lose a registry together do not meet at a node', async (context) => {
    const clock = new ManualClock()
    const clients = Array.from({ length: 200 }, (_, at) => new Host({ stock: idsUpTo(10) }, at + 1, clock))
    for (const { probes } of clients) probes.reachable(false)
    await clock.advance(65_000)
    const perTenth = new Map<string, number>()
    for (const { sent } of clients)
      for (const { host, atMs } of sent) {
        const key = `${host} ${Math.floor(atMs / 100)}`
        perTenth.set(key, (perTenth.get(key) ?? 0) + 1)
      }
    const most = Math.max(...perTenth.values())
    context.diagnostic(`most connections to one node in 100 ms: ${most}; even would be ${(200 / 150).toFixed(1)}`)
    assert.ok(most <= 10, `${most} in 100 ms`)
    for (const { probes } of clients) probes.close()
    assert.equal(clock.pending, 0)
  })
})

test('through random outages and deaths the living are called, the dead are not for long, and no service is empty', async () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = seededRandom(seed)
    const below = (limit: number) => Math.floor(random() * limit)
    const ids = idsUpTo(2 + below(12))
    const host = new Host({ stock: ids }, seed + 500)
    const dead = new Set<string>()
    let isCut = false
    let loss = 0.02
    host.answer = (id) => (random() < loss ? undefined : isCut || dead.has(id) ? 'failed' : 'ok')
    const call = () => {
      const pick = host.selector.pick()
      pick.done(isCut || dead.has(pick.node.id) ? 'failed' : 'ok')
      return pick.node.id
    }
    for (let round = 0; round < 6; round++) {
      host.probes.reachable(false)
      for (let step = 0; step < 60; step++) {
        if (random() < 0.1) {
          const id = ids[below(ids.length)]!
          if (!dead.delete(id)) dead.add(id)
        }
        if (random() < 0.03) isCut = !isCut
        for (let calls = below(4); calls > 0; calls--) call()
        await host.clock.advance(below(10_000))
        assert.ok(host.clock.pending <= 4, `seed ${seed}`)
      }
      // It calms down: few are dead, and that shows within two minutes.
      isCut = false
      loss = 0
      dead.clear()
      const most = Math.floor((ids.length - 1) / 2)
      while (dead.size < Math.min(most, round)) dead.add(ids[below(ids.length)]!)
      const living = ids.filter((id) => !dead.has(id)).sort()
      await host.clock.advance(120_000)
      assert.deepEqual(host.inTurn(), living, `seed ${seed}, round ${round}`)
      for (let calls = 0; calls < 50; calls++) assert.equal(dead.has(call()), false, `seed ${seed}`)
      loss = 0.02
      host.probes.reachable(true)
      const { length } = host.sent
      // Those that calls had put out stay so for up to five minutes.
      await host.clock.advance(300_001)
      assert.equal(host.sent.length, length, `seed ${seed}: probes go on`)
      assert.equal(host.clock.pending, 0, `seed ${seed}: a timer is left`)
      assert.deepEqual(host.inTurn(), [...ids].sort(), `seed ${seed}: what the registry keeps is tried again`)
    }
  }
})

test('a probe connects, says nothing, and leaves', async () => {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const never = new AbortController().signal
  const heard = once(server, 'connection').then(async ([socket]: Socket[]) => {
    const chunks = await socket!.toArray()
    return Buffer.concat(chunks as Buffer[]).length
  })
  assert.equal(await systemNetwork.probe('127.0.0.1', port, never), 'ok')
  assert.equal(await heard, 0)
  assert.equal(await systemNetwork.probe('127.0.0.1', port, AbortSignal.abort()), 'failed')
  server.close()
  await once(server, 'close')
  assert.equal(await systemNetwork.probe('127.0.0.1', port, never), 'failed')
})
