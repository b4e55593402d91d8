import assert from 'node:assert/strict'
import { once } from 'node:events'
import { Agent, request, type IncomingMessage } from 'node:http'
import { describe, test, type TestContext } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { Selector } from '../../registry-client/src/selection/selector.ts'
import { loadConfig } from '../../sidecar-plugin/src/config.ts'
import { Listener } from '../../sidecar-plugin/src/listener.ts'
import { createSidecar } from '../../sidecar-plugin/src/sidecar.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { FakeClient, quietLog, RawCaller, replyOf, startService } from './fakes.ts'
import { eventually } from './wire.ts'

describe('a listener that finishes', () => {
  async function start(t: TestContext) {
    const clock = new ManualClock()
    const listener = new Listener({
      direction: 'inbound',
      clock,
      random: seededRandom(1),
      serve: async () => replyOf(),
    })
    const port = await listener.listen('127.0.0.1', 0)
    t.after(() => listener.close())
    const call = async () => {
      const caller = new RawCaller(port).send('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
      await caller.closed
      return caller.error === undefined && /^HTTP\/1\.1 200 /.test(caller.text)
    }
    return { clock, listener, port, call }
  }

  test('goes on accepting until nobody has come for a while', async (t) => {
    const { clock, listener, call } = await start(t)
    assert(await call())
    let isOver = false
    const finished = listener.finish({ idleMs: 60_000, timeoutMs: 60_000 }).then(() => (isOver = true))
    for (let i = 0; i < 5; i++) {
      await clock.advance(400)
      assert(await call(), 'accepted and served')
    }
    assert.equal(isOver, false)
    await clock.advance(500)
    await finished
    assert.equal(await call(), false)
  })

  test('does not wait for ever for those who keep coming', async (t) => {
    const { clock, listener, call } = await start(t)
    assert(await call())
    const finished = listener.finish({ idleMs: 1_000, timeoutMs: 60_000 })
    for (let i = 0; i < 2; i++) {
      await clock.advance(400)
      assert(await call())
    }
    await clock.advance(200)
    await finished
    assert.equal(await call(), false)
  })

  test('lets a caller finish who has its answer and still sends what nobody wants', async (t) => {
    const { clock, listener, port } = await start(t)
    listener.retire()
    const caller = new RawCaller(port, { allowHalfOpen: true })
    caller.send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 600000\r\n\r\n')
    await caller.until(/^HTTP\/1\.1 200 [^]*connection: close/)
    const finished = listener.finish({ idleMs: 100, timeoutMs: 60_000 })
    await clock.advance(1_000)
    for (let i = 0; i < 60; i++) caller.send('x'.repeat(10_000))
    caller.socket.end()
    await caller.closed
    assert.equal(caller.error, undefined)
    await finished
  })

  test('does not wait at all when nobody came lately, nor when it is cut', async (t) => {
    const { clock, listener, call } = await start(t)
    assert(await call())
    await clock.advance(500)
    await listener.finish({ idleMs: 60_000, timeoutMs: 60_000 })

    const other = await start(t)
    assert(await other.call())
    const finished = other.listener.finish({ idleMs: 60_000, timeoutMs: 60_000 })
    await settle()
    other.listener.close()
    await finished
  })
})

/** A client library that takes failing nodes out, as the real one does: callers turn away from who refuses them. */
class EjectingClient extends FakeClient {
  readonly #selectors = new Map<string, Selector>()

  override pick(service: string, options: { not?: ReadonlySet<string> } = {}): ReturnType<FakeClient['pick']> {
    let selector = this.#selectors.get(service)
    if (selector === undefined) {
      selector = new Selector(service, systemClock, seededRandom(1))
      selector.update(this.table.get(service))
      this.#selectors.set(service, selector)
    }
    const pick = selector.pick(options.not)
    return { node: pick.node, done: (outcome: string) => void pick.done(outcome as 'ok') }
  }

  override async close(): Promise<void> {
    for (const selector of this.#selectors.values()) selector.close()
    return super.close()
  }
}

async function startSidecar(
  t: TestContext,
  options: { client?: FakeClient; idle: string; inboundPort?: number; clock?: ManualClock },
) {
  const { client = new FakeClient(), idle, inboundPort = 0, clock = systemClock } = options
  const ports = ['--admin-port', '0', '--outbound-port', '0', '--inbound-port', String(inboundPort)]
  const { config } = loadConfig({
    argv: [...ports, '--no-file-cache', '--drain-settle', '0ms', '--config', 'sidecar.yaml'],
    env: {},
    readFile: () => `drain: { idle: ${idle} }`,
  })
  const sidecar = await createSidecar({ config, log: quietLog, clock, random: seededRandom(1), client })
  t.after(() => sidecar.close())
  return { sidecar, client }
}

async function post(port: number, host: string, options: { agent?: Agent; fields?: Record<string, string> } = {}) {
  const outgoing = request({
    port,
    host: '127.0.0.1',
    method: 'POST',
    agent: options.agent ?? false,
    headers: { host, 'content-length': 4, ...options.fields },
  })
  outgoing.end('body')
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response) text += String(chunk)
  return { status: response.statusCode, headers: response.headers, text }
}

async function register(adminPort: number, service: string, port: number): Promise<void> {
  const outgoing = request({ port: adminPort, host: '127.0.0.1', method: 'PUT', path: `/v1/registrations/${service}` })
  outgoing.end(JSON.stringify({ port }))
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  response.resume()
  await once(response, 'end')
}

test('a sidecar that closes ends idle connections of the admin API, and the others with their answers', async (t) => {
  let isAsked = false
  let answer = (_services: never[]) => {}
  const client = new (class extends FakeClient {
    override rehearse(): Promise<never[]> {
      isAsked = true
      return new Promise((resolve) => (answer = resolve))
    }
  })()
  const { sidecar } = await startSidecar(t, { client, idle: '0ms' })
  const { admin } = sidecar.ports
  const get = (path: string) => new RawCaller(admin).send(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`)
  const idle = get('/healthz')
  await idle.until(/"ok"/)
  const busy = get('/v1/rehearsal')
  await eventually('it is asked', () => isAsked)
  let isClosed = false
  const closed = sidecar.close().then(() => (isClosed = true))
  await idle.closed
  const late = new RawCaller(admin)
  await late.closed
  assert.match(String(late.error), /ECONNREFUSED/)
  assert.equal(isClosed, false)
  answer([])
  await Promise.all([busy.closed, closed])
  assert.match(busy.text, /^HTTP\/1\.1 200 [^]*connection: close[^]*\{"services":\[\]\}$/)
})

test('a drain takes no longer than it may, though both sides have what never ends', async (t) => {
  let asked = 0
  const stock = await startService(() => void asked++)
  t.after(() => stock.stop())
  const clock = new ManualClock()
  const client = new FakeClient()
  client.set('far', [{ id: 'n', port: stock.port }])
  const { sidecar } = await startSidecar(t, { client, clock, idle: '0ms' })
  await register(sidecar.ports.admin, 'stock', stock.port)
  for (const [port, host] of [
    [sidecar.ports.inbound, 'stock'],
    [sidecar.ports.outbound, 'far'],
  ] as const) {
    const caller = new RawCaller(port).send(`GET / HTTP/1.1\r\nHost: ${host}\r\nX-Holdfast-Timeout: 1h\r\n\r\n`)
    t.after(() => caller.socket.destroy())
  }
  await eventually('both are under way', () => asked >= 2)
  let isOver = false
  void sidecar.drain().then(() => (isOver = true))
  await eventually('it deregisters', () => client.events.includes('close stock'))
  await clock.advance(29_999)
  assert.equal(isOver, false)
  await clock.advance(1)
  while (!isOver) await clock.advance(0)
})

describe('while a sidecar leaves and nobody can be told', () => {
  test('it sends away who can go elsewhere, and serves who cannot', async (t) => {
    const stock = await startService((incoming, outgoing) => void incoming.pipe(outgoing))
    t.after(() => stock.stop())
    const { sidecar, client } = await startSidecar(t, { idle: '10m' })
    await register(sidecar.ports.admin, 'stock', stock.port)
    const { inbound } = sidecar.ports
    const fields = { 'x-holdfast-elsewhere': 'true' }
    assert.equal((await post(inbound, 'stock', { fields })).status, 200)
    void sidecar.drain()
    await eventually('it deregisters', () => client.events.includes('close stock'))
    let away = await post(inbound, 'stock', { fields })
    while (away.status === 200) away = await post(inbound, 'stock', { fields })
    assert.deepEqual([away.status, away.headers['x-holdfast-reason']], [503, 'draining'])
    assert.equal(away.headers.connection, 'close')
    assert.deepEqual((await post(inbound, 'stock')).text, 'body')
  })

  for (const [protocol, restarts] of [
    ['http', 4],
    ['h2', 2],
  ] as const)
    test(`no POST through a peer by ${protocol} fails, however many are under way, restart after restart`, async (t) => {
      const stock = await startService((incoming, outgoing) => void incoming.pipe(outgoing))
      t.after(() => stock.stop())
      const nodes = [await startSidecar(t, { idle: '1s' }), await startSidecar(t, { idle: '2s' })]
      for (const node of nodes) await register(node.sidecar.ports.admin, 'stock', stock.port)
      const client = new EjectingClient()
      client.set(
        'stock',
        nodes.map((node, i) => ({ id: `n${i}`, port: node.sidecar.ports.inbound, protocol })),
      )
      const caller = await startSidecar(t, { client, idle: '0ms' })
      const agent = new Agent({ keepAlive: true })
      t.after(() => agent.destroy())
      let isRunning = true
      const failures: string[] = []
      const workers = Array.from({ length: 16 }, async () => {
        while (isRunning) {
          const answer = await post(caller.sidecar.ports.outbound, 'stock', { agent })
          if (answer.status !== 200) failures.push(answer.text)
        }
      })
      for (let i = 0; i < restarts; i++) {
        const { inbound } = nodes[i % 2]!.sidecar.ports
        await nodes[i % 2]!.sidecar.drain()
        nodes[i % 2] = await startSidecar(t, { idle: '1s', inboundPort: inbound })
        await register(nodes[i % 2]!.sidecar.ports.admin, 'stock', stock.port)
      }
      isRunning = false
      await Promise.all(workers)
      assert.deepEqual(failures, [])
    })
})
