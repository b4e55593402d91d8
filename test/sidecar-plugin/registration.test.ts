import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { HealthCheck, ProbeResult } from '../../sidecar-plugin/src/local/health-check.ts'
import { LocalRegistration } from '../../sidecar-plugin/src/local/local-registration.ts'
import type { Handle, NodeSpec, Registrar } from '../../sidecar-plugin/src/registry.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { quietLog } from './fakes.ts'

const CHECK: HealthCheck = {
  type: 'http',
  path: '/',
  intervalMs: 2_000,
  timeoutMs: 1_000,
  unhealthyAfter: 3,
  healthyAfter: 1,
}

/** A registry that records what it is told, and answers only when the test lets it. */
class FakeRegistrar implements Registrar {
  readonly told: string[] = []
  state: Handle['state'] = 'registered'
  refuse: string | undefined
  #gate: Promise<void> = Promise.resolve()
  open = () => {}

  hold(): void {
    this.#gate = new Promise((resolve) => (this.open = resolve))
  }

  async register(spec: NodeSpec): Promise<Handle> {
    this.told.push(`register ${spec.status}`)
    await this.#gate
    if (this.refuse !== undefined) throw new Error(this.refuse)
    // eslint-disable-next-line @typescript-eslint/no-this-alias
    const registrar = this
    return {
      id: spec.id,
      get state() {
        return registrar.state
      },
      update: async (change) => {
        this.told.push(`update ${change.status}`)
        await this.#gate
      },
      close: async () => {
        this.told.push('close')
        await this.#gate
      },
    }
  }
}

function begin(check: Partial<HealthCheck> = {}) {
  const clock = new ManualClock()
  const registrar = new FakeRegistrar()
  const service: { verdict: ProbeResult['verdict'] } = { verdict: 'passed' }
  let probes = 0
  const registration = new LocalRegistration({
    node: { service: 'stock', namespace: 'default', id: 'n', host: '127.0.0.1', port: 7502 },
    check: { ...CHECK, ...check },
    probe: () => {
      probes++
      return Promise.resolve({ verdict: service.verdict, detail: service.verdict })
    },
    registrar,
    clock,
    random: seededRandom(1),
    log: quietLog,
  })
  return { clock, registrar, service, registration, probes: () => probes }
}

test('a service is registered after its first success, not before', async () => {
  const { clock, registrar, service, registration } = begin()
  service.verdict = 'refused'
  registration.start()
  await clock.advance(1_000)
  assert.deepEqual(registrar.told, [])
  assert.equal(registration.state, 'checking')
  service.verdict = 'passed'
  await clock.advance(500)
  assert.deepEqual(registrar.told, ['register up'])
  assert.equal(registration.state, 'up')
})

test('who names a service in the moment in which it starts is answered once it is up', async () => {
  const { clock, registrar, service, registration } = begin()
  service.verdict = 'refused'
  registration.start()
  let settled = false
  void registration.settled(5_000).then(() => (settled = true))
  await clock.advance(1_000)
  assert.equal(settled, false)
  service.verdict = 'passed'
  await clock.advance(100)
  assert.equal(settled, true)
  assert.deepEqual(registrar.told, ['register up'])
})

test('who names a service that does not start is answered when his patience ends', async () => {
  const { clock, service, registration, probes } = begin()
  service.verdict = 'refused'
  registration.start()
  let settled = false
  void registration.settled(5_000).then(() => (settled = true))
  await clock.advance(4_999)
  assert.equal(settled, false)
  await clock.advance(1)
  assert.equal(settled, true)
  assert.equal(registration.state, 'checking')
  const hasty = probes()
  await clock.advance(5_000)
  assert.equal(probes() - hasty, 10, 'not as often any more')
})

test('as many successes in a row as asked for make it up', async () => {
  const { clock, registrar, registration } = begin({ healthyAfter: 3 })
  registration.start()
  await clock.advance(199)
  assert.deepEqual(registrar.told, [])
  await clock.advance(1)
  assert.deepEqual(registrar.told, ['register up'])
})

describe('a service that answers wrongly', () => {
  test('becomes down after as many failures as configured, and up by itself', async () => {
    const { clock, registrar, service, registration } = begin()
    registration.start()
    await clock.advance(0)
    service.verdict = 'failed'
    await clock.advance(4_000)
    assert.deepEqual(registrar.told, ['register up'])
    await clock.advance(2_000)
    assert.deepEqual(registrar.told, ['register up', 'update down'])
    assert.equal(registration.state, 'down')
    service.verdict = 'passed'
    await clock.advance(2_000)
    assert.deepEqual(registrar.told, ['register up', 'update down', 'update up'])
  })

  test('stays up over a hiccup', async () => {
    const { clock, registrar, service, registration } = begin()
    registration.start()
    await clock.advance(0)
    service.verdict = 'failed'
    await clock.advance(4_000)
    service.verdict = 'passed'
    await clock.advance(2_000)
    service.verdict = 'failed'
    await clock.advance(4_000)
    assert.deepEqual(registrar.told, ['register up'])
  })
})

describe('a service that has stopped', () => {
  test('leaves, and returns by itself when it listens again', async () => {
    const { clock, registrar, service, registration } = begin()
    registration.start()
    await clock.advance(0)
    service.verdict = 'refused'
    await clock.advance(6_000)
    assert.deepEqual(registrar.told, ['register up', 'close'])
    assert.equal(registration.state, 'left')
    assert.equal(registration.health.status, 'stopped')
    service.verdict = 'passed'
    await clock.advance(500)
    assert.deepEqual(registrar.told, ['register up', 'close', 'register up'])
    assert.equal(registration.state, 'up')
  })

  test('leaves from down, too', async () => {
    const { clock, registrar, service, registration } = begin()
    registration.start()
    await clock.advance(0)
    service.verdict = 'failed'
    await clock.advance(6_000)
    service.verdict = 'refused'
    await clock.advance(6_000)
    assert.deepEqual(registrar.told, ['register up', 'update down', 'close'])
  })
})

describe('while the registry is slow', () => {
  test('checks go on, and only the last of what was wanted is told', async () => {
    const { clock, registrar, service, registration, probes } = begin()
    registrar.hold()
    registration.start()
    await clock.advance(0)
    assert.equal(registration.state, 'pending')
    service.verdict = 'failed'
    await clock.advance(6_000)
    service.verdict = 'passed'
    await clock.advance(2_000)
    assert(probes() >= 5)
    assert.deepEqual(registrar.told, ['register up'])
    registrar.open()
    await settle()
    assert.deepEqual(registrar.told, ['register up'], 'down and up again is nothing')
  })

  test('a registration that waits for the registry says so, and its request need not', async () => {
    const { clock, registrar, registration } = begin()
    registrar.state = 'pending'
    registration.start()
    let settled = false
    void registration.settled(5_000).then(() => (settled = true))
    await clock.advance(0)
    assert.equal(settled, true)
    assert.equal(registration.state, 'pending')
  })

  test('nobody waits longer than he said', async () => {
    const { clock, registrar, registration } = begin()
    registrar.hold()
    registration.start()
    let settled = false
    void registration.settled(5_000).then(() => (settled = true))
    await clock.advance(4_999)
    assert.equal(settled, false)
    await clock.advance(1)
    assert.equal(settled, true)
  })
})

test('what the registry refuses is shown with its reason, and tried again later', async () => {
  const { clock, registrar, registration } = begin()
  registrar.refuse = 'weight: too heavy'
  registration.start()
  await clock.advance(0)
  assert.equal(registration.state, 'refused')
  assert.equal(registration.refusal, 'weight: too heavy')
  registrar.refuse = undefined
  await clock.advance(60_000)
  assert.equal(registration.state, 'up')
})

test('a node that a newer instance has taken over is left alone', async () => {
  const { clock, registrar, service, registration } = begin()
  registration.start()
  await clock.advance(0)
  registrar.state = 'superseded'
  service.verdict = 'refused'
  await clock.advance(20_000)
  assert.equal(registration.state, 'superseded')
  assert.deepEqual(registrar.told, ['register up'])
})

describe('leaving', () => {
  test('begins by draining, and ends deregistered and unchecked', async () => {
    const { clock, registrar, registration, probes } = begin()
    registration.start()
    await clock.advance(0)
    await registration.drain()
    assert.deepEqual(registrar.told, ['register up', 'update draining'])
    await registration.close()
    assert.deepEqual(registrar.told, ['register up', 'update draining', 'close'])
    assert.equal(registration.state, 'closed')
    const seen = probes()
    await clock.advance(60_000)
    assert.equal(probes(), seen)
    assert.equal(clock.pending, 0)
  })

  test('of a service that was never registered tells the registry nothing', async () => {
    const { clock, registrar, service, registration } = begin()
    service.verdict = 'refused'
    registration.start()
    await clock.advance(0)
    await registration.drain()
    await registration.close()
    assert.deepEqual(registrar.told, [])
  })

  test('during a registration under way takes it back once it is there', async () => {
    const { clock, registrar, registration } = begin()
    registrar.hold()
    registration.start()
    await clock.advance(0)
    const closing = registration.close()
    registrar.open()
    await closing
    assert.deepEqual(registrar.told, ['register up', 'close'])
  })
})

test('a service is neither up nor down for checks that could not be made', async () => {
  const { clock, registrar, service, registration } = begin()
  service.verdict = 'unmade'
  registration.start()
  await clock.advance(10_000)
  assert.deepEqual(registrar.told, [])
  service.verdict = 'passed'
  await clock.advance(2_000)
  service.verdict = 'unmade'
  await clock.advance(60_000)
  assert.deepEqual(registrar.told, ['register up'])
  assert.deepEqual(registration.health, { status: 'passing', detail: 'unmade' })
})
