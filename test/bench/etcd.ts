/** The registry on etcd beside etcd3 alone, against the same etcd: writes, the way of a change, starts, and cost. */

import { execFile } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type { WebSocket } from 'ws'
import { startEtcd, withoutEtcd, type Member } from '../support/etcd.ts'
import { KeptConnection, load, request, type LoadResult } from './http-load.ts'
import { propagation, subscribe } from './propagation.ts'
import { cpuOf, memoryOf, serve, type Server } from './servers.ts'
import { median, print, ratio } from './table.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const CONCURRENCY = 64
const SECONDS = 5
const BATCH = 100
const NODES = 100_000
/** Of each setting in turn, and one change each so many ms: the largest of them takes less. */
const COST_ROUNDS = 12
const COST_ROUND = 20
const COST_PACE_MS = 150

const run = promisify(execFile)
let serial = 0
let prefixes = 0

async function bare(...args: readonly (string | number)[]): Promise<Record<string, number>> {
  const { stdout } = await run(
    process.execPath,
    ['--import', 'tsx', path.join(ROOT, 'test/bench/bare-etcd3.ts'), ...args.map(String)],
    { cwd: ROOT },
  )
  return JSON.parse(stdout) as Record<string, number>
}

function replica(etcd: Member, prefix: string): Promise<Server> {
  const args = ['--port', '0', '--store', `etcd://${etcd.endpoint}`, '--etcd-prefix', prefix]
  return serve('registry-server/bin/holdfast-registry.js', () => args, false)
}

const freshPrefix = () => `/bench-${++prefixes}/`

function node() {
  serial++
  return {
    host: `10.${(serial >> 16) & 255}.${(serial >> 8) & 255}.${serial & 255}`,
    port: 8080,
    labels: { version: 'v1', build: '2026-01-15' },
    zone: 'zone-a',
  }
}

const single = () => {
  const body = node()
  return request('PUT', `/v1/services/service-${serial % 1000}/nodes/node-${serial}`, body)
}

const batch = () =>
  request(
    'PUT',
    '/v1/nodes',
    Array.from({ length: BATCH }, () => {
      const body = node()
      return { service: `service-${serial % 1000}`, id: `node-${serial}`, ...body }
    }),
  )

function mustSucceed({ statuses, ...result }: LoadResult): Omit<LoadResult, 'statuses'> {
  if (Object.keys(statuses).some((status) => !status.startsWith('2')))
    throw new Error(`answers other than 2xx: ${JSON.stringify(statuses)}`)
  return result
}

/** Registrations beside puts of values as large as a node's. */
async function writes(etcd: Member): Promise<void> {
  const rows: (string | number)[][] = []
  const alone = await bare('put', etcd.endpoint, CONCURRENCY, SECONDS, 300)
  rows.push(['etcd3 alone, puts', alone.perSecond!, alone.p50Ms!, alone.p99Ms!, ratio(1, 1)])
  for (const [what, next, nodes] of [
    ['one by one', single, 1],
    [`batches of ${BATCH}`, batch, BATCH],
  ] as const) {
    const server = await replica(etcd, freshPrefix())
    await load(server.port, { connections: CONCURRENCY, seconds: 1, next })
    const result = mustSucceed(await load(server.port, { connections: CONCURRENCY, seconds: SECONDS, next }))
    await server.stop()
    const perSecond = (result.answers / result.seconds) * nodes
    rows.push([`registry, ${what}`, perSecond, result.p50Ms, result.p99Ms, ratio(perSecond, alone.perSecond!)])
  }
  print(
    `nodes written per second to the same etcd, ${CONCURRENCY} at a time (aim: 0.8 times etcd3 one by one, 3 times in batches)`,
    ['', 'nodes/s', 'p50 ms', 'p99 ms', 'against etcd3 alone'],
    rows,
  )
}

/** A replica that comes up on a store of a hundred thousand nodes. */
async function starts(etcd: Member): Promise<void> {
  const prefix = freshPrefix()
  const empty = await replica(etcd, prefix)
  const emptyBytes = memoryOf(empty.pid).own
  mustSucceed(await load(empty.port, { connections: 4, requests: NODES / BATCH, next: batch }))
  await empty.stop()
  const times: number[] = []
  let bytes = 0
  for (let round = 0; round < 3; round++) {
    const startMs = performance.now()
    const server = await replica(etcd, prefix)
    // It listens before it has loaded.
    while ((await fetch(`http://127.0.0.1:${server.port}/readyz`)).status !== 200)
      await new Promise((resolve) => setTimeout(resolve, 20))
    times.push(performance.now() - startMs)
    await server.collectGarbage()
    bytes = memoryOf(server.pid).own
    await server.stop()
  }
  print(
    `start of a replica on ${NODES.toLocaleString('en')} nodes in etcd (aim: 5 s), and its memory`,
    ['', ''],
    [
      ['from the start of the process until ready, s', median(times) / 1000],
      ['resident, MiB', bytes / 1_048_576],
      ['of an empty one, MiB', emptyBytes / 1_048_576],
      ['bytes a node', Math.round((bytes - emptyBytes) / NODES).toLocaleString('en')],
    ],
  )
}

/** What subscribers cost etcd, for the same changes at the same pace: what etcd does at once it does for less. */
async function cost(etcd: Member): Promise<void> {
  let weight = 0
  const change = () =>
    request('PUT', '/v1/services/stock/nodes/one', { host: '10.0.0.1', port: 1, weight: (weight = (weight + 1) % 900) })
  const settings = await Promise.all(
    [10, 1_000, 5_000].map(async (count) => {
      const server = await replica(etcd, freshPrefix())
      const connection = await KeptConnection.open(server.port)
      await connection.ask(change())
      return { count, server, connection, sockets: [] as WebSocket[], cpu: 0, bytes: 0 }
    }),
  )
  const watches = (await etcd.gateway.metrics()).sum('etcd_debugging_mvcc_watcher_total')
  for (const setting of settings)
    setting.sockets = await subscribe(setting.server.port, 'stock', setting.count, () => {})
  const rows: (string | number)[][] = []
  const more = (await etcd.gateway.metrics()).sum('etcd_debugging_mvcc_watcher_total') - watches
  const idle = await meter(etcd, () => new Promise((resolve) => setTimeout(resolve, COST_ROUND * COST_PACE_MS)))
  for (let round = 0; round < COST_ROUNDS; round++)
    for (const setting of settings) {
      const used = await meter(etcd, async () => {
        for (let index = 0; index < COST_ROUND; index++) {
          const pace = new Promise((resolve) => setTimeout(resolve, COST_PACE_MS))
          await setting.connection.ask(change())
          await pace
        }
      })
      setting.cpu += used.cpu - idle.cpu
      setting.bytes += used.bytes - idle.bytes
    }
  for (const { count, server, connection, sockets, cpu, bytes } of settings) {
    connection.close()
    for (const socket of sockets) socket.terminate()
    await server.stop()
    const changes = COST_ROUNDS * COST_ROUND
    rows.push([`${count.toLocaleString('en')} subscribers`, Math.round(bytes / changes), (cpu * 1e6) / changes])
  }
  print(
    `what subscribers cost etcd (aim: the same for all): ${more} watches more for all of them together`,
    ['', 'bytes sent a change', 'CPU µs a change, idle time taken off'],
    rows,
  )
}

/** What etcd used of its CPU, in seconds, and sent while something ran. */
async function meter(etcd: Member, run: () => Promise<unknown>): Promise<{ cpu: number; bytes: number }> {
  const sent = async () => (await etcd.gateway.metrics()).sum('etcd_network_client_grpc_sent_bytes_total')
  const bytes = await sent()
  const cpu = cpuOf(etcd.pid)
  await run()
  const usedCpu = cpuOf(etcd.pid) - cpu
  return { cpu: usedCpu, bytes: (await sent()) - bytes }
}

export async function etcd(): Promise<void> {
  const missing = await withoutEtcd()
  if (missing) return console.log(`\netcd: ${missing}`)
  const ended: (() => void | Promise<void>)[] = []
  try {
    const member = await startEtcd({ after: (end) => void ended.push(end) })
    await writes(member)
    const prefix = freshPrefix()
    await propagation(member, () => replica(member, prefix))
    await starts(member)
    await cost(member)
  } finally {
    for (const end of ended.reverse()) await end()
  }
}
