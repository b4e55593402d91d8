/**
 * What must be true of ages, and of what clients have from each other: no age is less than what it is the age of, what a
 * peer said is as old here as it was there, and what a liar said ends once the registry has answered.
 */

import type { View } from '@holdfast/registry-client/protocol'
import type { KnownView } from '../../registry-client/src/client.ts'
import type { Resolved } from '../../registry-client/src/index.ts'
import type { ClientProcess } from './client-process.ts'
import { keyOf, quarantinedBy, replicaOf, text } from './differences.ts'
import { Violation, type Invariant } from './invariants.ts'
import type { Lies } from './lies.ts'
import type { Model } from './model.ts'
import type { Replica } from './registry-replica.ts'
import type { HostDisk } from './sim-disk.ts'

/** A stream that is slow or blocked may be that late before it counts as lost, and a registry behind its store. */
const LATE_MS = 35_000
/** Whoever was frozen reads what has waited for it as though it came now; whoever talks to a deaf replica trusts it. */
const UNAWARE_MS = 60_000
/** Once a registry that is not behind has answered: two pings, and a file's next writing. */
const LIE_MS = 30_000
const LYING_FILE_MS = 60_000
/** Between two looks. */
const LOOKED_MS = 5_000
/** Nodes of a store that is not known any more are kept for ten minutes, and nobody can tell them from a liar's. */
const CARRIED_LIE_MS = 660_000

export interface HearsayOptions {
  readonly model: Model
  readonly lies: Lies
  readonly nowMs: () => number
  /** When a process last did not know how late it was. */
  readonly unawareMs: () => number
  /** By how much a host's clock was turned, one way or the other: files are dated by it. */
  readonly turnedMs: (host: string) => number
  readonly violated: (violation: Violation) => void
}

export class Hearsay {
  readonly #options: HearsayOptions
  /** When the registry was heard last to confirm a view, of all whom peers were told that by. By service and cursor. */
  readonly #told = new Map<string, number>()
  /** Since when a lie is there: in a client's memory, and in a host's file. */
  #inMemory = new Map<string, number>()
  #inFiles = new Map<string, number>()
  /** Since when a client has more of a service than the replica that it is connected to. */
  #ahead = new Map<string, number>()
  checks = 0

  constructor(options: HearsayOptions) {
    this.#options = options
  }

  /** A client has answered a peer by what it holds. */
  told(client: ClientProcess, service: string, { view, age, source }: KnownView): void {
    if (this.#options.lies.has(view)) return
    if (source === 'memory') this.#checkAge(`${client.name} tells a peer`, service, view, age)
    const key = `${service} ${text(view.cursor)}`
    this.#told.set(key, Math.max(this.#told.get(key) ?? -Infinity, this.#options.nowMs() - age))
  }

  /** A call was answered. */
  answered({ name, host, client }: ClientProcess, service: string, { view, age, source, overridden }: Resolved): void {
    if (overridden || this.#options.lies.has(view)) return
    if (source === 'memory' || source === 'registry') return this.#checkAge(name, service, view, age)
    // What the registry has said by now is served together with what a peer did.
    if (source !== 'peer' || !client || quarantinedBy(client).has(keyOf(service))) return
    this.checks++
    const toldMs = this.#told.get(`${service} ${text(view.cursor)}`)
    const heardMs = this.#options.nowMs() - age
    if (toldMs === undefined)
      this.#violated('hearsay', `${name} has ${service} at ${text(view.cursor)} from a peer, and none has said so`)
    // Ages travel in whole milliseconds.
    else if (heardMs > toldMs + 1 + this.#options.turnedMs(host.name))
      this.#violated(
        'age',
        `${name} says that ${service} is ${age} ms old; who told it knew it to be ${heardMs - toldMs} ms more`,
      )
  }

  #checkAge(who: string, service: string, view: View, age: number): void {
    this.checks++
    const { nowMs, model, unawareMs } = this.#options
    if (nowMs() - unawareMs() < UNAWARE_MS) return
    const { epoch, revision } = view.cursor
    const next = model.epochs
      .get(epoch)
      ?.services.get(keyOf(service))
      ?.find((version) => version.revision > revision)
    const heardMs = nowMs() - age
    if (next && next.atMs < heardMs - LATE_MS)
      this.#violated(
        'age',
        `${who} that ${service} was ${epoch}:${revision} ${Math.round(age)} ms ago; it was ${next.revision} already for ` +
          `${Math.round(heardMs - next.atMs)} ms`,
      )
  }

  /** Now and then: lies end. */
  look(clients: readonly ClientProcess[], disks: ReadonlyMap<string, HostDisk>): void {
    const nowMs = this.#options.nowMs()
    const inMemory = new Map<string, number>()
    const inFiles = new Map<string, number>()
    for (const client of clients) {
      const { client: library, host, process } = client
      if (library === undefined || process!.isFrozen) continue
      const disk = disks.get(host.name)!
      const quarantined = quarantinedBy(library)
      for (const service of client.followed) {
        const key = keyOf(service)
        const since = (places: ReadonlyMap<string, number>, place: string, found: Map<string, number>) => {
          const sinceMs = places.get(place) ?? nowMs
          found.set(place, sinceMs)
          this.checks++
          return nowMs - Math.max(sinceMs, client.answeredSinceMs(key))
        }
        const reason = quarantined.get(key)
        // A registry that names nothing, and no removal of the last, proves no lie either: that is for an operator.
        if (reason === 'unknown' || reason === 'empty') continue
        const carriedMs = reason ? CARRIED_LIE_MS : 0
        const answer = library.peek(service)
        if (answer && !answer.overridden && this.#options.lies.has(answer.view)) {
          const forMs = since(this.#inMemory, `${client.name} ${client.lives} ${service}`, inMemory)
          if (forMs > LIE_MS + carriedMs)
            this.#violated(
              'hearsay',
              `${client.name} shows a lie of ${service} at ${text(answer.cursor)} for ${forMs} ms after the registry has answered`,
            )
        }
        const isWell = disk.faults.size === 0 && disk.slowness === 1
        if (!isWell || !this.#options.lies.isInFile(client, service)) continue
        const forMs = since(this.#inFiles, `${client.name} ${client.lives} ${service}`, inFiles)
        if (forMs > LYING_FILE_MS + carriedMs)
          this.#violated(
            'hearsay',
            `the file of ${service} at ${host.name} is a lie for ${forMs} ms after ${client.name} was answered`,
          )
      }
    }
    this.#inMemory = inMemory
    this.#inFiles = inFiles
  }

  /** Now and then: a replica confirms nothing that it has not reached itself. */
  lookBehind(clients: readonly ClientProcess[], replicas: readonly Replica[]): void {
    const nowMs = this.#options.nowMs()
    const ahead = new Map<string, number>()
    for (const client of clients) {
      const { client: library, name, host, followed, carriedSinceMs, process } = client
      if (library?.reachable !== true || process!.isFrozen) continue
      // Another process on its host may know better, and date the files.
      if (clients.some((other) => other.host === host && other.name !== name)) continue
      const hub = replicaOf(client, replicas)?.hub
      for (const service of followed) {
        const answer = library.peek(service)
        if (hub === undefined || answer === undefined || answer.overridden || this.#options.lies.has(answer.view))
          continue
        const { epoch, revision } = answer.cursor
        if (hub.epoch !== epoch || hub.cursor.revision >= revision) continue
        const place = `${name} ${carriedSinceMs} ${service}`
        const sinceMs = this.#ahead.get(place) ?? nowMs
        ahead.set(place, sinceMs)
        this.checks++
        if (answer.age < nowMs - sinceMs - LOOKED_MS)
          this.#violated(
            'age',
            `${name} has ${service} at ${text(answer.cursor)} and says that it is ${Math.round(answer.age)} ms old; for ` +
              `${nowMs - sinceMs} ms it has asked a replica that is at ${hub.cursorText}`,
          )
      }
    }
    this.#ahead = ahead
  }

  #violated(invariant: Invariant, message: string): void {
    this.#options.violated(new Violation(invariant, message))
  }
}
