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
import type { View } from '@holdfast/registry-client/protocol'
import { seededRandom } from '../support/seeded-random.ts'
import { Breaker } from './breaker.ts'
import { CacheFiles } from './cache-files.ts'
import { ClientProcess } from './client-process.ts'
import { EtcdMembers } from './etcd-members.ts'
import { EtcdTwin } from './etcd-twin.ts'
import { Evidence } from './evidence.ts'
import { isDue, planOf, type Fault, type Stage } from './faults.ts'
import { Convergence } from './convergence.ts'
import { keyOf, quarantinedBy, replicaOf } from './differences.ts'
import type { Resolved } from '../../registry-client/src/index.ts'
import { Hearsay } from './hearsay.ts'
import { Invariants, Violation } from './invariants.ts'
import { Lies, lieOf } from './lies.ts'
import { Model } from './model.ts'
import { Operator } from './operator.ts'
import type { SimProcess } from './process.ts'
import { Host } from './process.ts'
import { Replica, type Edge } from './registry-replica.ts'
import { Scheduler, type Scheduled } from './scheduler.ts'
import { HostDisk } from './sim-disk.ts'
import { Network } from './sim-network.ts'

export const MAX_REPLICAS = 3
/** From the end of all faults: a silent stream is found out in 25 s, a lease runs out in 15 s, and is held for 20 s. */
export const CONVERGENCE_MS = 120_000
/** After a store was lost: nodes that do not come back are kept for ten minutes. */
const LOST_STORE_CONVERGENCE_MS = 800_000
/** Between two looks at what no single step changes. */
const LOOK_MS = 5_000
/** A stream that is well brings a ping more often. */
const PINGED_MS = 11_000
/** Until what was sent on a slow way has arrived. */
const BACKLOG_MS = 60_000
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
  readonly #lies: Lies
  readonly #invariants: Invariants
  readonly #hearsay: Hearsay
  readonly #files: CacheFiles
  readonly #replicas: Replica[]
  readonly #clients: ClientProcess[]
  readonly #operator: Operator
  readonly #breaker: Breaker
  readonly #disks = new Map<string, HostDisk>()
  readonly #plan: readonly Fault[]
  readonly #activeMs: number
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
    const evidence = new Evidence(this.#model, nowMs)
    const lies = (this.#lies = new Lies(this.#model))
    const violated = (violation: Violation) => this.#violated(violation)
    const isHeld = (host: string, service: string, id: string) => {
      const there = this.#clients.filter(({ host: { name }, client }) => name === host && client !== undefined)
      return there.length > 1 && there.some(({ client }) => client?.peek(service)?.view.nodes.has(id))
    }
    this.#files = new CacheFiles({ evidence, lies, isHeld, violated })
    this.#hearsay = new Hearsay({
      model: this.#model,
      lies,
      nowMs,
      unawareMs: () => this.#unawareMs(),
      turnedMs: (host) =>
        this.#plan.reduce(
          (sum, fault) => sum + (fault.kind === 'clock' && fault.host === host ? Math.abs(fault.byMs) : 0),
          0,
        ),
      violated,
    })
    this.#invariants = new Invariants({
      model: this.#model,
      evidence,
      lies,
      nowMs,
      violated,
      mayOverride: (host, service) => this.#breaker.mayOverride(host, service),
      isBehind: (client, { epoch, revision }) => {
        const hub = replicaOf(client, this.#replicas)?.hub
        return hub?.epoch === epoch && hub.cursor.revision < revision
      },
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
      this.#files.follow(disk)
      this.#disks.set(host.name, disk)
    }
    const choices = this.#randomOf('choices')
    const hasPeers = choices() < 0.5 && isDue('peers')
    const peerAddresses = Array.from({ length: hasPeers ? count : 0 }, (_, index) => `c${index + 1}:7503`)
    const lying = this.#randomOf('lies')
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
      if (hasPeers) this.#network.place(peerAddresses[index]!, host.name)
      const isBounded = choices() < 0.2 && isDue('bounds')
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
        peerAddress: peerAddresses[index],
        peers: peerAddresses.filter((_, place) => place !== index),
        bounds: isBounded
          ? { maxServices: 1 + Math.floor(choices() * 8), maxNodes: 5 + Math.floor(choices() * 100) }
          : undefined,
        isCached: !isBounded || choices() < 0.6,
        observer: {
          started: (client) => this.#clientStarted(client),
          resolving: (client, service) => this.#resolving(client, service),
          lie: (client, namespace, service) => {
            const kind = this.#breaker.lieOf(client.name)
            const epoch = this.#model.current
            if (kind === undefined || epoch === undefined) return undefined
            const truth = { epoch: epoch.id, revision: epoch.newest(keyOf(service))?.revision ?? 0 }
            return { answer: lieOf(kind, namespace, service, truth, lying) }
          },
          told: (...rest) => this.#hearsay.told(...rest),
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
      crashed: (client) =>
        this.#files.crashed(client, this.#clients.filter(({ host }) => host === client.host).length === 1),
      renewed: (host) => this.#files.renewed(host),
    })
    this.#activeMs = 20_000 + Math.floor(random() * random() * 280_000)
    const stage: Stage = {
      replicas: this.#replicas.map(({ name }) => name),
      clients: this.#clients.map(({ name }) => name),
      clientHosts: hosts.map(({ name }) => name),
      members: this.#members.hosts.map(({ name }) => name),
      services,
      hasPeers,
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
      checks: this.#invariants.checks + this.#hearsay.checks + this.#files.checks,
      hash: (this.#hash >>> 0).toString(16).padStart(8, '0'),
    }
  }

  async #converge(): Promise<void> {
    const scheduler = this.#scheduler
    this.#trace('the faults are over')
    this.#breaker.heal()
    const healedMs = scheduler.nowMs
    this.#operator.close()
    for (const client of this.#clients) client.quieten()
    // What a liar said of a store that never was is kept as long as what an honest peer said of one that is gone.
    const isLost = this.#plan.some(({ kind }) => kind === 'wipe' || kind === 'restore' || kind === 'liar')
    const endMs = scheduler.nowMs + (isLost ? LOST_STORE_CONVERGENCE_MS : CONVERGENCE_MS)
    const isRestored = this.#plan.some(({ kind }) => kind === 'restore')
    const mayOutrank = (host: string) =>
      isRestored && this.#plan.some((fault) => fault.kind === 'clock' && fault.host === host && fault.byMs < 0)
    const convergence = new Convergence(this.#model, this.#lies, mayOutrank)
    let divergence: Violation | undefined
    // What is true for a moment may be so by chance.
    let steadyMs = 0
    while (!this.#violation) {
      await scheduler.runUntil(scheduler.nowMs + LOOK_MS)
      divergence = convergence.divergence(this.#replicas, this.#clients, scheduler.nowMs >= endMs)
      steadyMs = divergence ? 0 : steadyMs + LOOK_MS
      if (steadyMs > STEADY_MS || (divergence && scheduler.nowMs >= endMs)) break
    }
    if (divergence) this.#violated(divergence)
    if (this.#violation) return
    // What a slow way still carries goes before all that is asked now.
    if (isDue('young') && this.#plan.some(({ kind }) => kind === 'slow'))
      await scheduler.runUntil(scheduler.nowMs + BACKLOG_MS)
    await this.#askYoung(healedMs)
    if (this.#violation) return
    // What a replica loads is what the others have followed.
    this.#trace('everyone knows the truth; a replica starts again')
    const [replica] = this.#replicas
    replica!.kill()
    replica!.start()
    await scheduler.runUntil(scheduler.nowMs + LOOK_MS)
  }

  /** Whoever asks a registry that is well for something younger than its last word is answered. */
  async #askYoung(healedMs: number): Promise<void> {
    if (!isDue('young')) return
    const random = this.#randomOf('young')
    for (const client of this.#clients) {
      // On a stream that has gone silent without an end nothing is answered, until that is noticed.
      const { nowMs } = this.#scheduler
      if (client.carried === undefined || client.heardMs < Math.max(healedMs, nowMs - PINGED_MS)) continue
      for (const service of client.followed) {
        const isServed = client.client?.peek(service)?.overridden === false
        if (!isServed || quarantinedBy(client.client).has(keyOf(service))) continue
        const maxStale = Math.ceil(random() * 5_000)
        void client.resolveYoung(service, maxStale).then((outcome) => {
          if (outcome === undefined || this.#isOver) return
          if (outcome instanceof Error || outcome.age > maxStale)
            this.#violated(new Violation('age', `${client.name} asked for ${service} of ${maxStale} ms: ${outcome instanceof Error ? outcome.message : `${outcome.age} ms`}`)) // prettier-ignore
        })
      }
    }
    await this.#scheduler.runUntil(this.#scheduler.nowMs + 2 * LOOK_MS)
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

  #resolving(client: ClientProcess, service: string): (outcome: Resolved | Error) => void {
    const isDiskWell = () => client.disk.faults.size === 0 && client.disk.slowness === 1
    const told = this.#invariants.resolving(client, service, isDiskWell)
    return (outcome) => {
      told(outcome)
      if (!(outcome instanceof Error)) this.#hearsay.answered(client, service, outcome)
    }
  }

  /** When a process last did not know how late it was. */
  #unawareMs(): number {
    const times = [...this.#replicas, ...this.#clients].map(({ process }) =>
      process?.isFrozen === true ? this.#scheduler.nowMs : (process?.thawedMs ?? -Infinity),
    )
    return Math.max(...times, ...this.#replicas.map(({ deafness }) => deafness.lastMs))
  }

  #clientStarted(client: ClientProcess): void {
    const found = new Map<string, View>()
    this.#invariants.began(client, found)
    if (client.disk.faults.size > 0 || !client.isCached) return
    for (const service of client.services)
      void this.#files.load(client.disk, service).then((view) => {
        if (view && !this.#lies.has(view)) found.set(service, view)
      })
  }

  #lookLater(): void {
    this.#scheduler.after(LOOK_MS, 'look', () => {
      for (const client of this.#clients) this.#invariants.checkSubscribed(client)
      this.#hearsay.look(this.#clients, this.#disks)
      this.#hearsay.lookBehind(this.#clients, this.#replicas)
      const processes = [...this.#replicas, ...this.#clients].flatMap(({ process }) =>
        process?.isAlive ? [process] : [],
      )
      this.#invariants.checkBounds({
        timers: processes.map((item) => [item.name, item.timers]),
        connections: processes.map((item) => [item.name, this.#network.openedBy(item), this.#clients.length - 1]),
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

function failureOf(error: unknown): Violation {
  if (error instanceof Violation) return error
  return new Violation('errors', error instanceof Error ? (error.stack ?? error.message) : String(error))
}
