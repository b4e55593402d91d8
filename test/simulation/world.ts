/**
 * COMPOSER of a run: a registry of one to three replicas on a simulated etcd, and several processes with the client
 * library, in one process and on one clock. Everything that is left to chance comes from the seed, so that a seed, or a
 * seed with a plan of faults, is the same run each time.
 *
 * A run has three parts: faults and work; then an end of all faults; then, within {@link CONVERGENCE_MS}, everyone knows
 * the truth.
 */

import type { Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { Cursor } from '@holdfast/registry-client/protocol'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { Breaker } from './breaker.ts'
import { CACHE_DIR, ClientProcess } from './client-process.ts'
import { EtcdMembers } from './etcd-members.ts'
import { EtcdTwin } from './etcd-twin.ts'
import { planOf, type Fault, type Stage } from './faults.ts'
import { Convergence } from './convergence.ts'
import { keyOf } from './differences.ts'
import { Invariants, Violation } from './invariants.ts'
import { Model } from './model.ts'
import { Operator } from './operator.ts'
import type { SimProcess } from './process.ts'
import { Host } from './process.ts'
import { Replica, type Edge } from './registry-replica.ts'
import { Scheduler, type Scheduled } from './scheduler.ts'
import { HostDisk, InstantDisk } from './sim-disk.ts'
import { Network } from './sim-network.ts'

export const MAX_REPLICAS = 3
/** From the end of all faults: a silent stream is found out in 25 s, a lease runs out in 15 s, and is held for 20 s. */
export const CONVERGENCE_MS = 120_000
/** After a store was lost: nodes that do not come back are kept for ten minutes. */
const LOST_STORE_CONVERGENCE_MS = 800_000
/** Between two looks at what no single step changes. */
const LOOK_MS = 5_000
const WALL_OFFSET_MS = 86_400_000
const STEADY_MS = 10_000

export interface WorldOptions {
  readonly seed: number
  readonly edges: readonly Edge[]
  /** Instead of the one that follows from the seed. */
  readonly plan?: readonly Fault[] | undefined
  /** Called with each thing that happens. */
  readonly trace?: ((atMs: number, text: string) => void) | undefined
}

export interface RunResult {
  readonly seed: number
  readonly plan: readonly Fault[]
  readonly violation: Violation | undefined
  readonly atMs: number
  readonly virtualMs: number
  readonly events: number
  readonly checks: number
  /** Of all that happened, in its order. */
  readonly hash: string
}

export class World {
  readonly #options: WorldOptions
  readonly #scheduler: Scheduler
  readonly #network: Network
  readonly #members: EtcdMembers
  readonly #model: Model
  readonly #invariants: Invariants
  readonly #replicas: Replica[]
  readonly #clients: ClientProcess[]
  readonly #operator: Operator
  readonly #breaker: Breaker
  readonly #disks = new Map<string, HostDisk>()
  readonly #plan: readonly Fault[]
  readonly #activeMs: number
  /** What the cache directory of a host is known to hold safely, by file. */
  readonly #saved = new Map<string, Cursor>()
  #violation: Violation | undefined
  #violatedMs = 0
  #hash = 0x811c9dc5
  #isOver = false

  constructor(options: WorldOptions) {
    this.#options = options
    const { seed } = options
    const random = this.#randomOf('world')
    this.#scheduler = new Scheduler({
      before: (event) => this.#note(event.label),
      after: (event) => this.#stepped(event),
    })
    const scheduler = this.#scheduler
    const nowMs = () => scheduler.nowMs
    this.#network = new Network(scheduler, (name) => this.#randomOf(name))
    const twin = new EtcdTwin({
      nowMs,
      committed: (revision) => {
        this.#model.committed(revision)
        this.#members.committed()
      },
    })
    this.#members = new EtcdMembers({
      scheduler,
      network: this.#network,
      random: this.#randomOf('etcd'),
      twin,
      members: 3,
    })
    this.#model = new Model({
      nowMs,
      keys: (prefix) => twin.range({ prefix }).items,
      removed: (removed) =>
        this.#invariants.removed(removed, this.#ownerOf(removed.entry.lease, removed.key, removed.entry.node.id)),
      leaseEnded: (lease) => this.#invariants.leaseEnded(lease),
    })
    this.#invariants = new Invariants({
      model: this.#model,
      nowMs,
      violated: (violation) => this.#violated(violation),
      mayOverride: (host, service) => this.#breaker.mayOverride(host, service),
    })
    const services = ['stock', 'orders', 'users', 'pay', 'mail'].slice(0, 2 + Math.floor(random() * 4))
    const replicas = 1 + Math.floor(random() * MAX_REPLICAS)
    const holdMs = random() < 0.5 ? 0 : 20_000
    const historyRevisions = random() < 0.3 ? 5 + Math.floor(random() * 40) : 10_000
    const maxBufferBytes = random() < 0.3 ? 1_024 : 1_048_576
    const log = (process: SimProcess) => this.#logOf(process)
    const randomOf = (name: string) => this.#randomOf(name)
    const { endpoints } = this.#members
    this.#replicas = Array.from({ length: replicas }, (_, index) => {
      const name = `r${index + 1}`
      return new Replica({
        name,
        edge: options.edges[index]!,
        scheduler,
        network: this.#network,
        endpoints,
        randomOf,
        log,
        holdMs,
        historyRevisions,
        maxBufferBytes,
        recorder: (_process, epoch) => this.#invariants.recorder(name, epoch),
        failed: (process, error) => this.#trace(`${process.name} ended: ${error.message}`),
      })
    })
    const addresses = this.#replicas.map(({ address }) => address)
    const count = 2 + Math.floor(random() * 4)
    // Two of them are on one host, with one directory.
    const hosts = Array.from({ length: Math.max(1, count - 1) }, (_, index) => new Host(`h${index + 1}`))
    for (const host of [...hosts, ...this.#replicas.map((replica) => replica.host)])
      host.wallOffsetMs = Math.floor((random() * 2 - 1) * (random() < 0.3 ? WALL_OFFSET_MS : 2_000))
    for (const host of hosts) {
      const disk = new HostDisk(host, this.#randomOf(`disk ${host.name}`))
      disk.saved = (file, content) => this.#noteSaved(host.name, file, content)
      this.#disks.set(host.name, disk)
    }
    const stageNodes: { service: string; id: string }[] = []
    this.#clients = Array.from({ length: count }, (_, index) => {
      const name = `c${index + 1}`
      const host = hosts[Math.max(0, index - 1)]!
      const nodes = Array.from({ length: random() < 0.8 ? 1 + Math.floor(random() * 2) : 0 }, (_, place) => {
        const isShared = random() < 0.2
        return {
          service: services[Math.floor(random() * services.length)]!,
          id: isShared ? 'shared' : `${name}-${place}`,
          isShared,
        }
      }).filter(
        (node, place, all) => all.findIndex(({ service, id }) => service === node.service && id === node.id) === place,
      )
      stageNodes.push(...nodes)
      return new ClientProcess({
        name,
        host,
        disk: this.#disks.get(host.name)!,
        scheduler,
        network: this.#network,
        endpoints: addresses,
        randomOf,
        log,
        services: services.filter((_, place) => place === 0 || random() < 0.7).concat(random() < 0.1 ? ['nobody'] : []),
        nodes,
        observer: {
          started: (client) => this.#clientStarted(client),
          resolving: (client, service) =>
            this.#invariants.resolving(
              client,
              service,
              () => client.disk.faults.size === 0 && client.disk.slowness === 1,
            ),
          answered: (client, ...rest) => this.#invariants.answered(client.name, ...rest),
          serves: (target, port) =>
            this.#clients.some(
              (client) =>
                client.host.name === target &&
                client.process?.isAlive === true &&
                [...client.own.values()].some(({ wanted }) => wanted.port === port),
            ),
        },
      })
    })
    this.#operator = new Operator({
      scheduler,
      network: this.#network,
      addresses,
      random: this.#randomOf('operator'),
      answered: (...rest) => this.#invariants.answered('operator', ...rest),
    })
    this.#breaker = new Breaker({
      scheduler,
      network: this.#network,
      members: this.#members,
      model: this.#model,
      replicas: this.#replicas,
      clients: this.#clients,
      disks: this.#disks,
      operator: this.#operator,
      crashed: (client) => this.#checkFiles(client),
    })
    this.#activeMs = 20_000 + Math.floor(random() * random() * 280_000)
    const stage: Stage = {
      replicas: this.#replicas.map(({ name }) => name),
      clients: this.#clients.map(({ name }) => name),
      clientHosts: hosts.map(({ name }) => name),
      members: this.#members.hosts.map(({ name }) => name),
      services,
      nodes: stageNodes.length > 0 ? stageNodes : [{ service: services[0]!, id: 'static' }],
    }
    this.#plan = options.plan ?? planOf(this.#randomOf(`plan of ${seed}`), stage, this.#activeMs)
  }

  get plan(): readonly Fault[] {
    return this.#plan
  }

  async run(): Promise<RunResult> {
    const scheduler = this.#scheduler
    const unhandled = (error: unknown) => this.#violated(failureOf(error))
    process.on('unhandledRejection', unhandled)
    try {
      for (const replica of this.#replicas) scheduler.after(this.#draw(2_000), 'begin', () => replica.start())
      for (const client of this.#clients) scheduler.after(this.#draw(5_000), 'begin', () => client.start())
      for (const fault of this.#plan)
        scheduler.after(fault.atMs, 'fault', () => {
          this.#trace(`fault: ${JSON.stringify(fault)}`)
          this.#breaker.apply(fault)
        })
      this.#lookLater()
      await scheduler.runUntil(this.#activeMs)
      if (!this.#violation) await this.#converge()
    } catch (error) {
      this.#violated(failureOf(error))
    } finally {
      this.#isOver = true
      for (const { process } of [...this.#replicas, ...this.#clients]) process?.kill()
      // Sockets that end now tell their libraries so in later turns.
      await new Promise((resolve) => setImmediate(resolve))
      process.off('unhandledRejection', unhandled)
    }
    return {
      seed: this.#options.seed,
      plan: this.#plan,
      violation: this.#violation,
      atMs: this.#violatedMs,
      virtualMs: scheduler.nowMs,
      events: scheduler.events,
      checks: this.#invariants.checks,
      hash: (this.#hash >>> 0).toString(16).padStart(8, '0'),
    }
  }

  async #converge(): Promise<void> {
    const scheduler = this.#scheduler
    this.#trace('the faults are over')
    this.#breaker.heal()
    this.#operator.close()
    for (const client of this.#clients) client.quieten()
    const isLost = this.#plan.some(({ kind }) => kind === 'wipe' || kind === 'restore')
    const endMs = scheduler.nowMs + (isLost ? LOST_STORE_CONVERGENCE_MS : CONVERGENCE_MS)
    const convergence = new Convergence(this.#model)
    let divergence: Violation | undefined
    // What is true for a moment may be so by chance.
    let steadyMs = 0
    while (!this.#violation) {
      await scheduler.runUntil(scheduler.nowMs + LOOK_MS)
      divergence = convergence.divergence(this.#replicas, this.#clients)
      steadyMs = divergence ? 0 : steadyMs + LOOK_MS
      if (steadyMs > STEADY_MS || (divergence && scheduler.nowMs >= endMs)) break
    }
    if (divergence) this.#violated(divergence)
    if (this.#violation) return
    // What a replica loads is what the others have followed.
    this.#trace('everyone knows the truth; a replica starts again')
    const [replica] = this.#replicas
    replica!.kill()
    replica!.start()
    await scheduler.runUntil(scheduler.nowMs + LOOK_MS)
  }

  // ---- What is watched ----

  #stepped(event: Scheduled): void {
    const name = event.label.slice(0, event.label.indexOf(' '))
    if (name.startsWith('c')) {
      const client = this.#clients[Number(name.slice(1)) - 1]
      if (client?.isStopping === false) this.#invariants.clientStepped(client)
    }
    if (this.#violation) this.#scheduler.stop()
  }

  #clientStarted(client: ClientProcess): void {
    const found = new Map<string, Cursor>()
    this.#invariants.began(client, found)
    if (client.disk.faults.size > 0) return
    for (const service of client.services)
      void this.#load(client.disk, service).then((cursor) => {
        if (cursor) found.set(service, cursor)
        this.#invariants.began(client, found)
      })
  }

  /** What a cache would find on a disk at this moment. */
  async #load(disk: HostDisk, service: string): Promise<Cursor | undefined> {
    const clock = { now: () => 0, wall: () => 0, after: () => () => {} }
    const files = new FileCache({ directory: CACHE_DIR, disk: new InstantDisk(disk), clock, log: NO_LOG })
    return (await files.load('default', service))?.view.cursor
  }

  #checkFiles({ host, disk, services }: ClientProcess): void {
    const isAlone = this.#clients.filter((client) => client.host === host).length === 1
    for (const service of services) {
      const saved = this.#saved.get(`${host.name} ${service}`)
      if (saved)
        void this.#load(disk, service).then((loaded) =>
          this.#invariants.checkLoaded({ host: host.name, isAlone, service, loaded, saved }),
        )
    }
  }

  #noteSaved(host: string, file: string, content: string): void {
    const [, service] = /^\/cache\/default\/([^/.]+)\.json$/.exec(file) ?? []
    const [, epoch, revision] = /"cursor": ?"([^":]+):(\d+)"/.exec(content) ?? []
    if (service === undefined || epoch === undefined) return
    const key = `${host} ${service}`
    const before = this.#saved.get(key)
    const cursor = { epoch, revision: Number(revision) }
    if (before?.epoch !== cursor.epoch || before.revision < cursor.revision) this.#saved.set(key, cursor)
  }

  #lookLater(): void {
    this.#scheduler.after(LOOK_MS, 'look', () => {
      for (const client of this.#clients) this.#invariants.checkSubscribed(client)
      const processes = [...this.#replicas, ...this.#clients].flatMap(({ process }) =>
        process?.isAlive ? [process] : [],
      )
      this.#invariants.checkBounds({
        timers: processes.map((item) => [item.name, item.timers]),
        connections: processes.map((item) => [item.name, this.#network.openedBy(item)]),
        files: [...this.#disks].map(([name, { files }]) => [name, files.size, 6]),
      })
      this.#lookLater()
    })
  }

  /** The process that keeps the node of a lease registered, and has not let go of it. */
  #ownerOf(lease: string | undefined, key: string, id: string): string | undefined {
    if (lease === undefined) return undefined
    const owner = this.#clients.find((client) => client.lease === lease && client.process?.isAlive === true)
    const own = owner?.own.get(`${key.slice(keyOf('').length)}/${id}`)
    const isKept = own?.registration?.state === 'registered' && !own.isLeaving && owner?.isStopping === false
    return isKept ? owner?.name : undefined
  }

  #violated(violation: Violation): void {
    if (this.#isOver || this.#violation) return
    this.#violation = violation
    this.#violatedMs = this.#scheduler.nowMs
    this.#trace(`VIOLATED: ${violation.message}`)
  }

  // ---- Chance and words ----

  #draw(ms: number): number {
    return (this.#start ??= this.#randomOf('start'))() * ms
  }
  #start: Random | undefined

  /** Chance of its own for each name, so that what one of them draws does not change what the others do. */
  #randomOf(name: string): Random {
    let hash = Math.imul(this.#options.seed ^ 0x9e3779b9, 0x85ebca6b)
    for (let index = 0; index < name.length; index++) hash = Math.imul(hash ^ name.charCodeAt(index), 0x01000193)
    return seededRandom(hash ^ (hash >>> 15))
  }

  #logOf(process: SimProcess): Log {
    const say = (level: string) => (fields: object, message: string) => {
      if (message === 'a request failed')
        this.#violated(new Violation('errors', `${process.name}: ${JSON.stringify(fields)}`))
      if (this.#options.trace) this.#trace(`${process.name} ${level}: ${message} ${JSON.stringify(fields)}`)
    }
    return { debug: say('debug'), info: say('info'), warn: say('warn'), error: say('error') }
  }

  #note(label: string): void {
    // FNV-1a.
    let hash = this.#hash ^ Math.round(this.#scheduler.nowMs * 1_000)
    for (let index = 0; index < label.length; index++) hash = Math.imul(hash ^ label.charCodeAt(index), 0x01000193)
    this.#hash = hash
    this.#options.trace?.(this.#scheduler.nowMs, label)
  }

  #trace(text: string): void {
    this.#options.trace?.(this.#scheduler.nowMs, text)
  }
}

const NO_LOG: Log = { debug() {}, info() {}, warn() {}, error() {} }

function failureOf(error: unknown): Violation {
  if (error instanceof Violation) return error
  return new Violation('errors', error instanceof Error ? (error.stack ?? error.message) : String(error))
}
