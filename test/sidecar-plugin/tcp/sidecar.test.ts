import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { loadConfig } from '../../../sidecar-plugin/src/config.ts'
import { createSidecar, type Sidecar } from '../../../sidecar-plugin/src/sidecar.ts'
import { greetingOf } from '../../../sidecar-plugin/src/tcp/greeting.ts'
import type { TcpForwardLimits } from '../../../sidecar-plugin/src/tcp/tcp-forward.ts'
import { freePort } from '../../support/free-port.ts'
import { seededRandom } from '../../support/seeded-random.ts'
import { FakeClient, quietLog } from '../fakes.ts'
import { eventually, rawService } from '../wire.ts'
import { call } from './relay.ts'

async function start(
  t: TestContext,
  options: {
    client?: FakeClient
    argv?: string[]
    cacheDir?: string
    file?: object
    drainMs?: number
    tcp?: Partial<TcpForwardLimits>
  } = {},
) {
  const { client = new FakeClient(), argv = [], cacheDir, file = {}, drainMs = 5_000 } = options
  const inboundPort = cacheDir === undefined ? 0 : await freePort()
  const { config } = loadConfig({
    argv: [
      ...['--admin-port', '0', '--outbound-port', '0', '--inbound-port', String(inboundPort)],
      ...(cacheDir === undefined ? ['--no-file-cache'] : ['--cache-dir', cacheDir]),
      ...['--drain-settle', '0ms', '--drain-timeout', `${drainMs}ms`, '--config', 'sidecar.yaml'],
      ...argv,
    ],
    env: {},
    readFile: () => JSON.stringify({ drain: { idle: '0ms' }, ...file }),
  })
  const create = () =>
    createSidecar({ config, log: quietLog, random: seededRandom(1), client, limits: { tcp: options.tcp } })
  const sidecar = await create()
  t.after(() => sidecar.close())
  return { sidecar, client, create }
}

async function directory(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'holdfast-'))
  t.after(() => rm(path, { recursive: true, force: true }))
  return path
}

async function admin<T>(sidecar: Sidecar, method: string, path: string, body?: object) {
  const answer = await fetch(`http://127.0.0.1:${sidecar.ports.admin}${path}`, {
    method,
    ...(body && { body: JSON.stringify(body) }),
  })
  const text = await answer.text()
  return { status: answer.status, text, body: (text.startsWith('{') ? JSON.parse(text) : undefined) as T }
}

interface Report {
  readonly id: string
  readonly port: number
  readonly localPort: number
  readonly inFlight: number
}

interface Stats {
  readonly tcp: {
    direction: string
    service: string
    open: number
    opened: number
    failed: Record<string, number>
    bytesIn: number
    bytesOut: number
  }[]
}

async function put(sidecar: Sidecar, service: string, port: number, over: object = {}) {
  return admin<Report & { code: string }>(sidecar, 'PUT', `/v1/registrations/${service}`, {
    port,
    protocol: 'tcp',
    ...over,
  })
}

async function echoService(t: TestContext) {
  return rawService(t, (socket) => void socket.pipe(socket))
}

describe('a local service of TCP', () => {
  test('has a port of its own, is registered with it, and is reached by it from a sidecar and without one', async (t) => {
    const { port } = await echoService(t)
    const theirs = await start(t)
    const { status, body } = await put(theirs.sidecar, 'orders', port)
    assert.equal(status, 201)
    assert.notEqual(body.port, theirs.sidecar.ports.inbound)
    assert.deepEqual([body.id, body.localPort], [`127.0.0.1:${body.port}`, port])
    const [spec] = theirs.client.registered
    assert.deepEqual([spec!.host, spec!.port, spec!.protocol, spec!.id], ['127.0.0.1', body.port, 'tcp', body.id])
    assert(!('inboundPort' in spec!) && !('healthCheck' in spec!))

    const ours = await start(t, { argv: ['--tcp', '0=orders'] })
    ours.client.set('orders', [{ id: 'n', port: body.port }])
    for (const at of [ours.sidecar.tcp[0]!.port, body.port]) {
      const caller = call(t, at)
      caller.socket.write('hello')
      await caller.until('hello')
      const reports = await admin<{ registrations: Report[] }>(theirs.sidecar, 'GET', '/v1/registrations')
      assert.equal(reports.body.registrations[0]!.inFlight, 1)
      caller.socket.end()
      await caller.closed
      assert.equal(caller.error, undefined)
    }
    const stats = (await admin<Stats>(ours.sidecar, 'GET', '/v1/stats')).body.tcp
    assert.deepEqual(
      stats.map(({ direction, service, opened, open }) => ({ direction, service, opened, open })),
      [{ direction: 'outbound', service: 'orders', opened: 1, open: 0 }],
    )
    const page = (await admin(theirs.sidecar, 'GET', '/metrics')).text
    assert.match(page, /holdfast_sidecar_tcp_connections_total\{direction="inbound",service="orders.default"\} 2\n/)
    assert.match(page, /holdfast_sidecar_tcp_connections_open\{direction="inbound",service="orders.default"\} 0\n/)
    assert.match(
      page,
      /holdfast_sidecar_tcp_bytes_total\{direction="inbound",service="orders.default",flow="in"\} 10\n/,
    )
  })

  test('is not what HTTP is told to, whoever names it', async (t) => {
    const { port } = await echoService(t)
    const { sidecar } = await start(t)
    await put(sidecar, 'orders', port)
    const caller = call(t, sidecar.ports.inbound)
    caller.socket.write('GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n')
    await caller.ended()
    assert.match(caller.text, /^HTTP\/1\.1 421 /)
  })

  test('is called on the port that it asks for, and refused where that is somebody else’s', async (t) => {
    const { port } = await echoService(t)
    const { sidecar, client } = await start(t)
    const wanted = await freePort()
    assert.equal((await put(sidecar, 'orders', port, { inboundPort: wanted })).body.port, wanted)
    const refused = await put(sidecar, 'prices', port, { inboundPort: wanted })
    assert.deepEqual([refused.status, refused.body.code], [409, 'port_in_use'])
    assert.deepEqual(
      client.registered.map(({ service }) => service),
      ['orders'],
    )
    const wrong = await put(sidecar, 'prices', port, { protocol: 'http', inboundPort: wanted })
    assert.equal(wrong.status, 400)
    assert.match(wrong.text, /"path":"inboundPort"/)
    await assert.rejects(
      start(t, { file: { services: [{ service: 'a', port, protocol: 'tcp', inboundPort: wanted }] } }),
      /EADDRINUSE/,
    )
  })

  test('keeps its connections when it is registered anew, and its port with them', async (t) => {
    const { port } = await echoService(t)
    const { sidecar } = await start(t)
    const { body } = await put(sidecar, 'orders', port)
    const caller = call(t, body.port)
    caller.socket.write('x')
    await caller.until('x')
    assert.equal((await put(sidecar, 'orders', port, { weight: 7 })).body.port, body.port)
    caller.socket.write('y')
    await caller.until('xy')
  })

  test('has its port again after a restart, wherever it was named', async (t) => {
    const { port } = await echoService(t)
    const cacheDir = await directory(t)
    const services = [{ service: 'named', port, protocol: 'tcp' }]
    const { sidecar, create, client } = await start(t, { cacheDir, file: { services } })
    const asked = (await put(sidecar, 'asked', port)).body.port
    const ports = async (of: Sidecar) =>
      Object.fromEntries(
        (
          await admin<{ registrations: (Report & { service: string })[] }>(of, 'GET', '/v1/registrations')
        ).body.registrations.map((report) => [report.service, report.port]),
      )
    const before = await ports(sidecar)
    assert.equal(before.asked, asked)
    await sidecar.close()
    client.events.length = 0

    const again = await create()
    t.after(() => again.close())
    assert.deepEqual(await ports(again), before)
    const caller = call(t, asked)
    caller.socket.write('x')
    await caller.until('x')
    await again.close()

    // Somebody else has taken it meanwhile: another port is better than none.
    const thief = createServer()
    thief.listen(asked, '127.0.0.1')
    await once(thief, 'listening')
    t.after(() => thief.close())
    const third = await create()
    t.after(() => third.close())
    const now = await ports(third)
    assert.equal(now.named, before.named)
    assert.notEqual(now.asked, asked)
    const [name] = [`sidecar-${third.ports.inbound}.json`]
    const saved = JSON.parse(await readFile(join(cacheDir, name), 'utf8')) as { ports: object }
    assert.deepEqual(saved.ports, now)
  })

  test('closes its port when it is removed, after those who are there', async (t) => {
    const { port } = await echoService(t)
    const { sidecar } = await start(t)
    const { body } = await put(sidecar, 'orders', port)
    const caller = call(t, body.port)
    caller.socket.write('x')
    await caller.until('x')
    const removed = admin(sidecar, 'DELETE', '/v1/registrations/orders')
    caller.socket.write('y')
    await caller.until('xy')
    caller.socket.end()
    assert.equal((await removed).status, 204)
    const late = call(t, body.port)
    await late.closed
    assert.match(late.error!.code!, /^ECONN(REFUSED|RESET)$/)
  })

  test('that is gone while its sidecar is there ends the connection, and says why', async (t) => {
    const { port, stop } = await echoService(t)
    const { sidecar } = await start(t)
    const { body } = await put(sidecar, 'orders', port)
    stop()
    const caller = call(t, body.port)
    await caller.ended()
    caller.socket.end()
    await caller.closed
    let traffic: Stats['tcp'][number]
    do [traffic] = (await admin<Stats>(sidecar, 'GET', '/v1/stats')).body.tcp as [typeof traffic]
    while (traffic.open > 0)
    assert.deepEqual(traffic.failed, { upstream_connect: 1 })
  })
})

test('a node that breaks off is blamed when it has not said a word, and not when it has', async (t) => {
  const { port } = await rawService(t, (socket) =>
    socket.on('data', (word) => {
      if (word.toString() === 'speak') socket.write('spoken')
      else socket.resetAndDestroy()
    }),
  )
  const { sidecar, client } = await start(t, { argv: ['--tcp', '0=orders'] })
  client.set('orders', [{ id: 'n', port }])
  const spoken = call(t, sidecar.tcp[0]!.port)
  spoken.socket.write('speak')
  await spoken.until('spoken')
  const silent = call(t, sidecar.tcp[0]!.port)
  for (const caller of [spoken, silent]) {
    caller.socket.write('break')
    await caller.closed
    assert.equal(caller.error?.code, 'ECONNRESET')
  }
  await eventually('both verdicts', () => client.outcomes.length === 2)
  assert.deepEqual(client.outcomes, ['n ok', 'n failed'])
})

describe('a service of TCP behind a sidecar of its own', () => {
  /** Each behind a sidecar, as nodes that their sidecars have registered. */
  async function nodesFor(t: TestContext, ports: readonly number[], service = 'orders') {
    return Promise.all(
      ports.map(async (port, index) => {
        const { sidecar, client } = await start(t)
        const { body } = await put(sidecar, service, port)
        return { id: `n${index + 1}`, port: body.port, labels: client.registered[0]!.labels!, sidecar }
      }),
    )
  }

  async function callersOf(t: TestContext, nodes: Awaited<ReturnType<typeof nodesFor>>) {
    const { sidecar, client } = await start(t, { argv: ['--tcp', '0=orders'] })
    client.set('orders', nodes)
    return { client, sidecar, port: sidecar.tcp[0]!.port }
  }

  test('that has stopped is passed over for another node, and nothing that its caller said is lost', async (t) => {
    const stopped = await echoService(t)
    const alive = await echoService(t)
    const nodes = await nodesFor(t, [stopped.port, alive.port])
    stopped.stop()
    const { client, port } = await callersOf(t, nodes)
    for (let i = 0; i < 4; i++) {
      const caller = call(t, port)
      caller.socket.end(`word ${i}`)
      await caller.closed
      assert.deepEqual([caller.text, caller.error], [`word ${i}`, undefined])
    }
    assert.deepEqual(new Set(client.outcomes), new Set(['n1 failed', 'n2 ok']))
  })

  test('that speaks first is heard, and hears nothing but its caller', async (t) => {
    const heard: string[] = []
    const { port } = await rawService(t, (socket) => {
      socket.write('220 ready\r\n')
      socket.on('data', (piece) => {
        heard.push(piece.toString('latin1'))
        socket.end('250 ok\r\n')
      })
    })
    const callers = await callersOf(t, await nodesFor(t, [port]))
    for (let i = 0; i < 20; i++) {
      const caller = call(t, callers.port)
      await caller.until('220 ready\r\n')
      caller.socket.end('QUIT')
      await caller.closed
      assert.equal(caller.text, '220 ready\r\n250 ok\r\n')
    }
    assert.deepEqual(new Set(heard), new Set(['QUIT']))
    assert.deepEqual(new Set(callers.client.outcomes), new Set(['n1 ok']))
  })

  test('that has spoken before the greeting came is answer enough, and neither counts the greeting', async (t) => {
    const heard: string[] = []
    const { port } = await rawService(t, (socket) => {
      socket.write('220 ready\r\n')
      socket.on('data', (piece) => void heard.push(piece.toString('latin1')))
      socket.on('end', () => socket.end())
    })
    const [node] = await nodesFor(t, [port])
    const caller = call(t, node!.port)
    await caller.until('220 ready\r\n')
    const said = Buffer.concat([greetingOf('orders.default'), Buffer.from('QUIT')])
    caller.socket.write(said.subarray(0, 5))
    // The rest leaves once the beginning has been read.
    const { sidecar } = node!
    const traffic = async () => (await admin<Stats>(sidecar, 'GET', '/v1/stats')).body.tcp[0]!
    while ((await traffic()).bytesIn < 5) continue
    caller.socket.end(said.subarray(5))
    await caller.closed
    assert.equal(caller.text, '220 ready\r\n')
    assert.equal(heard.join(''), 'QUIT')
    const { bytesIn, bytesOut } = await traffic()
    assert.deepEqual([bytesIn, bytesOut], [4, '220 ready\r\n'.length])
  })

  test('is not what a caller with an old view reaches by an address that is another’s now', async (t) => {
    const heard: Buffer[] = []
    const other = await rawService(t, (socket) => socket.on('data', (piece) => void heard.push(piece)))
    const alive = await echoService(t)
    const [stranger] = await nodesFor(t, [other.port], 'prices')
    const [known] = await nodesFor(t, [alive.port])
    const { port } = await callersOf(t, [stranger!, { ...known!, id: 'n2' }])
    for (let i = 0; i < 2; i++) {
      const caller = call(t, port)
      caller.socket.end('mine')
      await caller.closed
      assert.equal(caller.text, 'mine')
    }
    assert.deepEqual(heard, [])
    const { body } = await admin<Stats>(stranger!.sidecar, 'GET', '/v1/stats')
    assert.deepEqual(body.tcp[0]!.failed, { not_here: 1 })
  })

  test('that stops while its sidecar waits for it, or never listens, costs a caller one attempt', async (t) => {
    const silent = await rawService(t, (socket) => socket.pause())
    const alive = await echoService(t)
    const [known] = await nodesFor(t, [alive.port])
    // Takes the connection and the line, and goes without a word.
    const gone = await rawService(t, (socket) => socket.once('data', () => socket.resetAndDestroy()))
    const nodes = [{ ...known!, id: 'n1', port: gone.port }, { ...known!, id: 'n2', port: silent.port }, known!]
    const { client, sidecar } = await start(t, { argv: ['--tcp', '0=orders'], tcp: { connectMs: 100 } })
    client.set(
      'orders',
      nodes.map((node, index) => ({ ...node, id: `n${index + 1}` })),
    )
    const caller = call(t, sidecar.tcp[0]!.port)
    caller.socket.end('word')
    await caller.closed
    assert.equal(caller.text, 'word')
    assert.deepEqual(client.outcomes, ['n1 failed', 'n2 failed', 'n3 ok'])
  })

  test('takes no greeting where there is no room for the label that says so', async (t) => {
    const { port } = await echoService(t)
    const { sidecar, client } = await start(t)
    const labels = Object.fromEntries(Array.from({ length: 64 }, (_, i) => [`l${i}`, 'x']))
    await put(sidecar, 'orders', port, { labels })
    assert.deepEqual(client.registered[0]!.labels, labels)
  })
})

describe('a sidecar that leaves', () => {
  test('lets TCP connections of both directions finish, and nobody in', async (t) => {
    const { port } = await echoService(t)
    const { sidecar, client } = await start(t, { argv: ['--tcp', '0=orders'] })
    const { body } = await put(sidecar, 'orders', port)
    client.set('orders', [{ id: 'n', port: body.port }])
    const callers = [call(t, sidecar.tcp[0]!.port), call(t, body.port)]
    for (const caller of callers) {
      caller.socket.write('x')
      await caller.until('x')
    }
    let isOver = false
    const drained = sidecar.drain().then(() => (isOver = true))
    await eventually('it is deregistered', () => client.events.includes('close orders'))
    for (const caller of callers) {
      caller.socket.write('y')
      await caller.until('xy')
    }
    assert.equal(isOver, false)
    for (const caller of callers) {
      caller.socket.end()
      await caller.closed
      assert.equal(caller.error, undefined)
    }
    await drained
  })

  test('waits for those who hold connections for later no longer than it was told, in both directions together', async (t) => {
    const { port } = await echoService(t)
    const { sidecar, client } = await start(t, { argv: ['--tcp', '0=orders'], drainMs: 300 })
    client.set('orders', [{ id: 'n', port }])
    const caller = call(t, sidecar.tcp[0]!.port)
    caller.socket.write('x')
    await caller.until('x')
    await sidecar.drain()
    await caller.closed
    assert.equal(caller.error?.code, 'ECONNRESET')
  })
})

test('the configuration is shown as it is written', async (t) => {
  const { sidecar } = await start(t, { argv: ['--tcp', '0=orders', '--tcp-idle', '5m'] })
  const { body } = await admin<{ listeners: { tcp: string[] }; tcp: object }>(sidecar, 'GET', '/v1/config')
  assert.deepEqual(body.listeners.tcp, ['127.0.0.1:0=orders.default'])
  assert.deepEqual(body.tcp, { idle: '5m', connect: '10s', connections: 10_000 })
  assert.deepEqual(
    loadConfig({ argv: ['--tcp', body.listeners.tcp[0]!], env: { HOME: '/' } }).config.listeners.tcp[0]!.service,
    'orders',
  )
})
