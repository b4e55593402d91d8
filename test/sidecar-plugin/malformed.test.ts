import assert from 'node:assert/strict'
import { describe, test, type TestContext } from 'node:test'
import fc from 'fast-check'
import { RawCaller } from './fakes.ts'
import { startWire } from './wire.ts'

async function start(t: TestContext, options?: Parameters<typeof startWire>[1]) {
  let served = 0
  const started = await startWire((incoming, outgoing) => {
    served++
    incoming.resume()
    outgoing.end('served')
  }, options)
  t.after(() => started.stop())
  return { ...started, served: () => served }
}

/** Sends, and hears everything until the sidecar closes. */
async function tell(port: number, bytes: string): Promise<string> {
  const caller = new RawCaller(port)
  caller.send(bytes)
  await caller.closed
  return caller.text
}

describe('what is not HTTP/1.1 as a proxy must read it is refused with 400, and the connection closes', () => {
  const heads: Record<string, string> = {
    'no request at all': 'hello\r\n\r\n',
    'a space before the colon': 'GET / HTTP/1.1\r\nHost : a\r\n\r\n',
    'white space before the first field': 'GET / HTTP/1.1\r\n Host: a\r\n\r\n',
    'a folded field': 'GET / HTTP/1.1\r\nHost: a\r\nX: one\r\n two\r\n\r\n',
    'a bare CR': 'GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n',
    'a control character in a value': 'GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n',
    'a null in a name': 'GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n',
    'a length with a sign': 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc',
    'lengths that differ': 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd',
    'equal lengths twice': 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc',
    'a length beside a coding':
      'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    'a coding that does not end in chunked': 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n',
    'a chunk size that is no number':
      'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n',
  }
  for (const [name, bytes] of Object.entries(heads))
    test(name, async (t) => {
      const { port } = await start(t)
      const answer = await tell(port, bytes)
      assert.match(answer, /^HTTP\/1\.1 400 /)
      assert.match(answer, /x-holdfast-reason: bad_request/i)
      assert.match(answer, /application\/problem\+json/)
    })

  const ambiguous: Record<string, string> = {
    'two hosts': 'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
    'a Connection that names Host': 'GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n',
  }
  for (const [name, bytes] of Object.entries(ambiguous))
    test(`${name}, which never reaches the service`, async (t) => {
      const { port, served } = await start(t)
      const caller = new RawCaller(port).send(bytes)
      assert.match(await caller.until(/\}$/), /^HTTP\/1\.1 400 [\s\S]*bad_request/)
      assert.equal(served(), 0)
      caller.socket.destroy()
    })

  test('no host', async (t) => {
    const { port, served } = await start(t)
    const answer = await tell(port, 'GET / HTTP/1.1\r\nConnection: close\r\n\r\n')
    assert.match(answer, /^HTTP\/1\.1 400 [\s\S]*x-holdfast-reason: bad_request[\s\S]*"detail":"no Host"/)
    assert.equal(served(), 0)
  })
})

test('requests before the bytes that nobody can read have their answers first', async (t) => {
  const { port, served } = await start(t)
  const get = 'GET / HTTP/1.1\r\nHost: a\r\n\r\n'
  const post = 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc'
  const answer = await tell(port, `${get}${post}no request at all\r\n\r\n`)
  assert.deepEqual(answer.match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 200', 'HTTP/1.1 200', 'HTTP/1.1 400'])
  assert.match(answer, /x-holdfast-reason: bad_request/)
  assert.equal(served(), 2)
})

test('a request with unreadable bytes in its body is refused after the one before it was answered', async (t) => {
  const { port } = await start(t)
  const broken = 'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n'
  const answer = await tell(port, `GET / HTTP/1.1\r\nHost: a\r\n\r\n${broken}`)
  assert.deepEqual(answer.match(/HTTP\/1\.1 \d+/g), ['HTTP/1.1 200', 'HTTP/1.1 400'])
})

test('a request that hides in the body of an ambiguous one is never served', async (t) => {
  const { port, served } = await start(t)
  const hidden = 'GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n'
  await tell(
    port,
    `POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ${hidden.length + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${hidden}`,
  )
  assert.equal(served(), 0)
})

describe('limits', () => {
  test('a head that is too large is a 431', async (t) => {
    const { port } = await start(t, { listener: { headBytes: 8_192 } })
    const answer = await tell(port, `GET / HTTP/1.1\r\nHost: a\r\nX: ${'a'.repeat(9_000)}\r\n\r\n`)
    assert.match(answer, /^HTTP\/1\.1 431 [\s\S]*x-holdfast-reason: head_too_large/)
  })

  test('a head with too many fields is a 431, not one that was cut', async (t) => {
    const { port, served } = await start(t)
    const caller = new RawCaller(port).send(`GET / HTTP/1.1\r\nHost: a\r\n${'X: a\r\n'.repeat(100)}\r\n`)
    assert.match(await caller.until(/\}$/), /^HTTP\/1\.1 431 [\s\S]*head_too_large/)
    assert.equal(served(), 0)
    caller.socket.destroy()
  })

  test('a head that trickles is a 408', async (t) => {
    const { port } = await start(t, { listener: { headMs: 100 } })
    assert.match(await tell(port, 'GET / HTTP/1.1\r\nHost'), /^HTTP\/1\.1 408 [\s\S]*request_timeout/)
  })

  test('a Connection of many options is a 400, in one line or in several', async (t) => {
    const { port, served } = await start(t)
    for (const lines of [`Connection: ${'a,'.repeat(64)}\r\n`, 'Connection: a,b,c,d,e,f,g\r\n'.repeat(10)])
      assert.match(await tell(port, `GET / HTTP/1.1\r\nHost: a\r\n${lines}\r\n`), /^HTTP\/1\.1 400 [\s\S]*bad_request/)
    assert.equal(served(), 0)
    const few = `GET / HTTP/1.1\r\nHost: a\r\nConnection: ${'a,'.repeat(62)}close\r\n\r\n`
    assert.match(await tell(port, few), /^HTTP\/1\.1 200 /)
  })

  test('content that stops coming is a 408', async (t) => {
    const wire = await startWire(() => {}, { listener: { idleMs: 100, lingerMs: 100 } })
    t.after(() => wire.stop())
    const answer = await tell(wire.port, 'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc')
    assert.match(answer, /^HTTP\/1\.1 408 [\s\S]*x-holdfast-reason: idle\r\n/)
  })
})

describe('what is refused with a status of its own', () => {
  const cases: [name: string, bytes: string, answer: RegExp][] = [
    ['another version', 'GET / HTTP/3.0\r\nHost: a\r\n\r\n', /^HTTP\/1\.1 505 [\s\S]*x-holdfast-reason: version\r\n/],
    [
      'a coding that nobody knows',
      'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n',
      /^HTTP\/1\.1 501 [\s\S]*x-holdfast-reason: not_supported\r\n/,
    ],
    [
      'an expectation that nobody knows',
      'GET / HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n',
      /^HTTP\/1\.1 417 [\s\S]*x-holdfast-reason: expectation\r\n/,
    ],
  ]
  for (const [name, bytes, answer] of cases)
    test(name, async (t) => {
      const { port, served } = await start(t)
      assert.match(await tell(port, bytes), answer)
      assert.equal(served(), 0)
    })
})

test('an upgrade that is no WebSocket is ignored, as the standard allows, and the request is served', async (t) => {
  const { port } = await start(t)
  const answer = await tell(port, 'GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n')
  assert.match(answer, /^HTTP\/1\.1 200 [\s\S]*served/)
})

test('whatever bytes arrive, the next caller is served', async (t) => {
  const { port } = await start(t)
  const line = fc.oneof(
    fc.constantFrom(
      'GET / HTTP/1.1',
      'POST / HTTP/1.1',
      'Host: a',
      'Content-Length: 5',
      'Transfer-Encoding: chunked',
      '',
    ),
    fc.string({ unit: 'binary', maxLength: 40 }),
  )
  await fc.assert(
    fc.asyncProperty(fc.array(line, { maxLength: 12 }), fc.constantFrom('\r\n', '\n', '\r'), async (lines, end) => {
      const rough = new RawCaller(port)
      rough.send(lines.join(end))
      rough.socket.end()
      await rough.closed
      const caller = new RawCaller(port).send('GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n')
      await caller.closed
      assert.match(caller.text, /^HTTP\/1\.1 200 OK[\s\S]*served/)
    }),
    { numRuns: 60, seed: 7 },
  )
})
