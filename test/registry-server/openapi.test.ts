/** The OpenAPI document does what it says: every route is called, and every answer held against its schema. */

import assert from 'node:assert/strict'
import { request, type IncomingMessage } from 'node:http'
import { once } from 'node:events'
import { test } from 'node:test'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import { startRegistry, type AnyDocument, type TestRegistry } from './support.ts'

interface Response {
  readonly description: string
  readonly headers?: Record<string, { schema: object }>
  readonly content?: Record<string, { schema: object }>
}

/** Of HTTP itself, or of how Node sends it: not for the document to say. */
const PLAIN_HEADERS = ['connection', 'content-length', 'content-type', 'date', 'keep-alive', 'transfer-encoding']

interface Operation {
  readonly parameters?: readonly { name: string; in: string; required?: boolean; schema: object }[]
  readonly requestBody?: { content: Record<string, { schema: object }> }
  readonly responses: Record<string, Response>
}

interface Document {
  readonly openapi: string
  readonly paths: Record<string, Record<string, Operation>>
}

const node = { host: '10.0.0.1', port: 8080, labels: { version: 'v1' }, zone: 'z1' }

/** What to send to each route: what it takes, and what it must refuse, with the status. */
interface Calls {
  readonly valid: readonly [query: string, body?: unknown, status?: number][]
  readonly invalid: readonly [query: string, body?: unknown, status?: number, params?: Record<string, string>][]
}

const calls: Record<string, Calls> = {
  'POST /v1/leases': {
    valid: [['', { ttl: '10s', owner: 'test' }, 201]],
    invalid: [
      ['', {}],
      ['', { ttl: 10, owner: 'x' }],
      ['?x=1', { ttl: '10s', owner: 'x' }],
      ['', [1]],
      ['', { ttl: '1s', owner: '' }],
    ],
  },
  'POST /v1/leases/{lease}/renew': {
    valid: [['', undefined, 200]],
    invalid: [['?x=1'], ['', undefined, 404, { lease: 'none' }]],
  },
  'DELETE /v1/leases/{lease}': { valid: [['', undefined, 204]], invalid: [['?x=1']] },
  'PUT /v1/services/{service}/nodes/{id}': {
    valid: [
      ['', node, 200],
      ['?namespace=new', { ...node, ttl: '10s' }, 201],
    ],
    invalid: [
      ['', {}],
      ['', { ...node, port: 0 }],
      ['?wat=', node],
      ['', node, 400, { service: 'A' }],
      ['', { ...node, incarnation: 0 }, 409],
    ],
  },
  'GET /v1/services/{service}/nodes/{id}': {
    valid: [['', undefined, 200]],
    invalid: [['', undefined, 404, { id: 'none' }], ['?limit=1'], ['', undefined, 400, { id: '-' }]],
  },
  'PATCH /v1/services/{service}/nodes/{id}': {
    valid: [
      ['', { override: { status: 'draining', weight: 5 } }, 200],
      ['', { override: { weight: null } }, 200],
    ],
    invalid: [
      ['', {}],
      ['', { override: { status: 'gone' } }],
      ['', { override: null }, 404, { id: 'none' }],
    ],
  },
  'DELETE /v1/services/{service}/nodes/{id}': {
    valid: [
      ['', undefined, 204],
      ['?incarnation=1', undefined, 204],
    ],
    invalid: [['?incarnation=x'], ['?incarnation=7', undefined, 409], ['?wait=converged']],
  },
  'GET /v1/overrides': {
    valid: [
      ['', undefined, 200],
      ['?namespace=*&limit=1', undefined, 200],
    ],
    invalid: [['?limit=0'], ['?namespace=A'], ['?page=x'], ['?service=a']],
  },
  'PUT /v1/nodes': {
    valid: [['', [{ service: 'stock', id: 'b', ...node, ttl: '10s' }], 200]],
    invalid: [
      ['', []],
      ['', {}],
      ['', [{ service: 'stock', id: 'b' }]],
      ['?namespace=A', [{ service: 's', id: 'b', ...node }]],
    ],
  },
  'GET /v1/services': {
    valid: [
      ['', undefined, 200],
      ['?namespace=*&limit=1&prefix=st', undefined, 200],
    ],
    invalid: [['?limit=0'], ['?prefix=A'], ['?page=x']],
  },
  'GET /v1/services/{service}': {
    valid: [
      ['', undefined, 200],
      ['?status=up&zone=z1&label.version=v1', undefined, 200],
      ['?after=0&wait=1s', undefined, 200],
    ],
    invalid: [['?status=x'], ['?after=x'], ['?wait=1s'], ['', undefined, 404, { service: 'none' }]],
  },
  'GET /v1/services/{service}/history': {
    valid: [['?limit=2', undefined, 200]],
    invalid: [['?limit=-1'], ['?page=AAAA'], ['', undefined, 404, { service: 'none' }]],
  },
  'PUT /v1/services/{service}/policy': {
    valid: [
      ['?namespace=fresh', { timeout: '1s' }, 201],
      ['?namespace=fresh', { timeout: '2s' }, 200],
    ],
    invalid: [
      ['', { timeot: '1s' }],
      ['', []],
      ['?dryRun=maybe', {}],
    ],
  },
  'GET /v1/services/{service}/policy': {
    valid: [['', undefined, 200]],
    invalid: [['?x=1'], ['', undefined, 404, { service: 'none' }]],
  },
  'DELETE /v1/services/{service}/policy': { valid: [['', undefined, 204]], invalid: [['?x=1']] },
  'GET /healthz': { valid: [['', undefined, 200]], invalid: [['?x=1']] },
  'GET /readyz': { valid: [['', undefined, 200]], invalid: [['?x=1']] },
  'GET /v1/status': { valid: [['', undefined, 200]], invalid: [['?x=1']] },
  'GET /v1/subscribers': { valid: [['?limit=1', undefined, 200]], invalid: [['?limit=x'], ['?page=x']] },
  'GET /metrics': { valid: [['', undefined, 200]], invalid: [['?x=1']] },
  'GET /v1/schemas/policy': { valid: [['', undefined, 200]], invalid: [['?x=1']] },
  'GET /v1/watch': { valid: [], invalid: [[''], ['?service=A'], ['?service=a&cursor=x']] },
}

async function document(registry: TestRegistry): Promise<Document> {
  return (await registry.call('GET', '/openapi.json')).body as unknown as Document
}

function operations({ paths }: Document): [string, Operation][] {
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(
      ([method, operation]) => [`${method.toUpperCase()} ${path}`, operation] as [string, Operation],
    ),
  )
}

function responseOf(operation: Operation, status: number): Response | undefined {
  return operation.responses[status] ?? operation.responses[`${Math.floor(status / 100)}XX`]
}

test('the document is OpenAPI 3.1 and its schemas are valid', async (context) => {
  const doc = await document(await startRegistry(context))
  assert.equal(doc.openapi, '3.1.0')
  const ajv = addFormats.default(new Ajv2020({ strict: true, allowUnionTypes: true }))
  let schemas = 0
  for (const [name, operation] of operations(doc)) {
    const all = [
      ...(operation.parameters ?? []).map(({ schema }) => schema),
      ...Object.values(operation.requestBody?.content ?? {}).map(({ schema }) => schema),
      ...Object.values(operation.responses).flatMap(({ content }) =>
        Object.values(content ?? {}).map(({ schema }) => schema),
      ),
    ]
    for (const schema of all) {
      assert.ok(ajv.validateSchema(schema), `${name}: ${ajv.errorsText()}`)
      ajv.compile(schema)
      schemas++
    }
  }
  assert.ok(schemas > 50)
})

test('every documented route answers valid and invalid calls as documented, and none is left out', async (context) => {
  const registry = await startRegistry(context)
  const { call } = registry
  const doc = await document(registry)
  const documented = operations(doc).filter(([name]) => !name.startsWith('HEAD '))
  assert.deepEqual(documented.map(([name]) => name).sort(), Object.keys(calls).sort())
  const ajv = addFormats.default(new Ajv2020({ strict: false }))
  const verify = (name: string, operation: Operation, answer: Awaited<ReturnType<typeof call>>) => {
    const where = `${name} -> ${answer.status} ${answer.text.slice(0, 300)}`
    const response = responseOf(operation, answer.status)
    assert.ok(response, `${where} is not documented`)
    for (const [header, value] of answer.headers) {
      if (PLAIN_HEADERS.includes(header)) continue
      const documented = response.headers?.[header]
      assert.ok(documented, `${where}: ${header} is not documented`)
      const meant = (documented.schema as { type: string }).type === 'integer' ? Number(value) : value
      assert.ok(ajv.validate(documented.schema, meant), `${where}: ${header} ${value}: ${ajv.errorsText()}`)
    }
    const type = answer.headers.get('content-type')?.split(';')[0]
    if (response.content === undefined) return assert.equal(answer.text, '', where)
    assert.ok(type !== undefined && type in response.content, `${where}: ${type}`)
    const validate = ajv.compile(response.content[type]!.schema)
    assert.ok(
      validate(type.endsWith('json') ? answer.body : answer.text),
      `${where}: ${ajv.errorsText(validate.errors)}`,
    )
  }
  let answers = 0
  for (const [name, operation] of documented) {
    const [method, path] = name.split(' ') as [string, string]
    const { valid, invalid } = calls[name]!
    const run = async (query: string, body: unknown, params: Record<string, string>) => {
      const target = path.replaceAll(/\{(\w+)\}/g, (_, key: string) => params[key]!)
      const answer = await call(method, target + query, body)
      verify(name, operation, answer)
      answers++
      return answer
    }
    const fresh = async () => {
      await call('PUT', '/v1/services/stock/nodes/a', { ...node, incarnation: 1 })
      await call('PUT', '/v1/services/stock/nodes/c', node)
      if (path.endsWith('/policy') && method !== 'PUT')
        await call('PUT', '/v1/services/stock/policy', { timeout: '3s' })
      const lease = (await call('POST', '/v1/leases', { ttl: '1h', owner: 'test' })).body.id
      return { service: 'stock', id: 'a', lease }
    }
    for (const [query, body, status] of valid) {
      const answer = await run(query, body, await fresh())
      assert.equal(answer.status, status, `${name}${query} ${answer.text}`)
    }
    for (const [query, body, status = 400, params] of invalid) {
      const held = await fresh()
      const before = registry.registry.parts.hub.cursor.revision
      const answer = await run(query, body, { ...held, ...params })
      assert.equal(answer.status, status, `${name}${query} ${JSON.stringify(body)} ${answer.text}`)
      assert.match(answer.headers.get('content-type')!, /^application\/problem\+json/)
      assert.equal(registry.registry.parts.hub.cursor.revision, before, `${name}${query} wrote something`)
    }
  }
  assert.ok(answers > 70, String(answers))
})

test('a documented event stream opens as documented', async (context) => {
  const registry = await startRegistry(context)
  const operation = (await document(registry)).paths['/v1/watch']!.get!
  const outgoing = request(`${registry.url}/v1/watch?service=stock`).end()
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  const type = response.headers['content-type']!.split(';')[0]!
  assert.ok(type in operation.responses['200']!.content!)
  outgoing.destroy()
})

test('every body that the document calls valid is understood, and every other refused', async (context) => {
  const registry = await startRegistry(context)
  const schema = (await document(registry)).paths['/v1/services/{service}/nodes/{id}']!.put!.requestBody!.content[
    'application/json'
  ]!.schema
  const validate = addFormats.default(new Ajv2020({ strict: false })).compile(schema)
  const bodies: unknown[] = [
    node,
    { ...node, weight: 0 },
    { ...node, weight: -1 },
    { ...node, protocol: 'grpc' },
    { ...node, protocol: 'x' },
    { ...node, labels: {} },
    { ...node, labels: [] },
    { ...node, extra: 1 },
    { host: 'h' },
    [],
    'text',
    7,
    null,
  ]
  for (const body of bodies) {
    const { status } = await registry.call('PUT', '/v1/services/stock/nodes/a', JSON.stringify(body))
    assert.equal(status < 300, validate(body), JSON.stringify(body))
  }
})

test('HEAD is answered like GET without a body', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', '/v1/services/stock/nodes/a', node)
  const head = await call('HEAD', '/v1/services/stock')
  assert.equal(head.status, 200)
  assert.ok(head.headers.get('etag'))
  assert.deepEqual(head.body, {} as AnyDocument)
})
