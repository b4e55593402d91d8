import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SidecarError, type Reason } from '../../sidecar-plugin/src/errors.ts'
import type { Exchange, Reply } from '../../sidecar-plugin/src/layer.ts'
import { balance } from '../../sidecar-plugin/src/layers/balance.ts'
import { retry, RetryBudget } from '../../sidecar-plugin/src/layers/retry.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { bodyOf, exchangeFor, FakeClient, replyOf } from './fakes.ts'

type Behaviour = (exchange: Exchange) => Promise<Reply>
const fails =
  (reason: Reason, delivered = false): Behaviour =>
  () =>
    Promise.reject(new SidecarError(reason, 'as told', { delivered }))
const answersWith =
  (reply: Partial<Reply> = {}): Behaviour =>
  () =>
    Promise.resolve(replyOf(reply))

/** Nodes by id and how each behaves; who was called is recorded. */
function mesh(nodes: Record<string, Behaviour>, policyAttempts?: number) {
  const clock = new ManualClock()
  const client = new FakeClient()
  client.set(
    'stock',
    Object.keys(nodes).map((id) => ({ id })),
  )
  const called: string[] = []
  const retries: string[] = []
  const layers = retry({
    clock,
    random: seededRandom(1),
    policyAttempts: () => policyAttempts,
    onRetry: (_exchange, failed) => retries.push(failed),
  })(
    balance({ picker: client, clock })((exchange) => {
      called.push(exchange.destination!.id)
      return nodes[exchange.destination!.id]!(exchange)
    }),
  )
  return { clock, client, called, retries, serve: layers }
}

describe('a request that was not delivered is sent to another node', () => {
  for (const method of ['GET', 'POST', 'PATCH'])
    test(`${method}, when there is no connection`, async () => {
      const { serve, called } = mesh({ a: fails('upstream_connect'), b: answersWith() })
      assert.equal((await serve(exchangeFor({ method, body: bodyOf(true) }).exchange)).status, 200)
      assert.deepEqual(called, ['a', 'b'])
    })

  for (const reason of ['not_here', 'upstream_connect', 'draining'] as const)
    test(`when the peer says ${reason}`, async () => {
      let isGivenBack = false
      const body = { ...bodyOf(false), cancel: () => void (isGivenBack = true) }
      const { serve, called } = mesh({ a: answersWith({ status: 503, reason, body }), b: answersWith() })
      assert.equal((await serve(exchangeFor({ method: 'POST', body: bodyOf(true) }).exchange)).status, 200)
      assert.deepEqual(called, ['a', 'b'])
      assert.equal(isGivenBack, true, 'the refusal’s body is given back')
    })
})

describe('a peer is told that a refusal would cost nothing', () => {
  const small = { method: 'POST', body: bodyOf(true, 10) }
  const large = { ...small, body: bodyOf(true, 70_000) }
  const cases: [what: string, nodes: string[], arrival: typeof small, attempts: number | undefined, told: boolean[]][] =
    [
      ['when there is another node, and of the first attempt only', ['a', 'b'], small, undefined, [true, false]],
      ['not when there is no other node', ['a'], small, undefined, [false]],
      ['not when the body is too large to be kept', ['a', 'b'], large, undefined, [false, false]],
      ['not when the policy has no retries', ['a', 'b'], small, 0, [false]],
    ]
  for (const [what, ids, arrival, attempts, told] of cases)
    test(what, async () => {
      const heard: boolean[] = []
      const refuses: Behaviour = (exchange) => {
        heard.push(exchange.elsewhere)
        return heard.length < told.length ? fails('upstream_connect')(exchange) : answersWith()(exchange)
      }
      const { serve, client } = mesh(Object.fromEntries(ids.map((id) => [id, refuses])), attempts)
      const { exchange } = exchangeFor(arrival)
      exchange.known = client.peek('stock')
      await serve(exchange)
      assert.deepEqual(heard, told)
    })
})

describe('a request that could be done twice is not sent again', () => {
  test('a POST whose connection broke', async () => {
    const { serve, called } = mesh({ a: fails('upstream_reset', true), b: answersWith() })
    await assert.rejects(serve(exchangeFor({ method: 'POST' }).exchange), { reason: 'upstream_reset' })
    assert.deepEqual(called, ['a'])
  })

  test('anything whose body cannot be sent whole any more, even when the peer refuses', async () => {
    const { serve, called } = mesh({ a: answersWith({ status: 502, reason: 'upstream_connect' }), b: answersWith() })
    const reply = await serve(exchangeFor({ method: 'PUT', body: bodyOf(false) }).exchange)
    assert.equal(reply.reason, 'upstream_connect')
    assert.deepEqual(called, ['a'])
  })

  test('an answer of the service itself, be it an error', async () => {
    const { serve, called } = mesh({ a: answersWith({ status: 503 }), b: answersWith() })
    assert.equal((await serve(exchangeFor().exchange)).status, 503)
    assert.deepEqual(called, ['a'])
  })

  test('what the caller got wrong', async () => {
    const { serve, called } = mesh({ a: fails('bad_request'), b: answersWith() })
    await assert.rejects(serve(exchangeFor().exchange), { reason: 'bad_request' })
    assert.deepEqual(called, ['a'])
  })
})

test('an idempotent request is sent again when its connection broke', async () => {
  for (const method of ['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE']) {
    const { serve, called } = mesh({ a: fails('upstream_reset', true), b: answersWith() })
    assert.equal((await serve(exchangeFor({ method, body: bodyOf(true) }).exchange)).status, 200)
    assert.deepEqual(called, ['a', 'b'])
  }
})

test('a service that breaks off behind its sidecar counts like a connection that broke here', async () => {
  const broken = answersWith({ status: 502, reason: 'upstream_reset' })
  const get = mesh({ a: broken, b: answersWith() })
  assert.equal((await get.serve(exchangeFor().exchange)).status, 200)
  const post = mesh({ a: broken, b: answersWith() })
  assert.equal((await post.serve(exchangeFor({ method: 'POST' }).exchange)).reason, 'upstream_reset')
  assert.deepEqual(post.called, ['a'])
})

test('there are two further attempts, each on another node, and the last failure is answered', async () => {
  const { serve, called, retries } = mesh({
    a: fails('upstream_connect'),
    b: fails('upstream_reset', true),
    c: answersWith({ status: 503, reason: 'draining' }),
    d: answersWith(),
  })
  const reply = await serve(exchangeFor().exchange)
  assert.equal(reply.reason, 'draining')
  assert.equal(new Set(called).size, 3)
  assert.deepEqual(retries.length, 2)
})

test('a policy says how many attempts there are', async () => {
  const { serve, called } = mesh({ a: fails('upstream_connect'), b: answersWith() }, 0)
  await assert.rejects(serve(exchangeFor().exchange), { reason: 'upstream_connect' })
  assert.deepEqual(called, ['a'])
})

test('when every node has failed it, a pause follows and all of them may be tried again', async () => {
  let isUp = false
  const { serve, called, clock } = mesh({
    a: (exchange) => (isUp ? answersWith()(exchange) : fails('upstream_connect')(exchange)),
  })
  const reply = serve(exchangeFor({ method: 'POST' }).exchange)
  await clock.advance(0)
  assert.deepEqual(called, ['a'])
  isUp = true
  await clock.advance(250)
  assert.equal((await reply).status, 200)
  assert.deepEqual(called, ['a', 'a'])
})

test('a service without nodes is said to have none, at once', async () => {
  const { serve, clock } = mesh({})
  await assert.rejects(serve(exchangeFor().exchange), { reason: 'no_nodes', status: 503 })
  assert.equal(clock.pending, 0)
})

test('a caller that goes during the pause ends it', async () => {
  const { serve } = mesh({ a: fails('upstream_connect') })
  const { exchange } = exchangeFor()
  const reply = serve(exchange)
  await Promise.resolve()
  exchange.abort(new SidecarError('caller_gone', 'gone'))
  await assert.rejects(reply, { reason: 'caller_gone' })
})

describe('the budget', () => {
  test('allows a fifth of the recent requests, and ten a second whatever there are', () => {
    const clock = new ManualClock()
    const budget = new RetryBudget(clock)
    for (let i = 0; i < 1_000; i++) budget.request()
    let taken = 0
    while (budget.take()) taken++
    assert.equal(taken, 1_000 * 0.2 + 10 * 10)
  })

  test('comes back as time goes by', async () => {
    const clock = new ManualClock()
    const budget = new RetryBudget(clock)
    while (budget.take());
    await clock.advance(10_000)
    assert.equal(budget.take(), true)
  })

  test('keeps retries from becoming the outage', async () => {
    const { serve, called } = mesh({
      a: fails('upstream_connect'),
      b: fails('upstream_connect'),
      c: fails('upstream_connect'),
    })
    for (let i = 0; i < 1_000; i++) await assert.rejects(serve(exchangeFor({ method: 'POST' }).exchange))
    assert(called.length <= 1_000 + 200 + 100, `${called.length} calls`)
  })
})

describe('what the balancer is told', () => {
  test('of an answer, once its body has left', async () => {
    const { serve, client } = mesh({ a: answersWith() })
    const { exchange, end } = exchangeFor()
    await serve(exchange)
    assert.deepEqual(client.outcomes, [])
    end()
    assert.deepEqual(client.outcomes, ['a ok'])
  })

  test('a broken connection, a refusal of its sidecar and a body that breaks off count against a node', async () => {
    const broken = mesh({ a: fails('upstream_reset', true) })
    await assert.rejects(broken.serve(exchangeFor({ method: 'POST' }).exchange))
    assert.deepEqual(broken.client.outcomes, ['a failed'])
    const refused = mesh({ a: answersWith({ status: 502, reason: 'upstream_reset' }) })
    await refused.serve(exchangeFor({ method: 'POST' }).exchange)
    assert.deepEqual(refused.client.outcomes, ['a failed'])
    const cut = mesh({ a: answersWith() })
    const { exchange, end } = exchangeFor()
    await cut.serve(exchange)
    end({ error: new SidecarError('upstream_reset', 'cut', { delivered: true }) })
    assert.deepEqual(cut.client.outcomes, ['a failed'])
  })

  test('an error of the service itself does not, and who goes away gives no verdict', async () => {
    const erring = mesh({ a: answersWith({ status: 500 }) })
    const { exchange, end } = exchangeFor()
    await erring.serve(exchange)
    end()
    assert.deepEqual(erring.client.outcomes, ['a ok'])
    const left = mesh({ a: fails('caller_gone', true) })
    await assert.rejects(left.serve(exchangeFor().exchange))
    assert.deepEqual(left.client.outcomes, ['a ignored'])
  })
})
