/**
 * What must be true after every step of a run, whatever has failed: the nine invariants of the design and a few that
 * follow from them, each under its name. They look only at what the step could have changed.
 */

import { isAfter, type Cursor, type View } from '@holdfast/registry-client/protocol'
import { ResolveError, type Resolved } from '../../registry-client/src/index.ts'
import type { Committed, StoreListener, StoreState } from '../../registry-server/src/store/store.ts'
import type { ClientProcess } from './client-process.ts'
import { differenceOf, keyOf, quarantinedBy, text } from './differences.ts'
import type { Evidence } from './evidence.ts'
import type { Lies } from './lies.ts'
import { textOf, type Epoch, type LeaseTruth, type Model, type Removed, type ServiceVersion } from './model.ts'
import type { AnswerMessage, RequestMessage } from './sim-wire.ts'

export const INVARIANTS = {
  cursor: 'a cursor never goes back within an epoch, in any process',
  acknowledged: 'an acknowledged write is never lost',
  order: 'a subscriber sees every change in order, or is told to start again',
  proof: 'a service is never empty without proof',
  outage: 'an unreachable registry never removes a good view',
  file: 'a view read from disk is served, and subscribed at once',
  failure: 'a failure is never cached as an empty list',
  hearsay: 'what a peer says gives way to what is known, and what a liar said ends',
  age: 'nothing is said to be younger than it is',
  bounds: 'every queue, history, cache and pool has a bound',
  crash: 'a crash at any instant leaves a file cache that loads',
  fencing: 'an old instance never removes a new one',
  lease: 'a lease that is renewed does not end',
  owner: 'no two replicas own a registrant',
  convergence: 'when the faults are over, everyone knows the truth',
  errors: 'nothing fails for a reason of its own',
} as const
export type Invariant = keyof typeof INVARIANTS

export class Violation extends Error {
  readonly invariant: Invariant
  constructor(invariant: Invariant, message: string) {
    super(`${INVARIANTS[invariant]}: ${message}`)
    this.name = 'Violation'
    this.invariant = invariant
  }
}

/** Beyond what any process of a run needs at once. */
const MAX_TIMERS = 400
const MAX_CONNECTIONS = 40
/** Services of which a client asks its peers at once. */
const MAX_ASKED = 32
const MAX_FILES_PER_SERVICE = 12
/** Beyond the time in which a file is waited for before its service is subscribed. */
const SUBSCRIBE_MS = 3_000

/** Renewals cost the store nothing: until a replica notices that it hears nothing from it, it renews what has ended. */
const UNNOTICED_MS = 5_000

/** What a client was shown of one service, in one life of it. */
interface Shown {
  answer: Resolved
  readonly isLie: boolean
  /** Whether only a peer said it. */
  readonly isHearsay: boolean
  readonly isQuarantined: boolean
  /** The newest cursor, and the place of its epoch among all that there were. */
  cursor: Cursor
  epochIndex: number
}

export interface InvariantsOptions {
  readonly model: Model
  readonly evidence: Evidence
  readonly lies: Lies
  readonly nowMs: () => number
  /** Takes note; the run ends after the present step. */
  readonly violated: (violation: Violation) => void
  /** Whether an operator's file may be in force on a host. */
  readonly mayOverride: (host: string, service: string) => boolean
  /** Whether the replica that a client is connected to has not reached a place itself. */
  readonly isBehind: (client: ClientProcess, cursor: Cursor) => boolean
}

export class Invariants {
  readonly #options: InvariantsOptions
  readonly #model: Model
  readonly #shown = new Map<string, Map<string, Shown>>()
  /** Views that were compared with the truth. */
  readonly #verified = new WeakSet<View>()
  /** What a process found on its disk when it started, by service. */
  readonly #found = new Map<string, ReadonlyMap<string, View>>()
  /** What each client served without a subscription when it was looked at last. */
  readonly #unsubscribed = new Map<string, ReadonlySet<string>>()
  readonly #evidence: Evidence
  readonly #lies: Lies
  checks = 0

  constructor(options: InvariantsOptions) {
    this.#options = options
    this.#model = options.model
    this.#evidence = options.evidence
    this.#lies = options.lies
  }

  // ---- Replicas ----

  /** Follows what a store tells, from its first word in this life of the replica on. */
  recorder(name: string, epochId: () => string): StoreListener {
    let revision = -1
    return {
      load: (state) => {
        const epoch = this.#epoch(epochId(), name)
        if (epoch === undefined) return
        if (state.revision < revision)
          this.#violated('cursor', `${name} loaded revision ${state.revision} after ${revision}`)
        revision = state.revision
        this.#checkState(name, epoch, state)
      },
      apply: (transactions) => {
        const epoch = this.#epoch(epochId(), name)
        if (epoch === undefined) return
        for (const transaction of transactions) {
          if (transaction.revision !== revision + 1)
            this.#violated('order', `${name} was told of revision ${transaction.revision} after ${revision}`)
          revision = transaction.revision
          this.#checkTransaction(name, epoch, transaction)
        }
      },
    }
  }

  #checkState(name: string, epoch: Epoch, { revision, services, leases }: StoreState): void {
    this.checks++
    const seen = new Set<string>()
    for (const { namespace, service, nodes, policy } of services) {
      const key = `${namespace}/${service}`
      seen.add(key)
      const difference = differenceOf(
        epoch.at(key, revision),
        new Map([...nodes].map((node) => [node.id, node])),
        policy,
      )
      if (difference) this.#violated('acknowledged', `${name} at ${revision}: ${key}: ${difference}`)
    }
    for (const key of epoch.services.keys())
      if (!seen.has(key) && epoch.at(key, revision))
        this.#violated('acknowledged', `${name} at ${revision} has no ${key}`)
    if (revision !== epoch.revision) return
    const ids = new Set([...leases].map(({ id }) => id))
    for (const [id, { endedMs }] of epoch.leases)
      if ((endedMs === undefined) !== ids.has(id))
        this.#violated('acknowledged', `${name} at ${revision}: lease ${id} ${ids.has(id) ? 'is there' : 'is missing'}`)
  }

  #checkTransaction(name: string, epoch: Epoch, { revision, changes }: Committed): void {
    this.checks++
    for (const { namespace, service, after, put, remove } of changes) {
      const key = `${namespace}/${service}`
      const version = epoch.at(key, revision)
      if (version?.revision !== revision)
        this.#violated('order', `${name} was told of ${key} at ${revision}, where it did not change`)
      const before = epoch.at(key, revision - 1)?.revision ?? 0
      if (after !== before) this.#violated('order', `${name} was told of ${key} after ${after}, expected ${before}`)
      for (const node of put) {
        const there = version?.nodes.get(node.id)
        if (there === undefined || textOf(there.node) !== textOf(node))
          this.#violated('order', `${name} was told of ${key}/${node.id} at ${revision} as it is not`)
      }
      for (const { id, cause } of remove) {
        if (version?.nodes.has(id)) this.#violated('order', `${name} was told that ${key}/${id} went, and it did not`)
        if (!cause) this.#violated('proof', `${name} was told that ${key}/${id} went, without a cause`)
      }
    }
  }

  #epoch(id: string, name: string): Epoch | undefined {
    const epoch = this.#model.epochs.get(id)
    if (epoch === undefined) this.#violated('errors', `${name} has epoch ${id}, which never was`)
    return epoch
  }

  // ---- Clients ----

  /** A client begins a life, with what its disk holds. */
  began(client: ClientProcess, found: ReadonlyMap<string, View>): void {
    this.#shown.set(client.name, new Map())
    this.#found.set(client.name, found)
  }

  /** After each step of a client. */
  clientStepped(client: ClientProcess): void {
    const { client: library } = client
    if (library === undefined) return
    const shown = this.#shown.get(client.name)!
    for (const service of client.followed) {
      const answer = library.peek(service)
      const before = shown.get(service)
      if (answer?.view === before?.answer.view) continue
      this.#checkShown(client, service, before, answer)
    }
  }

  #checkShown(client: ClientProcess, service: string, before: Shown | undefined, answer: Resolved | undefined): void {
    this.checks++
    const { name } = client
    const shown = this.#shown.get(name)!
    if (answer === undefined) {
      const { overridden } = before!.answer
      // Told from a lie by nobody: what a peer knows of a service that a registry has not heard of yet, and does not know so.
      const isRefuted = before!.isHearsay && this.#options.isBehind(client, before!.cursor)
      const wasNothing = overridden || before!.isLie || before!.cursor.revision === 0
      if (wasNothing || isRefuted || this.#mayForget(client, before!)) {
        shown.delete(service)
        return
      }
      return this.#violated('outage', `${name} knew ${service} at ${text(before!.cursor)} and does not any more`)
    }
    if (answer.overridden) {
      if (!this.#options.mayOverride(client.host.name, service))
        this.#violated('errors', `${name} serves an override file of ${service} that is not there`)
      if (before) before.answer = answer
      return
    }
    const { cursor, view } = answer
    const isLie = this.#lies.has(view)
    const epochs = [...this.#model.epochs.keys()]
    const epochIndex = epochs.indexOf(cursor.epoch)
    if (epochIndex < 0 && !isLie)
      return this.#violated('errors', `${name} shows ${service} at ${text(cursor)}, which never was`)
    const isQuarantined = quarantinedBy(client.client!).has(keyOf(service))
    if (before && !before.isLie) {
      // In a file that is read late one may stand beside the truth, as what was known of an earlier history.
      if (isLie && !isQuarantined)
        this.#violated(
          'hearsay',
          `${name} knew ${service} at ${text(before.cursor)}, and shows a lie at ${text(cursor)}`,
        )
      const isBack = epochIndex === before.epochIndex && cursor.revision < before.cursor.revision
      // A peer may know more than a registry that is behind; its word ends all the same.
      if (!before.isHearsay && (isBack || epochIndex < before.epochIndex))
        this.#violated('cursor', `${name} went from ${text(before.cursor)} back to ${text(cursor)} of ${service}`)
      // What a peer knew further than a registry that answers, and does not know that it is behind, nobody can tell from a lie.
      const isWithdrawn = before.isHearsay && isBack
      if (!before.answer.overridden && !isWithdrawn) this.#checkProof(name, service, before.answer.view, view)
    }
    const found = this.#found.get(name)?.get(service)
    // Of a file that cannot be read the generation before it is served.
    const isFirst = before === undefined && found !== undefined && !isAfter(found.cursor, cursor)
    if (isFirst && view.nodes.size === 0) this.#checkProof(name, service, found, view)
    shown.set(service, { answer, cursor, epochIndex, isLie, isHearsay: answer.source === 'peer', isQuarantined })
    if (isLie || this.#verified.has(view)) return
    const epoch = this.#model.epochs.get(cursor.epoch)!
    const version = epoch.at(keyOf(service), cursor.revision)
    const isCarried = () => isQuarantined && this.#isCarried(service, view, version)
    if (version?.revision !== cursor.revision && !isCarried())
      return this.#violated(
        'order',
        `${name} shows ${service} at ${text(cursor)}; its changes were at ${this.#revisions(epoch, service)}`,
      )
    const difference = differenceOf(version, view.nodes, view.policy)
    if (difference === undefined && version) this.#verified.add(view)
    else if (!isCarried())
      this.#violated(
        view.nodes.size === 0 ? 'proof' : 'order',
        `${name} shows ${service} at ${text(cursor)}: ${difference}`,
      )
  }

  /** Whether a view may have to make room: one that the registry would say again, or one among too many that are known. */
  #mayForget({ bounds, client, followed }: ClientProcess, before: Shown): boolean {
    if (bounds === undefined) return false
    if (client!.reachable && !before.isQuarantined) return true
    // A liar knows every name that anyone may think up, and nobody knows it for one.
    if (before.isHearsay) return true
    const others = [...followed].flatMap((service) => client!.peek(service) ?? [])
    // An entry holds three views at most: what is served, what was, and what was heard.
    const nodes = [before.answer, ...others].reduce((sum, { view }) => sum + 1 + 3 * view.nodes.size, 0)
    return others.length >= bounds.maxServices || nodes > bounds.maxNodes
  }

  /** Whether a view is the truth with nodes of an earlier epoch that nobody has accounted for. */
  #isCarried(service: string, view: View, version: ServiceVersion | undefined): boolean {
    if (this.#model.epochs.size < 2) return false
    for (const [id, { node }] of version?.nodes ?? []) {
      const there = view.nodes.get(id)
      if (there === undefined || textOf(there) !== textOf(node)) return false
    }
    for (const [id, node] of view.nodes)
      if (!version?.nodes.has(id) && !this.#wasThere(service, id, textOf(node))) return false
    return true
  }

  #wasThere(service: string, id: string, node: string): boolean {
    for (const epoch of this.#model.epochs.values())
      for (const { nodes } of epoch.services.get(keyOf(service)) ?? []) {
        const there = nodes.get(id)
        if (there && textOf(there.node) === node) return true
      }
    return false
  }

  #checkProof(name: string, service: string, before: View, after: View): void {
    const id = this.#evidence.missing(before, after)
    if (id !== undefined)
      this.#violated(
        'proof',
        `${name} has lost ${id} of ${service} from ${text(before.cursor)} to ${text(after.cursor)}, and nobody has removed it`,
      )
  }

  /** @returns what to call with the outcome of a `resolve` that begins now */
  resolving(client: ClientProcess, service: string, isDiskWell: () => boolean): (outcome: Resolved | Error) => void {
    const known = this.#shown.get(client.name)?.get(service)
    const found = this.#found.get(client.name)?.get(service)
    const { lives, process } = client
    const wasWell = isDiskWell()
    const thawedMs = process?.thawedMs
    return (outcome) => {
      this.checks++
      if (client.lives !== lives) return
      if (outcome instanceof Error) {
        if (outcome instanceof ResolveError && outcome.code === 'closed') return
        if (known && !known.isLie && known.cursor.revision > 0 && !known.answer.overridden)
          this.#violated('outage', `${client.name} knew ${service} and cannot resolve it: ${outcome.message}`)
        // A time that passes while the process stands still is no time to read in.
        else if (found && wasWell && isDiskWell() && process?.thawedMs === thawedMs)
          this.#violated(
            'file',
            `${client.name} has ${service} at ${text(found.cursor)} on disk and: ${outcome.message}`,
          )
        else if (!(outcome instanceof ResolveError)) this.#violated('errors', `${client.name}: ${String(outcome)}`)
        return
      }
      const { overridden, nodes, view } = outcome
      if (overridden || nodes.length > 0 || (view.emptied && this.#lies.has(view))) return
      const { cursor } = outcome
      const version = this.#model.epochs.get(cursor.epoch)?.at(keyOf(service), cursor.revision)
      // A store that was lost does not know of a service that had lost its nodes before.
      const wasEmpty = known !== undefined && known.answer.view.nodes.size === 0 && this.#model.epochs.size > 1
      if (version === undefined ? !wasEmpty : version.nodes.size > 0)
        this.#violated('failure', `${client.name} was answered no nodes of ${service} at ${text(cursor)}`)
    }
  }

  /** Now and then: what is followed is subscribed, whatever it was read from. */
  checkSubscribed(client: ClientProcess): void {
    const { carried, process, client: library } = client
    if (library === undefined || carried === undefined || process!.isFrozen) return
    if (this.#options.nowMs() - client.carriedSinceMs < SUBSCRIBE_MS) return
    this.checks++
    const before = this.#unsubscribed.get(client.name)
    const unsubscribed = new Set<string>()
    this.#unsubscribed.set(client.name, unsubscribed)
    for (const service of client.followed) {
      const answer = library.peek(service)
      if (answer === undefined || carried.has(keyOf(service))) continue
      // The first time its file may just be read, and is waited for.
      if (before?.has(service) === true)
        this.#violated('file', `${client.name} serves ${service} from ${answer.source}, and does not subscribe it`)
      unsubscribed.add(service)
    }
  }

  // ---- Writes ----

  /** Someone was answered. What was acknowledged must be there, or have been there since it was sent. */
  answered(who: string, request: RequestMessage, answer: AnswerMessage, sentMs: number): void {
    this.checks++
    const { method } = request
    if (answer.status === 500)
      return this.#violated('errors', `${who} was answered ${answer.body} to ${method} ${request.path}`)
    if (answer.status >= 300 || method === 'GET') return
    const epoch = this.#model.epochs.get((answer.headers['holdfast-cursor'] ?? '').split(':')[0]!)
    if (epoch === undefined) return this.#violated('errors', `${who} was answered without a cursor`)
    const body = JSON.parse(request.body ?? '{}') as Record<string, unknown>
    const url = new URL(request.path, 'http://registry')
    const lost = (what: string) => this.#violated('acknowledged', `${who} was told that ${what}, and it never was so`)
    const [, , kind, name = '', place, last] = url.pathname.split('/')
    if (kind === 'leases') {
      const id = method === 'POST' && name === '' ? (JSON.parse(answer.body) as { id: string }).id : name
      const lease = epoch.leases.get(id)
      if (method === 'DELETE') {
        if (lease && lease.endedMs === undefined) lost(`lease ${id} has ended`)
        return
      }
      const endedMs = lease?.endedMs ?? Infinity
      if (lease === undefined || endedMs < sentMs - UNNOTICED_MS) return lost(`lease ${id} is there`)
      // Whoever renews is told so the next time.
      if (endedMs < sentMs) return
      lease.renewedMs = [...lease.renewedMs, sentMs].slice(-2)
      return this.leaseEnded(lease)
    }
    const key = keyOf(name)
    const versions = epoch.sinceTime(key, sentMs)
    if (place === 'policy') {
      const wanted = method === 'DELETE' ? undefined : JSON.stringify(body)
      if (!versions.some((version) => (version?.policy && JSON.stringify(version.policy)) === wanted))
        lost(`${name} has the policy ${wanted}`)
      return
    }
    const id = decodeURIComponent(last ?? '')
    if (method === 'DELETE') {
      if (versions.every((version) => version?.nodes.has(id))) lost(`${name}/${id} is gone`)
    } else if (method === 'PUT') {
      const isThere = versions.some((version) => {
        const entry = version?.nodes.get(id)
        if (entry === undefined || entry.lease !== body.lease || entry.node.port !== body.port) return false
        const { registered, incarnation } = entry.node
        return (
          incarnation === (body.incarnation ?? incarnation) &&
          registered.weight === (body.weight ?? 100) &&
          registered.status === (body.status ?? 'up')
        )
      })
      if (!isThere) lost(`${name}/${id} is ${request.body}`)
    } else if (method === 'PATCH') {
      const { override } = body as { override: { weight?: number } | null }
      const isThere = versions.some((version) => version?.nodes.get(id)?.node.override?.weight === override?.weight)
      if (!isThere && answer.status === 200) lost(`${name}/${id} has the override ${request.body}`)
    }
  }

  /** A lease that ended, or of which more is known. */
  leaseEnded({ lease, renewedMs, endedMs, endCause }: LeaseTruth): void {
    if (endCause !== 'lease_expired' || endedMs === undefined) return
    this.checks++
    // The last may die with the replica that acknowledged it, before it was told to the others.
    const [heardMs = -Infinity] = renewedMs.length < 2 ? [] : renewedMs
    if (lease.ttlMs > 0 && endedMs < heardMs + lease.ttlMs)
      this.#violated(
        'lease',
        `lease ${lease.id} of ${lease.ttlMs} ms was renewed at ${renewedMs.join(' and ')} ms, and ended at ${endedMs}`,
      )
  }

  /** @param owner the process that keeps this very instance registered, if one does */
  removed({ key, entry, cause, by, revision }: Removed, owner: string | undefined): void {
    this.checks++
    if (owner !== undefined && cause === 'deregistered')
      this.#violated(
        'fencing',
        `${key}/${entry.node.id} of incarnation ${entry.node.incarnation} was deregistered at ${revision} by ${by}, and ` +
          `${owner} keeps it registered`,
      )
  }

  // ---- Now and then ----

  checkBounds(counts: {
    readonly timers: Iterable<readonly [name: string, count: number]>
    readonly connections: Iterable<readonly [name: string, count: number, peers: number]>
    readonly files: Iterable<readonly [name: string, count: number, services: number]>
  }): void {
    this.checks++
    for (const [name, count] of counts.timers)
      if (count > MAX_TIMERS) this.#violated('bounds', `${name} has ${count} timers, at most ${MAX_TIMERS} expected`)
    for (const [name, count, peers] of counts.connections) {
      const max = MAX_CONNECTIONS + peers * MAX_ASKED
      if (count > max) this.#violated('bounds', `${name} has ${count} connections, at most ${max} expected`)
    }
    for (const [name, count, services] of counts.files)
      if (count > services * MAX_FILES_PER_SERVICE)
        this.#violated('bounds', `${name} has ${count} files of ${services} services`)
  }

  #revisions(epoch: Epoch, service: string): string {
    return (epoch.services.get(keyOf(service)) ?? []).map(({ revision }) => revision).join() || 'none'
  }

  #violated(invariant: Invariant, message: string): void {
    this.#options.violated(new Violation(invariant, message))
  }
}
