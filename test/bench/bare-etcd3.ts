/**
 * etcd3 alone, as a program would use it without a registry: `put ENDPOINT CONCURRENCY SECONDS BYTES`, or
 * `watch ENDPOINT KEY WATCHERS CHANGES`. Prints one line of JSON.
 */

import { Etcd3, type Watcher } from 'etcd3'

const [mode, endpoint, ...rest] = process.argv.slice(2)
const hosts = `http://${endpoint}`

async function put(concurrency: number, seconds: number, bytes: number): Promise<object> {
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
  timesMs.sort((a, b) => a - b)
  return { perSecond: timesMs.length / took, p50Ms: at(timesMs, 0.5), p99Ms: at(timesMs, 0.99) }
}

/** Each watcher has a connection of its own, as each sidecar would. */
async function watch(key: string, watchers: number, changes: number): Promise<object> {
  // Without it gRPC shares one connection among all clients of a process.
  const grpcOptions = { 'grpc.use_local_subchannel_pool': 1 }
  const open: { client: Etcd3; watcher: Watcher }[] = []
  let due = 0
  let arrived: (() => void) | undefined
  let timesMs: number[] = []
  for (let done = 0; done < watchers; done += 50)
    open.push(
      ...(await Promise.all(
        Array.from({ length: Math.min(50, watchers - done) }, async () => {
          const client = new Etcd3({ hosts, grpcOptions })
          const watcher = await client.watch().key(key).create()
          watcher.on('put', () => {
            timesMs.push(performance.now())
            if (--due === 0) arrived?.()
          })
          return { client, watcher }
        }),
      )),
    )
  const writer = new Etcd3({ hosts })
  const latencies: number[] = []
  for (let count = 0; count < changes + 5; count++) {
    due = watchers
    timesMs = []
    const all = new Promise<void>((resolve) => (arrived = resolve))
    await writer.put(key).value(`change ${count}`)
    const ackedMs = performance.now()
    await all
    if (count >= 5) for (const ms of timesMs) latencies.push(ms - ackedMs)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  latencies.sort((a, b) => a - b)
  return { p50Ms: at(latencies, 0.5), p99Ms: at(latencies, 0.99) }
}

function at(sorted: readonly number[], share: number): number {
  return sorted[Math.floor(sorted.length * share)] ?? NaN
}

const [first = '', second = '', third = ''] = rest
const result =
  mode === 'put'
    ? await put(Number(first), Number(second), Number(third))
    : await watch(first, Number(second), Number(third))
console.log(JSON.stringify(result))
process.exit(0)
