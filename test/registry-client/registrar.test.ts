import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RefusedError, type NodeRegistration } from '@holdfast/registry-client'
import { Connection } from '../../registry-client/src/registry/connection.ts'
import type { HttpAnswer } from '../../registry-client/src/network.ts'
import { Registrar } from '../../registry-client/src/registry/registrar.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { answer, problem, ScriptedNetwork, silence, type ScriptedCall } from '../support/scripted-network.ts'
import { seededRandom } from '../support/seeded-random.ts'

const TTL_MS = 15_000
const NODE: NodeRegistration = { service: 'stock', port: 8080 }

/** A registry of leases and nodes, as far as a registrant sees it. */
class TinyRegistry {
  readonly leases = new Set<string>()
  readonly nodes = new Map<string, Record<string, unknown>>()
  epoch = 'e1'
  down = false
  #leases = 0
  /** Answers instead of the registry. */
  instead: (call: ScriptedCall) => HttpAnswer | Promise<HttpAnswer> | undefined = () => undefined

  async answer(call: ScriptedCall): Promise<HttpAnswer> {
    const given = await this.#answer(call)
    return { ...given, header: (name) => (name === 'holdfast-cursor' ? `${this.epoch}:1` : given.header(name)) }
  }

  #answer(call: ScriptedCall): HttpAnswer | Promise<HttpAnswer> {
    if (this.down) throw new Error('connect ECONNREFUSED')
    const instead = this.instead(call)
    if (instead) return instead
    const url = new URL(call.url)
    const words = url.pathname.split('/').slice(2).map(decodeURIComponent)
    if (words[0] === 'leases') {
      if (words.length === 1) {
        const id = `L${++this.#leases}`
        this.leases.add(id)
        return answer(201, { id, ttl: call.json!.ttl })
      }
      const lease = words[1]!
      if (!this.leases.has(lease)) return problem(404, 'lease_not_found')
      if (call.method === 'DELETE') {
        this.forget(lease)
        return answer(204)
      }
      return answer(200, {})
    }
    const key = `${words[1]}/${words[3]}`
    const held = this.nodes.get(key)
    if (call.method === 'DELETE') {
      const query = url.searchParams
      if (held && query.has('incarnation') && query.get('incarnation') !== String(held.incarnation))
        return problem(409, 'stale_incarnation')
      if (held && query.has('lease') && query.get('lease') !== held.lease) return problem(409, 'stale_incarnation')
      this.nodes.delete(key)
      return answer(204)
    }
    const body = call.json!
    if (typeof body.lease !== 'string') throw new Error('registered without a lease: it would stay for ever')
    if (!this.leases.has(body.lease)) return problem(404, 'lease_not_found')
    if (held && (held.incarnation as number) > (body.incarnation as number))
      return problem(409, 'stale_incarnation', { incarnation: held.incarnation })
    this.nodes.set(key, body)
    return answer(held ? 200 : 201, {})
  }

  /** The lease ends, and its nodes with it. */
  forget(lease: string): void {
    this.leases.delete(lease)
    for (const [key, node] of this.nodes) if (node.lease === lease) this.nodes.delete(key)
  }

  /** @returns what brings the store back to what it is now, as another store */
  backup(): () => void {
    const [leases, nodes] = [[...this.leases], [...this.nodes]]
    return () => {
      this.epoch += 'x'
      this.leases.clear()
      this.nodes.clear()
      for (const id of leases) this.leases.add(id)
      for (const [key, node] of nodes) this.nodes.set(key, node)
    }
  }
}

function world(endpoints = ['http://registry:7400']) {
  const clock = new ManualClock()
  const network = new ScriptedNetwork()
  const registry = new TinyRegistry()
  const log = new MemoryLog()
  const random = seededRandom(7)
  network.respond = (call) => registry.answer(call)
  const connection = new Connection(
    { endpoints, network, clock, random, log },
    { event() {}, reachable() {}, held: () => ({}) },
  )
  const registrar = new Registrar({
    connection,
    clock,
    random,
    log,
    owner: 'test',
    namespace: 'default',
    zone: 'z1',
    ttlMs: TTL_MS,
    patienceMs: 3_000,
  })
  const asked = (method: string, part: string) =>
    network.calls.filter((call) => call.method === method && call.path.includes(part))
  return { clock, network, registry, registrar, log, asked }
}

describe('registering', () => {
  test('puts every node of the process under one lease', async () => {
    const { registrar, registry, asked } = world()
    const first = await registrar.register(NODE)
    const second = await registrar.register({ service: 'shop', port: 9090, id: 'shop-1', labels: { version: 'v1' } })
    assert.equal(first.state, 'registered')
    assert.equal(second.state, 'registered')
    assert.equal(asked('POST', '/v1/leases').length, 1)
    assert.deepEqual(asked('POST', '/v1/leases')[0]!.json, { ttl: '15000ms', owner: 'test' })
    const stored = registry.nodes.get('stock/127.0.0.1:8080')!
    assert.equal(stored.lease, 'L1')
    assert.equal(stored.zone, 'z1')
    assert.equal(registry.nodes.get('shop/shop-1')!.lease, 'L1')
    await registrar.close()
  })

  test('renews the lease at about a third of its ttl, in one request for all nodes', async () => {
    const { registrar, clock, asked } = world()
    await registrar.register(NODE)
    await registrar.register({ service: 'shop', port: 9090 })
    await clock.advance(TTL_MS * 10)
    const renewals = asked('POST', '/renew').length
    assert.ok(renewals >= 30 && renewals <= 34, `${renewals} renewals in ten times the ttl`)
    assert.equal(asked('PUT', '').length, 2)
    await registrar.close()
    assert.equal(clock.pending, 0)
  })

  test('an id from a host that begins with a colon is one that the registry takes', async () => {
    const { registrar } = world()
    const registration = await registrar.register({ ...NODE, host: '::1' })
    assert.match(registration.id, /^[A-Za-z0-9][A-Za-z0-9._:-]*$/)
    await registrar.close()
  })

  test('the same node twice is refused', async () => {
    const { registrar } = world()
    await registrar.register(NODE)
    await assert.rejects(registrar.register(NODE), /registered by this client already/)
    await registrar.close()
  })

  test('a node that the registry refuses is an error, and is not tried again', async () => {
    const { registrar, registry, clock, asked } = world()
    registry.instead = (call) =>
      call.method === 'PUT'
        ? problem(400, 'invalid_request', { errors: [{ path: 'port', message: 'is not for everyone' }] })
        : undefined
    await assert.rejects(registrar.register(NODE), (error) => {
      assert.ok(error instanceof RefusedError)
      assert.match(error.message, /port: is not for everyone/)
      return true
    })
    await clock.advance(60_000)
    assert.equal(asked('PUT', '').length, 1)
    assert.equal(registrar.registrations.length, 0)
    assert.equal(clock.pending, 0)
  })

  for (const status of [500, 503, 429])
    test(`an answer of ${status} is tried again`, async () => {
      const { registrar, registry, clock } = world()
      registry.instead = (call) => (call.method === 'PUT' ? problem(status, 'internal_error') : undefined)
      const registering = registrar.register(NODE)
      await clock.advance(3_000)
      const registration = await registering
      assert.equal(registration.state, 'pending')
      registry.instead = () => undefined
      await clock.advance(5_000)
      assert.equal(registration.state, 'registered')
      await registrar.close()
    })

  test('a node at which the registry fails does not hold up the others', async () => {
    const { registrar, registry, clock } = world()
    registry.instead = (call) => (call.path.includes('/stock/') ? problem(500, 'internal_error') : undefined)
    const poison = registrar.register(NODE)
    const sound = registrar.register({ service: 'shop', port: 9090 })
    assert.equal((await sound).state, 'registered')
    await clock.advance(TTL_MS * 4)
    await poison
    assert.ok(registry.nodes.has('shop/127.0.0.1:9090'))
    await registrar.close()
  })
})

describe('outage', () => {
  test('a registry that is down makes the registration pending, and it is made up for when it is back', async () => {
    const { registrar, registry, clock } = world()
    registry.down = true
    const registering = registrar.register(NODE)
    await clock.advance(2_999)
    let returned = false
    void registering.then(() => (returned = true))
    await settle()
    assert.equal(returned, false)
    await clock.advance(1)
    const registration = await registering
    assert.equal(registration.state, 'pending')
    await clock.advance(600_000)
    registry.down = false
    await clock.advance(5_000)
    assert.equal(registration.state, 'registered')
    await registrar.close()
  })

  test('retries are spread and few', async () => {
    const { registrar, registry, clock, network } = world()
    registry.down = true
    const registering = registrar.register(NODE)
    await clock.advance(600_000)
    await registering
    // The mean delay is half of the cap of 5 s.
    assert.ok(network.calls.length > 100 && network.calls.length < 500, `${network.calls.length} tries in 10 min`)
    await registrar.close()
  })

  test('a wait is cut short as soon as the registry is known to be back', async () => {
    const { registrar, registry, clock } = world()
    registry.down = true
    const registering = registrar.register(NODE)
    await clock.advance(300_000)
    const registration = await registering
    registry.down = false
    registrar.nudge()
    await settle()
    assert.equal(registration.state, 'registered')
    await registrar.close()
  })

  test('a registry that has forgotten the lease is given everything again at the next renewal', async () => {
    const { registrar, registry, clock } = world()
    await registrar.register(NODE)
    await registrar.register({ service: 'shop', port: 9090 })
    registry.forget('L1')
    await clock.advance(TTL_MS / 3)
    assert.deepEqual(
      [...registry.nodes.values()].map((node) => node.lease),
      ['L2', 'L2'],
    )
    await registrar.close()
  })

  test('a registry that comes back without the lease is given everything at once, not at the next renewal', async () => {
    const { registrar, registry } = world()
    await registrar.register(NODE)
    registry.forget('L1')
    registrar.nudge()
    await settle()
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080')?.lease, 'L2')
    await registrar.close()
  })

  test('a lease lost between its grant and the registration is replaced', async () => {
    const { registrar, registry } = world()
    let lost = false
    registry.instead = (call) => {
      if (call.method === 'PUT' && !lost) {
        lost = true
        registry.forget('L1')
      }
      return undefined
    }
    const registration = await registrar.register(NODE)
    assert.equal(registration.state, 'registered')
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080')!.lease, 'L2')
    await registrar.close()
  })

  test('replicas that disagree about the lease are not asked without pause', async () => {
    const { registrar, registry, clock, network } = world()
    registry.instead = (call) => (call.method === 'PUT' ? problem(404, 'lease_not_found') : undefined)
    const registering = registrar.register(NODE)
    await clock.advance(60_000)
    await registering
    assert.ok(network.calls.length < 120, `${network.calls.length} requests in a minute`)
    await registrar.close()
  })

  test('what answers without naming a lease gets no node', async () => {
    const { registrar, registry, clock, asked } = world()
    registry.instead = (call) => (call.path === '/v1/leases' ? answer(200, { welcome: 'home' }) : undefined)
    const registering = registrar.register(NODE)
    await clock.advance(30_000)
    assert.equal((await registering).state, 'pending')
    assert.equal(asked('PUT', '').length, 0)
    assert.ok(asked('POST', '').length < 60)
    await registrar.close()
  })
})

describe('incarnations', () => {
  test('a first registration that counts as old takes a higher incarnation', async () => {
    const { registrar, registry, clock } = world()
    const held = clock.wall() + 1_000_000
    registry.nodes.set('stock/127.0.0.1:8080', { incarnation: held, lease: 'other' })
    const registration = await registrar.register(NODE)
    assert.equal(registration.state, 'registered')
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080')!.incarnation, held + 1)
    await registrar.close()
  })

  test('a registered node that a newer instance has taken over is let go', async () => {
    const { registrar, registry, clock, asked } = world()
    const registration = await registrar.register(NODE)
    const newer = { incarnation: clock.wall() + 1, lease: 'other' }
    registry.nodes.set('stock/127.0.0.1:8080', newer)
    registry.leases.delete('L1')
    await clock.advance(TTL_MS)
    assert.equal(registration.state, 'superseded')
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080'), newer)
    const puts = asked('PUT', '').length
    await registration.close()
    await registration.update({ status: 'draining' })
    await clock.advance(TTL_MS * 3)
    assert.equal(asked('PUT', '').length, puts)
    assert.equal(asked('DELETE', '/nodes/').length, 0)
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080'), newer)
    assert.equal(clock.pending, 0)
  })

  test('they grow within a process, even while the clock stands or goes back', async () => {
    const { registrar, registry, clock } = world()
    const first = await registrar.register(NODE)
    const one = registry.nodes.get('stock/127.0.0.1:8080')!.incarnation as number
    await first.close()
    clock.turnWall(-86_400_000)
    await registrar.register(NODE)
    assert.ok((registry.nodes.get('stock/127.0.0.1:8080')!.incarnation as number) > one)
    await registrar.close()
  })
})

describe('updating', () => {
  test('tells the registry, under the same incarnation', async () => {
    const { registrar, registry } = world()
    const registration = await registrar.register(NODE)
    const { incarnation } = registry.nodes.get('stock/127.0.0.1:8080')!
    await registration.update({ status: 'draining', weight: 5 })
    const stored = registry.nodes.get('stock/127.0.0.1:8080')!
    assert.deepEqual([stored.status, stored.weight, stored.incarnation], ['draining', 5, incarnation])
    await registrar.close()
  })

  test('during an outage returns after a while, and arrives later', async () => {
    const { registrar, registry, clock } = world()
    const registration = await registrar.register(NODE)
    registry.down = true
    const updating = registration.update({ status: 'draining' })
    await clock.advance(3_000)
    await updating
    registry.down = false
    await clock.advance(5_000)
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080')!.status, 'draining')
    await registrar.close()
  })

  test('one that is refused is an error, and the node stays what it was', async () => {
    const { registrar, registry, clock } = world()
    const registration = await registrar.register({ ...NODE, labels: { version: 'v1' } })
    registry.instead = (call) =>
      (call.json?.labels as Record<string, string> | undefined)?.version === 'bad'
        ? problem(400, 'invalid_request')
        : undefined
    await assert.rejects(registration.update({ labels: { version: 'bad' } }), RefusedError)
    assert.equal(registration.state, 'registered')
    registry.forget('L1')
    await clock.advance(TTL_MS / 3)
    assert.deepEqual(registry.nodes.get('stock/127.0.0.1:8080')!.labels, { version: 'v1' })
    await registration.update({ status: 'draining' })
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080')!.status, 'draining')
    await registrar.close()
  })

  test('one while another is under way is not lost', async () => {
    const { registrar, registry } = world()
    const registration = await registrar.register(NODE)
    const updates = [1, 2, 3, 4, 5].map((weight) => registration.update({ weight }))
    await Promise.all(updates)
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080')!.weight, 5)
    await registrar.close()
  })

  test('of what is closed returns at once', async () => {
    const { registrar, clock } = world()
    const registration = await registrar.register(NODE)
    await registration.close()
    await registration.update({ weight: 1 })
    assert.equal(registration.state, 'closed')
    await settle()
    assert.equal(clock.pending, 0)
  })
})

describe('closing', () => {
  test('a registration takes its node out, fenced by incarnation and lease, and the last one ends the lease', async () => {
    const { registrar, registry, clock, asked } = world()
    const first = await registrar.register(NODE)
    const second = await registrar.register({ service: 'shop', port: 9090 })
    const { incarnation } = registry.nodes.get('stock/127.0.0.1:8080')!
    await first.close()
    assert.equal(first.state, 'closed')
    const { searchParams } = new URL(asked('DELETE', '/nodes/')[0]!.url)
    assert.equal(searchParams.get('incarnation'), String(incarnation))
    assert.equal(searchParams.get('lease'), 'L1')
    assert.deepEqual([...registry.nodes.keys()], ['shop/127.0.0.1:9090'])
    assert.equal(asked('DELETE', '/leases/').length, 0)
    await second.close()
    await settle()
    assert.equal(asked('DELETE', '/leases/L1').length, 1)
    assert.equal(clock.pending, 0)
  })

  test('during an outage it goes on trying to take the node out', async () => {
    const { registrar, registry, clock } = world()
    const staying = await registrar.register({ service: 'shop', port: 9090 })
    const registration = await registrar.register(NODE)
    registry.down = true
    const closing = registration.close()
    await clock.advance(3_000)
    await closing
    assert.notEqual(registration.state, 'closed')
    registry.down = false
    await clock.advance(5_000)
    assert.equal(registration.state, 'closed')
    assert.deepEqual([...registry.nodes.keys()], ['shop/127.0.0.1:9090'])
    assert.equal(staying.state, 'registered')
    await registrar.close()
  })

  for (const status of [500, 429])
    test(`an answer of ${status} to the deregistration is not taken for done, and the lease is renewed meanwhile`, async () => {
      const { registrar, registry, clock, asked } = world()
      await registrar.register({ service: 'shop', port: 9090 })
      const registration = await registrar.register(NODE)
      registry.instead = (call) =>
        call.path.includes('/nodes/') && call.method === 'DELETE' ? problem(status, 'internal_error') : undefined
      const closing = registration.close()
      await clock.advance(TTL_MS * 2)
      await closing
      assert.ok(asked('POST', '/renew').length >= 4)
      assert.ok(registry.nodes.has('stock/127.0.0.1:8080'))
      registry.instead = () => undefined
      await clock.advance(5_000)
      assert.equal(registration.state, 'closed')
      assert.deepEqual([...registry.nodes.keys()], ['shop/127.0.0.1:9090'])
      await registrar.close()
    })

  test('a node id that belongs to a newer instance by now is left alone', async () => {
    const { registrar, registry, clock } = world()
    const registration = await registrar.register(NODE)
    const newer = { incarnation: clock.wall() + 1, lease: 'other' }
    registry.nodes.set('stock/127.0.0.1:8080', newer)
    await registration.close()
    assert.equal(registration.state, 'closed')
    assert.equal(registry.nodes.get('stock/127.0.0.1:8080'), newer)
    await registrar.close()
  })

  test('the same node can be registered again while its removal waits for the registry', async () => {
    const { registrar, registry, clock } = world()
    const old = await registrar.register(NODE)
    registry.down = true
    const closing = old.close()
    const again = registrar.register(NODE)
    await clock.advance(3_000)
    await Promise.all([closing, again])
    registry.down = false
    await clock.advance(10_000)
    assert.equal(old.state, 'closed')
    assert.equal((await again).state, 'registered')
    assert.ok(registry.nodes.has('stock/127.0.0.1:8080'))
    await registrar.close()
  })

  test('the registrar ends the lease, and with it every node', async () => {
    const { registrar, registry, clock } = world()
    const registration = await registrar.register(NODE)
    await registrar.close()
    assert.equal(registry.leases.size, 0)
    assert.equal(registry.nodes.size, 0)
    assert.equal(registration.state, 'closed')
    assert.equal(clock.pending, 0)
  })

  test('gives up after a while when the registry does not answer', async () => {
    const { registrar, registry, clock, log } = world()
    await registrar.register(NODE)
    registry.instead = silence
    const closing = registrar.close()
    await clock.advance(3_000)
    await closing
    assert.equal(log.of('warn', 'will run out').length, 1)
    assert.equal(clock.pending, 0)
  })

  test('ends those that still wait to be registered', async () => {
    const { registrar, registry } = world()
    registry.down = true
    const registering = registrar.register(NODE)
    await settle()
    await registrar.close()
    assert.equal((await registering).state, 'closed')
    await assert.rejects(registrar.register(NODE), /closed/)
  })
})

test('waiting callers leave nothing behind in a long outage', async () => {
  const { registrar, registry, clock } = world()
  const registration = await registrar.register(NODE)
  registry.down = true
  for (let i = 0; i < 20; i++) {
    const updating = registration.update({ weight: i })
    await clock.advance(3_000)
    await updating
  }
  assert.deepEqual((registration as unknown as { settled: unknown[] }).settled, [])
  await registrar.close()
})

const KEY = 'stock/127.0.0.1:8080'
const OTHER = 'shop/127.0.0.1:9090'

/** Takes the next registrations of one service and does not answer them. @returns what arrives late, when it is called */
function freeze({ registry }: ReturnType<typeof world>, service = 'stock', times = 1) {
  const held: ScriptedCall[] = []
  registry.instead = (call) => {
    if (call.method !== 'PUT' || !call.path.includes(`/${service}/`) || held.length === times) return undefined
    held.push(call)
    return silence()
  }
  return {
    held,
    thaw: async () => {
      for (const call of held) await registry.answer(call)
    },
  }
}

/** @returns what to call for the longest time that a lease went without a renewal since */
function renewals({ network, clock }: ReturnType<typeof world>, lease: string): () => number {
  let [lastMs, longestMs] = [clock.now(), 0]
  const respond = network.respond
  network.respond = (call) => {
    if (call.path === `/v1/leases/${lease}/renew`) {
      longestMs = Math.max(longestMs, clock.now() - lastMs)
      lastMs = clock.now()
    }
    return respond(call)
  }
  return () => Math.max(longestMs, clock.now() - lastMs)
}

/** @returns nodes that were missing after any request */
function watchFor({ network, registry }: ReturnType<typeof world>, keys: readonly string[]): Set<string> {
  const missing = new Set<string>()
  const respond = network.respond
  network.respond = async (call) => {
    const answered = await respond(call)
    for (const key of keys) if (!registry.nodes.has(key)) missing.add(key)
    return answered
  }
  return missing
}

describe('a registration that arrives late', () => {
  test('does not undo a change that was acknowledged since', async () => {
    const it = world()
    const registration = await it.registrar.register(NODE)
    const late = freeze(it)
    const first = registration.update({ weight: 1 })
    await it.clock.advance(10_000)
    await first
    await registration.update({ weight: 2 })
    await late.thaw()
    assert.equal(late.held.length, 1)
    assert.equal(it.registry.nodes.get(KEY)!.weight, 2)
    await it.registrar.close()
  })

  test('nor when another endpoint has answered in the place of the one that has it', async () => {
    const it = world(['http://a:7400', 'http://b:7400'])
    const late = freeze(it)
    const registering = it.registrar.register({ ...NODE, weight: 1 })
    await it.clock.advance(6_000)
    const registration = await registering
    assert.equal(registration.state, 'registered')
    await registration.update({ weight: 2 })
    await late.thaw()
    assert.equal(late.held.length, 1)
    assert.equal(it.registry.nodes.get(KEY)!.weight, 2)
    await it.registrar.close()
  })

  test('nor a change that was refused since', async () => {
    const it = world()
    const registration = await it.registrar.register({ ...NODE, weight: 1 })
    const late = freeze(it)
    const first = registration.update({ weight: 2 })
    await it.clock.advance(3_000)
    await first
    it.registry.instead = (call) => (call.json?.weight === 3 ? problem(400, 'invalid_request') : undefined)
    const refused = assert.rejects(registration.update({ weight: 3 }), RefusedError)
    await it.clock.advance(10_000)
    await refused
    await late.thaw()
    assert.equal(late.held.length, 1)
    assert.equal(it.registry.nodes.get(KEY)!.weight, 1)
    await it.registrar.close()
  })

  test('outranks nothing, however often the same is said: a newer life of the node stays the newer', async () => {
    const it = world()
    const late = freeze(it, 'stock', 20)
    const started = it.clock.wall()
    const registering = it.registrar.register(NODE)
    await it.clock.advance(240_000)
    const registration = await registering
    assert.equal(late.held.length, 20)
    assert.equal(it.registry.nodes.get(KEY)!.incarnation, started)
    await registration.update({ weight: 2 })
    assert.equal(it.registry.nodes.get(KEY)!.incarnation, started + 1)
    await registration.update({ weight: 3 })
    assert.equal(it.registry.nodes.get(KEY)!.incarnation, started + 1)
    await it.registrar.close()
  })

  test('does not bring a node back that was deregistered since, and the others are there all the time', async () => {
    const it = world()
    const registration = await it.registrar.register(NODE)
    const staying = await it.registrar.register({ service: 'shop', port: 9090 })
    const late = freeze(it)
    const updating = registration.update({ weight: 1 })
    await it.clock.advance(10_000)
    await updating
    const missing = watchFor(it, [OTHER])
    await registration.close()
    assert.equal(registration.state, 'closed')
    await late.thaw()
    assert.equal(late.held.length, 1)
    assert.deepEqual([...it.registry.nodes.keys()], [OTHER])
    assert.deepEqual([...missing], [])
    assert.deepEqual([...it.registry.leases], ['L2'])
    assert.equal(it.registry.nodes.get(OTHER)!.lease, 'L2')
    assert.equal(staying.state, 'registered')
    await it.clock.advance(TTL_MS * 3)
    assert.equal(it.asked('POST', '/leases').filter(({ path }) => path === '/v1/leases').length, 2)
    await it.registrar.close()
  })

  test('nor when it was the only one', async () => {
    const it = world()
    const late = freeze(it)
    const registering = it.registrar.register(NODE)
    await it.clock.advance(10_000)
    const registration = await registering
    await registration.close()
    assert.equal(registration.state, 'closed')
    await late.thaw()
    assert.equal(late.held.length, 1)
    assert.equal(it.registry.nodes.size, 0)
    assert.equal(it.registry.leases.size, 0)
    assert.equal(it.clock.pending, 0)
  })

  test('nor does it count as deregistered before that is so', async () => {
    const it = world()
    await it.registrar.register({ service: 'shop', port: 9090 })
    const late = freeze(it)
    const registering = it.registrar.register(NODE)
    await it.clock.advance(10_000)
    const registration = await registering
    it.registry.instead = (call) =>
      call.method === 'DELETE' && call.path.includes('/leases/') ? problem(500, 'internal_error') : undefined
    const closing = registration.close()
    await it.clock.advance(3_000)
    await closing
    assert.notEqual(registration.state, 'closed')
    await late.thaw()
    it.registry.instead = () => undefined
    await it.clock.advance(6_000)
    assert.equal(registration.state, 'closed')
    assert.deepEqual([...it.registry.nodes.keys()], [OTHER])
    await it.registrar.close()
  })

  test('keeps no node there that leaves while the others cannot be taken over to another lease', async () => {
    const it = world()
    await it.registrar.register({ service: 'shop', port: 9090 })
    const registration = await it.registrar.register(NODE)
    const late = freeze(it, 'stock', 2)
    for (const weight of [1, 2]) {
      const updating = registration.update({ weight })
      await it.clock.advance(5_000)
      await updating
    }
    assert.equal(late.held.length, 2)
    it.registry.instead = (call) => (call.method === 'PUT' ? problem(500, 'internal_error') : undefined)
    const closing = registration.close()
    await it.clock.advance(5_000)
    await closing
    assert.deepEqual([...it.registry.nodes.keys()], [OTHER])
    assert.notEqual(registration.state, 'closed')
    it.registry.instead = () => undefined
    await it.clock.advance(6_000)
    await late.thaw()
    assert.equal(registration.state, 'closed')
    assert.deepEqual([...it.registry.nodes.keys()], [OTHER])
    await it.registrar.close()
  })

  test('does not take its own next life along', async () => {
    const it = world()
    await it.registrar.register({ service: 'shop', port: 9090 })
    const registration = await it.registrar.register(NODE)
    const late = freeze(it)
    const updating = registration.update({ weight: 1 })
    await it.clock.advance(10_000)
    await updating
    const closing = registration.close()
    const again = await it.registrar.register({ ...NODE, weight: 7 })
    await closing
    await late.thaw()
    for (const call of it.asked('DELETE', '/nodes/')) await it.registry.answer(call)
    assert.equal(late.held.length, 1)
    assert.deepEqual([registration.state, again.state], ['closed', 'registered'])
    assert.equal(it.registry.nodes.get(KEY)!.weight, 7)
    assert.equal(it.registry.leases.has(it.registry.nodes.get(KEY)!.lease as string), true)
    await it.registrar.close()
  })

  test('does not bring a superseded node back when the newer instance has left', async () => {
    const it = world()
    await it.registrar.register({ service: 'shop', port: 9090 })
    const registration = await it.registrar.register(NODE)
    const late = freeze(it)
    const updating = registration.update({ weight: 1 })
    await it.clock.advance(3_000)
    await updating
    it.registry.nodes.set(KEY, { incarnation: it.clock.wall() + 1_000, lease: 'other' })
    await it.clock.advance(10_000)
    assert.equal(registration.state, 'superseded')
    it.registry.nodes.delete(KEY)
    await late.thaw()
    assert.equal(late.held.length, 1)
    assert.deepEqual([...it.registry.nodes.keys()], [OTHER])
    await it.registrar.close()
  })
})

describe('a new epoch', () => {
  test('gives back what was changed, added and taken out after the backup, and nothing is missing meanwhile', async () => {
    const it = world()
    const changed = await it.registrar.register({ ...NODE, weight: 1 })
    const left = await it.registrar.register({ service: 'left', port: 1 })
    await it.registrar.register({ service: 'shop', port: 9090 })
    const restore = it.registry.backup()
    await changed.update({ weight: 2 })
    await left.close()
    await it.registrar.register({ service: 'added', port: 2 })
    restore()
    const missing = watchFor(it, [KEY, OTHER])
    await it.clock.advance(TTL_MS / 3)
    assert.deepEqual([...it.registry.nodes.keys()].sort(), ['added/127.0.0.1:2', OTHER, KEY])
    assert.equal(it.registry.nodes.get(KEY)!.weight, 2)
    assert.deepEqual([...it.registry.leases], ['L2'])
    assert.deepEqual([...missing], [])
    assert.equal(it.log.of('warn', 'new epoch').length, 1)
    const requests = it.network.calls.length
    await it.clock.advance(TTL_MS)
    assert.deepEqual([...new Set(it.network.calls.slice(requests).map(({ path }) => path))], ['/v1/leases/L2/renew'])
    await it.registrar.close()
    assert.equal(it.clock.pending, 0)
  })

  test('keeps the old lease for as long as no other is granted', async () => {
    const it = world()
    await it.registrar.register(NODE)
    it.registry.backup()()
    it.registry.instead = ({ path }) => (path === '/v1/leases' ? problem(429, 'too_many_requests') : undefined)
    const silentMs = renewals(it, 'L1')
    await it.clock.advance(TTL_MS * 20)
    assert.ok(silentMs() < TTL_MS, `not renewed for ${silentMs()} ms`)
    assert.equal(it.asked('DELETE', '').length, 0)
    it.registry.instead = () => undefined
    await it.clock.advance(6_000)
    assert.deepEqual([...it.registry.leases], ['L2'])
    assert.equal(it.registry.nodes.get(KEY)!.lease, 'L2')
    await it.registrar.close()
  })

  test('keeps the old lease for as long as a node cannot be taken over to the next', async () => {
    const it = world()
    const failing = await it.registrar.register(NODE)
    await it.registrar.register({ service: 'shop', port: 9090 })
    it.registry.backup()()
    it.registry.instead = ({ method, path }) =>
      method === 'PUT' && path.includes('/stock/') ? problem(500, 'internal_error') : undefined
    const silentMs = ['L1', 'L2'].map((lease) => renewals(it, lease))
    await it.clock.advance(TTL_MS * 20)
    for (const ms of silentMs) assert.ok(ms() < TTL_MS, `not renewed for ${ms()} ms`)
    assert.deepEqual([it.registry.nodes.get(KEY)!.lease, it.registry.nodes.get(OTHER)!.lease], ['L1', 'L2'])
    const closing = failing.close()
    await it.clock.advance(6_000)
    await closing
    assert.deepEqual([failing.state, ...it.registry.nodes.keys()], ['closed', OTHER])
    assert.deepEqual([...it.registry.leases], ['L2'])
    await it.registrar.close()
  })

  test('after another leaves no more leases behind than it may', async () => {
    const it = world()
    await it.registrar.register(NODE)
    it.registry.instead = ({ method }) => (method === 'PUT' ? problem(500, 'internal_error') : undefined)
    for (let i = 0; i < 20; i++) {
      it.registry.backup()()
      await it.clock.advance(TTL_MS)
    }
    assert.ok(it.registry.leases.size <= 5, `${it.registry.leases.size} leases`)
    assert.equal(it.registry.nodes.has(KEY), true)
    it.registry.instead = () => undefined
    await it.clock.advance(TTL_MS)
    assert.equal(it.registry.leases.size, 1)
    assert.equal(it.registry.leases.has(it.registry.nodes.get(KEY)!.lease as string), true)
    await it.registrar.close()
    assert.equal(it.registry.leases.size, 0)
    assert.equal(it.clock.pending, 0)
  })
})
