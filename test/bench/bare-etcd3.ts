/**
 * etcd3 alone, as a program would use it without a registry: `put ENDPOINT CONCURRENCY SECONDS BYTES` prints one line
 * of JSON; `watch ENDPOINT KEY WATCHERS` prints `ready`, and for each line on its input makes a change and prints how
 * long each watcher took to hear of it, in ms from the acknowledgement on.
 */

import { createInterface } from 'node:readline'
import { Etcd3, type Watcher } from 'etcd3'
import { quantile } from './table.ts'

const [mode, endpoint, ...rest] = process.argv.slice(2)
const hosts = `http://${endpoint}`
const PATIENCE_MS = 5_000

async function put(concurrency: number, seconds: number, bytes: number): Promise<void> {
  const client = new Etcd3({ hosts })
  const value = 'x'.repeat(bytes)
  const timesMs: number[] = []
  let serial = 0
  const run = async (untilMs: number, record: boolean) => {
    await Promise.all(
      Array.from({ length: concurrency }, async () => {
        while (performance.now() < untilMs) {
          const startMs = performance.now()
          await client.put(`bare/node-${++serial}`).value(value)
          if (record) timesMs.push(performance.now() - startMs)
        }
      }),
    )
  }
  await run(performance.now() + 1000, false)
  const startMs = performance.now()
  await run(startMs + seconds * 1000, true)
  const took = (performance.now() - startMs) / 1000
  client.close()
  const perSecond = timesMs.length / took
  console.log(JSON.stringify({ perSecond, p50Ms: quantile(timesMs, 0.5), p99Ms: quantile(timesMs, 0.99) }))
}

/** Each watcher has a connection of its own, as each sidecar would. */
async function watch(key: string, watchers: number): Promise<void> {
  // Without it gRPC shares one connection among all clients of a process.
  const grpcOptions = { 'grpc.use_local_subchannel_pool': 1 }
  let due = 0
  let arrived: (() => void) | undefined
  let timesMs: number[] = []
  for (let done = 0; done < watchers; done += 50)
    await Promise.all(
      Array.from({ length: Math.min(50, watchers - done) }, async () => {
        const watcher = await begin(() => new Etcd3({ hosts, grpcOptions }), key)
        watcher.on('put', () => {
          timesMs.push(performance.now())
          if (--due === 0) arrived?.()
        })
      }),
    )
  const writer = new Etcd3({ hosts })
  let count = 0
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  console.log('ready')
  while (!(await lines.next()).done) {
    due = watchers
    timesMs = []
    const all = new Promise<void>((resolve) => (arrived = resolve))
    await writer.put(key).value(`change ${++count}`)
    const ackedMs = performance.now()
    await all
    console.log(JSON.stringify(timesMs.map((ms) => ms - ackedMs)))
  }
}

/** Of two thousand at once one may never hear that its watch was created: that one begins again. */
async function begin(connect: () => Etcd3, key: string): Promise<Watcher> {
  for (;;) {
    const client = connect()
    const watcher = await Promise.race([
      client.watch().key(key).create(),
      new Promise<undefined>((resolve) => setTimeout(() => resolve(undefined), PATIENCE_MS)),
    ])
    if (watcher) return watcher
    client.close()
  }
}

const [first = '', second = '', third = ''] = rest
if (mode === 'put') await put(Number(first), Number(second), Number(third))
else await watch(first, Number(second))
process.exit(0)
