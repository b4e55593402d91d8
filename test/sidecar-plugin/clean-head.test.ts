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
  test('a field stays as it was written, with case, order and duplicates', async () => {
    const headers = ['Host', 'stock', 'X-Case', 'One', 'x-case', 'two', 'COOKIE', 'a=b']
    assert.deepEqual((await clean(headers)).headers, headers)
  })

  test('fields of the connection stay behind, and so does each that any Connection line names', async () => {
    const exchange = await clean([
      ...['Host', 'stock', 'Connection', 'X-One, keep-alive', 'X-One', '1', 'Connection', 'x-two', 'X-Two', '2'],
      ...['Keep-Alive', 'timeout=5', 'TE', 'trailers', 'Proxy-Connection', 'close', 'Upgrade', 'h2c', 'X-Three', '3'],
    ])
    assert.deepEqual(exchange.headers, ['Host', 'stock', 'X-Three', '3'])
  })

  test('what sidecars say to each other is taken out and kept apart', async () => {
    const exchange = await clean(['Host', 'stock', 'X-Holdfast-Service', 'a.default', 'x-holdfast-deadline', '12'], {
      direction: 'inbound',
    })
    assert.deepEqual(exchange.headers, ['Host', 'stock'])
    assert.deepEqual(
      [...exchange.control],
      [
        ['service', 'a.default'],
        ['deadline', '12'],
      ],
    )
  })

  test('of an absolute URL the path is the target, and its authority replaces the Host as received', async () => {
    const exchange = await clean(['Host', 'liar', 'A', 'b'], { target: 'http://stock.shop:80/items?q=1#x' })
    assert.equal(exchange.target, '/items?q=1')
    assert.equal(exchange.authority, 'stock.shop:80')
    assert.deepEqual(exchange.headers, ['Host', 'stock.shop:80', 'A', 'b'])
  })

  test('an absolute URL without a path asks for the root', async () => {
    assert.equal((await clean(['Host', 'x'], { target: 'http://stock?q=1' })).target, '/?q=1')
  })
})

describe('a head that two readers could understand differently is refused', () => {
  const ambiguous: Record<string, string[]> = {
    'two hosts': ['Host', 'a', 'host', 'a'],
    'no host': ['A', 'b'],
    'a length beside a coding': ['Host', 'a', 'Content-Length', '1', 'Transfer-Encoding', 'chunked'],
    'two lengths': ['Host', 'a', 'Content-Length', '1', 'content-length', '1'],
    'a Connection that names Host': ['Host', 'a', 'Connection', 'close', 'Connection', 'x, hOst'],
    'a Connection that names Content-Length': ['Host', 'a', 'Connection', 'content-length', 'Content-Length', '1'],
  }
  for (const [name, headers] of Object.entries(ambiguous))
    test(name, () => assert.rejects(clean(headers), refusedWith('bad_request')))

  test('a coding in HTTP/1.0', () =>
    assert.rejects(clean(['Transfer-Encoding', 'chunked'], { httpVersion: '1.0' }), refusedWith('bad_request')))

  test('a timeout without a unit, instead of being guessed at', () =>
    assert.rejects(clean(['Host', 'a', 'x-holdfast-timeout', '250']), refusedWith('bad_request')))

  test('an expectation that nobody knows', () =>
    assert.rejects(clean(['Host', 'a', 'Expect', 'miracles']), refusedWith('bad_request')))
})

describe('what the sidecar cannot do is said', () => {
  test('a coding other than chunked', () =>
    assert.rejects(clean(['Host', 'a', 'Transfer-Encoding', 'gzip, chunked']), refusedWith('not_supported')))
  test('a WebSocket', () =>
    assert.rejects(clean(['Host', 'a', 'Connection', 'upgrade', 'Upgrade', 'websocket']), refusedWith('not_supported')))
  test('an https URL', () =>
    assert.rejects(clean(['Host', 'a'], { target: 'https://stock/' }), refusedWith('not_supported')))
})

test('a request that a sidecar sent to an outbound port is a loop, and ends', () =>
  assert.rejects(clean(['Host', 'a', 'x-holdfast-service', 'a.default']), refusedWith('loop_detected')))

test('HTTP/1.0 without a Host passes: whom it is for is the next question', async () =>
  assert.equal((await clean([], { httpVersion: '1.0' })).authority, ''))
