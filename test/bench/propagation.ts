/**
 * From the acknowledgement of a change to those who follow it: through two replicas, through two that do nothing but
 * pass it on, and with etcd3 alone. One change of each in turn, so that whatever else the machine does meanwhile meets
 * all alike.
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { WebSocket } from 'ws'
import type { Member } from '../support/etcd.ts'
import { KeptConnection, request } from './http-load.ts'
import { serve, type Server } from './servers.ts'
import { print, quantile } from './table.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const CHANGES = 300
const WARM_UP = 50
const PAUSE_MS = 10

interface Way {
  readonly name: string
  /** Makes one change. @returns for each who follows, how many ms after the acknowledgement it arrived */
  change(): Promise<number[]>
  end(): void | Promise<void>
}

export async function propagation(etcd: Member, replica: () => Promise<Server>): Promise<void> {
  const rows: (string | number)[][] = []
  const servers = [await replica(), await replica()] as const
  const bare = () => serve('test/bench/bare-replica.ts', () => [etcd.endpoint, 'bare/passed-on'], false)
  const bares = [await bare(), await bare()] as const
  for (const count of [1, 100, 2_000]) {
    const ways = [
      await throughReplicas('two replicas of the registry', servers, count),
      await throughReplicas('two programs that pass it on', bares, count),
      await etcdAlone(etcd, count),
    ]
    const latencies = new Map(ways.map((way) => [way, [] as number[]]))
    for (let round = 0; round < WARM_UP + CHANGES; round++)
      for (const way of ways) {
        const times = await way.change()
        if (round >= WARM_UP) latencies.get(way)!.push(...times)
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
      }
    for (const way of ways) {
      await way.end()
      const times = latencies.get(way)!
      rows.push([count.toLocaleString('en'), way.name, ...[0.5, 0.9, 0.99].map((share) => quantile(times, share))])
    }
  }
  for (const server of [...servers, ...bares]) await server.stop()
  print(
    `ms from an acknowledged write to those who follow it, ${CHANGES} changes of each in turn (below zero: they had it first)`,
    ['followers', 'through', 'p50', 'p90', 'p99'],
    rows,
  )
}

/** Written to one, followed at the other. */
async function throughReplicas(name: string, [writer, reader]: readonly [Server, Server], count: number): Promise<Way> {
  let weight = 0
  const change = () =>
    request('PUT', '/v1/services/stock/nodes/one', { host: '10.0.0.1', port: 1, weight: (weight = (weight + 1) % 900) })
  const connection = await KeptConnection.open(writer.port)
  await connection.ask(change())
  let timesMs: number[] = []
  let arrived: (() => void) | undefined
  const sockets = await subscribe(reader.port, 'stock', count, () => {
    if (timesMs.push(performance.now()) === count) arrived?.()
  })
  return {
    name,
    change: async () => {
      timesMs = []
      const all = new Promise<void>((resolve) => (arrived = resolve))
      const status = await connection.ask(change())
      const ackedMs = performance.now()
      if (!status.startsWith('2')) throw new Error(`${name} answered ${status}`)
      await all
      return timesMs.map((ms) => ms - ackedMs)
    },
    end: () => {
      connection.close()
      for (const socket of sockets) socket.terminate()
    },
  }
}

async function etcdAlone(etcd: Member, count: number): Promise<Way> {
  const args = ['--import', 'tsx', path.join(ROOT, 'test/bench/bare-etcd3.ts')]
  const child = spawn(process.execPath, [...args, 'watch', etcd.endpoint, `bare/key-${count}`, String(count)], {
    stdio: ['pipe', 'pipe', 'inherit'],
    cwd: ROOT,
  })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const next = async () => {
    const line = await lines.next()
    if (line.done === true) throw new Error('etcd3 alone has ended')
    return line.value
  }
  await next()
  return {
    name: 'etcd3 alone, in one program',
    change: async () => {
      child.stdin.write('\n')
      return JSON.parse(await next()) as number[]
    },
    end: async () => {
      child.kill('SIGTERM')
      await once(child, 'exit')
    },
  }
}

/** WebSockets that follow one service, each past its first snapshot. */
export async function subscribe(
  port: number,
  service: string,
  count: number,
  changed: () => void,
): Promise<WebSocket[]> {
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
                // Read before it is taken apart: of two thousand the last would wait for all others' JSON.
                if (data.includes('change')) changed()
                else if (data.includes('snapshot')) resolve(socket)
              })
            }),
        ),
      )),
    )
  return sockets
}
