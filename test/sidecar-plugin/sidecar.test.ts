import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { request, type IncomingMessage, type RequestListener } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test, type TestContext } from 'node:test'
import { WebSocket, WebSocketServer } from 'ws'
import { loadConfig } from '../../sidecar-plugin/src/config.ts'
import { createSidecar, nodeIdOf, type Sidecar, type SidecarOptions } from '../../sidecar-plugin/src/sidecar.ts'
import { freePort } from '../support/free-port.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { FakeClient, quietLog, RawCaller, startService } from './fakes.ts'
import { eventually, rawService } from './wire.ts'

/** What every sidecar is started with, where a test does not say otherwise. */
const FLAGS: Readonly<Record<string, string>> = {
  '--admin-port': '0',
  '--outbound-port': '0',
  '--inbound-port': '0',
  '--drain-settle': '0ms',
  '--drain-timeout': '5s',
}

async function start(
  t: TestContext,
  options: {
    client?: FakeClient
    argv?: string[]
    cacheDir?: string
    idle?: string
    services?: object[]
    limits?: SidecarOptions['limits']
  } = {},
) {
  const client = options.client ?? new FakeClient()
  const { argv = [] } = options
  const flags = Object.entries(FLAGS).filter(([flag]) => !argv.includes(flag))
  const cache = options.cacheDir ? ['--cache-dir', options.cacheDir] : ['--no-file-cache']
  const { config } = loadConfig({
    argv: [...flags.flat(), ...cache, ...argv, '--config', 'sidecar.yaml'],
    env: {},
    readFile: () => JSON.stringify({ drain: { idle: options.idle ?? '0ms' }, services: options.services ?? [] }),
  })
  const sidecar = await createSidecar({
    config,
    log: quietLog,
    random: seededRandom(1),
    client,
    ...(options.limits && { limits: options.limits }),
  })
  t.after(() => sidecar.close())
  return { sidecar, client }
}

async function service(t: TestContext, handler: RequestListener) {
  const started = await startService(handler)
  t.after(() => started.stop())
  return started
}

interface Answer {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  readonly text: string
}

async function call(
  port: number,
  options: { host?: string; path?: string; method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Answer> {
  const { host = '127.0.0.1', path = '/', method = 'GET', headers, body } = options
  const outgoing = request({ port, host: '127.0.0.1', path, method, agent: false, headers: { host, ...headers } })
  outgoing.end(body)
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response) text += String(chunk)
  return { status: response.statusCode!, headers: response.headers, text }
}

async function register(sidecar: Sidecar, name: string, port: number): Promise<Answer> {
  return call(sidecar.ports.admin, {
    method: 'PUT',
    path: `/v1/registrations/${name}`,
    body: JSON.stringify({ port }),
  })
}

describe('a call through both sidecars', () => {
  test('reaches the service that Host names, with what its caller said and nothing that sidecars say', async (t) => {
    const stock = await service(t, (incoming, outgoing) => {
      incoming.setEncoding('utf8')
      let text = ''
      incoming.on('data', (chunk) => (text += chunk))
      incoming.on('end', () => {
        outgoing.writeHead(201, { 'X-Holdfast-Reason': 'forged', 'X-App': 'yes' })
        outgoing.end(JSON.stringify({ method: incoming.method, url: incoming.url, headers: incoming.headers, text }))
      })
    })
    const theirs = await start(t)
    assert.equal((await register(theirs.sidecar, 'stock', stock.port)).status, 201)
    const ours = await start(t)
    ours.client.set('stock', [{ id: 'n', port: theirs.sidecar.ports.inbound }])

    const answer = await call(ours.sidecar.ports.outbound, {
      host: 'stock',
      path: '/items/1?x=2',
      method: 'POST',
      body: 'hello',
      headers: { 'x-holdfast-timeout': '5s', 'x-request-id': 'mine' },
    })
    assert.equal(answer.status, 201)
    assert.equal(answer.headers['x-app'], 'yes')
    assert.equal(answer.headers['x-holdfast-reason'], undefined)
    const seen = JSON.parse(answer.text) as {
      method: string
      url: string
      headers: Record<string, string>
      text: string
    }
    assert.deepEqual([seen.method, seen.url, seen.text], ['POST', '/items/1?x=2', 'hello'])
    assert.equal(seen.headers.host, 'stock')
    assert.equal(seen.headers['x-request-id'], 'mine')
    assert.equal(seen.headers['x-forwarded-for'], '127.0.0.1')
    assert.deepEqual(
      Object.keys(seen.headers).filter((name) => name.startsWith('x-holdfast')),
      [],
    )
  })

  test('works from any program that knows a proxy', async (t) => {
    const stock = await service(t, (incoming, outgoing) => void outgoing.end(incoming.url))
    const { sidecar, client } = await start(t)
    await register(sidecar, 'stock', stock.port)
    client.set('stock', [{ id: 'n', port: sidecar.ports.inbound }])
    const caller = new RawCaller(sidecar.ports.outbound)
    caller.send('GET http://stock/items/1 HTTP/1.1\r\nHost: stock\r\nConnection: close\r\n\r\n')
    await caller.closed
    assert.match(caller.text, /^HTTP\/1\.1 200 [\s\S]*\/items\/1/)
  })

  test('goes on when a node has died and when an address belongs to another service by now, whatever the method', async (t) => {
    const stock = await service(t, (incoming, outgoing) => void incoming.pipe(outgoing))
    const alive = await start(t)
    await register(alive.sidecar, 'stock', stock.port)
    const stranger = await start(t)
    await register(stranger.sidecar, 'other', stock.port)
    const ours = await start(t)
    ours.client.set('stock', [
      { id: 'dead', port: await freePort() },
      { id: 'stranger', port: stranger.sidecar.ports.inbound },
      { id: 'alive', port: alive.sidecar.ports.inbound },
    ])
    for (let i = 0; i < 6; i++) {
      const answer = await call(ours.sidecar.ports.outbound, { host: 'stock', method: 'POST', body: `body ${i}` })
      assert.deepEqual([answer.status, answer.text], [200, `body ${i}`])
    }
    const stats = JSON.parse((await call(ours.sidecar.ports.admin, { path: '/v1/stats' })).text) as {
      requests: object
      failed: { outbound: object }
      retries: number
      servedFrom: object
    }
    assert.deepEqual(stats.requests, { outbound: 6, inbound: 0 })
    assert.deepEqual(stats.failed.outbound, {})
    assert.deepEqual(stats.servedFrom, { memory: 6, file: 0, peer: 0, registry: 0 })
    assert(stats.retries > 0)
  })

  for (const protocol of ['http', 'h2'] as const)
    test(`is not refused by the second what the first has taken, nor is its answer, over ${protocol}`, async (t) => {
      const names = (count: number) => Array.from({ length: count }, (_, i) => `x-${i}`)
      // By hand: node:http takes no head as long as that.
      const stock = await rawService(t, (socket) => {
        let head = ''
        socket.on('data', (piece) => {
          head += piece.toString('latin1')
          if (head.endsWith('\r\n\r\n'))
            socket.end(
              `HTTP/1.1 200 OK\r\n${names(256)
                .map((name) => `${name}:\r\n`)
                .join('')}\r\n${head.length}`,
            )
        })
      })
      const theirs = await start(t)
      await register(theirs.sidecar, 'stock', stock.port)
      const ours = await start(t)
      ours.client.set('stock', [{ id: 'n', port: theirs.sidecar.ports.inbound, protocol }])
      const fields = ['Host:stock', 'x-holdfast-timeout:5s', 'Connection:close', ...names(96).map((name) => `${name}:`)]
      const head = `GET / HTTP/1.1\r\n${fields.join('\r\n')}\r\nx-long:`
      const caller = new RawCaller(ours.sidecar.ports.outbound)
      t.after(() => caller.socket.destroy())
      caller.send(`${head}${'y'.repeat(61_440 - head.length - 4)}\r\n\r\n`)
      await caller.closed
      const answer = caller.text
      assert.match(answer, /^HTTP\/1\.1 200 [\s\S]*\r\nx-255: \r\n/)
      // In a chunk, or counted where all of it was there at once.
      assert.ok(Number(/\r\n(\d{5})(?:\r\n|$)/.exec(answer)?.[1]) > 61_440 - 100)
    })

  test('that states a timeout ends in time at both, and says so', async (t) => {
    let closed = false
    const slow = await service(t, (incoming) => void incoming.socket.on('close', () => (closed = true)))
    const { sidecar, client } = await start(t)
    await register(sidecar, 'slow', slow.port)
    client.set('slow', [{ id: 'n', port: sidecar.ports.inbound }])
    const answer = await call(sidecar.ports.outbound, { host: 'slow', headers: { 'x-holdfast-timeout': '500ms' } })
    assert.deepEqual([answer.status, answer.headers['x-holdfast-reason']], [504, 'deadline'])
    await eventually('the call to the service ends', () => closed)
  })

  test('becomes a WebSocket where its service agrees', async (t) => {
    const chat = await service(t, () => {})
    const sockets = new WebSocketServer({ server: chat.server })
    t.after(() => sockets.close())
    sockets.on('connection', (socket) => socket.on('message', (text: Buffer) => socket.send(`<${text.toString()}>`)))
    const { sidecar, client } = await start(t)
    await register(sidecar, 'chat', chat.port)
    client.set('chat', [{ id: 'n', port: sidecar.ports.inbound }])
    const socket = new WebSocket(`ws://127.0.0.1:${sidecar.ports.outbound}/room`, { headers: { host: 'chat' } })
    t.after(() => socket.terminate())
    await once(socket, 'open')
    for (const text of ['one', 'two']) {
      socket.send(text)
      const [heard] = (await once(socket, 'message')) as [Buffer]
      assert.equal(heard.toString(), `<${text}>`)
    }
    socket.close(1000, 'enough')
    assert.deepEqual((await once(socket, 'close')).map(String), ['1000', 'enough'])
  })

  test('is limited by the policy of its service', async (t) => {
    const slow = await service(t, () => {})
    const { sidecar, client } = await start(t)
    await register(sidecar, 'slow', slow.port)
    client.set('slow', [{ id: 'n', port: sidecar.ports.inbound }], { timeout: '60ms' })
    const answer = await call(sidecar.ports.outbound, { host: 'slow' })
    assert.equal(answer.headers['x-holdfast-reason'], 'deadline')
    assert.match(answer.text, /within 60 ms/)
  })

  test('of a policy that cannot be read goes on by the defaults', async (t) => {
    const stock = await service(t, (_incoming, outgoing) => void outgoing.end('ok'))
    const { sidecar, client } = await start(t)
    await register(sidecar, 'stock', stock.port)
    client.set('stock', [{ id: 'n', port: sidecar.ports.inbound }], { timeuot: '60ms' })
    assert.equal((await call(sidecar.ports.outbound, { host: 'stock' })).text, 'ok')
  })
})

test('an explanation of a request reads the policy of its service, and the time that the request states', async (t) => {
  const { sidecar, client } = await start(t)
  client.set('stock', [{ id: 'n' }], { timeout: '2s', loadBalancing: { strategy: 'random' } })
  const ask = async (query: string) =>
    JSON.parse((await call(sidecar.ports.admin, { path: `/v1/explain?service=stock${query}` })).text) as object
  const shown = await ask('&header.x-holdfast-timeout=1s')
  assert.deepEqual({ ...shown, timeoutMs: 1_000, strategy: 'random', candidates: ['n'] }, shown)
  assert.deepEqual({ ...(await ask('')), timeoutMs: 2_000, headers: {} }, await ask(''))
})

test('a service that hangs keeps nobody from another one behind the same sidecar', async (t) => {
  const hanging = await service(t, () => {})
  const stock = await service(t, (_incoming, outgoing) => void outgoing.end('here'))
  const theirs = await start(t)
  await register(theirs.sidecar, 'hanging', hanging.port)
  await register(theirs.sidecar, 'stock', stock.port)
  const ours = await start(t, { limits: { forward: { connections: 1, pending: 1 } } })
  for (const name of ['hanging', 'stock']) ours.client.set(name, [{ id: 'n', port: theirs.sidecar.ports.inbound }])
  const arrived = once(hanging.server, 'request')
  const caller = new RawCaller(ours.sidecar.ports.outbound).send('GET / HTTP/1.1\r\nHost: hanging\r\n\r\n')
  t.after(() => caller.socket.destroy())
  await arrived
  const headers = { 'x-holdfast-timeout': '5s' }
  assert.equal((await call(ours.sidecar.ports.outbound, { host: 'stock', headers })).status, 200)
})

describe('what the sidecar answers by itself', () => {
  test('says why', async (t) => {
    const { sidecar, client } = await start(t)
    client.set('empty', [])
    const expected: [string, number, string][] = [
      ['empty', 503, 'no_nodes'],
      ['unheard-of', 503, 'unknown_service'],
      ['not_a_name', 400, 'bad_request'],
    ]
    for (const [host, status, reason] of expected) {
      const answer = await call(sidecar.ports.outbound, { host })
      assert.deepEqual([answer.status, answer.headers['x-holdfast-reason']], [status, reason])
      assert.equal((JSON.parse(answer.text) as { code: string }).code, reason)
      assert.equal(answer.headers['content-type'], 'application/problem+json')
    }
    const inbound = await call(sidecar.ports.inbound, { host: 'stock' })
    assert.deepEqual([inbound.status, inbound.headers['x-holdfast-reason']], [421, 'not_here'])
  })

  test('a request that would run in circles ends', async (t) => {
    const { sidecar, client } = await start(t)
    client.set('loop', [{ id: 'n', port: sidecar.ports.outbound }])
    assert.equal((await call(sidecar.ports.outbound, { host: 'loop' })).headers['x-holdfast-reason'], 'loop_detected')
  })

  test('and so does one that a service leads back, without a word against its node', async (t) => {
    const ours = await start(t)
    const theirs = await start(t)
    assert.equal((await register(theirs.sidecar, 'loop', ours.sidecar.ports.outbound)).status, 201)
    ours.client.set('loop', [{ id: 'n', port: theirs.sidecar.ports.inbound }])
    const answer = await call(ours.sidecar.ports.outbound, { host: 'loop' })
    // Said of itself by what stands for the service, so not in the field.
    assert.deepEqual([answer.status, (JSON.parse(answer.text) as { code: string }).code], [508, 'loop_detected'])
    await eventually('all are over', () => ours.client.outcomes.length === 32 + 1)
    assert.deepEqual(new Set(ours.client.outcomes), new Set(['n ok']))
  })

  test('a port of its own is nobody’s service', async (t) => {
    const peers = await freePort()
    const { sidecar } = await start(t, { argv: ['--peer-port', String(peers), '--tcp', '0=db'] })
    const own = { ...sidecar.ports, tcp: sidecar.tcp[0]!.port }
    for (const [name, port] of Object.entries(own)) {
      const answer = await register(sidecar, 'loop', port)
      const { code, errors } = JSON.parse(answer.text) as { code: string; errors: [{ path: string; message: string }] }
      assert.deepEqual([answer.status, code, errors[0].path], [400, 'invalid_request', 'port'], name)
      assert.match(errors[0].message, new RegExp(`${port} is .* port of the sidecar itself`))
    }
  })

  test('a port of its own that the configuration or the file names is left out', async (t) => {
    const cacheDir = await mkdtemp(join(tmpdir(), 'holdfast-'))
    t.after(() => rm(cacheDir, { recursive: true, force: true }))
    const inbound = ['--inbound-port', String(await freePort())]
    const loop = await service(t, () => {})
    const first = await start(t, { cacheDir, argv: inbound })
    await register(first.sidecar, 'loop', loop.port)
    await first.sidecar.close()
    loop.stop()
    const argv = [...inbound, '--outbound-port', String(loop.port)]
    const { sidecar } = await start(t, { cacheDir, argv, services: [{ service: 'named', port: loop.port }] })
    const listed = await call(sidecar.ports.admin, { path: '/v1/registrations' })
    assert.deepEqual(JSON.parse(listed.text), { registrations: [] })
  })
})

describe('a drain', () => {
  test('deregisters, finishes what runs, lets it call others, and then refuses connections', async (t) => {
    let finish = () => {}
    const prices = await service(t, (_incoming, outgoing) => void outgoing.end('42'))
    const theirs = await start(t)
    await register(theirs.sidecar, 'prices', prices.port)
    const client = new FakeClient()
    client.set('prices', [{ id: 'p', port: theirs.sidecar.ports.inbound }])
    const ours = await start(t, { client })
    const { outbound, inbound } = ours.sidecar.ports
    const stock = await service(t, (_incoming, outgoing) => {
      finish = () => void call(outbound, { host: 'prices' }).then((answer) => outgoing.end(answer.text))
    })
    await register(ours.sidecar, 'stock', stock.port)
    const before = finish
    const running = call(inbound, { host: 'stock' })
    await eventually('the request is under way', () => finish !== before)

    const drained = ours.sidecar.drain()
    await eventually('it deregisters', () => client.events.includes('close stock'))
    assert.equal((await call(ours.sidecar.ports.admin, { path: '/readyz' })).status, 503)
    await eventually('it accepts no more', () => {
      probe(inbound)
      return refused.has(inbound)
    })
    finish()
    const answer = await running
    assert.deepEqual([answer.status, answer.text], [200, '42'])
    assert.equal(answer.headers.connection, 'close')
    await drained
    assert.equal(client.events.at(-1), 'close client')
    await assert.rejects(call(outbound, { host: 'prices' }), { code: 'ECONNREFUSED' })
  })

  test('serves what arrives before others have heard of it', async (t) => {
    const stock = await service(t, (_incoming, outgoing) => void outgoing.end('ok'))
    const { sidecar, client } = await start(t, { argv: ['--drain-settle', '10m'] })
    await register(sidecar, 'stock', stock.port)
    void sidecar.drain()
    await eventually('it deregisters', () => client.events.includes('close stock'))
    const answer = await call(sidecar.ports.inbound, { host: 'stock' })
    assert.deepEqual([answer.status, answer.headers.connection], [200, 'close'])
  })

  test('does not close a connection on which a request may be on its way', async (t) => {
    const stock = await service(t, (_incoming, outgoing) => void outgoing.end('ok'))
    const { sidecar } = await start(t, { idle: '10m' })
    await register(sidecar, 'stock', stock.port)
    const caller = new RawCaller(sidecar.ports.inbound)
    caller.send('GET / HTTP/1.1\r\nHost: stock\r\n\r\n')
    await caller.until(/ok/)
    const drained = sidecar.drain()
    await eventually('it accepts no more', () => {
      probe(sidecar.ports.inbound)
      return refused.has(sidecar.ports.inbound)
    })
    caller.text = ''
    caller.send('POST / HTTP/1.1\r\nHost: stock\r\nContent-Length: 1\r\n\r\nx')
    assert.match(await caller.until(/ok/), /^HTTP\/1\.1 200 [\s\S]*connection: close/i)
    await drained
  })
})

/** Ports that refuse connections, as {@link probe} found out. */
const refused = new Set<number>()
function probe(port: number): void {
  const caller = new RawCaller(port)
  caller.socket.once('connect', () => caller.socket.destroy())
  caller.socket.once('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'ECONNREFUSED') refused.add(port)
  })
}

describe('what is kept', () => {
  test('registrations made by a request survive the process, and are served before the registry knows them', async (t) => {
    const cacheDir = await mkdtemp(join(tmpdir(), 'holdfast-'))
    t.after(() => rm(cacheDir, { recursive: true, force: true }))
    const stock = await service(t, (_incoming, outgoing) => void outgoing.end('ok'))
    const port = await freePort()
    const argv = ['--inbound-port', String(port)]
    const first = await start(t, { cacheDir, argv })
    await register(first.sidecar, 'stock', stock.port)
    assert.match(await readFile(join(cacheDir, `sidecar-${port}.json`), 'utf8'), /"service": "stock"/)
    await first.sidecar.close()

    const client = new FakeClient()
    client.register = () => new Promise(() => {})
    const second = await start(t, { client, cacheDir, argv })
    assert.equal((await call(second.sidecar.ports.inbound, { host: 'stock' })).text, 'ok')
  })

  test('a line for every request goes where it was asked for', async (t) => {
    const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
    t.after(() => rm(directory, { recursive: true, force: true }))
    const file = join(directory, 'access.log')
    const stock = await service(t, (incoming, outgoing) => void incoming.pipe(outgoing))
    const { sidecar, client } = await start(t, { argv: ['--access-log', file] })
    await register(sidecar, 'stock', stock.port)
    client.set('stock', [{ id: 'n', port: sidecar.ports.inbound }])
    await call(sidecar.ports.outbound, { host: 'stock', path: '/a?secret=1', method: 'POST', body: '12345' })
    await call(sidecar.ports.outbound, { host: 'unheard-of' })
    await sidecar.drain()
    const lines = (await readFile(file, 'utf8'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>)
    assert.equal(lines.length, 3)
    const outbound = lines.find((line) => line.direction === 'outbound' && line.service === 'stock')!
    assert.equal(outbound.path, '/a')
    assert.deepEqual(
      [outbound.status, outbound.node, outbound.attempts, outbound.bytesIn, outbound.bytesOut, outbound.source],
      [200, 'n', 1, 5, 5, 'memory'],
    )
    assert.equal(lines.find((line) => line.direction === 'inbound')!.requestId, outbound.requestId)
    assert.equal(lines.find((line) => line.service === 'unheard-of')!.reason, 'unknown_service')
    assert(!(await readFile(file, 'utf8')).includes('secret'))
  })
})

test('metrics count requests by reason, and names that callers invent do not become labels', async (t) => {
  const { sidecar } = await start(t)
  for (let i = 0; i < 5; i++) await call(sidecar.ports.outbound, { host: `invented-${i}` })
  const { text } = await call(sidecar.ports.admin, { path: '/metrics' })
  assert.match(
    text,
    /holdfast_sidecar_requests_total\{direction="outbound",service="unknown",status="5xx",reason="unknown_service"\} 5/,
  )
  assert.doesNotMatch(text, /invented/)
  assert.match(text, /process_resident_memory_bytes/)
})

test('connections that are one too many are counted where an operator looks', async (t) => {
  const { sidecar } = await start(t, { limits: { listener: { connections: 2 } } })
  const { admin, inbound, outbound } = sidecar.ports
  const held = [new RawCaller(inbound), new RawCaller(inbound), new RawCaller(outbound)]
  t.after(() => held.forEach(({ socket }) => socket.destroy()))
  // What is answered has been accepted.
  for (const caller of held) await caller.send('GET / HTTP/1.1\r\nHost: nobody\r\n\r\n').until(/nobody/)
  for (let i = 0; i < 3; i++) await new RawCaller(inbound).closed
  const { connections } = JSON.parse((await call(admin, { path: '/v1/stats' })).text) as { connections: object }
  assert.deepEqual(connections, { outbound: { open: 1, refused: 0 }, inbound: { open: 2, refused: 3 } })
  const page = (await call(admin, { path: '/metrics' })).text
  assert.match(page, /^holdfast_sidecar_connections_open\{direction="inbound"\} 2$/m)
  assert.match(page, /^holdfast_sidecar_connections_refused_total\{direction="inbound"\} 3$/m)
  assert.match(page, /^holdfast_sidecar_connections_refused_total\{direction="outbound"\} 0$/m)
})

test('an address that is taken is said, and nothing is left running', async (t) => {
  const { sidecar } = await start(t)
  await assert.rejects(start(t, { argv: ['--outbound-port', String(sidecar.ports.inbound)] }), { code: 'EADDRINUSE' })
})

test('a node id is made of the advertised address, and is valid for IPv6 too', () => {
  assert.equal(nodeIdOf('10.0.0.1', 7502), '10.0.0.1:7502')
  assert.equal(nodeIdOf('::1', 7502), 'ip6-::1:7502')
})
