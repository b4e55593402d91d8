/** What a caller pays for a node: `pick` and `resolve` from memory. */

import type { RegistryClient } from '@holdfast/registry-client'
import { systemClock } from '@holdfast/registry-client/clock'
import { clientOf, registryOf } from './memory-registry.ts'
import { median, print, ratio } from './table.ts'

const PICKS = 2_000_000
const ROUNDS = 5

/** Nanoseconds of one call, the median of several rounds. */
function timed(calls: number, run: (calls: number) => void): number {
  run(calls / 10)
  return median(
    Array.from({ length: ROUNDS }, () => {
      const startMs = systemClock.now()
      run(calls)
      return ((systemClock.now() - startMs) * 1e6) / calls
    }),
  )
}

function pickEach(client: RegistryClient, services: readonly string[]) {
  return (calls: number) => {
    for (let index = 0; index < calls; index++) client.pick(services[index % services.length]!).done('ok')
  }
}

export async function resolve(): Promise<void> {
  const rows: (string | number)[][] = []
  const thousand = Array.from({ length: 1000 }, (_, index) => `service-${index}`)

  const array = Array.from({ length: 100 }, (_, index) => ({ id: index, done(): void {} }))
  let turn = 0
  const bare = timed(PICKS, (calls) => {
    for (let index = 0; index < calls; index++) array[turn++ % array.length]!.done()
  })
  rows.push(['an array’s next element, nothing else', bare, ''])

  const wide = await clientOf(
    thousand,
    registryOf(
      () => 100,
      () => 100,
    ),
  )
  rows.push(['pick: 1,000 services × 100 nodes (aim: under 500 ns)', timed(PICKS, pickEach(wide, thousand)), ''])
  const startMs = systemClock.now()
  const resolves = 200_000
  for (let index = 0; index < resolves; index++) await wide.resolve(thousand[index % 1000]!)
  rows.push(['resolve from memory: 1,000 services × 100 nodes', ((systemClock.now() - startMs) * 1e6) / resolves, ''])
  await wide.close()
  print('pick and resolve, from memory', ['', 'ns', ''], rows)

  const growth: (string | number)[][] = []
  for (const [name, weightOf] of [
    ['equal weights', () => 100],
    ['ten weights', (index: number) => 10 * (1 + (index % 10))],
    ['a thousand weights', (index: number) => 1 + (index % 1000)],
  ] as const) {
    let smallest = NaN
    for (const nodes of [10, 100, 1_000, 10_000]) {
      const client = await clientOf(
        ['stock'],
        registryOf(() => nodes, weightOf),
      )
      const ns = timed(PICKS, pickEach(client, ['stock']))
      if (nodes === 10) smallest = ns
      growth.push([`${nodes.toLocaleString('en')} nodes, ${name}`, ns, ratio(ns, smallest)])
      await client.close()
    }
  }
  print('pick, as one service grows', ['', 'ns', 'against 10 nodes'], growth)
}
