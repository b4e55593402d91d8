/** A TCP proxy on loopback that a test cuts, holds and slows down: a network between two programs that misbehaves. */

import { once } from 'node:events'
import { createServer, Socket, type AddressInfo, type Server } from 'node:net'
import type { TestContext } from 'node:test'

/** `up` is from the client to the target, `down` the other way. */
export type Direction = 'up' | 'down'

const DIRECTIONS = ['up', 'down'] as const
/** How many bytes wait in one direction of a connection before its sender is made to wait. */
const QUEUE_BYTES = 256 * 1024

type Item = { readonly dueMs: number } & ({ readonly chunk: Buffer } | { readonly end: 'half' | 'reset' })

/** What the flows of a proxy have in common in one direction. */
interface Way {
  isHeld: boolean
  delayMs: number
  bytes: number
  readonly moved: () => void
}

/** One direction of one connection. */
class Flow {
  readonly #source: Socket
  readonly #sink: Socket
  readonly #way: Way
  readonly #queue: Item[] = []
  #queuedBytes = 0
  #timer: NodeJS.Timeout | undefined
  #isStopped = false

  constructor(source: Socket, sink: Socket, way: Way) {
    this.#source = source
    this.#sink = sink
    this.#way = way
    let hasEnded = false
    source.on('data', (chunk: Buffer) => this.#take({ chunk }))
    source.on('end', () => {
      hasEnded = true
      this.#take({ end: 'half' })
    })
    // Without an end before it, or with an error after it, the connection broke.
    source.on('error', () => (hasEnded = false))
    source.on('close', () => {
      if (!hasEnded) this.#take({ end: 'reset' })
    })
    sink.on('drain', () => this.pass())
  }

  /** Bytes that arrived and were not passed on. */
  get waitingBytes(): number {
    return this.#queuedBytes
  }

  /** Passes on what may be, in order, and makes the sender wait when it must. */
  pass(): void {
    const sink = this.#sink
    const nowMs = performance.now()
    clearTimeout(this.#timer)
    this.#timer = undefined
    while (this.#queue.length > 0 && !this.#way.isHeld && !sink.writableNeedDrain) {
      const item = this.#queue[0]!
      if (item.dueMs > nowMs) {
        this.#timer = setTimeout(() => this.pass(), item.dueMs - nowMs)
        break
      }
      this.#queue.shift()
      if ('chunk' in item) {
        this.#queuedBytes -= item.chunk.length
        if (!sink.writable) continue
        this.#way.bytes += item.chunk.length
        sink.write(item.chunk)
      } else if (item.end === 'half') sink.end()
      else reset(sink)
    }
    if (this.#queuedBytes >= QUEUE_BYTES) this.#source.pause()
    else this.#source.resume()
    this.#way.moved()
  }

  /** Nothing more is passed on. */
  stop(): void {
    this.#isStopped = true
    clearTimeout(this.#timer)
    this.#queue.length = 0
    this.#queuedBytes = 0
  }

  #take(item: { chunk: Buffer } | { end: 'half' | 'reset' }): void {
    if (this.#isStopped) return
    this.#queue.push({ ...item, dueMs: performance.now() + this.#way.delayMs })
    if ('chunk' in item) this.#queuedBytes += item.chunk.length
    this.pass()
  }
}

interface Connection {
  readonly client: Socket
  readonly upstream: Socket
  readonly flows: Readonly<Record<Direction, Flow>>
  /** Connects to the target, once. */
  readonly dial: () => void
}

export class TcpProxy {
  readonly #target: { readonly host: string; readonly port: number }
  readonly #server: Server
  readonly #connections = new Set<Connection>()
  readonly #ways: Readonly<Record<Direction, Way>>
  readonly #waiters = new Set<() => void>()
  #isCut = false
  #accepted = 0

  constructor(target: { readonly host: string; readonly port: number }) {
    this.#target = target
    const moved = () => this.#moved()
    this.#ways = {
      up: { isHeld: false, delayMs: 0, bytes: 0, moved },
      down: { isHeld: false, delayMs: 0, bytes: 0, moved },
    }
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (client) =>
      this.#accept(client),
    )
  }

  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1')
    await once(this.#server, 'listening')
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  get endpoint(): string {
    return `127.0.0.1:${this.port}`
  }

  /** Connections that are open now. */
  get connections(): number {
    return this.#connections.size
  }

  /** Connections since the start, those that were refused left out. */
  get accepted(): number {
    return this.#accepted
  }

  /** Bytes passed on. */
  get bytes(): Readonly<Record<Direction, number>> {
    return { up: this.#ways.up.bytes, down: this.#ways.down.bytes }
  }

  /** Bytes that arrived and wait to be passed on, in the proxy's own memory; more may wait with their senders. */
  get waitingBytes(): Readonly<Record<Direction, number>> {
    const sum = (direction: Direction) =>
      [...this.#connections].reduce((sum, { flows }) => sum + flows[direction].waitingBytes, 0)
    return { up: sum('up'), down: sum('down') }
  }

  /** Breaks every connection with a reset on both sides; until `restore` new ones are reset at once. */
  cut(): void {
    this.#isCut = true
    this.#resetAll()
  }

  restore(): void {
    this.#isCut = false
  }

  /**
   * Passes nothing on: neither bytes nor ends nor resets. Connections are still accepted; the target hears of them once
   * the way up is free. Senders are made to wait when a little has piled up.
   */
  hold(direction: Direction | 'both' = 'both'): void {
    for (const way of waysOf(direction)) this.#ways[way].isHeld = true
  }

  /** Passes on what was held, and what comes. */
  release(direction: Direction | 'both' = 'both'): void {
    for (const way of waysOf(direction)) this.#ways[way].isHeld = false
    for (const { dial, flows } of this.#connections) {
      if (!this.#ways.up.isHeld) dial()
      for (const way of waysOf(direction)) flows[way].pass()
    }
  }

  /** What was held never arrives: every connection is reset on both sides. New ones pass. */
  dropHeld(): void {
    this.#resetAll()
    for (const way of DIRECTIONS) this.#ways[way].isHeld = false
  }

  /** Every byte that comes from now on takes that much longer. */
  delay(ms: number, direction: Direction | 'both' = 'both'): void {
    for (const way of waysOf(direction)) this.#ways[way].delayMs = ms
  }

  /**
   * Returns once more connections than `since` have been accepted; by default with the next one. Take `since` from
   * `accepted` before what makes the connection starts.
   */
  waitForConnection(since = this.#accepted): Promise<void> {
    return this.#until(() => this.#accepted > since)
  }

  /** Returns once so many bytes wait: the request, or the answer, was sent and has not arrived. */
  waitForHeld(direction: Direction, bytes = 1): Promise<void> {
    return this.#until(() => this.waitingBytes[direction] >= bytes)
  }

  /** Returns once no connection is open. */
  waitForNone(): Promise<void> {
    return this.#until(() => this.connections === 0)
  }

  async close(): Promise<void> {
    this.cut()
    if (!this.#server.listening) return
    this.#server.close()
    await once(this.#server, 'close')
  }

  #accept(client: Socket): void {
    client.on('error', () => {})
    if (this.#isCut) {
      reset(client)
      return
    }
    this.#accepted++
    // Not connected yet: while nothing passes towards the target, it must not hear of the client either.
    const upstream = new Socket({ allowHalfOpen: true })
    upstream.on('error', () => {})
    upstream.setNoDelay()
    let isDialled = false
    const dial = () => {
      if (isDialled) return
      isDialled = true
      upstream.connect(this.#target)
    }
    const flows = {
      up: new Flow(client, upstream, this.#ways.up),
      down: new Flow(upstream, client, this.#ways.down),
    }
    const connection = { client, upstream, flows, dial }
    this.#connections.add(connection)
    const closed = () => {
      if (!client.destroyed || !upstream.destroyed) return
      this.#connections.delete(connection)
      for (const way of DIRECTIONS) flows[way].stop()
      this.#moved()
    }
    client.once('close', closed)
    upstream.once('close', closed)
    if (!this.#ways.up.isHeld) dial()
    flows.up.pass()
  }

  #resetAll(): void {
    for (const { client, upstream, flows } of this.#connections) {
      for (const way of DIRECTIONS) flows[way].stop()
      for (const socket of [client, upstream]) reset(socket)
    }
  }

  #moved(): void {
    for (const check of this.#waiters) check()
  }

  #until(holds: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const check = () => {
        if (!holds()) return
        this.#waiters.delete(check)
        resolve()
      }
      this.#waiters.add(check)
      check()
    })
  }
}

function waysOf(direction: Direction | 'both'): readonly Direction[] {
  return direction === 'both' ? DIRECTIONS : [direction]
}

/** A proxy that passes everything on until it is told otherwise. It ends with the test. */
export async function startProxy(
  context: Pick<TestContext, 'after'>,
  target: { readonly host: string; readonly port: number },
): Promise<TcpProxy> {
  const proxy = new TcpProxy(target)
  await proxy.listen()
  context.after(() => proxy.close())
  return proxy
}

/** Node answers a reset right after an end with an error, and leaves the socket open. */
function reset(socket: Socket): void {
  if (socket.destroyed) return
  if (socket.writableEnded) socket.destroy()
  else socket.resetAndDestroy()
}
