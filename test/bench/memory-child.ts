/** Prints what a node costs in a client, and as parsed JSON in plain maps: bytes of heap, nothing freed in between. */

import { clientOf, nodeOf, registryOf } from './memory-registry.ts'

const [services, nodes] = process.argv.slice(2).map(Number) as [number, number]
const collect = (globalThis as { gc?: () => void }).gc!

function used(): number {
  collect()
  return process.memoryUsage().heapUsed
}

const names = Array.from({ length: services }, (_, index) => `service-${index}`)
const text = JSON.stringify(Array.from({ length: nodes }, (_, index) => nodeOf(index)))
// What the first use of anything costs is no matter of nodes.
const warm = await clientOf(
  ['other'],
  registryOf(() => 10),
)
const empty = used()
const client = await clientOf(
  names,
  registryOf(() => nodes),
)
for (const name of names) client.pick(name).done('ok')
const full = used()
const plain = names.map(() => new Map((JSON.parse(text) as { id: string }[]).map((node) => [node.id, node])))
const both = used()
if (plain.length + client.views().length !== 2 * services || warm.views().length !== 1)
  throw new Error('something was lost')
const each = (bytes: number) => bytes / (services * nodes)
process.stdout.write(JSON.stringify([each(both - full), each(full - empty)]))
process.exit(0)
