/** The registry on etcd beside etcd3 alone, against the same etcd: writes, the way of a change, starts, and cost. */

import { execFile } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { WebSocket } from 'ws'
import { startEtcd, withoutEtcd, type Member } from '../support/etcd.ts'
import { load, request, type LoadResult } from './http-load.ts'
import { cpuOf, memoryOf, serve, type Server } from './servers.ts'
import { median, print, ratio } from './table.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const CONCURRENCY = 64
const SECONDS = 5
const BATCH = 100
const NODES = 100_000
const CHANGES = 300
const COST_CHANGES = 500

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

/** From the acknowledgement on one replica to the subscribers of another. */
async function propagation(etcd: Member): Promise<void> {
  const rows: (string | number)[][] = []
  const prefix = freshPrefix()
  const writer = await replica(etcd, prefix)
  const reader = await replica(etcd, prefix)
  let weight = 0
  const change = () =>
    request('PUT', '/v1/services/stock/nodes/one', { host: '10.0.0.1', port: 1, weight: (weight = (weight + 1) % 900) })
  await load(writer.port, { connections: 1, requests: 1, next: change })
  for (const count of [1, 100, 2_000]) {
    let due = 0
    let arrived: (() => void) | undefined
    let timesMs: number[] = []
    const sockets = await subscribe(reader.port, 'stock', count, () => {
      timesMs.push(performance.now())
      if (--due === 0) arrived?.()
    })
    const latencies: number[] = []
    for (let round = 0; round < CHANGES + 5; round++) {
      due = count
      timesMs = []
      const all = new Promise<void>((resolve) => (arrived = resolve))
      await load(writer.port, { connections: 1, requests: 1, next: change })
      const ackedMs = performance.now()
      await all
      if (round >= 5) for (const ms of timesMs) latencies.push(ms - ackedMs)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    for (const socket of sockets) socket.terminate()
    latencies.sort((a, b) => a - b)
    const at = (share: number) => latencies[Math.floor(latencies.length * share)]!
    const alone = await bare('watch', etcd.endpoint, `bare/key-${count}`, count, CHANGES)
    rows.push(
      [`registry, ${count.toLocaleString('en')} subscribers of another replica`, at(0.5), at(0.99)],
      [`etcd3 alone, ${count.toLocaleString('en')} watches`, alone.p50Ms!, alone.p99Ms!],
    )
  }
  await writer.stop()
  await reader.stop()
  print(
    'from an acknowledged write to those who follow it (below zero: they had it before the author had the answer)',
    ['', 'p50 ms', 'p99 ms'],
    rows,
  )
}

/** WebSockets that follow one service, each past its first snapshot. */
async function subscribe(port: number, service: string, count: number, changed: () => void): Promise<WebSocket[]> {
  const sockets: WebSocket[] = []
  for (let done = 0; done < count; done += 100)
    sockets.push(
      ...(await Promise.all(
        Array.from(
          { length: Math.min(100, count - done) },
          () =>
            new Promise<WebSocket>((resolve, reject) => {
              const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/watch?service=${service}`)
              socket.once('error', reject)
              socket.on('message', (data: Buffer) => {
                const { event } = JSON.parse(data.toString()) as { event: string }
                if (event === 'snapshot') resolve(socket)
                else if (event === 'change') changed()
              })
            }),
        ),
      )),
    )
  return sockets
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

/** What subscribers cost etcd, for the same changes. */
async function cost(etcd: Member): Promise<void> {
  const rows: (string | number)[][] = []
  const prefix = freshPrefix()
  const server = await replica(etcd, prefix)
  let weight = 0
  const change = () =>
    request('PUT', '/v1/services/stock/nodes/one', { host: '10.0.0.1', port: 1, weight: (weight = (weight + 1) % 900) })
  await load(server.port, { connections: 1, requests: 1, next: change })
  for (const count of [10, 1_000, 5_000]) {
    const sockets = await subscribe(server.port, 'stock', count, () => {})
    const idle = cpuOf(etcd.pid)
    await new Promise((resolve) => setTimeout(resolve, 3_000))
    const idlePerSecond = (cpuOf(etcd.pid) - idle) / 3
    const before = await etcd.gateway.metrics()
    const cpu = cpuOf(etcd.pid)
    const startMs = performance.now()
    await load(server.port, { connections: 1, requests: COST_CHANGES, next: change })
    const seconds = (performance.now() - startMs) / 1000
    const after = await etcd.gateway.metrics()
    const used = cpuOf(etcd.pid) - cpu - idlePerSecond * seconds
    for (const socket of sockets) socket.terminate()
    const sent = 'etcd_network_client_grpc_sent_bytes_total'
    rows.push([
      `${count.toLocaleString('en')} subscribers`,
      after.sum('etcd_debugging_mvcc_watcher_total'),
      Math.round((after.sum(sent) - before.sum(sent)) / COST_CHANGES),
      (used * 1e6) / COST_CHANGES,
    ])
  }
  await server.stop()
  print(
    'what subscribers of a replica cost etcd (aim: the same for all)',
    ['', 'watches', 'bytes sent a change', 'CPU µs a change, idle time taken off'],
    rows,
  )
}

export async function etcd(): Promise<void> {
  const missing = await withoutEtcd()
  if (missing) return console.log(`\netcd: ${missing}`)
  const ended: (() => void | Promise<void>)[] = []
  try {
    const member = await startEtcd({ after: (end) => void ended.push(end) })
    await writes(member)
    await propagation(member)
    await starts(member)
    await cost(member)
  } finally {
    for (const end of ended.reverse()) await end()
  }
}
