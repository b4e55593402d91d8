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
import { FileCache } from '../../registry-client/src/file-cache.ts'
import { HEARD, META, REPLICA, decodeMeta } from '../../registry-server/src/store/etcd/layout.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { CACHE_DIR, ClientProcess } from './client-process.ts'
import { EtcdMembers } from './etcd-members.ts'
import { EtcdTwin } from './etcd-twin.ts'
import { planOf, type Fault, type Stage } from './faults.ts'
import { Invariants, Violation, keyOf } from './invariants.ts'
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
const BACKUP_MS = 20_000
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
  readonly #disks = new Map<string, HostDisk>()
  readonly #plan: readonly Fault[]
  readonly #activeMs: number
  readonly #undo = new Set<() => void>()
  readonly #overrideFiles = new Map<string, number>()
  /** What the cache directory of a host is known to hold safely, by file. */
  readonly #saved = new Map<string, Cursor>()
  readonly #backups: ReadonlyMap<string, Buffer>[] = []
  /** The epoch that must not be served again; while it is there only one replica starts. */
  #restoring: string | undefined
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
      mayOverride: (host, service) => (this.#overrideFiles.get(`${host} ${service}`) ?? -Infinity) >= nowMs() - 60_000,
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
          this.#apply(fault)
        })
      this.#lookLater()
      this.#backupLater()
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
    for (const undo of [...this.#undo]) undo()
    this.#operator.close()
    for (const client of this.#clients) client.quieten()
    const isLost = this.#plan.some(({ kind }) => kind === 'wipe' || kind === 'restore')
    const endMs = scheduler.nowMs + (isLost ? LOST_STORE_CONVERGENCE_MS : CONVERGENCE_MS)
    let divergence: Violation | undefined
    // What is true for a moment may be so by chance.
    let steadyMs = 0
    while (!this.#violation) {
      await scheduler.runUntil(scheduler.nowMs + LOOK_MS)
      divergence = this.#invariants.divergence(this.#replicas, this.#clients)
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

  // ---- Faults ----

  #apply(fault: Fault): void {
    const network = this.#network
    const members = this.#members
    switch (fault.kind) {
      case 'cut':
        return network.reset(fault.a, fault.b)
      case 'mute':
        return network.mute(fault.a, fault.b)
      case 'partition': {
        const ways = fault.oneWay ? [[fault.a, fault.b]] : [[fault.a, fault.b], [fault.b, fault.a]] // prettier-ignore
        for (const [from, to] of ways) network.block(from!, to!)
        return this.#later(fault.ms, () => {
          for (const [from, to] of ways) network.unblock(from!, to!)
        })
      }
      case 'slow':
        return this.#onWays(fault, (way) => {
          way.slowness *= fault.factor
          return () => (way.slowness /= fault.factor)
        })
      case 'flaky':
        return this.#onWays(fault, (way) => {
          way.flakiness += fault.chance
          return () => (way.flakiness = Math.max(0, way.flakiness - fault.chance))
        })
      case 'repeat':
        return this.#onWays(fault, (way) => {
          way.duplication += fault.chance
          return () => (way.duplication = Math.max(0, way.duplication - fault.chance))
        })
      case 'kill':
        return this.#down(fault.process, fault.ms, (party) => party.kill())
      case 'stop':
        return this.#down(fault.process, fault.ms, (party) => void party.stop())
      case 'freeze': {
        const { process } = this.#party(fault.process)
        process?.freeze()
        return this.#later(fault.ms, () => process?.thaw())
      }
      case 'power':
        return this.#losePower(fault.host, fault.ms)
      case 'clock': {
        const host = this.#hostOf(fault.host)
        host.wallOffsetMs += fault.byMs
        return
      }
      case 'disk': {
        const disk = this.#disks.get(fault.host)!
        const one = { steps: fault.steps, code: fault.code }
        disk.faults.add(one)
        return this.#later(fault.ms, () => void disk.faults.delete(one))
      }
      case 'slow disk': {
        const disk = this.#disks.get(fault.host)!
        disk.slowness *= fault.factor
        return this.#later(fault.ms, () => (disk.slowness = Math.max(1, disk.slowness / fault.factor)))
      }
      case 'etcd stop':
        members.stop(fault.member)
        return this.#later(fault.ms, () => members.start(fault.member))
      case 'etcd freeze':
        members.freeze(fault.member)
        return this.#later(fault.ms, () => members.thaw(fault.member))
      case 'etcd down':
        for (const index of members.endpoints.keys()) members.stop(index)
        return this.#later(fault.ms, () => {
          for (const index of members.endpoints.keys()) members.start(index)
        })
      case 'etcd elect':
        return members.elect()
      case 'etcd compact':
        return members.twin.compact(members.twin.revision)
      case 'etcd full':
        members.twin.noSpace = true
        return this.#later(fault.ms, () => (members.twin.noSpace = false))
      case 'override':
        return this.#operator.override(fault.service, fault.id, fault.weight)
      case 'deregister':
        return this.#operator.deregister(fault.service, fault.id)
      case 'static':
        return this.#operator.register(fault.service, fault.id)
      case 'policy':
        return this.#operator.policy(fault.service, fault.timeout)
      case 'override file':
        return this.#overrideFile(fault)
      case 'wipe':
        return this.#lose(new Map(), fault.ms)
      case 'restore':
        return this.#lose(this.#backups[0] ?? new Map<string, Buffer>(), fault.ms)
    }
  }

  /** Runs `undo` after `ms`, or when all faults end. */
  #later(ms: number, undo: () => void): void {
    const once = () => {
      if (this.#undo.delete(once)) undo()
    }
    this.#undo.add(once)
    this.#scheduler.after(ms, 'fault ends', once)
  }

  #onWays(
    fault: { readonly a: string; readonly b: string; readonly ms: number },
    begin: (way: ReturnType<Network['way']>) => () => void,
  ): void {
    const undo = [begin(this.#network.way(fault.a, fault.b)), begin(this.#network.way(fault.b, fault.a))]
    this.#later(fault.ms, () => {
      for (const end of undo) end()
    })
  }

  #party(name: string): Replica | ClientProcess {
    return [...this.#replicas, ...this.#clients].find((party) => party.name === name)!
  }

  #hostOf(name: string): Host {
    return [...this.#replicas, ...this.#clients].find((party) => party.host.name === name)!.host
  }

  #down(name: string, ms: number, end: (party: Replica | ClientProcess) => void): void {
    const party = this.#party(name)
    const { process } = party
    if (process?.isAlive !== true) return
    end(party)
    if (party instanceof ClientProcess) this.#checkFiles(party)
    this.#later(ms, () => this.#startAgain(party, process))
  }

  #startAgain(party: Replica | ClientProcess, before: SimProcess): void {
    if (party.process !== before) return
    if (before.isAlive) party.kill()
    if (party instanceof Replica && this.#restoring !== undefined) return
    party.start()
  }

  #losePower(name: string, ms: number): void {
    const parties = [...this.#replicas, ...this.#clients].filter((party) => party.host.name === name)
    const before = parties.map(({ process }) => process)
    this.#network.darken(name)
    for (const party of parties) party.kill()
    this.#disks.get(name)?.losePower()
    for (const party of parties) if (party instanceof ClientProcess) this.#checkFiles(party)
    this.#later(ms, () => {
      this.#network.lighten(name)
      for (const [index, party] of parties.entries()) if (before[index]) this.#startAgain(party, before[index])
    })
  }

  #overrideFile({ host, service, malformed, ms }: Fault & { kind: 'override file' }): void {
    const disk = this.#disks.get(host)!
    const file = `${CACHE_DIR}/default/${service}.override.json`
    const content = malformed ? '{"nodes": [' : JSON.stringify({ nodes: [{ host: '10.9.9.9', port: 999 }] })
    const wallMs = () => Date.UTC(2026, 0, 1) + this.#scheduler.nowMs + disk.host.wallOffsetMs
    this.#overrideFiles.set(`${host} ${service}`, Infinity)
    disk.edit(file, content, wallMs())
    this.#later(ms, () => {
      disk.edit(file, undefined, wallMs())
      this.#overrideFiles.set(`${host} ${service}`, this.#scheduler.nowMs)
    })
  }

  /** Operators stop the registry, replace what is in etcd, and start it, one with a new epoch before the others. */
  #lose(content: ReadonlyMap<string, Buffer>, ms: number): void {
    if (this.#restoring !== undefined) return
    for (const replica of this.#replicas) replica.kill()
    const meta = content.get(META)
    this.#restoring = meta ? decodeMeta(meta).epoch : ''
    this.#model.emptied()
    this.#members.twin.replace(content)
    const [first] = this.#replicas
    this.#later(ms, () => this.#startFirst(first!))
  }

  #startFirst(first: Replica): void {
    const held = this.#members.twin.get(META).items[0]
    const epoch = held && decodeMeta(held.value).epoch
    const isOld = epoch === this.#restoring
    if (epoch !== undefined && !isOld) {
      this.#restoring = undefined
      for (const replica of this.#replicas) if (replica.process?.isAlive !== true) replica.start()
      return
    }
    if (first.process?.isAlive !== true) first.start(isOld)
    this.#scheduler.after(500, 'restoring', () => this.#startFirst(first))
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

  #backupLater(): void {
    this.#scheduler.after(BACKUP_MS, 'backup', () => {
      const all = [...this.#members.twin.backup()].filter(([key]) => !key.startsWith(REPLICA) && !key.startsWith(HEARD))
      this.#backups.push(new Map(all))
      if (this.#backups.length > 3) this.#backups.shift()
      this.#backupLater()
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
