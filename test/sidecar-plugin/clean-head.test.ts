import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SidecarError } from '../../sidecar-plugin/src/errors.ts'
import { cleanHead } from '../../sidecar-plugin/src/layers/clean-head.ts'
import { exchangeFor, replyOf } from './fakes.ts'

async function clean(headers: string[], over: Parameters<typeof exchangeFor>[0] = {}) {
  const { exchange } = exchangeFor({ headers, ...over })
  await cleanHead()(async () => replyOf())(exchange)
  return exchange
}

function refusedWith(reason: string) {
  return (error: unknown) => error instanceof SidecarError && error.reason === reason
}

describe('what of a head goes on', () => {
  test('of an absolute URL the path is the target, and its authority replaces the Host as received', async () => {
    const exchange = await clean(['Host', 'liar', 'A', 'b'], { target: 'http://stock.shop:80/items?q=1' })
    assert.equal(exchange.target, '/items?q=1')
    assert.equal(exchange.authority, 'stock.shop:80')
    assert.deepEqual(exchange.headers.list, ['Host', 'stock.shop:80', 'A', 'b'])
  })

  test('an absolute URL names the Host that HTTP/1.0 may leave out', async () => {
    assert.deepEqual((await clean(['A', 'b'], { target: 'http://stock/' })).headers.list, ['Host', 'stock', 'A', 'b'])
  })

  test('an absolute URL without a path asks for the root', async () => {
    assert.equal((await clean(['Host', 'x'], { target: 'http://stock?q=1' })).target, '/?q=1')
  })
})

for (const authority of ['', 'u@', ':80', 'a"<>{}|\\b'])
  test(`a URL whose host is ${JSON.stringify(authority)} is refused as such a Host is`, () =>
    assert.rejects(clean(['Host', 'a'], { target: `http://${authority}/p` }), refusedWith('bad_request')))

test('RFC 9112/3.2.4: OPTIONS for a URL without a path is for the server as a whole', async () => {
  const targetOf = async (target: string) => (await clean(['Host', 'x'], { method: 'OPTIONS', target })).target
  assert.deepEqual(
    [await targetOf('http://x'), await targetOf('http://x?'), await targetOf('http://x/')],
    ['*', '/?', '/'],
  )
})

describe('RFC 9110/7.6.2: Max-Forwards', () => {
  const limited = (method: string, left: string) => clean(['Host', 'a', 'max-forwards', left], { method })

  test('counts the hops of OPTIONS and TRACE, and of nothing else', async () => {
    for (const [method, left] of [
      ['OPTIONS', '1'],
      ['TRACE', '1'],
      ['GET', '2'],
    ] as const)
      assert.equal((await limited(method, '2')).headers.get('max-forwards'), left, method)
    assert.equal((await limited('OPTIONS', 'many')).headers.get('max-forwards'), 'many')
  })

  test('of none left ends OPTIONS here with what may be asked', async () => {
    const { exchange } = exchangeFor({ headers: ['Max-Forwards', '0'], method: 'OPTIONS' })
    const reply = await cleanHead()(() => Promise.reject(new Error('it went on')))(exchange)
    assert.equal(reply.status, 204)
    assert.match(reply.headers.get('allow')!, /GET, .*OPTIONS/)
  })

  test('of none left ends TRACE here, and reflects nothing', () =>
    assert.rejects(limited('TRACE', '0'), refusedWith('not_supported')))
})

test('a timeout without a unit is refused, instead of being guessed at', () =>
  assert.rejects(clean(['Host', 'a'], { control: new Map([['timeout', '250']]) }), refusedWith('bad_request')))

for (const target of ['https://stock/', 'ftp://stock/', '*'])
  test(`a request for ${target} is said to be beyond the sidecar`, () =>
    assert.rejects(clean(['Host', 'a'], { target }), refusedWith('not_supported')))

test('a request for no path in particular goes on as it is', async () => {
  const all = await clean(['Host', 'stock'], { method: 'OPTIONS', target: '*' })
  assert.deepEqual([all.target, all.authority], ['*', 'stock'])
  const tunnel = await clean(['Host', 'liar'], { method: 'CONNECT', target: 'stock:80' })
  assert.deepEqual([tunnel.target, tunnel.authority], ['stock:80', 'stock:80'])
})

test('a request that a sidecar sent to an outbound port is a loop, and ends', () =>
  assert.rejects(clean(['Host', 'a'], { control: new Map([['service', 'a.default']]) }), refusedWith('loop_detected')))
