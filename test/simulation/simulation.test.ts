import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { describe } from './faults.ts'
import { PLANTED, plantedText } from './planted-faults.ts'
import { Edge } from './registry-replica.ts'
import { shrink } from './shrink.ts'
import { MAX_REPLICAS, World } from './world.ts'

const RUN = fileURLToPath(new URL('./run.ts', import.meta.url))

const edges = await Promise.all(Array.from({ length: MAX_REPLICAS }, () => Edge.create()))

// In a process of its own: here every promise would be followed for the sake of the test runner, at thrice the cost.
test('whatever fails, in two hundred runs, what must always be true is true after every step', async (context) => {
  const { code, output } = await simulate('--seeds', '200')
  const summary =
    output
      .trim()
      .split('\n')
      .findLast((line) => line.includes('simulated hours')) ?? ''
  context.diagnostic(summary)
  assert.equal(code, 0, output)
  const [, seeds, failed, checks] = /^(\d+) seeds, (\d+) failed, .*, (\d+) checks$/.exec(summary) ?? []
  assert.deepEqual([seeds, failed], ['200', '0'])
  assert.ok(Number(checks) > 20_000, `${checks} checks are hardly any`)
})

test('a seed is the same run each time', async () => {
  for (const seed of [3, 11]) {
    const [first, second] = [await new World({ seed, edges }).run(), await new World({ seed, edges }).run()]
    assert.equal(first.hash, second.hash, `seed ${seed}`)
    assert.equal(first.events, second.events)
    assert.notEqual(first.hash, (await new World({ seed: seed + 1, edges }).run()).hash)
  }
})

test('a part of a plan is a run of its own, and the rest of the world the same', async () => {
  const whole = new World({ seed: 5, edges }).plan
  assert.ok(whole.length > 1)
  const result = await new World({ seed: 5, edges, plan: [] }).run()
  assert.deepEqual(result.plan, [])
  assert.equal(result.violation, undefined)
  for (const fault of whole) assert.match(describe(fault), new RegExp(`s  ${fault.kind}`))
})

test('of many faults those are kept that are needed to fail', async () => {
  const items = Array.from({ length: 40 }, (_, index) => index)
  let runs = 0
  const kept = await shrink(items, async (part) => {
    runs++
    return part.includes(7) && part.includes(31)
  })
  assert.deepEqual(kept, [7, 31])
  assert.ok(runs < 60, `${runs} runs`)
})

for (const [name, fault] of Object.entries(PLANTED))
  test(`the fault ${name}, once planted, is found within ${fault.within} seeds`, async (context) => {
    const { code, output } = await simulate('--planted', name, '--seeds', String(fault.within))
    const [, seeds] = new RegExp(`${name} was found after (\\d+) seeds`).exec(output) ?? []
    context.diagnostic(`found after ${seeds} seeds`)
    assert.equal(code, 0, output)
    assert.ok(Number(seeds) <= fault.within, output)
  })

test('a fault that has no place in the product any more is not planted', () => {
  const fault = PLANTED['empty-push']!
  assert.throws(() => plantedText(fault, 'nothing like it'), /registry-client\/src\/cache\/gate.ts has 0 places of/)
  assert.throws(() => plantedText(fault, fault.find + fault.find), /has 2 places of/)
})

function simulate(...args: string[]): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, ['--import', 'tsx', RUN, ...args], { timeout: 240_000 }, (error, stdout, stderr) =>
      resolve({ code: error ? Number(error.code ?? 1) : 0, output: stdout + stderr }),
    )
  })
}
