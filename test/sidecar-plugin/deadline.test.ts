import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { asSidecarError, type SidecarError } from '../../sidecar-plugin/src/errors.ts'
import type { Exchange, Reply } from '../../sidecar-plugin/src/layer.ts'
import { deadline } from '../../sidecar-plugin/src/layers/deadline.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { bodyOf, exchangeFor, replyOf } from './fakes.ts'

/** An inner service that answers when told, and fails when aborted, as the contract wants. */
function waiting() {
  let answer!: (reply: Reply) => void
  let calls = 0
  const service = (exchange: Exchange) =>
    new Promise<Reply>((resolve, reject) => {
      calls++
      answer = resolve
      exchange.signal.addEventListener('abort', () => reject(new Error('the socket broke')))
    })
  return { service, calls: () => calls, answer: (reply = replyOf()) => answer(reply) }
}

function begin(over: Parameters<typeof exchangeFor>[0] = {}, policyMs?: number) {
  const clock = new ManualClock()
  const inner = waiting()
  const { exchange, end } = exchangeFor(over)
  const layer = deadline({ clock, policyTimeoutMs: () => policyMs })
  const outcome: { reply?: Reply; error?: SidecarError } = {}
  const done = layer(inner.service)(exchange).then(
    (reply) => (outcome.reply = reply),
    (error: unknown) => (outcome.error = asSidecarError(error)),
  )
  return { clock, inner, exchange, end, outcome: () => outcome, done }
}

describe('a stated timeout', () => {
  test('ends the exchange with a deadline, whatever the abort broke inside', async () => {
    const { clock, outcome, exchange, done } = begin({}, 2_000)
    await clock.advance(1_999)
    assert.equal(outcome().error, undefined)
    await clock.advance(1)
    await done
    assert.equal(outcome().error?.reason, 'deadline')
    assert.equal(outcome().error?.status, 504)
    assert.equal(exchange.signal.aborted, true)
  })

  for (const [what, over] of Object.entries({
    'of nothing': { control: new Map([['timeout', '0ms']]) },
    'of nothing in the words of gRPC': { isGrpc: true, headers: ['grpc-timeout', '0m'] },
    'that was over while the service was looked for': { startedMs: -50, control: new Map([['timeout', '50ms']]) },
  }))
    test(`${what} ends before anything is sent`, async () => {
      const { clock, inner, outcome, done } = begin(over)
      await done
      assert.equal(outcome().error?.reason, 'deadline')
      assert.equal(outcome().error?.delivered, false)
      assert.equal(inner.calls(), 0)
      assert.equal(clock.pending, 0)
    })

  test('is the least of the policy’s and the caller’s', async () => {
    const lower = begin({ control: new Map([['timeout', '250ms']]) }, 2_000)
    await lower.clock.advance(250)
    assert.equal(lower.outcome().error?.reason, 'deadline')
    const higher = begin({ control: new Map([['timeout', '10s']]) }, 2_000)
    await higher.clock.advance(2_000)
    assert.equal(higher.outcome().error?.reason, 'deadline')
  })

  test('is what the sidecar before has left of it, but only inbound, where a sidecar says so', async () => {
    const control = new Map([['deadline', '40']])
    const inbound = begin({ direction: 'inbound', control })
    await inbound.clock.advance(40)
    assert.equal(inbound.outcome().error?.reason, 'deadline')
    const outbound = begin({ control })
    await outbound.clock.advance(40)
    assert.equal(outbound.outcome().error, undefined)
  })

  test('is as long as can be said', async () => {
    for (const left of ['1000000000', String(999_999_999 * 86_400_000)]) {
      const { clock, outcome } = begin({ direction: 'inbound', control: new Map([['deadline', left]]) })
      await clock.advance(999_999_999)
      assert.equal(outcome().error, undefined, left)
    }
  })

  test('is of the whole exchange: a body that takes too long is cut', async () => {
    const { clock, inner, exchange, outcome } = begin({}, 2_000)
    inner.answer()
    await settle()
    assert.equal(outcome().reply?.status, 200)
    await clock.advance(2_000)
    assert.equal((exchange.signal.reason as SidecarError).reason, 'deadline')
  })

  test('is over where a tunnel begins', async () => {
    const { clock, inner, exchange } = begin({}, 2_000)
    inner.answer(replyOf({ status: 101, tunnel: { protocol: 'websocket', open() {} } }))
    await settle()
    await clock.advance(3_600_000)
    assert.equal(exchange.aborted, undefined)
    assert.equal(clock.pending, 0)
  })

  test('leaves no timer behind once the answer has left', async () => {
    const { clock, inner, end } = begin({}, 2_000)
    inner.answer()
    end()
    await settle()
    assert.equal(clock.pending, 0)
  })
})

describe('a request that has not arrived', () => {
  const body = () => ({ ...bodyOf(true), flows: true })

  test('is its caller’s: what ends it says so', async () => {
    const { clock, outcome } = begin({ method: 'POST', body: body() }, 2_000)
    await clock.advance(2_000)
    assert.deepEqual([outcome().error?.reason, outcome().error?.status], ['request_timeout', 408])
  })

  test('is the node’s as long as that reads nothing', async () => {
    const { clock, outcome } = begin({ method: 'POST', body: { ...body(), flows: false } }, 2_000)
    await clock.advance(2_000)
    assert.equal(outcome().error?.reason, 'deadline')
  })

  test('is the node’s as long as its caller waits to be told to go on', async () => {
    const { clock, outcome } = begin({ headers: ['Expect', '100-continue'], method: 'POST', body: body() })
    await clock.advance(15_000)
    assert.equal(outcome().error?.reason, 'deadline')
  })

  test('is left to the connection’s own limit where no timeout is stated, and then the node has its time', async () => {
    const owed = body()
    const { clock, outcome } = begin({ method: 'POST', body: owed })
    await clock.advance(3_600_000)
    assert.equal(outcome().error, undefined)
    owed.flows = false
    await clock.advance(29_999)
    assert.equal(outcome().error, undefined)
    await clock.advance(1)
    assert.equal(outcome().error?.reason, 'deadline')
  })
})

describe('a caller is in a hurry', () => {
  const cases: [what: string, timeout: string | undefined, policyMs: number | undefined, isHurried: boolean][] = [
    ['with less than the default', '1s', undefined, true],
    ['with less than the policy', '15s', 20_000, true],
    ['not with as much as the policy', '2s', 2_000, false],
    ['not when nothing was stated', undefined, undefined, false],
    ['not when the policy alone is short', undefined, 1, false],
  ]
  for (const [what, timeout, policyMs, isHurried] of cases)
    test(what, () => {
      const control = new Map(timeout === undefined ? [] : [['timeout', timeout]])
      assert.equal(begin({ control }, policyMs).exchange.isHurried, isHurried)
    })
})

describe('without a stated timeout', () => {
  test('silence ends after fifteen seconds', async () => {
    const { clock, outcome } = begin()
    await clock.advance(14_999)
    assert.equal(outcome().error, undefined)
    await clock.advance(1)
    assert.equal(outcome().error?.reason, 'deadline')
  })

  test('a long upload goes on for as long as it moves', async () => {
    const { clock, exchange, outcome } = begin()
    for (let i = 0; i < 10; i++) {
      exchange.bytesIn += 1_000
      await clock.advance(14_000)
    }
    assert.equal(outcome().error, undefined)
    await clock.advance(30_000)
    assert.equal(outcome().error?.reason, 'deadline')
  })

  test('an event stream goes on for ever: only its head was waited for', async () => {
    const { clock, inner, exchange } = begin()
    inner.answer()
    await settle()
    await clock.advance(3_600_000)
    assert.equal(exchange.signal.aborted, false)
    assert.equal(clock.pending, 0)
  })
})
