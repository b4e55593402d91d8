import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { request, type IncomingMessage, type RequestOptions } from 'node:http'
import { describe, test, type TestContext } from 'node:test'
import { Readable } from 'node:stream'
import { Fields } from '../../sidecar-plugin/src/fields.ts'
import { Whole, type Layer } from '../../sidecar-plugin/src/layer.ts'
import { RawCaller, replyOf } from './fakes.ts'
import { eventually, rawService, startWire } from './wire.ts'

type WireOptions = Parameters<typeof startWire>[1]

async function wire(t: TestContext, handler: Parameters<typeof startWire>[0], options?: WireOptions) {
  const started = await startWire(handler, options)
  t.after(() => started.stop())
  return started
}

async function call(port: number, options: RequestOptions = {}, body?: Readable | string) {
  const outgoing = request({ port, host: '127.0.0.1', agent: false, ...options })
  if (body instanceof Readable) body.pipe(outgoing)
  else outgoing.end(body)
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  return response
}

async function textOf(response: IncomingMessage): Promise<string> {
  let text = ''
  for await (const chunk of response) text += String(chunk)
  return text
}

const MIB = 1_048_576

/** So many mebibytes that never repeat, made as they are asked for. */
function stream(mebibytes: number): { readable: Readable; hash: Promise<string> } {
  const hash = createHash('sha256')
  let sent = 0
  let done!: (hex: string) => void
  const digest = new Promise<string>((resolve) => (done = resolve))
  const readable = new Readable({
    highWaterMark: 65_536,
    read() {
      if (sent === mebibytes * 16) {
        done(hash.digest('hex'))
        this.push(null)
        return
      }
      const chunk = Buffer.alloc(65_536, sent % 251)
      chunk.writeUInt32BE(sent++)
      hash.update(chunk)
      this.push(chunk)
    },
  })
  return { readable, hash: digest }
}

async function hashOf(source: AsyncIterable<unknown>): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of source) hash.update(chunk as Buffer)
  return hash.digest('hex')
}

describe('bodies', () => {
  test('stream both ways at once, whole, however large', async (t) => {
    const { port } = await wire(t, (incoming, outgoing) => void incoming.pipe(outgoing))
    const before = process.memoryUsage().rss
    const { readable, hash } = stream(50)
    const response = await call(port, { method: 'POST' }, readable)
    const received = await hashOf(response)
    assert.equal(received, await hash)
    const grown = (process.memoryUsage().rss - before) / MIB
    assert(grown < 150, `memory grew by ${grown.toFixed(0)} MiB`)
  })

  test('a caller that does not read holds its service back, instead of filling memory', async (t) => {
    let written = 0
    const { port, endings } = await wire(t, (_incoming, outgoing) => {
      const source = stream(64).readable
      source.on('data', (chunk: Buffer) => (written += chunk.length))
      source.pipe(outgoing)
      outgoing.on('close', () => source.destroy())
    })
    const caller = new RawCaller(port)
    caller.socket.pause()
    caller.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    let last = -1
    let quietTurns = 0
    await eventually('the service stops writing', () => {
      quietTurns = written === last && written > 0 ? quietTurns + 1 : 0
      last = written
      return quietTurns > 2_000
    })
    assert(written < 32 * MIB, `${written} bytes were taken for a caller that reads none`)
    caller.socket.destroy()
    await eventually('the exchange ends', () => endings.length === 1)
    assert.equal(endings[0]!.error?.reason, 'caller_gone')
  })

  test('an answer that comes before the request’s body has ended reaches the caller', async (t) => {
    const { port } = await wire(t, (_incoming, outgoing) => {
      outgoing.writeHead(413, { connection: 'close' }).end('too large')
    })
    const caller = new RawCaller(port)
    caller.send('POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin')
    assert.match(await caller.until(/too large/), /^HTTP\/1\.1 413 /)
    caller.socket.destroy()
  })

  test('the head of an answer arrives before its body begins', async (t) => {
    let finish = () => {}
    const { port } = await wire(t, (_incoming, outgoing) => {
      outgoing.writeHead(200, { 'content-type': 'text/event-stream' })
      outgoing.flushHeaders()
      finish = () => outgoing.end('data: 1\n\n')
    })
    const response = await call(port)
    assert.equal(response.headers['content-type'], 'text/event-stream')
    finish()
    assert.equal(await textOf(response), 'data: 1\n\n')
  })

  test('of HEAD, 204 and 304 there is none, and the connection goes on', async (t) => {
    const { port } = await wire(t, (incoming, outgoing) => {
      if (incoming.method === 'HEAD') outgoing.writeHead(200, { 'content-length': '1234' }).end()
      else outgoing.writeHead(Number(incoming.url!.slice(1)), { etag: '"1"' }).end()
    })
    const caller = new RawCaller(port)
    caller.send('HEAD / HTTP/1.1\r\nHost: a\r\n\r\n')
    assert.match(await caller.until(/\r\n\r\n/), /content-length: 1234/i)
    for (const status of [204, 304]) {
      caller.text = ''
      caller.send(`GET /${status} HTTP/1.1\r\nHost: a\r\n\r\n`)
      const text = await caller.until(/\r\n\r\n/)
      assert.match(text, new RegExp(`^HTTP/1.1 ${status} `))
      assert.match(text, /etag: "1"/i)
    }
    caller.socket.destroy()
  })
})

describe('who breaks off', () => {
  test('a caller that resets its connection ends what runs for it upstream', async (t) => {
    let arrived = false
    let upstreamClosed = false
    const { port, endings } = await wire(t, (incoming) => {
      arrived = true
      incoming.socket.on('close', () => (upstreamClosed = true))
    })
    const caller = new RawCaller(port)
    caller.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    await eventually('the request is under way', () => arrived)
    caller.socket.resetAndDestroy()
    await eventually('the upstream connection closes', () => upstreamClosed)
    assert.equal(endings[0]!.error?.reason, 'caller_gone')
  })

  test('a caller that goes in the middle of its body never becomes a whole request', async (t) => {
    let ended = false
    let closed = false
    const { port } = await wire(t, (incoming) => {
      incoming.on('data', () => caller.socket.destroy())
      incoming.on('end', () => (ended = true))
      incoming.on('error', () => {})
      incoming.on('close', () => (closed = true))
    })
    const caller = new RawCaller(port)
    caller.send('POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n')
    await eventually('the service notices', () => closed)
    assert.equal(ended, false)
  })

  test('a caller that closes its half after the request still gets the answer', async (t) => {
    let answer = () => {}
    const { port } = await wire(t, (_incoming, outgoing) => {
      answer = () => void outgoing.end('late')
    })
    const caller = new RawCaller(port, { allowHalfOpen: true })
    caller.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    caller.socket.end()
    const asked = answer
    await eventually('the request arrives', () => answer !== asked)
    answer()
    assert.match(await caller.until(/late/), /^HTTP\/1\.1 200 /)
  })

  for (const framing of ['content-length: 100', 'transfer-encoding: chunked'])
    test(`a service that breaks off a body with ${framing} breaks the caller’s connection, not its trust`, async (t) => {
      let reset = () => {}
      const service = await rawService(t, (socket) => {
        reset = () => void socket.resetAndDestroy()
        socket.once('data', () => {
          const piece = framing.startsWith('content') ? 'begin' : '5\r\nbegin\r\n'
          socket.write(`HTTP/1.1 200 OK\r\n${framing}\r\n\r\n${piece}`)
        })
      })
      const { port, endings } = await wire(t, () => {}, { service })
      const caller = new RawCaller(port)
      caller.send('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
      await caller.until(/begin/)
      reset()
      await caller.closed
      assert(!caller.text.endsWith('0\r\n\r\n'), 'no clean end of a cut body')
      assert.notEqual(caller.error, undefined, 'the connection is reset, not closed as if all were said')
      assert.equal(endings[0]!.error?.reason, 'upstream_reset')
    })

  test('a service that resets before it answers is an upstream_reset that says where', async (t) => {
    const service = await rawService(t, (socket) => socket.once('data', () => socket.resetAndDestroy()))
    const { port } = await wire(t, () => {}, { service })
    const response = await call(port)
    assert.equal(response.statusCode, 502)
    assert.equal(response.headers['x-holdfast-reason'], 'upstream_reset')
    const problem = JSON.parse(await textOf(response)) as { code: string; detail: string }
    assert.equal(problem.code, 'upstream_reset')
    assert.match(problem.detail, new RegExp(`:${service.port}: `))
  })

  test('a service that does not listen leaves the request’s body whole, so that another may get it', async (t) => {
    const gone = await rawService(t, () => {})
    gone.stop()
    const { port, exchanges } = await wire(t, () => {}, { destinationPort: gone.port })
    const response = await call(port, { method: 'POST' }, 'a body')
    assert.equal(response.statusCode, 502)
    assert.equal(response.headers['x-holdfast-reason'], 'upstream_connect')
    assert.deepEqual(exchanges[0]!.body, Whole.of('a body'))
  })

  for (const [what, answer] of Object.entries({
    'a length beside a coding':
      'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n',
    'differing lengths': 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd',
    'no HTTP at all': 'SSH-2.0-OpenSSH_9.2\r\n',
    'a head without end': `HTTP/1.1 200 OK\r\nX: ${'a'.repeat(70_000)}\r\n`,
  }))
    test(`a service that answers with ${what} is an upstream_protocol error`, async (t) => {
      const service = await rawService(t, (socket) => socket.once('data', () => socket.write(answer)))
      const { port } = await wire(t, () => {}, { service })
      const response = await call(port)
      assert.equal(response.statusCode, 502)
      assert.equal(response.headers['x-holdfast-reason'], 'upstream_protocol')
    })
})

describe('heads', () => {
  test('keep the case and the duplicates of their fields, both ways', async (t) => {
    const { port } = await wire(t, (incoming, outgoing) => {
      outgoing.writeHead(200, 'Fine', ['X-CaSe', '1', 'set-cookie', 'a=1', 'Set-Cookie', 'b=2', 'Connection', 'X-Hop'])
      outgoing.end(JSON.stringify(incoming.rawHeaders))
    })
    const response = await call(port, { headers: ['Host', 'Stock', 'X-One', 'a', 'x-one', 'b', 'X-Two', 'c'] as never })
    assert.equal(response.statusMessage, 'Fine')
    assert.deepEqual(response.rawHeaders.slice(0, 6), ['X-CaSe', '1', 'set-cookie', 'a=1', 'Set-Cookie', 'b=2'])
    const arrived = JSON.parse(await textOf(response)) as string[]
    const one = arrived.indexOf('X-One')
    assert.deepEqual(arrived.slice(one, one + 6), ['X-One', 'a', 'x-one', 'b', 'X-Two', 'c'])
    assert.equal(arrived[arrived.findIndex((part) => part.toLowerCase() === 'host') + 1], 'Stock')
  })

  test('that a layer made up and that are none become a 500 with a text of its own', async (t) => {
    const broken: Layer = () => async () =>
      replyOf({ statusText: 'OK', headers: Fields.of(['content-length', '3']), body: Whole.of('four') })
    const { port } = await wire(t, () => {}, { layers: [broken] })
    const response = await call(port)
    assert.deepEqual([response.statusCode, response.statusMessage], [500, 'Internal Server Error'])
    assert.equal(response.headers['x-holdfast-reason'], 'internal_error')
  })

  test('a service cannot forge a sidecar’s reason', async (t) => {
    const { port } = await wire(t, (_incoming, outgoing) => {
      outgoing.writeHead(503, { 'x-holdfast-reason': 'not_here', 'X-Holdfast-Else': '1' }).end()
    })
    const response = await call(port)
    assert.equal(response.statusCode, 503)
    assert.deepEqual(
      Object.keys(response.headers).filter((name) => name.startsWith('x-holdfast')),
      [],
    )
  })

  test('a peer sidecar’s reason is passed on', async (t) => {
    const { port } = await wire(
      t,
      (_incoming, outgoing) => void outgoing.writeHead(421, { 'x-holdfast-reason': 'not_here' }).end(),
      { trustReason: true },
    )
    assert.equal((await call(port)).headers['x-holdfast-reason'], 'not_here')
  })

  test('an early hint does not take the place of the answer', async (t) => {
    const { port } = await wire(t, (_incoming, outgoing) => {
      outgoing.writeEarlyHints({ link: '</a.css>; rel=preload' })
      outgoing.end('answer')
    })
    const response = await call(port)
    assert.equal(response.statusCode, 200)
    assert.equal(await textOf(response), 'answer')
  })
})

describe('a caller that expects to be told to continue', () => {
  test('is told once a node takes the body, and not before', async (t) => {
    const { port } = await wire(t, (incoming, outgoing) => void incoming.pipe(outgoing))
    const caller = new RawCaller(port)
    caller.send('POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n')
    assert.equal(await caller.until(/\r\n\r\n/), 'HTTP/1.1 100 Continue\r\n\r\n')
    caller.send('body')
    await caller.until(/body$|body\r\n/)
    caller.socket.destroy()
  })

  test('is answered without it when nobody takes the body, and its connection closes', async (t) => {
    const gone = await rawService(t, () => {})
    gone.stop()
    const { port } = await wire(t, () => {}, { destinationPort: gone.port })
    const caller = new RawCaller(port)
    caller.send('POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n')
    await caller.closed
    assert.match(caller.text, /^HTTP\/1\.1 502 /)
    assert.match(caller.text, /connection: close/i)
  })
})

describe('HTTP/1.0', () => {
  test('is served, and its connection closes', async (t) => {
    const { port } = await wire(t, (_incoming, outgoing) => void outgoing.end('old'))
    const caller = new RawCaller(port)
    caller.send('GET / HTTP/1.0\r\n\r\n')
    await caller.closed
    assert.match(caller.text, /^HTTP\/1\.1 200 OK\r\n/)
    assert.match(caller.text, /old$/)
    assert.doesNotMatch(caller.text, /chunked/i)
  })

  test('is served an answer in chunks that announces trailers, which stay behind', async (t) => {
    const { port } = await wire(t, (_incoming, outgoing) => {
      outgoing.writeHead(200, { trailer: 'x-sum' })
      outgoing.write('old')
      outgoing.addTrailers({ 'x-sum': '1' })
      outgoing.end()
    })
    const caller = new RawCaller(port).send('GET / HTTP/1.0\r\n\r\n')
    await caller.closed
    assert.match(caller.text, /^HTTP\/1\.1 200 OK\r\n[\s\S]*\r\n\r\nold$/)
    assert.doesNotMatch(caller.text, /trailer|x-sum/i)
  })
})
