import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { Backoff, every, formatDuration, parseDuration, sleep, systemClock } from '@holdfast/registry-client/clock'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'

describe('backoff', () => {
  const options = { baseMs: 100, capMs: 10_000 }

  test('draws each delay below a ceiling that doubles up to the cap, and starts over after a reset', () => {
    const backoff = new Backoff(() => 1, options)
    const ceilings = Array.from({ length: 10 }, () => backoff.next())
    assert.deepEqual(ceilings, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000])
    for (let i = 0; i < 5_000; i++) assert.equal(backoff.next(), 10_000)
    backoff.reset()
    assert.equal(backoff.next(), 100)
  })

  test('spreads its delays evenly from zero to the ceiling', () => {
    const random = seededRandom(11)
    const buckets = new Array<number>(10).fill(0)
    const drawn = 10_000
    for (let i = 0; i < drawn; i++) buckets[Math.floor(new Backoff(random, options).next() / 10)]!++
    // Four standard deviations of a binomial with p = 0.1.
    const bound = 4 * Math.sqrt(drawn * 0.1 * 0.9)
    for (const [at, count] of buckets.entries())
      assert.ok(Math.abs(count - drawn / 10) < bound, `${count} of ${drawn} delays in tenth ${at}`)
  })
})

describe('sleep', () => {
  test('ends after its time, and not before', async () => {
    const clock = new ManualClock()
    let over = false
    void sleep(clock, 100).then(() => (over = true))
    await clock.advance(99)
    assert.equal(over, false)
    await clock.advance(1)
    assert.equal(over, true)
  })

  test('ends with its signal, and leaves neither timer nor listener', async () => {
    const clock = new ManualClock()
    const stop = new AbortController()
    const sleeping = sleep(clock, 100, stop.signal)
    stop.abort()
    await sleeping
    await sleep(clock, 100, stop.signal)
    assert.equal(clock.pending, 0)
    let listeners = 0
    const signal = {
      aborted: false,
      addEventListener: () => listeners++,
      removeEventListener: () => listeners--,
    } as unknown as AbortSignal
    const again = sleep(clock, 5, signal)
    assert.equal(listeners, 1)
    await clock.advance(5)
    await again
    assert.equal(listeners, 0)
  })
})

describe('every', () => {
  test('runs again and again until it is cancelled, also from within', async () => {
    const clock = new ManualClock()
    let runs = 0
    const cancel = every(clock, 10, () => {
      if (++runs === 3) cancel()
    })
    await clock.advance(100)
    assert.equal(runs, 3)
    assert.equal(clock.pending, 0)
  })

  test('goes on after a run that throws', () => {
    const clock = new ManualClock()
    let due: () => void = () => {}
    const cancel = every(
      { ...clock, now: () => 0, wall: () => 0, after: (_ms, run) => ((due = run), () => {}) },
      10,
      () => {
        throw new Error('this once')
      },
    )
    const first = due
    assert.throws(first, /this once/)
    assert.notEqual(due, first)
    cancel()
  })
})

describe('durations', () => {
  test('are read with their unit', () => {
    const known = { '250ms': 250, '15s': 15_000, '10m': 600_000, '1.5h': 5_400_000, '2d': 172_800_000, '0s': 0 }
    for (const [text, ms] of Object.entries(known)) assert.equal(parseDuration(text), ms)
  })

  test('are refused without one, or when they are something else', () => {
    const inputs = [
      '',
      '5',
      ' 5s',
      '5 s',
      '5s ',
      '-5s',
      '+5s',
      '5S',
      '5sec',
      '1e3s',
      '.5s',
      '5.s',
      '0x10s',
      '١s',
      '5s\n',
      5,
      null,
      undefined,
      {},
      ['5s'],
    ]
    for (const input of inputs) assert.equal(parseDuration(input), undefined, JSON.stringify(input))
  })

  test('written and read again are the same', () => {
    assert.equal(formatDuration(90_000), '90s')
    assert.equal(formatDuration(3_600_000), '1h')
    assert.equal(formatDuration(0), '0ms')
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 999_999_999 }), (ms) =>
        assert.equal(parseDuration(formatDuration(ms)), ms),
      ),
    )
  })
})

test('the system clock fires in its order, can be cancelled, and takes delays beyond what timers hold', async () => {
  const fired: string[] = []
  const cancelLong = systemClock.after(1e15, () => fired.push('in 30,000 years'))
  const cancel = systemClock.after(0, () => fired.push('cancelled'))
  cancel()
  cancel()
  const before = systemClock.now()
  await new Promise<void>((resolve) => void systemClock.after(-5, resolve))
  await settle()
  assert.ok(systemClock.now() >= before)
  cancelLong()
  assert.deepEqual(fired, [])
})
