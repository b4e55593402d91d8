import assert from 'node:assert/strict'
import { once } from 'node:events'
import { describe, test } from 'node:test'
import { Duplex } from 'node:stream'
import { connect as connectTls } from 'node:tls'
import fc from 'fast-check'
import { DETECTED_BYTES, ProtocolDetector, type Detected } from '../../../sidecar-plugin/src/tcp/protocol-detector.ts'
import { hello, helloMessage, inRecords, sniOf, u16 } from './client-hello.ts'

const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'

function bytesOf(text: string | Buffer): Buffer {
  return Buffer.isBuffer(text) ? text : Buffer.from(text, 'latin1')
}

/** What is known once all of it has arrived. */
function detect(text: string | Buffer): Detected | undefined {
  return new ProtocolDetector().push(bytesOf(text))
}

/** After how many bytes it was known, or undefined. */
function knownAfter(bytes: Buffer): { at: number; result: Detected } | undefined {
  const detector = new ProtocolDetector()
  for (let at = 0; at < bytes.length; at++) {
    const result = detector.push(bytes, at, at + 1)
    if (result) return { at: at + 1, result }
  }
  return undefined
}

describe('a request line of HTTP/1', () => {
  for (const line of [
    'GET / HTTP/1.1\r\n',
    'get / HTTP/1.0\n',
    'OPTIONS * HTTP/1.1\r',
    'CONNECT a:1 HTTP/1.1\r\n',
    `${'M'.repeat(32)} http://a/b?c=d HTTP/1.9\r\n`,
    'PRI /x HTTP/1.1\r\n',
    'PRI * HTTP/1.1\r\n',
    'GET /\xc3\xa9 HTTP/1.1\r\n',
    `GET /${'a'.repeat(16_000)} HTTP/1.1\r\n`,
  ])
    test(`${JSON.stringify(line.slice(0, 40))} is known by its end`, () => {
      const text = line.replace(/\r\n$/, '\r')
      assert.deepEqual(knownAfter(bytesOf(line)), { at: text.length, result: { protocol: 'http1' } })
    })

  for (const [text, at] of [
    [' GET / HTTP/1.1\r\n', 1],
    ['\r\nGET / HTTP/1.1\r\n', 1],
    ['GET  / HTTP/1.1\r\n', 5],
    ['GET /\r\n', 6],
    ['GET / HTTP/2.0\r\n', 12],
    ['GET / http/1.1\r\n', 7],
    ['GET / HTTP/1.1 \r\n', 15],
    ['GET / HTTP/1.10\r\n', 15],
    ['GET / HTTP/1.x\r\n', 14],
    ['GET /a b HTTP/1.1\r\n', 8],
    ['GET\t/ HTTP/1.1\r\n', 4],
    ['GET /\x7f HTTP/1.1\r\n', 6],
    ['G(T / HTTP/1.1\r\n', 2],
    [`${'M'.repeat(33)} / HTTP/1.1\r\n`, 33],
    [`GET /${'a'.repeat(DETECTED_BYTES)} HTTP/1.1\r\n`, DETECTED_BYTES],
  ] as const)
    test(`${JSON.stringify(text.slice(0, 40))} is none, which is known by its byte ${at}`, () =>
      assert.deepEqual(knownAfter(bytesOf(text)), { at, result: { protocol: 'opaque' } }))
})

describe('the preface of HTTP/2', () => {
  test('is known by its last byte, and nothing before that', () => {
    assert.deepEqual(knownAfter(bytesOf(`${PREFACE}\0\0\0`)), { at: 24, result: { protocol: 'http2' } })
  })
  for (let at = 0; at < PREFACE.length; at++)
    test(`with another byte at ${at} is none`, () => {
      const other = PREFACE[at] === 'X' ? 'Y' : 'X'
      const text = `${PREFACE.slice(0, at)}${other}${PREFACE.slice(at + 1)}\r\n`
      assert.deepEqual(detect(text), { protocol: 'opaque' })
    })
})

describe('what other protocols begin with is opaque at once', () => {
  for (const [name, text, at] of [
    ['PostgreSQL', Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]), 1],
    ['Redis', '*1\r\n$4\r\nPING\r\n', 3],
    ['Redis, inline', 'PING\r\n', 5],
    ['memcached', 'get some_key\r\n', 13],
    ['memcached, storing', 'set k 0 0 5\r\nhello\r\n', 7],
    ['AMQP', 'AMQP\x00\x00\x09\x01', 5],
    ['MQTT', '\x10\x10\x00\x04MQTT', 1],
    ['MongoDB', Buffer.from([0x3a, 0, 0, 0, 1, 0, 0, 0]), 1],
    ['Kafka', Buffer.from([0, 0, 0, 30, 0, 18]), 1],
    ['SSH', 'SSH-2.0-OpenSSH_9.6\r\n', 20],
    ['SSL 2', Buffer.from([0x80, 0x2e, 1, 0, 2]), 1],
    ['a TLS alert', Buffer.from([21, 3, 3, 0, 2, 1, 0]), 1],
    ['TLS that is no beginning', Buffer.from([22, 3, 3, 0, 4, 2, 0, 0, 0]), 6],
  ] as const)
    test(name, () => assert.deepEqual(knownAfter(bytesOf(text)), { at, result: { protocol: 'opaque' } }))
})

describe('a ClientHello', () => {
  test('gives the host and the protocols that it asks for', () => {
    const bytes = hello({ serverName: 'Stock.Example', alpn: ['h2', 'http/1.1'] })
    assert.deepEqual(knownAfter(Buffer.concat([bytes, Buffer.from('more')])), {
      at: bytes.length,
      result: { protocol: 'tls', hello: { serverName: 'stock.example', alpn: ['h2', 'http/1.1'] } },
    })
  })

  test('may say neither, and may have no extensions at all', () => {
    const nothing = { protocol: 'tls', hello: { serverName: undefined, alpn: [] } }
    assert.deepEqual(detect(hello()), nothing)
    assert.deepEqual(detect(hello({ withoutExtensions: true, sessionId: Buffer.alloc(0) })), nothing)
    assert.deepEqual(
      detect(
        hello({
          extensions: [
            [0x0a0a, Buffer.alloc(0)],
            [51, Buffer.alloc(1_200)],
          ],
        }),
      ),
      nothing,
    )
  })

  test('may lie in many records', () => {
    const message = helloMessage({ serverName: 'a.b', extensions: [[51, Buffer.alloc(1_200)]] })
    for (const size of [1, 2, 3, 4, 5, 100, message.length - 1])
      assert.equal((detect(inRecords(message, size)) as { hello: { serverName: string } }).hello.serverName, 'a.b')
  })

  test('is what a real client sends', async () => {
    const written: Buffer[] = []
    const wire = new Duplex({
      read() {},
      write(chunk: Buffer, _encoding, done) {
        written.push(chunk)
        done()
        wire.emit('written')
      },
    })
    const socket = connectTls({ socket: wire, servername: 'db.shop.example', ALPNProtocols: ['postgresql', 'h2'] })
    socket.on('error', () => {})
    if (written.length === 0) await once(wire, 'written')
    socket.destroy()
    assert.deepEqual(detect(Buffer.concat(written)), {
      protocol: 'tls',
      hello: { serverName: 'db.shop.example', alpn: ['postgresql', 'h2'] },
    })
  })

  const empty = Buffer.alloc(0)
  for (const [what, bytes] of Object.entries({
    'the same extension twice': hello({
      extensions: [
        [51, empty],
        [51, empty],
      ],
    }),
    'a host of two': hello({ extensions: [[0, Buffer.concat([sniOf('a'), sniOf('b')])]] }),
    'an empty host': hello({ serverName: '' }),
    'an address for a host': hello({ serverName: '10.0.0.1' }),
    'a host with a dot at its end': hello({ serverName: 'a.' }),
    'a host with a blank': hello({ serverName: 'a b' }),
    'a host with a zero': hello({ serverName: 'a\0.evil' }),
    'a host that is too long': hello({ serverName: `${'a.'.repeat(130)}a` }),
    'a list of hosts that is too long': hello({ extensions: [[0, u16(9)]] }),
    'protocols without a name': hello({ alpn: [''] }),
    'no protocols': hello({ alpn: [] }),
    'a protocol cut short': hello({ extensions: [[16, Buffer.from([0, 2, 5, 97])]] }),
    'a session id that is too long': hello({ sessionId: Buffer.alloc(33) }),
    'no cipher suites': hello({ suites: empty }),
    'half a cipher suite': hello({ suites: Buffer.alloc(3) }),
    'more behind the extensions': inRecords(
      (() => {
        const message = Buffer.concat([helloMessage(), Buffer.from([0])])
        message.writeUIntBE(message.length - 4, 1, 3)
        return message
      })(),
    ),
    'another message in its last record': inRecords(Buffer.concat([helloMessage(), helloMessage()])),
    'a record of no bytes': Buffer.concat([Buffer.from([22, 3, 1, 0, 0]), hello()]),
    'a record that is too long': Buffer.from([22, 3, 1, 0x40, 1, 1]),
    'a message that is too long': Buffer.from([22, 3, 1, 0x40, 0, 1, 1, 0, 0, 0]),
  }))
    test(`with ${what} is passed on as it is`, () => assert.deepEqual(detect(bytes), { protocol: 'opaque' }))
})

describe('whatever arrives', () => {
  const samples = [
    'GET /items/1 HTTP/1.1\r\nHost: a\r\n\r\n',
    `${PREFACE}\0\0\0\x04`,
    hello({ serverName: 'a.example', alpn: ['h2'] }),
    inRecords(helloMessage({ serverName: 'a.example' }), 7),
    'SSH-2.0-x\r\n',
  ].map(bytesOf)
  const mutated = fc
    .tuple(fc.constantFrom(...samples), fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 4 }), fc.uint8Array())
    .map(([sample, changes, rest]) => {
      const bytes = Buffer.concat([sample, rest])
      for (const [at, value] of changes) bytes[at % bytes.length] = value
      return bytes
    })
  const anything = fc.oneof(
    mutated,
    fc.uint8Array({ maxLength: 600 }).map((bytes) => Buffer.from(bytes)),
  )

  test('the pieces that it comes in make no difference', () => {
    fc.assert(
      fc.property(anything, fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1 }), (bytes, sizes) => {
        const whole = new ProtocolDetector()
        whole.push(bytes)
        const detector = new ProtocolDetector()
        for (let at = 0, i = 0; at < bytes.length; i++) {
          const end = Math.min(bytes.length, at + sizes[i % sizes.length]!)
          detector.push(bytes, at, end)
          at = end
        }
        assert.deepEqual(detector.result, whole.result)
        assert.deepEqual(detector.end(), whole.end())
      }),
      { numRuns: 2_000 },
    )
  })

  test('what is known once stays, and what follows makes no difference', () => {
    fc.assert(
      fc.property(anything, anything, (bytes, more) => {
        const detector = new ProtocolDetector()
        const first = detector.push(bytes)
        if (first) assert.equal(detector.push(more), first)
      }),
    )
  })

  test('it is known by the limit, with no exception on the way', () => {
    fc.assert(
      fc.property(anything, fc.constantFrom(0, 0x20, 0x41, 0x16, 0xff), (bytes, filler) => {
        const detector = new ProtocolDetector()
        detector.push(bytes)
        const missing = DETECTED_BYTES - bytes.length
        assert.notEqual(detector.push(Buffer.alloc(missing, filler)), undefined)
      }),
      { numRuns: 300 },
    )
  })

  test('half of something known is known by nobody before its end', () => {
    for (const sample of samples.slice(0, 4)) {
      const { at, result } = knownAfter(sample)!
      assert.notEqual(result.protocol, 'opaque')
      assert.equal(new ProtocolDetector().push(sample, 0, at - 1), undefined)
      const detector = new ProtocolDetector()
      detector.push(sample, 0, at - 1)
      assert.deepEqual(detector.end(), { protocol: 'opaque' })
    }
  })
})
