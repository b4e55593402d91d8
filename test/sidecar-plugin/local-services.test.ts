import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LocalServices, type Keeper } from '../../sidecar-plugin/src/local/local-services.ts'
import { LocalNodes } from '../../sidecar-plugin/src/local/local-nodes.ts'
import { localSpecOf, localSpecSchema, type LocalSpec } from '../../sidecar-plugin/src/local/local-spec.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'

function spec(service: string, port = 8080, over: object = {}): LocalSpec {
  return localSpecOf(localSpecSchema.parse({ service, port, ...over }))
}

function start() {
  const events: string[] = []
  const shared = { host: '10.0.0.1', port: 7502, close: () => {} }
  const own = { host: '10.0.0.1', port: 17_000, close: () => void events.push('leave') }
  const saved: string[][] = []
  let release = () => {}
  const held = new Promise<void>((resolve) => (release = resolve))
  const hold = { drain: false }
  const nodes = new LocalNodes({ namespace: 'default', clock: new ManualClock() })
  const services = new LocalServices({
    namespace: 'default',
    enter: async ({ protocol, inboundPort }) => {
      if (inboundPort === 1) throw new Error('port in use')
      return protocol === 'tcp' ? own : shared
    },
    plane: {
      set: async (node) => nodes.set(node),
      forget: async (service) => nodes.forget(service),
      idle: async (service) => void events.push(`idle ${service}`),
      inFlight: async () => nodes.inFlight,
    },
    patienceMs: 5_000,
    drainMs: 30_000,
    save: async (specs) => void saved.push(specs.map(({ service, port }) => `${service}:${port}`)),
    keeper: ({ service, port }): Keeper => {
      const name = `${service}:${port}`
      return {
        id: 'n',
        state: 'up',
        health: { status: 'passing', detail: '' },
        refusal: undefined,
        stop: () => {},
        start: () => void events.push(`start ${name}`),
        settled: async () => {},
        drain: async () => {
          events.push(`drain ${name}`)
          if (hold.drain) await held
        },
        close: async () => void events.push(`close ${name}`),
      }
    },
  })
  return { services, nodes, events, saved, hold, release: () => release() }
}

test('a service is served from the moment it is added, whatever the registry says', async () => {
  const { services, nodes } = start()
  await services.add(spec('stock'), true)
  assert.deepEqual(nodes.find('stock', 'default')?.destination, {
    id: 'n',
    host: '127.0.0.1',
    port: 8080,
    protocol: 'http',
  })
  assert.equal(nodes.find('stock', 'shop'), undefined)
  assert.equal(nodes.find('other', 'default'), undefined)
})

test('others see the inbound address, and the report says where the service really is', async () => {
  const { services } = start()
  await services.add(spec('stock'), true)
  const [report] = await services.reports()
  assert.deepEqual([report!.host, report!.port, report!.localPort], ['10.0.0.1', 7502, 8080])
})

test('the same registration again changes nothing; another one replaces the first, which lets go before', async () => {
  const { services, events, saved } = start()
  assert.equal((await services.put(spec('stock'))).created, true)
  assert.equal((await services.put(spec('stock'))).created, false)
  assert.deepEqual(events, ['start stock:8080'])
  assert.equal((await services.put(spec('stock', 9090))).report.localPort, 9090)
  assert.deepEqual(events, ['start stock:8080', 'close stock:8080', 'start stock:9090'])
  assert.deepEqual(saved, [['stock:8080'], ['stock:9090']])
})

test('a service of TCP is called at an entrance of its own, found by nobody who speaks HTTP, and leaves it at the end', async () => {
  const { services, nodes, events } = start()
  const { report } = await services.put(spec('orders', 5432, { protocol: 'tcp' }))
  assert.deepEqual([report.host, report.port, report.localPort], ['10.0.0.1', 17_000, 5432])
  assert.equal(nodes.find('orders', 'default'), undefined)
  assert.equal(nodes.find('orders', 'default', true)?.destination.port, 5432)
  await services.put(spec('orders', 5433, { protocol: 'tcp' }))
  assert(!events.includes('leave'), 'the entrance stays when the service moves')
  await services.put(spec('orders', 5433))
  assert.equal(events.at(-1), 'leave')
  assert.equal(nodes.find('orders', 'default', true), undefined)
  assert.equal(nodes.find('orders', 'default')?.destination.port, 5433)
  await services.put(spec('orders', 5432, { protocol: 'tcp' }))
  await services.remove('orders')
  assert.equal(events.at(-1), 'leave')
})

test('a registration whose port cannot be had changes nothing of the one before', async () => {
  const { services, nodes, events } = start()
  await services.put(spec('orders', 5432, { protocol: 'tcp' }))
  const before = [...events]
  await assert.rejects(services.put(spec('orders', 5432, { protocol: 'tcp', inboundPort: 1 })), /port in use/)
  assert.deepEqual(events, before)
  assert.equal(nodes.find('orders', 'default', true)?.destination.port, 5432)
})

test('what the configuration names is not saved, and is not replaced by what was saved before', async () => {
  const { services, nodes, saved } = start()
  await services.add(spec('stock', 1), false)
  await services.add(spec('stock', 2), true)
  await services.put(spec('prices'))
  assert.equal(nodes.find('stock', 'default')!.destination.port, 1)
  assert.deepEqual(saved, [['prices:8080']])
})

test('who is removed drains first, is served meanwhile, and is forgotten after', async () => {
  const { services, nodes, events, saved, hold, release } = start()
  await services.put(spec('stock'))
  hold.drain = true
  const removed = services.remove('stock')
  await settle()
  assert.notEqual(nodes.find('stock', 'default'), undefined)
  release()
  assert.equal(await removed, true)
  assert.equal(nodes.find('stock', 'default'), undefined)
  assert.deepEqual(events.slice(1), ['drain stock:8080', 'idle stock', 'close stock:8080'])
  assert.deepEqual(saved.at(-1), [])
  assert.equal(await services.remove('stock'), false)
})

test('a registration during a removal waits for its end, and stands then', async () => {
  const { services, nodes, hold, release } = start()
  await services.put(spec('stock'))
  hold.drain = true
  const removed = services.remove('stock')
  const put = services.put(spec('stock', 9090))
  await settle()
  release()
  await removed
  assert.equal((await put).created, true)
  assert.equal(nodes.find('stock', 'default')!.destination.port, 9090)
})

test('a sidecar that leaves deregisters everything, still serves it, saves nothing, and takes nothing new', async () => {
  const { services, nodes, events, saved } = start()
  await services.put(spec('a'))
  await services.put(spec('b'))
  await services.deregister()
  assert.deepEqual(events.slice(-2).sort(), ['close a:8080', 'close b:8080'])
  assert.notEqual(nodes.find('a', 'default'), undefined)
  assert.equal(saved.length, 2)
  await assert.rejects(services.put(spec('c')), { reason: 'draining' })
})
