/**
 * The members of a simulated etcd: each a process that answers over the simulated network, all on one {@link EtcdTwin}.
 * Without a majority, and while a leader is elected, nothing is answered: what was asked then is answered later, or
 * refused, or has happened though its answer is lost.
 */

import type { Random } from '@holdfast/registry-client/clock'
import {
  EtcdFailure,
  type EtcdFailureKind,
  type FeedEvent,
} from '../../registry-server/src/store/etcd/etcd-connection.ts'
import type { EtcdTwin } from './etcd-twin.ts'
import { Host, SimProcess } from './process.ts'
import type { Scheduler } from './scheduler.ts'
import type { End, EndHandlers, Network } from './sim-network.ts'

/** What goes over the connection. A call is run by whichever member it reaches. */
export type EtcdMessage =
  | { readonly id: number; readonly call: (twin: EtcdTwin) => unknown }
  | { readonly id: number; readonly watch: { readonly prefix: string; readonly revision: number } }

export type EtcdReply =
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly failure: { readonly kind: EtcdFailureKind; readonly reason: string } }
  | { readonly id: number; readonly events: readonly FeedEvent[] }

/** How long etcd keeps a proposal before it gives it up. */
const PROPOSAL_MS = 5_000
const EXPIRY_MS = 500
/** Revisions that one answer of a watch that has to catch up holds. */
const REVISIONS_AT_ONCE = 8

interface Watch {
  readonly id: number
  readonly prefix: string
  next: number
  readonly end: End
}

interface Proposal {
  readonly sinceMs: number
  readonly member: number
  readonly run: () => void
  readonly refuse: () => void
}

export class EtcdMembers {
  readonly endpoints: readonly string[]
  readonly twin: EtcdTwin
  readonly hosts: readonly Host[]
  readonly #scheduler: Scheduler
  readonly #network: Network
  readonly #random: Random
  readonly #processes: SimProcess[]
  readonly #watches: Set<Watch>[]
  #leader = 0
  #electedMs = 0
  #proposals: Proposal[] = []
  /** Members that are about to tell what is new. */
  readonly #telling = new Set<number>()

  constructor(options: { scheduler: Scheduler; network: Network; random: Random; twin: EtcdTwin; members: number }) {
    this.#scheduler = options.scheduler
    this.#network = options.network
    this.#random = options.random
    this.twin = options.twin
    const indexes = Array.from({ length: options.members }, (_, index) => index)
    this.hosts = indexes.map((index) => new Host(`e${index + 1}`))
    this.endpoints = indexes.map((index) => `e${index + 1}:2379`)
    this.#watches = indexes.map(() => new Set())
    this.#processes = indexes.map((index) => this.#begin(index))
    this.#expireLater()
  }

  /** Watches that there are: one for each session of a replica. */
  get watches(): number {
    return this.#watches.reduce((sum, { size }) => sum + size, 0)
  }

  /** As killed; its data stays. */
  stop(member: number): void {
    this.#processes[member]!.kill()
    this.#watches[member]!.clear()
    if (member === this.#leader) this.elect()
  }

  start(member: number): void {
    if (this.#processes[member]!.isAlive) return
    this.#processes[member] = this.#begin(member)
    if (!this.#isUp(this.#leader)) this.elect()
  }

  freeze(member: number): void {
    this.#processes[member]!.freeze()
    if (member === this.#leader) this.elect()
  }

  thaw(member: number): void {
    this.#processes[member]!.thaw()
    this.#work()
    this.tell(member)
  }

  /** The leader is lost, or changes. Nothing is answered until there is another. */
  elect(): void {
    this.#electedMs = this.#scheduler.nowMs + 500 + this.#random() * 1_500
    const candidates = this.#processes.flatMap((_, index) => (this.#isUp(index) ? [index] : []))
    this.#leader = candidates[Math.floor(this.#random() * candidates.length)] ?? 0
    this.#scheduler.after(this.#electedMs - this.#scheduler.nowMs, 'etcd elected', () => {
      this.twin.extendLeases()
      this.#work()
      for (const member of this.#processes.keys()) this.tell(member)
    })
  }

  /** Something was written: those who watch learn of it soon, at each member at a time of its own. */
  committed(): void {
    for (const [member, watches] of this.#watches.entries()) {
      if (watches.size === 0 || this.#telling.has(member)) continue
      this.#telling.add(member)
      const lagMs = this.#random() < 0.02 ? this.#random() * 300 : this.#random()
      this.#scheduler.after(lagMs, `e${member + 1} tells`, () => {
        this.#telling.delete(member)
        this.tell(member)
      })
    }
  }

  /** Passes on what is new to those who watch at a member, or at all. */
  tell(member?: number): void {
    const members = member === undefined ? [...this.#watches.keys()] : [member]
    for (const index of members) {
      if (!this.#isUp(index)) continue
      for (const watch of this.#watches[index]!) this.#pass(watch, index)
    }
  }

  #begin(index: number): SimProcess {
    const process = new SimProcess(`e${index + 1}`, this.hosts[index]!, this.#scheduler)
    this.#network.listen(process, this.endpoints[index]!, (end) => this.#accept(index, end))
    return process
  }

  #isUp(member: number): boolean {
    const process = this.#processes[member]!
    return process.isAlive && !process.isFrozen
  }

  get #answers(): boolean {
    const up = this.#processes.filter((_, index) => this.#isUp(index)).length
    return up * 2 > this.#processes.length && this.#scheduler.nowMs >= this.#electedMs
  }

  #accept(index: number, end: End): EndHandlers {
    const own: Watch[] = []
    return {
      message: (content) => {
        const message = content as EtcdMessage
        const run = () => {
          if ('call' in message) end.send(this.#answer(message))
          else {
            const watch = { id: message.id, prefix: message.watch.prefix, next: message.watch.revision, end }
            own.push(watch)
            this.#watches[index]!.add(watch)
            end.send({ id: message.id, value: undefined } satisfies EtcdReply)
            this.#pass(watch, index)
          }
        }
        if (this.#answers) return run()
        const refuse = () =>
          end.send({
            id: message.id,
            failure: { kind: 'unreachable', reason: 'request timed out' },
          } satisfies EtcdReply)
        this.#proposals.push({ sinceMs: this.#scheduler.nowMs, member: index, run, refuse })
        this.#scheduler.after(PROPOSAL_MS, 'etcd gives up', () => this.#work())
      },
      closed: () => {
        for (const watch of own) this.#watches[index]!.delete(watch)
      },
    }
  }

  #answer({ id, call }: { readonly id: number; readonly call: (twin: EtcdTwin) => unknown }): EtcdReply {
    try {
      return { id, value: call(this.twin) }
    } catch (error) {
      if (!(error instanceof EtcdFailure)) throw error
      return { id, failure: { kind: error.kind, reason: error.message } }
    }
  }

  /** What was asked while nothing was answered. */
  #work(): void {
    const nowMs = this.#scheduler.nowMs
    const waiting = this.#proposals
    this.#proposals = []
    for (const proposal of waiting) {
      // It is gone with the member that took it, unless that had passed it on.
      const isLost = !this.#processes[proposal.member]!.isAlive
      if (nowMs - proposal.sinceMs >= PROPOSAL_MS) {
        if (!isLost) proposal.refuse()
      } else if (!this.#answers) this.#proposals.push(proposal)
      else if (isLost || this.#random() < 0.3) {
        if (this.#random() < 0.5) proposal.run()
        else proposal.refuse()
      } else proposal.run()
    }
  }

  #pass(watch: Watch, member: number): void {
    if (!this.#answers || !this.#isUp(member)) return
    const revisions = this.twin.since(watch.next)
    if (revisions === undefined) {
      const reason = `etcd has compacted what was to be watched, up to ${this.twin.compacted}`
      this.#watches[member]!.delete(watch)
      watch.end.send({ id: watch.id, failure: { kind: 'compacted', reason } } satisfies EtcdReply)
      return
    }
    let batch: FeedEvent[] = []
    let held = 0
    const send = () => {
      if (batch.length > 0) watch.end.send({ id: watch.id, events: batch } satisfies EtcdReply)
      batch = []
      held = 0
    }
    for (const { revision, events } of revisions) {
      watch.next = revision + 1
      for (const event of events) if (event.key.startsWith(watch.prefix)) batch.push(event)
      if (++held >= REVISIONS_AT_ONCE) send()
    }
    send()
  }

  #expireLater(): void {
    this.#scheduler.after(EXPIRY_MS, 'etcd leases', () => {
      if (this.#answers) this.twin.expireLeases()
      this.#expireLater()
    })
  }
}
