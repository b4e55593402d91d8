import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RefusedError } from '@holdfast/registry-client'
import { settle } from '../support/manual-clock.ts'
import { answer, problem, silence, type ScriptedCall } from '../support/scripted-network.ts'
import { KEY, NODE, OTHER, TTL_MS, world } from '../support/registrar-world.ts'

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
    const startedMs = it.clock.wall()
    const registering = it.registrar.register(NODE)
    await it.clock.advance(240_000)
    const registration = await registering
    assert.equal(late.held.length, 20)
    const started = it.registry.nodes.get(KEY)!.incarnation as number
    assert.equal(Math.floor(started / 1_000), startedMs)
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
    it.registry.nodes.set(KEY, { incarnation: 1_000 * (it.clock.wall() + 1_000), lease: 'other' })
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
