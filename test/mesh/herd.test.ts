/** What the subscribers of a replica that is killed cost the one that they return to: real processes, and the client library whole. */

import assert from 'node:assert/strict'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { test, type TestContext } from 'node:test'
import { connect, type Network, type RegistryClient } from '@holdfast/registry-client'
import { every, systemClock, type Clock } from '@holdfast/registry-client/clock'
import { systemNetwork } from '../../registry-client/src/network.ts'
import { startEtcd, withoutEtcd } from '../support/etcd.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { eventually } from './mesh.ts'
import { ofOne, setUp, type Replica } from './replicas.ts'

const SERVICES = Array.from({ length: 10 }, (_, index) => `s${index}`)
const NODES = ['n0', 'n1', 'n2']
/** A connection of each is open here, and another at a replica; Node has raised its limit as far as it may. */
const SUBSCRIBERS = Math.min(5_000, openFiles() - 1_000)
/** What a replica with so many subscribers tells them to take for their return. */
const SPREAD_MS = Math.ceil(SUBSCRIBERS / 200) * 200
/** Handshakes under way at the start: a kernel's queue of them is short. */
const AT_ONCE = 100
/** Changes kept: the fewest that can be set, so that few have to be written until the first are forgotten. */
const HISTORY = 10_000
/** Of each wait, and of all: far longer than any takes. */
const WAIT_MS = 60_000
const TIMEOUT_MS = 200_000

function openFiles(): number {
  const { userLimits } = process.report.getReport() as { userLimits: { open_files: { soft: number | 'unlimited' } } }
  const { soft } = userLimits.open_files
  return soft === 'unlimited' ? Infinity : soft
}

type Resumes = Readonly<Record<'nothing' | 'change' | 'snapshot', number>>

/** A client library with ten services, overheard at its network. */
class Subscriber {
  client!: RegistryClient
  /** Frames, by what they said of which service. */
  readonly told = new Map<string, number>()
  spreadMs: number | undefined
  /** When its present stream opened, and whether that has brought anything. */
  openedMs: number | undefined
  isAnswered = false
  /** For how long it chose to wait when it heard of the loss. */
  delayMs: number | undefined
  /** Settled when it may hear that its stream ended. */
  news: Promise<void> = Promise.resolve()

  /** What the network brought. */
  note(text: string): void {
    const { event, data } = JSON.parse(text) as { event: string; data: { service?: string; spread?: number } }
    if (event === 'ping') this.spreadMs = data.spread
    else this.told.set(`${event} of ${data.service}`, (this.told.get(`${event} of ${data.service}`) ?? 0) + 1)
  }

  count(event: string): number {
    return [...this.told].reduce((sum, [what, count]) => (what.startsWith(event) ? sum + count : sum), 0)
  }

  cursorOf(service: string): string {
    const { epoch, revision } = this.client.peek(service)!.cursor
    return `${epoch}:${revision}`
  }

  picture(): string {
    return SERVICES.map((service) => pictureOf(service, this.cursorOf(service), this.client.peek(service)!.nodes)).join(
      '\n',
    )
  }
}

/** Everyone who watches, in this process. */
class Herd {
  readonly all = Array.from({ length: SUBSCRIBERS }, () => new Subscriber())
  readonly #random = seededRandom(7)
  #isLosing = false
  #noted: (subscriber: Subscriber) => void = () => {}

  async connect(first: Replica, second: Replica): Promise<void> {
    const left = [...this.all]
    const next = async () => {
      for (let subscriber = left.pop(); subscriber; subscriber = left.pop()) {
        // The start is at the first of them.
        let draws = 0
        subscriber.client = await connect({
          endpoints: [first.url, second.url],
          network: this.#networkOf(subscriber),
          clock: this.#clockOf(subscriber),
          random: () => (draws++ === 0 ? 0 : this.#random()),
          // Room for thousands of services would be most of what it needs, five thousand times.
          maxServices: SERVICES.length,
        })
        await Promise.all(SERVICES.map((service) => subscriber.client.resolve(service, { deadline: '60s' })))
      }
    }
    await Promise.all(Array.from({ length: AT_ONCE }, next))
  }

  /** Resolves once `test` was true of each, be it at different times. */
  async until(who: readonly Subscriber[], test: (subscriber: Subscriber) => boolean, what: string): Promise<void> {
    const waiting = new Set(who)
    await new Promise<void>((resolve, reject) => {
      const cancel = systemClock.after(WAIT_MS, () =>
        reject(new Error(`${what}: not by ${waiting.size} of ${who.length} in ${WAIT_MS} ms`)),
      )
      this.#noted = (subscriber) => {
        if (!waiting.has(subscriber) || !test(subscriber)) return
        waiting.delete(subscriber)
        if (waiting.size > 0) return
        cancel()
        resolve()
      }
      for (const subscriber of who) this.#noted(subscriber)
    })
  }

  /** Kills a replica that has them all. @returns what tells some of them */
  async lose(lost: Replica): Promise<(who: readonly Subscriber[]) => void> {
    for (const subscriber of this.all) subscriber.spreadMs = undefined
    // In pings, which come every ten seconds. From the last of them on all that are there have been counted.
    await this.until(this.all, ({ spreadMs }) => spreadMs !== undefined, 'told over which time to return')
    assert.deepEqual([...new Set(this.all.map(({ spreadMs }) => spreadMs))], [SPREAD_MS])
    const tell = new Map<Subscriber, () => void>()
    for (const subscriber of this.all) {
      subscriber.told.clear()
      subscriber.openedMs = subscriber.delayMs = undefined
      subscriber.news = new Promise((resolve) => tell.set(subscriber, resolve))
    }
    await lost.program.stop('SIGKILL')
    return (who) => {
      for (const subscriber of who) tell.get(subscriber)!()
    }
  }

  async close(): Promise<void> {
    // Some may never have come to be.
    await Promise.all(this.all.map(async ({ client }) => (client as RegistryClient | undefined)?.close()))
  }

  #networkOf(subscriber: Subscriber): Network {
    return {
      ...systemNetwork,
      open: (url, handlers) =>
        systemNetwork.open(url, {
          open: () => {
            subscriber.openedMs = performance.now()
            subscriber.isAnswered = false
            handlers.open()
          },
          message: (text) => {
            handlers.message(text)
            subscriber.isAnswered = true
            subscriber.note(text)
            this.#noted(subscriber)
          },
          close: (reason) =>
            void subscriber.news.then(() => {
              this.#isLosing = true
              handlers.close(reason)
              this.#isLosing = false
            }),
        }),
    }
  }

  /** The system's, with timers that wait with the news: who is to come late must not notice the silence either. */
  #clockOf(subscriber: Subscriber): Clock {
    return {
      ...systemClock,
      after: (ms, run) => {
        // The only timer that a client sets when it loses its stream is the one for the next.
        if (this.#isLosing) subscriber.delayMs ??= ms
        let isCancelled = false
        const cancel = systemClock.after(ms, () => {
          void subscriber.news.then(() => {
            if (!isCancelled) run()
          })
        })
        return () => {
          isCancelled = true
          cancel()
        }
      },
    }
  }
}

/** A view in words that can be compared. */
function pictureOf(service: string, cursor: string, nodes: readonly { readonly id: string }[]): string {
  const sorted = [...nodes].sort((one, other) => (one.id < other.id ? -1 : 1))
  return `${service} ${cursor} ${JSON.stringify(sorted)}`
}

async function viewsAt(replica: Replica) {
  const views = SERVICES.map(async (service) => {
    const { body } = await replica.ask('GET', `/v1/services/${service}`)
    return { service, cursor: body.cursor as string, nodes: body.nodes as { id: string }[] }
  })
  return Promise.all(views)
}

async function put(replica: Replica, nodes: readonly object[]): Promise<void> {
  const { status } = await replica.ask('PUT', '/v1/nodes', nodes)
  assert.equal(status, 200)
}

/** Asks a replica again and again what an operator, a service and a registrant would ask. */
function probe(replica: Replica) {
  const longestMs = { 'GET /readyz': 0, 'GET /v1/services/s0': 0, 'PUT /v1/services/probed/nodes/p': 0 }
  const refused: string[] = []
  let rounds = 0
  let round: Promise<void> | undefined
  const ask = async () => {
    for (const what of Object.keys(longestMs) as (keyof typeof longestMs)[]) {
      const [method, target] = what.split(' ') as [string, string]
      const body = method === 'PUT' ? { host: '10.0.0.9', port: 1, weight: 1 + (rounds % 1_000) } : undefined
      const startMs = performance.now()
      const answer = await replica.ask(method, target, body).catch((error: unknown) => String(error))
      longestMs[what] = Math.max(longestMs[what], performance.now() - startMs)
      if (typeof answer === 'string') refused.push(`${what}: ${answer}`)
      else if (answer.status >= 300) refused.push(`${what}: ${answer.status} ${JSON.stringify(answer.body)}`)
    }
    rounds++
    round = undefined
  }
  const cancel = every(systemClock, 20, () => void (round ??= ask()))
  return {
    refused,
    /** @returns what was measured */
    stop: async () => {
      cancel()
      await round
      const times = Object.entries(longestMs).map(([what, ms]) => `${what} ${Math.round(ms)} ms`)
      return `asked ${rounds} times, the longest answers: ${times.join(', ')}`
    },
  }
}

/** What a replica says of itself; the longest time that it was blocked is of the time since it was asked last. */
async function costsOf(replica: Replica) {
  const metrics = await replica.metrics()
  const { body } = await replica.ask('GET', '/v1/status')
  const { snapshotsSent, resumes } = body.subscribers as { snapshotsSent: number; resumes: Resumes }
  return {
    cpuSeconds: metrics.sum('process_cpu_seconds_total'),
    blockedMs: metrics.sum('nodejs_eventloop_lag_max_seconds') * 1_000,
    ...{ snapshotsSent, ...resumes },
    resumed: resumes.nothing + resumes.change + resumes.snapshot,
  }
}

interface Return {
  readonly who: readonly Subscriber[]
  readonly tell: (who: readonly Subscriber[]) => void
  readonly to: Replica
  /** What each is told of some services; of the others nothing. */
  readonly told: { readonly what: 'change' | 'snapshot'; readonly of: readonly string[] }
}

/** Lets some hear of the loss, and looks at everything until they have what the replica has that is left. */
async function comeBack(t: TestContext, herd: Herd, { who, tell, to, told }: Return): Promise<void> {
  const views = await viewsAt(to)
  const before = await costsOf(to)
  const probing = probe(to)
  t.after(() => probing.stop())
  const own = monitorEventLoopDelay({ resolution: 10 })
  own.enable()
  const startMs = performance.now()
  tell(who)
  await herd.until(
    who,
    // Who has it all is told so, in a ping.
    (subscriber) =>
      subscriber.openedMs !== undefined &&
      subscriber.isAnswered &&
      views.every(({ service, cursor }) => subscriber.cursorOf(service) === cursor),
    'back, with what the replica has',
  )
  const tookMs = performance.now() - startMs
  own.disable()
  const answers = await probing.stop()

  const each = told.of.map((service) => `1 ${told.what} of ${service}`).join()
  const ofEach = who.map((subscriber) => [...subscriber.told].map(([what, count]) => `${count} ${what}`).sort())
  assert.deepEqual([...new Set(ofEach.map(String))], [each], 'what each was told')

  const after = await eventually(
    () => costsOf(to),
    ({ resumed }) => resumed - before.resumed >= who.length * SERVICES.length,
    'all resumed',
  )
  const resumes = {
    nothing: after.nothing - before.nothing,
    change: after.change - before.change,
    snapshot: after.snapshot - before.snapshot,
  }
  const snapshotsSent = after.snapshotsSent - before.snapshotsSent

  const openedMs = who.map((subscriber) => subscriber.openedMs! - startMs).sort((one, other) => one - other)
  const perSecond = Array.from(
    { length: Math.ceil(openedMs.at(-1)! / 1_000) },
    (_, second) => openedMs.filter((ms) => Math.floor(ms / 1_000) === second).length,
  )
  const count = (event: string) => who.reduce((sum, subscriber) => sum + subscriber.count(event), 0)
  t.diagnostic(
    `${who.length} subscribers of ${SERVICES.length} services were back after ${Math.round(tookMs)} ms, told to take ` +
      `${SPREAD_MS} ms; the first came after ${Math.round(openedMs[0]!)} ms, the last after ` +
      `${Math.round(openedMs.at(-1)!)} ms, in each second ${perSecond.join(', ')}`,
  )
  t.diagnostic(
    `they were sent ${count('snapshot')} snapshots and ${count('change')} changes; by the replica's count ` +
      `${snapshotsSent} snapshots, and of the services resumed ${JSON.stringify(resumes)}`,
  )
  t.diagnostic(
    `it took ${(after.cpuSeconds - before.cpuSeconds).toFixed(2)} s of CPU for that, blocked for ` +
      `${Math.round(after.blockedMs)} ms at most; ${answers} (by this process, blocked for ` +
      `${Math.round(own.max / 1e6)} ms at most by the subscribers)`,
  )

  const expected = { nothing: who.length * (SERVICES.length - told.of.length), change: 0, snapshot: 0 }
  expected[told.what] = who.length * told.of.length
  assert.deepEqual(resumes, expected)
  assert.equal(snapshotsSent, expected.snapshot)
  const picture = views.map(({ service, cursor, nodes }) => pictureOf(service, cursor, nodes)).join('\n')
  assert.deepEqual([...new Set(who.map((subscriber) => subscriber.picture()))], [picture], 'what each has')
  assert.deepEqual(probing.refused, [])
  // What they chose: when they come depends on the machine too.
  for (let part = 1; part <= 5; part++) {
    const chosen = who.filter(({ delayMs }) => Math.ceil((delayMs! * 5) / SPREAD_MS) === part).length
    assert.ok(chosen < (who.length / 5) * 1.5, `${chosen} of ${who.length} in fifth ${part} of the time`)
  }
}

const skip = await withoutEtcd()

test('a replica is killed that has thousands of subscribers', { skip, timeout: TIMEOUT_MS }, async (t) => {
  const herd = new Herd()
  // Before the replicas end: they would all look for another.
  t.after(() => herd.close())
  const etcd = await startEtcd(t)
  const { replicas } = await setUp(t, ofOne(etcd), 2, `history: { changes: ${HISTORY} }`)
  const [first, second] = replicas as [Replica, Replica]
  await put(
    first,
    SERVICES.flatMap((service) => NODES.map((id) => ({ service, id, host: '10.0.0.1', port: 8080 }))),
  )
  const startMs = performance.now()
  await herd.connect(first, second)
  const rssMiB = process.memoryUsage.rss() / 1_048_576
  t.diagnostic(
    `${SUBSCRIBERS} client libraries after ${Math.round(performance.now() - startMs)} ms, in ${Math.round(rssMiB)} MiB`,
  )

  await t.test('those who have it all are sent nothing', async (t) => {
    const tell = await herd.lose(first)
    await comeBack(t, herd, { who: herd.all, tell, to: second, told: { what: 'change', of: [] } })
  })

  // It has no other history than what is in etcd.
  await first.start()
  const changed = SERVICES.slice(0, 5)
  // These hear of the same death only when history has gone on.
  const late = herd.all.slice(0, SUBSCRIBERS / 5)
  const tell = await herd.lose(second)

  await t.test('of what changed meanwhile they are sent the changes, merged', async (t) => {
    for (let round = 0; round < 10; round++)
      for (const service of changed) {
        const nodes = `/v1/services/${service}/nodes`
        const node = { host: '10.0.0.1', port: 9_000 + round }
        // New ones, one that changes again and again, and one that goes.
        const { status } = await (round === 9
          ? first.ask('DELETE', `${nodes}/n1`)
          : first.ask('PUT', `${nodes}/${round % 3 === 0 ? `new${round}` : 'n0'}`, node))
        assert.ok(status < 300, String(status))
      }
    await comeBack(t, herd, {
      ...{ who: herd.all.slice(late.length), tell, to: first },
      told: { what: 'change', of: changed },
    })
  })

  await t.test('who returns when history has gone on is sent what changed whole, and nothing else', async (t) => {
    // More changes than are kept, of a service that nobody watches.
    const batch = 2_000
    for (let written = 0; written <= HISTORY; written += batch)
      await put(
        first,
        Array.from({ length: batch }, (_, index) => ({
          ...{ service: 'elsewhere', id: `e${index}`, host: '10.0.0.3', port: 1 + written },
        })),
      )
    await comeBack(t, herd, { ...{ who: late, tell, to: first }, told: { what: 'snapshot', of: changed } })
  })
})
