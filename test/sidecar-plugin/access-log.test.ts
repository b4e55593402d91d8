import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { SidecarError } from '../../sidecar-plugin/src/errors.ts'
import type { Ending, Reply } from '../../sidecar-plugin/src/layer.ts'
import { accessLog, type AccessLogOptions } from '../../sidecar-plugin/src/layers/access-log.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { exchangeFor, replyOf } from './fakes.ts'

function log(over: Partial<AccessLogOptions> = {}) {
  const clock = new ManualClock()
  const lines: string[] = []
  const layer = accessLog({ clock, random: seededRandom(1), write: (line) => lines.push(line), ...over })
  const pass = async (
    { exchange, end }: ReturnType<typeof exchangeFor>,
    reply: Partial<Reply> = {},
    ending: Partial<Ending> = {},
  ) => {
    await layer(() => Promise.resolve(replyOf(reply)))(exchange)
    end(ending)
  }
  return { clock, lines, pass }
}

describe('the access log', () => {
  test('has a line of what is known of a request, when its answer has left', async () => {
    const { clock, lines, pass } = log()
    const asked = exchangeFor({ target: '/a?secret=1', method: 'POST' })
    asked.exchange.destination = { id: 'n1', host: '127.0.0.1', port: 1 }
    asked.exchange.attempts = 2
    asked.exchange.grpcStatus = '4'
    await clock.advance(12.3456)
    await pass(asked, { status: 201 }, { bytesIn: 5, bytesOut: 7 })
    assert.deepEqual(
      lines.map((line) => JSON.parse(line) as object),
      [
        {
          time: new Date(clock.wall()).toISOString(),
          direction: 'outbound',
          requestId: 'request-1',
          method: 'POST',
          path: '/a',
          service: 'stock',
          namespace: 'default',
          node: 'n1',
          peer: '127.0.0.1',
          status: 201,
          grpcStatus: '4',
          attempts: 2,
          durationMs: 12.346,
          bytesIn: 5,
          bytesOut: 7,
        },
      ],
    )
  })

  test('is one object a line, whatever callers and services say', () =>
    fc.assert(
      fc.asyncProperty(fc.array(fc.string({ unit: 'binary' }), { minLength: 6, maxLength: 6 }), async (said) => {
        const { lines, pass } = log()
        const [method, target, id, peer, service, node] = said as [string, string, string, string, string, string]
        const asked = exchangeFor({ method, target, id, peer, service })
        asked.exchange.destination = { id: node, host: '127.0.0.1', port: 1 }
        await pass(asked)
        assert.equal(lines.length, 1)
        assert.equal(lines[0]!.indexOf('\n'), lines[0]!.length - 1)
        const line = JSON.parse(lines[0]!) as Record<string, unknown>
        assert.deepEqual([line.method, line.requestId], [method, id])
        for (const [name, value] of Object.entries({ peer, service, node }))
          assert.equal(line[name], value === '' ? undefined : value)
      }),
    ))

  test('says when, also of two within a millisecond and of one after a clock was set back', async () => {
    const { clock, lines, pass } = log()
    const walls = [1_000, 1_000, 2_000, 1_500]
    clock.wall = () => walls.shift()!
    for (let i = 0; i < 4; i++) await pass(exchangeFor())
    const times = lines.map((line) => (JSON.parse(line) as { time: string }).time.slice(17))
    assert.deepEqual(times, ['01.000Z', '01.000Z', '02.000Z', '01.500Z'])
  })

  test('samples what went well, and nothing else', async () => {
    const { lines, pass } = log({ sample: 0.25 })
    for (let i = 0; i < 4_000; i++) await pass(exchangeFor())
    // Four standard deviations around a thousand.
    assert.ok(lines.length > 890 && lines.length < 1_110, `${lines.length} of 4,000`)
    for (const [reply, ending] of [
      [{ status: 500 }, {}],
      [{ status: 429, reason: 'overloaded' as const }, {}],
      [{}, { error: new SidecarError('caller_gone', 'gone') }],
    ] as const) {
      const before = lines.length
      for (let i = 0; i < 100; i++) await pass(exchangeFor(), reply, ending)
      assert.equal(lines.length - before, 100)
    }
  })

  test('of which nothing is wanted has only what failed', async () => {
    const { lines, pass } = log({ sample: 0 })
    for (let i = 0; i < 100; i++) await pass(exchangeFor())
    assert.equal(lines.length, 0)
    await pass(exchangeFor(), { status: 503 })
    assert.equal(lines.length, 1)
  })
})
