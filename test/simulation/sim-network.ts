/**
 * The network of a run: connections between simulated processes. Within one connection and direction everything
 * arrives in its order or not at all, as with TCP; across connections nothing is in order.
 *
 * What is sent while its way is blocked is kept, as TCP sends again, and arrives when the way is open. Faults end a
 * connection ({@link Network.reset}), silence it for ever without a word to either end ({@link Network.mute}), block a
 * way in one direction, or make it slow or unreliable.
 */

import type { Random } from '@holdfast/registry-client/clock'
import type { SimProcess } from './process.ts'
import type { Scheduler } from './scheduler.ts'

/** What one end of a connection tells its owner. */
export interface EndHandlers {
  message(message: unknown): void
  /** Once; nothing follows. Not called at the end that closes. */
  closed(reason: string): void
}

/** One end of a connection. */
export interface End {
  readonly isOpen: boolean
  /**
   * @param bytes how much of the connection's window it takes
   * @param taken called once the network has taken it, at once while the window has room
   */
  send(message: unknown, bytes?: number, taken?: () => void): void
  close(): void
}

/** @returns what is told of the connection */
export type Accept = (end: End, from: SimProcess) => EndHandlers

interface Way {
  /** How many faults block it. */
  blocked: number
  /** Latencies are multiplied by it. */
  slowness: number
  /** The chance of each message to end its connection. */
  flakiness: number
  /** The chance of a request that may be repeated to be sent twice by someone in between. */
  duplication: number
  /** Of its own, so that what happens on one way changes nothing on the others. */
  readonly random: Random
}

/** What a direction takes before its sender has to wait. */
export const WINDOW_BYTES = 16_384

interface Message {
  readonly content: unknown
  readonly bytes: number
  readonly isEnd: boolean
  cancel: () => void
}

class Direction implements End {
  readonly connection: Connection
  readonly from: SimProcess
  readonly to: () => SimProcess | undefined
  handlers: EndHandlers | undefined
  isOpen = true
  /** Towards the other end, in order. */
  inFlight: Message[] = []
  /** Those of them that wait for their way to be open. */
  held: Message[] = []
  lastDueMs = 0
  bufferedBytes = 0
  waiting: { readonly taken: () => void }[] = []

  constructor(connection: Connection, from: SimProcess, to: () => SimProcess | undefined) {
    this.connection = connection
    this.from = from
    this.to = to
  }

  send(content: unknown, bytes = 0, taken?: () => void): void {
    if (!this.isOpen) return
    this.bufferedBytes += bytes
    if (taken && this.bufferedBytes > WINDOW_BYTES) this.waiting.push({ taken })
    else taken?.()
    this.connection.transmit(this, { content, bytes, isEnd: false, cancel: () => {} })
  }

  close(): void {
    this.finish('closed by the other end')
  }

  finish(reason: string): void {
    if (!this.isOpen) return
    this.isOpen = false
    this.waiting = []
    this.connection.transmit(this, { content: reason, bytes: 0, isEnd: true, cancel: () => {} })
  }

  free(bytes: number): void {
    this.bufferedBytes -= bytes
    while (this.waiting.length > 0 && this.bufferedBytes <= WINDOW_BYTES) this.waiting.shift()!.taken()
  }
}

class Connection {
  readonly address: string
  readonly what: string
  readonly client: SimProcess
  server: SimProcess | undefined
  readonly #network: Network
  /** What the client sends, and what the server does. */
  readonly up: Direction
  readonly down: Direction
  isMuted = false

  constructor(network: Network, client: SimProcess, address: string, what: string) {
    this.#network = network
    this.client = client
    this.address = address
    this.what = what
    this.up = new Direction(this, client, () => this.server)
    this.down = new Direction(this, client, () => this.client)
  }

  get isOver(): boolean {
    return !this.up.isOpen && !this.down.isOpen
  }

  transmit(direction: Direction, message: Message): void {
    if (!this.isMuted) this.#network.transmit(this, direction, message)
    else if (message.isEnd) this.#network.forget(this)
  }
}

export class Network {
  readonly #scheduler: Scheduler
  readonly #randomOf: (name: string) => Random
  readonly #listeners = new Map<string, { readonly process: SimProcess; readonly accept: Accept }>()
  readonly #hostOf = new Map<string, string>()
  readonly #connections = new Set<Connection>()
  readonly #ways = new Map<string, Way>()
  readonly #dark = new Set<string>()
  readonly #clients = new WeakSet<SimProcess>()

  constructor(scheduler: Scheduler, randomOf: (name: string) => Random) {
    this.#scheduler = scheduler
    this.#randomOf = randomOf
  }

  /** Connections that there are, also those that only one end knows to be over. */
  get size(): number {
    return this.#connections.size
  }

  /** How many of them a process has opened. */
  openedBy(process: SimProcess): number {
    let count = 0
    for (const { client } of this.#connections) if (client === process) count++
    return count
  }

  listen(process: SimProcess, address: string, accept: Accept): void {
    this.#hostOf.set(address, process.host.name)
    this.#listeners.set(address, { process, accept })
    process.onEnd(() => {
      if (this.#listeners.get(address)?.process === process) this.#listeners.delete(address)
      for (const connection of [...this.#connections])
        if (connection.server === process) connection.down.finish('read ECONNRESET')
    })
  }

  /** Names where an address is before anyone listens there. */
  place(address: string, host: string): void {
    this.#hostOf.set(address, host)
  }

  /** Never throws: that nobody is there arrives as `closed`. The first message opens it. */
  connect(process: SimProcess, address: string, what: string, handlers: EndHandlers): End {
    const connection = new Connection(this, process, address, what)
    this.#connections.add(connection)
    connection.down.handlers = handlers
    if (!this.#clients.has(process)) {
      this.#clients.add(process)
      process.onEnd(() => {
        for (const { client, up } of [...this.#connections]) if (client === process) up.finish('read ECONNRESET')
      })
    }
    return connection.up
  }

  way(from: string, to: string): Way {
    const key = `${from}>${to}`
    let way = this.#ways.get(key)
    if (way === undefined) {
      way = { blocked: 0, slowness: 1, flakiness: 0, duplication: 0, random: this.#randomOf(`way ${key}`) }
      this.#ways.set(key, way)
    }
    return way
  }

  wayTo(process: SimProcess, address: string): Way {
    return this.way(process.host.name, this.#hostOf.get(address) ?? address)
  }

  block(from: string, to: string): void {
    this.way(from, to).blocked++
  }

  unblock(from: string, to: string): void {
    const way = this.way(from, to)
    if (--way.blocked > 0) return
    for (const connection of [...this.#connections])
      for (const direction of [connection.up, connection.down]) {
        if (direction.held.length === 0 || this.#wayOf(connection, direction) !== way) continue
        // Sent again after a while that doubles with each try that failed.
        let lastMs = this.#scheduler.nowMs + way.random() * 1_000
        for (const message of direction.held.splice(0)) {
          lastMs = Math.max(lastMs, direction.lastDueMs)
          this.#schedule(connection, direction, message, lastMs)
        }
      }
  }

  /** Ends the connections between two hosts, some in the middle of what is on its way. */
  reset(a: string, b: string): void {
    for (const connection of [...this.#connections])
      if (this.#isBetween(connection, a, b)) this.#reset(connection, this.way(a, b).random() < 0.7)
  }

  /** Nothing arrives on the connections that there are now, and nobody is told. */
  mute(a: string, b: string): void {
    for (const connection of [...this.#connections]) if (this.#isBetween(connection, a, b)) this.#silence(connection)
  }

  /** A host loses power: whoever talks to it hears nothing more of it. */
  darken(host: string): void {
    this.#dark.add(host)
    for (const connection of [...this.#connections])
      if (connection.client.host.name === host || this.#hostOf.get(connection.address) === host)
        this.#silence(connection)
  }

  lighten(host: string): void {
    this.#dark.delete(host)
  }

  latencyMs(way: Way): number {
    const { random } = way
    const spikeMs = random() < 0.01 ? random() * 100 : 0
    return (0.1 + random() * 0.9 + spikeMs) * way.slowness
  }

  transmit(connection: Connection, direction: Direction, message: Message): void {
    const way = this.#wayOf(connection, direction)
    if (!message.isEnd && way.flakiness > 0 && way.random() < way.flakiness) return this.#reset(connection, true)
    direction.inFlight.push(message)
    if (way.blocked > 0 || direction.held.length > 0) {
      direction.held.push(message)
      return
    }
    const dueMs = Math.max(this.#scheduler.nowMs + this.latencyMs(way), direction.lastDueMs)
    this.#schedule(connection, direction, message, dueMs)
  }

  forget(connection: Connection): void {
    if (connection.isOver) this.#connections.delete(connection)
  }

  #wayOf(connection: Connection, direction: Direction): Way {
    const client = connection.client.host.name
    const server = this.#hostOf.get(connection.address) ?? connection.address
    return direction === connection.up ? this.way(client, server) : this.way(server, client)
  }

  #isBetween(connection: Connection, a: string, b: string): boolean {
    const client = connection.client.host.name
    const server = this.#hostOf.get(connection.address)
    return (client === a && server === b) || (client === b && server === a)
  }

  #schedule(connection: Connection, direction: Direction, message: Message, dueMs: number): void {
    direction.lastDueMs = dueMs
    const ms = dueMs - this.#scheduler.nowMs
    const arrive = () => this.#arrive(connection, direction, message)
    // Whoever reads at the other end may be frozen; whether anyone is there, the kernel says.
    const reader = direction.to()
    const label = `${connection.what} ${direction === connection.up ? 'to' : 'from'} ${connection.address}`
    message.cancel =
      reader === undefined || !reader.isAlive
        ? this.#scheduler.after(ms, `${connection.client.name} ${label}`, arrive)
        : reader.deliver(ms, `${connection.client.name} ${label}`, arrive)
  }

  #arrive(connection: Connection, direction: Direction, message: Message): void {
    if (connection.isMuted) return
    if (this.#wayOf(connection, direction).blocked > 0 || direction.held.length > 0) {
      direction.held.push(message)
      return
    }
    direction.inFlight.shift()
    direction.free(message.bytes)
    if (direction === connection.up && connection.server === undefined && !this.#accept(connection, message)) return
    if (message.isEnd) {
      const other = direction === connection.up ? connection.down : connection.up
      const wasOpen = other.isOpen
      other.isOpen = false
      this.#connections.delete(connection)
      if (wasOpen) direction.handlers?.closed(message.content as string)
    } else if (direction.to()?.isAlive === true && this.#isListening(connection, direction))
      direction.handlers?.message(message.content)
  }

  /** An end that has closed hears nothing more. */
  #isListening(connection: Connection, direction: Direction): boolean {
    return direction === connection.up ? connection.down.isOpen : connection.up.isOpen
  }

  #accept(connection: Connection, first: Message): boolean {
    const host = this.#hostOf.get(connection.address) ?? ''
    if (this.#dark.has(host)) {
      this.#silence(connection)
      return false
    }
    if (first.isEnd) {
      this.#connections.delete(connection)
      return false
    }
    const listener = this.#listeners.get(connection.address)
    if (listener === undefined) {
      this.transmit(connection, connection.down, {
        content: 'connect ECONNREFUSED',
        bytes: 0,
        isEnd: true,
        cancel: () => {},
      })
      connection.down.isOpen = false
      return false
    }
    connection.server = listener.process
    if (listener.process.isFrozen) {
      // The kernel has taken it; its program reads it when it goes on.
      listener.process.deliver(0, 'accepted', () => this.#open(connection, listener.accept, first))
      return false
    }
    connection.up.handlers = listener.accept(connection.down, connection.client)
    return true
  }

  #open(connection: Connection, accept: Accept, first: Message): void {
    connection.up.handlers = accept(connection.down, connection.client)
    if (connection.down.isOpen) connection.up.handlers.message(first.content)
  }

  #silence(connection: Connection): void {
    connection.isMuted = true
    for (const direction of [connection.up, connection.down]) {
      for (const message of direction.inFlight.splice(0)) message.cancel()
      direction.held = []
    }
    this.forget(connection)
  }

  #reset(connection: Connection, isCutInside: boolean): void {
    this.#connections.delete(connection)
    for (const direction of [connection.up, connection.down]) {
      const [first] = direction.inFlight
      for (const message of direction.inFlight.splice(0)) message.cancel()
      direction.held = []
      const reader = direction.to()
      const isListening = this.#isListening(connection, direction)
      if (reader === undefined || !isListening) continue
      reader.deliver(0.1, `${connection.client.name} ${connection.what} reset ${connection.address}`, () => {
        const part = isCutInside && first?.content instanceof Uint8Array ? first.content : undefined
        if (part && part.length > 1) direction.handlers?.message(part.subarray(0, 1 + Math.floor(part.length / 2)))
        direction.handlers?.closed('read ECONNRESET')
      })
    }
    connection.up.isOpen = false
    connection.down.isOpen = false
  }
}
