import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { adminApi, type AdminSubject } from '../../sidecar-plugin/src/api/admin.ts'
import { SidecarError } from '../../sidecar-plugin/src/errors.ts'
import type { LocalReport } from '../../sidecar-plugin/src/local/local-services.ts'
import type { LocalSpec } from '../../sidecar-plugin/src/local/local-spec.ts'
import { settle } from '../support/manual-clock.ts'
import { listenFor, serveApi } from './apis.ts'
import { quietLog } from './fakes.ts'

function reportOf(spec: LocalSpec): LocalReport {
  return {
    service: spec.service,
    namespace: 'default',
    id: spec.id ?? '127.0.0.1:7502',
    host: '127.0.0.1',
    port: 7502,
    localPort: spec.port,
    state: 'up',
    health: { status: 'passing', detail: 'connected' },
    inFlight: 0,
  }
}

function start(over: Partial<AdminSubject> = {}) {
  const specs = new Map<string, LocalSpec>()
  const asked: string[] = []
  const subject: AdminSubject = {
    unready: () => undefined,
    put: async (spec) => {
      const created = !specs.has(spec.service)
      specs.set(spec.service, spec)
      return { created, report: reportOf(spec) }
    },
    remove: async (service) => specs.delete(service),
    registrations: async () => [...specs.values()].map(reportOf),
    views: async () => [{ service: 'stock' }],
    view: async (service, namespace) => (service === 'stock' ? { service, namespace, source: 'file' } : undefined),
    explain: async (service, namespace, asked) => (service === 'stock' ? { service, namespace, ...asked } : undefined),
    rehearse: async (services, namespace) => (services ?? ['all']).map((service) => ({ service, namespace })),
    config: () => ({ namespace: 'default' }),
    stats: async () => ({ requests: 1 }),
    metrics: () => Promise.resolve('# metrics\n'),
    drain: () => void asked.push('drain'),
    ...over,
  }
  const api = adminApi(subject, 'default', quietLog)
  const call = async (method: string, path: string, payload?: unknown, headers: Record<string, string> = {}) => {
    const { listener, port } = await listenFor(api)
    const body = payload === undefined || typeof payload === 'string' ? payload : JSON.stringify(payload)
    const length = body !== undefined && { 'content-length': String(Buffer.byteLength(body)) }
    const outgoing = request({ port, path, method, headers: { host: '127.0.0.1:7500', ...headers, ...length } })
    outgoing.end(body)
    const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
    let text = ''
    for await (const chunk of response) text += String(chunk)
    listener.close()
    const isJson = String(response.headers['content-type']).includes('json')
    return {
      status: response.statusCode!,
      headers: response.headers,
      text,
      body: (isJson && text ? JSON.parse(text) : {}) as Record<string, unknown> & {
        errors?: { path: string; message: string }[]
      },
    }
  }
  return { api, call, specs, asked }
}

describe('a registration', () => {
  test('is created with 201, changed with 200, listed, and removed with 204 however often', async () => {
    const { call, specs } = start()
    const created = await call('PUT', '/v1/registrations/stock', { port: 8080 })
    assert.equal(created.status, 201)
    assert.equal(created.body.localPort, 8080)
    assert.equal((await call('PUT', '/v1/registrations/stock', { port: 8081, weight: 5 })).status, 200)
    assert.equal(specs.get('stock')!.weight, 5)
    assert.equal(((await call('GET', '/v1/registrations')).body.registrations as object[]).length, 1)
    assert.equal((await call('DELETE', '/v1/registrations/stock')).status, 204)
    assert.equal((await call('DELETE', '/v1/registrations/stock')).status, 204)
    assert.equal(specs.size, 0)
  })

  test('is understood as curl sends it, without a header that says JSON', async () => {
    const { call } = start()
    const headers = { 'content-type': 'application/x-www-form-urlencoded' }
    assert.equal((await call('PUT', '/v1/registrations/stock', '{"port":8080}', headers)).status, 201)
  })

  const refused: Record<string, [body: unknown, path: string]> = {
    'no body': [undefined, '(body)'],
    'no JSON': ['{"port":', '(body)'],
    'an array': [[], '(body)'],
    'no port': [{}, 'port'],
    'a port as text': [{ port: '8080' }, 'port'],
    'port 0': [{ port: 0 }, 'port'],
    'port 65536': [{ port: 65_536 }, 'port'],
    'half a port': [{ port: 80.5 }, 'port'],
    'an unknown field': [{ port: 1, wieght: 1 }, 'wieght'],
    'a weight past the end': [{ port: 1, weight: 1_001 }, 'weight'],
    'an id with a slash': [{ port: 1, id: 'a/b' }, 'id'],
    'a protocol nobody speaks': [{ port: 1, protocol: 'smtp' }, 'protocol'],
    'a zone in capitals': [{ port: 1, zone: 'Z' }, 'zone'],
    'a label that is a number': [{ port: 1, labels: { a: 1 } }, 'labels.a'],
    'a label with a line end': [{ port: 1, labels: { a: 'b\n' } }, 'labels.a'],
    'a check nobody knows': [{ port: 1, healthCheck: { type: 'icmp' } }, 'healthCheck.type'],
    'an interval without a unit': [{ port: 1, healthCheck: { interval: 2 } }, 'healthCheck.interval'],
    'a path that is none': [{ port: 1, healthCheck: { type: 'http', path: 'up' } }, 'healthCheck.path'],
    'an unknown field of the check': [{ port: 1, healthCheck: { tipe: 'tcp' } }, 'healthCheck.tipe'],
  }
  for (const [name, [body, path]] of Object.entries(refused))
    test(`with ${name} is refused, and says where`, async () => {
      const { call, specs } = start()
      const answer = await call('PUT', '/v1/registrations/stock', body)
      assert.equal(answer.status, 400)
      assert.equal(answer.body.code, 'invalid_request')
      assert.match(String(answer.headers['content-type']), /^application\/problem\+json/)
      assert.deepEqual(
        answer.body.errors!.map((error) => error.path),
        [path],
      )
      assert.equal(specs.size, 0)
    })

  test('of a name that is none is refused', async () => {
    for (const name of ['Stock', 'a..b', '-a', '%2e%2e%2fetc', 'a%00b', 'a'.repeat(129)]) {
      const answer = await start().call('PUT', `/v1/registrations/${name}`, { port: 1 })
      assert.equal(answer.status, 400, name)
      assert.equal(answer.body.errors![0]!.path, 'service')
    }
  })

  test('that is too large is a 413', async () => {
    const answer = await start().call('PUT', '/v1/registrations/stock', { port: 1, id: 'a'.repeat(70_000) })
    assert.equal(answer.status, 413)
    assert.equal(answer.body.code, 'body_too_large')
  })

  test('during a drain is a 503 with its reason', async () => {
    const { call } = start({ put: () => Promise.reject(new SidecarError('draining', 'no more')) })
    const answer = await call('PUT', '/v1/registrations/stock', { port: 1 })
    assert.equal(answer.status, 503)
    assert.equal(answer.body.code, 'draining')
  })
})

describe('what is shown', () => {
  test('is each view with where it came from, of the own namespace unless another is asked for', async () => {
    const { call } = start()
    assert.deepEqual((await call('GET', '/v1/views/stock')).body, {
      service: 'stock',
      namespace: 'default',
      source: 'file',
    })
    assert.equal((await call('GET', '/v1/views/stock?namespace=shop')).body.namespace, 'shop')
    const unknown = await call('GET', '/v1/views/other')
    assert.equal(unknown.status, 404)
    assert.equal(unknown.body.code, 'service_not_found')
    assert.equal((await call('GET', '/v1/views/stock?namespace=SHOP')).body.errors![0]!.path, 'query.namespace')
  })

  test('is an explanation, for those who name a service', async () => {
    const { call } = start()
    assert.equal((await call('GET', '/v1/explain?service=stock&path=/items')).body.path, '/items')
    const asked = await call('GET', '/v1/explain?service=stock&method=POST&header.X-User=me&header.cookie=a%3Db')
    assert.equal(asked.body.method, 'POST')
    assert.deepEqual(asked.body.headers, { 'x-user': 'me', cookie: 'a=b' })
    assert.equal((await call('GET', '/v1/explain?service=stock&header.=me')).status, 400)
    assert.equal((await call('GET', '/v1/explain')).body.errors![0]!.path, 'query.service')
  })

  test('is the rest of the table', async () => {
    const { call } = start()
    for (const path of ['/v1/views', '/v1/config', '/v1/stats', '/metrics', '/healthz', '/readyz'])
      assert.equal((await call('GET', path)).status, 200, path)
  })

  test('is why it is not ready, while it is not', async () => {
    const answer = await start({ unready: () => 'starting' }).call('GET', '/readyz')
    assert.equal(answer.status, 503)
    assert.equal(answer.body.detail, 'starting')
  })

  test('refuses parameters that mean nothing, instead of ignoring them', async () => {
    const { call } = start()
    for (const path of [
      '/v1/views?a=1',
      '/v1/stats?a=1',
      '/v1/views/stock?namespace=a&namespace=b',
      '/v1/explain?service=stock&sevice=x',
    ])
      assert.equal((await call('GET', path)).status, 400, path)
  })
})

describe('who may ask', () => {
  test('nobody whose Host is not loopback’s, because a page may point its name here', async () => {
    for (const host of ['evil.example', 'localhost.evil.example', '10.0.0.1:7500', '127.0.0.1.evil.example'])
      assert.equal((await start().call('GET', '/v1/config', undefined, { host })).status, 403, host)
    for (const host of ['localhost:7500', '[::1]:7500', '127.0.0.1'])
      assert.equal((await start().call('GET', '/v1/config', undefined, { host })).status, 200, host)
  })

  test('no page of another site may drain it', async () => {
    const { call, asked } = start()
    assert.equal((await call('POST', '/v1/drain', undefined, { origin: 'https://evil.example' })).status, 403)
    assert.deepEqual(asked, [])
    assert.equal((await call('POST', '/v1/drain')).status, 202)
    assert.deepEqual(asked, ['drain'])
  })
})

test('what is not there is a 404, and what is there in another way a 405 that says how', async () => {
  const { call } = start()
  assert.equal((await call('GET', '/v1/nothing')).body.code, 'not_found')
  const wrong = await call('GET', '/v1/registrations/stock')
  assert.equal(wrong.status, 405)
  assert.equal(wrong.headers.allow, 'PUT, DELETE')
})

test('a bug shows nothing of itself', async () => {
  const { call } = start({
    stats: () => {
      throw new Error('secret detail')
    },
  })
  const answer = await call('GET', '/v1/stats')
  assert.equal(answer.status, 500)
  assert.doesNotMatch(answer.text, /secret|\.ts/)
})

test('whatever is sent, the answer is never a 5xx, and an error is always a problem with a code', async () => {
  const { call } = start()
  const path = fc.oneof(
    fc.constantFrom('/v1/registrations/stock', '/v1/registrations', '/v1/views/stock', '/v1/explain', '/v1/drain', '/'),
    fc.webPath().map((text) => `/v1/registrations${text}`),
    fc.webPath(),
  )
  const query = fc.oneof(
    fc.constant(''),
    fc.webQueryParameters().map((text) => `?${text}`),
  )
  const body = fc.oneof(
    fc.constant(undefined),
    fc.json(),
    fc.string(),
    fc.json().map((text) => `{"port":1,"labels":${text}}`),
  )
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom('GET', 'PUT', 'DELETE', 'POST', 'PATCH'),
      path,
      query,
      body,
      async (method, at, search, payload) => {
        const answer = await call(method, (at || '/') + search, method === 'GET' ? undefined : payload)
        assert(answer.status < 500, `${method} ${at}: ${answer.status} ${answer.text}`)
        if (answer.status >= 400) {
          assert.match(String(answer.headers['content-type']), /^application\/problem\+json/)
          assert.equal(typeof answer.body.code, 'string')
          assert.doesNotMatch(answer.text, /node_modules|\.ts:\d/)
        }
      },
    ),
    { numRuns: 400, seed: 11 },
  )
})

describe('a rehearsal', () => {
  test('is of the services named, or of all', async () => {
    const { call } = start()
    assert.deepEqual((await call('GET', '/v1/rehearsal')).body, {
      services: [{ service: 'all', namespace: 'default' }],
    })
    const some = await call('GET', '/v1/rehearsal?service=a,b&namespace=blue')
    assert.deepEqual(some.body.services, [
      { service: 'a', namespace: 'blue' },
      { service: 'b', namespace: 'blue' },
    ])
  })

  test('ends when whoever asked has gone', { timeout: 10_000 }, async (t) => {
    const signals: AbortSignal[] = []
    const { api } = start({
      rehearse: (_services, _namespace, signal) => {
        signals.push(signal)
        return once(signal, 'abort').then(() => [])
      },
    })
    const { port } = await serveApi(t, api)
    const caller = connect(port, '127.0.0.1').on('error', () => {})
    caller.write('GET /v1/rehearsal HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n')
    while (signals.length === 0) await settle()
    assert.equal(signals[0]!.aborted, false)
    caller.destroy()
    await once(signals[0]!, 'abort')
  })

  test('of what is no service is refused, and says which', async () => {
    const { call } = start()
    const answer = await call('GET', '/v1/rehearsal?service=a,No')
    assert.deepEqual([answer.status, answer.body.errors?.[0]?.path], [400, 'query.service.1'])
    assert.equal((await call('GET', `/v1/rehearsal?service=${'a,'.repeat(1_000)}a`)).status, 400)
    assert.equal((await call('POST', '/v1/rehearsal')).headers.allow, 'GET')
  })
})
