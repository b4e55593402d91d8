/** What clients cost that come back all at once, when one of two replicas is lost. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect as open, type Socket } from 'node:net'
import { test, type TestContext } from 'node:test'
import { connect } from '@holdfast/registry-client'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { startReplicas, type TestReplica } from './shared-store.ts'
import { someNode } from './support.ts'

const SERVICES = Array.from({ length: 10 }, (_, index) => `s${index}`)
/** Both ends of each are here, and files and other sockets need some too. */
const SUBSCRIBERS = Math.min(5_000, Math.floor((openFiles() - 1_000) / 2))
/** Handshakes under way: a kernel's queue of them is short, and what it drops comes again a second later. */
const AT_ONCE = 100

function openFiles(): number {
  const { userLimits } = process.report.getReport() as { userLimits: { open_files: { soft: number | 'unlimited' } } }
  const { soft } = userLimits.open_files
  return soft === 'unlimited' ? Infinity : soft
}

/** A subscriber as bare bytes, since five thousand whole ones would measure themselves. */
class Bare {
  socket: Socket | undefined
  /** What the last connection was sent. */
  counts = { snapshot: 0, change: 0, ping: 0 }
  cursor = ''
  spreadMs = 0

  /** Resolves once everything is there up to some place, which it then holds. */
  follow(port: number): Promise<void> {
    const query = SERVICES.map((service) => `service=${service}`).join('&')
    const cursor = this.cursor && `&cursor=${this.cursor}`
    this.socket = open({ port, host: '127.0.0.1' })
    this.counts = { snapshot: 0, change: 0, ping: 0 }
    this.socket.write(
      `GET /v1/watch?${query}${cursor} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n` +
        'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
    )
    return new Promise((resolve, reject) => {
      let text = ''
      this.socket!.on('error', reject)
      this.socket!.on('data', (chunk) => {
        text += chunk.toString('latin1')
        const last = /"id":"([^"]+)","event":"\w+","data":.*$/s.exec(text)
        if (!last) return
        for (const [, event, spread] of text.matchAll(/"event":"(\w+)","data":(?:\{"spread":(\d+))?/g)) {
          this.counts[event as keyof Bare['counts']]++
          if (spread !== undefined) this.spreadMs = Number(spread)
        }
        this.cursor = last[1]!
        text = ''
        resolve()
      })
    })
  }
}

async function followAll(herd: readonly Bare[], { registry }: TestReplica): Promise<void> {
  const waiting = [...herd]
  const next = async () => {
    for (let bare = waiting.pop(); bare !== undefined; bare = waiting.pop()) await bare.follow(registry.port)
  }
  await Promise.all(Array.from({ length: AT_ONCE }, next))
}

/** The sockets of all streams end without a word, as with the process. */
async function kill({ registry, call }: TestReplica, herd: readonly Bare[]): Promise<void> {
  const { hub } = registry.parts
  const ended = herd.map(({ socket }) => {
    socket!.removeAllListeners('error')
    socket!.on('error', () => {})
    return once(socket!, 'close')
  })
  for (const { sink } of hub.subscribers()) (sink as unknown as { socket: Socket }).socket.destroy()
  await Promise.all(ended)
  while (hub.subscriberCount > 0) await call('GET', '/healthz')
}

/** @returns the cursor of those who know of it */
async function change(call: TestReplica['call'], services: readonly string[], round: number): Promise<string> {
  const nodes = services.map((service) => ({ service, id: `n${round}`, ...someNode }))
  const { status, headers } = await call('PUT', '/v1/nodes', nodes)
  assert.equal(status, 200)
  return headers.get('holdfast-cursor')!
}

function countOf(herd: readonly Bare[], event: keyof Bare['counts']): number {
  return herd.reduce((sum, { counts }) => sum + counts[event], 0)
}

async function herdOn(context: TestContext) {
  const clock = new ManualClock()
  const herd = Array.from({ length: SUBSCRIBERS }, () => new Bare())
  // Before the registries end, which would wait for an answer to their farewell.
  context.after(() => herd.forEach(({ socket }) => socket?.destroy()))
  const [first, second] = (await startReplicas(context, 2, { clock })) as [TestReplica, TestReplica]
  const cursor = await change(first.call, SERVICES, 0)
  for (const bare of herd) bare.cursor = cursor
  await followAll(herd, first)
  return { clock, first, second, herd }
}

test('a herd whose replica is killed costs the other no snapshot', async (context) => {
  const { clock, first, second, herd } = await herdOn(context)
  const pinged = herd.map(({ socket }) => once(socket!, 'data'))
  await clock.advance(10_000)
  await Promise.all(pinged)
  const spreadMs = Math.ceil(SUBSCRIBERS / 200) * 200
  assert.deepEqual(new Set(herd.map((bare) => bare.spreadMs)), new Set([spreadMs]), 'what each was told to take')

  await kill(first, herd)
  await followAll(herd, second)
  assert.deepEqual(
    [countOf(herd, 'snapshot'), countOf(herd, 'change'), countOf(herd, 'ping')],
    [0, 0, SUBSCRIBERS],
    'those who have it all are told so',
  )
  const { snapshotsSent, resumes } = second.registry.parts.hub.status()
  assert.equal(snapshotsSent, 0)
  assert.deepEqual(resumes, { nothing: SUBSCRIBERS * SERVICES.length, change: 0, snapshot: 0 })

  await kill(second, herd)
  const changed = SERVICES.slice(0, 5)
  for (let round = 0; round < 50; round++) await change(second.call, [changed[round % 5]!], round)
  const before = first.registry.parts.hub.status()
  await followAll(herd, first)
  assert.deepEqual([countOf(herd, 'snapshot'), countOf(herd, 'change')], [0, SUBSCRIBERS * changed.length])
  const after = first.registry.parts.hub.status()
  assert.equal(after.snapshotsSent, before.snapshotsSent)
  assert.deepEqual(after.resumes, {
    nothing: before.resumes.nothing + SUBSCRIBERS * (SERVICES.length - changed.length),
    change: SUBSCRIBERS * changed.length,
    snapshot: 0,
  })
})

test('client libraries go to the other replica within the time that the lost one named, with what they hold', async (context) => {
  const clock = new ManualClock()
  const [first, second] = (await startReplicas(context, 2, { clock })) as [TestReplica, TestReplica]
  await change(first.call, ['s0'], 0)
  const random = seededRandom(5)
  const clients = await Promise.all(
    Array.from({ length: 20 }, async () => {
      // The start is at the first of them; where to go next is the client's choice.
      let draws = 0
      const client = await connect({
        endpoints: [first.url, second.url],
        clock,
        random: () => (draws++ === 0 ? 0 : random()),
      })
      context.after(() => client.close())
      await client.resolve('s0')
      return client
    }),
  )
  const { hub } = first.registry.parts
  await clock.advance(10_000)
  for (const client of clients) while (client.status().connection.endpoint !== first.url) await settle()
  await change(first.call, ['s0'], 1)
  for (const client of clients) while (client.status().changes < 1) await settle()
  for (const { sink } of hub.subscribers()) (sink as unknown as { socket: Socket }).socket.destroy()
  for (const client of clients) while (client.status().connection.reachable) await settle()
  await clock.advance(200)
  while (second.registry.parts.hub.subscriberCount < clients.length) await second.call('GET', '/healthz')
  for (const client of clients) while (!client.status().connection.reachable) await settle()
  await change(second.call, ['s0'], 2)
  for (const client of clients) while (client.status().changes < 2) await settle()
  assert.deepEqual(
    new Set(clients.map((client) => `${client.status().snapshots} ${client.status().connection.reconnects}`)),
    new Set(['1 1']),
  )
  assert.equal(second.registry.parts.hub.status().snapshotsSent, 0)
})
