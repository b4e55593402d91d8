import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { someNode, startRegistry } from './support.ts'

const NODE = '/v1/services/stock/nodes/a'
const VIEW = '/v1/services/stock'

test('a node is 201 when it is new, 200 when it is said again, and the same words make no revision', async (context) => {
  const { call } = await startRegistry(context)
  const created = await call('PUT', NODE, { ...someNode, labels: { b: '2', a: '1' } })
  assert.equal(created.status, 201)
  const again = await call('PUT', NODE, { ...someNode, labels: { a: '1', b: '2' } })
  assert.equal(again.status, 200)
  assert.deepEqual(again.body, created.body)
  assert.equal(again.headers.get('holdfast-cursor'), created.headers.get('holdfast-cursor'))
  const changed = await call('PUT', NODE, { ...someNode, weight: 50 })
  assert.equal(changed.status, 200)
  assert.match(changed.headers.get('holdfast-cursor')!, /:2$/)
})

test('what is left out has its default', async (context) => {
  const { call } = await startRegistry(context)
  assert.deepEqual((await call('PUT', NODE, someNode)).body, {
    id: 'a',
    ...someNode,
    protocol: 'http',
    weight: 100,
    labels: {},
    status: 'up',
    incarnation: 1,
    leased: false,
    registered: { status: 'up', weight: 100 },
  })
})

test('every answer names the newest place of the store, writes and refusals included', async (context) => {
  const { call, registry } = await startRegistry(context)
  const { epoch } = registry.parts.hub
  for (const [method, path, body, revision] of [
    ['PUT', NODE, someNode, 1],
    ['GET', VIEW, undefined, 1],
    ['DELETE', NODE, undefined, 2],
    ['PUT', NODE, { port: 1 }, 2],
    ['GET', '/nowhere', undefined, 2],
  ] as const)
    assert.equal((await call(method, path, body)).headers.get('holdfast-cursor'), `${epoch}:${revision}`, path)
})

test("a view's ETag is the place of its own last change, and what is known is not sent again", async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', NODE, someNode)
  await call('PUT', '/v1/services/cart/nodes/x', someNode)
  const view = await call('GET', VIEW)
  const etag = view.headers.get('etag')!
  assert.equal(etag, `"${view.body.cursor}"`)
  assert.match(etag, /:1"$/)
  for (const known of [etag, `W/${etag}`, `"other:1", ${etag}`, '*']) {
    const same = await call('GET', VIEW, undefined, { 'if-none-match': known })
    assert.equal(same.status, 304)
    assert.equal(same.text, '')
    assert.equal(same.headers.get('etag'), etag)
  }
  await call('PUT', NODE, { ...someNode, port: 1 })
  assert.equal((await call('GET', VIEW, undefined, { 'if-none-match': etag })).status, 200)
})

test('an older incarnation is refused with the stored one, a newer takes over', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', NODE, { ...someNode, incarnation: 5 })
  const stale = await call('PUT', NODE, { ...someNode, port: 1, incarnation: 4 })
  assert.equal(stale.status, 409)
  assert.equal(stale.body.code, 'stale_incarnation')
  assert.equal(stale.body.incarnation, 5)
  assert.equal((await call('PUT', NODE, { ...someNode, port: 1 })).body.incarnation, 5)
  assert.equal((await call('PUT', NODE, { ...someNode, incarnation: 6 })).body.incarnation, 6)
})

test('the old instance cannot remove the new one, neither by its incarnation nor by the end of its lease', async (context) => {
  const { call } = await startRegistry(context)
  const lease = async () => (await call('POST', '/v1/leases', { ttl: '10s', owner: 'me' })).body.id
  const [old, young] = [await lease(), await lease()]
  await call('PUT', NODE, { ...someNode, incarnation: 1, lease: old })
  await call('PUT', NODE, { ...someNode, incarnation: 2, lease: young })
  for (const query of ['?incarnation=1', `?lease=${old}`, `?incarnation=2&lease=${old}`, `?incarnation=3`]) {
    const refused = await call('DELETE', NODE + query)
    assert.equal(refused.status, 409, query)
    assert.equal(refused.body.incarnation, 2)
  }
  assert.equal((await call('DELETE', `/v1/leases/${old}`)).status, 204)
  assert.equal((await call('GET', VIEW)).body.nodes.length, 1)
  assert.equal((await call('DELETE', `${NODE}?incarnation=2&lease=${young}`)).status, 204)
  assert.equal((await call('GET', VIEW)).body.nodes.length, 0)
})

test('a node under a lease that has ended is refused: register again', async (context) => {
  const { call } = await startRegistry(context)
  const refused = await call('PUT', NODE, { ...someNode, lease: 'gone' })
  assert.equal(refused.status, 404)
  assert.equal(refused.body.code, 'lease_not_found')
  assert.equal((await call('POST', '/v1/leases/gone/renew')).body.code, 'lease_not_found')
  assert.equal((await call('DELETE', '/v1/leases/gone')).status, 204)
  assert.equal((await call('GET', VIEW)).body.code, 'service_not_found')
})

test('ttl gives a node a lease of its own: said again it is renewed, silent it is gone', async (context) => {
  const clock = new ManualClock()
  const { call, registry } = await startRegistry(context, { clock })
  const first = await call('PUT', NODE, { ...someNode, ttl: '10s' })
  assert.equal(first.body.leased, true)
  for (let round = 0; round < 3; round++) {
    await clock.advance(9_000)
    const again = await call('PUT', NODE, { ...someNode, ttl: '10s' })
    assert.equal(again.body.lease, first.body.lease)
    assert.match(again.headers.get('holdfast-cursor')!, /:1$/)
  }
  await clock.advance(9_000)
  assert.deepEqual((await call('POST', `/v1/leases/${first.body.lease}/renew`)).body, {
    id: first.body.lease,
    ttl: '10s',
  })
  const change = registry.parts.hub.changed('default', 'stock', 1, 60_000, new AbortController().signal)
  await clock.advance(10_500)
  await change
  const { body } = await call('GET', VIEW)
  assert.deepEqual([body.nodes.length, body.emptied.cause], [0, 'lease_expired'])
})

test('a lease of its own ends with its node', async (context) => {
  const { call, registry } = await startRegistry(context)
  await call('PUT', NODE, { ...someNode, ttl: '10s' })
  await call('PUT', NODE, { ...someNode, ttl: '20s' })
  assert.equal(registry.parts.leases.status().active, 1)
  await call('PUT', NODE, someNode)
  assert.equal(registry.parts.leases.status().active, 0)
  await call('PUT', NODE, { ...someNode, ttl: '10s' })
  await call('DELETE', NODE)
  assert.equal(registry.parts.leases.status().active, 0)
})

test('a lease has from two seconds to one hour, as a string with its unit', async (context) => {
  const { call } = await startRegistry(context)
  for (const ttl of ['2s', '2000ms', '1h', '60m'])
    assert.equal((await call('POST', '/v1/leases', { ttl, owner: 'me' })).status, 201, ttl)
  for (const ttl of ['1s', '1999ms', '61m', '15', 15, 15_000, 'soon', '-3s', '']) {
    const refused = await call('POST', '/v1/leases', { ttl, owner: 'me' })
    assert.equal(refused.status, 400, String(ttl))
    assert.equal(refused.body.errors[0]?.path, 'ttl')
  }
})

test('the number of leases is bounded, with a word on it', async (context) => {
  const { call } = await startRegistry(context, { config: { leases: { max: 2 } } })
  for (const id of ['a', 'b']) await call('PUT', `/v1/services/stock/nodes/${id}`, { ...someNode, ttl: '10s' })
  const refused = await call('POST', '/v1/leases', { ttl: '10s', owner: 'me' })
  assert.equal(refused.status, 429)
  assert.equal(refused.body.code, 'too_many_requests')
  assert.equal(refused.headers.get('retry-after'), '1')
  assert.equal((await call('PUT', '/v1/services/stock/nodes/a', { ...someNode, ttl: '10s' })).status, 200)
})

test('a batch is one revision, all or none', async (context) => {
  const { call } = await startRegistry(context)
  const good = [
    { service: 'stock', id: 'a', ...someNode },
    { service: 'cart', id: 'b', ...someNode, ttl: '10s' },
  ]
  const written = await call('PUT', '/v1/nodes', good)
  assert.equal(written.status, 200)
  assert.equal(written.body.created, 2)
  assert.equal(written.body.cursor, written.headers.get('holdfast-cursor'))
  assert.match(written.body.cursor, /:1$/)
  for (const [bad, path] of [
    [[...good, { service: 'x', id: 'a', host: 'h', port: 0 }], '2.port'],
    [[...good, good[0]], '2'],
    [[{ ...good[0], lease: 'x', ttl: '10s' }], '0.ttl'],
    [[], 'body'],
  ] as const) {
    const refused = await call('PUT', '/v1/nodes', bad)
    assert.equal(refused.status, 400)
    assert.equal(refused.body.errors[0]?.path, path)
  }
  const stale = [
    { service: 'new', id: 'n', ...someNode },
    { service: 'stock', id: 'a', ...someNode, incarnation: 0 },
  ]
  assert.equal((await call('PUT', '/v1/nodes', stale)).status, 409)
  assert.equal((await call('GET', '/v1/services/new')).status, 404)
  assert.match((await call('GET', VIEW)).headers.get('holdfast-cursor')!, /:1$/)
})

test("an operator's word outlives re-registration and the end of the lease, and ends when it is taken back", async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', NODE, { ...someNode, ttl: '10s' })
  const held = await call('PATCH', NODE, { override: { status: 'draining' } })
  assert.deepEqual([held.body.status, held.body.registered.status], ['draining', 'up'])
  const both = await call('PATCH', NODE, { override: { weight: 0 } })
  assert.deepEqual(both.body.override, { status: 'draining', weight: 0 })
  assert.equal((await call('PUT', NODE, { ...someNode, weight: 70 })).body.weight, 0)
  await call('DELETE', `${NODE}?incarnation=1`)
  const back = await call('PUT', NODE, { ...someNode, incarnation: 2, weight: 70 })
  assert.deepEqual([back.status, back.body.status, back.body.weight], [201, 'draining', 0])
  const partly = await call('PATCH', NODE, { override: { weight: null } })
  assert.deepEqual([partly.body.override, partly.body.weight], [{ status: 'draining' }, 70])
  const cleared = await call('PATCH', NODE, { override: null })
  assert.deepEqual([cleared.body.override, cleared.body.status], [undefined, 'up'])
  await call('PATCH', NODE, { override: { weight: 1 } })
  await call('DELETE', NODE)
  assert.equal((await call('PUT', NODE, someNode)).body.override, undefined, 'an operator who deletes takes it along')
  assert.equal((await call('PATCH', '/v1/services/stock/nodes/none', { override: null })).body.code, 'node_not_found')
})

test('an override of a node that is gone is seen, and can be taken back, but not set', async (context) => {
  const { call, registry } = await startRegistry(context)
  const { body: lease } = await call('POST', '/v1/leases', { ttl: '10s', owner: 'me' })
  await call('PUT', NODE, { ...someNode, lease: lease.id })
  await call('PUT', '/v1/services/stock/nodes/b', someNode)
  await call('PATCH', NODE, { override: { status: 'down', weight: 5 } })
  await call('PATCH', '/v1/services/stock/nodes/b', { override: { weight: 1 } })
  await call('DELETE', `/v1/leases/${lease.id}`)
  assert.match((await call('GET', NODE)).body.detail, /override waits .*"status":"down"/)
  assert.deepEqual(
    (await call('GET', '/v1/overrides')).body.overrides.map(({ id, present }) => [id, present]),
    [
      ['a', false],
      ['b', true],
    ],
  )
  for (const override of [{ status: 'up' }, { status: null, weight: 3 }, {}])
    assert.equal((await call('PATCH', NODE, { override })).status, Object.keys(override).length === 0 ? 204 : 404)
  const partly = await call('PATCH', NODE, { override: { status: null } })
  assert.deepEqual([partly.status, partly.text], [204, ''])
  assert.deepEqual((await call('GET', '/v1/overrides')).body.overrides[0]?.override, { weight: 5 })
  assert.equal((await call('PATCH', NODE, { override: null })).status, 204)
  const [entry] = (await call('GET', `${VIEW}/history`)).body.entries
  assert.deepEqual([entry?.kind, entry?.id, entry?.cause], ['override', 'a', 'operator'])
  assert.equal((await call('GET', NODE)).body.detail, undefined)
  assert.equal((await call('PUT', NODE, someNode)).body.status, 'up')
  assert.equal(registry.parts.store.status().overrides, 1)
})

test('the number of overrides is bounded, those of nodes that are gone included', async (context) => {
  const { call } = await startRegistry(context, { config: { overrides: { max: 2 } } })
  for (const id of ['a', 'b', 'c']) await call('PUT', `/v1/services/stock/nodes/${id}`, someNode)
  const hold = (id: string, override: object | null) => call('PATCH', `/v1/services/stock/nodes/${id}`, { override })
  await hold('a', { weight: 1 })
  await hold('b', { weight: 1 })
  await call('DELETE', '/v1/services/stock/nodes/a?incarnation=1')
  const refused = await hold('c', { weight: 1 })
  assert.deepEqual([refused.status, refused.body.code], [429, 'too_many_requests'])
  assert.match(refused.body.detail, /2 overrides.*\/v1\/overrides/)
  assert.equal((await hold('b', { weight: 2 })).status, 200)
  assert.equal((await hold('a', null)).status, 204)
  assert.equal((await hold('c', { weight: 1 })).status, 200)
})

test('overrides are listed in order, by namespace, in pages that miss none', async (context) => {
  const { call } = await startRegistry(context)
  for (const [service, id, namespace] of [
    ['stock', 'b', 'default'],
    ['stock', 'a', 'default'],
    ['cart', 'z', 'default'],
    ['stock', 'q', 'blue'],
  ]) {
    const path = `/v1/services/${service}/nodes/${id}?namespace=${namespace}`
    await call('PUT', path, someNode)
    await call('PATCH', path, { override: { weight: 0 } })
  }
  const ids = async (query: string) => {
    const { body } = await call('GET', `/v1/overrides?${query}`)
    return [body.overrides.map(({ id }) => id).join(''), body.next] as const
  }
  assert.deepEqual(await ids(''), ['zab', undefined])
  assert.deepEqual(await ids('namespace=*'), ['qzab', undefined])
  const [first, next] = await ids('limit=2')
  assert.deepEqual([first, ...(await ids(`limit=2&page=${next}`))], ['za', 'b', undefined])
})

test('a service never heard of is 404, one that lost its last node is there without nodes', async (context) => {
  const { call } = await startRegistry(context)
  assert.equal((await call('GET', VIEW)).body.code, 'service_not_found')
  assert.equal((await call('DELETE', NODE)).status, 204)
  assert.equal((await call('GET', VIEW)).status, 404)
  await call('PUT', NODE, someNode)
  await call('DELETE', NODE)
  const { status, body } = await call('GET', VIEW)
  assert.deepEqual([status, body.nodes, body.emptied.cause, body.emptied.id], [200, [], 'operator', 'a'])
})

test('namespaces do not see one another', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', `${NODE}?namespace=blue`, someNode)
  assert.equal((await call('GET', VIEW)).status, 404)
  assert.equal((await call('GET', `${VIEW}?namespace=blue`)).body.nodes.length, 1)
  assert.deepEqual((await call('GET', '/v1/services')).body.services, [])
  assert.deepEqual(
    (await call('GET', '/v1/services?namespace=*')).body.services.map(({ namespace }) => namespace),
    ['blue'],
  )
})

test('a view is filtered by status, zone and labels', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', '/v1/nodes', [
    { service: 'stock', id: 'a', ...someNode, zone: 'z1', labels: { version: 'v1' } },
    { service: 'stock', id: 'b', ...someNode, zone: 'z2', labels: { version: 'v2' } },
    { service: 'stock', id: 'c', ...someNode, zone: 'z2', labels: { version: 'v2' }, status: 'draining' },
  ])
  const ids = async (query: string) => (await call('GET', VIEW + query)).body.nodes.map(({ id }) => id).join()
  assert.equal(await ids('?status=up'), 'a,b')
  assert.equal(await ids('?zone=z2'), 'b,c')
  assert.equal(await ids('?label.version=v2&status=up'), 'b')
  assert.equal(await ids('?label.toString=x'), '')
})

test('services are listed in order, by prefix, counted by status, and in pages that miss none', async (context) => {
  const { call } = await startRegistry(context)
  const names = Array.from({ length: 25 }, (_, index) => `s${String(index).padStart(2, '0')}`)
  await call('PUT', '/v1/nodes', [
    ...names.map((service) => ({ service, id: 'a', ...someNode })),
    { service: 'other', id: 'a', ...someNode, status: 'down' },
  ])
  const listed: string[] = []
  let page = ''
  do {
    const { body } = await call('GET', `/v1/services?prefix=s&limit=10${page}`)
    listed.push(...body.services.map(({ service }) => service))
    page = body.next === undefined ? '' : `&page=${body.next}`
  } while (page !== '')
  assert.deepEqual(listed, names)
  const all = (await call('GET', '/v1/services')).body
  assert.deepEqual([all.services.length, all.next], [26, undefined])
  assert.deepEqual(all.services[0], {
    namespace: 'default',
    service: 'other',
    cursor: (await call('GET', '/v1/services/other')).body.cursor,
    nodes: { up: 0, draining: 0, down: 1 },
    policy: false,
  })
  for (const bad of ['limit=0', 'limit=1001', 'limit=x', 'page=~', 'page=', 'limit=1&limit=2'])
    assert.equal((await call('GET', `/v1/services?${bad}`)).status, 400, bad)
})

test('history tells what changed, why and by whom, the newest first, in pages that miss none', async (context) => {
  const { call } = await startRegistry(context)
  const lease = (await call('POST', '/v1/leases', { ttl: '10s', owner: 'sidecar on host-7' })).body.id
  await call(
    'PUT',
    '/v1/nodes',
    ['a', 'b', 'c'].map((id) => ({ service: 'stock', id, ...someNode, lease })),
  )
  await call('PATCH', NODE, { override: { weight: 1 } })
  await call('PUT', `${VIEW}/policy`, { timeout: '1s' })
  await call('DELETE', `/v1/leases/${lease}`)
  const { body } = await call('GET', `${VIEW}/history`)
  const lines = body.entries.map(({ revision, cause, by, kind, id }) => [revision, cause, by, kind, id].join(' '))
  assert.deepEqual(lines, [
    '5 deregistered sidecar on host-7 node a',
    '5 deregistered sidecar on host-7 node b',
    '5 deregistered sidecar on host-7 node c',
    '4 operator operator@127.0.0.1 policy ',
    '3 operator operator@127.0.0.1 override a',
    '2 registered sidecar on host-7 node a',
    '2 registered sidecar on host-7 node b',
    '2 registered sidecar on host-7 node c',
  ])
  const paged: unknown[] = []
  let page = ''
  do {
    const answer = await call('GET', `${VIEW}/history?limit=2${page}`)
    paged.push(...answer.body.entries)
    page = answer.body.next === undefined ? '' : `&page=${answer.body.next}`
  } while (page !== '')
  assert.deepEqual(paged, body.entries)
})

test('a long poll is answered by the next change of its service, and by no other', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', NODE, someNode)
  const { body } = await call('GET', VIEW)
  const revision = body.cursor.split(':')[1]
  let answered = false
  const polls = [revision, body.cursor].map((after) =>
    call('GET', `${VIEW}?after=${after}&wait=30s`).finally(() => (answered = true)),
  )
  await call('PUT', '/v1/services/other/nodes/x', someNode)
  await call('GET', '/v1/status')
  assert.equal(answered, false)
  await call('PUT', NODE, { ...someNode, port: 1 })
  for (const poll of await Promise.all(polls)) assert.equal(poll.body.nodes[0]?.port, 1)
})

test('a long poll ends with its time, and answers with the view as it is', async (context) => {
  const clock = new ManualClock()
  const { call } = await startRegistry(context, { clock })
  await call('PUT', NODE, someNode)
  const before = clock.pending
  const poll = call('GET', `${VIEW}?after=1&wait=20s`)
  while (clock.pending === before) await settle()
  await clock.advance(20_000)
  assert.equal((await poll).body.nodes.length, 1)
  assert.equal(clock.pending, before)
})

test('a long poll that cannot wait for anything is answered at once', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', NODE, someNode)
  for (const after of ['0', 'other-epoch:1', '99'])
    assert.equal((await call('GET', `${VIEW}?after=${after}&wait=5m`)).status, 200, after)
  for (const [query, code, path] of [
    ['after=x', 'bad_cursor', 'after'],
    ['after=a:b', 'bad_cursor', 'after'],
    ['after=1&wait=6m', 'invalid_request', 'wait'],
    ['after=1&wait=5', 'invalid_request', 'wait'],
    ['wait=5s', 'invalid_request', 'wait'],
  ] as const) {
    const refused = await call('GET', `${VIEW}?${query}`)
    assert.deepEqual([refused.status, refused.body.code, refused.body.errors[0]?.path], [400, code, path], query)
  }
})

test('a policy is stored as it was given, by JSON or YAML, and refused with the path of what is wrong', async (context) => {
  const { call } = await startRegistry(context)
  const path = `${VIEW}/policy`
  const json = await call('PUT', path, { timeout: '2s', retry: { attempts: 2 } })
  assert.equal(json.status, 201)
  const yaml = 'timeout: 2s\nretry:\n  attempts: 2\n'
  const same = await call('PUT', path, yaml, { 'content-type': 'application/yaml' })
  assert.deepEqual([same.status, same.body], [200, json.body])
  assert.match(same.headers.get('holdfast-cursor')!, /:1$/)
  const read = await call('GET', path)
  assert.deepEqual(read.body, { timeout: '2s', retry: { attempts: 2 } })
  assert.deepEqual((await call('GET', VIEW)).body.policy, read.body)
  for (const [body, type, at] of [
    ['{"timeot":"2s"}', 'application/json', 'timeot'],
    ['retry: {attempts: many}', 'text/yaml', 'retry.attempts'],
    ['a: [', 'application/x-yaml', 'body'],
    ['', 'application/yaml', 'body'],
    ['- 1', 'application/yaml', 'body'],
    [`${'['.repeat(50_000)}`, 'application/yaml', 'body'],
    [`{"routes":${'['.repeat(100)}${']'.repeat(100)}}`, 'application/json', undefined],
    [
      '{"routes":[{"match":{"headers":{"__proto__":{"exact":"x"}}}}]}',
      'application/json',
      'routes.0.match.headers.__proto__',
    ],
    ['__proto__: 1', 'application/yaml', '__proto__'],
  ] as const) {
    const refused = await call('PUT', path, body, { 'content-type': type })
    assert.deepEqual([refused.status, refused.body.code], [400, 'invalid_request'], body.slice(0, 50))
    if (at !== undefined) assert.equal(refused.body.errors[0]?.path, at, body.slice(0, 50))
  }
  assert.equal((await call('DELETE', path)).status, 204)
  assert.equal((await call('GET', path)).body.code, 'policy_not_found')
  assert.equal((await call('DELETE', path)).status, 204)
  assert.match((await call('GET', VIEW)).headers.get('holdfast-cursor')!, /:2$/)
})

test('a YAML body of several documents is refused, since only one could be stored', async (context) => {
  const { call } = await startRegistry(context)
  const yaml = { 'content-type': 'application/yaml' }
  for (const body of ['timeout: 250ms\n---\ntimeout: 1s\n', '---\ntimeout: 1s\n---\n']) {
    const refused = await call('PUT', `${VIEW}/policy`, body, yaml)
    assert.equal(refused.status, 400, body)
    assert.match(refused.body.errors[0]!.message, /several documents/)
  }
  for (const body of ['---\ntimeout: 1s\n', 'timeout: 2s\n...\n'])
    assert.ok((await call('PUT', `${VIEW}/policy`, body, yaml)).status < 300, body)
})

test('a YAML document that unfolds into a huge one is refused', async (context) => {
  const { call } = await startRegistry(context)
  const lines = ['a0: &a0 [x,x,x,x,x,x,x,x,x,x]']
  for (let index = 1; index < 12; index++) lines.push(`a${index}: &a${index} [${`*a${index - 1},`.repeat(9)}x]`)
  const refused = await call('PUT', `${VIEW}/policy`, lines.join('\n'), { 'content-type': 'application/yaml' })
  assert.ok(refused.status === 400 || refused.status === 413, refused.text)
})

test('what cannot be understood is refused with its path, and nothing is written', async (context) => {
  const { call, registry } = await startRegistry(context)
  const wrong: [body: unknown, path: string][] = [
    [{}, 'host'],
    [{ ...someNode, port: '80' }, 'port'],
    [{ ...someNode, port: 65_536 }, 'port'],
    [{ ...someNode, port: 1.5 }, 'port'],
    [{ ...someNode, host: 'a b' }, 'host'],
    [{ ...someNode, host: '[::1]' }, 'host'],
    [{ ...someNode, weight: 1001 }, 'weight'],
    [{ ...someNode, protocol: 'udp' }, 'protocol'],
    [{ ...someNode, zone: 'Z' }, 'zone'],
    [{ ...someNode, status: 'UP' }, 'status'],
    [{ ...someNode, incarnation: -1 }, 'incarnation'],
    [{ ...someNode, labels: { a: 1 } }, 'labels.a'],
    [{ ...someNode, labels: { 'a b': 'x' } }, 'labels.a b'],
    [{ ...someNode, labels: { a: 'line\nbreak' } }, 'labels.a'],
    [
      { ...someNode, labels: Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`l${index}`, ''])) },
      'labels',
    ],
    [{ ...someNode, lease: 'x', ttl: '10s' }, 'ttl'],
    [{ ...someNode, ttl: '1s' }, 'ttl'],
    [{ ...someNode, colour: 'red' }, 'colour'],
    ['[1', 'body'],
    ['null', 'body'],
    ['', 'body'],
    [`{"host":"h","port":1,"__proto__":{"x":1}}`, '__proto__'],
    [`{"host":"h","port":1,"labels":{"__proto__":"x"}}`, 'labels.__proto__'],
    [`{"host":"h","port":1,"labels":{"\\u005f_proto__":"x"}}`, 'labels.__proto__'],
    [`{"host":"h","port":1,"constructor":{"prototype":1}}`, 'constructor.prototype'],
  ]
  for (const [body, path] of wrong) {
    const refused = await call('PUT', NODE, body)
    assert.equal(refused.status, 400, JSON.stringify(body))
    assert.equal(refused.headers.get('content-type'), 'application/problem+json; charset=utf-8')
    assert.equal(refused.body.code, 'invalid_request')
    assert.ok(
      refused.body.errors.some((error) => error.path === path),
      `${JSON.stringify(body)}: ${refused.text}`,
    )
  }
  const reserved = await call('PUT', NODE, '{"labels":{"__proto__":"x"}}')
  assert.equal(reserved.body.errors[0]?.message, '__proto__ is not accepted as a name here')
  assert.equal(registry.parts.hub.cursor.revision, 0)
})

test('addresses of every kind are hosts', async (context) => {
  const { call } = await startRegistry(context)
  for (const host of ['10.0.0.1', '::1', 'fe80::1', '::ffff:10.0.0.1', 'a.example.org', 'localhost', 'stock_1.svc.'])
    assert.ok((await call('PUT', NODE, { ...someNode, host })).status < 300, host)
})

test('names that are none are refused, on every path, and never reach further', async (context) => {
  const { call } = await startRegistry(context)
  for (const service of ['A', '-a', 'a..b', 'a_b', 'a%2Fb', 'a%00', 'x'.repeat(129), '%E4%BD%A0'])
    assert.equal((await call('PUT', `/v1/services/${service}/nodes/a`, someNode)).status, 400, service)
  for (const id of ['-a', '.a', 'a%2Fb', '%2e%2e%2fx', 'x'.repeat(129)])
    assert.equal((await call('PUT', `/v1/services/stock/nodes/${id}`, someNode)).status, 400, id)
  for (const namespace of ['A', 'a.b', '', '*', 'x'.repeat(64), '..%2f'])
    assert.equal((await call('PUT', `${NODE}?namespace=${namespace}`, someNode)).status, 400, namespace)
  assert.equal((await call('GET', '/v1/services/%zz')).status, 400)
  const longest = `/v1/services/${'s'.repeat(128)}/nodes/${'n'.repeat(128)}?namespace=${'x'.repeat(63)}`
  assert.equal((await call('PUT', longest, someNode)).status, 201)
})

test('an unknown parameter is refused on every route', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', NODE, someNode)
  for (const [method, path, body] of [
    ['GET', '/v1/services'],
    ['GET', VIEW],
    ['GET', `${VIEW}/history`],
    ['GET', `${VIEW}/policy`],
    ['GET', NODE],
    ['GET', '/v1/subscribers'],
    ['GET', '/v1/status'],
    ['GET', '/v1/watch?service=stock&'],
    ['GET', '/healthz'],
    ['GET', '/readyz'],
    ['GET', '/metrics'],
    ['DELETE', NODE],
    ['PUT', NODE, someNode],
    ['PATCH', NODE, { override: null }],
    ['PUT', '/v1/nodes', [{ service: 's', id: 'a', ...someNode }]],
    ['POST', '/v1/leases', { ttl: '10s', owner: 'x' }],
    ['PUT', `${VIEW}/policy`, {}],
  ] as const) {
    const refused = await call(method, `${path}${path.includes('?') ? '' : '?'}&wat=1`, body)
    assert.equal(refused.status, 400, `${method} ${path} ${refused.text}`)
    assert.deepEqual(refused.body.errors, [{ path: 'wat', message: 'unknown parameter' }], path)
  }
})

test('a path that is none is 404, one that knows another method 405 with those', async (context) => {
  const { call } = await startRegistry(context)
  assert.equal((await call('GET', '/v2/services')).body.code, 'not_found')
  const refused = await call('POST', NODE, someNode)
  assert.deepEqual([refused.status, refused.body.code], [405, 'method_not_allowed'])
  assert.equal(refused.headers.get('allow'), 'DELETE, GET, HEAD, PATCH, PUT')
})

test('a problem says what of the request it is about, also where nothing is wrong with how it is written', async (context) => {
  const { call } = await startRegistry(context)
  const place = async (method: string, path: string, body?: unknown, headers?: Record<string, string>) =>
    (await call(method, path, body, headers)).body.errors[0]?.path
  assert.equal(await place('GET', VIEW), 'service')
  await call('PUT', NODE, { ...someNode, incarnation: 2 })
  assert.equal(await place('GET', `${VIEW}/nodes/none`), 'id')
  assert.equal(await place('PATCH', `${VIEW}/nodes/none`, { override: null }), 'id')
  assert.equal(await place('GET', `${VIEW}/policy`), 'service')
  assert.equal(await place('POST', '/v1/leases/none/renew'), 'lease')
  assert.equal(await place('PUT', NODE, { ...someNode, lease: 'none' }), 'lease')
  assert.equal(await place('PUT', NODE, { ...someNode, incarnation: 1 }), 'incarnation')
  assert.equal(await place('GET', '/nowhere'), 'path')
  assert.equal(await place('POST', NODE, someNode), 'method')
  assert.equal(await place('PUT', NODE, '{}', { 'content-type': 'text/plain' }), 'header.content-type')
  assert.equal(await place('PUT', NODE, ' '.repeat(1_048_577)), 'body')
})

test('a body over one mebibyte is refused, one of another kind too', async (context) => {
  const { call } = await startRegistry(context)
  const large = JSON.stringify({ ...someNode, labels: { a: 'x'.repeat(1_048_576) } })
  assert.equal((await call('PUT', NODE, large)).body.code, 'body_too_large')
  for (const type of ['text/plain', 'application/xml', 'application/yaml', 'multipart/form-data; boundary=x'])
    assert.equal((await call('PUT', NODE, '{}', { 'content-type': type })).body.code, 'unsupported_media_type', type)
})

test('a body is taken as it was sent, or refused: no bytes that are not UTF-8, no other charset, no compression', async (context) => {
  const { call, registry } = await startRegistry(context)
  const json = JSON.stringify({ ...someNode, labels: { a: 'grüß' } })
  for (const [path, type, text] of [
    [NODE, 'application/json', json],
    [`${VIEW}/policy`, 'application/yaml', '# grüß\ntimeout: 1s\n'],
  ] as const) {
    const refused = await call('PUT', path, Buffer.from(text, 'latin1'), { 'content-type': type })
    assert.deepEqual([refused.status, refused.body.errors], [400, [{ path: 'body', message: 'is not UTF-8' }]], type)
    const others: Record<string, string>[] = [
      { 'content-type': `${type}; charset=latin1` },
      { 'content-type': `${type}; charset="iso-8859-1"` },
      { 'content-type': type, 'content-encoding': 'gzip' },
    ]
    for (const headers of others) {
      const { status, body } = await call('PUT', path, text, headers)
      assert.deepEqual([status, body.code], [415, 'unsupported_media_type'], JSON.stringify(headers))
      assert.match(body.errors[0]!.path, /^header\.content-(type|encoding)$/)
    }
  }
  assert.equal(registry.parts.hub.cursor.revision, 0)
  const accepted = await call('PUT', NODE, json, {
    'content-type': 'application/json;charset="UTF-8"',
    'content-encoding': 'identity',
  })
  assert.equal(accepted.body.labels.a, 'grüß')
})

test('a client that names the content type of no body is understood', async (context) => {
  const { call } = await startRegistry(context)
  await call('PUT', NODE, someNode)
  assert.equal((await call('DELETE', NODE, undefined, { 'content-type': 'application/json' })).status, 204)
})

test('status, health and metrics say what the registry is', async (context) => {
  const { call, registry } = await startRegistry(context)
  await call('PUT', NODE, { ...someNode, ttl: '10s' })
  const { body } = await call('GET', '/v1/status')
  assert.deepEqual(
    [body.epoch, body.revision, body.nodes, body.store.kind],
    [registry.parts.hub.epoch, 1, 1, 'embedded'],
  )
  assert.equal((await call('GET', '/healthz')).status, 200)
  assert.equal((await call('GET', '/readyz')).status, 200)
  const metrics = (await call('GET', '/metrics')).text
  for (const line of [
    'holdfast_nodes 1',
    'holdfast_leases 1',
    'holdfast_revision 1',
    'holdfast_commit_transactions_count 1',
    'holdfast_requests_total{route="/v1/services/:service/nodes/:id",method="PUT",status="201"} 1',
  ])
    assert.ok(metrics.includes(`${line}\n`), line)
  assert.equal(
    (await call('GET', '/v1/schemas/policy')).headers.get('content-type'),
    'application/schema+json; charset=utf-8',
  )
  const docs = await call('GET', '/docs')
  assert.match(docs.text, /swagger/i)
})

test('a disk that fails is 503 and says so, reads go on, and nothing of the write is seen', async (context) => {
  const { call, registry } = await startRegistry(context)
  await call('PUT', NODE, someNode)
  await registry.parts.store.close()
  const refused = await call('PUT', NODE, { ...someNode, port: 1 })
  assert.deepEqual([refused.status, refused.body.code], [503, 'store_unavailable'])
  assert.equal(refused.headers.get('retry-after'), '1')
  assert.equal((await call('GET', VIEW)).body.nodes[0]?.port, 8080)
})
