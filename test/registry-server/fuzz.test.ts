import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { startRegistry } from './support.ts'

const methods = ['GET', 'GET', 'PUT', 'PUT', 'PUT', 'POST', 'PATCH', 'DELETE', 'HEAD', 'OPTIONS'] as const
const routes = [
  '/v1/leases',
  '/v1/leases/x/renew',
  '/v1/leases/x',
  '/v1/services',
  '/v1/services/SVC',
  '/v1/services/SVC/nodes/ID',
  '/v1/services/SVC/policy',
  '/v1/services/SVC/history',
  '/v1/nodes',
  '/v1/subscribers',
  '/v1/status',
  '/metrics',
  '/openapi.json',
] as const

const word = fc.oneof(
  fc.constantFrom('a', 'stock', '..', '*', '', '__proto__', 'constructor', 'A', '0', '-1', '1e9', 'x'.repeat(200)),
  fc.string({ maxLength: 12 }),
)
const query = fc.array(
  fc.tuple(
    fc.oneof(
      fc.constantFrom(
        'namespace',
        'limit',
        'page',
        'after',
        'status',
        'zone',
        'prefix',
        'incarnation',
        'lease',
        'label.a',
      ),
      word,
    ),
    word,
  ),
  { maxLength: 3 },
)
const field = fc.constantFrom(
  ...['host', 'port', 'weight', 'zone', 'labels', 'status', 'lease', 'ttl', 'incarnation', 'protocol', 'owner'],
  ...['override', 'service', 'id', '__proto__', 'toString', 'timeout', 'retry', 'routes'],
)
const value = fc.oneof(
  fc.constantFrom('10.0.0.1', 8080, 1, 'up', '10s', 'http', null, true, {}, [], -1, 1e308, 0.5),
  fc.jsonValue({ maxDepth: 3 }),
)
const node = fc.record(
  {
    host: fc.constantFrom('10.0.0.1', 'h', ''),
    port: fc.oneof(fc.integer({ min: -1, max: 70_000 }), value),
    weight: value,
    labels: fc.oneof(fc.dictionary(word, value), fc.constant({ a: 'b' })),
    service: word,
    id: word,
    ttl: value,
  },
  { requiredKeys: ['host', 'port'] },
)
const body = fc.oneof(
  fc.constant(undefined),
  fc.dictionary(field, value).map((document) => JSON.stringify(document)),
  node.map((document) => JSON.stringify(document)),
  fc.array(node, { maxLength: 3 }).map((document) => JSON.stringify(document)),
  fc.json(),
  fc.string(),
)
const type = fc.oneof(
  { weight: 8, arbitrary: fc.constant('application/json') },
  {
    weight: 2,
    arbitrary: fc.constantFrom('application/json; charset=utf-8', 'application/yaml', 'text/plain', 'nonsense'),
  },
)
/** Near enough to what is right that one part alone is wrong, or none. */
const soundNode = fc.constantFrom('{"host":"h","port":1}', '{"host":"h","port":2,"ttl":"10s"}', '{"host":"h","port":0}')

test('whatever is sent, the registry answers with sense: no 5xx, every refusal a problem document that wrote nothing', async (context) => {
  const { call, registry } = await startRegistry(context)
  const segment = (text: string) => encodeURIComponent(text).replaceAll('.', '%2E') || 'a'
  const seen = new Map<number, number>()
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...methods),
      fc.constantFrom(...routes),
      fc.oneof(fc.constantFrom('stock', 'cart'), word),
      fc.oneof(fc.constantFrom('a', 'b'), word),
      fc.oneof(fc.constant([]), query),
      fc.oneof(body, soundNode),
      type,
      async (method, route, service, id, pairs, text, contentType) => {
        const path = route.replace('SVC', segment(service)).replace('ID', segment(id))
        const search = new URLSearchParams(pairs).toString()
        const hasBody = method !== 'GET' && method !== 'HEAD' && text !== undefined
        const before = registry.parts.hub.cursor.revision
        const answer = await call(
          method,
          search === '' ? path : `${path}?${search}`,
          hasBody ? text : undefined,
          hasBody ? { 'content-type': contentType } : {},
        )
        seen.set(answer.status, (seen.get(answer.status) ?? 0) + 1)
        const what = `${method} ${path}?${search} ${String(text)} -> ${answer.status} ${answer.text}`
        assert.ok(answer.status < 500, what)
        assert.match(answer.headers.get('holdfast-cursor') ?? '', /^[\w-]+:\d+$/, what)
        assert.doesNotMatch(answer.text, /node_modules|\.ts:\d+/, what)
        if (answer.status < 400) return
        assert.equal(registry.parts.hub.cursor.revision, before, what)
        if (method === 'HEAD') return
        assert.equal(answer.headers.get('content-type'), 'application/problem+json; charset=utf-8', what)
        assert.equal(answer.body.status, answer.status, what)
        assert.match(answer.body.code, /^[a-z_]+$/, what)
        for (const error of answer.body.errors ?? []) assert.ok(error.path !== '' && error.message !== '', what)
      },
    ),
    { numRuns: 3_000 },
  )
  for (const status of [200, 201, 204, 400, 404, 405, 415])
    assert.ok(seen.has(status), `no ${status}: ${JSON.stringify([...seen])}`)
})

test('whatever a body says, a batch is written whole or not at all', async (context) => {
  const { call, registry } = await startRegistry(context)
  const good = fc.record({
    service: fc.constantFrom('s1', 's2'),
    id: fc.constantFrom('a', 'b', 'c', 'd'),
    host: fc.constant('h'),
    port: fc.integer({ min: 1, max: 3 }),
  })
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.oneof({ weight: 5, arbitrary: good }, { weight: 1, arbitrary: node }), { maxLength: 6 }),
      async (items) => {
        const { hub } = registry.parts
        const before = hub.cursor.revision
        const { status, text } = await call('PUT', '/v1/nodes', JSON.stringify(items))
        if (status !== 200) return assert.equal(hub.cursor.revision, before, text)
        for (const item of items)
          assert.equal(hub.view('default', item.service!)?.nodes.get(item.id!)?.port, item.port, text)
        assert.ok(hub.cursor.revision <= before + 1)
      },
    ),
    { numRuns: 300 },
  )
})
