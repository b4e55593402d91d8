/** Both transports on real sockets. What they carry is the hub's business, and tested there. */

import assert from 'node:assert/strict'
import { EventEmitter, once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { WebSocket } from 'ws'
import {
  decodeEvent,
  type ChangeFrame,
  type ClientMessage,
  type SnapshotFrame,
  type StreamEvent,
} from '@holdfast/registry-client/protocol'
import type { Sink } from '../../registry-server/src/watch/subscriber.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { startReplicas, type TestReplica } from './shared-store.ts'
import { someNode, startRegistry } from './support.ts'

/** The events of one stream, to be awaited one by one. */
class Events extends EventEmitter {
  readonly #waiting: StreamEvent[] = []

  add(event: unknown, id: unknown, data: unknown): void {
    this.#waiting.push(decodeEvent(event, id, data))
    this.emit('event')
  }

  async next(): Promise<StreamEvent> {
    while (this.#waiting.length === 0) await once(this, 'event')
    return this.#waiting.shift()!
  }

  async frame(): Promise<SnapshotFrame | ChangeFrame> {
    const event = await this.next()
    assert.notEqual(event.event, 'ping')
    return (event as { frame: SnapshotFrame | ChangeFrame }).frame
  }
}

async function openSse(context: TestContext, url: string, headers: Record<string, string> = {}) {
  const outgoing = request(url, { headers }).end()
  context.after(() => outgoing.destroy())
  outgoing.on('error', () => {})
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  const events = new Events()
  let buffered = ''
  let retry: number | undefined
  response.on('data', (chunk: Buffer) => {
    buffered += chunk.toString()
    for (let end = buffered.indexOf('\n\n'); end >= 0; end = buffered.indexOf('\n\n')) {
      const fields = new Map(
        buffered
          .slice(0, end)
          .split('\n')
          .map((line) => [line.slice(0, line.indexOf(': ')), line.slice(line.indexOf(': ') + 2)] as const),
      )
      buffered = buffered.slice(end + 2)
      if (fields.has('retry')) retry = Number(fields.get('retry'))
      else events.add(fields.get('event'), fields.get('id'), JSON.parse(fields.get('data')!))
    }
  })
  response.on('error', () => {})
  return { outgoing, response, events, retry: () => retry }
}

async function openWebSocket(context: TestContext, url: string) {
  const socket = new WebSocket(url.replace('http', 'ws'))
  context.after(() => socket.terminate())
  const events = new Events()
  socket.on('message', (data: Buffer) => {
    const { event, id, data: body } = JSON.parse(data.toString()) as { event: unknown; id: unknown; data: unknown }
    events.add(event, id, body)
  })
  socket.on('error', () => {})
  await once(socket, 'open')
  const send = (message: ClientMessage | string) =>
    socket.send(typeof message === 'string' ? message : JSON.stringify(message))
  return { socket, events, send }
}

test('server-sent events bring a snapshot, then each change, readable by any client', async (context) => {
  const { url, call } = await startRegistry(context, { random: () => 0.5 })
  await call('PUT', '/v1/services/stock/nodes/a', someNode)
  const { response, events, retry } = await openSse(context, `${url}/v1/watch?service=stock&service=cart`)
  assert.equal(response.statusCode, 200)
  assert.equal(response.headers['content-type'], 'text/event-stream; charset=utf-8')
  assert.match(response.headers['holdfast-cursor'] as string, /:1$/)
  assert.equal(response.headers['holdfast-age'], '0')
  const first = await events.next()
  assert.equal(first.event === 'snapshot' && first.frame.view.nodes.size, 1)
  assert.equal(first.id, undefined)
  assert.equal((await events.next()).id?.revision, 1)
  assert.equal(retry(), 3_000)
  await call('PUT', '/v1/services/stock/nodes/b', someNode)
  const change = await events.next()
  assert.equal(change.event === 'change' && change.frame.put[0]?.id, 'b')
  assert.equal(change.id?.revision, 2)
})

for (const [what, path, headers] of [
  ['Last-Event-ID', '', (id: string) => ({ 'last-event-id': id })],
  ['?cursor=', 'cursor', () => ({})],
] as const)
  test(`server-sent events resume by ${what} with what was missed`, async (context) => {
    const { url, call } = await startRegistry(context)
    await call('PUT', '/v1/services/stock/nodes/a', someNode)
    const id = (await call('PUT', '/v1/services/stock/nodes/b', someNode)).headers.get('holdfast-cursor')!
    await call('DELETE', '/v1/services/stock/nodes/a')
    await call('PUT', '/v1/services/stock/nodes/c', someNode)
    const query = path === '' ? '' : `&${path}=${id}`
    const { events } = await openSse(context, `${url}/v1/watch?service=stock${query}`, headers(id))
    const frame = await events.frame()
    assert.ok(frame.kind === 'change')
    assert.deepEqual([frame.put.map((node) => node.id), frame.remove[0]?.cause], [['c'], 'operator'])
  })

test('a watch whose query cannot be understood gets a problem document', async (context) => {
  const { call } = await startRegistry(context)
  for (const [query, code, path, headers] of [
    ['', 'invalid_request', 'service'],
    ['?service=A', 'invalid_request', 'service.0'],
    ['?service=a..b', 'invalid_request', 'service'],
    ['?service=a&namespace=*', 'invalid_request', 'namespace'],
    ['?service=a&cursor=x', 'bad_cursor', 'cursor'],
    ['?service=a', 'bad_cursor', 'last-event-id', { 'last-event-id': 'x' }],
    ['?service=a&cursor=e:1&cursor=e:2', 'invalid_request', 'cursor'],
  ] as const) {
    const { status, body } = await call('GET', `/v1/watch${query}`, undefined, headers)
    assert.deepEqual([status, body.code, body.errors[0]?.path], [400, code, path], query)
  }
})

test('one WebSocket carries subscriptions, changes and acknowledgements', async (context) => {
  const { url, call } = await startRegistry(context)
  await call('PUT', '/v1/services/stock/nodes/a', someNode)
  const { events, send } = await openWebSocket(context, `${url}/v1/watch`)
  send({ type: 'subscribe', services: [{ service: 'stock' }, { service: 'cart', namespace: 'blue' }] })
  assert.equal((await events.next()).event, 'snapshot')
  const second = await events.next()
  assert.equal(second.event === 'snapshot' && second.frame.view.namespace, 'blue')
  assert.equal(second.id?.revision, 1)
  await call('PUT', '/v1/services/cart/nodes/x?namespace=blue', someNode)
  const change = await events.next()
  assert.equal(change.id?.revision, 2)
  const before = (await call('GET', '/v1/subscribers')).body.subscribers[0]!
  assert.deepEqual(
    [before.transport, before.serviceCount, before.sent, before.acked, before.lag],
    ['websocket', 2, 2, null, 2],
  )
  send({ type: 'ack', cursor: `${change.id.epoch}:2` })
  // Answered in order on the same connection, so the acknowledgement has been read by then.
  send({ type: 'subscribe', services: [{ service: 'other' }] })
  await events.next()
  const after = (await call('GET', '/v1/subscribers')).body.subscribers[0]!
  assert.deepEqual([after.acked, after.lag], [2, 0])
  send({ type: 'unsubscribe', services: [{ service: 'other' }] })
  send({ type: 'subscribe', services: [{ service: 'stock', cursor: `${change.id.epoch}:1` }] })
  assert.equal((await events.next()).event, 'ping')
})

test('a WebSocket is told when all that it asked for has been sent, which is after what it named was reached', async (context) => {
  const { registry, url, call } = await startRegistry(context)
  await call('PUT', '/v1/services/stock/nodes/a', someNode)
  const { epoch } = registry.parts.hub.cursor
  const { events, send } = await openWebSocket(context, `${url}/v1/watch`)
  send({ type: 'subscribe', services: [{ service: 'stock' }], ref: 1 })
  const first = [await events.next(), await events.next()]
  assert.deepEqual(
    first.map((event) => [event.event, event.id?.revision, event.event === 'ping' && event.subscribed]),
    [
      ['snapshot', 1, false],
      ['ping', 1, 1],
    ],
  )
  const synced: string[] = []
  const { store } = registry.parts
  const sync = store.sync.bind(store)
  store.sync = async () => {
    await sync()
    synced.push('reached')
  }
  // Ahead of this registry, as after writing through another.
  send({ type: 'subscribe', services: [{ service: 'stock', cursor: `${epoch}:1` }], reach: `${epoch}:5`, ref: 2 })
  const second = await events.next()
  assert.deepEqual([second.event === 'ping' && second.subscribed, synced], [2, ['reached']])
})

test("a WebSocket's URL may name the services, as for server-sent events", async (context) => {
  const { url, call } = await startRegistry(context)
  await call('PUT', '/v1/services/stock/nodes/a', someNode)
  const { events } = await openWebSocket(context, `${url}/v1/watch?service=*`)
  assert.equal((await events.frame()).kind, 'snapshot')
})

for (const [what, message, reason] of [
  ['that is no JSON', 'hello', /must be JSON/],
  ['of an unknown type', '{"type":"shout"}', /type: must be one of/],
  ['with an unknown field', '{"type":"ack","cursor":"e:1","x":1}', /x: unknown field/],
  ['with a name that is none', '{"type":"subscribe","services":[{"service":"A"}]}', /services\.0\.service/],
  [
    'for one service of all namespaces',
    '{"type":"subscribe","services":[{"service":"a","namespace":"*"}]}',
    /namespace/,
  ],
  ['with a cursor that cannot be read', '{"type":"ack","cursor":"x"}', /cursor/],
  ['with a place to reach that is none', '{"type":"subscribe","services":[],"reach":"x"}', /reach/],
  ['with a number that is none', '{"type":"subscribe","services":[],"ref":-1}', /ref/],
] as const)
  test(`a message ${what} closes the WebSocket with 1008 and the reason`, async (context) => {
    const { url, call } = await startRegistry(context)
    const { socket, send } = await openWebSocket(context, `${url}/v1/watch`)
    send(message)
    const [code, text] = (await once(socket, 'close')) as [number, Buffer]
    assert.equal(code, 1008)
    assert.match(text.toString(), reason)
    assert.deepEqual((await call('GET', '/v1/subscribers')).body.subscribers, [])
  })

test('a message over one mebibyte closes the WebSocket', async (context) => {
  const { url } = await startRegistry(context)
  const { socket, send } = await openWebSocket(context, `${url}/v1/watch`)
  send(JSON.stringify({ type: 'subscribe', services: [{ service: 'x'.repeat(1_100_000) }] }))
  const [code] = (await once(socket, 'close')) as [number]
  assert.equal(code, 1009)
})

test('frames of every size arrive whole on a WebSocket', async (context) => {
  const { url, call } = await startRegistry(context)
  const { events, send } = await openWebSocket(context, `${url}/v1/watch`)
  send({ type: 'subscribe', services: [{ service: 'stock' }] })
  await events.next()
  for (const count of [1, 20, 400, 1_000]) {
    const nodes = Array.from({ length: count }, (_, index) => ({
      service: 'stock',
      id: `n${count}-${index}`,
      ...someNode,
    }))
    await call('PUT', '/v1/nodes', nodes)
    const frame = await events.frame()
    assert.equal(frame.kind === 'change' && frame.put.length, count)
  }
  send({ type: 'subscribe', services: [{ service: 'stock' }] })
  const snapshot = await events.frame()
  assert.equal(snapshot.kind === 'snapshot' && snapshot.view.nodes.size, 1_421)
})

test('both transports carry the same', async (context) => {
  const { url, call } = await startRegistry(context)
  const sse = await openSse(context, `${url}/v1/watch?service=*&namespace=*`)
  const { events } = await openWebSocket(context, `${url}/v1/watch?service=*&namespace=*`)
  assert.deepEqual(
    [await sse.events.next(), await events.next()].map(({ event }) => event),
    ['ping', 'ping'],
  )
  await call('PUT', '/v1/services/stock/nodes/a', { ...someNode, labels: { greeting: 'grüß 你好' } })
  await call('PUT', '/v1/services/stock/policy', { timeout: '1s' })
  await call('DELETE', '/v1/services/stock/nodes/a')
  for (let count = 0; count < 3; count++) assert.deepEqual(await sse.events.next(), await events.next())
})

test('an event stream whose registry has got more subscribers is told to spread over more time', async (context) => {
  const clock = new ManualClock()
  const { url, registry } = await startRegistry(context, { random: () => 0.5, clock })
  const { events, retry } = await openSse(context, `${url}/v1/watch?service=stock`)
  await events.next()
  await clock.advance(10_000)
  await events.next()
  assert.equal(retry(), 3_000)
  const sink: Sink = {
    transport: 'websocket',
    remote: 'test',
    unsentBytes: 0,
    sentBytes: 0,
    write() {},
    end() {},
  }
  for (let count = 1; count < 8_000; count++) registry.parts.hub.connect(sink)
  await clock.advance(10_000)
  await events.next()
  assert.equal(retry(), 5_000)
})

test('the last word of a registry that stops is the time to spread over', async (context) => {
  const { url, registry } = await startRegistry(context)
  const { socket, events } = await openWebSocket(context, `${url}/v1/watch?service=stock`)
  await events.next()
  const closed = once(socket, 'close')
  await registry.close()
  await closed
  const last = await events.next()
  assert.equal(last.event === 'ping' && last.spreadMs, 200)
})

describe('a client that has seen more at another replica', () => {
  /** Two replicas, of which the second hears nothing by itself; and the place of what only the first has. */
  async function ahead(context: TestContext) {
    const [first, second] = (await startReplicas(context, 2)) as [TestReplica, TestReplica]
    await first.call('PUT', '/v1/services/stock/nodes/a', someNode)
    second.store.isLagging = true
    const { headers } = await first.call('PUT', '/v1/services/stock/nodes/b', someNode)
    return { first, second, cursor: headers.get('holdfast-cursor')! }
  }

  test('is sent nothing that it has, and what it says meanwhile is done after, in order', async (context) => {
    const { first, second, cursor } = await ahead(context)
    await first.call('PUT', '/v1/services/cart/nodes/x', someNode)
    const { events, send, socket } = await openWebSocket(context, `${second.url}/v1/watch`)
    send({ type: 'subscribe', services: [{ service: 'stock', cursor }] })
    send({ type: 'subscribe', services: [{ service: 'cart' }, { service: 'other' }] })
    send({ type: 'unsubscribe', services: [{ service: 'other' }] })
    send({ type: 'subscribe', services: [{ service: 'stock', cursor }] })
    const seen = [await events.next(), await events.next(), await events.next(), await events.next()]
    assert.deepEqual(
      seen.map((event) => [event.event, event.id?.revision]),
      [
        ['ping', 3],
        ['snapshot', undefined],
        ['snapshot', 3],
        ['ping', 3],
      ],
    )
    assert.equal(second.store.syncs, 1)
    assert.equal(socket.isPaused, false)
    assert.equal((await second.call('GET', '/v1/subscribers')).body.subscribers[0]?.serviceCount, 2)
    assert.deepEqual(second.registry.parts.hub.status().resumes, { nothing: 2, change: 0, snapshot: 0 })
  })

  test('may say nonsense meanwhile, and hears of it after', async (context) => {
    const { second, cursor } = await ahead(context)
    const { events, send, socket } = await openWebSocket(
      context,
      `${second.url}/v1/watch?service=stock&cursor=${cursor}`,
    )
    send('nonsense')
    const closed = once(socket, 'close') as Promise<[number]>
    assert.equal((await events.next()).event, 'ping')
    assert.equal((await closed)[0], 1008)
  })

  test('is sent nothing that it has on an event stream', async (context) => {
    const { second, cursor } = await ahead(context)
    const { events } = await openSse(context, `${second.url}/v1/watch?service=stock`, { 'last-event-id': cursor })
    const first = await events.next()
    assert.deepEqual([first.event, first.id?.revision], ['ping', 2])
  })

  test('is sent a snapshot when the store cannot say what is newest', async (context) => {
    const { second, cursor } = await ahead(context)
    second.store.isCutOff = true
    const { events } = await openWebSocket(context, `${second.url}/v1/watch?service=stock&cursor=${cursor}`)
    const event = await events.next()
    assert.deepEqual([event.event, event.id?.revision], ['snapshot', 1])
  })

  test('waits by a long poll for what is newer than that', async (context) => {
    const { first, second, cursor } = await ahead(context)
    const polling = second.call('GET', `/v1/services/stock?after=${cursor}&wait=30s`)
    while (second.store.syncs === 0) await second.call('GET', '/healthz')
    second.store.isLagging = false
    await first.call('PUT', '/v1/services/stock/nodes/c', someNode)
    assert.equal((await polling).body.nodes.length, 3)
  })

  test('reads by its ETag that nothing is newer, not something older', async (context) => {
    const { first, second } = await ahead(context)
    const tag = (await first.call('GET', '/v1/services/stock')).headers.get('etag')!
    const { status } = await second.call('GET', '/v1/services/stock', undefined, { 'if-none-match': `"x", W/${tag}` })
    assert.equal(status, 304)
    await second.call('GET', '/v1/services/stock', undefined, { 'if-none-match': tag })
    assert.equal(second.store.syncs, 1, 'what is known is not asked for')
  })
})

test('the status and the metrics tell what streams were sent', async (context) => {
  const { url, call } = await startRegistry(context)
  const cursor = (await call('PUT', '/v1/services/stock/nodes/a', someNode)).headers.get('holdfast-cursor')!
  const { events, send } = await openWebSocket(context, `${url}/v1/watch?service=stock`)
  await events.next()
  send({ type: 'subscribe', services: [{ service: 'stock', cursor }] })
  await events.next()
  const { subscribers } = (await call('GET', '/v1/status')).body as unknown as { subscribers: object }
  assert.deepEqual(subscribers, {
    sse: 0,
    websocket: 1,
    snapshotsSent: 1,
    resumes: { nothing: 1, change: 0, snapshot: 0 },
  })
  const { text } = await call('GET', '/metrics')
  for (const line of [
    'holdfast_snapshots_sent_total 1',
    'holdfast_resumes_total{with="nothing"} 1',
    'holdfast_resumes_total{with="change"} 0',
    'holdfast_resumes_total{with="snapshot"} 0',
  ])
    assert.ok(text.includes(`\n${line}\n`), line)
})

test('a stop ends event streams, and closes WebSockets with 1001', async (context) => {
  const { url, registry } = await startRegistry(context)
  const sse = await openSse(context, `${url}/v1/watch?service=stock`)
  const { socket } = await openWebSocket(context, `${url}/v1/watch?service=stock`)
  const closed = once(socket, 'close') as Promise<[number]>
  const ended = once(sse.response, 'end')
  await registry.close()
  await ended
  assert.equal((await closed)[0], 1001)
})

test('a client that goes away is forgotten', async (context) => {
  const { url, call, registry } = await startRegistry(context)
  const sse = await openSse(context, `${url}/v1/watch?service=stock`)
  const { socket, events } = await openWebSocket(context, `${url}/v1/watch?service=stock`)
  await Promise.all([sse.events.next(), events.next()])
  assert.equal(registry.parts.hub.subscriberCount, 2)
  sse.outgoing.destroy()
  socket.terminate()
  // Each answer is a turn in which the registry may have seen the ends.
  while (registry.parts.hub.subscriberCount > 0) await call('GET', '/healthz')
})

test('a reader that does not read is not buffered for, and catches up by a merged change when it does', async (context) => {
  const { url, call, registry } = await startRegistry(context, { config: { watch: { maxBuffer: '64KiB' } } })
  const { hub } = registry.parts
  const sse = await openSse(context, `${url}/v1/watch?service=stock`)
  await sse.events.next()
  sse.response.pause()
  const labels = Object.fromEntries(Array.from({ length: 60 }, (_, index) => [`l${index}`, 'x'.repeat(250)]))
  let last = 0
  for (let round = 1; hub.status().restarts === 0; round++) {
    await call(
      'PUT',
      '/v1/nodes',
      Array.from({ length: 40 }, (_, index) => ({ service: 'stock', id: `n${index}`, host: 'h', port: round, labels })),
    )
    last = round
    assert.ok(round < 200, 'the kernel takes only so much')
  }
  const [subscriber] = [...hub.subscribers()]
  assert.ok(subscriber!.sink.unsentBytes < 2_000_000, `${subscriber!.sink.unsentBytes}`)
  sse.response.resume()
  let newest = 0
  let after = -1
  while (newest < last) {
    const frame = await sse.events.frame()
    assert.ok(frame.kind === 'change')
    if (after >= 0) assert.equal(frame.after.revision, after, 'no gap')
    after = frame.cursor.revision
    newest = frame.put.at(-1)!.port
  }
})

test('the number of streams is bounded, with a word on it', async (context) => {
  const { url, call } = await startRegistry(context, { config: { watch: { maxSubscribers: 1 } } })
  await openSse(context, `${url}/v1/watch?service=stock`)
  const refused = await call('GET', '/v1/watch?service=stock')
  assert.deepEqual([refused.status, refused.body.code], [429, 'too_many_requests'])
})

test('a WebSocket whose peer answers no ping is disconnected', async (context) => {
  const clock = new ManualClock()
  const { url, registry } = await startRegistry(context, { clock })
  const { hostname, port } = new URL(url)
  const dead = connect(Number(port), hostname)
  context.after(() => dead.destroy())
  dead.write(
    'GET /v1/watch HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n' +
      'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
  )
  await once(dead, 'data')
  const living = await openWebSocket(context, `${url}/v1/watch`)
  assert.equal(registry.parts.hub.subscriberCount, 2)
  for (let count = 0; count < 6; count++) {
    await clock.advance(10_000)
    await living.events.next()
    // The pong comes after the ping, and before the answer to what is sent after both.
    living.send({ type: 'subscribe', services: [{ service: 'x', cursor: `${registry.parts.hub.epoch}:0` }] })
    await living.events.next()
  }
  assert.equal(registry.parts.hub.subscriberCount, 1)
})

test('subscribers are listed with what they watch, in pages that miss none', async (context) => {
  const { url, call } = await startRegistry(context)
  for (let count = 0; count < 5; count++) await openSse(context, `${url}/v1/watch?service=stock&service=s${count}`)
  const ids: number[] = []
  let page = ''
  do {
    const { body } = await call('GET', `/v1/subscribers?limit=2${page}`)
    ids.push(...body.subscribers.map(({ id }) => id))
    page = body.next === undefined ? '' : `&page=${body.next}`
  } while (page !== '')
  assert.deepEqual(ids, [1, 2, 3, 4, 5])
  const [first] = (await call('GET', '/v1/subscribers')).body.subscribers
  assert.deepEqual(first?.services, [
    { namespace: 'default', service: 'stock' },
    { namespace: 'default', service: 's0' },
  ])
})
