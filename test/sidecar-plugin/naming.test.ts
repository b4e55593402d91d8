import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SidecarError } from '../../sidecar-plugin/src/errors.ts'
import { address } from '../../sidecar-plugin/src/layers/address.ts'
import { local } from '../../sidecar-plugin/src/layers/local.ts'
import { parseServiceHost } from '../../sidecar-plugin/src/service-address.ts'
import { exchangeFor, replyOf } from './fakes.ts'

describe('a host names a service', () => {
  const cases: Record<string, string | undefined> = {
    stock: 'stock/home',
    'STOCK:8080': 'stock/home',
    'stock.': 'stock/home',
    'stock.shop': 'stock/shop',
    'a.b.default': 'a.b/default',
    '': undefined,
    '-stock': undefined,
    'stock..shop': undefined,
    st_ock: undefined,
    '[::1]:80': undefined,
    'stock.sh_op': undefined,
    [`${'a'.repeat(129)}`]: undefined,
  }
  for (const [host, expected] of Object.entries(cases))
    test(`${JSON.stringify(host.slice(0, 20))} is ${expected ?? 'none'}`, () => {
      const found = parseServiceHost(host, 'home')
      assert.equal(found && `${found.service}/${found.namespace}`, expected)
    })
})

test('outbound, a host that names none is a bad request that says what was meant', () => {
  const { exchange } = exchangeFor()
  exchange.authority = 'not a service'
  return assert.rejects(
    async () => address('default')(async () => replyOf())(exchange),
    (error: unknown) => {
      assert(error instanceof SidecarError)
      assert.equal(error.reason, 'bad_request')
      assert.match(error.message, /must name a service/)
      return true
    },
  )
})

describe('inbound', () => {
  const destination = { id: 'n', host: '127.0.0.1', port: 9080 }
  function serve(control: [string, string][], authority: string) {
    const { exchange, end } = exchangeFor({ direction: 'inbound' })
    exchange.control = new Map(control)
    exchange.authority = authority
    let running = 0
    const layer = local('default', (service, namespace) =>
      service === 'stock' && namespace === 'default'
        ? { destination, begin: () => (running++, () => void running--) }
        : undefined,
    )
    return { exchange, end, running: () => running, reply: layer(async () => replyOf())(exchange) }
  }

  test('the mark of the sidecar that sent it counts before Host, which belongs to the service', async () => {
    const { exchange, reply } = serve([['service', 'stock.default']], 'www.shop.example')
    await reply
    assert.equal(exchange.destination, destination)
    assert.equal(exchange.service, 'stock')
  })

  test('without a mark Host says whom it is for', async () => {
    const { exchange, reply } = serve([], 'stock:7502')
    await reply
    assert.equal(exchange.destination, destination)
  })

  test('what is for another service is refused, because its address may have been that one’s before', () =>
    assert.rejects(
      serve([['service', 'other.default']], 'stock').reply,
      (error: unknown) => error instanceof SidecarError && error.reason === 'not_here' && !error.delivered,
    ))

  test('the same name in another namespace is another service', () =>
    assert.rejects(serve([['service', 'stock.shop']], 'stock').reply, { reason: 'not_here' }))

  test('a request counts as under way until its answer has left', async () => {
    const { end, reply, running } = serve([], 'stock')
    await reply
    assert.equal(running(), 1)
    end()
    await Promise.resolve()
    await Promise.resolve()
    assert.equal(running(), 0)
  })
})
