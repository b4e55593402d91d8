import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RefusedError, type NodeRegistration } from '@holdfast/registry-client'
import { Connection } from '../../registry-client/src/connection.ts'
import type { HttpAnswer } from '../../registry-client/src/network.ts'
import { Registrar } from '../../registry-client/src/registrar.ts'
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
  down = false
  #leases = 0
  /** Answers instead of the registry. */
  instead: (call: ScriptedCall) => HttpAnswer | Promise<HttpAnswer> | undefined = () => undefined

  answer(call: ScriptedCall): HttpAnswer | Promise<HttpAnswer> {
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
      if (held && query.get('incarnation') !== String(held.incarnation)) return problem(409, 'stale_incarnation')
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
}

function world() {
  const clock = new ManualClock()
  const network = new ScriptedNetwork()
  const registry = new TinyRegistry()
  const log = new MemoryLog()
  const random = seededRandom(7)
  network.respond = (call) => registry.answer(call)
  const connection = new Connection(
    { endpoints: ['http://registry:7400'], network, clock, random, log },
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
        ? problem(400, 'invalid_request', { errors: [{ path: 'port', message: 'must be 1..65535' }] })
        : undefined
    await assert.rejects(registrar.register({ ...NODE, port: 0 }), (error) => {
      assert.ok(error instanceof RefusedError)
      assert.match(error.message, /port: must be 1\.\.65535/)
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
