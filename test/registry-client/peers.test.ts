import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import type { ConnectOptions, HttpAnswer, RegistryClient } from '@holdfast/registry-client'
import { formatCursor, unaccounted, type View } from '@holdfast/registry-client/protocol'
import { systemNetwork } from '../../registry-client/src/network.ts'
import { PeerChoice, type PeerView } from '../../registry-client/src/cache/peer-choice.ts'
import { Peers } from '../../registry-client/src/cache/peers.ts'
import { failure, world, worldWithFile, type World } from '../support/client-world.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { MemoryLog } from '../support/memory-log.ts'
import { changeOf, idsOf, nodeOf, removalOf, snapshotOf, viewOf } from '../support/sample-views.ts'
import { answer, problem, silence, type ScriptedCall } from '../support/scripted-network.ts'
import { seededRandom } from '../support/seeded-random.ts'

const PEERS = ['http://one:7503', 'http://two:7503']

/** What a peer answers for `stock`. */
function told(cursor: string, nodes: readonly string[], age = 0, more: object = {}): HttpAnswer {
  return answer(200, { ...snapshotOf(cursor, nodes), source: 'memory', age, reachable: false, ...more })
}

/** A client whose registry refuses, and whose peers answer as said, by their host. */
async function besidePeers(
  answers: Record<string, HttpAnswer | (() => HttpAnswer | Promise<HttpAnswer>)>,
  options: Partial<ConnectOptions> = {},
  made: World = world(),
): Promise<{ made: World; client: RegistryClient; asked: () => ScriptedCall[] }> {
  made.network.respond = (call) => {
    const found = answers[new URL(call.url).hostname] ?? problem(404, 'service_not_found')
    return typeof found === 'function' ? found() : found
  }
  const client = await made.start({ peers: PEERS, ...options })
  await made.network.stream.cut('connect ECONNREFUSED')
  return { made, client, asked: () => made.network.calls.filter(({ path }) => path.startsWith('/v1/views/')) }
}

describe('a host that is new in the middle of an outage', () => {
  test('is answered by a peer, with the age that the view has there, and follows the service at once', async () => {
    const { made, client, asked } = await besidePeers({ one: told('e:5', ['a', 'b'], 90_000) })
    const found = await client.resolve('stock')
    assert.deepEqual([idsOf(found.view), found.source, found.age, found.reachable], [['a', 'b'], 'peer', 90_000, false])
    assert.ok(client.pick('stock'))
    assert.deepEqual(
      asked().map(({ url }) => url),
      PEERS.map((peer) => `${peer}/v1/views/stock?namespace=default`),
    )
    await made.clock.advance(10_000)
    assert.equal((await client.resolve('stock')).age, 100_000)
    assert.equal(asked().length, 2)
    await made.clock.advance(10_000)
    await made.network.stream.accept()
    // Hearsay is no base for a change: the whole view, of a registry that is as far.
    assert.deepEqual(made.network.stream.sent, [
      { type: 'subscribe', services: [{ namespace: 'default', service: 'stock' }], reach: 'e:5', ref: 1 },
    ])
    await made.network.stream.event('ping', {}, 'e:9')
    assert.equal((await client.resolve('stock')).source, 'peer')
    await made.network.stream.event('snapshot', snapshotOf('e:8', ['b', 'c']), 'e:9')
    const confirmed = await client.resolve('stock')
    assert.deepEqual([idsOf(confirmed.view), confirmed.source, confirmed.age], [['b', 'c'], 'memory', 0])
    await client.close()
  })

  test('keeps what a peer said for the next start, as old as it is', async () => {
    const { made, client } = await besidePeers({ two: told('e:5', ['a'], 60_000) })
    await client.resolve('stock')
    await client.close()
    made.network.respond = () => Promise.reject(new Error('connect ECONNREFUSED'))
    const again = await made.start()
    await made.clock.advance(5_000)
    const found = await again.resolve('stock')
    // Read from the file, which knows who said it.
    assert.deepEqual([idsOf(found.view), found.source, found.age], [['a'], 'peer', 65_000])
    assert.equal(again.metrics().levels.file.hits, 1)
    await again.close()
  })

  test('is answered after half a second when the registry neither answers nor refuses', async () => {
    const made = world()
    made.network.respond = () => told('e:5', ['a'])
    const client = await made.start({ peers: PEERS })
    const resolving = client.resolve('stock')
    await made.clock.advance(499)
    assert.equal(made.network.calls.length, 0)
    await made.clock.advance(1)
    assert.equal((await resolving).source, 'peer')
    await client.close()
    assert.equal(made.clock.pending, 0)
  })

  test('asks again, with pauses, for as long as someone waits and nobody knows', async () => {
    let isKnown = false
    const { made, client, asked } = await besidePeers({
      one: () => (isKnown ? told('e:5', ['a']) : problem(404, 'service_not_found')),
      two: () => Promise.reject(new Error('connect ECONNREFUSED')),
    })
    const resolving = client.resolve('stock', { deadline: '1m' })
    await made.clock.advance(20_000)
    const rounds = asked().length / 2
    assert.ok(rounds >= 3 && rounds <= 200, `${rounds} rounds`)
    isKnown = true
    await made.clock.advance(11_000)
    assert.equal((await resolving).source, 'peer')
    const after = asked().length
    await made.clock.advance(60_000)
    assert.equal(asked().length, after)
    await client.close()
  })

  test('asks nobody when nobody waits any more', async () => {
    const { made, client, asked } = await besidePeers({})
    const failing = failure(client.resolve('stock', { deadline: '1s' }))
    await made.clock.advance(1_000)
    const error = await failing
    assert.equal(error.code, 'unresolved')
    assert.deepEqual(error.tried[2], { level: 'peer', outcome: 'none of 2 knows it' })
    const after = asked().length
    await made.clock.advance(60_000)
    assert.equal(asked().length, after)
    assert.deepEqual(client.views(), [])
    await client.close()
    assert.equal(made.clock.pending, 0)
  })

  test('is told that a service is empty by the removal of its last node', async () => {
    const { client } = await besidePeers({ one: told('e:5', [], 0, { emptied: removalOf('a', 5) }) })
    const found = await client.resolve('stock')
    assert.deepEqual([found.nodes, found.source], [[], 'peer'])
    await client.close()
  })

  test('is helped too where it watches', async () => {
    const { client } = await besidePeers({ one: told('e:5', ['a']) })
    const views = client.watch('stock')
    const first = (await views.next()).value!
    assert.deepEqual([idsOf(first.view), first.source], [['a'], 'peer'])
    await views.return()
    await client.close()
  })

  test('is helped when the registry goes while someone waits for it', async () => {
    const made = world()
    made.network.respond = () => told('e:5', ['a'])
    const client = await made.start({ peers: PEERS })
    await made.network.stream.accept()
    const resolving = client.resolve('stock')
    await made.clock.advance(2_000)
    assert.equal(made.network.calls.length, 0)
    await made.network.stream.cut()
    assert.equal((await resolving).source, 'peer')
    await client.close()
  })

  test('believes the registry rather, when it comes back before a peer has answered', async () => {
    let letGo: (late: HttpAnswer) => void = () => {}
    const { made, client } = await besidePeers({ one: () => new Promise((resolve) => (letGo = resolve)) })
    const resolving = client.resolve('stock', { deadline: '1m' })
    await made.clock.advance(300)
    await made.network.stream.accept()
    letGo(told('e:5', ['late']))
    await settle()
    await made.network.stream.event('snapshot', snapshotOf('e:9', ['a']), 'e:9')
    assert.deepEqual(idsOf((await resolving).view), ['a'])
    await client.close()
  })
})

describe('peers are not asked', () => {
  test('where memory or file knows the service', async () => {
    const made = await worldWithFile('a')
    await made.clock.advance(1_000)
    const { client, asked } = await besidePeers({ one: told('e:9', ['b']) }, {}, made)
    assert.equal((await client.resolve('stock')).source, 'file')
    const failing = failure(client.resolve('stock', { maxStale: 0, deadline: '10s' }))
    await made.clock.advance(10_000)
    assert.equal((await failing).code, 'stale')
    assert.deepEqual(asked(), [])
    await client.close()
  })

  test('while the registry is connected, and by those who only look up', async () => {
    const made = world()
    made.network.respond = () => told('e:5', ['a'])
    const client = await made.start({ peers: PEERS })
    await made.network.stream.accept()
    const failing = failure(client.resolve('stock', { deadline: '3s' }))
    await made.clock.advance(3_000)
    assert.equal((await failing).code, 'unresolved')
    await made.network.stream.cut()
    assert.equal(await client.lookup('stock'), undefined)
    await settle()
    assert.deepEqual(made.network.calls, [])
    await client.close()
  })
})

describe('an answer that is none', () => {
  const wrong: Record<string, HttpAnswer | (() => Promise<HttpAnswer>)> = {
    'of another service': answer(200, { ...snapshotOf('e:5', ['a'], { service: 'other' }), age: 0 }),
    'of another namespace': answer(200, { ...snapshotOf('e:5', ['a'], { namespace: 'blue' }), age: 0 }),
    'that the service is unknown': told('e:0', []),
    'without an age': answer(200, snapshotOf('e:5', ['a'])),
    'with an age below zero': told('e:5', ['a'], -1),
    'with an age that is text': told('e:5', ['a'], 0, { age: '5' }),
    'with an age without end': { ...answer(200), body: told('e:5', ['a'], 8).body.replace('"age":8', '"age":1e309') },
    'with a node that cannot be': told('e:5', [], 0, { nodes: [{ ...nodeOf('a'), port: 0 }] }),
    'with a cursor that cannot be': told('e:5', ['a'], 0, { cursor: 'e' }),
    'without nodes, and without proof that there are none': told('e:5', []),
    'that is no JSON': { ...answer(200), body: '<html>' },
    'that is null': answer(200, null),
    'that is empty': answer(200),
    'of an error': problem(500, 'internal_error'),
    'that refuses': problem(429, 'too_many_requests'),
    'that never comes': silence,
    'that breaks off': () => Promise.reject(new Error('socket hang up')),
    'that has no end': { ...answer(200), body: ' '.repeat(32 * 1_048_576 + 1) },
  }
  for (const [what, bad] of Object.entries(wrong))
    test(`${what} resolves nothing, and leaves the word to another peer`, async () => {
      const { made, client } = await besidePeers({ one: bad })
      const failing = failure(client.resolve('stock', { deadline: '2s' }))
      await made.clock.advance(2_000)
      const error = await failing
      assert.equal(error.code, 'unresolved')
      assert.match(error.tried[2]!.outcome, /^none of 2 knows it; http:\/\/one:7503: /)
      assert.ok(client.status().peers.failed > 0)
      assert.deepEqual([client.views(), [...made.disk.files.keys()]], [[], []])
      await client.close()
      const beside = await besidePeers({ one: bad, two: told('e:5', ['a']) })
      const resolving = beside.client.resolve('stock')
      await beside.made.clock.advance(1_000)
      assert.deepEqual(idsOf((await resolving).view), ['a'])
      await beside.client.close()
    })
})

test('a view of which nobody knows the age, since its file is dated in the future, is better than none', async () => {
  const tenYearsMs = 10 * 365 * 86_400_000
  for (const age of [tenYearsMs, tenYearsMs + 1, 56 * 365 * 86_400_000, Number.MAX_VALUE]) {
    const { made, client } = await besidePeers({ one: told('e:5', ['a'], age) })
    const found = await client.resolve('stock')
    assert.deepEqual([idsOf(found.view), found.age], [['a'], tenYearsMs])
    await client.close()
    const again = await made.start()
    await made.network.stream.cut('connect ECONNREFUSED')
    assert.deepEqual(idsOf((await again.resolve('stock')).view), ['a'])
    await again.close()
  }
})

describe('of several answers', () => {
  const heard = (view: View, heardMs = 0): PeerView => ({ view, heardMs, peer: '' })
  const choose = (found: readonly PeerView[]) => {
    const choice = new PeerChoice()
    for (const next of found) choice.add(next)
    return choice.best
  }
  const chosen = (...found: PeerView[]) => {
    const both = [choose(found), choose([...found].reverse())].map((best) => best && formatCursor(best.view.cursor))
    assert.equal(both[0], both[1], 'the order of the answers decides')
    return both[0]
  }

  test('the highest cursor of one epoch is taken, however old its confirmation', () => {
    assert.equal(chosen(heard(viewOf('e:5', ['a']), 100), heard(viewOf('e:7', ['b']), 0)), 'e:7')
    assert.equal(chosen(), undefined)
  })

  test('of several epochs the one that was confirmed last', () => {
    assert.equal(chosen(heard(viewOf('e:500', ['a']), 0), heard(viewOf('f:1', ['b']), 10)), 'f:1')
    const all = [heard(viewOf('e:5', ['a']), 0), heard(viewOf('e:4', ['a']), 50), heard(viewOf('f:1', ['b']), 10)]
    assert.equal(chosen(...all), 'e:5')
  })

  test('one without nodes is taken only with proof', () => {
    const nodes = heard(viewOf('e:5', ['a']), 0)
    assert.equal(chosen(nodes, heard(viewOf('e:7'), 10)), 'e:5')
    assert.equal(chosen(nodes, heard(viewOf('f:7'), 10)), 'e:5')
    assert.equal(chosen(nodes, heard(viewOf('e:7', [], { emptied: removalOf('a', 7) }), 10)), 'e:7')
    assert.equal(chosen(heard(viewOf('e:7'), 10)), 'e:7')
  })

  test('what is let go of while they come would not have been taken of all of them', () => {
    const anyView = fc
      .record({
        epoch: fc.constantFrom('e', 'f', 'g'),
        revision: fc.integer({ min: 1, max: 6 }),
        nodes: fc.subarray(['a', 'b']),
        emptied: fc.option(fc.record({ id: fc.constantFrom('a', 'b'), revision: fc.integer({ min: 1, max: 6 }) })),
        heardMs: fc.integer({ min: 0, max: 20 }),
      })
      .map(({ epoch, revision, nodes, emptied, heardMs }) => {
        const removal = nodes.length === 0 && emptied ? { emptied: removalOf(emptied.id, emptied.revision) } : {}
        return heard(viewOf(`${epoch}:${revision}`, nodes, removal), heardMs)
      })
    // Two confirmed at the same moment at the same place differ in nothing that decides.
    const placeOf = ({ view, heardMs }: PeerView) => `${formatCursor(view.cursor)} ${heardMs}`
    fc.assert(
      fc.property(fc.uniqueArray(anyView, { maxLength: 8, selector: placeOf }), (found) => {
        const choice = new PeerChoice()
        const kept = new Set<PeerView>()
        for (const next of found) {
          kept.add(next)
          const gone = choice.add(next)
          if (gone) assert.ok(kept.delete(gone))
        }
        assert.equal(choice.best, chooseAmongAll(found))
        assert.ok(choice.best === undefined || kept.has(choice.best))
        const withNodes = [...kept].filter(({ view }) => view.nodes.size > 0)
        assert.equal(new Set(withNodes.map(({ view }) => view.cursor.epoch)).size, withNodes.length)
      }),
      { numRuns: 2_000, seed: 4 },
    )
  })

  test('the call is answered so', async () => {
    const { client } = await besidePeers({ one: told('e:5', ['old'], 10), two: told('e:9', ['new'], 20_000) })
    const found = await client.resolve('stock')
    assert.deepEqual([idsOf(found.view), found.age], [['new'], 20_000])
    await client.close()
  })
})

describe('a peer that was wrong', () => {
  test('cannot empty a service that the registry does not: nor can it keep one that the registry empties with proof', async () => {
    const { made, client } = await besidePeers({ one: told('e:5', ['a']) })
    await client.resolve('stock')
    await made.clock.advance(10_000)
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('e:7'), 'e:9')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    assert.equal(client.status().quarantined[0]?.reason, 'empty')
    await made.network.stream.event('snapshot', snapshotOf('e:8', [], { emptied: removalOf('a', 8) }), 'e:9')
    assert.deepEqual((await client.resolve('stock')).nodes, [])
    await client.close()
  })

  test('about the content of a place that the registry knows is corrected there', async () => {
    const { made, client } = await besidePeers({ one: told('e:5', ['forged']) })
    await client.resolve('stock')
    await made.clock.advance(10_000)
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:5')
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a'])
    await client.close()
  })

  test('or ahead of a registry that lags is believed until the registry has gone past it', async () => {
    const { made, client } = await besidePeers({ one: told('e:900', ['ahead']) })
    await client.resolve('stock')
    await made.clock.advance(10_000)
    await made.network.stream.accept()
    await made.network.stream.event('snapshot', snapshotOf('e:5', ['a']), 'e:100')
    await made.network.stream.event('change', changeOf('e:5', 'e:101', ['b']), 'e:101')
    const believed = await client.resolve('stock')
    assert.deepEqual([idsOf(believed.view), believed.source], [['ahead'], 'peer'])
    assert.ok(believed.age >= 10_000, `${believed.age}`)
    await made.network.stream.event('change', changeOf('e:101', 'e:901', ['c']), 'e:901')
    const corrected = await client.resolve('stock')
    assert.deepEqual([idsOf(corrected.view), corrected.source], [['a', 'b', 'c'], 'memory'])
    await client.close()
  })
})

describe('what a peer is told', () => {
  test('is what the registry last said, from memory or file, and nothing is followed for it', async () => {
    const made = await worldWithFile('a')
    await made.clock.advance(7_000)
    const client = await made.start()
    await made.network.stream.accept()
    const known = await client.lookup('stock')
    assert.deepEqual([idsOf(known?.view), known?.age, known?.source], [['a'], 7_000, 'file'])
    assert.equal(client.status().services, 0)
    assert.deepEqual(made.network.stream.subscribed, [])
    assert.equal(await client.lookup('never'), undefined)
    await assert.rejects(client.lookup('../x'), TypeError)
    await client.close()
  })

  test('is no override; and of what a quarantine keeps it says so', async () => {
    const made = await worldWithFile('a', 'b')
    made.disk.write('/cache/default/stock.override.json', JSON.stringify({ nodes: [{ host: '10.0.0.9', port: 80 }] }))
    const client = await made.start()
    await made.network.stream.accept()
    assert.equal((await client.resolve('stock')).overridden, true)
    assert.deepEqual(idsOf((await client.lookup('stock'))?.view), ['a', 'b'])
    await made.network.stream.event('snapshot', snapshotOf('wiped:3', ['c']), 'wiped:3')
    const known = await client.lookup('stock')
    assert.deepEqual([idsOf(known?.view), formatCursor(known!.view.cursor)], [['a', 'b', 'c'], 'wiped:3'])
    assert.deepEqual(known!.view.kept, { cursor: { epoch: 'e', revision: 5 }, ids: ['a', 'b'], policy: false })
    await client.close()
  })
})

/** The rule as it reads, with all answers at hand. */
function chooseAmongAll(found: readonly PeerView[]): PeerView | undefined {
  const epochMs = ({ view }: PeerView) =>
    Math.max(...found.filter((other) => other.view.cursor.epoch === view.cursor.epoch).map(({ heardMs }) => heardMs))
  const order = (a: PeerView, b: PeerView) =>
    epochMs(a) - epochMs(b) ||
    a.view.cursor.epoch.localeCompare(b.view.cursor.epoch) ||
    a.view.cursor.revision - b.view.cursor.revision ||
    a.heardMs - b.heardMs
  let best: PeerView | undefined
  for (const next of [...found].sort(order))
    if (best === undefined || next.view.nodes.size > 0 || unaccounted(best.view, next.view).length === 0) best = next
  return best
}

test('many services are asked for a few at a time', async () => {
  const clock = new ManualClock()
  let most = 0
  let open = 0
  const network = {
    ...systemNetwork,
    request: async () => {
      most = Math.max(most, ++open)
      await settle()
      open--
      return problem(404, 'service_not_found')
    },
  }
  const peers = new Peers({ urls: PEERS, network, clock, random: seededRandom(1), log: new MemoryLog() })
  const stop = new AbortController()
  const seeking = Array.from({ length: 500 }, (_, index) => peers.seek('default', `s${index}`, stop.signal))
  while (peers.status().unknown < 1_000) await settle()
  assert.equal(most, 32 * 2)
  stop.abort()
  await Promise.all(seeking)
  peers.close()
  await settle()
  assert.equal(clock.pending, 0)
})

test('an answer that does not end is cut off, on a real socket', async () => {
  const server = createServer((_request, response) => {
    response.writeHead(200, { 'content-type': 'application/json' })
    const more = () => {
      while (!response.destroyed && response.write(Buffer.alloc(65_536, ' ')));
      if (!response.destroyed) response.once('drain', more)
    }
    more()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const url = `http://127.0.0.1:${port}/`
  const { signal } = new AbortController()
  await assert.rejects(
    systemNetwork.request({ method: 'GET', url, maxBytes: 1_048_576, signal }),
    /an answer of over 1048576 bytes/,
  )
  server.close()
  server.closeAllConnections()
})
