/** How the sidecar's own APIs read requests, whatever they serve. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect as connectHttp2 } from 'node:http2'
import { describe, test, type TestContext } from 'node:test'
import { adminApi, type AdminSubject } from '../../sidecar-plugin/src/api/admin.ts'
import { PeerApi } from '../../sidecar-plugin/src/api/peers.ts'
import { invalid, refusals } from '../../sidecar-plugin/src/api/refusal.ts'
import { json } from '../../sidecar-plugin/src/api/reply.ts'
import { router, type Routes } from '../../sidecar-plugin/src/api/router.ts'
import { stack } from '../../sidecar-plugin/src/layer.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { serveApi } from './apis.ts'
import { quietLog, RawCaller } from './fakes.ts'
import { eventually } from './wire.ts'

const HOST = 'host: 127.0.0.1\r\n'

const ROUTES: Routes = {
  'GET /things': (request) => json(request.query(['kind'])),
  'GET /things/:name': (_request, name) => json({ name }),
  'PUT /things/:name': async (request, name) => json({ name, body: (await request.json()) ?? null }),
  'POST /things/:name/parts/:part': (_request, name, part) => json({ name, part }),
}

async function start(t: TestContext, routes = ROUTES, log = quietLog) {
  const serve = stack([refusals(log)], router(routes))
  const { port, listener } = await serveApi(t, { direction: 'inbound', serve })
  /** The last answer to what is sent, with the connection closed after it. */
  const ask = async (line: string, fields = '', body = '') => {
    const caller = new RawCaller(port).send(`${line} HTTP/1.1\r\n${HOST}${fields}connection: close\r\n\r\n${body}`)
    await caller.closed
    return answerOf(caller.text)
  }
  return { port, listener, ask, caller: () => new RawCaller(port) }
}

function answerOf(text: string) {
  const [head = '', body = ''] = Buffer.from(text, 'latin1').toString().split('\r\n\r\n')
  const [line = '', ...fields] = head.split('\r\n')
  return {
    status: Number(line.split(' ')[1]),
    headers: Object.fromEntries(fields.map((field) => field.split(': ') as [string, string])),
    text: body,
    body: (body ? JSON.parse(body) : {}) as Record<string, unknown> & { errors?: { path: string; message: string }[] },
  }
}

describe('a table of routes', { timeout: 30_000 }, () => {
  test('says what a path takes, to whoever wants something else of it', async (t) => {
    const { ask } = await start(t)
    for (const method of ['DELETE', 'POST', 'OPTIONS', 'TRACE', 'BREW']) {
      const answer = await ask(`${method} /things/a`)
      assert.deepEqual([answer.status, answer.body.code], [405, 'method_not_allowed'], method)
      assert.equal(answer.headers.allow, 'GET, PUT')
      assert.equal(answer.headers['content-type'], 'application/problem+json')
    }
    assert.equal((await ask('GET /things/a/parts/b')).headers.allow, 'POST')
  })

  test('has no HEAD where there is a GET, and answers it without content', async (t) => {
    const { ask } = await start(t)
    const answer = await ask('HEAD /things')
    assert.deepEqual([answer.status, answer.headers.allow, answer.text], [405, 'GET', ''])
    assert(Number(answer.headers['content-length']) > 0)
  })

  test('takes a target that is no path for all there is', async (t) => {
    const { ask } = await start(t)
    for (const line of ['OPTIONS *', 'CONNECT 10.0.0.1:22'])
      assert.deepEqual([(await ask(line)).status, (await ask(line)).headers.allow], [405, 'GET, PUT, POST'], line)
  })

  test('finds nothing where one segment is more or less, or written otherwise', async (t) => {
    const { ask } = await start(t)
    for (const path of ['/', '//', '/things/a/', '/things/a/b', '//things', '/Things', '/things;a', '/x/../things'])
      assert.deepEqual([(await ask(`GET ${path}`)).status, (await ask(`PUT ${path}`)).status], [404, 404], path)
  })

  test('compares and hands over segments without their percent-encoding, each still one segment', async (t) => {
    const { ask } = await start(t)
    assert.deepEqual((await ask('GET /things/a%2Fb%20%C3%BC')).body, { name: 'a/b ü' })
    assert.deepEqual((await ask('GET /%74hings/a')).body, { name: 'a' })
    assert.deepEqual((await ask('POST /things/a%3F/parts/%25')).body, { name: 'a?', part: '%' })
    assert.equal((await ask('GET /things%2Fa')).status, 404)
    for (const path of ['/things/%', '/things/%zz', '/things/%c3', '/%ff']) {
      const answer = await ask(`GET ${path}`)
      assert.deepEqual([answer.status, answer.body.errors?.[0]?.path], [400, '(path)'], path)
    }
  })

  test('names each parameter that is unknown, and each that is there twice, once', async (t) => {
    const { ask } = await start(t)
    assert.deepEqual((await ask('GET /things?kind=a+b%26')).body, { kind: 'a b&' })
    assert.equal((await ask('GET /things?')).status, 200)
    assert.deepEqual((await ask('GET /things?kind=a&sort=x&kind=b&kind=c&=&__proto__=1')).body.errors, [
      { path: 'query.kind', message: 'must be given once' },
      { path: 'query.sort', message: 'unknown parameter' },
      { path: 'query.', message: 'unknown parameter' },
      { path: 'query.__proto__', message: 'unknown parameter' },
    ])
  })

  test('says nothing of a bug but to the log', async (t) => {
    const logged: object[] = []
    const log = { ...quietLog, error: (fields: object) => void logged.push(fields) }
    const routes = {
      'GET /bug': () => {
        throw new Error('secret detail')
      },
      'GET /wrong': () => {
        throw invalid([{ path: 'a', message: 'is wrong' }])
      },
    }
    const { ask } = await start(t, routes, log)
    const answer = await ask('GET /bug')
    assert.deepEqual([answer.status, answer.body.code], [500, 'internal_error'])
    assert.doesNotMatch(answer.text, /secret|\.ts/)
    assert.equal((await ask('GET /wrong')).status, 400)
    assert.deepEqual(
      logged.map((fields) => (fields as { err: Error }).err.message),
      ['secret detail'],
    )
  })
})

describe('a body', { timeout: 30_000 }, () => {
  const LIMIT = 65_536
  const padded = (length: number) => `1${' '.repeat(length - 1)}`
  const chunked = (text: string) => `${text.length.toString(16)}\r\n${text}\r\n0\r\n\r\n`

  test('is JSON in UTF-8, in however many pieces, of whatever type', async (t) => {
    const { ask, caller } = await start(t)
    const text = Buffer.from('{"a":"ü"}').toString('latin1')
    const type = 'content-type: text/plain\r\n'
    const whole = await ask('PUT /things/a', `${type}content-length: ${text.length}\r\n`, text)
    assert.deepEqual(whole.body, { name: 'a', body: { a: 'ü' } })
    const slow = caller().send(`PUT /things/a HTTP/1.1\r\n${HOST}content-length: ${text.length}\r\n\r\n`)
    for (const byte of text) {
      slow.send(byte)
      await settle()
    }
    assert.match(await slow.until(/"body".*\}/), /HTTP\/1\.1 200/)
    assert.equal((await ask('PUT /things/a', 'transfer-encoding: chunked\r\n', chunked('[1]'))).status, 200)
    const bad = await ask('PUT /things/a', 'content-length: 1\r\n', '{')
    assert.deepEqual([bad.status, bad.body.errors?.[0]?.path], [400, '(body)'])
    assert.deepEqual((await ask('PUT /things/a')).body, { name: 'a', body: null })
    slow.socket.destroy()
  })

  test('may be as large as the bound', async (t) => {
    const { ask } = await start(t)
    assert.equal((await ask('PUT /things/a', `content-length: ${LIMIT}\r\n`, padded(LIMIT))).status, 200)
    assert.equal((await ask('PUT /things/a', 'transfer-encoding: chunked\r\n', chunked(padded(LIMIT)))).status, 200)
  })

  test('that is said to be larger is refused before it comes, and one that turns out larger while it does', async (t) => {
    const { caller } = await start(t)
    for (const [fields, sent] of [
      ['content-length: 1000000000', ''],
      ['expect: 100-continue\r\ncontent-length: 65537', ''],
      ['transfer-encoding: chunked', `fffffff\r\n${padded(LIMIT + 1)}`],
    ] as const) {
      const large = caller().send(`PUT /things/a HTTP/1.1\r\n${HOST}${fields}\r\n\r\n${sent}`)
      const text = await large.until(/\{.*\}/)
      assert.match(text, /^HTTP\/1\.1 413 [^]*"code":"body_too_large"/)
      large.socket.destroy()
    }
  })

  test('is told to come where its sender waits for that', async (t) => {
    const { caller } = await start(t)
    const waiting = caller().send(`PUT /things/a HTTP/1.1\r\n${HOST}expect: 100-continue\r\ncontent-length: 3\r\n\r\n`)
    await waiting.until(/^HTTP\/1\.1 100 Continue\r\n\r\n$/)
    waiting.send('[1]')
    assert.match(await waiting.until(/\}/), /HTTP\/1\.1 200 [^]*\{"name":"a","body":\[1\]\}/)
    waiting.socket.destroy()
  })

  test('that is none is refused in words', async (t) => {
    const { ask } = await start(t)
    const answer = await ask('PUT /things/a', 'transfer-encoding: chunked\r\n', 'zz\r\n')
    assert.deepEqual([answer.status, answer.body.code], [400, 'bad_request'])
  })

  test('that nobody asked for changes nothing, nor is it taken for the next request', async (t) => {
    const { caller } = await start(t)
    const sent = (fields: string, body: string) => `GET /things HTTP/1.1\r\n${HOST}${fields}\r\n\r\n${body}`
    const one = caller().send(
      sent('content-length: 5', 'GET /') +
        sent('transfer-encoding: chunked', chunked('hello')) +
        sent('content-length: 20000', padded(20_000)) +
        sent('connection: close', ''),
    )
    await one.closed
    assert.equal(one.text.match(/HTTP\/1\.1 200 /g)?.length, 4)
    assert.equal(one.text.match(/HTTP\/1\.1 /g)?.length, 4)
  })
})

describe('the admin API', { timeout: 30_000 }, () => {
  async function startAdmin(t: TestContext, over: Partial<AdminSubject> = {}) {
    const seen: string[] = []
    const subject: Partial<AdminSubject> = {
      config: () => ({ namespace: 'default' }),
      put: async ({ service }) => {
        // Others could overtake it here.
        await settle()
        seen.push(service)
        return { created: true, report: {} as never }
      },
      registrations: async () => [...seen] as never,
      ...over,
    }
    const clock = new ManualClock()
    const { port, listener } = await serveApi(t, adminApi(subject as AdminSubject, 'default', quietLog), clock)
    return { clock, port, listener, caller: () => new RawCaller(port) }
  }

  test('answers requests in one piece one after the other', async (t) => {
    const { caller } = await startAdmin(t)
    const put = (name: string) =>
      `PUT /v1/registrations/${name} HTTP/1.1\r\n${HOST}content-length: 10\r\n\r\n{"port":1}`
    const list = `GET /v1/registrations HTTP/1.1\r\n${HOST}`
    const piped = caller().send(`${put('a')}${list}\r\n${put('b')}${list}connection: close\r\n\r\n`)
    await piped.closed
    assert.deepEqual(
      [...piped.text.matchAll(/\{"registrations":(.*?)\}/g)].map((match) => match[1]),
      ['["a"]', '["a","b"]'],
    )
  })

  test('takes the authority of a whole URL for the Host, as everybody else does', async (t) => {
    const { caller } = await startAdmin(t)
    const status = async (url: string, host: string) => {
      const asking = caller().send(`GET ${url} HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\n\r\n`)
      await asking.closed
      return Number(asking.text.split(' ')[1])
    }
    assert.equal(await status('http://localhost:7500/v1/config', 'localhost:7500'), 200)
    assert.equal(await status('http://localhost:7500', 'localhost:7500'), 404)
    assert.equal(await status('http://evil.example/v1/config', 'localhost:7500'), 403)
    assert.equal(await status('http://localhost@evil.example/v1/config', 'localhost:7500'), 403)
    assert.equal(await status('/v1/config', 'evil.example'), 403)
  })

  test('opens no tunnel and changes no protocol', async (t) => {
    const { caller } = await startAdmin(t)
    const tunnel = caller().send(`CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: 127.0.0.1:22\r\n\r\n`)
    assert.match(await tunnel.until(/\}/), /^HTTP\/1\.1 405 /)
    const upgrade = caller().send(
      `GET /v1/config HTTP/1.1\r\n${HOST}connection: upgrade, close\r\nupgrade: websocket\r\n\r\n`,
    )
    await upgrade.closed
    assert.match(upgrade.text, /^HTTP\/1\.1 200 /)
    assert.doesNotMatch(upgrade.text, /upgrade/)
    tunnel.socket.destroy()
  })

  test('is served over HTTP/2 as well, to the same callers only', async (t) => {
    const { port } = await startAdmin(t)
    const session = connectHttp2(`http://127.0.0.1:${port}`)
    t.after(() => session.destroy())
    for (const [authority, expected] of [
      [`127.0.0.1:${port}`, 200],
      ['evil.example', 403],
    ] as const) {
      const stream = session.request({ ':path': '/v1/config', ':authority': authority })
      const [head] = (await once(stream, 'response')) as [{ ':status'?: number }]
      stream.resume()
      assert.equal(head[':status'], expected)
    }
  })

  test('lets go after thirty seconds of those whose head or body does not come', { timeout: 30_000 }, async (t) => {
    const { clock, listener, caller } = await startAdmin(t)
    const head = caller().send('GET /v1/config HTTP/1.1\r\nho')
    const body = caller().send(`PUT /v1/registrations/a HTTP/1.1\r\n${HOST}content-length: 10\r\n\r\n{`)
    await eventually('both are there', () => listener.connections === 2 && listener.inFlight === 1)
    await settle()
    await clock.advance(29_000)
    assert.equal(listener.connections, 2)
    await clock.advance(2_000)
    await head.until(/^HTTP\/1\.1 408 [\s\S]*x-holdfast-reason: request_timeout/)
    await body.until(/^HTTP\/1\.1 408 [\s\S]*x-holdfast-reason: idle/)
    for (const { socket } of [head, body]) socket.destroy()
  })

  test('gives a rehearsal up when whoever asked says that nothing more will come', async (t) => {
    const signals: AbortSignal[] = []
    const { caller, listener } = await startAdmin(t, {
      rehearse: (_services, _namespace, signal) => {
        signals.push(signal)
        return once(signal, 'abort').then(() => [])
      },
    })
    const asking = caller().send(`GET /v1/rehearsal HTTP/1.1\r\n${HOST}\r\n`)
    await eventually('it is rehearsed', () => signals.length === 1)
    asking.socket.end()
    await once(signals[0]!, 'abort')
    await asking.closed
    await eventually('nothing is left', () => listener.connections === 0 && listener.inFlight === 0)
  })
})

test('a large answer to peers ends with the time for it, when they do not read', { timeout: 30_000 }, async (t) => {
  const clock = new ManualClock()
  const document = { text: 'x'.repeat(20_000_000) }
  const view = async () => ({ document, nodes: 1 })
  const peers = new PeerApi({ clock, log: quietLog, namespace: 'home', view })
  const { port, listener } = await serveApi(t, peers.listening, clock)
  const lazy = new RawCaller(port)
  lazy.socket.pause()
  lazy.send(`GET /v1/views/stock HTTP/1.1\r\n${HOST}\r\n`)
  await eventually('it is answered', () => peers.status().answered === 1)
  await clock.advance(4_000)
  assert.equal(listener.connections, 1)
  await clock.advance(2_000)
  await eventually('it is let go of', () => listener.connections === 0)
  lazy.socket.destroy()
  // Whoever reads gets all of it.
  const eager = new RawCaller(port).send(`GET /v1/views/stock HTTP/1.1\r\n${HOST}connection: close\r\n\r\n`)
  await eager.closed
  assert.equal(eager.text.length - eager.text.indexOf('{'), JSON.stringify(document).length)
})
