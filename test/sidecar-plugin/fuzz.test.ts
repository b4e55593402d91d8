/**
 * Whatever arrives by any entrance, from callers and from nodes, cut anywhere and broken off anyhow: nothing throws,
 * nothing stays, and the next one is served.
 */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect as connectHttp2, createServer as createHttp2Server } from 'node:http2'
import { connect, type Socket } from 'node:net'
import { test, type TestContext } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { adminApi, type AdminSubject } from '../../sidecar-plugin/src/api/admin.ts'
import { PeerApi } from '../../sidecar-plugin/src/api/peers.ts'
import { loadConfig } from '../../sidecar-plugin/src/config.ts'
import { SidecarError } from '../../sidecar-plugin/src/errors.ts'
import { createSidecar } from '../../sidecar-plugin/src/sidecar.ts'
import { greetingOf } from '../../sidecar-plugin/src/tcp/greeting.ts'
import { FRAME, frame, headers, PREFACE, settings, uint32 } from '../support/http2-frames.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { serveApi } from './apis.ts'
import { FakeClient, quietLog, RawCaller } from './fakes.ts'
import { CORPUS } from './http1/corpus.ts'
import { hello } from './tcp/client-hello.ts'
import { startRelay } from './tcp/relay.ts'
import { eventually, rawService, startWire } from './wire.ts'

const ATTACKS = 400
const AT_ONCE = 100
/** Every limit that may have to end what was begun, several times over. */
const PATIENCE_MS = 20_000

const LIMITS = { headMs: 200, idleMs: 400, keepAliveMs: 400, lingerMs: 100 } as const

type Rng = () => number
const below = (random: Rng, count: number) => Math.floor(random() * count)
const one = <T>(random: Rng, items: readonly T[]): T => items[below(random, items.length)]!

function noise(random: Rng, most: number): Buffer {
  return Buffer.from(Array.from({ length: below(random, most) }, () => below(random, 256)))
}

const REQUEST = [
  [':method', 'GET'],
  [':scheme', 'http'],
  [':authority', 'stock'],
  [':path', '/'],
] as const
const POST = [[':method', 'POST'], ...REQUEST.slice(1), ['content-length', '5']] as const
const ANSWER = [
  [':status', '200'],
  ['content-length', '5'],
] as const

/** Frames as either side may send them, and as neither may. */
function frames(random: Rng, count: number): Buffer {
  const stream = () => one(random, [0, 1, 1, 1, 2, 3, 5, 7, 0x7fffffff])
  const kinds: (() => Buffer)[] = [
    () => headers(stream(), REQUEST, random() < 0.5),
    () => headers(stream(), POST, false),
    () => headers(stream(), ANSWER, random() < 0.5),
    () => headers(stream(), [[':status', '103']], false),
    () => headers(stream(), [['grpc-status', '0']]),
    () => headers(stream(), [...REQUEST, [noise(random, 5).toString('latin1'), noise(random, 9).toString('latin1')]]),
    () => frame(FRAME.data, below(random, 2), stream(), Buffer.from('hello')),
    () => frame(FRAME.data, below(random, 256), stream(), noise(random, 300)),
    () => frame(FRAME.reset, 0, stream(), uint32(below(random, 14))),
    () => frame(FRAME.window, 0, stream(), uint32(below(random, 2) * 0x7fffffff)),
    () => frame(FRAME.goaway, 0, 0, Buffer.concat([uint32(below(random, 8)), uint32(below(random, 14))])),
    () => frame(FRAME.ping, below(random, 2), 0, Buffer.alloc(8)),
    () => frame(FRAME.continuation, below(random, 8), stream(), noise(random, 30)),
    () => settings([below(random, 8), below(random, 2 ** 32)]),
    () => frame(FRAME.settings, 1, 0),
    () => frame(below(random, 16), below(random, 256), stream(), noise(random, 50)),
    () => noise(random, 40),
  ]
  return Buffer.concat(Array.from({ length: count }, () => one(random, kinds)()))
}

/** Some bytes exchanged, left out, doubled. */
function damaged(random: Rng, bytes: Buffer): Buffer {
  let result = bytes
  for (let i = below(random, 4); i > 0 && result.length > 0; i--) {
    const at = below(random, result.length)
    const rest = result.subarray(Math.min(result.length, at + below(random, 4)))
    result = Buffer.concat([result.subarray(0, at), noise(random, 4), rest])
  }
  return result
}

const requests = (random: Rng) =>
  Buffer.concat(Array.from({ length: 1 + below(random, 3) }, () => Buffer.from(one(random, CORPUS).bytes, 'latin1')))
const http2 = (random: Rng) =>
  Buffer.concat([
    Buffer.from(PREFACE),
    settings(),
    // Most have something under way when the rest comes.
    ...[1, 3, 5].filter(() => random() < 0.7).map((id) => headers(id, REQUEST, random() < 0.7)),
    frames(random, 1 + below(random, 12)),
  ])

/** What callers say first: one protocol, another in the midst of it, or neither. */
function spoken(random: Rng): Buffer {
  const bytes = one<() => Buffer>(random, [
    () => http2(random),
    () => http2(random),
    () => requests(random),
    () => Buffer.concat([requests(random), http2(random)]),
    () => Buffer.concat([Buffer.from(PREFACE).subarray(0, below(random, 25)), requests(random)]),
    () => Buffer.concat([http2(random), requests(random)]),
    () => hello({ serverName: 'stock' }),
    () => noise(random, 200),
  ])()
  return random() < 0.5 ? bytes : damaged(random, bytes)
}

/** Says it in pieces, and ends somehow or leaves that to the other side. */
async function say(socket: Socket, bytes: Buffer, random: Rng): Promise<void> {
  socket.setNoDelay(true)
  for (let at = 0; at < bytes.length && !socket.destroyed;) {
    const end = at + 1 + below(random, random() < 0.5 ? 8 : 2_000)
    socket.write(bytes.subarray(at, end))
    at = end
    if (random() < 0.5) await new Promise<void>((done) => void setImmediate(done))
  }
  const how = random()
  if (how < 0.4) socket.end()
  else if (how < 0.5) socket.resetAndDestroy()
  else if (how < 0.6) socket.destroy()
}

/** All of them at one entrance; each connection has to end. */
async function attack(t: TestContext, port: number, seed: number, bytesOf: (random: Rng) => Buffer): Promise<void> {
  for (let begun = 0; begun < ATTACKS; begun += AT_ONCE)
    await Promise.all(
      Array.from({ length: AT_ONCE }, async (_, i) => {
        const random = seededRandom(seed + begun + i)
        const bytes = bytesOf(random)
        const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: random() < 0.5 })
        t.after(() => socket.destroy())
        socket.on('error', () => {})
        socket.resume()
        const closed = new Promise<boolean>((resolve) => socket.once('close', () => resolve(true)))
        // Who may close its half alone closes the other one when it has heard all.
        socket.once('end', () => socket.end())
        let cancel = () => {}
        const late = new Promise<boolean>((resolve) => (cancel = systemClock.after(PATIENCE_MS, () => resolve(false))))
        await say(socket, bytes, random)
        const hasEnded = await Promise.race([closed, late])
        cancel()
        assert(hasEnded, `never ended (seed ${seed + begun + i}): ${bytes.toString('hex').slice(0, 4_000)}`)
      }),
    )
}

/** Both ways in still work. */
async function works(port: number): Promise<void> {
  const caller = new RawCaller(port).send('GET / HTTP/1.1\r\nHost: stock\r\nConnection: close\r\n\r\n')
  assert.match(await caller.until(/served/), /^HTTP\/1\.1 200 /)
  await caller.closed
  const session = connectHttp2(`http://127.0.0.1:${port}`)
  const stream = session.request({ ':authority': 'stock' })
  const [head] = (await once(stream, 'response')) as [{ ':status'?: number }]
  stream.resume()
  await once(stream, 'close')
  assert.equal(head[':status'], 200)
  session.close()
  await once(session, 'close')
}

for (const protocol of ['http', 'h2'] as const)
  test(`whatever callers say, before a service that speaks ${protocol}`, async (t) => {
    const wire =
      protocol === 'http'
        ? await startWire((incoming, outgoing) => void incoming.on('end', () => outgoing.end('served')).resume(), {
            listener: LIMITS,
          })
        : await startWire(() => {}, {
            listener: LIMITS,
            protocol,
            service: await http2Service(),
          })
    t.after(() => wire.stop())
    await works(wire.port)
    await attack(t, wire.port, 1_000, spoken)
    await works(wire.port)
    await eventually('nothing is left', () => wire.listener.connections === 0 && wire.listener.inFlight === 0)
    await eventually('nothing is under way', () => wire.forward.load.inFlight === 0)
    assert.equal(wire.exchanges.length, wire.endings.length)
    t.diagnostic(`${wire.exchanges.length} requests, ${wire.malformed.length} refusals`)
  })

for (const protocol of ['http', 'h2'] as const)
  test(`whatever a node says that was asked in ${protocol}`, async (t) => {
    const random = seededRandom(7)
    const answers = CORPUS.map(({ bytes }) => `HTTP/1.1 200 OK\r\n${bytes.slice(bytes.indexOf('\n') + 1)}`)
    const node = await rawService(t, (socket) => {
      const bytes =
        protocol === 'http'
          ? damaged(random, Buffer.from(one(random, answers), 'latin1'))
          : damaged(
              random,
              Buffer.concat([
                settings(),
                frame(FRAME.settings, 1, 0),
                ...(random() < 0.5 ? [headers(1, ANSWER, false), frame(FRAME.data, 0, 1, Buffer.from('he'))] : []),
                frames(random, 8),
              ]),
            )
      socket.once('data', () => void say(socket, bytes, random))
      socket.resume()
    })
    const wire = await startWire(() => {}, {
      service: node,
      protocol,
      listener: LIMITS,
      forward: { connectMs: 300, idleMs: 300, keepAliveMs: 200, sessionIdleMs: 200, quietMs: 200, pingMs: 100 },
      layers: [
        (inner) => (exchange) => {
          // As the deadline does: how long to wait for an answer is a layer's decision.
          const cancel = systemClock.after(500, () => exchange.abort(new SidecarError('deadline', 'no answer')))
          exchange.whenEnded(cancel)
          return inner(exchange)
        },
      ],
    })
    t.after(() => wire.stop())
    const asked = Buffer.from(
      'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n',
    )
    const viaHttp2 = Buffer.concat([Buffer.from(PREFACE), settings(), headers(1, REQUEST), headers(3, REQUEST)])
    await attack(t, wire.port, 2_000, (rng) => (rng() < 0.5 ? asked : viaHttp2))
    await eventually('nothing is left', () => wire.listener.connections === 0 && wire.listener.inFlight === 0)
    await eventually('nothing is under way', () => wire.forward.load.inFlight === 0)
    assert.equal(wire.exchanges.length, wire.endings.length)
    t.diagnostic(`${wire.exchanges.length} requests`)
  })

test('whatever is said to the APIs of the sidecar itself', async (t) => {
  const subject: Partial<AdminSubject> = { config: () => ({}), view: async () => ({}) }
  const view = async () => ({ document: {}, nodes: 1 })
  const peers = new PeerApi({ clock: systemClock, log: quietLog, namespace: 'home', view })
  const said = (random: Rng) => {
    const bytes = spoken(random)
    if (random() < 0.5) return bytes
    const path = one(random, ['/v1/config', '/v1/views', '/v1/views/stock', '/v1/drain', '/v1/registrations/a'])
    return Buffer.from(bytes.toString('latin1').replaceAll(' / ', ` ${path} `), 'latin1')
  }
  for (const listening of [adminApi(subject as AdminSubject, 'home', quietLog), peers.listening]) {
    const { port, listener } = await serveApi(t, { ...listening, limits: { ...listening.limits, ...LIMITS } })
    await attack(t, port, 5_000, said)
    await eventually('nothing is left', () => listener.connections === 0 && listener.inFlight === 0)
    const caller = new RawCaller(port).send('GET /v1/views/stock HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert.match(await caller.until(/\}/), /^HTTP\/1\.1 200 /)
    caller.socket.destroy()
  }
})

test('whatever callers say where it is looked at what they speak', async (t) => {
  const wire = await startWire((incoming, outgoing) => void incoming.on('end', () => outgoing.end('served')).resume(), {
    listener: LIMITS,
  })
  t.after(() => wire.stop())
  const service = await rawService(t, (socket) => void socket.pipe(socket))
  const relay = await startRelay(t, [service.port], {
    limits: { detectMs: 100, idleMs: 400, lingerMs: 100 },
    http: (transport, first) => wire.listener.adopt(transport, first),
  })
  await works(relay.port)
  await attack(t, relay.port, 3_000, spoken)
  await works(relay.port)
  await eventually('no relay is left', () => relay.traffic().open === 0 && relay.forward.connections === 0)
  await eventually('no request is left', () => wire.listener.connections === 0 && wire.listener.inFlight === 0)
})

test('whatever is said at the entrance of a TCP service reaches it, but for a greeting', async (t) => {
  const heard: Buffer[] = []
  let serving = 0
  const service = await rawService(t, (socket) => {
    serving++
    socket.once('close', () => serving--)
    const pieces: Buffer[] = []
    socket.on('data', (piece: Buffer) => void pieces.push(piece))
    socket.on('end', () => {
      heard.push(Buffer.concat(pieces))
      socket.end()
    })
  })
  const { config } = loadConfig({
    argv: [
      ...['--admin-port', '0', '--outbound-port', '0', '--inbound-port', '0', '--no-file-cache'],
      ...['--tcp-idle', '1s', '--config', 'sidecar.yaml'],
    ],
    env: {},
    readFile: () => JSON.stringify({ services: [{ service: 'orders', port: service.port, protocol: 'tcp' }] }),
  })
  const client = new FakeClient()
  const sidecar = await createSidecar({ config, log: quietLog, random: seededRandom(1), client })
  t.after(() => sidecar.close())
  await eventually('the service is registered', () => client.registered.length === 1)
  const { port } = client.registered[0]!
  const greeting = greetingOf('orders.default')
  await attack(t, port, 4_000, (random) => damaged(random, Buffer.concat([greeting, noise(random, 100)])))
  const open = async () => {
    const answer = await fetch(`http://127.0.0.1:${sidecar.ports.admin}/v1/stats`)
    return ((await answer.json()) as { tcp: { open: number }[] }).tcp[0]!.open
  }
  while ((await open()) > 0) continue
  await eventually('the service has heard all', () => serving === 0)
  heard.length = 0
  for (let cut = 0; cut <= greeting.length; cut++) {
    const caller = new RawCaller(port, { allowHalfOpen: true })
    caller.socket.setNoDelay(true)
    const said = Buffer.concat([greeting, Buffer.from('mine')])
    caller.socket.write(said.subarray(0, cut))
    await new Promise<void>((done) => void setImmediate(done))
    caller.socket.end(said.subarray(cut))
    await caller.closed
    assert.equal(caller.text, '\xf5ok\n')
  }
  while ((await open()) > 0) continue
  await eventually('it has heard all', () => serving === 0)
  assert.deepEqual(
    heard.map(String),
    Array.from({ length: greeting.length + 1 }, () => 'mine'),
  )
})

async function http2Service() {
  const server = createHttp2Server()
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => sockets.add(socket))
  server.on('sessionError', () => {})
  server.on('stream', (stream) => {
    stream.on('error', () => {})
    stream.resume().on('end', () => {
      if (stream.destroyed) return
      stream.respond({ ':status': 200 })
      stream.end('served')
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as { port: number }).port,
    stop: () => {
      server.close()
      for (const socket of sockets) socket.destroy()
    },
  }
}
