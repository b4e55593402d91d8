import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { SidecarError } from '../../sidecar-plugin/src/errors.ts'
import type { Ending, Reply } from '../../sidecar-plugin/src/layer.ts'
import { balance } from '../../sidecar-plugin/src/layers/balance.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { exchangeFor, FakeClient, replyOf } from './fakes.ts'

const TOO_LATE = new SidecarError('deadline', 'as told', { delivered: true })

/** What is said of the only node. */
async function verdict(reply: Reply | SidecarError, isHurried: boolean, ending: Partial<Ending> = {}) {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }])
  const { exchange, end } = exchangeFor()
  exchange.isHurried = isHurried
  const serve = balance({ picker: client, clock: new ManualClock() })(() =>
    reply instanceof SidecarError ? Promise.reject(reply) : Promise.resolve(reply),
  )
  await serve(exchange).catch(() => {})
  end(ending)
  return client.outcomes.join()
}

describe('an answer that comes too late counts against the node, unless its caller was in a hurry', () => {
  const cases: [what: string, reply: Reply | SidecarError, ending: Partial<Ending>, otherwise: string][] = [
    ['here', TOO_LATE, {}, 'a ignored'],
    ['at the sidecar there', replyOf({ status: 504, reason: 'deadline' }), {}, 'a ignored'],
    ['after its head', replyOf(), { error: TOO_LATE }, 'a ok'],
  ]
  for (const [what, reply, ending, otherwise] of cases)
    test(what, async () => {
      assert.equal(await verdict(reply, false, ending), 'a failed')
      assert.equal(await verdict(reply, true, ending), otherwise)
    })
})

test('a request that its caller did not finish says nothing about the node', async () => {
  assert.equal(await verdict(new SidecarError('request_timeout', 'as told', { delivered: true }), false), 'a ignored')
  assert.equal(await verdict(replyOf({ status: 408, reason: 'request_timeout' }), false), 'a ok')
})

test('a hurry excuses no other failure', async () =>
  assert.equal(await verdict(new SidecarError('upstream_reset', 'as told', { delivered: true }), true), 'a failed'))
