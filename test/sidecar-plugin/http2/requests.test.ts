/** RFC 9113, section 8, rule by rule: what is a request, and what an HTTP/1.1 service hears of it. */

import assert from 'node:assert/strict'
import { connect, type Socket } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import fc from 'fast-check'
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
  type Frame,
} from '../../support/http2-frames.ts'
import { ManualClock } from '../../support/manual-clock.ts'
import { RawCaller } from '../fakes.ts'
import { eventually, startWire } from '../wire.ts'

type Fields = readonly (readonly [string, string])[]

/** A wire to an HTTP/1.1 service that writes down what it hears, and answers `ok`. */
async function start(t: TestContext, options: Parameters<typeof startWire>[1] = {}) {
  const heard: { line: string; fields: string[]; content: string; trailers: string[] }[] = []
  const wire = await startWire((incoming, outgoing) => {
    const request = {
      line: `${incoming.method} ${incoming.url}`,
      fields: incoming.rawHeaders,
      content: '',
      trailers: [] as string[],
    }
    incoming.setEncoding('latin1')
    incoming.on('data', (piece) => (request.content += piece))
    incoming.on('end', () => {
      request.trailers = incoming.rawTrailers
      heard.push(request)
      outgoing.end('ok')
    })
    incoming.on('error', () => {})
  }, options)
  t.after(() => wire.stop())
  const open = (...frames: readonly Buffer[]) => {
    const opened = FrameSocket.open(wire.port, ...frames)
    t.after(() => opened.socket.destroy())
    return opened
  }
  return { ...wire, heard, open }
}

const GET: Fields = [
  [':method', 'GET'],
  [':scheme', 'http'],
  [':authority', 'a'],
  [':path', '/'],
]
const POST: Fields = [[':method', 'POST'], ...GET.slice(1)]
const but = (name: string, value: string): Fields => GET.map((field) => (field[0] === name ? [name, value] : field))
const without = (name: string): Fields => GET.filter((field) => field[0] !== name)
const withField = (name: string, value: string): Fields => [...GET, [name, value]]

/** `:status` of a head whose first field is out of the static table (RFC 7541, appendix A). */
function statusOf({ type, payload }: Frame): number | undefined {
  return type === FRAME.headers ? { 0x88: 200, 0x8c: 400 }[payload[0]!] : undefined
}

const MALFORMED: readonly { rule: string; name: string; fields: Fields }[] = [
  { rule: '8.2.1', name: 'a field name in upper case', fields: withField('X-A', 'b') },
  { rule: '8.2.2', name: 'transfer-encoding', fields: withField('transfer-encoding', 'chunked') },
  { rule: '8.2.2', name: 'connection', fields: withField('connection', 'close') },
  { rule: '8.2.2', name: 'proxy-connection', fields: withField('proxy-connection', 'close') },
  { rule: '8.2.2', name: 'keep-alive', fields: withField('keep-alive', 'timeout=5') },
  { rule: '8.2.2', name: 'upgrade', fields: withField('upgrade', 'websocket') },
  { rule: '8.2.2', name: 'te other than trailers', fields: withField('te', 'gzip') },
  { rule: '8.2.2', name: 'te of trailers and more', fields: withField('te', 'trailers, deflate') },
  { rule: '8.3', name: 'a pseudo-field after a field', fields: [...without(':path'), ['x-a', 'b'], [':path', '/']] },
  { rule: '8.3', name: 'an unknown pseudo-field', fields: [[':other', 'a'], ...GET] },
  { rule: '8.3', name: 'a pseudo-field of answers', fields: [[':status', '200'], ...GET] },
  { rule: '8.3.1', name: 'no :method', fields: without(':method') },
  { rule: '8.3.1', name: 'no :path', fields: without(':path') },
  { rule: '8.3.1', name: 'no :scheme', fields: without(':scheme') },
  { rule: '8.3.1', name: 'two :method', fields: [...GET, [':method', 'GET']] },
  { rule: '8.3.1', name: 'two :path', fields: [[':path', '/b'], ...GET] },
  { rule: '8.3.1', name: 'two :authority', fields: [[':authority', 'b'], ...GET] },
  { rule: '8.3.1', name: 'neither :authority nor host', fields: without(':authority') },
  { rule: '8.3.1', name: 'a host other than the :authority', fields: withField('host', 'b') },
  { rule: '8.3.1', name: 'two hosts', fields: [...GET, ['host', 'a'], ['host', 'a']] },
  { rule: '8.3.1', name: 'a :path that is empty', fields: but(':path', '') },
  { rule: '8.3.1', name: 'a :path that does not begin with a slash', fields: but(':path', 'a') },
  { rule: '8.3.1', name: 'a :path that is a URL', fields: but(':path', 'http://b/') },
  { rule: '8.3.1', name: 'a :path of * for a GET', fields: but(':path', '*') },
  { rule: '8.3.1', name: 'a :path with a space and a version', fields: but(':path', '/ HTTP/1.1') },
  { rule: '8.3.1', name: 'a :path with a line end', fields: but(':path', '/ HTTP/1.1\r\nx-hidden: yes') },
  { rule: '8.3.1', name: 'a :path with a control character', fields: but(':path', '/\x01') },
  { rule: '8.3.1', name: 'a :path with obs-text', fields: but(':path', '/\xe9') },
  { rule: '8.3.1', name: 'a :method with a space', fields: but(':method', 'GET /hidden HTTP/1.1') },
  { rule: '8.3.1', name: 'a :method with a line end', fields: but(':method', 'GET\r\n') },
  { rule: '8.3.1', name: 'a :method that is empty', fields: but(':method', '') },
  { rule: '8.3.1', name: 'a :scheme other than http and https', fields: but(':scheme', 'ftp') },
  { rule: '8.3.1', name: 'an :authority with userinfo', fields: but(':authority', 'user@a') },
  { rule: '8.3.1', name: 'an :authority with a line end', fields: but(':authority', 'a\r\nx-hidden: yes') },
  { rule: '8.3.1', name: 'an :authority with a space', fields: but(':authority', 'a b') },
  { rule: '8.3.1', name: 'an :authority with a path', fields: but(':authority', 'a/b') },
  { rule: '8.4', name: ':protocol where it was not offered', fields: [[':protocol', 'websocket'], ...GET] },
  {
    rule: '8.5',
    name: 'CONNECT with a :path',
    fields: [
      [':method', 'CONNECT'],
      [':authority', 'a:1'],
      [':path', '/'],
    ],
  },
  {
    rule: '8.5',
    name: 'CONNECT without a port',
    fields: [
      [':method', 'CONNECT'],
      [':authority', 'a'],
    ],
  },
  { rule: '8.1.1', name: 'a content-length without content', fields: withField('content-length', '5') },
  { rule: '8.1.1', name: 'a content-length with a sign', fields: withField('content-length', '+0') },
  { rule: '8.1.1', name: 'a content-length that is a list', fields: withField('content-length', '0, 0') },
  { rule: '8.1.1', name: 'two content-lengths', fields: [...GET, ['content-length', '0'], ['content-length', '0']] },
]

describe('a malformed request', () => {
  for (const { rule, name, fields } of MALFORMED)
    test(`RFC 9113/${rule}: ${name}: never reaches the service, and the connection goes on`, async (t) => {
      const { heard, open } = await start(t)
      const caller = open(headers(1, fields))
      const outcome = await caller.outcome(1)
      if (outcome.type === FRAME.headers) assert.equal(statusOf(outcome), 400)
      else assert.deepEqual([outcome.type, codeOf(outcome)], [FRAME.reset, CODE.protocol])
      caller.send(headers(3, GET))
      assert.equal(statusOf(await caller.outcome(3)), 200)
      assert.equal(heard.length, 1)
    })

  for (const [name, field] of [
    ['a line end in a value', ['x-a', 'b\r\nx-hidden: yes']],
    ['a bare LF in a value', ['x-a', 'b\nx-hidden: yes']],
    ['a NUL in a value', ['x-a', 'b\0']],
    ['a colon in a name', ['x-hidden: yes\r\nx', 'a']],
    ['a space in a name', ['x hidden', 'a']],
    ['a name that is empty', ['', 'hidden']],
    ['a transfer-encoding with a line end', ['transfer-encoding', 'chunked\r\nx-hidden: yes']],
  ] as const)
    test(`RFC 9113/8.2.1: ${name}: the service hears nothing of the field`, async (t) => {
      const { heard, open } = await start(t)
      await open(headers(1, [...GET, field])).outcome(1)
      await eventually('it was looked at', () => heard.length <= 1)
      assert.doesNotMatch(heard.map((each) => each.fields.join('\n')).join('\n'), /hidden|chunked|x-a/i)
    })

  test('RFC 9110/9.3.6: CONNECT with a content-length: the service hears nothing of it', async (t) => {
    const { open, exchanges } = await start(t)
    const fields: Fields = [
      [':method', 'CONNECT'],
      [':authority', 'a:80'],
      ['content-length', '3'],
    ]
    assert.equal(statusOf(await open(headers(1, fields, false)).outcome(1)), 400)
    assert.equal(exchanges.length, 0)
  })

  test('RFC 9113/8.1.1: more content than its content-length: the service sees no whole request', async (t) => {
    const { heard, open, endings, exchanges } = await start(t)
    const caller = open(headers(1, [...POST, ['content-length', '3']], false))
    await eventually('it has begun', () => exchanges.length === 1)
    caller.send(frame(FRAME.data, FLAG.endStream, 1, Buffer.from('abcGET /hidden HTTP/1.1')))
    const outcome = await caller.outcome(1)
    assert.deepEqual([outcome.type, codeOf(outcome)], [FRAME.reset, CODE.protocol])
    await eventually('the request has ended', () => endings.length === 1)
    assert.equal(heard.length, 0)
  })

  test('RFC 9113/8.1.1: less content than its content-length: the service sees no whole request', async (t) => {
    const { heard, open, endings, exchanges } = await start(t)
    const caller = open(headers(1, [...POST, ['content-length', '30']], false))
    await eventually('it has begun', () => exchanges.length === 1)
    caller.send(frame(FRAME.data, FLAG.endStream, 1, Buffer.from('abc')))
    const outcome = await caller.outcome(1)
    assert.deepEqual([outcome.type, codeOf(outcome)], [FRAME.reset, CODE.protocol])
    await eventually('the request has ended', () => endings.length === 1)
    assert.equal(heard.length, 0)
  })

  test('RFC 9113/8.1: a request that its caller resets without an error is not whole', async (t) => {
    const { heard, open, endings, exchanges } = await start(t)
    const caller = open(headers(1, POST, false), frame(FRAME.data, 0, 1, Buffer.from('abc')))
    await eventually('it has begun', () => exchanges.length === 1)
    caller.send(frame(FRAME.reset, 0, 1, Buffer.alloc(4)))
    await eventually('it has ended', () => endings.length === 1)
    assert.equal(endings[0]!.error?.reason, 'caller_gone')
    assert.equal(heard.length, 0)
  })

  test('RFC 9113/8.1: trailers with pseudo-fields', async (t) => {
    const { heard, open } = await start(t)
    const caller = open(headers(1, POST, false), headers(1, [[':path', '/hidden']]))
    assert.deepEqual(codeOf(await caller.until(FRAME.reset, 1)), CODE.protocol)
    assert.equal(heard.length, 0)
  })

  test('is counted by its kind where it is answered', async (t) => {
    const { malformed, open } = await start(t, { listener: { headFields: 5 } })
    const caller = open(
      headers(1, withField('host', 'b')),
      headers(3, but(':scheme', 'ftp')),
      headers(5, [...GET, ...Array.from({ length: 6 }, (_, i) => [`x-${i}`, 'a'] as const)]),
      headers(7, [...POST, ['expect', 'a miracle']], false),
    )
    for (const stream of [1, 3, 5, 7]) assert.equal((await caller.outcome(stream)).type, FRAME.headers)
    assert.deepEqual([...malformed].sort(), ['expectation', 'host', 'target', 'too_many_fields'])
  })
})

describe('what the service hears', () => {
  test('RFC 9113/8.3.1: Host from :authority, once, and first', async (t) => {
    const { heard, open } = await start(t)
    const caller = open(
      headers(1, but(':authority', 'b:80')),
      headers(3, [...without(':authority'), ['x-a', 'b'], ['host', 'c']]),
      headers(5, withField('host', 'A')),
    )
    for (const stream of [1, 3, 5]) await caller.outcome(stream)
    const hosts = heard.map(({ fields }) => fields.slice(0, 2).join('='))
    assert.deepEqual(hosts.sort(), ['host=A', 'host=b:80', 'host=c'])
    for (const { fields } of heard) assert.equal(fields.filter((name) => name.toLowerCase() === 'host').length, 1)
  })

  test('RFC 9113/8.2.3: one cookie out of its crumbs, and other fields one by one', async (t) => {
    const { heard, open } = await start(t)
    const crumbs: Fields = [
      ['cookie', 'a=1'],
      ['x-a', '1'],
      ['cookie', 'b=2'],
      ['x-a', '2'],
      ['cookie', 'c=3'],
    ]
    await open(headers(1, [...GET, ...crumbs])).outcome(1)
    assert.deepEqual(heard[0]!.fields.slice(2, 8), ['cookie', 'a=1; b=2; c=3', 'x-a', '1', 'x-a', '2'])
  })

  test('RFC 9113/8.1: content of known length, of unknown length, and trailers', async (t) => {
    const { heard, open } = await start(t)
    const caller = open(
      headers(1, [...POST, ['content-length', '6']], false),
      frame(FRAME.data, 0, 1, Buffer.from('abc')),
      frame(FRAME.data, FLAG.endStream, 1, Buffer.from('def')),
    )
    await caller.outcome(1)
    caller.send(
      headers(3, POST, false),
      frame(FRAME.data, 0, 3, Buffer.from('abc')),
      headers(3, [
        ['x-after', 'yes'],
        ['trailer', 'hidden'],
        ['x-holdfast-service', 'forged'],
      ]),
    )
    await caller.outcome(3)
    const [counted, chunked] = heard
    assert.equal(counted!.content, 'abcdef')
    assert.match(counted!.fields.join('\n'), /content-length\n6/)
    assert.equal(chunked!.content, 'abc')
    assert.match(chunked!.fields.join('\n'), /transfer-encoding\nchunked/)
    assert.deepEqual(chunked!.trailers, ['x-after', 'yes'])
  })

  test('RFC 9113/8.3.1: OPTIONS * in its asterisk form', async (t) => {
    const { heard, open } = await start(t)
    await open(headers(1, [[':method', 'OPTIONS'], ...but(':path', '*').slice(1)])).outcome(1)
    assert.equal(heard[0]!.line, 'OPTIONS *')
  })
})

describe('RFC 9113/3: how HTTP/2 begins', () => {
  const greeting = [Buffer.from(PREFACE), settings(), headers(1, GET)]

  test('3.4: with its preface, byte by byte as well as at once', async (t) => {
    const { port, heard } = await start(t)
    const whole = Buffer.concat(greeting)
    for (const pieces of [[whole], Array.from(whole, (byte) => Buffer.from([byte]))]) {
      const caller = new FrameSocket(connectTo(t, port))
      for (const piece of pieces) {
        caller.send(piece)
        // Each in a segment of its own.
        await new Promise((resolve) => setImmediate(resolve))
      }
      assert.equal(statusOf(await caller.outcome(1)), 200)
    }
    assert.equal(heard.length, 2)
  })

  test('3.4: whatever the chunking of its bytes, the same requests come out', async (t) => {
    const { port, heard } = await start(t)
    const bytes = Buffer.concat([
      ...greeting,
      headers(3, [...POST, ['content-length', '3']], false),
      frame(FRAME.data, FLAG.endStream, 3, Buffer.from('abc')),
      headers(5, POST, false),
      frame(FRAME.data, 0, 5, Buffer.from('de')),
      headers(5, [['x-after', 'yes']]),
    ])
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.integer({ min: 1, max: bytes.length - 1 }), { maxLength: 8 }),
        async (places) => {
          heard.length = 0
          const caller = new FrameSocket(connectTo(t, port))
          let from = 0
          for (const place of [...places.sort((a, b) => a - b), bytes.length]) {
            caller.send(bytes.subarray(from, place))
            from = place
            await new Promise((resolve) => setImmediate(resolve))
          }
          for (const stream of [1, 3, 5]) assert.equal(statusOf(await caller.outcome(stream)), 200)
          caller.socket.destroy()
          const seen = heard.map(({ line, content, trailers }) => [line, content, ...trailers].join(' ')).sort()
          assert.deepEqual(seen, ['GET / ', 'POST / abc', 'POST / de x-after yes'])
        },
      ),
      { numRuns: 60, seed: 7 },
    )
  })

  test('3.4: what only begins like it is HTTP/1.1', async (t) => {
    const { port, heard } = await start(t)
    const caller = new RawCaller(port)
    t.after(() => caller.socket.destroy())
    for (const piece of ['P', 'R', 'OPFIND /x HTTP/1.1\r\nHost: a\r\n\r\n']) {
      caller.send(piece)
      await new Promise((resolve) => setImmediate(resolve))
    }
    await caller.until(/200 OK[^]*ok/)
    assert.equal(heard[0]!.line, 'PROPFIND /x')
  })

  test('3.4: nothing later on a connection is taken for it', async (t) => {
    const { port } = await start(t)
    const caller = new RawCaller(port)
    caller.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    await caller.until(/ok/)
    caller.send(PREFACE)
    await caller.until(/ 505 /)
    await caller.closed
  })

  test('3.4: half of it and no more is closed in time', async (t) => {
    const { port, malformed } = await start(t, { listener: { headMs: 100 } })
    const caller = new RawCaller(port)
    caller.send(PREFACE.slice(0, 10))
    await caller.until(/ 408 /)
    await caller.closed
    assert.deepEqual(malformed, ['head_too_slow'])
  })

  test('3.4: a preface without SETTINGS is closed in time', async (t) => {
    const { port } = await start(t, { listener: { headMs: 100 } })
    const caller = new FrameSocket(connectTo(t, port))
    caller.send(PREFACE)
    await caller.closed
  })

  test('6.10: half of a head and no more is closed in time, and who only says nothing is not', async (t) => {
    const clock = new ManualClock()
    const { open, listener } = await start(t, { clock })
    const slow = open(frame(FRAME.headers, FLAG.endStream, 1, fieldBlock(GET)))
    const still = open()
    const isPing = ({ type, flags }: Frame) => type === FRAME.ping && flags === 0
    await eventually('both are greeted', () => listener.connections === 2 && still.frames.length > 1)
    await slow.untilOne(({ type, flags }) => type === FRAME.settings && flags === FLAG.ack, 'the greeting')
    await clock.advance(11_000)
    const asked = await still.untilOne(isPing, 'a PING')
    await slow.untilOne(isPing, 'a PING')
    still.send(frame(FRAME.ping, FLAG.ack, 0, asked.payload), frame(FRAME.ping, 0, 0, Buffer.from('it heard')))
    await still.untilOne(({ payload }) => payload.equals(Buffer.from('it heard')), 'an answer')
    await clock.advance(11_000)
    await slow.closed
    assert.equal(listener.connections, 1)
    assert.equal((await still.send(headers(1, GET)).outcome(1)).type, FRAME.headers)
  })

  test('3.4: something else than SETTINGS after it ends the connection', async (t) => {
    const { port, malformed } = await start(t)
    const caller = new FrameSocket(connectTo(t, port))
    caller.send(PREFACE, 'GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    await caller.closed
    assert.deepEqual(malformed, ['frames'])
  })

  test('3.1: Upgrade: h2c is ignored', async (t) => {
    const { port, heard } = await start(t)
    const caller = new RawCaller(port)
    t.after(() => caller.socket.destroy())
    caller.send(
      'GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n',
    )
    await caller.until(/^HTTP\/1\.1 200 OK[^]*ok/)
    assert.doesNotMatch(heard[0]!.fields.join('\n'), /h2c|settings/i)
  })
})

function connectTo(t: TestContext, port: number): Socket {
  const socket = connect(port, '127.0.0.1')
  t.after(() => socket.destroy())
  return socket
}
