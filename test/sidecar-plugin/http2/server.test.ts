/** What a caller of HTTP/2 meets: streams, flow control, limits, and the end of a connection (RFC 9113). */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import {
  connect,
  constants,
  type ClientHttp2Session,
  type ClientHttp2Stream,
  type IncomingHttpHeaders,
} from 'node:http2'
import { describe, test, type TestContext } from 'node:test'
import {
  CODE,
  codeOf,
  fieldBlock,
  FLAG,
  FRAME,
  frame,
  type Frame,
  FrameSocket,
  headers,
  settings,
  uint32,
} from '../../support/http2-frames.ts'
import { consume, type Content, type Layer } from '../../../sidecar-plugin/src/layer.ts'
import { Fields } from '../../../sidecar-plugin/src/fields.ts'
import { SidecarError } from '../../../sidecar-plugin/src/errors.ts'
import { ManualClock } from '../../support/manual-clock.ts'
import { eventually, startWire } from '../wire.ts'

type Handler = Parameters<typeof startWire>[0]

async function start(t: TestContext, handler: Handler, options: Parameters<typeof startWire>[1] = {}) {
  const wire = await startWire(handler, options)
  t.after(() => wire.stop())
  const open = (...frames: readonly Buffer[]) => {
    const opened = FrameSocket.open(wire.port, ...frames)
    t.after(() => opened.socket.destroy())
    return opened
  }
  return { ...wire, open }
}

function client(t: TestContext, port: number): ClientHttp2Session {
  const session = connect(`http://127.0.0.1:${port}`)
  session.on('error', () => {})
  t.after(() => session.destroy())
  return session
}

async function answer(stream: ClientHttp2Stream) {
  let text = ''
  let trailers: IncomingHttpHeaders | undefined
  stream.setEncoding('latin1')
  stream.on('data', (piece: string) => (text += piece))
  stream.on('trailers', (fields: IncomingHttpHeaders) => (trailers = fields))
  const [head] = (await once(stream, 'response')) as [IncomingHttpHeaders]
  if (!stream.closed || !stream.destroyed) await once(stream, 'close').catch(() => {})
  return { head, text, trailers, code: stream.rstCode }
}

const GET = [
  [':method', 'GET'],
  [':scheme', 'http'],
  [':authority', 'a'],
  [':path', '/'],
] as const
const POST = [[':method', 'POST'], ...GET.slice(1)] as const

/** Answers when told to. */
function held() {
  const waiting: (() => void)[] = []
  const handler: Handler = (incoming, outgoing) => {
    incoming.resume()
    waiting.push(() => void outgoing.end('ok'))
  }
  return { waiting, handler }
}

describe('RFC 9113/8.1: an answer', () => {
  test('has its content and its trailers', async (t) => {
    const { port } = await start(t, (_incoming, outgoing) => {
      outgoing.writeHead(200, { trailer: 'x-after', 'X-Twice': ['1', '2'], 'Set-Cookie': ['a=1', 'b=2'] })
      outgoing.write('one ')
      outgoing.addTrailers({ 'X-After': 'yes' })
      outgoing.end('two')
    })
    const { head, text, trailers, code } = await answer(client(t, port).request({}))
    assert.equal(text, 'one two')
    assert.equal(head['x-twice'], '1, 2')
    assert.deepEqual(head['set-cookie'], ['a=1', 'b=2'])
    assert.equal(head['transfer-encoding'], undefined)
    assert.equal(head['connection'], undefined)
    assert.equal(trailers?.['x-after'], 'yes')
    assert.equal(code, CODE.none)
  })

  test('RFC 9110/5.1: has fields named like what every object has', async (t) => {
    const own = 'constructor: 1\r\n__proto__: 2\r\n'
    const { port } = await start(t, (incoming) => {
      incoming.socket.write(`HTTP/1.1 103 Early\r\n${own}\r\n`)
      const head = `HTTP/1.1 200 OK\r\n${own}Trailer: a\r\nTransfer-Encoding: chunked\r\n\r\n`
      incoming.socket.write(`${head}2\r\nok\r\n0\r\n${own}\r\n`)
    })
    const stream = client(t, port).request({ te: 'trailers' })
    const heard: string[][] = []
    for (const event of ['headers', 'response', 'trailers'])
      stream.on(event, (_fields: unknown, _flags: number, raw: string[]) => heard.push(raw))
    stream.resume()
    await once(stream, 'close')
    assert.equal(heard.length, 3)
    for (const raw of heard) {
      assert.equal(raw[raw.indexOf('constructor') + 1], '1')
      assert.equal(raw[raw.indexOf('__proto__') + 1], '2')
    }
  })

  test('to HEAD, 204 and 304 ends with its head', async (t) => {
    const { port, endings } = await start(t, (incoming, outgoing) => {
      outgoing.statusCode = Number(incoming.url!.slice(1))
      if (outgoing.statusCode === 200) outgoing.setHeader('content-length', 5)
      outgoing.end()
    })
    const session = client(t, port)
    for (const [method, status] of [
      ['HEAD', 200],
      ['GET', 204],
      ['GET', 304],
    ] as const) {
      const { head, text } = await answer(session.request({ ':method': method, ':path': `/${status}` }))
      assert.deepEqual([head[':status'], text], [status, ''])
      if (method === 'HEAD') assert.equal(head['content-length'], '5')
    }
    await eventually('all ended', () => endings.length === 3)
    assert.deepEqual(
      endings.map(({ error }) => error),
      [undefined, undefined, undefined],
    )
  })

  test('comes after those of 1xx, and they are relayed', async (t) => {
    const { port } = await start(t, (incoming, outgoing) => {
      outgoing.writeEarlyHints({ link: '</style.css>; rel=preload' })
      incoming.resume()
      incoming.on('end', () => outgoing.end('ok'))
    })
    const stream = client(t, port).request({ ':method': 'POST', expect: '100-continue' })
    const informed: number[] = []
    stream.on('headers', (head: IncomingHttpHeaders) => informed.push(Number(head[':status'])))
    stream.once('continue', () => stream.end('content'))
    assert.equal((await answer(stream)).text, 'ok')
    assert.deepEqual(informed.sort(), [100, 103])
  })

  test('RFC 9110/15.2: those of 1xx are not kept for a caller who does not take them', async (t) => {
    const [times, bytes] = [900, 50_000]
    const { open, exchanges } = await start(t, (incoming, outgoing) => {
      const hint = `HTTP/1.1 103 Early Hints\r\nLink: ${'x'.repeat(bytes)}\r\n\r\n`
      for (let i = 0; i < times; i++) incoming.socket.write(hint)
      outgoing.end('ok')
    })
    const caller = open(headers(1, GET))
    caller.socket.pause()
    await eventually('it arrives', () => exchanges.length === 1)
    const to = exchanges[0]!.caller!
    let informed = 0
    const inform = to.inform.bind(to)
    to.inform = (head) => {
      informed++
      inform(head)
    }
    await eventually('all are read', () => informed > times - 5)
    caller.socket.resume()
    await caller.until(FRAME.data)
    const { bytesRead } = caller.socket
    assert(bytesRead < (times * bytes) / 2, `${bytesRead} bytes were kept`)
  })

  test('may come before the end of its request, which is then not wanted: RST_STREAM without an error', async (t) => {
    const { open, endings } = await start(t, (_incoming, outgoing) => {
      outgoing.writeHead(413, { 'content-length': 0 })
      outgoing.end()
    })
    const caller = open(headers(1, POST, false))
    const head = await caller.until(FRAME.headers, 1)
    assert.ok((head.flags & FLAG.endStream) !== 0)
    assert.equal(codeOf(await caller.until(FRAME.reset, 1)), CODE.none)
    await eventually('it has ended', () => endings.length === 1)
    assert.equal(endings[0]!.error, undefined)
  })

  test('that breaks off is reset, never cut to look whole', async (t) => {
    const { port, endings } = await start(t, (_incoming, outgoing) => {
      outgoing.write('some')
      outgoing.write(' of it', () => outgoing.destroy())
    })
    const stream = client(t, port).request({})
    stream.resume()
    const failed = once(stream, 'error')
    await once(stream, 'response')
    assert.match(String(await failed), /INTERNAL_ERROR/)
    assert.equal(endings[0]!.error?.reason, 'upstream_reset')
  })

  test('of the sidecar says why', async (t) => {
    const refuse: Layer = () => async () => {
      throw new SidecarError('no_nodes', 'none')
    }
    const { port } = await start(t, () => {}, { layers: [refuse] })
    const { head, text } = await answer(client(t, port).request({}))
    assert.deepEqual([head[':status'], head['x-holdfast-reason']], [503, 'no_nodes'])
    assert.equal((JSON.parse(text) as { code: string }).code, 'no_nodes')
  })

  test('has as many streams at once as its caller likes, each with its own content', async (t) => {
    const { port } = await start(t, (incoming, outgoing) => void incoming.pipe(outgoing))
    const session = client(t, port)
    const sent = Array.from({ length: 60 }, (_, i) => String.fromCharCode(33 + i).repeat(70_000 + i))
    const heard = await Promise.all(
      sent.map((text) => {
        const stream = session.request({ ':method': 'POST' })
        stream.end(text)
        return answer(stream)
      }),
    )
    for (const [i, { text, code }] of heard.entries()) {
      assert.equal(code, CODE.none)
      assert.ok(text === sent[i], `stream ${i}`)
    }
  })
})

describe('RFC 9113/8.5: CONNECT', () => {
  test('becomes a tunnel once it is answered, and each side ends on its own', async (t) => {
    let incoming: Content | undefined
    const heard: string[] = []
    let say: ((text: string) => void) | undefined
    let hush: (() => void) | undefined
    const tunnel: Layer = () => async () => ({
      status: 200,
      headers: Fields.NONE,
      body: {
        length: undefined,
        repeatable: false,
        pour: (sink) => {
          say = (text) => void sink.write(Buffer.from(text))
          hush = () => sink.end(Fields.NONE)
        },
        resume() {},
        cancel() {},
      },
      tunnel: {
        protocol: undefined,
        open: (content) => {
          incoming = content
          content.pour({ write: (piece) => !!heard.push(piece.toString()), end: () => heard.push('end'), fail() {} })
        },
      },
    })
    const { port, endings } = await start(t, () => {}, { layers: [tunnel] })
    const stream = client(t, port).request({ ':method': 'CONNECT', ':authority': 'stock:80' }, { endStream: false })
    await once(stream, 'response')
    assert.ok(incoming)
    stream.write('ping')
    await eventually('it is heard', () => heard.join() === 'ping')
    say!('pong')
    const [piece] = (await once(stream, 'data')) as [Buffer]
    assert.equal(piece.toString(), 'pong')
    stream.end()
    await eventually('the end is heard', () => heard.join() === 'ping,end')
    say!('still here')
    assert.equal(String(((await once(stream, 'data')) as [Buffer])[0]), 'still here')
    hush!()
    await once(stream, 'end')
    await eventually('it has ended', () => endings.length === 1)
    assert.equal(endings[0]!.error, undefined)
  })
})

describe('RFC 9113/5.4.2: RST_STREAM', () => {
  test('from a caller ends the request at the service', async (t) => {
    let gone = 0
    const { open, endings, exchanges } = await start(t, (_incoming, outgoing) => {
      outgoing.on('close', () => gone++)
    })
    const caller = open(headers(1, GET))
    await eventually('it has begun', () => exchanges.length === 1 && exchanges[0]!.attempts === 0)
    caller.send(frame(FRAME.reset, 0, 1, uint32(CODE.cancel)))
    await eventually('it has ended', () => endings.length === 1)
    assert.equal(endings[0]!.error?.reason, 'caller_gone')
    await eventually('the service hears of it', () => gone === 1 || gone === 0)
    caller.send(headers(3, GET))
  })

  test('of one stream leaves the others alone', async (t) => {
    const { waiting, handler } = held()
    const { open } = await start(t, handler)
    const caller = open(headers(1, GET), headers(3, GET))
    await eventually('both are at the service', () => waiting.length === 2)
    caller.send(frame(FRAME.reset, 0, 1, uint32(CODE.cancel)))
    for (const finish of waiting) finish()
    assert.equal((await caller.outcome(3)).type, FRAME.headers)
  })

  test('a connection that breaks ends all of its requests', async (t) => {
    const { waiting, handler } = held()
    const { open, endings } = await start(t, handler)
    const caller = open(headers(1, GET), headers(3, GET))
    await eventually('both are at the service', () => waiting.length === 2)
    caller.socket.resetAndDestroy()
    await eventually('both have ended', () => endings.length === 2)
    for (const { error } of endings) assert.equal(error?.reason, 'caller_gone')
  })
})

describe('RFC 9113/5.2: flow control', () => {
  test('a caller who does not read holds up the service, not memory', async (t) => {
    let written = 0
    const { open, exchanges } = await start(t, (_incoming, outgoing) => {
      const piece = Buffer.alloc(65_536)
      const more = () => {
        for (let goes = true; goes && written < 1_000;) {
          written++
          goes = outgoing.write(piece)
        }
      }
      outgoing.on('drain', more)
      more()
    })
    const caller = open(headers(1, GET))
    await caller.until(FRAME.data, 1)
    let before = -1
    await eventually('nothing moves any more', () => {
      const isStill = before === written && exchanges.length === 1
      before = written
      return isStill
    })
    for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve))
    // The window, a few buffers on the way, and those of two sockets.
    assert.ok(written < 300, `${written} pieces of 64 KiB`)
    const received = caller.frames
      .filter(({ type }) => type === FRAME.data)
      .reduce((sum, { payload }) => sum + payload.length, 0)
    assert.ok(received <= 65_535)
  })

  test('a service that does not read holds up the caller within its window', async (t) => {
    const hold: Layer = () => async (exchange) => {
      await new Promise<void>((resolve) => exchange.whenAborted(() => resolve()))
      throw exchange.aborted!
    }
    const { port } = await start(t, () => {}, { layers: [hold], listener: { windowBytes: 100_000 } })
    const session = client(t, port)
    const stream = session.request({ ':method': 'POST' })
    stream.on('error', () => {})
    await once(session, 'remoteSettings')
    let taken = 0
    const piece = Buffer.alloc(10_000)
    const more = () =>
      void stream.write(piece, (error) => {
        if (error) return
        taken += piece.length
        more()
      })
    more()
    let before = -1
    let still = 0
    await eventually('nothing moves any more', () => {
      still = before === taken && taken > 0 ? still + 1 : 0
      before = taken
      return still > 200
    })
    assert.ok(taken <= 100_000, `${taken} bytes`)
  })

  test('a stream on which nothing moves is reset, and its request ends', async (t) => {
    const { open, endings } = await start(
      t,
      (_incoming, outgoing) => {
        outgoing.write(Buffer.alloc(1_000_000))
      },
      { listener: { idleMs: 100 } },
    )
    const caller = open(settings([4, 0]), headers(1, GET))
    assert.equal(codeOf(await caller.until(FRAME.reset, 1)), CODE.cancel)
    await eventually('it has ended', () => endings.length === 1)
    assert.equal(endings[0]!.error?.reason, 'caller_gone')
    assert.equal(caller.find(FRAME.data), undefined)
  })

  test('content that stops coming is a 408', { timeout: 30_000 }, async (t) => {
    const { port } = await start(t, () => {}, { listener: { idleMs: 100 } })
    const stream = client(t, port).request({ ':method': 'POST' })
    const { head } = await answer(stream)
    assert.deepEqual([head[':status'], head['x-holdfast-reason']], [408, 'idle'])
  })

  test('RFC 9113/6.9.1: more than the window is an error', async (t) => {
    const { waiting, handler } = held()
    const { open } = await start(t, handler, { listener: { windowBytes: 65_535 }, layers: [holdContent] })
    const caller = open(headers(1, POST, false))
    for (let i = 0; i < 6; i++) caller.send(frame(FRAME.data, 0, 1, Buffer.alloc(16_384)))
    assert.equal(codeOf(await caller.untilOne(isEnd, 'a refusal')), CODE.flowControl)
    assert.equal(waiting.length, 0)
  })
})

const isEnd = ({ type }: { type: number }) => type === FRAME.reset || type === FRAME.goaway

/** Reads nothing until the exchange is over. */
const holdContent: Layer = () => async (exchange) => {
  await new Promise<void>((resolve) => exchange.whenAborted(() => resolve()))
  await consume(undefined)
  throw exchange.aborted!
}

describe('limits', () => {
  test('RFC 9113/5.1.2: more streams at once than are allowed are refused unread', async (t) => {
    const { waiting, handler } = held()
    const { open } = await start(t, handler, { listener: { streams: 3 } })
    const caller = open(...[1, 3, 5, 7].map((id) => headers(id, GET)))
    assert.equal(codeOf(await caller.until(FRAME.reset, 7)), CODE.refused)
    await eventually('the others are served', () => waiting.length === 3)
    for (const finish of waiting) finish()
    for (const id of [1, 3, 5]) await caller.until(FRAME.data, id)
  })

  test('RFC 9113/5.1.2: more streams at once than were acknowledged end the connection', async (t) => {
    const { waiting, handler } = held()
    const { open, endings, exchanges, malformed } = await start(t, handler, { listener: { streams: 3 } })
    const caller = open()
    await caller.until(FRAME.settings)
    caller.send(frame(FRAME.settings, FLAG.ack, 0), ...[1, 3, 5, 7].map((id) => headers(id, GET)))
    await caller.until(FRAME.goaway)
    await caller.closed
    assert.deepEqual(malformed, ['frames'])
    assert.ok(waiting.length <= 3)
    await eventually('all have ended', () => endings.length === exchanges.length)
  })

  for (const isAcknowledged of [true, false])
    test(`RFC 9113/10.5.1: a list of fields that is too large, ${isAcknowledged ? 'and' : 'but not'} known to be`, async (t) => {
      const { open, endings, malformed } = await start(t, (_incoming, outgoing) => void outgoing.end('ok'), {
        listener: { headBytes: 10_000 },
      })
      const caller = open()
      await caller.until(FRAME.settings)
      if (isAcknowledged) caller.send(frame(FRAME.settings, FLAG.ack, 0))
      caller.send(headers(1, [...GET, ['x-large', 'a'.repeat(12_000)]]))
      if (isAcknowledged) assert.equal(codeOf(await caller.until(FRAME.reset, 1)), CODE.calm)
      else await caller.until(FRAME.headers, 1)
      assert.deepEqual(malformed, isAcknowledged ? [] : ['head_too_large'])
      caller.send(headers(3, GET))
      await caller.until(FRAME.data, 3)
      await eventually('one request has ended', () => endings.length === 1)
    })

  test('RFC 9113/10.5.1: a list that is small on the wire and large once it is decoded', async (t) => {
    const { open, endings } = await start(t, (_incoming, outgoing) => void outgoing.end('ok'), {
      listener: { headBytes: 60_000, headFields: 100 },
    })
    // One large field into the table, and then one byte for each time it is said again.
    const large = Buffer.concat([Buffer.from([0x40]), fieldBlock([['x-large', 'a'.repeat(3_000)]]).subarray(1)])
    const again = Buffer.alloc(10_000, 0xbe)
    const bomb = frame(
      FRAME.headers,
      FLAG.endHeaders | FLAG.endStream,
      1,
      Buffer.concat([fieldBlock(GET), large, again]),
    )
    const caller = open(bomb)
    assert.equal(codeOf(await caller.until(FRAME.reset, 1)), CODE.calm)
    caller.send(headers(3, GET))
    assert.equal((await caller.outcome(3)).type, FRAME.headers)
    await eventually('it has ended', () => endings.length === 1)
  })

  test('RFC 9113/6.10: CONTINUATION without end', async (t) => {
    const { open, exchanges } = await start(t, () => {})
    const caller = open(frame(FRAME.headers, FLAG.endStream, 1, fieldBlock(GET)))
    for (let i = 0; i < 2_000; i++) caller.send(frame(FRAME.continuation, 0, 1, fieldBlock([[`x-${i}`, 'a']])))
    await caller.closed
    assert.equal(exchanges.length, 0)
  })

  test('RFC 9113/10.5: streams that are opened to be reset', async (t) => {
    const { open, malformed, exchanges } = await start(t, (_incoming, outgoing) => void outgoing.end('ok'), {
      listener: { resets: 50 },
    })
    const caller = open()
    for (let id = 1; id < 400; id += 2) caller.send(headers(id, GET), frame(FRAME.reset, 0, id, uint32(CODE.cancel)))
    assert.equal(codeOf(await caller.until(FRAME.goaway)), CODE.calm)
    await caller.closed
    assert.deepEqual(malformed, ['resets'])
    assert.ok(exchanges.length <= 51, `${exchanges.length}`)
  })

  test('RFC 9113/10.5: no reset is counted against a caller who makes none, whatever the request and its answer', async (t) => {
    const answers: Record<string, string | undefined> = {
      '/none': undefined,
      '/small': 'ok',
      '/large': 'x'.repeat(100_000),
    }
    const handler: Handler = (incoming, outgoing) => {
      incoming.resume().on('end', () => {
        const content = answers[incoming.url!]
        if (content === undefined) outgoing.writeHead(204).end()
        else if (incoming.headers['x-chunked']) outgoing.write(content, () => outgoing.end())
        else outgoing.setHeader('content-length', content.length).end(content)
      })
    }
    const { port, malformed, endings } = await start(t, handler, { listener: { resets: 10 } })
    const session = client(t, port)
    const kinds = ['GET', 'POST'].flatMap((method) =>
      Object.keys(answers).flatMap((path) => [
        { method, path, chunked: '' },
        { method, path, chunked: '1' },
      ]),
    )
    for (const { method, path, chunked } of kinds)
      for (let i = 0; i < 15; i++) {
        const stream = session.request(
          { ':method': method, ':path': path, 'x-chunked': chunked },
          { endStream: method === 'GET' },
        )
        if (method === 'POST') stream.end('x')
        const { head } = await answer(stream)
        assert.equal(head[':status'], path === '/none' ? 204 : 200)
      }
    await eventually('all have ended', () => endings.length === kinds.length * 15)
    assert.deepEqual(
      endings.flatMap(({ error }) => error ?? []),
      [],
    )
    assert.deepEqual(malformed, [])
  })

  test('RFC 9113/10.5: streams that are reset once they are at the service', async (t) => {
    const { waiting, handler } = held()
    const { open, malformed, endings } = await start(t, handler, { listener: { resets: 20 } })
    const caller = open()
    for (let id = 1; malformed.length === 0; id += 2) {
      caller.send(headers(id, GET))
      const served = waiting.length + 1
      await eventually('it is at the service', () => waiting.length === served || malformed.length > 0)
      caller.send(frame(FRAME.reset, 0, id, uint32(CODE.cancel)))
      await eventually('it has ended', () => endings.length === served || malformed.length > 0)
    }
    assert.equal(codeOf(await caller.until(FRAME.goaway)), CODE.calm)
    assert.deepEqual(malformed, ['resets'])
  })

  for (const [name, flood] of [
    ['SETTINGS', settings()],
    ['PING', frame(FRAME.ping, 0, 0, Buffer.alloc(8))],
  ] as const)
    test(`RFC 9113/10.5: a flood of ${name}`, async (t) => {
      const { open, malformed } = await start(t, () => {}, { listener: { controls: 50 } })
      const caller = open(...Array.from({ length: 200 }, () => flood))
      assert.equal(codeOf(await caller.until(FRAME.goaway)), CODE.calm)
      await caller.closed
      assert.deepEqual(malformed, ['controls'])
    })

  test('RFC 9113/6.7: a PING is answered', async (t) => {
    const { open } = await start(t, () => {})
    const answered = await open(frame(FRAME.ping, 0, 0, Buffer.from('12345678'))).until(FRAME.ping)
    assert.deepEqual([answered.flags, answered.payload.toString()], [FLAG.ack, '12345678'])
  })

  for (const [rule, name, bytes, code] of [
    ['4.2', 'a frame that is too large', frame(FRAME.data, 0, 1, Buffer.alloc(16_385)), CODE.frameSize],
    ['4.3', 'fields that cannot be decoded', frame(FRAME.headers, 5, 1, Buffer.alloc(8, 0xff)), CODE.compression],
    // Some the library takes for faults of its own.
    ['5.1.1', 'a stream with an even number', headers(2, GET), CODE.internal],
    ['5.1', 'DATA on a stream that is idle', frame(FRAME.data, 0, 1, Buffer.from('a')), CODE.protocol],
    ['6.1', 'DATA on stream 0', frame(FRAME.data, 0, 0, Buffer.from('a')), CODE.protocol],
    ['6.5', 'SETTINGS of a wrong size', frame(FRAME.settings, 0, 0, Buffer.alloc(5)), CODE.frameSize],
    ['6.9', 'WINDOW_UPDATE of 0', frame(FRAME.window, 0, 0, Buffer.alloc(4)), CODE.internal],
    ['6.10', 'CONTINUATION out of place', frame(FRAME.continuation, 4, 1, fieldBlock(GET)), CODE.protocol],
    ['6.6', 'PUSH_PROMISE from a client', frame(5, 4, 1, Buffer.concat([uint32(2), fieldBlock(GET)])), CODE.internal],
  ] as const)
    test(`RFC 9113/${rule}: ${name} ends the connection`, async (t) => {
      const { open, exchanges } = await start(t, () => {})
      const caller = open(bytes)
      assert.equal(codeOf(await caller.until(FRAME.goaway)), code)
      assert.equal(exchanges.length, 0)
    })

  test('a connection without a stream is closed after its time, with a word', async (t) => {
    const { open, listener } = await start(t, () => {}, { listener: { keepAliveMs: 100 } })
    const caller = open()
    assert.equal(codeOf(await caller.until(FRAME.goaway)), CODE.none)
    await caller.closed
    await eventually('it is forgotten', () => listener.connections === 0)
  })

  test(
    'RFC 9113/4.2: a frame that is too large ends the connection, whatever is under way on it',
    { timeout: 20_000 },
    async (t) => {
      const { open, listener } = await start(t, () => {}, { listener: { idleMs: 100, lingerMs: 100 } })
      const caller = open(headers(1, GET))
      await eventually('it is under way', () => listener.inFlight === 1)
      caller.send(Buffer.from([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]))
      assert.equal(codeOf(await caller.until(FRAME.goaway)), CODE.frameSize)
      // It is not left to the caller to go.
      await caller.closed
      await eventually('it is forgotten', () => listener.connections === 0 && listener.inFlight === 0)
    },
  )

  for (const [rule, name, fault] of [
    ['5.1', 'DATA on a stream that it has ended', frame(FRAME.data, 0, 1, Buffer.from('x'))],
    ['5.3.1', 'a stream that depends on itself', frame(FRAME.priority, 0, 1, Buffer.from([0, 0, 0, 1, 1]))],
    ['4.2', 'a frame that is too large', Buffer.from([0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])],
  ] as const)
    for (const isGone of [true, false])
      test(`RFC 9113/${rule}: ${name} ends the requests of a caller who ${isGone ? 'has gone' : 'stays'}`, async (t) => {
        const { open, listener, endings } = await start(t, () => {}, { listener: { lingerMs: 100 } })
        const caller = open(headers(1, GET), fault)
        await caller.until(FRAME.goaway)
        assert.equal(listener.inFlight, 1)
        if (isGone) caller.socket.destroy()
        await eventually('it is forgotten', () => listener.connections === 0 && listener.inFlight === 0)
        assert.equal(endings[0]!.error?.reason, 'caller_gone')
      })

  test('a caller who was told to go and does not close is cut', async (t) => {
    const { open, listener } = await start(t, () => {}, { listener: { keepAliveMs: 100, lingerMs: 100 } })
    const caller = open()
    caller.socket.allowHalfOpen = true
    await caller.until(FRAME.goaway)
    await eventually('it is cut', () => listener.connections === 0)
  })
})

describe('RFC 9113/6.7: a caller from whom nothing comes while a request is under way', () => {
  const isPing = ({ type, flags }: Frame) => type === FRAME.ping && flags !== FLAG.ack

  test('is asked for a sign of life, and is gone without one: so is its request at the service', async (t) => {
    let hung = 0
    const clock = new ManualClock()
    const { open, listener, endings } = await start(t, (_incoming, outgoing) => outgoing.on('close', () => hung++), {
      clock,
    })
    const caller = open(headers(1, GET), headers(3, POST, false))
    await eventually('one is at the service', () => listener.inFlight === 2)
    await clock.advance(31_000)
    await caller.untilOne(isPing, 'a PING')
    await clock.advance(19_000)
    assert.deepEqual([endings.length, listener.connections], [0, 1])
    await clock.advance(2_000)
    await eventually('both have ended', () => endings.length === 2)
    assert.deepEqual(
      endings.map(({ error }) => error?.reason),
      ['caller_gone', 'caller_gone'],
    )
    assert.match(endings[0]!.error!.message, /no sign of life from the caller for \d+ ms/)
    await eventually('the service hears of it, and all is forgotten', () => hung > 0 && listener.connections === 0)
    await caller.closed
  })

  test('stays for as long as it gives signs of life', async (t) => {
    const clock = new ManualClock()
    const { waiting, handler } = held()
    const { open, endings } = await start(t, handler, { clock })
    const caller = open(headers(1, GET))
    await eventually('it is at the service', () => waiting.length === 1)
    await clock.advance(31_000)
    for (let round = 1; round <= 4; round++) {
      const isNext = (each: Frame) => isPing(each) && caller.frames.filter(isPing).indexOf(each) === round - 1
      const ping = await caller.untilOne(isNext, `PING ${round}`)
      await clock.advance(15_000)
      // Whatever it says is one. Its own PING is answered once what stands before it has been read.
      const own = Buffer.from(`caller-${round}`)
      if (round % 2 === 1) caller.send(frame(FRAME.ping, FLAG.ack, 0, ping.payload))
      caller.send(frame(FRAME.ping, 0, 0, own))
      await caller.untilOne((each) => each.flags === FLAG.ack && each.payload.equals(own), 'an answer')
      await clock.advance(31_000)
    }
    assert.equal(endings.length, 0)
    waiting[0]!()
    assert.equal((await caller.outcome(1)).type, FRAME.headers)
  })

  test('is not asked while it takes what is sent to it, however slowly', async (t) => {
    const clock = new ManualClock()
    const piece = Buffer.alloc(65_536)
    const { open, endings } = await start(
      t,
      (_incoming, outgoing) => {
        const more = () => {
          let goesOn = true
          while (goesOn) goesOn = outgoing.write(piece)
        }
        outgoing.on('drain', more)
        more()
      },
      { clock },
    )
    const wide = 2 ** 31 - 1
    const caller = open(settings([4, wide]), frame(FRAME.window, 0, 0, uint32(wide - 65_535)), headers(1, GET))
    for (let round = 0; round < 4; round++) {
      await eventually('much is taken', () => caller.socket.bytesRead > (round + 1) * 16_777_216)
      caller.socket.pause()
      await clock.advance(20_000)
      caller.socket.resume()
    }
    assert.equal(endings.length, 0)
    assert.equal(caller.frames.some(isPing), false)
    caller.socket.destroy()
  })

  test('has its answer when this side has said goodbye, after which it cannot be asked', async (t) => {
    const clock = new ManualClock()
    const { waiting, handler } = held()
    const { open, listener } = await start(t, handler, { clock })
    const caller = open(headers(1, GET))
    await eventually('it is at the service', () => waiting.length === 1)
    const finished = listener.finish({ idleMs: 1_000, timeoutMs: 3_600_000 })
    await clock.advance(5_000)
    await caller.untilOne((each) => each.type === FRAME.goaway && each.payload.readUInt32BE(0) === 1, 'the last GOAWAY')
    await clock.advance(120_000)
    waiting[0]!()
    await caller.until(FRAME.headers, 1)
    await finished
  })
})

describe('RFC 9113/6.8: GOAWAY', () => {
  test('on drain says first that the end is near, then which stream was the last, and serves all of them', async (t) => {
    const { waiting, handler } = held()
    const { open, listener, endings } = await start(t, handler)
    const caller = open(headers(1, GET))
    await eventually('it is at the service', () => waiting.length === 1)
    const finished = listener.finish({ idleMs: 100, timeoutMs: 10_000 })
    const first = await caller.until(FRAME.goaway)
    assert.deepEqual([first.payload.readUInt32BE(0), codeOf(first)], [2 ** 31 - 1, CODE.none])
    // On its way already when the word came.
    caller.send(headers(3, GET))
    await eventually('it is served, too', () => waiting.length === 2)
    const last = await caller.untilOne((each) => each.type === FRAME.goaway && each !== first, 'a second GOAWAY')
    assert.deepEqual([last.payload.readUInt32BE(0), codeOf(last)], [3, CODE.none])
    for (const finish of waiting) finish()
    for (const stream of [1, 3]) await caller.until(FRAME.data, stream)
    await finished
    assert.deepEqual(
      endings.map(({ error }) => error),
      [undefined, undefined],
    )
  })

  test('says so to a caller without a request, too, and hears it out: what it sends meanwhile is not taken', async (t) => {
    const clock = new ManualClock()
    const { open, listener, exchanges } = await start(t, () => {}, { clock })
    const caller = open()
    caller.socket.allowHalfOpen = true
    let error: Error | undefined
    caller.socket.on('error', (cause) => (error = cause))
    await caller.until(FRAME.settings)
    await eventually('it is HTTP/2', () => listener.connections === 1)
    const finished = listener.finish({ idleMs: 100, timeoutMs: 10_000 })
    await clock.advance(100)
    const last = await caller.until(FRAME.goaway)
    assert.deepEqual([last.payload.readUInt32BE(0), codeOf(last)], [0, CODE.none])
    for (let id = 1; id < 100; id += 2) caller.send(headers(id, POST))
    caller.socket.end()
    await caller.closed
    assert.equal(error, undefined)
    await finished
    assert.equal(exchanges.length, 0)
  })

  test('calls that flow while it drains do not fail', async (t) => {
    const first = await start(t, (_incoming, outgoing) => void outgoing.end('ok'))
    const second = await start(t, (_incoming, outgoing) => void outgoing.end('ok'))
    let port = first.port
    let session = client(t, port)
    let served = 0
    let isDone = false
    const finished = first.listener.finish({ idleMs: 200, timeoutMs: 10_000 }).then(() => (isDone = true))
    while (!isDone) {
      if (session.closed || session.destroyed) {
        // Who was told to go goes elsewhere.
        port = second.port
        session = client(t, port)
      }
      const all = await Promise.all(Array.from({ length: 5 }, () => answer(session.request({}))))
      for (const { head, text, code } of all) assert.deepEqual([head[':status'], text, code], [200, 'ok', CODE.none])
      served += all.length
    }
    await finished
    assert.ok(served > 0)
    assert.equal(port, second.port)
    t.diagnostic(`${served} calls`)
  })

  test('of the caller ends the connection once its streams have', async (t) => {
    const { waiting, handler } = held()
    const { open, listener } = await start(t, handler)
    const caller = open(headers(1, GET))
    await eventually('it is at the service', () => waiting.length === 1)
    caller.send(frame(FRAME.goaway, 0, 0, Buffer.alloc(8)))
    waiting[0]!()
    await caller.until(FRAME.data, 1)
    await caller.closed
    await eventually('it is forgotten', () => listener.connections === 0)
  })
})

test('constants of the frame writer are those of the library', () => {
  assert.equal(CODE.calm, constants.NGHTTP2_ENHANCE_YOUR_CALM)
  assert.equal(CODE.refused, constants.NGHTTP2_REFUSED_STREAM)
})
