import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { createProbe, type HealthCheck } from '../../sidecar-plugin/src/local/health-check.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { startService } from './fakes.ts'

function check(type: HealthCheck['type'], path = '/'): HealthCheck {
  return { type, path, intervalMs: 2_000, timeoutMs: 1_000, unhealthyAfter: 3, healthyAfter: 1 }
}

function probe(over: HealthCheck, port: number, clock = systemClock) {
  return createProbe(over, { host: '127.0.0.1', port }, clock)(new AbortController().signal)
}

async function silentServer(t: TestContext): Promise<number> {
  const server = createServer(() => {})
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => server.close())
  return (server.address() as AddressInfo).port
}

async function closedPort(): Promise<number> {
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
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

for (const type of ['http', 'tcp'] as const)
  test(`a ${type} check tells a service that has stopped from one that is ill`, async () => {
    assert.equal((await probe(check(type), await closedPort())).verdict, 'refused')
  })

test('a TCP check passes as soon as somebody listens', async (t) => {
  assert.equal((await probe(check('tcp'), await silentServer(t))).verdict, 'passed')
})

test('no check always passes', async () => {
  assert.equal((await probe(check('none'), await closedPort())).verdict, 'passed')
})

test('a check ends at once when nobody wants it any more', async (t) => {
  const stop = new AbortController()
  const clock = new ManualClock()
  const result = createProbe(check('http'), { host: '127.0.0.1', port: await silentServer(t) }, clock)(stop.signal)
  stop.abort()
  assert.equal((await result).detail, 'stopped')
  assert.equal(clock.pending, 0)
})
