/** What peers may cost those who ask them: time, places, memory; and what they must not learn to show. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, test } from 'node:test'
import type { HttpAnswer } from '@holdfast/registry-client'
import { systemClock } from '@holdfast/registry-client/clock'
import { ByteBudget } from '../../registry-client/src/cache/byte-budget.ts'
import { Peers, type PeersAnswer } from '../../registry-client/src/cache/peers.ts'
import { Semaphore } from '../../registry-client/src/semaphore.ts'
import { systemNetwork } from '../../registry-client/src/network.ts'
import { world } from '../support/client-world.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { idsOf, snapshotOf } from '../support/sample-views.ts'
import { answer, problem, ScriptedNetwork, silence, type ScriptedCall } from '../support/scripted-network.ts'
import { seededRandom } from '../support/seeded-random.ts'

const MIB = 1_048_576
const PEERS = ['http://one:7503', 'http://two:7503']

function told(service: string, cursor: string, nodes: readonly string[]): HttpAnswer {
  return answer(200, { ...snapshotOf(cursor, nodes, { service }), age: 0 })
}

const serviceOf = ({ path }: ScriptedCall) => path.split('/').at(-1)!.split('?')[0]!
const hostOf = ({ url }: ScriptedCall) => new URL(url).hostname

/** Peers that answer as said, by the name of their host. */
function asking(respond: Readonly<Record<string, (call: ScriptedCall) => HttpAnswer | Promise<HttpAnswer>>>) {
  const network = new ScriptedNetwork()
  network.respond = (call) => respond[hostOf(call)]!(call)
  const clock = new ManualClock()
  const log = new MemoryLog()
  const urls = Object.keys(respond).map((host) => `http://${host}:7503`)
  const peers = new Peers({ urls, network, clock, random: seededRandom(1), log })
  const stop = new AbortController()
  return { network, clock, log, peers, stop, seek: (service: string) => peers.seek('default', service, stop.signal) }
}

/** An answer whose pieces come as the test says. */
function pieces(last: (call: ScriptedCall) => HttpAnswer) {
  const calls: ScriptedCall[] = []
  const ends: (() => void)[] = []
  return {
    respond: (call: ScriptedCall) =>
      new Promise<HttpAnswer>((resolve) => {
        calls.push(call)
        ends.push(() => resolve(last(call)))
      }),
    come: (bytes: number, index = 0) => calls[index]!.received!(bytes),
    end: async (index = 0) => {
      ends[index]!()
      await settle()
    },
  }
}

describe('a peer is waited for', () => {
  test('while its answer comes, however long that takes', async () => {
    const large = pieces(() => told('stock', 'e:5', ['a']))
    const { clock, peers, seek } = asking({ one: large.respond })
    const seeking = seek('stock')
    await clock.advance(800)
    for (let i = 0; i < 10; i++) {
      large.come(2 * MIB)
      await clock.advance(800)
    }
    await large.end()
    assert.deepEqual(idsOf((await seeking)?.view), ['a'])
    assert.deepEqual([peers.status().failed, clock.pending], [0, 0])
  })

  test('no longer once it is silent in the middle', async () => {
    const broken = pieces(() => told('stock', 'e:5', ['a']))
    const { clock, peers, seek, stop } = asking({ one: broken.respond })
    void seek('stock')
    await settle()
    broken.come(20 * MIB)
    await clock.advance(999)
    assert.equal(peers.status().failed, 0)
    await clock.advance(1)
    assert.equal(peers.status().lastError, 'http://one:7503: silent for 1000 ms')
    stop.abort()
  })

  test('no longer when it lets its answer drip', async () => {
    const dripping = pieces(() => told('stock', 'e:5', ['a']))
    const { clock, peers, seek, stop } = asking({ one: dripping.respond })
    void seek('stock')
    for (let i = 0; i < 30 && peers.status().failed === 0; i++) {
      await clock.advance(100)
      dripping.come(1_000)
    }
    assert.equal(peers.status().lastError, 'http://one:7503: too slow')
    assert.ok(clock.now() <= 1_300, `${clock.now()}`)
    stop.abort()
  })

  test('a second at most after another has answered, however well it goes on', async () => {
    const long = pieces(() => told('stock', 'e:9', ['b']))
    const { clock, peers, seek } = asking({ one: long.respond, two: () => told('stock', 'e:5', ['a']) })
    const seeking = seek('stock')
    for (let i = 0; i < 8; i++) {
      await clock.advance(125)
      if (peers.status().failed === 0) long.come(MIB)
    }
    assert.deepEqual(idsOf((await seeking)?.view), ['a'])
    assert.equal(peers.status().lastError, 'http://one:7503: slower than another')
  })

  test('as long as before by a process that stood still', async () => {
    const late = pieces(() => told('stock', 'e:5', ['a']))
    const { clock, peers, seek } = asking({ one: late.respond })
    const seeking = seek('stock')
    await clock.freeze(60_000)
    assert.equal(peers.status().failed, 0)
    await late.end()
    assert.deepEqual(idsOf((await seeking)?.view), ['a'])
  })

  test('on a real socket while a hundred thousand nodes come', async (t) => {
    const nodes = Array.from({ length: 100_000 }, (_, index) => `n${index}`)
    const body = told('stock', 'e:5', nodes).body
    const { port, close } = await listen((_request, response) => {
      // In pieces that take over a second together.
      const step = Math.ceil(body.length / 8)
      const send = (from: number) => {
        if (from >= body.length) return void response.end()
        response.write(body.slice(from, from + step))
        systemClock.after(200, () => send(from + step))
      }
      response.writeHead(200)
      send(0)
    })
    t.after(close)
    const options = { network: systemNetwork, clock: systemClock, random: seededRandom(1), log: new MemoryLog() }
    const peers = new Peers({ urls: [`http://127.0.0.1:${port}`], ...options })
    const startedMs = systemClock.now()
    const found = await peers.seek('default', 'stock', new AbortController().signal)
    t.diagnostic(`${body.length} bytes in ${Math.round(systemClock.now() - startedMs)} ms`)
    assert.deepEqual([found?.view.nodes.size, peers.status().failed], [100_000, 0])
  })
})

async function listen(serve: (request: IncomingMessage, response: ServerResponse) => void) {
  const server = createServer(serve).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = () => {
    server.close()
    server.closeAllConnections()
  }
  return { port: (server.address() as AddressInfo).port, close }
}

describe('a peer that is silent', () => {
  test('keeps the first waiting, and nobody after them: a thousand services are resolved by the other', async () => {
    const { network, clock, peers, seek } = asking({ one: silence, two: (call) => told(serviceOf(call), 'e:5', ['a']) })
    let resolved = 0
    for (let i = 0; i < 1_000; i++) void seek(`s${i}`).then((found) => (resolved += found ? 1 : 0))
    // The last ones may have to find out whether it speaks again.
    await clock.advance(2_000)
    assert.equal(resolved, 1_000)
    const waited = network.calls.filter((call) => hostOf(call) === 'one').length
    assert.ok(waited <= 34, `${waited} waited for it`)
    assert.equal(peers.status().skipped, 1_000 - waited)
  })

  test('is asked by one at a time whether it speaks again, and by all once it does', async () => {
    let isSilent = true
    let open = 0
    const { network, clock, peers, seek, stop } = asking({
      one: (call) => {
        if (!isSilent) return serviceOf(call) === 'stock' ? told('stock', 'e:5', ['a']) : problem(404, 'unknown')
        open++
        call.signal.addEventListener('abort', () => open--)
        return silence()
      },
    })
    const seeking = ['stock', 'x', 'y', 'z'].map(seek)
    await settle()
    assert.equal(open, 4)
    await clock.advance(1_000)
    for (let i = 0; i < 100; i++) {
      await clock.advance(100)
      assert.ok(open <= 1, `${open} ask at once`)
    }
    assert.ok(peers.status().skipped > 0)
    isSilent = false
    await clock.advance(1_000 + 10_100 + 10_100)
    assert.deepEqual(idsOf((await seeking[0])?.view), ['a'])
    const { skipped } = peers.status()
    const asked = network.calls.length
    await clock.advance(30_000)
    assert.equal(peers.status().skipped, skipped)
    assert.ok(network.calls.length > asked)
    stop.abort()
  })

  test('is none for what a peer that answers is asked next: it refuses, errs or breaks off', async () => {
    const { network, seek, clock, stop } = asking({
      one: (call) =>
        serviceOf(call) === 'busy'
          ? problem(429, 'too_many_requests')
          : serviceOf(call) === 'broken'
            ? Promise.reject(new Error('socket hang up'))
            : told(serviceOf(call), 'e:5', ['a']),
    })
    for (const service of ['busy', 'broken']) void seek(service)
    await settle()
    const found = await Promise.all([seek('a'), seek('b'), seek('c')])
    assert.deepEqual([found.every(Boolean), network.calls.length, clock.now()], [true, 5, 0])
    stop.abort()
  })
})

describe('a seek', () => {
  /** Peers that take longer than callers wait. */
  const slowly = (ms: number) => {
    const made = asking({
      one: (call) =>
        new Promise<HttpAnswer>((resolve) => {
          made.clock.after(ms, () => resolve(told(serviceOf(call), 'e:5', ['a'])))
        }),
    })
    const wait = async (service: string, forMs: number) => {
      const gone = new AbortController()
      made.clock.after(forMs, () => gone.abort())
      return made.peers.seek('default', service, gone.signal)
    }
    return { ...made, wait }
  }

  test('goes on while it asks though its caller has gone, and whoever comes then is answered by it', async () => {
    const { network, clock, wait } = slowly(600)
    const first = wait('stock', 500)
    await clock.advance(550)
    assert.equal(await first, undefined)
    const next = wait('stock', 500)
    await clock.advance(50)
    assert.deepEqual(idsOf((await next)?.view), ['a'])
    assert.equal(network.calls.length, 1)
  })

  test('ends with its caller where it only waits, and with the question that nobody waits for', async () => {
    const { network, clock, peers, wait, stop } = slowly(600)
    for (let i = 0; i < 40; i++) void wait(`s${i}`, 500)
    await clock.advance(550)
    assert.equal(network.calls.length, 32)
    assert.equal(network.calls[0]!.signal.aborted, false)
    await clock.advance(60_000)
    assert.deepEqual([network.calls.length, clock.pending], [32, 0])
    stop.abort()
    peers.close()
  })

  test('that is not begun yet begins anew for the next caller, and is one for all who wait', async () => {
    const { network, clock, wait } = slowly(100)
    const gone = new AbortController()
    gone.abort()
    const found = [wait('stock', 0), wait('stock', 500), wait('stock', 500)]
    await clock.advance(0)
    await clock.advance(100)
    assert.deepEqual(
      (await Promise.all(found)).map((one) => one && idsOf(one.view)),
      [undefined, ['a'], ['a']],
    )
    assert.equal(network.calls.length, 1)
  })

  test('of a client that is closed leaves no request behind', async () => {
    const made = world()
    made.network.respond = () => silence()
    const client = await made.start({ peers: PEERS })
    await made.network.stream.cut('connect ECONNREFUSED')
    const failing = client.resolve('stock', { deadline: '200ms' }).catch((error: Error) => error)
    await made.clock.advance(300)
    assert.equal(((await failing) as { code?: string }).code, 'unresolved')
    assert.ok(made.network.calls.length > 0)
    await client.close()
    await settle()
    assert.equal(made.clock.pending, 0)
    assert.ok(made.network.calls.every(({ signal }) => signal.aborted))
  })
})

describe('a rehearsal with peers', () => {
  const many = Array.from({ length: 200 }, (_, index) => ({ service: `s${index}` }))

  test('waits once for a peer that is silent, and says of each service that it did not ask it again', async () => {
    const made = world()
    made.network.respond = (call) => (hostOf(call) === 'one' ? silence() : told(serviceOf(call), 'e:5', ['a']))
    const client = await made.start({ peers: PEERS })
    const rehearsing = client.rehearse(many)
    await made.clock.advance(1_000)
    const found = await rehearsing
    const silent = made.network.calls.filter((call) => hostOf(call) === 'one').length
    assert.ok(silent <= 16, `${silent} waited for it`)
    for (const { levels } of found) {
      assert.equal(levels.peer.resolves, true)
      assert.match(levels.peer.unanswered![0]!, /^http:\/\/one:7503: (skipped: )?silent for 1000 ms$/)
    }
    assert.equal(found.filter(({ levels }) => levels.peer.unanswered![0]!.includes('skipped')).length, 200 - silent)
    // The next one finds out anew.
    const again = client.rehearse([{ service: 's0' }])
    await made.clock.advance(1_000)
    assert.match((await again)[0]!.levels.peer.unanswered![0]!, /7503: silent/)
    await client.close()
  })

  test('goes on asking a peer that answered wrongly or refused for one service', async () => {
    const { peers } = asking({
      one: (call) =>
        serviceOf(call) === 'wrong'
          ? told('other', 'e:5', ['a'])
          : serviceOf(call) === 'busy'
            ? problem(429, 'too_many_requests')
            : told(serviceOf(call), 'e:5', ['a']),
    })
    const rehearsal = peers.rehearsal(new AbortController().signal)
    assert.deepEqual((await rehearsal.ask('default', 'wrong')).unanswered, ['http://one:7503: it holds default/other'])
    assert.deepEqual((await rehearsal.ask('default', 'busy')).unanswered, ['http://one:7503: answered 429'])
    const { found, unanswered } = await rehearsal.ask('default', 'stock')
    assert.deepEqual([idsOf(found?.view), unanswered], [['a'], []])
  })

  test('ends with its signal, and leaves no request behind', async () => {
    const made = world()
    made.network.respond = () => silence()
    const client = await made.start({ peers: PEERS })
    const before = made.clock.pending
    const stop = new AbortController()
    const rehearsing = client.rehearse(many, { signal: stop.signal })
    await settle()
    const asked = made.network.calls.length
    assert.ok(asked > 0)
    stop.abort(new Error('gone'))
    await assert.rejects(rehearsing, /gone/)
    await settle()
    assert.deepEqual([made.network.calls.length, made.clock.pending], [asked, before])
    assert.ok(made.network.calls.every(({ signal }) => signal.aborted))
    assert.equal(client.status().peers.failed, 0)
    await client.close()
  })

  test('keeps nobody waiting who needs an answer, however many there are', async () => {
    const { network, peers, seek, stop } = asking({
      one: (call) => (serviceOf(call) === 'needed' ? told('needed', 'e:5', ['a']) : silence()),
    })
    const asked: Promise<PeersAnswer>[] = []
    for (let i = 0; i < 1_000; i++) asked.push(peers.rehearsal(stop.signal).ask('default', `s${i}`))
    await settle()
    assert.equal(network.calls.length, 8)
    assert.deepEqual(idsOf((await seek('needed'))?.view), ['a'])
    stop.abort()
    const answers = await Promise.all(asked)
    // Those that found no place in the line were told so.
    assert.equal(answers.filter(({ unanswered }) => unanswered[0] === 'too many ask at once').length, 1_000 - 8)
  })
})

describe('all answers together', () => {
  test('hold no more than is allowed: the largest under way gives way, and the others are chosen among', async () => {
    const bodies = new Map(
      ['one', 'two', 'three'].map((host, index) => [host, told('stock', `e:${index + 5}`, [host])]),
    )
    const large = pieces((call) => bodies.get(hostOf(call))!)
    const { peers, seek, log } = asking({ one: large.respond, two: large.respond, three: large.respond })
    const seeking = seek('stock')
    await settle()
    large.come(30 * MIB, 1)
    large.come(31 * MIB, 2)
    assert.equal(peers.status().crowded, 0)
    large.come(4 * MIB, 0)
    await large.end(0)
    await large.end(1)
    assert.deepEqual(idsOf((await seeking)?.view), ['two'])
    const { crowded, failed, lastError } = peers.status()
    assert.deepEqual([crowded, failed, lastError], [1, 0, 'http://three:7503: too much is answered at once'])
    assert.ok(log.lines.length > 0)
  })

  test('are let go of when they have been chosen among', async () => {
    const { peers, seek } = asking({
      one: (call) => {
        call.received!(31 * MIB)
        return told(serviceOf(call), 'e:5', ['a'])
      },
    })
    for (let i = 0; i < 10; i++) assert.ok(await seek(`s${i}`))
    assert.equal(peers.status().crowded, 0)
  })

  test('an answer that is alone and too large is cut off', async () => {
    const endless = pieces(() => told('stock', 'e:5', ['a']))
    const { peers, seek, stop, network } = asking({ one: endless.respond })
    void seek('stock')
    await settle()
    endless.come(32 * MIB)
    assert.equal(network.calls[0]!.signal.aborted, false)
    endless.come(1)
    await settle()
    assert.equal(peers.status().lastError, `http://one:7503: an answer of over ${32 * MIB} bytes`)
    stop.abort()
  })
})

test('of a client that holds few nodes, an answer of many times as many is cut off', async () => {
  const made = world()
  const endless = pieces(() => told('stock', 'e:5', ['a']))
  made.network.respond = endless.respond
  const client = await made.start({ peers: ['http://one:7503'], maxNodes: 1_000 })
  await made.network.stream.cut('connect ECONNREFUSED')
  const resolving = client.resolve('stock', { deadline: '1s' }).catch((error: unknown) => error)
  await settle()
  const most = 1_000 * 2_048
  endless.come(most)
  assert.equal(made.network.calls[0]!.signal.aborted, false)
  endless.come(1)
  await made.clock.advance(1_000)
  assert.equal(client.status().peers.lastError, `http://one:7503: an answer of over ${most} bytes`)
  await resolving
  await client.close()
})

describe('a budget of bytes', () => {
  test('lets the largest give way, never one that is kept, and counts no more what is released', () => {
    const budget = new ByteBudget(100)
    const gone: string[] = []
    const [kept, small, large] = ['kept', 'small', 'large'].map((name) => budget.open(() => gone.push(name)))
    kept!.grow(70)
    kept!.keep()
    small!.grow(10)
    large!.grow(16)
    assert.deepEqual([gone, budget.held], [[], 96])
    small!.grow(5)
    assert.deepEqual([gone, budget.held], [['large'], 85])
    large!.grow(50)
    assert.equal(budget.held, 85)
    kept!.release()
    kept!.release()
    assert.equal(budget.held, 15)
    small!.grow(85)
    small!.grow(1)
    assert.deepEqual([gone, budget.held], [['large', 'small'], 0])
  })
})

describe('slots', () => {
  test('are taken in turn, by so many at once, and no more wait than may', async () => {
    const slots = new Semaphore(2, 2)
    const order: string[] = []
    const enter = (name: string, signal?: AbortSignal) =>
      slots.enter(signal).then((isIn) => void order.push(`${name} ${isIn}`))
    const stop = new AbortController()
    const waiting = [enter('a'), enter('b'), enter('c', stop.signal), enter('d'), enter('e')]
    await settle()
    assert.deepEqual(order.sort(), ['a true', 'b true', 'e false'])
    stop.abort()
    await settle()
    slots.leave()
    await Promise.all(waiting)
    assert.deepEqual(order.slice(3), ['c false', 'd true'])
    slots.leave()
    slots.leave()
    assert.equal(await slots.enter(stop.signal), false)
    assert.deepEqual([await slots.enter(), await slots.enter()], [true, true])
  })
})

test('a password of a peer is for the peer: it is sent, and never shown', async (t) => {
  const seen: (string | undefined)[] = []
  const { port, close } = await listen((request, response) => {
    seen.push(request.headers.authorization)
    response.writeHead(500).end()
  })
  t.after(close)
  const log = new MemoryLog()
  const url = `http://user:hunter2@127.0.0.1:${port}`
  const options = { network: systemNetwork, clock: systemClock, random: seededRandom(1), log }
  const peers = new Peers({ urls: [url, 'http://user:hunter2@127.0.0.1:1'], ...options })
  const told = await peers.rehearsal(new AbortController().signal).ask('default', 'stock')
  const made = world()
  made.network.respond = () => Promise.reject(new Error('connect ECONNREFUSED'))
  const client = await made.start({ peers: [url] })
  const failing = client.resolve('stock', { deadline: '1s' }).catch((error: unknown) => error)
  await made.clock.advance(2_000)
  const error = (await failing) as Error & { tried: unknown }
  const all = [told, peers.status(), log.lines, client.status(), client.metrics(), made.log.lines, error.message]
  assert.doesNotMatch(JSON.stringify([...all, error.tried, await client.rehearse([{ service: 'stock' }])]), /hunter2/)
  assert.deepEqual(seen, [`Basic ${Buffer.from('user:hunter2').toString('base64')}`])
  await client.close()
})
