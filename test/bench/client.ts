/** What a client costs where it lives: what a pick allocates, what a node holds in memory, what one change takes. */

import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { systemClock } from '@holdfast/registry-client/clock'
import { clientOf, nodeOf, registryOf } from './memory-registry.ts'
import { median, print, ratio } from './table.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const CHANGES = 5_000
const ROUNDS = 7

export async function client(): Promise<void> {
  allocations()
  memory()
  for (const isReplaced of [false, true]) await changes(isReplaced)
}

function allocations(): void {
  const args = ['--expose-gc', '--min-semi-space-size=1024', '--max-semi-space-size=1024', '--import', 'tsx']
  const output = execFileSync(process.execPath, [...args, path.join(ROOT, 'test/bench/pick-child.ts')], { cwd: ROOT })
  const rows = JSON.parse(output.toString()) as [string, number][]
  print('bytes that a pick allocates, over 10 million', ['', 'bytes'], rows)
}

/** Of what a client holds, beside the same documents parsed and kept in plain maps. */
function memory(): void {
  const rows = (
    [
      [1_000, 10],
      [1_000, 100],
      [10, 10_000],
    ] as const
  ).map(([services, nodes]) => {
    const args = ['--expose-gc', '--import', 'tsx', path.join(ROOT, 'test/bench/memory-child.ts')]
    const output = execFileSync(process.execPath, [...args, String(services), String(nodes)], { cwd: ROOT })
    const [plain, client] = JSON.parse(output.toString()) as [number, number]
    const shape = `${services.toLocaleString('en')} × ${nodes.toLocaleString('en')} nodes`
    return [shape, plain, client, ratio(client, plain)]
  })
  print('bytes of heap per node', ['', 'JSON in plain maps', 'client', ''], rows)
}

/** From a frame's text to a pick that knows it. */
async function changes(isReplaced: boolean): Promise<void> {
  const rows: (string | number)[][] = []
  let smallest = NaN
  for (const nodes of [10, 100, 1_000, 10_000, 100_000]) {
    const registry = registryOf(() => nodes)
    const made = await clientOf(['stock'], registry)
    let revision = 1
    const texts = (count: number) => {
      const from = revision
      revision += count
      return Array.from({ length: count }, (_, at) => {
        const [after, cursor] = [`bench:${from + at}`, `bench:${from + at + 1}`]
        const index = (Math.imul(from + at, 7919) >>> 0) % nodes
        // Either a node takes another weight, or the youngest leaves and a new one comes.
        const put = isReplaced ? nodeOf(nodes + from + at) : nodeOf(index, 100 + ((from + at) % 2))
        const gone = nodeOf(from + at === 1 ? index : nodes + from + at - 1) as { id: string }
        const time = '2026-01-01T00:00:00.000Z'
        const remove = isReplaced ? [{ id: gone.id, cause: 'deregistered', time, revision: from + at + 1 }] : []
        const data = { namespace: 'default', service: 'stock', after, cursor, put: [put], remove }
        return JSON.stringify({ event: 'change', id: cursor, data })
      })
    }
    const run = (messages: readonly string[]) => {
      const startMs = systemClock.now()
      for (const text of messages) {
        registry.send(text)
        made.pick('stock').done('ok')
      }
      return ((systemClock.now() - startMs) * 1000) / messages.length
    }
    run(texts(CHANGES))
    const us = median(Array.from({ length: ROUNDS }, () => run(texts(CHANGES))))
    if (made.peek('stock')?.cursor.revision !== revision) throw new Error('changes were lost')
    if (nodes === 10) smallest = us
    rows.push([`${nodes.toLocaleString('en')} nodes`, us, ratio(us, smallest)])
    await made.close()
  }
  const what = isReplaced ? 'a node leaves, another comes' : 'a node’s weight changes'
  print(`µs from a frame’s text to the pick after it: ${what}`, ['', 'µs', 'against 10 nodes'], rows)
}
