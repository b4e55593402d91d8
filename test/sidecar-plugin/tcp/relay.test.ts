import assert from 'node:assert/strict'
import { createHash, type Hash } from 'node:crypto'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'
import { systemClock } from '@holdfast/registry-client/clock'
import { freePort } from '../../support/free-port.ts'
import { seededRandom } from '../../support/seeded-random.ts'
import { eventually, rawService } from '../wire.ts'
import { call, End, startRelay } from './relay.ts'

/** A service whose connections can be looked at. */
async function service(t: TestContext, onEnd: (end: End) => void = () => {}, reads = true) {
  const ends: End[] = []
  const { port, stop } = await rawService(t, (socket) => {
    const end = new End(socket, reads)
    ends.push(end)
    onEnd(end)
  })
  return { port, stop, ends }
}

function echo({ socket }: End): void {
  socket.pipe(socket)
}

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

describe('a relay', () => {
  test('passes bytes both ways, as they are, and says in a line what went through', async (t) => {
    const { port } = await service(t, echo)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.write('\x00\xff\r\n\r\nGET', 'latin1')
    await caller.until('\x00\xff\r\n\r\nGET')
    assert.equal(relay.traffic().open, 1)
    caller.socket.end()
    await caller.closed
    await eventually('the line', () => relay.lines.length === 1)
    const { connectMs, durationMs, ...line } = relay.lines[0]! as unknown as Record<string, unknown>
    assert(typeof connectMs === 'number' && typeof durationMs === 'number' && durationMs >= connectMs)
    assert.match(String(line.time), /^\d{4}-/)
    assert.match(String(line.connectionId), /^[0-9a-f]{32}$/)
    assert.deepEqual(line, {
      time: line.time,
      connectionId: line.connectionId,
      direction: 'outbound',
      protocol: 'tcp',
      service: 'db',
      namespace: 'default',
      node: 'n1',
      peer: '127.0.0.1',
      attempts: 1,
      bytesIn: 9,
      bytesOut: 9,
      source: 'memory',
    })
    assert.deepEqual(relay.client.outcomes, ['n1 ok'])
    const { opened, open, bytesIn, bytesOut, failed } = relay.traffic()
    assert.deepEqual(
      { opened, open, bytesIn, bytesOut, failed },
      { opened: 1, open: 0, bytesIn: 9, bytesOut: 9, failed: {} },
    )
  })

  test('lets the service speak first', async (t) => {
    const greeting = 'J\x00\x00\x00\x0a8.0.36\x00'
    const { port, ends } = await service(t, ({ socket }) => socket.write(greeting, 'latin1'))
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    await caller.until(greeting)
    caller.socket.write('login')
    await ends[0]!.until('login')
  })

  test('passes on what came while it was still connecting, and the end behind it', async (t) => {
    const { port, ends } = await service(t)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.end('all I have to say')
    await eventually('the service is reached', () => ends.length === 1)
    await ends[0]!.ended()
    assert.equal(ends[0]!.text, 'all I have to say')
    ends[0]!.socket.end('noted')
    await caller.closed
    assert.equal(caller.text, 'noted')
    assert.equal(caller.error, undefined)
  })

  test('keeps the way back open when the caller has closed its half', async (t) => {
    const { port, ends } = await service(t)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.end('question')
    await eventually('the service is reached', () => ends.length === 1)
    await ends[0]!.ended()
    for (const word of ['one', 'two', 'three']) {
      ends[0]!.socket.write(word)
      await caller.until(word)
    }
    assert.equal(relay.traffic().open, 1)
    ends[0]!.socket.end()
    await caller.closed
    assert.equal(caller.error, undefined)
    await eventually('both sides are closed', () => relay.traffic().open === 0 && relay.forward.connections === 0)
    assert.deepEqual(relay.traffic().failed, {})
  })

  test('keeps the way there open when the service has closed its half', async (t) => {
    const { port, ends } = await service(t, ({ socket }) => socket.end('bye'))
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    await caller.ended()
    assert.equal(caller.text, 'bye')
    for (const word of ['one', 'two', 'three']) {
      caller.socket.write(word)
      await ends[0]!.until(word)
    }
    caller.socket.end()
    await ends[0]!.closed
    assert.equal(ends[0]!.error, undefined)
    await eventually('both sides are closed', () => relay.traffic().open === 0 && relay.forward.connections === 0)
    assert.deepEqual(relay.traffic().failed, {})
    assert.deepEqual(relay.client.outcomes, ['n1 ok'])
  })

  test('passes a reset of the caller on as a reset', async (t) => {
    const { port, ends } = await service(t, echo)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.write('x')
    await caller.until('x')
    caller.socket.resetAndDestroy()
    await ends[0]!.closed
    assert.equal(ends[0]!.error?.code, 'ECONNRESET')
    await eventually('the line', () => relay.lines.length === 1)
    assert.equal(relay.lines[0]!.reason, 'caller_gone')
    assert.deepEqual(relay.traffic().failed, { caller_gone: 1 })
    assert.deepEqual(relay.client.outcomes, ['n1 ok'], 'that is not the node’s fault')
  })

  test('passes a reset of the service on as a reset', async (t) => {
    const { port, ends } = await service(t, echo)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.write('x')
    await caller.until('x')
    ends[0]!.socket.resetAndDestroy()
    await caller.closed
    assert.equal(caller.error?.code, 'ECONNRESET')
    await eventually('the line', () => relay.lines.length === 1)
    assert.equal(relay.lines[0]!.reason, 'upstream_reset')
    assert.deepEqual(relay.client.outcomes, ['n1 ok'], 'a node that has answered is there')
  })

  test('holds it against a node when it breaks off without a word', async (t) => {
    const { port } = await service(t, ({ socket }) => void socket.once('data', () => socket.resetAndDestroy()))
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.write('x')
    await caller.closed
    assert.equal(caller.error?.code, 'ECONNRESET')
    await eventually('the verdict', () => relay.client.outcomes.length === 1)
    assert.deepEqual(relay.client.outcomes, ['n1 failed'])
  })

  test('passes on that a caller who had said all is gone, once something is to be told to it', async (t) => {
    const { port, ends } = await service(t)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.end('question')
    await eventually('the service is reached', () => ends.length === 1)
    await ends[0]!.ended()
    caller.socket.resetAndDestroy()
    const { socket } = ends[0]!
    const tell = () => {
      if (!socket.destroyed) socket.write('answer', () => setImmediate(tell))
    }
    tell()
    await ends[0]!.closed
    assert.match(ends[0]!.error!.code!, /^(ECONNRESET|EPIPE)$/)
  })
})

describe('much', () => {
  const TOTAL = 64 * 1024 * 1024

  /** Sends the same pseudo-random bytes piece by piece, as fast as they are taken. */
  async function sendAll(socket: Socket, seed: number): Promise<string> {
    const random = seededRandom(seed)
    const hash = createHash('sha256')
    const sizes = [1, 1_000, 16_384, 65_536, 262_144]
    const block = Buffer.from(Array.from({ length: 262_144 }, () => Math.floor(random() * 256)))
    for (let sent = 0; sent < TOTAL;) {
      const size = Math.min(sizes[Math.floor(random() * sizes.length)]!, TOTAL - sent)
      const piece = block.subarray(0, size)
      hash.update(piece)
      sent += size
      if (!socket.write(piece)) await once(socket, 'drain')
    }
    socket.end()
    return hash.digest('hex')
  }

  function receiveAll(socket: Socket): { hash: Hash; whole: Promise<string> } {
    const hash = createHash('sha256')
    socket.on('data', (piece: Buffer) => void hash.update(piece))
    return { hash, whole: once(socket, 'end').then(() => hash.digest('hex')) }
  }

  test('goes both ways at once, whole, and little of it is ever here', async (t) => {
    const reports: Promise<[string, string]>[] = []
    const { port } = await service(
      t,
      ({ socket }) => void reports.push(Promise.all([sendAll(socket, 2), receiveAll(socket).whole])),
      false,
    )
    const relay = await startRelay(t, [port])
    const before = process.memoryUsage().arrayBuffers
    let most = 0
    const caller = call(t, relay.port, { reads: false })
    caller.socket.on('data', () => (most = Math.max(most, process.memoryUsage().arrayBuffers - before)))
    const startedMs = systemClock.now()
    const [sent, received] = await Promise.all([sendAll(caller.socket, 1), receiveAll(caller.socket).whole])
    const [theirs, ours] = await reports[0]!
    assert.equal(ours, sent)
    assert.equal(received, theirs)
    const { bytesIn, bytesOut } = relay.traffic()
    assert.deepEqual([bytesIn, bytesOut], [TOTAL, TOTAL])
    const seconds = (systemClock.now() - startedMs) / 1000
    t.diagnostic(
      `64 MiB each way in ${seconds.toFixed(2)} s, all four ends in one process; most held ${most >> 10} KiB`,
    )
    assert(most < TOTAL, `${most} bytes were held`)
  })

  test('of those who do not read stays where it came from, whoever does not read', async (t) => {
    const SIDES = 40
    // Not the page-wise kind: what is sent here is one piece of memory, again and again.
    const block = Buffer.alloc(1_048_576, 1)
    const pour = (socket: Socket) => {
      const more = () => {
        while (socket.write(block));
      }
      socket.on('drain', more)
      more()
    }
    const stuck = await service(t, () => {}, false)
    const pouring = await service(t, ({ socket }) => pour(socket), false)
    const there = await startRelay(t, [stuck.port])
    const back = await startRelay(t, [pouring.port])
    collectGarbage()
    const before = process.memoryUsage().arrayBuffers
    for (let i = 0; i < SIDES; i++) {
      pour(call(t, there.port, { reads: false }).socket)
      call(t, back.port, { reads: false }).socket.pause()
    }
    const total = () => there.traffic().bytesIn + back.traffic().bytesIn + back.traffic().bytesOut
    await eventually('all are there', () => there.forward.connections + back.forward.connections === 2 * SIDES)
    // Until nothing has moved for a while: what the system takes by itself is then full.
    for (let last = -1, movedMs = systemClock.now(); systemClock.now() - movedMs < 500;) {
      if (total() !== last) movedMs = systemClock.now()
      last = total()
      await new Promise((done) => setImmediate(done))
    }
    collectGarbage()
    const held = process.memoryUsage().arrayBuffers - before
    t.diagnostic(`${2 * SIDES} stuck relays hold ${held >> 10} KiB, after ${total() >> 20} MiB that the system took`)
    assert.equal(there.traffic().open + back.traffic().open, 2 * SIDES)
    assert(held < 2 * SIDES * 200_000, `${held} bytes were held`)
  })

  test('reaches a slow reader whole', async (t) => {
    const sent: Promise<string>[] = []
    const { port } = await service(t, ({ socket }) => void sent.push(sendAll(socket, 3)), false)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port, { reads: false })
    const hash = createHash('sha256')
    let pieces = 0
    caller.socket.on('data', (piece: Buffer) => {
      hash.update(piece)
      if (pieces++ % 16 !== 0) return
      caller.socket.pause()
      setImmediate(() => setImmediate(() => caller.socket.resume()))
    })
    await caller.ended()
    assert.equal(hash.digest('hex'), await sent[0]!)
  })
})

describe('nodes that are not there', () => {
  test('are passed over for the next one, and counted against', async (t) => {
    const { port } = await service(t, echo)
    const relay = await startRelay(t, [await freePort(), port])
    for (let i = 0; i < 2; i++) {
      const caller = call(t, relay.port)
      caller.socket.write('x')
      await caller.until('x')
      caller.socket.end()
      await caller.closed
    }
    await eventually('the lines', () => relay.lines.length === 2)
    assert.deepEqual(
      relay.lines.map(({ node }) => node),
      ['n2', 'n2'],
    )
    assert.deepEqual(relay.client.outcomes.toSorted(), ['n1 failed', 'n2 ok', 'n2 ok'])
    assert.deepEqual(relay.traffic().failed, {})
  })

  test('all of them: the caller gets a regular end, log and counts the reason', async (t) => {
    const relay = await startRelay(t, [await freePort(), await freePort()])
    const caller = call(t, relay.port)
    caller.socket.write('x')
    await caller.ended()
    assert.equal(caller.error, undefined)
    caller.socket.end()
    await caller.closed
    assert.equal(caller.error, undefined)
    await eventually('it is counted', () => relay.traffic().open === 0)
    assert.equal(relay.lines[0]!.reason, 'upstream_connect')
    assert(relay.lines[0]!.attempts >= 2)
    assert.deepEqual(relay.traffic().failed, { upstream_connect: 1 })
  })

  test('a service that nobody knows, and one without nodes, are told apart', async (t) => {
    const relay = await startRelay(t, [])
    const unknown = await relay.listeners.open({ host: '127.0.0.1', port: 0, service: 'none', namespace: 'default' })
    for (const port of [relay.port, unknown.port]) {
      const caller = call(t, port)
      await caller.ended()
      assert.equal(caller.error, undefined)
      caller.socket.end()
      await caller.closed
    }
    await eventually('the lines', () => relay.lines.length === 2)
    assert.deepEqual(
      relay.lines.map(({ reason }) => reason),
      ['no_nodes', 'unknown_service'],
    )
  })

  test('a host that does not answer is given up in time', async (t) => {
    // A process that stands still, with as many connections as may wait to be accepted.
    const worker = new Worker(
      `const server = require('node:net').createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
        require('node:worker_threads').parentPort.postMessage(server.address().port)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
      })`,
      { eval: true },
    )
    t.after(() => worker.terminate())
    const [port] = (await once(worker, 'message')) as [number]
    const waiting = [call(t, port), call(t, port)]
    await Promise.all(waiting.map(({ socket }) => once(socket, 'connect')))
    const relay = await startRelay(t, [port], { limits: { connectMs: 50 } })
    const caller = call(t, relay.port)
    await caller.ended()
    await eventually('the line', () => relay.lines.length === 1)
    assert.equal(relay.lines[0]!.reason, 'upstream_connect')
    assert.equal(relay.forward.connections, 0)
  })
})

describe('limits', () => {
  test('a connection on which nothing goes is closed, both sides by a regular end, and one on which something goes is not', async (t) => {
    const { port, ends } = await service(t, echo)
    const relay = await startRelay(t, [port], { limits: { idleMs: 400 } })
    const busy = call(t, relay.port)
    const idle = call(t, relay.port)
    idle.socket.write('x')
    const again = () => {
      if (!idle.socket.destroyed) busy.socket.write('.')
    }
    busy.socket.on('data', () => setImmediate(again))
    again()
    await idle.ended()
    assert.equal(idle.error, undefined)
    idle.socket.end()
    await idle.closed
    await ends.find(({ text }) => text === 'x')!.ended()
    await eventually('it is counted', () => relay.lines.length === 1)
    assert.equal(relay.lines[0]!.reason, 'idle')
    assert.deepEqual(relay.traffic().failed, { idle: 1 })
    assert.equal(busy.hasEnded, false)
    assert.deepEqual(relay.client.outcomes, ['n1 ok'])
  })

  test('whoever does not close after that is cut', async (t) => {
    const { port } = await service(t)
    const relay = await startRelay(t, [port], { limits: { idleMs: 100, lingerMs: 100 } })
    const caller = call(t, relay.port)
    await caller.ended()
    assert.equal(caller.socket.destroyed, false)
    await eventually('both sides are closed', () => relay.traffic().open === 0 && relay.forward.connections === 0)
    caller.socket.write('is anybody there?')
    await caller.closed
    assert.match(caller.error!.code!, /^(ECONNRESET|EPIPE)$/)
  })

  test('one connection too many is refused and counted, whichever listener it came to', async (t) => {
    const { port } = await service(t, echo)
    const relay = await startRelay(t, [port], { limits: { connections: 2 } })
    const other = await relay.listeners.open({ host: '127.0.0.1', port: 0, service: 'db', namespace: 'default' })
    const callers = [call(t, relay.port), call(t, other.port)]
    for (const caller of callers) {
      caller.socket.write('x')
      await caller.until('x')
    }
    await call(t, relay.port).ended()
    assert.deepEqual(relay.traffic().failed, { overloaded: 1 })
    callers[1]!.socket.end()
    await callers[1]!.closed
    await eventually('there is room again', () => other.traffic.open === 0)
    const next = call(t, relay.port)
    next.socket.write('y')
    await next.until('y')
  })

  test('1,000 connections leave nothing behind', async (t) => {
    const { port, ends } = await service(t, echo)
    const relay = await startRelay(t, [port])
    const handles = () => process.getActiveResourcesInfo().filter((name) => name.startsWith('TCP')).length
    const round = async (count: number) => {
      await Promise.all(
        Array.from({ length: count }, async (_, index) => {
          const caller = call(t, relay.port)
          caller.socket.write('x')
          await caller.until('x')
          if (index % 3 === 0) caller.socket.resetAndDestroy()
          else caller.socket.end()
          await caller.closed
        }),
      )
      await eventually('all are closed', () => relay.traffic().open === 0 && relay.forward.connections === 0)
      await Promise.all(ends.splice(0).map(({ closed }) => closed))
    }
    await round(10)
    const before = handles()
    for (let i = 0; i < 10; i++) await round(100)
    assert.equal(relay.traffic().opened, 1_010)
    assert.equal(handles(), before)
  })
})

describe('a drain', () => {
  test('accepts no more, lets those who are there finish, and ends when they have', async (t) => {
    const { port, ends } = await service(t, echo)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.write('x')
    await caller.until('x')
    let isOver = false
    const finished = relay.listeners.finish({ idleMs: 0, timeoutMs: 60_000 }).then(() => (isOver = true))
    for (let late: End | undefined; late?.error?.code !== 'ECONNREFUSED'; late.socket.destroy()) {
      late = call(t, relay.port)
      await Promise.race([once(late.socket, 'connect').catch(() => {}), late.closed])
    }
    caller.socket.write('still here')
    await caller.until('still here')
    assert.equal(isOver, false)
    caller.socket.end()
    await finished
    await ends[0]!.closed
    assert.equal(caller.error, undefined)
    assert.equal(relay.lines[0]!.reason, undefined)
  })

  test('cuts in the end who does not finish, as a break and not as a regular end', async (t) => {
    const { port, ends } = await service(t, echo)
    const relay = await startRelay(t, [port])
    const caller = call(t, relay.port)
    caller.socket.write('x')
    await caller.until('x')
    await relay.listeners.finish({ idleMs: 0, timeoutMs: 200 })
    await Promise.all([caller.closed, ends[0]!.closed])
    assert.equal(caller.error?.code, 'ECONNRESET')
    assert.equal(ends[0]!.error?.code, 'ECONNRESET')
    await eventually('the line', () => relay.lines.length === 1)
    assert.equal(relay.lines[0]!.reason, 'draining')
    assert.deepEqual(relay.client.outcomes, ['n1 ok'])
  })
})
