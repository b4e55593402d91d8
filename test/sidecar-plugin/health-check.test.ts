import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer as createHttp2Server, type Http2Server, type ServerHttp2Stream } from 'node:http2'
import { createServer, Socket, type AddressInfo } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { Server as GrpcServer, ServerCredentials, status as code } from '@grpc/grpc-js'
import fc from 'fast-check'
import { systemClock } from '@holdfast/registry-client/clock'
import type { Protocol } from '@holdfast/registry-client/protocol'
import {
  HEALTH_CHECK_PATH,
  healthCheckRequest,
  readHealthCheckResponse,
} from '../../sidecar-plugin/src/local/grpc-health.ts'
import { createProbe, type HealthCheck } from '../../sidecar-plugin/src/local/health-check.ts'
import { freePort } from '../support/free-port.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { startService } from './fakes.ts'

function check(type: HealthCheck['type'], path = '/'): HealthCheck {
  return { type, path, intervalMs: 2_000, timeoutMs: 1_000, unhealthyAfter: 3, healthyAfter: 1 }
}

function probe(over: HealthCheck, port: number, clock = systemClock, protocol?: Protocol) {
  return createProbe(over, { host: '127.0.0.1', port, protocol }, clock)(new AbortController().signal)
}

/** A service of HTTP/2 alone. */
async function http2Service(t: TestContext, onStream: (stream: ServerHttp2Stream, path: string) => void) {
  const server: Http2Server = createHttp2Server()
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => sockets.add(socket))
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {})
    onStream(stream, headers[':path']!)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
  return (server.address() as AddressInfo).port
}

async function silentServer(t: TestContext): Promise<number> {
  const server = createServer(() => {})
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => server.close())
  return (server.address() as AddressInfo).port
}

describe('an HTTP check', () => {
  for (const [status, verdict] of [
    [200, 'passed'],
    [204, 'passed'],
    [302, 'passed'],
    [404, 'failed'],
    [503, 'failed'],
  ] as const)
    test(`takes ${status} as ${verdict}, and asks for the path it was given`, async (t) => {
      const asked: string[] = []
      const service = await startService((incoming, outgoing) => {
        asked.push(incoming.url!)
        outgoing.writeHead(status).end('x'.repeat(100_000))
      })
      t.after(() => service.stop())
      const result = await probe(check('http', '/healthz'), service.port)
      assert.deepEqual(result, { verdict, detail: `GET /healthz answered ${status}` })
      assert.deepEqual(asked, ['/healthz'])
    })

  test('fails when the service does not answer in time', async (t) => {
    const clock = new ManualClock()
    const result = probe(check('http'), await silentServer(t), clock)
    await clock.advance(1_000)
    assert.deepEqual(await result, { verdict: 'failed', detail: 'no answer within 1000 ms' })
  })
})

describe('an HTTP check of a service that speaks HTTP/2', () => {
  for (const [status, verdict] of [
    [200, 'passed'],
    [302, 'passed'],
    [503, 'failed'],
  ] as const)
    test(`takes ${status} as ${verdict}`, async (t) => {
      const asked: string[] = []
      const port = await http2Service(t, (stream, path) => {
        asked.push(path)
        stream.respond({ ':status': status })
        stream.end('x'.repeat(100_000))
      })
      const result = await probe(check('http', '/healthz'), port, systemClock, 'h2')
      assert.deepEqual(result, { verdict, detail: `GET /healthz answered ${status}` })
      assert.deepEqual(asked, ['/healthz'])
    })

  test('fails when the service speaks something else, resets it, or says nothing', async (t) => {
    const other = await startService((_incoming, outgoing) => void outgoing.end())
    t.after(() => other.stop())
    const clock = new ManualClock()
    for (const protocol of ['h2', 'grpc'] as const) {
      assert.equal((await probe(check('http'), other.port, systemClock, protocol)).verdict, 'failed')
      const resets = await http2Service(t, (stream) => stream.close(2))
      assert.equal((await probe(check('http'), resets, systemClock, protocol)).verdict, 'failed')
      const leaves = await http2Service(t, (stream) => stream.session!.destroy())
      assert.equal((await probe(check('http'), leaves, systemClock, protocol)).verdict, 'failed')
      const silent = probe(check('http'), await silentServer(t), clock, protocol)
      await clock.advance(1_000)
      assert.deepEqual(await silent, { verdict: 'failed', detail: 'no answer within 1000 ms' })
    }
  })
})

describe('an HTTP check of a service of gRPC', () => {
  /** Statuses by the service's name, as a real server tells them. */
  async function grpcService(t: TestContext, statuses: Record<string, number>): Promise<number> {
    const server = new GrpcServer()
    server.addService(
      {
        check: {
          path: HEALTH_CHECK_PATH,
          requestStream: false,
          responseStream: false,
          requestSerialize: (bytes: Buffer) => bytes,
          requestDeserialize: (bytes: Buffer) => bytes,
          responseSerialize: (bytes: Buffer) => bytes,
          responseDeserialize: (bytes: Buffer) => bytes,
        },
      },
      {
        check: (call: { request: Buffer }, answer: (error: object | null, bytes?: Buffer) => void) => {
          const status = statuses[call.request.subarray(2).toString()]
          if (status === undefined) answer({ code: code.NOT_FOUND, details: 'unknown service' })
          else answer(null, status === 0 ? Buffer.alloc(0) : Buffer.from([8, status]))
        },
      },
    )
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    )
    t.after(() => server.forceShutdown())
    return port
  }

  test('asks for the server, or for the service that its path names, and believes SERVING alone', async (t) => {
    const port = await grpcService(t, { '': 1, 'shop.Orders': 2, 'shop.New': 0, 'shop.Later': 9 })
    for (const [path, verdict, detail] of [
      ['/', 'passed', 'Check answered SERVING'],
      ['/shop.Orders', 'failed', 'Check answered NOT_SERVING'],
      ['/shop.New', 'failed', 'Check answered UNKNOWN'],
      ['/shop.Later', 'failed', 'Check answered 9'],
      ['/shop.Other', 'failed', 'Check answered grpc-status 5'],
    ] as const)
      assert.deepEqual(await probe(check('http', path), port, systemClock, 'grpc'), { verdict, detail })
  })

  test('says so when there is no such call', async (t) => {
    const server = new GrpcServer()
    const port = await new Promise<number>((resolve) =>
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (_error, bound) => resolve(bound)),
    )
    t.after(() => server.forceShutdown())
    assert.deepEqual(await probe(check('http'), port, systemClock, 'grpc'), {
      verdict: 'failed',
      detail: 'Check answered grpc-status 12: the service does not have grpc.health.v1.Health',
    })
  })

  test('takes nothing else for an answer, however much it is', async (t) => {
    for (const [bytes, fields, detail] of [
      [Buffer.alloc(2_000), {}, 'Check answered more than 1024 bytes'],
      [Buffer.from('hello'), { 'grpc-status': '0' }, 'Check answered what cannot be read'],
      [Buffer.from([0, 0, 0, 0, 2, 8, 1]), {}, 'Check answered 200 and no grpc-status'],
    ] as const) {
      const port = await http2Service(t, (stream) => {
        stream.respond({ ':status': 200 }, { waitForTrailers: true })
        stream.on('wantTrailers', () => stream.sendTrailers(fields))
        stream.end(bytes)
      })
      assert.deepEqual(await probe(check('http'), port, systemClock, 'grpc'), { verdict: 'failed', detail })
    }
    const page = await http2Service(t, (stream) => {
      stream.respond({ ':status': 404 })
      stream.end()
    })
    const { detail } = await probe(check('http'), page, systemClock, 'grpc')
    assert.equal(detail, 'Check answered 404 and no grpc-status')
  })

  test('sends one string, of any length', () => {
    assert.deepEqual([...healthCheckRequest('')], [0, 0, 0, 0, 0])
    assert.deepEqual([...healthCheckRequest('ab')], [0, 0, 0, 0, 4, 0x0a, 2, 0x61, 0x62])
    const long = healthCheckRequest('x'.repeat(300))
    assert.deepEqual([...long.subarray(0, 8)], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02])
  })

  test('reads over what it does not know, and never beyond the message', () => {
    const message = (...bytes: number[]) => Buffer.from([0, 0, 0, 0, bytes.length, ...bytes])
    const others = [0x10, 0x96, 0x01, 0x1a, 2, 8, 2, 0x25, 1, 2, 3, 4, 0x29, 1, 2, 3, 4, 5, 6, 7, 8]
    assert.equal(readHealthCheckResponse(message(...others, 8, 1, ...others)), 'SERVING')
    for (const broken of [[8], [8, 0x80], [0x1a, 5, 8, 1], [0x25, 1], [0x0b, 8, 1], Array(20).fill(0xff)])
      assert.equal(readHealthCheckResponse(message(...(broken as number[]))), undefined)
    for (const prefix of [
      [1, 0, 0, 0, 2, 8, 1],
      [0, 0, 0, 0, 3, 8, 1],
      [0, 0, 0, 0, 1, 8, 1],
      [0, 0, 0],
    ])
      assert.equal(readHealthCheckResponse(Buffer.from(prefix)), undefined)
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), (bytes) => {
        const status = readHealthCheckResponse(message(...bytes))
        assert(status === undefined || status.length > 0)
      }),
    )
  })
})

for (const [type, protocol] of [
  ['http', 'http'],
  ['http', 'h2'],
  ['http', 'grpc'],
  ['tcp', 'http'],
] as const)
  test(`a ${type} check in ${protocol} tells a service that has stopped from one that is ill`, async () => {
    const { verdict } = await probe(check(type), await freePort(), systemClock, protocol)
    assert.equal(verdict, 'refused')
  })

for (const [type, protocol] of [
  ['http', 'http'],
  ['http', 'h2'],
  ['http', 'grpc'],
  ['tcp', 'http'],
] as const)
  test(`a ${type} check in ${protocol} for which this process has nothing left says nothing of the service`, async (t) => {
    t.mock.method(Socket.prototype, 'connect', function (this: Socket) {
      // Not at once: Node's own makes the socket in the next turn, when whoever wants it listens.
      process.nextTick(() => this.destroy(Object.assign(new Error('connect EMFILE'), { code: 'EMFILE' })))
      return this
    })
    const result = await probe(check(type), 1, systemClock, protocol)
    assert.deepEqual(result, { verdict: 'unmade', detail: 'could not be checked: EMFILE' })
  })

test('a TCP check passes as soon as somebody listens', async (t) => {
  assert.equal((await probe(check('tcp'), await silentServer(t))).verdict, 'passed')
})

test('no check always passes', async () => {
  assert.equal((await probe(check('none'), await freePort())).verdict, 'passed')
})

for (const protocol of ['http', 'h2', 'grpc'] as const)
  test(`a check in ${protocol} ends at once when nobody wants it any more`, async (t) => {
    const stop = new AbortController()
    const clock = new ManualClock()
    const target = { host: '127.0.0.1', port: await silentServer(t), protocol }
    const result = createProbe(check('http'), target, clock)(stop.signal)
    stop.abort()
    assert.equal((await result).detail, 'stopped')
    assert.equal(clock.pending, 0)
  })
