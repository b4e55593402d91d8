/**
 * One replica of the registry as a simulated process: the parts that `server.ts` composes, in the same order, on the
 * simulated etcd; its real HTTP routes, called without a socket; and its real watch streams, on a socket that the
 * simulated network carries.
 */

import { EventEmitter } from 'node:events'
import type { IncomingMessage, Server } from 'node:http'
import type { FastifyInstance } from 'fastify'
import type { Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { createApi, TIMEOUTS } from '../../registry-server/src/api/api.ts'
import { Exchanges } from '../../registry-server/src/api/exchanges.ts'
import { Leases } from '../../registry-server/src/leases.ts'
import type { Phase, RegistryParts } from '../../registry-server/src/parts.ts'
import type { EtcdConnection } from '../../registry-server/src/store/etcd/etcd-connection.ts'
import { EtcdStore } from '../../registry-server/src/store/etcd/etcd-store.ts'
import type { StoreListener } from '../../registry-server/src/store/store.ts'
import { WatchHub } from '../../registry-server/src/watch/watch-hub.ts'
import { WatchStreams } from '../../registry-server/src/watch/watch-streams.ts'
import { SimEtcdConnection } from './etcd-client.ts'
import { Host, SimProcess } from './process.ts'
import type { Scheduler } from './scheduler.ts'
import type { End, EndHandlers, Network } from './sim-network.ts'
import { ServerSocket, type AnswerMessage, type RequestMessage, type UpgradeMessage } from './sim-wire.ts'

/** Of `server.ts`. */
const PING_MS = 10_000
/** How long whoever looks after the process takes to start it again. */
const RESTART_MS = 1_000

const NO_METRICS = { contentType: '', text: async () => '', request() {}, commit() {} }

interface Life {
  readonly process: SimProcess
  readonly log: Log
  phase: Phase
  parts: RegistryParts | undefined
}

/**
 * The routes of the replica that takes a place in the run. They cost a tenth of a second to make and hold no state, so
 * they serve every replica of every run that has this place, one at a time.
 */
export class Edge {
  life: Life | undefined
  #api: FastifyInstance | undefined

  static async create(): Promise<Edge> {
    const edge = new Edge()
    const lifecycle = {
      get phase(): Phase {
        return edge.life?.phase ?? 'loading'
      },
      get parts() {
        return edge.life?.parts
      },
    }
    const say = (level: keyof Log) => (fields: object, message: string) => edge.life?.log[level](fields, message)
    const clock = { now: () => 0, wall: () => 0, after: () => () => {} }
    const exchanges = new Exchanges()
    edge.#api = await createApi({
      lifecycle,
      streams: new WatchStreams({ lifecycle, exchanges, clock, random: () => 0, pingMs: PING_MS, maxSubscribers: 1 }),
      exchanges,
      metrics: NO_METRICS,
      clock,
      log: { debug: say('debug'), info: say('info'), warn: say('warn'), error: say('error') },
      maxOverrides: 1_000,
      timeouts: TIMEOUTS,
    })
    return edge
  }

  async answer({ method, path, headers, body }: RequestMessage): Promise<AnswerMessage> {
    const answer = await this.#api!.inject({
      method: method as 'GET',
      url: path,
      headers: { host: 'registry', ...headers },
      ...(body !== undefined && { payload: body }),
    })
    const fields = Object.entries(answer.headers).map(([name, value]) => [name, String(value)] as const)
    return { status: answer.statusCode, headers: Object.fromEntries(fields), body: answer.body }
  }
}

export interface ReplicaOptions {
  readonly name: string
  readonly edge: Edge
  readonly scheduler: Scheduler
  readonly network: Network
  readonly endpoints: readonly string[]
  /** Of each life. */
  readonly randomOf: (name: string) => Random
  readonly log: (process: SimProcess) => Log
  readonly holdMs: number
  readonly historyRevisions: number
  readonly maxBufferBytes: number
  /** Listens to the store before any part does. */
  readonly recorder: (process: SimProcess, epoch: () => string) => StoreListener
  /** It ended by itself. */
  readonly failed: (process: SimProcess, error: Error) => void
}

/** While a replica is deaf, its streams are not told what its store learns, and it does not know that. */
class Deafness {
  readonly #nowMs: () => number
  #depth = 0
  #endedMs = -Infinity
  #held: (() => void)[] = []

  constructor(nowMs: () => number) {
    this.#nowMs = nowMs
  }

  /** When it heard nothing last. */
  get lastMs(): number {
    return this.#depth > 0 ? this.#nowMs() : this.#endedMs
  }

  begin(): void {
    this.#depth++
  }

  end(): void {
    this.#endedMs = this.#nowMs()
    if (--this.#depth === 0) for (const run of this.#held.splice(0)) run()
  }

  of(listener: StoreListener): StoreListener {
    return {
      load: (state) => {
        // All that there is, whatever was held.
        this.#held = []
        listener.load(state)
      },
      apply: (transactions, floor) => {
        if (this.#depth === 0) listener.apply(transactions, floor)
        else this.#held.push(() => listener.apply(transactions, floor))
      },
    }
  }
}

export class Replica {
  readonly deafness: Deafness
  readonly name: string
  readonly host: Host
  readonly address: string
  readonly #options: ReplicaOptions
  #life: Life | undefined
  #lives = 0
  readonly #sockets = new Set<ServerSocket>()

  constructor(options: ReplicaOptions) {
    this.#options = options
    this.deafness = new Deafness(() => options.scheduler.nowMs)
    this.name = options.name
    this.host = new Host(options.name)
    this.address = `${options.name}:7400`
    options.network.place(this.address, this.host.name)
  }

  get process(): SimProcess | undefined {
    return this.#life?.process
  }

  /** Undefined while it is down or loads. */
  get parts(): RegistryParts | undefined {
    return this.#life?.process.isAlive === true && this.#life.phase === 'ready' ? this.#life.parts : undefined
  }

  start(newEpoch = false): void {
    const { scheduler, edge, network } = this.#options
    const process = new SimProcess(this.name, this.host, scheduler)
    const life: Life = { process, log: this.#options.log(process), phase: 'loading', parts: undefined }
    this.#life = life
    edge.life = life
    const random = this.#options.randomOf(`${this.name} life ${++this.#lives}`)
    const server = new EventEmitter()
    const exchanges = new Exchanges()
    const streams = new WatchStreams({
      lifecycle: life,
      exchanges,
      clock: process,
      random,
      pingMs: PING_MS,
      maxSubscribers: 1_000,
    })
    streams.attach(server as unknown as Server)
    process.onEnd(() => {
      // A WebSocket that waits for its other end keeps a real timer.
      for (const socket of this.#sockets) socket.destroy()
    })
    network.listen(process, this.address, (end, from) => this.#accept(end, from, server))
    this.#open(life, random, newEpoch).catch((error: Error) => {
      if (!process.isAlive) return
      this.#options.failed(process, error)
      process.kill()
      scheduler.after(RESTART_MS, `${this.name} starts again`, () => this.#life === life && this.start())
    })
  }

  kill(): void {
    this.#life?.process.kill()
  }

  /** SIGTERM. */
  async stop(): Promise<void> {
    const life = this.#life
    if (life?.parts === undefined) return this.kill()
    const { store, hub, leases } = life.parts
    life.phase = 'stopping'
    leases.close()
    hub.close()
    await store.close()
    life.process.kill()
  }

  async #open(life: Life, random: Random, newEpoch: boolean): Promise<void> {
    const { network, endpoints, holdMs, historyRevisions, maxBufferBytes, recorder } = this.#options
    const { process, log } = life
    const identifier = () =>
      Array.from({ length: 16 }, () => 'abcdefghijklmnopqrstuvwxyz234567'[Math.floor(random() * 32)]).join('')
    const store = await EtcdStore.open({
      endpoints,
      access: { tls: false },
      prefix: '/holdfast/',
      maxRequestBytes: 1_572_864,
      timeoutMs: undefined,
      newEpoch,
      name: this.name,
      identifier,
      clock: process,
      random,
      log,
      historyRevisions,
      historyChanges: 1_000_000,
      connect: (endpoint) => new SimEtcdConnection(network, process, endpoint) as unknown as EtcdConnection,
    })
    await store.watch(recorder(process, () => store.epoch))
    const hub = new WatchHub({ store, clock: process, maxBufferBytes, pingMs: PING_MS, stallMs: 30_000 })
    const leases = new Leases({ store, clock: process, log, identifier, maxLeases: 10_000, holdMs })
    await store.watch(this.deafness.of(hub))
    await store.watch(leases)
    life.parts = { store, hub, leases }
    life.phase = 'ready'
  }

  #accept(end: End, from: SimProcess, server: EventEmitter): EndHandlers {
    let socket: ServerSocket | undefined
    return {
      message: (content) => {
        if (content instanceof Uint8Array) {
          if (socket?.destroyed === false) socket.push(content)
          return
        }
        const message = content as RequestMessage | UpgradeMessage
        if (message.kind === 'request') {
          const { process } = this.#life!
          void this.#options.edge.answer(message).then((answer) => process.isAlive && end.send(answer))
          return
        }
        const opened = (socket = new ServerSocket(end, from.host.name))
        this.#sockets.add(opened)
        opened.once('close', () => this.#sockets.delete(opened))
        server.emit('upgrade', upgradeRequest(message, socket), socket, Buffer.alloc(0))
      },
      closed: (reason) => {
        if (reason.includes('RESET')) socket?.destroy()
        else socket?.push(null)
      },
    }
  }
}

function upgradeRequest({ path, host }: UpgradeMessage, socket: ServerSocket): IncomingMessage {
  const headers = {
    host,
    connection: 'Upgrade',
    upgrade: 'websocket',
    'sec-websocket-version': '13',
    'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
  }
  const rawHeaders = Object.entries(headers).flat()
  return { method: 'GET', url: path, httpVersion: '1.1', headers, rawHeaders, socket } as unknown as IncomingMessage
}
