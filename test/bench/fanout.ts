/** One change to many subscribers: the time from the write to the last of them, and what a subscriber costs. */

import { randomBytes } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { load, request } from './http-load.ts'
import { memoryOf, serve, startRegistry } from './servers.ts'
import { median, print, ratio } from './table.ts'

const SUBSCRIBERS = 5_000
const CHANGES = 15

type Transport = 'sse' | 'websocket'

interface Audience {
  readonly sockets: readonly Socket[]
  /** Bytes that the first subscriber received since the last `expect`. */
  readonly bytes: () => number
  /** Resolves with the time at which the last subscriber had its next frame. */
  readonly expect: (bytes: number) => Promise<number>
}

/** Opens so many connections, each with `hello` sent; complete once each has received something, if anything is due. */
async function audience(port: number, hello: string, greeted: boolean): Promise<Audience> {
  const sockets: Socket[] = []
  const received: number[] = new Array<number>(SUBSCRIBERS).fill(0)
  let due = 0
  let done: (nowMs: number) => void = () => {}
  let wantedBytes = Infinity
  for (let at = 0; at < SUBSCRIBERS; at += 100)
    await Promise.all(
      Array.from({ length: 100 }, (_, offset) => {
        const index = at + offset
        const socket = connect({ host: '127.0.0.1', port, noDelay: true })
        sockets.push(socket)
        return new Promise<void>((resolve, reject) => {
          socket.once('error', reject)
          socket.once('connect', () => {
            if (hello) socket.write(hello)
            if (!greeted) resolve()
          })
          let head = ''
          socket.on('data', (chunk) => {
            // The greeting ends with the first snapshot; what follows is counted.
            if (greeted && head !== 'done') {
              head += chunk.toString('latin1')
              if (!/snapshot/.test(head)) return
              head = 'done'
              return resolve()
            }
            const before = received[index]!
            received[index] = before + chunk.length
            if (before < wantedBytes && before + chunk.length >= wantedBytes && --due === 0) done(performance.now())
          })
        })
      }),
    )
  return {
    sockets,
    bytes: () => received[0]!,
    expect: (bytes) => {
      received.fill(0)
      wantedBytes = bytes
      due = SUBSCRIBERS
      return new Promise((resolve) => (done = resolve))
    },
  }
}

function hello(transport: Transport): string {
  const upgrade =
    transport === 'websocket'
      ? `connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: ${randomBytes(16).toString('base64')}\r\n`
      : 'accept: text/event-stream\r\n'
  return `GET /v1/watch?service=stock HTTP/1.1\r\nhost: 127.0.0.1\r\n${upgrade}\r\n`
}

let weight = 0

/** A change of one node of the watched service. */
function change(): string {
  weight = (weight % 1000) + 1
  return request('PUT', '/v1/services/stock/nodes/node-1', {
    host: '10.0.0.1',
    port: 8080,
    weight: 100 + (weight % 800),
  })
}

async function ours(transport: Transport): Promise<{ ms: number; bytes: number; memory: number }> {
  const server = await startRegistry()
  await load(server.port, { connections: 1, requests: 1, next: change })
  await server.collectGarbage()
  const before = memoryOf(server.pid).own
  const people = await audience(server.port, hello(transport), true)
  await server.collectGarbage()
  const memory = (memoryOf(server.pid).own - before) / SUBSCRIBERS
  // How long a frame is: sent once and waited for until no more of it comes.
  void people.expect(Infinity)
  await load(server.port, { connections: 1, requests: 1, next: change })
  await new Promise((resolve) => setTimeout(resolve, 1000))
  const bytes = people.bytes()
  const times: number[] = []
  for (let index = 0; index < CHANGES; index++) {
    const last = people.expect(bytes)
    const startMs = performance.now()
    await load(server.port, { connections: 1, requests: 1, next: change })
    times.push((await last) - startMs)
  }
  for (const socket of people.sockets) socket.destroy()
  await server.stop()
  return { ms: median(times), bytes, memory }
}

async function bare(bytes: number): Promise<number> {
  const server = await serve('test/bench/bare-writer.ts', () => [String(bytes)])
  const people = await audience(server.port, '', false)
  const times: number[] = []
  for (let index = 0; index < CHANGES; index++) {
    const last = people.expect(bytes)
    const trigger = connect({ host: '127.0.0.1', port: server.port, noDelay: true })
    await new Promise((resolve) => trigger.once('connect', resolve))
    const startMs = performance.now()
    trigger.write('?')
    times.push((await last) - startMs)
    trigger.destroy()
  }
  for (const socket of people.sockets) socket.destroy()
  await server.stop()
  return median(times)
}

export async function fanout(): Promise<void> {
  const rows: (string | number)[][] = []
  const memory: (string | number)[][] = []
  for (const transport of ['sse', 'websocket'] as const) {
    const registry = await ours(transport)
    const loop = await bare(registry.bytes)
    rows.push([
      `registry, ${transport}, from the request to the last subscriber`,
      registry.bytes,
      registry.ms,
      ratio(registry.ms, loop),
    ])
    rows.push([`a bare loop that writes as many bytes`, registry.bytes, loop, ratio(loop, loop)])
    memory.push([transport, Math.round(registry.memory).toLocaleString('en')])
  }
  print(
    `one change to ${SUBSCRIBERS.toLocaleString('en')} subscribers (aim: 1.5 times the bare loop)`,
    ['', 'bytes', 'median ms', 'against the bare loop'],
    rows,
  )
  print('memory of the registry per subscriber', ['', 'bytes'], memory)
}
