/**
 * COMPOSER of the client library: memory over files over the registry, selection on top, registration beside it.
 * Whatever level a view comes from, it passes the memory cache's gate and then feeds its selector, its watchers and
 * its file; nothing is decided here.
 */

import { hostname } from 'node:os'
import { parseDuration, sleep, systemClock, systemRandom, type Clock, type Random } from './clock.ts'
import { Connection, type ConnectionStatus, type Session } from './connection.ts'
import { systemDisk, type Disk } from './disk.ts'
import { FileCache, type FileCacheStatus } from './file-cache.ts'
import { silentLog, type Log } from './log.ts'
import { Entry, MemoryCache, type Origin } from './memory-cache.ts'
import { systemNetwork, type Network } from './network.ts'
import {
  DEFAULT_NAMESPACE,
  fold,
  isNamespace,
  isServiceName,
  LIMITS,
  type Cursor,
  type PolicyDocument,
  type Removal,
  type ServiceNode,
  type StreamEvent,
  type View,
} from './protocol.ts'
import { Registrar, type NodeRegistration, type Registration } from './registrar.ts'
import { NoNodesError, Selector, type NodeReport, type Pick, type SelectorStrategy } from './selector.ts'

export interface ConnectOptions {
  /** Base URLs of registries that hold the same state. */
  readonly endpoints: readonly string[]
  /** Left out: nothing is kept on disk, and a restart during an outage knows nothing. */
  readonly cacheDir?: string | undefined
  /** Of services named without one. Default `default`. */
  readonly namespace?: string
  /** Of the nodes that this process registers. */
  readonly zone?: string | undefined
  /** Life of this process's registrations without a word of it. Default 15 s, from 2 s to 1 h. */
  readonly leaseTtlMs?: number
  /** Nodes kept in memory for services that nobody watches. Default 100,000. */
  readonly maxNodes?: number
  /** Services kept in memory, and followed, that nobody watches. Default 20,000. */
  readonly maxServices?: number
  readonly log?: Log
  readonly clock?: Clock
  readonly random?: Random
  readonly network?: Network
  readonly disk?: Disk
}

/**
 * Where an answer came from: `registry` when this call waited for it, `memory`, or `file` for what was read from disk
 * and has not been confirmed by the registry since.
 */
export type Source = 'memory' | 'file' | 'registry'

/** A view as it is answered. Immutable. */
export interface Resolved {
  readonly view: View
  readonly nodes: readonly ServiceNode[]
  readonly policy: PolicyDocument | undefined
  readonly cursor: Cursor
  readonly source: Source
  /** Milliseconds since the view was known to be current; it grows only while the registry is silent. */
  readonly age: number
  /** Whether the registry is connected now. */
  readonly reachable: boolean
  /** Whether an operator's override file is in force. */
  readonly overridden: boolean
}

/** No view that answers the call. `tried` names each level with what it said. */
export class ResolveError extends Error {
  /** `unknown_service`: the registry never heard of it; `stale`: what is known is older than allowed. */
  readonly code: 'unknown_service' | 'unresolved' | 'stale' | 'closed'
  readonly tried: readonly string[]
  constructor(code: ResolveError['code'], service: string, tried: readonly string[]) {
    super(`${service}: ${code.replace('_', ' ')} (${tried.join('; ')})`)
    this.name = 'ResolveError'
    this.code = code
    this.tried = tried
  }
}

export interface ServiceOptions {
  readonly namespace?: string
}

export interface ResolveOptions extends ServiceOptions {
  /** The oldest view to accept, as `10m`; a number counts milliseconds. Default: any age. */
  readonly maxStale?: string | number
  /** How long to wait for the registry, as `5s`; a number counts milliseconds. Default 5 s. */
  readonly deadline?: string | number
  readonly signal?: AbortSignal
}

export interface PickOptions extends ServiceOptions {
  /** What the strategies that hash choose by. The strategies of this version take turns or draw, whatever it is. */
  readonly key?: string
  /** Nodes that this call has tried already. */
  readonly not?: ReadonlySet<string>
}

export interface ClientStatus {
  readonly connection: ConnectionStatus
  readonly file: FileCacheStatus | undefined
  readonly services: number
  /** Services of which the registry leaves out nodes without a cause; those are served all the same. */
  readonly quarantined: readonly string[]
  readonly overridden: readonly string[]
  readonly registrations: number
  readonly snapshots: number
  readonly changes: number
  readonly restarts: number
}

const DEFAULT_DEADLINE_MS = 5_000
const DEFAULT_LEASE_TTL_MS = 15_000
const DEFAULT_MAX_NODES = 100_000
/** Far below what a registry takes on one stream; whoever calls more services than this calls them all rarely. */
const DEFAULT_MAX_SERVICES = 20_000
const MAX_UNKNOWN = 1_000
/** A name that was mistyped, or is about to be registered: known to be unknown for so long, then asked for again. */
const UNKNOWN_MS = 60_000
/** How often files of unchanged views are dated anew. */
const DATING_MS = 30_000
/** How long a registration waits for a registry that cannot be reached before it returns as pending. */
const PATIENCE_MS = 3_000
/** How long the registry waits for a disk that does not answer: then the service is subscribed without a cursor. */
const LOAD_PATIENCE_MS = 1_000

/**
 * Starts a client. Never fails because the registry is down: what is in the cache directory answers meanwhile.
 * @throws TypeError for options that cannot be used
 */
export async function connect(options: ConnectOptions): Promise<RegistryClient> {
  if (!Array.isArray(options.endpoints) || options.endpoints.length === 0)
    throw new TypeError('endpoints: at least one is needed')
  for (const endpoint of options.endpoints as readonly string[])
    if (!/^https?:\/\/[^/?#]+/.test(endpoint) || !URL.canParse(endpoint))
      throw new TypeError(`endpoints: not an http URL: ${endpoint}`)
  if (options.namespace !== undefined && !isNamespace(options.namespace))
    throw new TypeError(`namespace: not a namespace: ${options.namespace}`)
  const { leaseTtlMs = DEFAULT_LEASE_TTL_MS } = options
  if (!(leaseTtlMs >= LIMITS.leaseTtlMinMs && leaseTtlMs <= LIMITS.leaseTtlMaxMs))
    throw new TypeError(`leaseTtlMs: must be ${LIMITS.leaseTtlMinMs}..${LIMITS.leaseTtlMaxMs}, got ${leaseTtlMs}`)
  if (options.zone !== undefined && !isNamespace(options.zone))
    throw new TypeError(`zone: must be lower-case letters, digits and -: ${options.zone}`)
  if (options.cacheDir === '') throw new TypeError('cacheDir: must not be empty; leave it out to keep nothing on disk')
  for (const name of ['maxNodes', 'maxServices'] as const) {
    const value = options[name]
    if (value !== undefined && !(Number.isInteger(value) && value > 0))
      throw new TypeError(`${name}: must be an integer above zero, got ${value}`)
  }
  const client = new RegistryClient(options)
  await client.open()
  return client
}

interface Served {
  readonly key: string
  readonly entry: Entry
  readonly selector: Selector
  readonly watchers: Set<() => void>
  /** The life of the stream on which a fresh snapshot was asked for and has not come yet. */
  restarted: Session | undefined
  /** The one read of the file; settled once its view was offered. */
  loading: Promise<void> | undefined
}

export class RegistryClient {
  readonly #clock: Clock
  readonly #random: Random
  readonly #log: Log
  readonly #namespace: string
  readonly #connection: Connection
  readonly #files: FileCache | undefined
  readonly #memory: MemoryCache
  readonly #registrar: Registrar
  readonly #served = new WeakMap<Entry, Served>()
  /** By namespace, then by service: a lookup without building a key. */
  readonly #byName = new Map<string, Map<string, Served>>()
  /** Entries whose view this life of the stream has not confirmed yet. */
  readonly #unconfirmed = new Set<Entry>()
  /** Entries in which the registry leaves nodes out without proof. */
  readonly #quarantined = new Set<Entry>()
  /** Names that the registry never heard of, oldest first, with when it said so. */
  readonly #unknown = new Map<string, number>()
  #datedMs = -Infinity
  /** Files that are waited for. */
  readonly #loads = new Set<AbortController>()
  #closing = false
  #closed = false
  #snapshots = 0
  #changes = 0
  #restarts = 0

  /** Use {@link connect}. */
  constructor(options: ConnectOptions) {
    const { clock = systemClock, random = systemRandom, log = silentLog, namespace = DEFAULT_NAMESPACE } = options
    const endpoints = options.endpoints.map((endpoint) => endpoint.replace(/\/+$/, ''))
    const { network = systemNetwork, disk = systemDisk, cacheDir } = options
    this.#clock = clock
    this.#random = random
    this.#log = log
    this.#namespace = namespace
    this.#connection = new Connection(
      { endpoints, network, clock, random, log },
      {
        event: (event, session) => this.#event(event, session),
        reachable: (reachable) => this.#reachable(reachable),
        cursorOf: (key) => {
          const entry = this.#memory.peek(key)
          return (entry?.heard ?? entry?.view)?.cursor
        },
      },
    )
    this.#memory = new MemoryCache({
      maxNodes: options.maxNodes ?? DEFAULT_MAX_NODES,
      maxServices: options.maxServices ?? DEFAULT_MAX_SERVICES,
      clock,
      evicted: (key, entry) => this.#drop(key, entry),
    })
    if (cacheDir !== undefined) this.#files = new FileCache({ directory: cacheDir, disk, clock, log })
    this.#registrar = new Registrar({
      connection: this.#connection,
      clock,
      random,
      log,
      owner: `${hostname()}:${process.pid}`,
      namespace,
      zone: options.zone,
      ttlMs: options.leaseTtlMs ?? DEFAULT_LEASE_TTL_MS,
      patienceMs: PATIENCE_MS,
    })
  }

  /** Called by {@link connect}. */
  async open(): Promise<void> {
    await this.#files?.open({ changed: (namespace, service) => void this.#fileChanged(namespace, service) })
    this.#connection.open()
  }

  /**
   * What is known of a service: from memory, else from file, else the registry is waited for. Follows the service from
   * then on, so that the next call is answered from memory.
   * @throws ResolveError, TypeError for names that cannot be names
   */
  async resolve(service: string, options: ResolveOptions = {}): Promise<Resolved> {
    const { signal } = options
    const maxStaleMs = millisecondsOf(options.maxStale, 'maxStale') ?? Infinity
    const deadlineMs = millisecondsOf(options.deadline, 'deadline') ?? DEFAULT_DEADLINE_MS
    const served = this.#follow(this.#namespaceOf(options), service)
    const { entry } = served
    const fresh = () =>
      entry.served !== undefined && (entry.override !== undefined || entry.ageMs(this.#clock) <= maxStaleMs)
    const answer = (waited: boolean) => {
      if (!isUnknown(entry)) return this.#resolved(entry, waited)
      throw new ResolveError('unknown_service', service, ['the registry never heard of it'])
    }
    if (fresh()) return answer(false)
    // Whoever waits for a service watches it meanwhile: evicted, it would wait in vain.
    this.#memory.pin(served.key, entry)
    try {
      if (!(await this.#until(served, fresh, deadlineMs, signal)))
        throw this.#closed
          ? new ResolveError('closed', service, ['the client is closed'])
          : new ResolveError(entry.view ? 'stale' : 'unresolved', service, this.#tried(entry))
      return answer(true)
    } finally {
      this.#memory.unpin(served.key, entry)
    }
  }

  /** What memory knows of a service, without I/O and without following it. */
  peek(service: string, options: ServiceOptions = {}): Resolved | undefined {
    const entry = this.#memory.peek(keyOf(options.namespace ?? this.#namespace, service))
    return entry?.served && !isUnknown(entry) ? this.#resolved(entry, false) : undefined
  }

  /** Everything that memory holds. */
  views(): Resolved[] {
    return [...this.#memory.entries()].flatMap(([, entry]) =>
      entry.served && !isUnknown(entry) ? [this.#resolved(entry, false)] : [],
    )
  }

  /**
   * Chooses a node, synchronously and from memory. Tell its `done` how the call ended. Resolve or watch the service first.
   * @throws NoNodesError when none can take traffic, or nothing is known of the service
   */
  pick(service: string, options?: PickOptions): Pick {
    const served = this.#byName.get(options?.namespace ?? this.#namespace)?.get(service)
    if (served === undefined) throw new NoNodesError(service, 0)
    // A pick is use: without this a service that is called all the time could be evicted.
    this.#memory.get(served.key)
    return served.selector.pick(options?.not)
  }

  /** What calls have shown of a service's nodes. */
  nodeReports(service: string, options: ServiceOptions = {}): NodeReport[] {
    return (
      this.#byName
        .get(options.namespace ?? this.#namespace)
        ?.get(service)
        ?.selector.report() ?? []
    )
  }

  /**
   * The current view, then each change, until the loop is left, the signal aborts, or the client closes. A slow consumer
   * gets the latest, not each. The service is never evicted meanwhile.
   */
  async *watch(
    service: string,
    options: ServiceOptions & { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<Resolved, void, undefined> {
    const namespace = this.#namespaceOf(options)
    const served = this.#follow(namespace, service)
    const { entry } = served
    const shown = () => (isUnknown(entry) ? undefined : entry.served)
    this.#memory.pin(served.key, entry)
    try {
      await served.loading
      for (let last: View | undefined; ;) {
        if (this.#closed || options.signal?.aborted) return
        if (shown() !== undefined && shown() !== last) {
          last = shown()
          yield this.#resolved(entry, false)
        } else await this.#until(served, () => shown() !== last, Infinity, options.signal)
      }
    } finally {
      this.#memory.unpin(served.key, entry)
    }
  }

  /**
   * Registers a node and keeps it registered until it is closed. Returns once acknowledged; when the registry cannot be
   * reached, after a few seconds with the state `pending`, and goes on trying.
   * @throws RefusedError when the registry refuses it
   */
  register(node: NodeRegistration): Promise<Registration> {
    return this.#registrar.register(node)
  }

  status(): ClientStatus {
    const entries = [...this.#memory.entries()]
    const named = (test: (entry: Entry) => boolean) => entries.filter(([, entry]) => test(entry)).map(([key]) => key)
    return {
      connection: this.#connection.status(),
      file: this.#files?.status(),
      services: this.#memory.size,
      quarantined: named((entry) => entry.quarantined),
      overridden: named((entry) => entry.override !== undefined),
      registrations: this.#registrar.registrations.length,
      snapshots: this.#snapshots,
      changes: this.#changes,
      restarts: this.#restarts,
    }
  }

  /** Deregisters what is registered, writes what is not yet on disk, and lets go of everything. */
  async close(): Promise<void> {
    if (this.#closed || this.#closing) return
    this.#closing = true
    await this.#registrar.close()
    this.#closed = true
    this.#connection.close()
    for (const load of this.#loads) load.abort()
    for (const [, entry] of this.#memory.entries()) this.#notify(this.#served.get(entry))
    await this.#files?.close()
    for (const services of this.#byName.values()) for (const { selector } of services.values()) selector.close()
    this.#memory.clear()
    this.#byName.clear()
  }

  /** The entry of a service, subscribed and with its file on the way, from the first call on. */
  #follow(namespace: string, service: string): Served {
    if (!isServiceName(service)) throw new TypeError(`not a service name: ${JSON.stringify(service.slice(0, 80))}`)
    if (this.#closed) throw new ResolveError('closed', service, ['the client is closed'])
    const key = keyOf(namespace, service)
    const known = this.#memory.get(key)
    if (known) return this.#served.get(known)!
    const entry = new Entry(namespace, service)
    const selector = new Selector(service, this.#clock, this.#random)
    const served: Served = {
      key,
      entry,
      selector,
      watchers: new Set(),
      restarted: undefined,
      loading: undefined,
    }
    this.#served.set(entry, served)
    const services = this.#byName.get(namespace) ?? new Map<string, Served>()
    this.#byName.set(namespace, services.set(service, served))
    this.#memory.add(key, entry)
    this.#unconfirmed.add(entry)
    // Loaded first and subscribed with its cursor then, so that only what changed is sent; but always subscribed.
    served.loading = this.#loadInTime(entry).then(() => {
      served.loading = undefined
      if (this.#holds(entry)) this.#connection.subscribe(key, namespace, service)
    })
    return served
  }

  async #loadInTime(entry: Entry): Promise<void> {
    if (this.#files === undefined) return
    const loaded = new AbortController()
    this.#loads.add(loaded)
    void this.#load(this.#files, entry).then(() => loaded.abort())
    await sleep(this.#clock, LOAD_PATIENCE_MS, loaded.signal)
    this.#loads.delete(loaded)
  }

  /** Never rejects: what cannot be read is the file cache's business. */
  async #load(files: FileCache, entry: Entry): Promise<void> {
    const { namespace, service } = entry
    const loaded = await files.load(namespace, service)
    // Before the view is served, since an operator's word wins from the first answer on.
    const override = await files.override(namespace, service, entry.view ?? loaded?.view, entry.override)
    // Evicted, or everything closed, while the disk was read.
    if (!this.#holds(entry)) return
    const isNews = override !== entry.override
    entry.override = override
    if (loaded) this.#offer(entry, loaded.view, 'file', { heardMs: this.#clock.now() - loaded.ageMs })
    if (isNews) this.#publish(entry)
  }

  async #fileChanged(namespace: string, service: string): Promise<void> {
    const entry = this.#memory.peek(keyOf(namespace, service))
    if (this.#files && entry && !this.#served.get(entry)?.loading && !this.#closed) await this.#load(this.#files, entry)
  }

  #holds(entry: Entry): boolean {
    return !this.#closed && this.#memory.peek(keyOf(entry.namespace, entry.service)) === entry
  }

  #event(event: StreamEvent, session: Session): void {
    if (event.event !== 'ping') {
      const { frame } = event
      const { namespace, service } = frame.kind === 'snapshot' ? frame.view : frame
      const key = keyOf(namespace, service)
      const entry = this.#memory.peek(key)
      if (entry) {
        if (frame.kind === 'snapshot') this.#snapshots++
        else this.#changes++
        const served = this.#served.get(entry)!
        const next = fold(entry.heard ?? entry.view, frame)
        if (next) {
          if (frame.kind === 'snapshot') served.restarted = undefined
          this.#offer(entry, next, 'registry', session, frame.kind === 'change' ? frame.remove : [])
        } else if (served.restarted !== session) {
          // Once: the changes that follow before the snapshot comes do not continue the view either.
          served.restarted = session
          this.#restarts++
          this.#log.info({ namespace, service }, 'a change does not continue the view: asking for a snapshot')
          entry.heard = undefined
          this.#connection.restart(key)
        }
      }
    }
    if (event.id && (event.event === 'ping' || this.#unconfirmed.size > 0)) this.#confirm(event.id, session)
    if (event.event === 'ping') this.#tidy(session)
  }

  /**
   * Everything up to this id has been sent: each view of this epoch is current. Looks only at those that have not been
   * confirmed in this life of the stream yet; the others share its {@link Session}, which grows younger by itself.
   */
  #confirm(id: Cursor, session: Session): void {
    for (const entry of this.#unconfirmed) {
      const served = this.#served.get(entry)
      if (entry.view === undefined || entry.quarantined || entry.view.cursor.epoch !== id.epoch) continue
      if (served?.restarted === session) continue
      this.#unconfirmed.delete(entry)
      entry.confirmed = session
      entry.origin = 'registry'
      if (isKnown(entry.view)) this.#files?.confirm(entry.view)
      // Whoever waits for a view that is fresh enough may have it now.
      this.#notify(served)
    }
  }

  /** What is due now and then, with the pings: dates of files, names that nobody knows, nodes that did not come back. */
  #tidy(session: Session): void {
    const nowMs = this.#clock.now()
    for (const [key, sinceMs] of this.#unknown) {
      if (nowMs - sinceMs < UNKNOWN_MS) break
      this.#forgetUnknown(key)
    }
    for (const entry of this.#quarantined) if (entry.heard) this.#offer(entry, entry.heard, 'registry', session)
    if (nowMs - this.#datedMs < DATING_MS) return
    this.#datedMs = nowMs
    for (const [, { view, confirmed }] of this.#memory.entries())
      if (view && confirmed === session && isKnown(view)) this.#files?.confirm(view)
  }

  #forgetUnknown(key: string): void {
    this.#unknown.delete(key)
    const entry = this.#memory.peek(key)
    if (entry && isUnknown(entry) && entry.pins === 0) this.#memory.evict(key)
  }

  #offer(entry: Entry, next: View, origin: Origin, confirmed: Session, removed: readonly Removal[] = []): void {
    const { namespace, service } = entry
    const key = keyOf(namespace, service)
    const before = entry.served
    const verdict = this.#memory.offer(key, entry, next, origin, confirmed, removed)
    if (verdict === 'accepted' || verdict === 'current') {
      this.#quarantined.delete(entry)
      if (origin === 'registry') this.#unconfirmed.delete(entry)
    }
    if (verdict === 'unproven' && !this.#quarantined.has(entry)) {
      this.#quarantined.add(entry)
      const kept = (entry.carried?.nodes.size ?? 0) - next.nodes.size
      this.#log.warn({ namespace, service, kept }, 'the registry leaves out nodes without a cause: they stay')
    }
    if (verdict === 'accepted' && origin === 'registry') {
      if (isKnown(next)) {
        this.#unknown.delete(key)
        this.#files?.save(next)
      } else this.#noteUnknown(key)
    }
    if (entry.served !== before) this.#publish(entry)
    else if (verdict === 'current') this.#notify(this.#served.get(entry))
  }

  /** Names that nobody registered are remembered for a while, and few of them: a stranger can think of any number. */
  #noteUnknown(key: string): void {
    this.#unknown.delete(key)
    this.#unknown.set(key, this.#clock.now())
    if (this.#unknown.size > MAX_UNKNOWN) this.#forgetUnknown(this.#unknown.keys().next().value!)
  }

  #publish(entry: Entry): void {
    const served = this.#served.get(entry)
    served?.selector.update(entry.served, strategyOf(entry.served?.policy))
    this.#notify(served)
  }

  #notify(served: Served | undefined): void {
    if (served) for (const changed of [...served.watchers]) changed()
  }

  #drop(key: string, entry: Entry): void {
    this.#connection.unsubscribe(key)
    this.#unknown.delete(key)
    this.#unconfirmed.delete(entry)
    this.#quarantined.delete(entry)
    this.#files?.forget(entry.namespace, entry.service)
    this.#served.get(entry)?.selector.close()
    this.#byName.get(entry.namespace)?.delete(entry.service)
  }

  #reachable(reachable: boolean): void {
    if (!reachable) return
    for (const [, entry] of this.#memory.entries()) this.#unconfirmed.add(entry)
    // A registry that is back may have forgotten our lease: find out now, not at the next renewal.
    this.#registrar.nudge()
  }

  /** Waits until `test` holds after a change of the service; false when the deadline or the signal came first. */
  #until(served: Served, test: () => boolean, deadlineMs: number, signal: AbortSignal | undefined): Promise<boolean> {
    return new Promise((resolve) => {
      const end = (result: boolean) => {
        cancel()
        served.watchers.delete(changed)
        signal?.removeEventListener('abort', aborted)
        resolve(result)
      }
      const changed = () => {
        if (test()) end(true)
        else if (this.#closed) end(false)
      }
      const aborted = () => end(false)
      const cancel = deadlineMs === Infinity ? () => {} : this.#clock.after(deadlineMs, aborted)
      served.watchers.add(changed)
      signal?.addEventListener('abort', aborted, { once: true })
      if (signal?.aborted) end(false)
      else changed()
    })
  }

  #resolved(entry: Entry, waited: boolean): Resolved {
    const view = entry.served!
    const overridden = entry.override !== undefined
    return Object.freeze({
      view,
      nodes: nodesOf(view),
      policy: view.policy,
      cursor: view.cursor,
      source: overridden || entry.origin === 'file' ? 'file' : waited ? 'registry' : 'memory',
      age: overridden ? 0 : entry.ageMs(this.#clock),
      reachable: this.#connection.reachable,
      overridden,
    })
  }

  #namespaceOf(options: ServiceOptions): string {
    const namespace = options.namespace ?? this.#namespace
    if (!isNamespace(namespace)) throw new TypeError(`not a namespace: ${JSON.stringify(namespace.slice(0, 80))}`)
    return namespace
  }

  #tried(entry: Entry): string[] {
    const { reachable, endpoint, lastError } = this.#connection.status()
    return [
      entry.view ? `memory: ${Math.round(entry.ageMs(this.#clock))} ms old` : 'memory: nothing',
      this.#files === undefined
        ? 'file: no cache directory'
        : entry.view && entry.origin === 'file'
          ? 'file: nothing newer'
          : 'file: nothing readable',
      reachable ? 'registry: no answer in time' : `registry ${endpoint}: ${lastError ?? 'not connected yet'}`,
    ]
  }
}

const nodeLists = new WeakMap<View, readonly ServiceNode[]>()

/** Made once a view: an answer must not cost more for a larger service. */
function nodesOf(view: View): readonly ServiceNode[] {
  let nodes = nodeLists.get(view)
  if (nodes === undefined) nodeLists.set(view, (nodes = Object.freeze([...view.nodes.values()])))
  return nodes
}

function millisecondsOf(input: string | number | undefined, name: string): number | undefined {
  const ms = typeof input === 'string' ? parseDuration(input) : input
  if (input !== undefined && (ms === undefined || !(ms >= 0)))
    throw new TypeError(`${name}: must be a duration with its unit, such as 250ms, 15s or 10m, got ${input}`)
  return ms
}

/** Whether the registry says that it never heard of the service: nothing to serve. */
function isUnknown(entry: Entry): boolean {
  return entry.override === undefined && entry.view !== undefined && !isKnown(entry.view)
}

/** Whether the registry ever heard of the service; what it did not is not written to disk. */
function isKnown(view: View): boolean {
  return view.cursor.revision > 0
}

function keyOf(namespace: string, service: string): string {
  return `${namespace}/${service}`
}

/** Of the strategies that a policy may name, those that this version executes; the others fall back to taking turns. */
function strategyOf(policy: PolicyDocument | undefined): SelectorStrategy {
  const loadBalancing = policy?.loadBalancing as { strategy?: unknown } | undefined
  return loadBalancing?.strategy === 'random' ? 'random' : 'round_robin'
}
