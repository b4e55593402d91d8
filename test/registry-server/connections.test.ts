/** What happens below and around the routes: on raw sockets, while loading, and while stopping. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { test, type TestContext } from 'node:test'
import { TIMEOUTS } from '../../registry-server/src/api/api.ts'
import { openEmbeddedStore } from '../../registry-server/src/store/embedded/embedded-store.ts'
import { createRegistry } from '../../registry-server/src/server.ts'
import type { Store } from '../../registry-server/src/store/store.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { caller, configOf, deferred, silent, someNode, startRegistry, temporaryDirectory } from './support.ts'

function open(context: TestContext, url: string): Socket {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  context.after(() => socket.destroy())
  return socket
}

/** Sends bytes, and reads until the other side ends. */
async function exchange(context: TestContext, url: string, ...parts: string[]): Promise<string> {
  const socket = open(context, url)
  let text = ''
  socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')))
  for (const part of parts) socket.write(part, 'latin1')
  await once(socket, 'close')
  return text
}

function problemIn(answer: string): { status: number; code: string; path: string; head: string } {
  const [head = '', ...rest] = answer.split('\r\n\r\n')
  const body = rest.join('\r\n\r\n')
  assert.match(head, /content-type: application\/problem\+json/i, answer)
  assert.doesNotMatch(body, /\bat \S+:\d+/)
  const problem = JSON.parse(body.slice(body.indexOf('{'), body.lastIndexOf('}') + 1)) as {
    status: number
    code: string
    errors?: { path: string; message: string }[]
  }
  assert.equal(Number(head.split(' ')[1]), problem.status)
  const [error] = problem.errors ?? []
  // What is no part of the request needs no place in it.
  if (problem.status < 500) assert.ok(error !== undefined && error.path !== '' && error.message !== '', answer)
  return { status: problem.status, code: problem.code, path: error?.path ?? '', head }
}

for (const [what, bytes, status, code] of [
  ['that is no HTTP', 'hello there\r\n\r\n', 400, 'invalid_request'],
  ['with a space before a colon', 'GET /healthz HTTP/1.1\r\nhost : x\r\n\r\n', 400, 'invalid_request'],
  ['without a host', 'GET /healthz HTTP/1.1\r\n\r\n', 400, 'invalid_request'],
  ['with two hosts', 'GET /healthz HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n', 400, 'invalid_request'],
  [
    'for no URL',
    'GET http://[/v1/watch?service=a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n',
    400,
    'invalid_request',
  ],
  [
    'with two lengths',
    'PUT /v1/nodes HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n',
    400,
    'invalid_request',
  ],
  [
    'with a head too large',
    `GET /healthz HTTP/1.1\r\nhost: x\r\na: ${'x'.repeat(70_000)}\r\n\r\n`,
    431,
    'header_too_large',
  ],
  [
    'that expects what nobody knows',
    'GET /healthz HTTP/1.1\r\nhost: x\r\nexpect: the-unexpected\r\nconnection: close\r\n\r\n',
    417,
    'expectation_failed',
  ],
] as const)
  test(`a request ${what} gets a problem document`, async (context) => {
    const { url } = await startRegistry(context)
    const answer = problemIn(await exchange(context, url, bytes))
    assert.deepEqual([answer.status, answer.code], [status, code])
  })

test('a problem below the routes says what of the request it is about', async (context) => {
  const { url } = await startRegistry(context)
  const chunked =
    'PUT /v1/nodes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n'
  for (const [bytes, path] of [
    ['hello there\r\n\r\n', 'head'],
    [`${chunked}not a length\r\n`, 'body'],
    [`GET /healthz HTTP/1.1\r\nhost: x\r\na: ${'x'.repeat(70_000)}\r\n\r\n`, 'head'],
    ['GET /healthz HTTP/1.1\r\nhost: x\r\nexpect: more\r\nconnection: close\r\n\r\n', 'header.expect'],
    ['GET /healthz HTTP/1.1\r\n\r\n', 'header.host'],
    ['GET /%zz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n', 'path'],
    [upgradeTo('/v1/watch', 'sec-websocket-version: 13\r\n'), 'header.sec-websocket-key'],
    [upgradeTo('/v1/services'), 'path'],
  ] as const)
    assert.equal(problemIn(await exchange(context, url, bytes)).path, path, bytes.slice(0, 100))
})

test('a client that asks first is told to go on, or at once that its body is too large', async (context) => {
  const { url } = await startRegistry(context)
  const head = (length: number) =>
    'PUT /v1/services/stock/nodes/a HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n' +
    `expect: 100-continue\r\ncontent-length: ${length}\r\nconnection: close\r\n\r\n`
  const body = JSON.stringify(someNode)
  const socket = open(context, url)
  let text = ''
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString()
    if (text === 'HTTP/1.1 100 Continue\r\n\r\n') socket.write(body)
  })
  socket.write(head(body.length))
  await once(socket, 'close')
  assert.match(text, /HTTP\/1\.1 201 Created/)
  const refused = await exchange(context, url, head(2_000_000))
  assert.doesNotMatch(refused, /100 Continue/)
  assert.equal(problemIn(refused).code, 'body_too_large')
})

test('a client that sends a body too large reads the refusal although it is still sending', async (context) => {
  const { url } = await startRegistry(context)
  const socket = open(context, url)
  let text = ''
  socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
  socket.write(
    'PUT /v1/nodes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n',
  )
  const chunk = `10000\r\n${' '.repeat(65_536)}\r\n`
  for (let index = 0; index < 24 && socket.writable; index++) socket.write(chunk)
  while (!text.includes('}')) await once(socket, 'data')
  assert.equal(problemIn(text).code, 'body_too_large')
})

test('a head that does not arrive in time, or a body, gets a problem document', async (context) => {
  assert.deepEqual([TIMEOUTS.headMs, TIMEOUTS.requestMs], [10_000, 30_000])
  const { url } = await startRegistry(context, { timeouts: { headMs: 300, requestMs: 600, checkMs: 50 } })
  const [head, body] = await Promise.all([
    exchange(context, url, 'GET /healthz HTTP/1.1\r\nhost: x\r\n'),
    exchange(
      context,
      url,
      'PUT /v1/nodes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n[',
    ),
  ])
  assert.deepEqual([problemIn(head).code, problemIn(head).path], ['request_timeout', 'head'])
  assert.deepEqual([problemIn(body).code, problemIn(body).path], ['request_timeout', 'body'])
})

test('a request that asks for an upgrade to anything else is answered as it stands', async (context) => {
  const { url, call } = await startRegistry(context)
  const body = JSON.stringify(someNode)
  // As Java's HTTP client begins every connection.
  const answer = await exchange(
    context,
    url,
    'PUT /v1/services/stock/nodes/a HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n' +
      `content-length: ${body.length}\r\nconnection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\n` +
      `http2-settings: AAEAAEAA\r\n\r\n${body}`,
  )
  assert.match(answer, /^HTTP\/1\.1 201 Created/)
  assert.equal((await call('GET', '/v1/services/stock')).body.nodes.length, 1)
})

test('while it loads, it is alive and not ready, and answers nothing that may not be true', async (context) => {
  const directory = await temporaryDirectory(context)
  const listening = deferred<string>()
  const loaded = deferred<Store>()
  const start = createRegistry({
    config: configOf(directory),
    log: silent,
    openStore: () => loaded.promise,
    onListening: listening.resolve,
  })
  const url = await listening.promise
  const call = caller(url)
  assert.equal((await call('GET', '/healthz')).status, 200)
  for (const [method, path, body] of [
    ['GET', '/readyz'],
    ['GET', '/v1/services'],
    ['GET', '/v1/services/stock'],
    ['GET', '/v1/watch?service=stock'],
    ['PUT', '/v1/services/stock/nodes/a', someNode],
  ] as const) {
    const refused = await call(method, path, body)
    assert.deepEqual([refused.status, refused.body.code], [503, 'not_ready'], path)
    assert.equal(refused.headers.get('retry-after'), '1')
  }
  const upgrade = await exchange(context, url, upgradeTo('/v1/watch'))
  assert.equal(problemIn(upgrade).code, 'not_ready')
  loaded.resolve(
    await openEmbeddedStore({
      directory,
      clock: new ManualClock(),
      log: silent,
      identifier: () => 'epoch',
      historyRevisions: 10,
      historyChanges: 10,
    }),
  )
  const registry = await start
  assert.equal((await call('GET', '/readyz')).status, 200)
  await registry.close()
})

function upgradeTo(
  path: string,
  fields = 'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n',
): string {
  return `GET ${path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n${fields}\r\n`
}

for (const [what, request, status, code] of [
  ['at another path', upgradeTo('/v1/services'), 404, 'not_found'],
  [
    'of another version',
    upgradeTo('/v1/watch', 'sec-websocket-version: 7\r\nsec-websocket-key: x\r\n'),
    400,
    'invalid_request',
  ],
  ['for no URL', upgradeTo('//['), 400, 'invalid_request'],
  ['for a URL with a port that is none', upgradeTo('http://x:99999/v1/watch'), 400, 'invalid_request'],
  ['with two hosts', upgradeTo('/v1/watch').replace('host: x', 'host: x\r\nhost: y'), 400, 'invalid_request'],
  ['without a host', upgradeTo('/v1/watch').replace('host: x\r\n', ''), 400, 'invalid_request'],
  ['without a key', upgradeTo('/v1/watch', 'sec-websocket-version: 13\r\n'), 400, 'invalid_request'],
  ['with a bad query', upgradeTo('/v1/watch?service=A'), 400, 'invalid_request'],
  ['with an unknown parameter', upgradeTo('/v1/watch?wat=1'), 400, 'invalid_request'],
  ['with a cursor that cannot be read', upgradeTo('/v1/watch?service=a&cursor=x'), 400, 'bad_cursor'],
] as const)
  test(`a WebSocket handshake ${what} gets a problem document`, async (context) => {
    const { url } = await startRegistry(context)
    const answer = problemIn(await exchange(context, url, request))
    assert.deepEqual([answer.status, answer.code], [status, code])
  })

/** Sends requests in one packet, and reads until `end` has come or the other side ends. */
async function pipelined(context: TestContext, url: string, requests: readonly string[], during: () => Promise<void>) {
  const socket = open(context, url)
  let text = ''
  socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')))
  socket.write(requests.join(''), 'latin1')
  const closed = once(socket, 'close')
  await during()
  await closed
  return text
}

const get = (path: string, fields = '') => `GET ${path} HTTP/1.1\r\nhost: x\r\n${fields}\r\n`

for (const [what, second] of [
  ['an event stream', get('/v1/watch?service=stock', 'connection: close\r\n')],
  ['a WebSocket', upgradeTo('/v1/watch?service=stock')],
  ['an upgrade to anything else', get('/healthz', 'connection: upgrade, close\r\nupgrade: h2c\r\n')],
  ['what is no request', 'nonsense\r\n\r\n'],
] as const)
  test(`${what} that was asked for behind a long poll does not come before its answer`, async (context) => {
    const { url, call, registry } = await startRegistry(context)
    await call('PUT', '/v1/services/stock/nodes/a', someNode)
    const text = await pipelined(context, url, [get('/v1/services/stock?after=1&wait=5m'), second], async () => {
      // Seen and refused, with the poll still waiting: each answer is a turn in which the registry reads.
      for (let turn = 0; turn < 20; turn++) await call('GET', '/healthz')
      await call('PUT', '/v1/services/stock/nodes/a', { ...someNode, port: 1 })
    })
    const answers = text.split(/(?=HTTP\/1\.1 \d)/)
    assert.deepEqual(
      answers.map((answer) => answer.slice(0, 12)),
      ['HTTP/1.1 200', 'HTTP/1.1 400'],
      text,
    )
    assert.match(answers[0]!, /"port":1,/)
    assert.equal(problemIn(answers[1]!).code, 'invalid_request')
    assert.equal(registry.parts.hub.subscriberCount, 0)
  })

for (const [what, second] of [
  ['a request', `DELETE /v1/services/stock/nodes/a HTTP/1.1\r\nhost: x\r\n\r\n`],
  ['an upgrade', upgradeTo('/v1/watch')],
  ['an expectation', get('/healthz', 'expect: the-unexpected\r\n')],
  ['what is no request', 'nonsense\r\n\r\n'],
] as const)
  test(`${what} behind an event stream ends the connection, and nothing of it is done or answered`, async (context) => {
    const { url, call } = await startRegistry(context)
    await call('PUT', '/v1/services/stock/nodes/a', someNode)
    const text = await pipelined(context, url, [get('/v1/watch?service=stock'), second], () => Promise.resolve())
    assert.ok(text.split('HTTP/1.1 ').length <= 2, text)
    assert.doesNotMatch(text, /problem/)
    assert.equal((await call('GET', '/v1/services/stock/nodes/a')).status, 200)
  })

test('a stop ends waits and idle connections, and finishes what was begun', async (context) => {
  const { url, call, registry } = await startRegistry(context)
  await call('PUT', '/v1/services/stock/nodes/a', someNode)
  const poll = call('GET', '/v1/services/stock?after=1&wait=5m')
  const idle = open(context, url)
  await once(idle, 'connect')
  const write = call('PUT', '/v1/services/cart/nodes/b', someNode)
  const change = registry.parts.hub.changed('default', 'cart', 0, 60_000, new AbortController().signal)
  // Durable, but perhaps not answered yet.
  await change
  await registry.close()
  assert.equal((await write).status, 201)
  assert.equal((await poll).status, 200)
})

test('a stop waits a second for the rest of a request, and cuts what has not come then', async (context) => {
  const clock = new ManualClock()
  const { url, registry } = await startRegistry(context, { clock })
  const begun = [open(context, url), open(context, url)] as const
  const body = JSON.stringify([{ service: 'stock', id: 'a', ...someNode }])
  for (const socket of begun)
    socket.write(
      'PUT /v1/nodes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n' +
        `content-length: ${body.length}\r\n\r\n${body.slice(0, 5)}`,
    )
  await caller(url)('GET', '/healthz')
  const closed = registry.close()
  await clock.advance(900)
  begun[0].write(body.slice(5))
  const [answer] = (await once(begun[0], 'data')) as [Buffer]
  assert.match(answer.toString(), /^HTTP\/1\.1 200/)
  const gone = once(begun[1], 'close')
  await clock.advance(200)
  await Promise.all([closed, gone])
  assert.equal(clock.pending, 0)
})

test('a stop is forced after its time when a client does not end', async (context) => {
  const clock = new ManualClock()
  const { url, registry } = await startRegistry(context, { clock })
  const { hostname, port } = new URL(url)
  const socket = connect({ port: Number(port), host: hostname, allowHalfOpen: true })
  context.after(() => socket.destroy())
  socket.write('GET /v1/watch?service=stock HTTP/1.1\r\nhost: x\r\n\r\n')
  await once(socket, 'data')
  let isClosed = false
  const closed = registry.close().then(() => (isClosed = true))
  await once(socket, 'end')
  await clock.advance(9_000)
  assert.equal(isClosed, false)
  await clock.advance(1_000)
  await closed
})

test('a port that is taken is an error that names it', async (context) => {
  const { registry } = await startRegistry(context)
  await assert.rejects(
    createRegistry({ log: silent, config: configOf(await temporaryDirectory(context), { port: registry.port }) }),
    { code: 'EADDRINUSE' },
  )
})
