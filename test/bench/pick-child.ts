/**
 * Counts what picks allocate: without a collection in between, and nothing else running, the heap grows by that alone.
 * Started with a young generation that holds all of it.
 */

import { Selector, type SelectorStrategy } from '../../registry-client/src/selection/selector.ts'
import { decodeView } from '@holdfast/registry-client/protocol'
import { systemClock, systemRandom } from '@holdfast/registry-client/clock'
import { clientOf, nodeOf, registryOf } from './memory-registry.ts'

const PICKS = 10_000_000
const collect = (globalThis as { gc?: () => void }).gc!

function bytesOf(run: (calls: number) => void): number {
  run(1_000_000)
  collect()
  const before = process.memoryUsage().heapUsed
  run(PICKS)
  return (process.memoryUsage().heapUsed - before) / PICKS
}

function selectorOf(strategy: SelectorStrategy, weights: number): Selector {
  const nodes = Array.from({ length: 1_000 }, (_, index) => nodeOf(index, 1 + (index % weights)))
  const selector = new Selector('stock', systemClock, systemRandom, strategy)
  selector.update(decodeView({ namespace: 'default', service: 'stock', cursor: 'bench:1', nodes, policy: null }))
  return selector
}

const rows: [string, number][] = []
rows.push([
  'an object for each, for scale',
  bytesOf((calls) => {
    const last: { at: number }[] = []
    for (let at = 0; at < calls; at++) last[at & 7] = { at }
  }),
])
for (const strategy of ['round_robin', 'random'] as const)
  for (const weights of [1, 100]) {
    const selector = selectorOf(strategy, weights)
    const name = `${strategy}, ${weights === 1 ? 'one weight' : `${weights} weights`}`
    rows.push([
      `pick of a selector: ${name}`,
      bytesOf((calls) => {
        for (let at = 0; at < calls; at++) selector.pick().done('ok')
      }),
    ])
  }
const selector = selectorOf('round_robin', 1)
const tried = new Set(['10.0.0.1:8080', '10.0.0.2:8080'])
rows.push([
  'pick of a selector: past two that were tried',
  bytesOf((calls) => {
    for (let at = 0; at < calls; at++) selector.pick(tried).done('ok')
  }),
])
const services = Array.from({ length: 1_000 }, (_, index) => `service-${index}`)
const client = await clientOf(
  services,
  registryOf(() => 100),
)
rows.push([
  'pick of a client: 1,000 services × 100 nodes',
  bytesOf((calls) => {
    for (let at = 0; at < calls; at++) client.pick(services[at % 1_000]!).done('ok')
  }),
])
process.stdout.write(JSON.stringify(rows))
process.exit(0)
