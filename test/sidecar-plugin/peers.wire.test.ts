/** What strangers can send to the port for peers: each is refused in words, then closed, and nothing stays behind. */

import assert from 'node:assert/strict'
import { describe, test, type TestContext } from 'node:test'
import { PeerApi, type PeerApiLimits } from '../../sidecar-plugin/src/api/peers.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { serveApi } from './apis.ts'
import { quietLog, RawCaller } from './fakes.ts'

const GET = 'GET /v1/views/stock HTTP/1.1\r\nhost: a\r\n\r\n'

async function start(t: TestContext, limits: Partial<PeerApiLimits> = {}) {
  const asked: string[] = []
  const clock = new ManualClock()
  const peers = new PeerApi({
    clock,
    log: quietLog,
    namespace: 'home',
    limits,
    view: async (service) => {
      asked.push(service)
      return service === 'never' ? undefined : { document: { service }, nodes: 1 }
    },
  })
  const { port } = await serveApi(t, peers.listening, clock)
  return { clock, peers, asked, caller: (options = {}) => new RawCaller(port, options) }
}

const statuses = (text: string) => [...text.matchAll(/HTTP\/1\.1 (\d{3})/g)].map((match) => Number(match[1]))

describe('on the port for peers', { timeout: 30_000 }, () => {
  const refused: Record<string, { sent: string; status: number }> = {
    'a tunnel': { sent: 'CONNECT 10.0.0.1:22 HTTP/1.1\r\nhost: a\r\n\r\n', status: 405 },
    TLS: { sent: '\u0016\u0003\u0001\u0002\u0000\u0001\u0000', status: 400 },
    'HTTP/2': { sent: 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', status: 505 },
    garbage: { sent: '\u0000\u00ff\u0080garbage\r\n\r\n', status: 400 },
    'a line that never ends': { sent: `GET /${'x'.repeat(10_000)}`, status: 431 },
    'a head that is too large': { sent: `GET / HTTP/1.1\r\nhost: a\r\nx: ${'x'.repeat(10_000)}\r\n\r\n`, status: 431 },
    'many fields': { sent: `GET / HTTP/1.1\r\nhost: a\r\n${'a: b\r\n'.repeat(3_000)}\r\n`, status: 431 },
    'a request without a host': { sent: 'GET /v1/views/stock HTTP/1.1\r\n\r\n', status: 400 },
    'two lengths': { sent: 'GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n', status: 400 },
    'a length and chunks': {
      sent: 'GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n',
      status: 400,
    },
    'a body in chunks': {
      sent: 'GET /v1/views/stock HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
      status: 400,
    },
  }
  for (const [what, { sent, status }] of Object.entries(refused))
    test(`${what} is refused and closed, whoever keeps a side open, and makes room for the next`, async (t) => {
      const { clock, asked, caller } = await start(t, { connections: 1, timeoutMs: 200 })
      const first = caller({ allowHalfOpen: true }).send(sent)
      await first.until(/HTTP\/1\.1 \d{3}.*connection: close\r\n/is)
      assert.deepEqual(statuses(first.text), [status])
      assert.deepEqual(asked, [])
      // Only one connection is taken: the next is answered once the first is gone on this side, though it is open there.
      for (let next = caller().send(GET); ; next = caller().send(GET)) {
        const text = await next.until(/200 OK/).catch(() => '')
        next.socket.destroy()
        if (text !== '') break
        await clock.advance(100)
      }
      first.socket.destroy()
    })

  test('what is refused before it is a request is counted too', async (t) => {
    const { peers, caller } = await start(t)
    for (const { sent } of [refused['a tunnel']!, refused.garbage!]) {
      const stranger = caller().send(sent)
      await stranger.closed
    }
    assert.equal(peers.status().refused, 2)
  })

  test('an upgrade is not taken: the request is answered as it is', async (t) => {
    const { caller } = await start(t)
    const upgrade = caller().send(
      'GET /v1/views/stock HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n',
    )
    const text = await upgrade.until(/\{"service":"stock"\}/)
    assert.deepEqual(statuses(text), [200])
    upgrade.socket.destroy()
  })

  test('a head that comes slowly, byte by byte, is let go of', async (t) => {
    const { clock, caller } = await start(t, { timeoutMs: 100, headBytes: 10_000_000 })
    const slow = caller().send('GET /v1/views/stock HTTP/1.1\r\nhost: a\r\nx: ')
    let isClosed = false
    void slow.closed.then(() => (isClosed = true))
    while (!isClosed) {
      slow.send('x')
      await settle()
      await clock.advance(10)
    }
    // The answer may be lost on the way to one that is still sending.
    assert.deepEqual(statuses(slow.text), slow.text === '' ? [] : [408])
  })

  test('requests in one piece are answered in their order, each by itself', async (t) => {
    const { caller, peers } = await start(t)
    const services = ['a', 'never', 'b', 'c']
    const requests = services.map((name) => GET.replace('stock', name)).join('')
    const pipelined = caller().send(requests)
    const text = await pipelined.until(/\{"service":"c"\}/)
    assert.deepEqual(statuses(text), [200, 404, 200, 200])
    assert.deepEqual(
      [...text.matchAll(/\{"service":"(.)"\}/g)].map((match) => match[1]),
      ['a', 'b', 'c'],
    )
    assert.deepEqual(peers.status(), { answered: 3, unknown: 1, refused: 0 })
    pipelined.socket.destroy()
  })

  test('requests in one piece are answered no oftener than others, and end with the first that is refused', async (t) => {
    const { caller, peers } = await start(t, { burst: 5, perSecond: 1 })
    const pipelined = caller().send(GET.repeat(500))
    await pipelined.closed
    assert.deepEqual(statuses(pipelined.text), [200, 200, 200, 200, 200, 429])
    assert.equal(peers.status().answered, 5)
  })

  test('whoever goes in the middle of anything leaves it able to answer', async (t) => {
    const { clock, caller } = await start(t, { connections: 4, timeoutMs: 200 })
    for (let cut = 1; cut <= GET.length; cut += 3) {
      const gone = caller().send(GET.slice(0, cut))
      gone.socket.resetAndDestroy()
      await gone.closed
    }
    for (let answered = false; !answered;) {
      const next = caller().send(GET)
      answered = await next.until(/200 OK/).then(
        () => true,
        () => false,
      )
      next.socket.destroy()
      await clock.advance(100)
    }
  })
})
