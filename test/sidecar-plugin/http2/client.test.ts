/** What a node that declares HTTP/2 meets, and what becomes of requests that it does not answer (RFC 9113). */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type Http2Server, type IncomingHttpHeaders, type ServerHttp2Stream } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { SidecarError } from '../../../sidecar-plugin/src/errors.ts'
import { Fields } from '../../../sidecar-plugin/src/fields.ts'
import { Forward, type ForwardLimits } from '../../../sidecar-plugin/src/forward.ts'
import { Whole, type Content, type Reply } from '../../../sidecar-plugin/src/layer.ts'
import {
  CODE,
  codeOf,
  fieldBlock,
  FLAG,
  FRAME,
  frame,
  FrameSocket,
  headers,
  PREFACE,
  settings,
  uint32,
} from '../../support/http2-frames.ts'
import { exchangeFor, RawCaller } from '../fakes.ts'
import { eventually, rawService, startWire } from '../wire.ts'

/** A forward, and a node on bare sockets that has greeted each connection. */
async function start(
  t: TestContext,
  options: { limits?: Partial<ForwardLimits>; greeting?: readonly Buffer[]; trustReason?: boolean } = {},
) {
  const nodes: FrameSocket[] = []
  const { port } = await rawService(t, (socket) => {
    const node = new FrameSocket(socket, PREFACE.length)
    nodes.push(node)
    node.send(...(options.greeting ?? [settings()]))
  })
  const forward = new Forward({
    clock: systemClock,
    trustReason: options.trustReason ?? false,
    ...(options.limits && { limits: options.limits }),
  })
  t.after(() => forward.close())
  const destination = { id: 'n', host: '127.0.0.1', port, protocol: 'h2' as const }
  const send = (over: Parameters<typeof exchangeFor>[0] = {}) => {
    const { exchange } = exchangeFor(over)
    exchange.destination = destination
    return { exchange, reply: forward.serve(exchange) }
  }
  const node = async (index: number) => {
    await eventually(`connection ${index}`, () => nodes.length > index)
    return nodes[index]!
  }
  return { port, forward, nodes, node, send }
}

const failureOf = (reply: Promise<Reply>) =>
  reply.then(
    () => assert.fail('an answer'),
    (error: SidecarError) => [error.reason, error.delivered] as const,
  )

const OK = [[':status', '200']] as const

/** All of a reply's content, or why it broke. */
function contentOf({ body }: Reply): Promise<{ text: string; trailers: readonly string[]; error?: SidecarError }> {
  if (body === undefined || body instanceof Whole) return Promise.resolve({ text: body?.latin1 ?? '', trailers: [] })
  return new Promise((resolve) => {
    let text = ''
    body.pour({
      write: (piece) => {
        text += piece.toString('latin1')
        return true
      },
      end: (trailers) => resolve({ text, trailers: trailers.list }),
      fail: (error) => resolve({ text, trailers: [], error }),
    })
  })
}

describe('a request', () => {
  test('RFC 9113/8.3.1: has its pseudo-fields first, :authority for Host, and no fields of a connection', async (t) => {
    const service = createServer()
    const heard: string[][] = []
    service.on('stream', (stream: ServerHttp2Stream, _fields: unknown, _flags: number, raw: string[]) => {
      heard.push(raw)
      stream.respond()
      stream.end('ok')
    })
    const { caller, served } = await through(t, service)
    caller.send(
      'GET /a?b=c HTTP/1.1\r\nHost: Stock\r\nX-Twice: 1\r\nConnection: x-hop\r\nx-hop: a\r\nX-Twice: 2\r\nTE: trailers\r\n\r\n',
    )
    await caller.until(/ok/)
    assert.deepEqual(heard[0]!.slice(0, 8), [
      ...[':method', 'GET', ':scheme', 'http', ':authority', 'Stock', ':path', '/a?b=c'],
    ])
    assert.deepEqual(heard[0]!.slice(8), ['x-twice', '1', 'x-twice', '2', 'te', 'trailers'])
    assert.equal(served(), 1)
  })

  test('RFC 9110/5.1: has fields named like what every object has', async (t) => {
    const service = createServer()
    const heard: string[][] = []
    service.on('stream', (stream: ServerHttp2Stream, _fields: unknown, _flags: number, raw: string[]) => {
      heard.push(raw)
      stream.respond()
      stream.end('ok')
    })
    const { caller } = await through(t, service)
    caller.send('GET / HTTP/1.1\r\nHost: a\r\nConstructor: 1\r\n__proto__: 2\r\nvalueOf: 3\r\n\r\n')
    await caller.until(/ok/)
    assert.deepEqual(heard[0]!.slice(8), ['constructor', '1', '__proto__', '2', 'valueof', '3'])
  })

  test('of HTTP/1.1 goes out with its content and trailers, and its answer comes back with both', async (t) => {
    const service = createServer()
    service.on('stream', (stream: ServerHttp2Stream) => {
      const after: IncomingHttpHeaders = {}
      stream.on('trailers', (fields: IncomingHttpHeaders) => Object.assign(after, fields))
      stream.respond({ 'x-a': 'b' }, { waitForTrailers: true })
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-after': `${String(after['x-before'])} too` }))
      stream.pipe(stream)
    })
    const { caller } = await through(t, service)
    caller.send(
      'POST / HTTP/1.1\r\nHost: stock\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Before: this\r\n\r\n',
    )
    const text = await caller.until(/0\r\n[^]*\r\n\r\n$/)
    assert.match(text, /^HTTP\/1\.1 200 OK\r\n/)
    assert.match(text, /5\r\nhello\r\n0\r\nx-after: this too\r\n\r\n$/)
  })

  test('that would change the protocol is sent without that', async (t) => {
    const service = createServer()
    service.on('stream', (stream: ServerHttp2Stream) => {
      stream.respond()
      stream.end('ok')
    })
    const { caller } = await through(t, service)
    caller.send('GET / HTTP/1.1\r\nHost: stock\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n')
    assert.match(await caller.until(/ok/), /^HTTP\/1\.1 200 OK/)
  })

  test('1xx are relayed', async (t) => {
    const service = createServer()
    service.on('stream', (stream: ServerHttp2Stream) => {
      stream.additionalHeaders({ ':status': 103, link: '</a>' })
      stream.respond()
      stream.end('ok')
    })
    const { caller } = await through(t, service)
    caller.send('GET / HTTP/1.1\r\nHost: stock\r\n\r\n')
    assert.match(await caller.until(/ok/), /^HTTP\/1\.1 103 [^]*link: <\/a>[^]*HTTP\/1\.1 200 OK/)
  })

  test('RFC 9110/15.2: 1xx without end are no answer', async (t) => {
    const { send, node, forward } = await start(t)
    const { reply } = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(...Array.from({ length: 1_001 }, () => headers(1, [[':status', '103']], false)))
    assert.deepEqual(await failureOf(reply), ['upstream_protocol', true])
    assert.equal(codeOf(await served.until(FRAME.reset, 1)), CODE.protocol)
    await eventually('nothing is under way', () => forward.load.inFlight === 0)
  })

  test('RFC 9113/8.1: an answer before its end stops it', async (t) => {
    const { send, node } = await start(t)
    let stopped = 0
    const endless: Content = {
      length: undefined,
      repeatable: false,
      pour: (sink) => void sink.write(Buffer.from('some')),
      resume() {},
      cancel: () => void stopped++,
    }
    const { reply } = send({ method: 'POST', body: endless })
    const served = await node(0)
    await served.until(FRAME.data, 1)
    served.send(headers(1, OK), frame(FRAME.reset, 0, 1, uint32(CODE.none)))
    assert.equal((await reply).status, 200)
    await eventually('it is stopped', () => stopped === 1)
  })

  test('that is given up is reset at the node', async (t) => {
    const { send, node } = await start(t)
    const { reply, exchange } = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    exchange.abort(new SidecarError('caller_gone', 'test', { delivered: true }))
    assert.deepEqual(await failureOf(reply), ['caller_gone', true])
    assert.equal(codeOf(await served.until(FRAME.reset, 1)), CODE.cancel)
  })
})

/** An HTTP/2 service behind a wire, and a caller of HTTP/1.1. */
async function through(t: TestContext, service: Http2Server) {
  service.listen(0, '127.0.0.1')
  await once(service, 'listening')
  const { port } = service.address() as AddressInfo
  const wire = await startWire(() => {}, { protocol: 'h2', service: { port, stop: () => service.close() } })
  t.after(() => wire.stop())
  const caller = new RawCaller(wire.port)
  t.after(() => caller.socket.destroy())
  return { caller, served: () => wire.exchanges.length }
}

describe('what proves that a node has not acted on a request', () => {
  test('RFC 9113/8.7: REFUSED_STREAM', async (t) => {
    const { send, node } = await start(t)
    const { reply } = send({ method: 'POST' })
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(frame(FRAME.reset, 0, 1, uint32(CODE.refused)))
    assert.deepEqual(await failureOf(reply), ['upstream_refused', false])
  })

  test('RFC 9113/6.8: GOAWAY with an earlier stream: it is sent once more, on a new connection', async (t) => {
    const { send, node, nodes } = await start(t)
    const [first, second] = [send({ method: 'POST' }), send({ method: 'POST', body: new Whole('content') })]
    const served = await node(0)
    await served.until(FRAME.headers, 3)
    served.send(frame(FRAME.goaway, 0, 0, Buffer.concat([uint32(1), uint32(CODE.none)])))
    const again = await node(1)
    await again.until(FRAME.data, 1)
    assert.equal(again.find(FRAME.data, 1)!.payload.toString(), 'content')
    again.send(headers(1, OK))
    // The one that was taken is answered where it is.
    served.send(headers(1, OK))
    assert.deepEqual([(await first.reply).status, (await second.reply).status], [200, 200])
    assert.equal(nodes.length, 2)
  })

  test('RFC 9113/6.8: GOAWAY with an error and an earlier stream', async (t) => {
    const { send, node } = await start(t)
    const { reply } = send({ method: 'POST' })
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(frame(FRAME.goaway, 0, 0, Buffer.concat([uint32(0), uint32(CODE.internal)])))
    const again = await node(1)
    await again.until(FRAME.headers, 1)
    again.send(frame(FRAME.goaway, 0, 0, Buffer.concat([uint32(0), uint32(CODE.internal)])))
    assert.deepEqual(await failureOf(reply), ['upstream_refused', false])
  })

  test('no connection', async (t) => {
    const { forward } = await start(t)
    const { exchange } = exchangeFor()
    exchange.destination = { id: 'n', host: '127.0.0.1', port: 1, protocol: 'grpc' }
    assert.deepEqual(await failureOf(forward.serve(exchange)), ['upstream_connect', false])
  })

  test('RFC 9113/3.4: a node that answers in HTTP/1.1', async (t) => {
    const { send } = await start(t, { greeting: [Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')] })
    assert.deepEqual(await failureOf(send().reply), ['upstream_protocol', false])
  })

  test('a node that says nothing', async (t) => {
    const { send } = await start(t, { greeting: [], limits: { connectMs: 100 } })
    assert.deepEqual(await failureOf(send().reply), ['upstream_connect', false])
  })
})

describe('what does not prove it', () => {
  for (const [name, code, reason] of [
    ['INTERNAL_ERROR', CODE.internal, 'upstream_reset'],
    ['CANCEL', CODE.cancel, 'upstream_reset'],
    ['no error', CODE.none, 'upstream_reset'],
    ['PROTOCOL_ERROR', CODE.protocol, 'upstream_protocol'],
  ] as const)
    test(`RFC 9113/5.4.2: RST_STREAM with ${name}`, async (t) => {
      const { send, node } = await start(t)
      const { reply } = send({ method: 'POST' })
      const served = await node(0)
      await served.until(FRAME.headers, 1)
      served.send(frame(FRAME.reset, 0, 1, uint32(code)))
      assert.deepEqual(await failureOf(reply), [reason, true])
    })

  test('a connection that breaks', async (t) => {
    const { send, node, nodes } = await start(t)
    const { reply } = send({ method: 'POST' })
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.socket.resetAndDestroy()
    assert.deepEqual(await failureOf(reply), ['upstream_reset', true])
    assert.equal(nodes.length, 1)
  })

  test('but an idempotent request on a used connection that broke without a word is sent once more', async (t) => {
    const { send, node } = await start(t)
    const first = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(headers(1, OK))
    await first.reply
    const second = send()
    await served.until(FRAME.headers, 3)
    served.socket.resetAndDestroy()
    const again = await node(1)
    await again.until(FRAME.headers, 1)
    again.send(headers(1, OK))
    assert.equal((await second.reply).status, 200)
  })
})

describe('an answer', () => {
  for (const [name, code] of [
    ['INTERNAL_ERROR', CODE.internal],
    // As some servers do who end a stream in the middle.
    ['no error', CODE.none],
  ] as const)
    test(`that is reset in the middle with ${name} is not whole`, async (t) => {
      const { send, node } = await start(t)
      const { reply } = send()
      const served = await node(0)
      await served.until(FRAME.headers, 1)
      served.send(headers(1, OK, false), frame(FRAME.data, 0, 1, Buffer.from('some')))
      const content = contentOf(await reply)
      served.send(frame(FRAME.reset, 0, 1, uint32(code)))
      assert.equal((await content).error?.reason, 'upstream_reset')
    })

  test('whose content nobody takes is given up', async (t) => {
    const { send, node } = await start(t)
    const { reply } = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(headers(1, OK, false), frame(FRAME.data, 0, 1, Buffer.from('some')))
    ;((await reply).body as Content).cancel()
    assert.equal(codeOf(await served.until(FRAME.reset, 1)), CODE.cancel)
  })

  test('that stands still is broken off', async (t) => {
    const { send, node } = await start(t, { limits: { idleMs: 100 } })
    const { reply } = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(headers(1, OK, false), frame(FRAME.data, 0, 1, Buffer.from('some')))
    const { text, error } = await contentOf(await reply)
    assert.deepEqual([text, error?.reason], ['some', 'upstream_reset'])
  })

  test('has trailers, and says by x-holdfast-reason what a peer says', async (t) => {
    for (const trustReason of [true, false]) {
      const { send, node } = await start(t, { trustReason })
      const { reply } = send()
      const served = await node(0)
      await served.until(FRAME.headers, 1)
      served.send(
        headers(1, [...OK, ['x-holdfast-reason', 'not_here'], ['x-a', 'b']], false),
        headers(1, [['x-after', 'yes']]),
      )
      const answer = await reply
      assert.equal(answer.reason, trustReason ? 'not_here' : undefined)
      assert.deepEqual(answer.headers.list, ['x-a', 'b'])
      assert.deepEqual((await contentOf(answer)).trailers, ['x-after', 'yes'])
    }
  })

  for (const [rule, name, fields] of [
    ['8.3.2', 'no :status', [['x-a', 'b']]],
    ['8.3.2', 'two :status', [...OK, ...OK]],
    ['8.3.2', 'a :status that is none', [[':status', 'abc']]],
    ['8.3.2', 'a :status of 101', [[':status', '101']]],
    ['8.2.2', 'connection', [...OK, ['connection', 'close']]],
    ['8.2.2', 'transfer-encoding', [...OK, ['transfer-encoding', 'chunked']]],
    ['8.2.1', 'a field name in upper case', [...OK, ['X-A', 'b']]],
    ['8.1.1', 'two content-lengths', [...OK, ['content-length', '0'], ['content-length', '0']]],
    ['8.1.1', 'a content-length without content', [...OK, ['content-length', '5']]],
    ['8.3', 'a pseudo-field of requests', [...OK, [':path', '/']]],
  ] as const)
    test(`RFC 9113/${rule}: with ${name} is none`, async (t) => {
      const { send, node } = await start(t)
      const { reply } = send({ method: 'POST' })
      const served = await node(0)
      await served.until(FRAME.headers, 1)
      served.send(headers(1, fields))
      assert.deepEqual(await failureOf(reply), ['upstream_protocol', true])
    })

  test('RFC 9113/10.5.1: with too large a list of fields is none', async (t) => {
    const { send, node } = await start(t, { limits: { headBytes: 5_000 } })
    const { reply } = send({ method: 'POST' })
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(headers(1, [...OK, ['x-large', 'a'.repeat(6_000)]]))
    assert.equal((await failureOf(reply))[1], true)
  })

  test('RFC 9113/8.4: a push is refused', async (t) => {
    const { send, node } = await start(t, { limits: { quietMs: 100, pingMs: 100, idleMs: 200 } })
    const { reply } = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(frame(5, FLAG.endHeaders, 1, Buffer.concat([uint32(2), fieldBlock([[':method', 'GET']])])))
    const failed = failureOf(reply)
    await served.until(FRAME.goaway)
    assert.equal((await failed)[1], true)
  })
})

describe('sessions', () => {
  test('RFC 9113/5.1.2: one takes as many streams as the node allows, then there are more, and then one waits', async (t) => {
    const limits = { sessions: 2, pending: 6 }
    const { send, node, nodes, forward } = await start(t, { limits, greeting: [settings([3, 2])] })
    const sent = Array.from({ length: 6 }, () => send())
    const [one, two] = [await node(0), await node(1)]
    for (const each of [one, two]) for (const id of [1, 3]) await each.until(FRAME.headers, id)
    assert.equal(forward.load.inFlight, 6)
    one.send(headers(1, OK))
    await one.until(FRAME.headers, 5)
    two.send(headers(3, OK))
    await two.until(FRAME.headers, 5)
    for (const each of [one, two]) for (const id of [1, 3, 5]) each.send(headers(id, OK))
    for (const { reply } of sent) assert.equal((await reply).status, 200)
    assert.equal(nodes.length, 2)
  })

  test('too many that wait are refused', async (t) => {
    const { send } = await start(t, { limits: { sessions: 1, pending: 2 }, greeting: [settings([3, 0])] })
    send()
    send()
    assert.deepEqual(await failureOf(send().reply), ['overloaded', false])
  })

  test('one that waits can be given up', async (t) => {
    const { send, forward } = await start(t, { greeting: [settings([3, 0])], limits: { sessions: 1 } })
    const { exchange, reply } = send()
    exchange.abort(new SidecarError('caller_gone', 'test'))
    assert.equal((await failureOf(reply))[0], 'caller_gone')
    assert.equal(forward.load.inFlight, 0)
  })

  test('RFC 9113/6.7: one from which nothing comes is asked for a sign of life, and cut without one', async (t) => {
    const { send, node } = await start(t, { limits: { quietMs: 100, pingMs: 200, idleMs: 200 } })
    const { reply } = send({ method: 'POST' })
    const served = await node(0)
    const ping = await served.until(FRAME.ping)
    served.send(frame(FRAME.ping, FLAG.ack, 0, ping.payload))
    await served.untilOne((each) => each.type === FRAME.ping && each !== ping, 'a second PING')
    assert.deepEqual(await failureOf(reply), ['upstream_reset', true])
    await eventually('it is closed', () => served.socket.readableEnded || served.socket.destroyed)
  })

  test('one that nobody needs is closed, with a word', async (t) => {
    const { send, node } = await start(t, { limits: { sessionIdleMs: 100 } })
    const { reply } = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(headers(1, OK))
    await reply
    assert.equal(codeOf(await served.until(FRAME.goaway)), CODE.none)
    await eventually('it is closed', () => served.socket.readableEnded || served.socket.destroyed)
  })

  test('one that the node ends while it is idle is not used again', async (t) => {
    const { send, node } = await start(t)
    const first = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(headers(1, OK))
    await first.reply
    served.send(frame(FRAME.goaway, 0, 0, Buffer.concat([uint32(1), uint32(CODE.none)])))
    await served.until(FRAME.goaway)
    const second = send({ method: 'POST' })
    const again = await node(1)
    await again.until(FRAME.headers, 1)
    again.send(headers(1, OK))
    assert.equal((await second.reply).status, 200)
  })

  test('one on which nothing came until a deadline was over is not used for the next request', async (t) => {
    const { send, node } = await start(t)
    const { exchange, reply } = send()
    await (await node(0)).until(FRAME.headers, 1)
    exchange.abort(new SidecarError('deadline', 'test', { delivered: true }))
    await failureOf(reply)
    const next = send()
    const again = await node(1)
    await again.until(FRAME.headers, 1)
    again.send(headers(1, OK))
    assert.equal((await next.reply).status, 200)
  })

  test('RFC 9113/4.2: one on which the node sent a frame that is too large is closed, and holds nothing', async (t) => {
    const { send, node, forward } = await start(t, { limits: { pingMs: 100, connectMs: 1_000 } })
    const { exchange, reply } = send()
    const served = await node(0)
    await served.until(FRAME.headers, 1)
    served.send(Buffer.from([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]))
    assert.equal(codeOf(await served.until(FRAME.goaway)), CODE.frameSize)
    exchange.abort(new SidecarError('deadline', 'test', { delivered: true }))
    await failureOf(reply)
    await eventually('it is closed', () => served.socket.readableEnded || served.socket.destroyed)
    await eventually('nothing is under way', () => forward.load.inFlight === 0)
  })

  test('RFC 9113/10.5: one on which many streams were given up makes room for another before the node takes it for an attack', async (t) => {
    const { send, node, nodes } = await start(t)
    for (let id = 1; nodes.length < 2; id += 2) {
      assert.ok(id < 2_000, 'a second connection')
      const { exchange, reply } = send()
      if (nodes.length < 2)
        await eventually('it is sent', () => nodes.length > 1 || nodes[0]?.find(FRAME.headers, id) !== undefined)
      exchange.abort(new SidecarError('caller_gone', 'test'))
      await failureOf(reply)
    }
    await (await node(0)).until(FRAME.goaway)
  })
})

test('fields of a request that a layer made up are looked at before they are sent', async (t) => {
  const { forward } = await start(t)
  const { exchange } = exchangeFor()
  exchange.destination = { id: 'n', host: '127.0.0.1', port: 1, protocol: 'h2' }
  exchange.headers = Fields.fromLines('x-a: b\0c\r\n', undefined)
  await assert.rejects(forward.serve(exchange), /a field that cannot be written/)
})
