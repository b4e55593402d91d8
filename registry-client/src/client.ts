/**
 * COMPOSER of the client library: memory over files over peers over the registry, selection on top, registration beside
 * it; and the calls that programs make of it.
 */

import { hostname } from 'node:os'
import { attemptsAt, unknownAttempt, type Levels } from './cache/attempts.ts'
import { checkList, checkNamespace, checkObject, checkService, checkSignal, millisecondsOf } from './checks.ts'
import type { Clock } from './clock.ts'
import { countServices, type ClientMetrics, type ClientStatus } from './client-status.ts'
import { settingsOf, type ConnectOptions } from './connect-options.ts'
import { Connection } from './registry/connection.ts'
import { channels, type ConnectionMessage, type ResolveMessage } from './diagnostics.ts'
import { FileCache } from './files/file-cache.ts'
import { FollowedServices, isUnknown, type Followed } from './cache/followed-services.ts'
import type { Entry } from './cache/entry.ts'
import { MemoryCache } from './cache/memory-cache.ts'
import { OutageProbes } from './selection/outage-probes.ts'
import { Peers } from './cache/peers.ts'
import type { Cursor, View } from './protocol.ts'
import { Registrar } from './registry/registrar.ts'
import type { Registration } from './registry/registration.ts'
import type { NodeRegistration } from './node-registration.ts'
import { keyOf } from './service-key.ts'
import { rehearse, type Rehearsal, type ServiceName } from './cache/rehearsal.ts'
import {
  minimumOf,
  reaches,
  ResolveError,
  resolvedOf,
  type Minimum,
  type ResolveCode,
  type Resolved,
} from './cache/resolved.ts'
import { NoNodesError, Selector, type NodeReport, type Pick } from './selection/selector.ts'
import { show } from './shown.ts'

export interface ServiceOptions {
  readonly namespace?: string
}

export interface ResolveOptions extends ServiceOptions {
  /**
   * The oldest view to accept, as `10m`; a number counts milliseconds. What is older is confirmed by the registry first,
   * if it can be reached; 0 asks it in any case. Default: any age.
   */
  readonly maxStale?: string | number
  /**
   * A place of the store's history that the answer has to reflect: a revision of the history that the client follows, or
   * a whole cursor as a write's `holdfast-cursor` header gives it. Default: any.
   */
  readonly minRevision?: number | string
  /** How long to wait for the registry, as `5s`; a number counts milliseconds. Default 5 s. */
  readonly deadline?: string | number
  readonly signal?: AbortSignal
}

export interface WatchOptions extends ServiceOptions {
  readonly signal?: AbortSignal
}

export interface PickOptions extends ServiceOptions {
  /** What the strategies that hash choose by. The strategies of this version take turns or draw, whatever it is. */
  readonly key?: string
  /** Nodes that this call has tried already. */
  readonly not?: ReadonlySet<string>
}

const NO_OPTIONS = {}
/** More than a client follows by default, several times over. */
const MAX_REHEARSED = 100_000
const DEFAULT_DEADLINE_MS = 5_000
/** How long a registration waits for a registry that cannot be reached before it returns as pending. */
const PATIENCE_MS = 3_000

/**
 * Starts a client. Never fails because the registry is down: what is in the cache directory answers meanwhile.
 * @throws TypeError for options that cannot be used
 */
export async function connect(options: ConnectOptions): Promise<RegistryClient> {
  const client = new RegistryClient(options)
  await client.open()
  return client
}

export class RegistryClient {
  readonly #clock: Clock
  readonly #namespace: string
  readonly #connection: Connection
  readonly #files: FileCache | undefined
  readonly #memory: MemoryCache
  readonly #peers: Peers
  readonly #services: FollowedServices
  readonly #probes: OutageProbes | undefined
  readonly #registrar: Registrar
  readonly #calls = { memory: { hits: 0, misses: 0 }, registry: { hits: 0, misses: 0 } }
  #closing = false
  #closed = false

  /** Use {@link connect}. */
  constructor(options: ConnectOptions) {
    const settings = settingsOf(options)
    const { endpoints, peers, cacheDir, namespace, idleAfterMs, log, clock, random, network, disk } = settings
    this.#clock = clock
    this.#namespace = namespace
    this.#connection = new Connection(
      { endpoints, network, clock, random, log },
      {
        event: (event, session) => this.#services.event(event, session),
        reachable: (reachable) => {
          this.#announce(reachable)
          this.#probes?.reachable(reachable)
          if (!reachable) return this.#services.lost()
          this.#services.reconnected()
          // A registry that is back may have forgotten our lease: find out now, not at the next renewal.
          this.#registrar.nudge()
        },
        held: (key) => this.#services.held(key),
      },
    )
    this.#memory = new MemoryCache({
      maxNodes: settings.maxNodes,
      maxServices: settings.maxServices,
      clock,
      evicted: (key, entry) => this.#services.drop(key, entry),
    })
    if (cacheDir !== undefined)
      this.#files = new FileCache({ directory: cacheDir, disk, clock, log, maxBytes: settings.maxCacheBytes })
    this.#peers = new Peers({ urls: peers, maxNodes: settings.maxNodes, network, clock, random, log })
    this.#services = new FollowedServices({
      memory: this.#memory,
      files: this.#files,
      peers: this.#peers,
      subscriptions: this.#connection,
      selectorOf: (service) => new Selector(service, clock, random),
      idleAfterMs,
      clock,
      log,
    })
    const services = () => this.#services.inUse()
    if (settings.outageProbes) this.#probes = new OutageProbes({ services, network, clock, random, log })
    this.#registrar = new Registrar({
      connection: this.#connection,
      clock,
      random,
      log,
      owner: `${hostname()}:${process.pid}`,
      namespace,
      zone: settings.zone,
      ttlMs: settings.leaseTtlMs,
      patienceMs: PATIENCE_MS,
    })
  }

  /** Called by {@link connect}. */
  async open(): Promise<void> {
    await this.#files?.open({
      changed: (namespace, service) => void this.#services.fileChanged(namespace, service),
      replaces: (view, found) => this.#services.replacesFile(view, found),
    })
    this.#probes?.reachable(false)
    this.#connection.open()
  }

  /**
   * What is known of a service: from memory, else from file, else from a peer while the registry cannot be reached, else
   * the registry is waited for. Follows the service from then on, so that the next call is answered from memory.
   * @throws ResolveError, TypeError for names and options that cannot be
   */
  async resolve(service: string, options: ResolveOptions = {}): Promise<Resolved> {
    checkObject(options, 'options')
    checkSignal(options.signal)
    if (!channels.resolve.hasSubscribers) return this.#resolve(service, options)
    const startedMs = this.#clock.now()
    const ended = (resolved: Resolved | undefined, code: ResolveCode | undefined) => {
      const namespace = options.namespace ?? this.#namespace
      const durationMs = this.#clock.now() - startedMs
      channels.resolve.publish({ namespace, service, durationMs, resolved, code } satisfies ResolveMessage)
    }
    try {
      const resolved = await this.#resolve(service, options)
      ended(resolved, undefined)
      return resolved
    } catch (error) {
      if (error instanceof ResolveError) ended(undefined, error.code)
      throw error
    }
  }

  async #resolve(service: string, options: ResolveOptions): Promise<Resolved> {
    const { signal } = options
    const maxStaleMs = millisecondsOf(options.maxStale, 'maxStale') ?? Infinity
    const deadlineMs = millisecondsOf(options.deadline, 'deadline') ?? DEFAULT_DEADLINE_MS
    const minimum = minimumOf(options.minRevision)
    const served = this.#follow(service, options)
    const { entry } = served
    const calledMs = this.#clock.now()
    // What was known to be current after the call came is as young as an answer can be.
    const isYoung = () => entry.ageMs(this.#clock) <= maxStaleMs || entry.confirmed.heardMs >= calledMs
    // What a peer claims to know is no knowledge of it.
    const isThere = () => minimum === undefined || (entry.origin !== 'peer' && reaches(entry.asOf, minimum))
    // An operator's word is as new as now.
    const answers = () => entry.served !== undefined && (entry.override !== undefined || (isYoung() && isThere()))
    const answer = (waited: boolean) => {
      if (!isUnknown(entry)) return this.#resolved(entry, waited)
      throw new ResolveError('unknown_service', service, [unknownAttempt(entry, this.#levels())])
    }
    if (answers()) {
      this.#calls.memory.hits++
      return answer(false)
    }
    this.#calls.memory.misses++
    // Whoever waits for a service watches it meanwhile: evicted, it would wait in vain.
    this.#memory.pin(served.key, entry)
    try {
      const isWanting = minimum !== undefined || (entry.served !== undefined && !isYoung())
      const wanted = isWanting ? () => minimum && placeOf(minimum, entry) : undefined
      if (await this.#services.until(served, answers, deadlineMs, signal, wanted)) {
        if (entry.origin === 'registry') this.#calls.registry.hits++
        return answer(true)
      }
      if (this.#closed) throw closedError(service)
      this.#calls.registry.misses++
      const code = entry.served === undefined ? 'unresolved' : isYoung() ? 'behind' : 'stale'
      throw new ResolveError(code, service, attemptsAt(entry, minimum, this.#levels()))
    } finally {
      this.#memory.unpin(served.key, entry)
    }
  }

  /** What memory knows of a service, without I/O and without following it. */
  peek(service: string, options: ServiceOptions = {}): Resolved | undefined {
    const entry = this.#memory.peek(keyOf(...this.#named(service, options)))
    return entry?.served && !isUnknown(entry) ? this.#resolved(entry, false) : undefined
  }

  /**
   * What is known of a service from the registry, from memory, else from file, without following it and without asking
   * anyone: what a peer is told. Not what an operator's file makes of it here.
   */
  async lookup(service: string, options: ServiceOptions = {}): Promise<KnownView | undefined> {
    const [namespace, name] = this.#named(service, options)
    const entry = this.#memory.peek(keyOf(namespace, name))
    if (entry?.view && !isUnknown(entry))
      return {
        view: entry.carried ?? entry.view,
        age: entry.ageMs(this.#clock),
        source: entry.origin === 'registry' ? 'memory' : entry.origin,
      }
    const loaded = await this.#files?.peek(namespace, name)
    return loaded && { view: loaded.view, age: loaded.ageMs, source: 'file' }
  }

  /** Everything that memory holds. */
  views(): Resolved[] {
    return [...this.#memory.entries()].flatMap(([, entry]) =>
      entry.served && !isUnknown(entry) ? [this.#resolved(entry, false)] : [],
    )
  }

  /**
   * Chooses a node, synchronously and from memory. Tell its `done` how the call ended. Resolve or watch the service first.
   * @throws NoNodesError when none can take traffic, or nothing is known of the service; TypeError
   */
  pick(service: string, options: PickOptions = NO_OPTIONS): Pick {
    checkObject(options, 'options')
    const { namespace = this.#namespace, not } = options
    const served = this.#services.find(namespace, service)
    // What is found has a name that can be one.
    if (served === undefined) {
      this.#named(service, options)
      throw new NoNodesError(service, 0)
    }
    if (not !== undefined && !(not instanceof Set))
      throw new TypeError(`not: must be a Set of node ids, got ${show(not)}`)
    // A pick is use: without this a service that is called all the time could be evicted.
    this.#memory.get(served.key)
    return served.selector.pick(not)
  }

  /** What calls have shown of a service's nodes. */
  nodeReports(service: string, options: ServiceOptions = {}): NodeReport[] {
    return this.#services.find(...this.#named(service, options))?.selector.report() ?? []
  }

  /**
   * The current view, then each change, until the loop is left, the signal aborts, or the client closes. A slow consumer
   * gets the latest, not each. The service is never evicted meanwhile.
   * @throws TypeError at once for names and options that cannot be; ResolveError from the loop when the client is closed
   */
  watch(service: string, options: WatchOptions = {}): AsyncGenerator<Resolved, void, undefined> {
    const [namespace, name] = this.#named(service, options)
    const { signal } = options
    checkSignal(signal)
    return this.#watch(namespace, name, signal)
  }

  async *#watch(
    namespace: string,
    service: string,
    signal: AbortSignal | undefined,
  ): AsyncGenerator<Resolved, void, undefined> {
    const served = this.#follow(service, { namespace })
    const { entry } = served
    const shown = () => (isUnknown(entry) ? undefined : entry.served)
    this.#memory.pin(served.key, entry)
    try {
      await served.loading
      for (let last: View | undefined; ;) {
        if (this.#closed || signal?.aborted) return
        const now = shown()
        if (now !== undefined && now !== last) {
          last = now
          yield this.#resolved(entry, false)
        } else await this.#services.until(served, () => shown() !== now, Infinity, signal)
      }
    } finally {
      this.#memory.unpin(served.key, entry)
    }
  }

  /**
   * Registers a node and keeps it registered until it is closed. Returns once acknowledged; when the registry cannot be
   * reached, after a few seconds with the state `pending`, and goes on trying.
   * @throws TypeError for what cannot be a node, RefusedError when the registry refuses it
   */
  register(node: NodeRegistration): Promise<Registration> {
    return this.#registrar.register(node)
  }

  /**
   * Whether services would resolve if the registry died now: from memory as this process is, from file after a restart,
   * from a peer on a new host. Files are really read and peers really asked; nothing is changed by it.
   * @param services at most 100,000; default: all that memory holds
   * @param options `signal` ends it, with its reason
   */
  async rehearse(
    services?: readonly ServiceName[],
    options: { readonly signal?: AbortSignal } = {},
  ): Promise<Rehearsal[]> {
    if (services !== undefined) checkList(services, MAX_REHEARSED, 'services')
    checkObject(options, 'options')
    checkSignal(options.signal)
    const names = services ?? [...this.#memory.entries()].flatMap(([, entry]) => (isUnknown(entry) ? [] : [entry]))
    return rehearse(
      names.map((item, at) => {
        checkObject(item, `services.${at}`)
        const [namespace, service] = this.#named(item.service, item)
        return { namespace, service }
      }),
      {
        memory: ({ namespace, service }) => {
          const known = this.peek(service, { namespace })
          return known && { view: known.view, ageMs: known.age, overridden: known.overridden }
        },
        ...(this.#files && { file: this.#files }),
        ...(!this.#peers.isEmpty && { peers: this.#peers }),
        clock: this.#clock,
      },
      options.signal ?? new AbortController().signal,
    )
  }

  /** Whether the registry is connected now. */
  get reachable(): boolean {
    return this.#connection.reachable
  }

  status(): ClientStatus {
    const { counts, resumes, unknown } = this.#services
    return {
      connection: this.#connection.status(),
      file: this.#files?.status(),
      memory: this.#memory.status(),
      peers: this.#peers.status(),
      services: this.#memory.size,
      unknown: unknown.remembered,
      ahead: this.#services.ahead,
      ...countServices(this.#memory.entries(), this.#clock),
      outageProbes: this.#probes?.status(),
      registrations: this.#registrar.registrations.length,
      resumes: { ...resumes },
      ...counts,
    }
  }

  /** The same in numbers, for whatever collects them. Counts only grow while the client lives. */
  metrics(): ClientMetrics {
    const { levels, unknown } = this.#services
    return {
      ...this.status(),
      levels: {
        memory: { ...this.#calls.memory },
        file: { ...levels.file },
        peer: { ...levels.peer },
        registry: { ...this.#calls.registry },
      },
      negativeAnswers: unknown.noted,
    }
  }

  /** Deregisters what is registered, writes what is not yet on disk, and lets go of everything. */
  async close(): Promise<void> {
    if (this.#closed || this.#closing) return
    this.#closing = true
    await this.#registrar.close()
    this.#closed = true
    this.#connection.close()
    this.#probes?.close()
    this.#services.close()
    this.#peers.close()
    await this.#files?.close()
  }

  #announce(reachable: boolean): void {
    if (!channels.connection.hasSubscribers) return
    const { endpoint, lastError } = this.#connection.status()
    const reason = reachable ? undefined : lastError
    channels.connection.publish({ reachable, endpoint, reason } satisfies ConnectionMessage)
  }

  #resolved(entry: Entry, waited: boolean): Resolved {
    return resolvedOf(entry, this.#clock, this.#connection.reachable, waited)
  }

  #follow(service: string, options: ServiceOptions): Followed {
    const [namespace, name] = this.#named(service, options)
    if (this.#closed) throw closedError(service)
    return this.#services.follow(namespace, name)
  }

  /** @throws TypeError for names that cannot be names */
  #named(service: string, options: ServiceOptions = {}): [namespace: string, service: string] {
    checkObject(options, 'options')
    const { namespace = this.#namespace } = options
    checkNamespace(namespace)
    checkService(service)
    return [namespace, service]
  }

  #levels(): Levels {
    return {
      clock: this.#clock,
      hasFiles: this.#files !== undefined,
      peers: this.#peers.status(),
      connection: this.#connection.status(),
    }
  }
}

/** What the registry last said of a service. */
export interface KnownView {
  readonly view: View
  /** Milliseconds since it was known to be current. */
  readonly age: number
  readonly source: 'memory' | 'file' | 'peer'
}

/** The place that a caller waits for, as a cursor; undefined while no history is known to name it in. */
function placeOf(minimum: Minimum, entry: Entry): Cursor | undefined {
  const epoch = minimum.epoch ?? entry.asOf?.epoch
  return epoch !== undefined ? { epoch, revision: minimum.revision } : undefined
}

function closedError(service: string): ResolveError {
  return new ResolveError('closed', service, [{ level: 'memory', outcome: 'the client is closed' }])
}
