/** Registrations per second, durable before each answer, and what a node costs in memory. */

import { cpuOf, memoryOf, serve, startRegistry, type Server } from './servers.ts'
import { load, request } from './http-load.ts'
import { print, ratio } from './table.ts'

const CONNECTIONS = 64
const SECONDS = 5
const BATCH = 100
const NODES = 100_000

let serial = 0

function node() {
  serial++
  return {
    host: `10.${(serial >> 16) & 255}.${(serial >> 8) & 255}.${serial & 255}`,
    port: 8080,
    labels: { version: 'v1', build: '2026-01-15' },
    zone: 'zone-a',
  }
}

function single(): string {
  const body = node()
  return request('PUT', `/v1/services/service-${serial % 1000}/nodes/node-${serial}`, body)
}

function batch(): string {
  const items = Array.from({ length: BATCH }, () => {
    const body = node()
    return { service: `service-${serial % 1000}`, id: `node-${serial}`, ...body }
  })
  return request('PUT', '/v1/nodes', items)
}

async function measure(server: Server, next: () => string) {
  await load(server.port, { connections: CONNECTIONS, seconds: 1, next })
  const cpu = cpuOf(server.pid)
  const result = await load(server.port, { connections: CONNECTIONS, seconds: SECONDS, next })
  const failed = Object.entries(result.statuses).filter(([status]) => !status.startsWith('2'))
  if (failed.length > 0) throw new Error(`answers other than 2xx: ${JSON.stringify(result.statuses)}`)
  return {
    ...result,
    perSecond: result.answers / result.seconds,
    cpuMicros: ((cpuOf(server.pid) - cpu) * 1e6) / result.answers,
  }
}

export async function registry(): Promise<void> {
  const rows: (string | number)[][] = []
  for (const [what, next, nodes] of [
    ['one by one', single, 1],
    [`batches of ${BATCH}`, batch, BATCH],
  ] as const) {
    const alone = await serve('test/bench/fastify-alone.ts', () => [])
    const bare = await measure(alone, next)
    await alone.stop()
    const ours = await startRegistry()
    const durable = await measure(ours, next)
    await ours.stop()
    for (const [name, result] of [
      ['registry, durable', durable],
      ['Fastify alone', bare],
    ] as const)
      rows.push([
        `${name}, ${what}`,
        result.perSecond * nodes,
        result.p50Ms,
        result.p99Ms,
        result.cpuMicros / nodes,
        ratio(result.perSecond, bare.perSecond),
      ])
  }
  print(
    `registrations over ${CONNECTIONS} connections, server on one core (aim: 5,000/s one by one, 20,000 nodes/s in batches)`,
    ['', 'nodes/s', 'p50 ms', 'p99 ms', 'CPU µs/node', 'against Fastify alone'],
    rows,
  )
  await nodeMemory()
}

async function nodeMemory(): Promise<void> {
  const server = await startRegistry()
  serial = 0
  await load(server.port, { connections: 4, requests: 10, next: batch })
  const before = await settled(server)
  await load(server.port, { connections: 4, requests: NODES / BATCH, next: batch })
  const after = await settled(server)
  await server.stop()
  const perNode = (bytes: number) => Math.round(bytes / NODES).toLocaleString('en')
  print(
    `memory of the registry at ${NODES.toLocaleString('en')} nodes of 1,000 services (aim: 1,500 bytes a node)`,
    ['', 'bytes/node'],
    [
      ['its own: heap and buffers, resident', perNode(after.own - before.own)],
      ['of it in use in the heap', perNode(after.heap - before.heap)],
      ['with the mapped pages of the store, which the system may take back', perNode(after.all - before.all)],
    ],
  )
}

/** Memory once the server has let go of what it dropped: collectors and allocators give back with delay. */
async function settled(server: Server): Promise<{ own: number; all: number; heap: number }> {
  let lowest = memoryOf(server.pid)
  for (let round = 0; round < 10; round++) {
    await server.collectGarbage()
    await new Promise((resolve) => setTimeout(resolve, 200))
    const now = memoryOf(server.pid)
    if (now.own < lowest.own) lowest = now
  }
  const status = (await (await fetch(`http://127.0.0.1:${server.port}/v1/status`)).json()) as {
    memoryBytes: { heapUsed: number }
  }
  return { ...lowest, heap: status.memoryBytes.heapUsed }
}
