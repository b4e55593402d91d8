import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RefusedError } from '@holdfast/registry-client'
import { settle } from '../support/manual-clock.ts'
import { problem, silence } from '../support/scripted-network.ts'
import { NODE, TTL_MS, world } from '../support/registrar-world.ts'

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

describe('incarnations', () => {
  test('a first registration that counts as old takes a higher incarnation', async () => {
    const { registrar, registry, clock } = world()
    const held = 1_000 * (clock.wall() + 1_000_000)
    registry.nodes.set('stock/127.0.0.1:8080', { incarnation: held, lease: 'other' })
    const registration = await registrar.register(NODE)
    assert.equal(registration.state, 'registered')
    const taken = registry.nodes.get('stock/127.0.0.1:8080')!.incarnation as number
    assert.ok(taken > held && taken <= held + 1_000, String(taken - held))
    await registrar.close()
  })

  test('are told apart when two processes take one id in the same millisecond', async () => {
    const { registrar, registry } = world(undefined, () => 0.25)
    await registrar.register(NODE)
    const one = registry.nodes.get('stock/127.0.0.1:8080')!.incarnation
    const other = world(undefined, () => 0.75)
    await other.registrar.register(NODE)
    assert.notEqual(other.registry.nodes.get('stock/127.0.0.1:8080')!.incarnation, one)
    await registrar.close()
    await other.registrar.close()
  })

  test('a registered node that a newer instance has taken over is let go', async () => {
    const { registrar, registry, clock, asked } = world()
    const registration = await registrar.register(NODE)
    const newer = { incarnation: 1_000 * (clock.wall() + 1), lease: 'other' }
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
    const newer = { incarnation: 1_000 * (clock.wall() + 1), lease: 'other' }
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
