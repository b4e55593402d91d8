import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { test, type TestContext } from 'node:test'
import fc from 'fast-check'
import { systemClock } from '@holdfast/registry-client/clock'
import { Whole } from '../../../sidecar-plugin/src/layer.ts'
import { Listener } from '../../../sidecar-plugin/src/listener.ts'
import { seededRandom } from '../../support/seeded-random.ts'
import { replyOf } from '../fakes.ts'
import { eventually, rawService } from '../wire.ts'
import { hello } from './client-hello.ts'
import { call, End, startRelay } from './relay.ts'

/** A relay that hands HTTP to a listener, which answers with the target. */
async function start(
  t: TestContext,
  onSocket: (socket: Socket) => void,
  options: Parameters<typeof startRelay>[2] & { nodes?: number } = {},
) {
  const ends: End[] = []
  const service = await rawService(t, (socket) => {
    ends.push(new End(socket))
    onSocket(socket)
  })
  const listener = new Listener({
    direction: 'outbound',
    clock: systemClock,
    random: seededRandom(1),
    serve: async (exchange) => {
      return replyOf({ body: Whole.of(`http said ${exchange.target}`) })
    },
  })
  await listener.listen('127.0.0.1', 0)
  t.after(() => listener.close())
  const relay = await startRelay(t, options.nodes === 0 ? [] : [service.port], {
    ...options,
    http: (transport, first) => listener.adopt(transport, first),
  })
  return { relay, listener, ends }
}

const echo = (socket: Socket) => void socket.pipe(socket)
const GET = 'GET /x HTTP/1.1\r\nHost: a\r\n\r\n'

test('a server that speaks first is heard, though its client waits for that', async (t) => {
  const { relay, ends } = await start(t, (socket) => socket.write('220 ready\r\n'))
  const caller = call(t, relay.port)
  await caller.until('220 ready\r\n')
  // From here on nothing is looked at: this is what an HTTP request may look like within another protocol.
  caller.socket.write(GET)
  await ends[0]!.until(GET)
  caller.socket.end()
  await ends[0]!.ended()
})

test('the way to the destination is open before anybody has said anything', async (t) => {
  const { relay, ends } = await start(t, () => {})
  call(t, relay.port)
  await eventually('the service is reached', () => ends.length === 1)
  assert.equal(relay.traffic().open, 1)
})

for (const [what, delayed] of [
  ['at once', false],
  ['after a while', true],
] as const)
  test(`a client that speaks HTTP ${what} is served by who speaks it, and nobody else hears of it`, async (t) => {
    const { relay, listener, ends } = await start(t, () => {})
    const caller = call(t, relay.port)
    if (delayed) await eventually('the service is reached', () => ends.length === 1)
    caller.socket.write(GET)
    await caller.until('http said /x')
    caller.socket.write(GET.replace('/x', '/y'))
    await caller.until('http said /y')
    assert.equal(listener.connections, 1)
    await eventually('the way is given up', () => relay.traffic().open === 0 && relay.forward.connections === 0)
    assert.equal(ends.map(({ text }) => text).join(''), '')
    assert.deepEqual(relay.traffic().failed, {})
    caller.socket.end()
    await caller.closed
    assert.equal(caller.error, undefined)
    await eventually('nothing is left', () => listener.connections === 0)
  })

test('HTTP in pieces is HTTP', async (t) => {
  const { relay } = await start(t, () => {})
  const caller = call(t, relay.port)
  caller.socket.setNoDelay(true)
  for (const byte of GET) {
    caller.socket.write(byte)
    await new Promise((done) => setImmediate(done))
  }
  await caller.until('http said /x')
})

test('a client that speaks something else is passed on whole, and so is the answer', async (t) => {
  const { relay, ends } = await start(t, echo)
  for (const text of ['PING\r\n', '*1\r\n$4\r\nPING\r\n', hello({ serverName: 'a.b' }).toString('latin1')]) {
    const caller = call(t, relay.port)
    caller.socket.end(text, 'latin1')
    await caller.closed
    assert.equal(caller.text, text)
  }
  assert.deepEqual(
    ends.map(({ hasEnded }) => hasEnded),
    [true, true, true],
  )
  await eventually('the lines', () => relay.lines.length === 3)
  assert(relay.lines.every(({ bytesIn, bytesOut, reason }) => bytesIn > 0 && bytesIn === bytesOut && !reason))
})

test('a client that says all and nothing more gets its answer', async (t) => {
  const { relay } = await start(t, echo)
  const caller = call(t, relay.port)
  // Might be the beginning of a request, but for its end.
  caller.socket.end('GET')
  await caller.closed
  assert.equal(caller.text, 'GET')
})

test('what only begins like a request is passed on after a while', async (t) => {
  const { relay, ends } = await start(t, echo, { limits: { detectMs: 100 } })
  const caller = call(t, relay.port)
  caller.socket.write('HELLO')
  await caller.until('HELLO')
  caller.socket.write(' there')
  await ends[0]!.until('HELLO there')
})

test('what a client says while its destination is not known yet is kept, in order', async (t) => {
  const { relay, ends } = await start(t, () => {}, { limits: { detectMs: 50 } })
  let release!: () => void
  const known = new Promise<void>((open) => (release = open))
  const resolve = relay.client.resolve.bind(relay.client)
  relay.client.resolve = (service) => known.then(() => resolve(service))
  const caller = call(t, relay.port)
  caller.socket.write('HELLO')
  // Counted once its time to become a request is over.
  await eventually('it is kept', () => relay.traffic().bytesIn === 5)
  caller.socket.write(' there')
  await eventually('that too', () => relay.traffic().bytesIn === 11)
  caller.socket.write(' again')
  release()
  await eventually('the service is reached', () => ends.length === 1)
  await ends[0]!.until('HELLO there again')
})

test('a client that goes before anything is known leaves nothing behind', async (t) => {
  const { relay, ends } = await start(t, () => {})
  const caller = call(t, relay.port)
  await eventually('the service is reached', () => ends.length === 1)
  caller.socket.resetAndDestroy()
  await ends[0]!.closed
  await eventually('both sides are closed', () => relay.traffic().open === 0 && relay.forward.connections === 0)
  assert.deepEqual(relay.traffic().failed, { caller_gone: 1 })
})

test('a destination that is not there is no matter to those who speak HTTP', async (t) => {
  const { relay } = await start(t, () => {}, { nodes: 0, limits: { detectMs: 5_000 } })
  const caller = call(t, relay.port)
  await eventually('the way is refused', () => relay.client.subscribed.length === 1)
  caller.socket.write(GET)
  await caller.until('http said /x')
})

test('a destination that is not there ends the others, with its reason', async (t) => {
  const { relay } = await start(t, () => {}, { nodes: 0, limits: { detectMs: 100 } })
  const silent = call(t, relay.port)
  const other = call(t, relay.port)
  other.socket.write('\0')
  for (const caller of [silent, other]) {
    await caller.ended()
    caller.socket.end()
    await caller.closed
  }
  await eventually('the lines', () => relay.lines.length === 2)
  assert.deepEqual(relay.traffic().failed, { no_nodes: 2 })
})

test('a silent connection has the limits of any other, and is cut with the rest', async (t) => {
  const { relay, ends } = await start(t, () => {}, { limits: { idleMs: 100, lingerMs: 100 } })
  const caller = call(t, relay.port)
  await caller.ended()
  await eventually('both sides are closed', () => relay.traffic().open === 0 && relay.forward.connections === 0)
  assert.deepEqual(relay.traffic().failed, { idle: 1 })

  const other = await start(t, () => {})
  const cut = call(t, other.relay.port)
  await eventually('the service is reached', () => other.ends.length === 1)
  other.relay.listeners.close()
  await Promise.all([cut.closed, other.ends[0]!.closed])
  assert.equal(cut.error?.code, 'ECONNRESET')
  assert.deepEqual(other.relay.traffic().failed, { draining: 1 })
  assert.equal(ends.length, 1)
})

test('whatever is sent in whatever pieces, it arrives whole or is answered as HTTP', async (t) => {
  const { relay, listener } = await start(t, echo)
  const random = seededRandom(5)
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        fc.uint8Array({ minLength: 1, maxLength: 300 }),
        fc
          .constantFrom('GET', 'HTTP', '\x16\x03\x01', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r', ' / HTTP/1.1')
          .map((text) => Buffer.from(text, 'latin1')),
      ),
      async (bytes) => {
        const caller = call(t, relay.port)
        await once(caller.socket, 'connect')
        const sent = Buffer.from(bytes)
        for (let at = 0; at < sent.length;) {
          const end = at + 1 + Math.floor(random() * 40)
          caller.socket.write(sent.subarray(at, end))
          at = end
          if (random() < 0.5) await new Promise((done) => setImmediate(done))
        }
        caller.socket.end()
        await caller.closed
        assert.equal(caller.text, sent.toString('latin1'))
      },
    ),
    { numRuns: 150 },
  )
  assert.equal(listener.connections, 0)
  await eventually('nothing is left', () => relay.traffic().open === 0 && relay.forward.connections === 0)
  assert.deepEqual(relay.traffic().failed, {})
})
