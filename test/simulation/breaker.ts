/** Does what a plan of faults says to the parts of a run, and takes it back when its time is over. */

import { HEARD, META, REPLICA, decodeMeta } from '../../registry-server/src/store/etcd/layout.ts'
import { CACHE_DIR, ClientProcess } from './client-process.ts'
import type { EtcdMembers } from './etcd-members.ts'
import type { Fault } from './faults.ts'
import type { LieKind } from './lies.ts'
import type { Model } from './model.ts'
import type { Operator } from './operator.ts'
import type { Host, SimProcess } from './process.ts'
import { Replica } from './registry-replica.ts'
import type { Scheduler } from './scheduler.ts'
import type { HostDisk } from './sim-disk.ts'
import type { Network } from './sim-network.ts'

const BACKUP_MS = 20_000
/** What it takes to put another machine in the place of one. */
const NEW_HOST_MS = 1_000
/** An override file that is gone may be in force until it is looked for. */
const OVERRIDE_GONE_MS = 60_000

export interface BreakerOptions {
  readonly scheduler: Scheduler
  readonly network: Network
  readonly members: EtcdMembers
  readonly model: Model
  readonly replicas: readonly Replica[]
  readonly clients: readonly ClientProcess[]
  /** By host. */
  readonly disks: ReadonlyMap<string, HostDisk>
  readonly operator: Operator
  /** A client's process has ended in the middle of things. */
  readonly crashed: (client: ClientProcess) => void
  /** A host has another disk. */
  readonly renewed: (host: string) => void
}

export class Breaker {
  readonly #options: BreakerOptions
  readonly #undo = new Set<() => void>()
  readonly #overrideFiles = new Map<string, number>()
  /** By process, what its answers to peers are instead of the truth. */
  readonly #liars = new Map<string, LieKind>()
  readonly #backups: ReadonlyMap<string, Buffer>[] = []
  /** The epoch that must not be served again; while it is there only one replica starts. */
  #restoring: string | undefined

  constructor(options: BreakerOptions) {
    this.#options = options
    this.#backupLater()
  }

  /** All faults end. */
  heal(): void {
    for (const undo of [...this.#undo]) undo()
    for (const disk of this.#options.disks.values()) disk.mend()
  }

  lieOf(process: string): LieKind | undefined {
    return this.#liars.get(process)
  }

  /** Whether an operator's file may be in force on a host. */
  mayOverride(host: string, service: string): boolean {
    const goneMs = this.#overrideFiles.get(`${host} ${service}`) ?? -Infinity
    return goneMs >= this.#options.scheduler.nowMs - OVERRIDE_GONE_MS
  }

  apply(fault: Fault): void {
    const { network, members, disks, operator } = this.#options
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
        const disk = disks.get(fault.host)!
        const one = { steps: fault.steps, code: fault.code }
        disk.faults.add(one)
        return this.#later(fault.ms, () => void disk.faults.delete(one))
      }
      case 'slow disk': {
        const disk = disks.get(fault.host)!
        disk.slowness *= fault.factor
        return this.#later(fault.ms, () => (disk.slowness = Math.max(1, disk.slowness / fault.factor)))
      }
      case 'bad reads':
        return disks.get(fault.host)!.spoil(fault)
      case 'bad start': {
        const party = this.#party(fault.process)
        this.#down(fault.process, fault.ms, (down) => down.kill())
        return disks.get(party.host.name)!.spoil(fault)
      }
      case 'new host':
        return this.#newHost(fault.host, fault.ms)
      case 'liar':
        this.#liars.set(fault.process, fault.lie)
        return this.#later(fault.ms, () => {
          if (this.#liars.get(fault.process) === fault.lie) this.#liars.delete(fault.process)
        })
      case 'deaf': {
        const { deafness } = this.#party(fault.process) as Replica
        deafness.begin()
        return this.#later(fault.ms, () => deafness.end())
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
        return operator.override(fault.service, fault.id, fault.weight)
      case 'deregister':
        return operator.deregister(fault.service, fault.id)
      case 'static':
        return operator.register(fault.service, fault.id)
      case 'policy':
        return operator.policy(fault.service, fault.timeout)
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
    this.#options.scheduler.after(ms, 'fault ends', once)
  }

  #onWays(
    fault: { readonly a: string; readonly b: string; readonly ms: number },
    begin: (way: ReturnType<Network['way']>) => () => void,
  ): void {
    const undo = [
      begin(this.#options.network.way(fault.a, fault.b)),
      begin(this.#options.network.way(fault.b, fault.a)),
    ]
    this.#later(fault.ms, () => {
      for (const end of undo) end()
    })
  }

  #party(name: string): Replica | ClientProcess {
    return [...this.#options.replicas, ...this.#options.clients].find((party) => party.name === name)!
  }

  #hostOf(name: string): Host {
    return [...this.#options.replicas, ...this.#options.clients].find((party) => party.host.name === name)!.host
  }

  #down(name: string, ms: number, end: (party: Replica | ClientProcess) => void): void {
    const party = this.#party(name)
    const { process } = party
    if (process?.isAlive !== true) return
    end(party)
    if (party instanceof ClientProcess) this.#options.crashed(party)
    this.#later(ms, () => this.#startAgain(party, process))
  }

  #startAgain(party: Replica | ClientProcess, before: SimProcess): void {
    if (party.process !== before) return
    if (before.isAlive) party.kill()
    if (party instanceof Replica && this.#restoring !== undefined) return
    party.start()
  }

  #losePower(name: string, ms: number): void {
    const parties = [...this.#options.replicas, ...this.#options.clients].filter((party) => party.host.name === name)
    const before = parties.map(({ process }) => process)
    this.#options.network.darken(name)
    for (const party of parties) party.kill()
    this.#options.disks.get(name)?.losePower()
    for (const party of parties) if (party instanceof ClientProcess) this.#options.crashed(party)
    this.#later(ms, () => {
      this.#options.network.lighten(name)
      for (const [index, party] of parties.entries()) if (before[index]) this.#startAgain(party, before[index])
    })
  }

  /** One with an empty disk, which cannot reach the registry for a while. */
  #newHost(name: string, ms: number): void {
    const { clients, replicas, network, disks, renewed } = this.#options
    const parties = clients.filter((party) => party.host.name === name)
    const before = parties.map(({ process }) => process)
    for (const party of parties) party.kill()
    disks.get(name)!.renew()
    renewed(name)
    const ways = replicas.flatMap(({ host }) => [[name, host.name], [host.name, name]] as const) // prettier-ignore
    for (const [from, to] of ways) network.block(from, to)
    this.#later(NEW_HOST_MS, () => {
      for (const [index, party] of parties.entries()) if (before[index]) this.#startAgain(party, before[index])
    })
    this.#later(ms, () => {
      for (const [from, to] of ways) network.unblock(from, to)
    })
  }

  #overrideFile({ host, service, malformed, ms }: Fault & { kind: 'override file' }): void {
    const disk = this.#options.disks.get(host)!
    const file = `${CACHE_DIR}/default/${service}.override.json`
    const content = malformed ? '{"nodes": [' : JSON.stringify({ nodes: [{ host: '10.9.9.9', port: 999 }] })
    const wallMs = () => Date.UTC(2026, 0, 1) + this.#options.scheduler.nowMs + disk.host.wallOffsetMs
    this.#overrideFiles.set(`${host} ${service}`, Infinity)
    disk.edit(file, content, wallMs())
    this.#later(ms, () => {
      disk.edit(file, undefined, wallMs())
      this.#overrideFiles.set(`${host} ${service}`, this.#options.scheduler.nowMs)
    })
  }

  /** Operators stop the registry, replace what is in etcd, and start it, one with a new epoch before the others. */
  #lose(content: ReadonlyMap<string, Buffer>, ms: number): void {
    if (this.#restoring !== undefined) return
    for (const replica of this.#options.replicas) replica.kill()
    const meta = content.get(META)
    this.#restoring = meta ? decodeMeta(meta).epoch : ''
    this.#options.model.emptied()
    this.#options.members.twin.replace(content)
    const [first] = this.#options.replicas
    this.#later(ms, () => this.#startFirst(first!))
  }

  #startFirst(first: Replica): void {
    const held = this.#options.members.twin.get(META).items[0]
    const epoch = held && decodeMeta(held.value).epoch
    const isOld = epoch === this.#restoring
    if (epoch !== undefined && !isOld) {
      this.#restoring = undefined
      for (const replica of this.#options.replicas) if (replica.process?.isAlive !== true) replica.start()
      return
    }
    if (first.process?.isAlive !== true) first.start(isOld)
    this.#options.scheduler.after(500, 'restoring', () => this.#startFirst(first))
  }

  #backupLater(): void {
    this.#options.scheduler.after(BACKUP_MS, 'backup', () => {
      const all = [...this.#options.members.twin.backup()].filter(
        ([key]) => !key.startsWith(REPLICA) && !key.startsWith(HEARD),
      )
      this.#backups.push(new Map(all))
      if (this.#backups.length > 3) this.#backups.shift()
      this.#backupLater()
    })
  }
}
