/**
 * A process that uses the client library: it follows services, resolves, picks, watches and reports outcomes, registers
 * nodes and changes them, all at times and in an order drawn from the seed. It dies and starts again on the same disk.
 */

import type { Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { KnownView } from '../../registry-client/src/client.ts'
import { connect, ResolveError, type RegistryClient, type Resolved } from '../../registry-client/src/index.ts'
import type { NodeRegistration } from '../../registry-client/src/node-registration.ts'
import type { Registration } from '../../registry-client/src/registry/registration.ts'
import { NoNodesError } from '../../registry-client/src/selection/selector.ts'
import { openPeerPort } from './peer-port.ts'
import { SimProcess, type Host } from './process.ts'
import type { Scheduler } from './scheduler.ts'
import type { HostDisk } from './sim-disk.ts'
import type { Network } from './sim-network.ts'
import { SimClientNetwork, type AnswerMessage, type RequestMessage } from './sim-wire.ts'

export const CACHE_DIR = '/cache'
const LEASE_TTL_MS = 15_000
/** Between two things that a process does. */
const PAUSE_MS = 4_000
const RESOLVE_DEADLINE_MS = 10_000
const PING = /^\{(?:"id":"[^"]*",)?"event":"ping"/
/** Names that nobody has registered, of which a caller may think up any number. */
const MADE_UP = 200

/** What a run wants to know of a client. */
export interface ClientObserver {
  started(client: ClientProcess): void
  resolving(client: ClientProcess, service: string): (outcome: Resolved | Error) => void
  answered(client: ClientProcess, request: RequestMessage, answer: AnswerMessage, sentMs: number): void
  serves(host: string, port: number): boolean
  /** What it says to a peer that asks, if it lies. */
  lie(client: ClientProcess, namespace: string, service: string): { answer: AnswerMessage | undefined } | undefined
  /** What it has said to a peer that asks. */
  told(client: ClientProcess, service: string, known: KnownView): void
}

/** How little a client may hold in memory. */
export interface Bounds {
  readonly maxServices: number
  readonly maxNodes: number
}

/** A node that a process has registered, and what it wants it to be. */
export interface OwnNode {
  wanted: NodeRegistration
  registration: Registration | undefined
  /** Others register the same. */
  readonly isShared: boolean
  isLeaving: boolean
}

export interface ClientProcessOptions {
  readonly name: string
  readonly host: Host
  readonly disk: HostDisk
  readonly scheduler: Scheduler
  readonly network: Network
  readonly endpoints: readonly string[]
  readonly randomOf: (name: string) => Random
  readonly log: (process: SimProcess) => Log
  /** That it follows. */
  readonly services: readonly string[]
  /** That it keeps registered while it runs. */
  readonly nodes: readonly { readonly service: string; readonly id: string; readonly isShared: boolean }[]
  /** Where it answers other clients; undefined: nowhere. */
  readonly peerAddress: string | undefined
  /** Whom it asks. */
  readonly peers: readonly string[]
  /** Undefined: what the library takes by default. One with bounds is asked for names that nobody has registered, too. */
  readonly bounds: Bounds | undefined
  /** Whether it keeps what it knows on disk. */
  readonly isCached: boolean
  readonly observer: ClientObserver
}

export class ClientProcess {
  readonly name: string
  readonly host: Host
  readonly disk: HostDisk
  readonly #options: ClientProcessOptions
  #process: SimProcess | undefined
  #client: RegistryClient | undefined
  #random: Random = () => 0
  #lives = 0
  #watches = 0
  #madeUp = 0
  #isQuiet = false
  #isStopping = false
  readonly own = new Map<string, OwnNode>()
  /** Resolved or watched in this life. */
  readonly followed = new Set<string>()
  /** Services that the present stream carries; undefined without one. */
  carried: Set<string> | undefined
  carriedSinceMs = 0
  /** When anything came by the stream last. */
  heardMs = -Infinity
  /** By service, the message by which it was asked for on the present stream, and when its registry had sent it all. */
  readonly #asked = new Map<string, number>()
  readonly #answeredMs = new Map<string, number>()
  /** Since when the present stream's registry has not said that it may be behind. */
  #soundSinceMs = Infinity
  /** The lease that it was granted last. */
  lease: string | undefined

  constructor(options: ClientProcessOptions) {
    this.#options = options
    this.name = options.name
    this.host = options.host
    this.disk = options.disk
  }

  get process(): SimProcess | undefined {
    return this.#process
  }

  /** Undefined while it is down or starts. */
  get client(): RegistryClient | undefined {
    return this.#process?.isAlive === true ? this.#client : undefined
  }

  get services(): readonly string[] {
    return this.#options.services
  }

  get bounds(): Bounds | undefined {
    return this.#options.bounds
  }

  get isCached(): boolean {
    return this.#options.isCached
  }

  get lives(): number {
    return this.#lives
  }

  /** It lets go of what it has registered. */
  get isStopping(): boolean {
    return this.#isStopping
  }

  /** Since when a registry that is not behind has said all that it knows of a service; Infinity when none has. */
  answeredSinceMs(key: string): number {
    return Math.max(this.#answeredMs.get(key) ?? Infinity, this.#soundSinceMs)
  }

  /** From now on it only reads. */
  quieten(): void {
    this.#isQuiet = true
  }

  start(): void {
    const { name, host, disk, scheduler, network, endpoints, observer } = this.#options
    const process = new SimProcess(name, host, scheduler)
    this.#process = process
    this.#client = undefined
    this.followed.clear()
    this.own.clear()
    this.carried = undefined
    this.lease = undefined
    this.#asked.clear()
    this.#answeredMs.clear()
    this.#isStopping = false
    this.#watches = 0
    const random = this.#options.randomOf(`${name} life ${++this.#lives}`)
    this.#random = random
    const talk = {
      answered: (request: RequestMessage, answer: AnswerMessage, sentMs: number) => {
        if (request.method === 'POST' && answer.status === 201)
          this.lease = (JSON.parse(answer.body) as { id: string }).id
        if (!request.path.startsWith('/v1/views/')) observer.answered(this, request, answer, sentMs)
      },
      sent: (text: string) => this.#noteSent(text),
      received: (text: string) => this.#noteReceived(text),
      opened: () => {
        this.carried = new Set()
        this.carriedSinceMs = process.now()
        this.#asked.clear()
        this.#answeredMs.clear()
        this.#soundSinceMs = Infinity
      },
      closed: () => {
        this.carried = undefined
        this.#answeredMs.clear()
      },
      serves: (host: string, port: number) => observer.serves(host, port),
    }
    observer.started(this)
    const { peerAddress, peers, bounds, isCached } = this.#options
    if (peerAddress !== undefined)
      openPeerPort({
        process,
        network,
        address: peerAddress,
        client: () => this.client,
        lie: (namespace, service) => observer.lie(this, namespace, service),
        told: (service, known) => observer.told(this, service, known),
      })
    void connect({
      endpoints: endpoints.map((address) => `http://${address}`),
      peers: peers.map((address) => `http://${address}`),
      ...(isCached && { cacheDir: CACHE_DIR }),
      ...bounds,
      leaseTtlMs: LEASE_TTL_MS,
      clock: process,
      random,
      network: new SimClientNetwork(network, process, random, talk),
      disk: disk.of(process),
      log: this.#options.log(process),
    }).then((client) => {
      this.#client = client
      for (const service of this.services) void this.#resolve(client, service)
      for (const { service, id, isShared } of this.#options.nodes) this.#register(client, service, id, isShared)
      this.#later(client)
    })
  }

  kill(): void {
    this.#process?.kill()
    this.carried = undefined
  }

  /** Ends as programs should. */
  async stop(): Promise<void> {
    const client = this.client
    const process = this.#process
    this.#isStopping = true
    if (client) await client.close()
    process?.kill()
    this.carried = undefined
  }

  #noteSent(text: string): void {
    const message = JSON.parse(text) as {
      type: string
      services?: { namespace: string; service: string }[]
      ref?: number
    }
    for (const { namespace, service } of message.services ?? []) {
      const key = `${namespace}/${service}`
      if (message.type === 'subscribe') {
        this.carried?.add(key)
        if (message.ref !== undefined && !this.#asked.has(key)) this.#asked.set(key, message.ref)
      } else if (message.type === 'unsubscribe') {
        this.carried?.delete(key)
        this.#asked.delete(key)
        this.#answeredMs.delete(key)
      }
    }
  }

  #noteReceived(text: string): void {
    this.heardMs = this.#process!.now()
    if (!PING.test(text)) return
    const { subscribed = 0, age = 0 } = (JSON.parse(text) as { data: { subscribed?: number; age?: number } }).data
    const nowMs = this.#process!.now()
    this.#soundSinceMs = age > 0 ? Infinity : Math.min(this.#soundSinceMs, nowMs)
    for (const [key, ref] of this.#asked)
      if (ref <= subscribed && !this.#answeredMs.has(key)) this.#answeredMs.set(key, nowMs)
  }

  #later(client: RegistryClient): void {
    this.#process!.after(this.#random() * PAUSE_MS, () => {
      if (this.#client !== client || this.#isStopping) return
      this.#act(client)
      this.#later(client)
    })
  }

  #act(client: RegistryClient): void {
    if (this.bounds && !this.#isQuiet && this.#random() < 0.3) return this.#askMadeUp(client)
    const service = this.#any(this.services)
    const chance = this.#random()
    if (chance < 0.4) void this.#resolve(client, service)
    else if (chance < 0.7) this.#call(client, service)
    else if (chance < 0.8) void this.#watch(client, service)
    else if (!this.#isQuiet && this.own.size > 0) this.#change(client)
  }

  async #resolve(client: RegistryClient, service: string): Promise<void> {
    const told = this.#options.observer.resolving(this, service)
    this.followed.add(service)
    try {
      told(await client.resolve(service, { deadline: RESOLVE_DEADLINE_MS }))
    } catch (error) {
      told(error as Error)
    }
  }

  /** More of them than the client may hold. */
  #askMadeUp(client: RegistryClient): void {
    for (let left = this.bounds!.maxServices + 1; left > 0; left--) {
      const deadline = this.#random() < 0.5 ? 0 : 1_500
      // A liar knows them all.
      client
        .resolve(`made-up-${this.#madeUp++ % MADE_UP}`, { deadline })
        .catch((error: unknown) => (error instanceof ResolveError ? undefined : Promise.reject(error as Error)))
    }
  }

  /** A call that takes nothing that is older. */
  async resolveYoung(service: string, maxStale: number): Promise<Resolved | Error | undefined> {
    const { client } = this
    return client?.resolve(service, { maxStale, deadline: RESOLVE_DEADLINE_MS / 2 }).catch((error: Error) => error)
  }

  #call(client: RegistryClient, service: string): void {
    try {
      const pick = client.pick(service)
      const outcome = this.#random() < 0.8 ? 'ok' : 'failed'
      this.#process!.after(this.#random() * 500, () => pick.done(outcome))
    } catch (error) {
      if (!(error instanceof NoNodesError)) throw error
    }
  }

  async #watch(client: RegistryClient, service: string): Promise<void> {
    if (this.#watches >= 3) return
    this.#watches++
    this.followed.add(service)
    const end = new AbortController()
    this.#process!.after(this.#random() * 60_000, () => end.abort())
    for await (const view of client.watch(service, { signal: end.signal })) void view
    this.#watches--
  }

  #register(client: RegistryClient, service: string, id: string, isShared: boolean): void {
    const port = 1_000 + Math.floor(this.#random() * 60_000)
    const node: OwnNode = {
      wanted: { service, id, host: this.host.name, port },
      registration: undefined,
      isShared,
      isLeaving: false,
    }
    this.own.set(`${service}/${id}`, node)
    client.register(node.wanted).then(
      (registration) => (node.registration = registration),
      () => {},
    )
  }

  #change(client: RegistryClient): void {
    const node = this.#any([...this.own.values()])
    const { registration } = node
    if (registration === undefined || (node.isLeaving && registration.state !== 'closed')) return
    const { service, id } = node.wanted as { service: string; id: string }
    if (registration.state === 'closed' || registration.state === 'superseded')
      return this.#register(client, service, id, node.isShared)
    const chance = this.#random()
    if (chance < 0.3) {
      node.isLeaving = true
      void registration.close()
      return
    }
    const change =
      chance < 0.8 ? { weight: Math.floor(this.#random() * 100) } : { status: this.#any(['up', 'draining'] as const) }
    node.wanted = { ...node.wanted, ...change }
    registration.update(change).catch(() => {})
  }

  #any<T>(items: readonly T[]): T {
    return items[Math.floor(this.#random() * items.length)]!
  }
}
