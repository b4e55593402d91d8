/** What counts as movement, where nothing else ends a request that stands still. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type ServerHttp2Stream } from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { ManualClock } from '../support/manual-clock.ts'
import { RawCaller } from './fakes.ts'
import { eventually, rawService, startWire } from './wire.ts'

const IDLE_MS = 30_000
// Nobody is to be asked for a sign of life: its answer would be movement of the session.
const LIMITS = { idleMs: IDLE_MS, quietMs: 100 * IDLE_MS }

/** Writes by one end and waits at the other, for longer than a request may stand still. */
async function flow(clock: ManualClock, write: (piece: string) => void, heard: () => string): Promise<void> {
  for (let round = 1; round <= 4; round++) {
    write(`<${round}>`)
    await eventually(`piece ${round} arrives`, () => heard().includes(`<${round}>`))
    await clock.advance(IDLE_MS - 10_000)
  }
}

async function start(t: TestContext, options: Parameters<typeof startWire>[1] = {}) {
  const clock = new ManualClock()
  const wire = await startWire(() => {}, { clock, listener: LIMITS, forward: LIMITS, ...options })
  t.after(() => wire.stop())
  return { clock, ...wire }
}

describe('a request on HTTP/1.1 on which bytes flow in one direction alone', () => {
  const upgrade = 'Connection: upgrade\r\nUpgrade: websocket\r\n\r\n'
  const event = 'text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n'
  const cases = {
    'an event stream': ['GET / HTTP/1.1\r\nHost: a\r\n\r\n', `HTTP/1.1 200 OK\r\nContent-Type: ${event}`, 'down'],
    'out of a tunnel': [`GET / HTTP/1.1\r\nHost: a\r\n${upgrade}`, `HTTP/1.1 101 Yes\r\n${upgrade}`, 'down'],
    'into a tunnel': [`GET / HTTP/1.1\r\nHost: a\r\n${upgrade}`, `HTTP/1.1 101 Yes\r\n${upgrade}`, 'up'],
    'an upload whose answer has begun': [
      'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n',
      'up',
    ],
  } as const
  for (const [name, [request, answer, direction]] of Object.entries(cases))
    test(`goes on: ${name}`, async (t) => {
      const heard = { sockets: [] as Socket[], text: '' }
      const service = await rawService(t, (socket) => {
        heard.sockets.push(socket)
        socket.on('data', (chunk) => {
          if (heard.text === '') socket.write(answer)
          heard.text += chunk.toString('latin1')
        })
      })
      const { clock, port, endings } = await start(t, { service })
      const caller = new RawCaller(port).send(request)
      t.after(() => caller.socket.destroy())
      await caller.until(/HTTP\/1\.1[^]*\r\n\r\n/)
      const isChunked = !request.includes('Upgrade')
      const framed = (piece: string) => (isChunked ? `${piece.length.toString(16)}\r\n${piece}\r\n` : piece)
      if (direction === 'up')
        await flow(
          clock,
          (piece) => caller.send(framed(piece)),
          () => heard.text,
        )
      else
        await flow(
          clock,
          (piece) => heard.sockets[0]!.write(framed(piece)),
          () => caller.text,
        )
      assert.deepEqual(endings, [])
    })

  test('is cut when its caller takes nothing of it any more', async (t) => {
    const service = await rawService(t, (socket) => {
      const pour = () => {
        while (socket.write(Buffer.alloc(65_536)));
      }
      socket.once('data', () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n')
        pour()
      })
      socket.on('drain', pour)
    })
    const { clock, port, endings, forward } = await start(t, { service })
    const caller = new RawCaller(port).send('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    t.after(() => caller.socket.destroy())
    await caller.until(/200 OK/)
    caller.socket.pause()
    for (let round = 0; endings.length === 0; round++) {
      assert(round < 50, 'never cut')
      await clock.advance(IDLE_MS)
    }
    assert.notEqual(endings[0]!.error, undefined)
    await eventually('the service is left', () => forward.load.inFlight === 0)
  })
})

describe('a request on HTTP/2 on which bytes flow in one direction alone', () => {
  for (const direction of ['down', 'up'] as const)
    test(`goes on: ${direction}`, async (t) => {
      const served: ServerHttp2Stream[] = []
      let heard = ''
      const server = createServer().on('stream', (stream) => {
        stream.on('error', () => {})
        stream.respond({ ':status': 200 })
        stream.setEncoding('latin1').on('data', (piece: string) => (heard += piece))
        served.push(stream)
      })
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
      const service = { port: (server.address() as AddressInfo).port, stop: () => void server.close() }
      const { clock, port, endings } = await start(t, { service, protocol: 'h2' })
      const session = connect(`http://127.0.0.1:${port}`).on('error', () => {})
      t.after(() => session.destroy())
      const asked = session.request({ ':method': 'POST', ':path': '/' }).on('error', () => {})
      let told = ''
      asked.setEncoding('latin1').on('data', (piece: string) => (told += piece))
      await once(asked, 'response')
      if (direction === 'up')
        await flow(
          clock,
          (piece) => asked.write(piece),
          () => heard,
        )
      else
        await flow(
          clock,
          (piece) => served[0]!.write(piece),
          () => told,
        )
      assert.deepEqual(endings, [])
    })
})
