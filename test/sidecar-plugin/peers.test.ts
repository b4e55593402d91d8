import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { encodeView } from '@holdfast/registry-client/protocol'
import { PeerApi, type PeerApiLimits } from '../../sidecar-plugin/src/api/peers.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { listenFor, serveApi } from './apis.ts'
import { quietLog, RawCaller, viewOf } from './fakes.ts'

async function call(port: number, path: string, method: string) {
  const outgoing = request({ port, host: '127.0.0.1', path, method, agent: false }).end()
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response) text += String(chunk)
  return { status: response.statusCode!, headers: response.headers, text }
}

/** Counts how often it is read, which whoever arrives does. */
class WatchedClock extends ManualClock {
  reads = 0

  override now(): number {
    this.reads++
    return super.now()
  }
}

async function start(limits: Partial<PeerApiLimits> = {}, nodes = 1) {
  const clock = new ManualClock()
  const view = viewOf(
    'stock',
    Array.from({ length: nodes }, (_, index) => ({ id: `n${index}` })),
  )
  const asked: string[] = []
  const peers = new PeerApi({
    clock,
    log: quietLog,
    namespace: 'home',
    limits,
    view: async (service, namespace) => {
      asked.push(`${namespace}/${service}`)
      if (service === 'broken') throw new Error('the disk is gone')
      return service === 'stock' ? { document: { ...encodeView(view), age: 7, source: 'file' }, nodes } : undefined
    },
  })
  const { listener, port } = await listenFor(peers.listening, clock)
  return { clock, peers, listener, port, asked, get: (path: string, method = 'GET') => call(port, path, method) }
}

describe('the listener for peers', () => {
  test('answers with a view, its age and its source, and nothing else', async () => {
    const { listener, peers, get, asked } = await start()
    const found = await get('/v1/views/stock?namespace=blue')
    assert.equal(found.status, 200)
    assert.equal(found.headers['content-type'], 'application/json')
    const shown = JSON.parse(found.text) as Record<string, unknown>
    assert.deepEqual([shown.service, shown.cursor, shown.age, shown.source], ['stock', 'epoch:1', 7, 'file'])
    assert.equal((await get('/v1/views/never')).status, 404)
    assert.deepEqual(asked, ['blue/stock', 'home/never'])
    assert.deepEqual(peers.status(), { answered: 1, unknown: 1, refused: 0 })
    listener.close()
  })

  test('commands nothing and shows nothing else: every other path and method is refused', async () => {
    const { listener, get, asked } = await start()
    for (const path of [
      '/',
      '/v1/views',
      '/v1/config',
      '/v1/stats',
      '/metrics',
      '/v1/rehearsal',
      '/v1/registrations',
      '//',
    ])
      assert.equal((await get(path)).status, 404, path)
    for (const method of ['PUT', 'POST', 'DELETE', 'PATCH', 'HEAD', 'OPTIONS'])
      assert.equal((await get('/v1/views/stock', method)).status, 405, method)
    assert.equal((await get('/v1/drain', 'POST')).status, 404)
    for (const path of ['/v1/views/', '/v1/views/..%2fetc', '/v1/views/Stock', '/v1/views/stock?namespace=../x'])
      assert.equal((await get(path)).status, 400, path)
    assert.deepEqual(asked, [])
    listener.close()
  })

  test('refuses bodies, heads that are long, and what is not HTTP', async () => {
    const { listener, port, asked } = await start()
    for (const [sent, status] of [
      ['GET /v1/views/stock HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello', 400],
      [`GET /v1/views/stock HTTP/1.1\r\nhost: a\r\nx: ${'x'.repeat(5_000)}\r\n\r\n`, 431],
      ['\u0016\u0003\u0001\u0002\u0000', 400],
    ] as const) {
      const caller = new RawCaller(port).send(sent)
      assert.match(await caller.until(/HTTP\/1\.1 \d{3}/), new RegExp(`HTTP/1.1 ${status}`))
      caller.socket.destroy()
    }
    assert.deepEqual(asked, [])
    listener.close()
  })

  test('lets go of those who take their time with a head', async () => {
    const { clock, listener, port } = await start({ timeoutMs: 50 })
    const caller = new RawCaller(port).send('GET /v1/views/stock HTTP/1.1\r\n')
    while (!/^HTTP\/1\.1 408 /.test(caller.text)) await clock.advance(10)
    await caller.closed
    listener.close()
  })

  test('takes only so many connections', async () => {
    const { listener, port } = await start({ connections: 2 })
    const held = [connect(port, '127.0.0.1'), connect(port, '127.0.0.1')]
    await Promise.all(held.map((socket) => once(socket, 'connect')))
    const third = new RawCaller(port).send('GET /v1/views/stock HTTP/1.1\r\nhost: a\r\n\r\n')
    await third.closed
    assert.equal(third.text, '')
    for (const socket of held) socket.destroy()
    listener.close()
  })

  test('answers only so often, and large views less often', async () => {
    const small = await start({ perSecond: 10, burst: 3 })
    const statuses = async (made: typeof small, times: number) => {
      const seen: number[] = []
      for (let i = 0; i < times; i++) seen.push((await made.get('/v1/views/stock')).status)
      return seen
    }
    assert.deepEqual(await statuses(small, 5), [200, 200, 200, 429, 429])
    assert.equal((await small.get('/v1/views/stock')).headers['retry-after'], '1')
    await small.clock.advance(100)
    assert.deepEqual(await statuses(small, 2), [200, 429])
    small.listener.close()
    const large = await start({ perSecond: 10, burst: 3 }, 1_000)
    assert.deepEqual(await statuses(large, 2), [200, 429])
    await large.clock.advance(800)
    assert.deepEqual(await statuses(large, 1), [429])
    await large.clock.advance(200)
    assert.deepEqual(await statuses(large, 2), [200, 429])
    large.listener.close()
  })

  describe('when many ask at once', () => {
    /** A listener whose files are read when the test says so. */
    async function reading(t: TestContext, limits: Partial<PeerApiLimits> = {}, nodes = 1) {
      const reads = new Map<string, () => void>()
      const texts: string[] = []
      const clock = new WatchedClock()
      const peers = new PeerApi({
        clock,
        log: quietLog,
        namespace: 'home',
        limits,
        isAtHand: (service) => service === 'held',
        view: async (service) => {
          if (service !== 'held') await new Promise<void>((resolve) => reads.set(service, resolve))
          const toJSON = () => {
            texts.push(service)
            return { service }
          }
          return { document: { toJSON }, nodes }
        },
      })
      const { port } = await serveApi(t, peers.listening)
      const before = clock.reads
      const get = (service: string) => call(port, `/v1/views/${service}`, 'GET')
      const started = async (...services: string[]) => {
        while (!services.every((service) => reads.has(service))) await settle()
      }
      const arrived = async (count: number) => {
        while (clock.reads < before + count) await settle()
      }
      return { peers, reads, texts, get, started, arrived }
    }

    test('for one service, it is looked for once, and put into text once', async (t) => {
      const { reads, texts, get, started, arrived } = await reading(t)
      const answers = Promise.all(Array.from({ length: 50 }, () => get('stock')))
      await arrived(50)
      await started('stock')
      reads.get('stock')!()
      assert.deepEqual(
        (await answers).map(({ status, text }) => `${status} ${text}`),
        Array.from({ length: 50 }, () => '200 {"service":"stock"}'),
      )
      assert.deepEqual(texts, ['stock'])
      // What is asked for later is looked for anew.
      const later = get('stock')
      reads.delete('stock')
      await started('stock')
      reads.get('stock')!()
      assert.equal((await later).status, 200)
      assert.equal(texts.length, 2)
    })

    test('for a large one, only as many are answered as may be', async (t) => {
      const { peers, reads, texts, get, started, arrived } = await reading(t, { burst: 100, perSecond: 10 }, 2_500)
      const asking = Promise.all(Array.from({ length: 40 }, () => get('stock')))
      await arrived(40)
      await started('stock')
      reads.get('stock')!()
      const statuses = (await asking).map(({ status }) => status)
      // Sixty are left of the hundred when all have come: at 25 each, the third leaves it in debt.
      assert.deepEqual([statuses.filter((status) => status === 200).length, texts.length], [3, 1])
      assert.equal(statuses.filter((status) => status === 429).length, 37)
      assert.deepEqual(peers.status(), { answered: 3, unknown: 0, refused: 37 })
    })

    test('few files are read at once, few wait for it, and what is at hand waits for none', async (t) => {
      const { reads, get, started, arrived } = await reading(t, { readings: 2, waiting: 1 })
      const one = get('one')
      const two = get('two')
      await started('one', 'two')
      const three = get('three')
      await arrived(3)
      const four = await get('four')
      assert.deepEqual([four.status, four.headers['retry-after']], [429, '1'])
      assert.equal((await get('held')).status, 200)
      assert.deepEqual([...reads.keys()], ['one', 'two'])
      reads.get('one')!()
      assert.equal((await one).status, 200)
      await started('three')
      reads.get('two')!()
      reads.get('three')!()
      assert.deepEqual([(await two).status, (await three).status], [200, 200])
    })
  })

  test('says that it failed when it did', async () => {
    const { listener, get } = await start()
    const answer = await get('/v1/views/broken')
    assert.equal(answer.status, 500)
    assert.doesNotMatch(answer.text, /disk/)
    listener.close()
  })
})
