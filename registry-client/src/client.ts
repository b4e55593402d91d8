/**
 * COMPOSER of the client library: memory over files over the registry, selection on top, registration beside it; and
 * the calls that programs make of it.
 */

import { hostname } from 'node:os'
import { parseDuration, systemClock, systemRandom, type Clock, type Random } from './clock.ts'
import { Connection, type ConnectionStatus } from './connection.ts'
import { systemDisk, type Disk } from './disk.ts'
import { FileCache, type FileCacheStatus } from './file-cache.ts'
import { FollowedServices, isUnknown, keyOf, type Followed } from './followed-services.ts'
import { silentLog, type Log } from './log.ts'
import { MemoryCache, type Entry } from './memory-cache.ts'
import { systemNetwork, type Network } from './network.ts'
import {
  DEFAULT_NAMESPACE,
  isNamespace,
  isServiceName,
  LIMITS,
  type Cursor,
  type PolicyDocument,
  type ServiceNode,
  type View,
} from './protocol.ts'
import { Registrar, type NodeRegistration, type Registration } from './registrar.ts'
import { NoNodesError, Selector, type NodeReport, type Pick } from './selector.ts'

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
/** How long a registration waits for a registry that cannot be reached before it returns as pending. */
const PATIENCE_MS = 3_000
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

export class RegistryClient {
  readonly #clock: Clock
  readonly #namespace: string
  readonly #connection: Connection
  readonly #files: FileCache | undefined
  readonly #memory: MemoryCache
  readonly #services: FollowedServices
  readonly #registrar: Registrar
  #closing = false
  #closed = false

  /** Use {@link connect}. */
  constructor(options: ConnectOptions) {
    const { clock = systemClock, random = systemRandom, log = silentLog, namespace = DEFAULT_NAMESPACE } = options
    const endpoints = options.endpoints.map((endpoint) => endpoint.replace(/\/+$/, ''))
    const { network = systemNetwork, disk = systemDisk, cacheDir } = options
    this.#clock = clock
    this.#namespace = namespace
    this.#connection = new Connection(
      { endpoints, network, clock, random, log },
      {
        event: (event, session) => this.#services.event(event, session),
        reachable: (reachable) => {
          if (!reachable) return
          this.#services.reconnected()
          // A registry that is back may have forgotten our lease: find out now, not at the next renewal.
          this.#registrar.nudge()
        },
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
      evicted: (key, entry) => this.#services.drop(key, entry),
    })
    if (cacheDir !== undefined) this.#files = new FileCache({ directory: cacheDir, disk, clock, log })
    this.#services = new FollowedServices({
      memory: this.#memory,
      files: this.#files,
      subscriptions: this.#connection,
      selectorOf: (service) => new Selector(service, clock, random),
      clock,
      log,
    })
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
    await this.#files?.open({ changed: (namespace, service) => void this.#services.fileChanged(namespace, service) })
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
    const served = this.#follow(service, options)
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
      if (!(await this.#services.until(served, fresh, deadlineMs, signal)))
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
    const served = this.#services.find(options?.namespace ?? this.#namespace, service)
    if (served === undefined) throw new NoNodesError(service, 0)
    // A pick is use: without this a service that is called all the time could be evicted.
    this.#memory.get(served.key)
    return served.selector.pick(options?.not)
  }

  /** What calls have shown of a service's nodes. */
  nodeReports(service: string, options: ServiceOptions = {}): NodeReport[] {
    return this.#services.find(options.namespace ?? this.#namespace, service)?.selector.report() ?? []
  }

  /**
   * The current view, then each change, until the loop is left, the signal aborts, or the client closes. A slow consumer
   * gets the latest, not each. The service is never evicted meanwhile.
   */
  async *watch(
    service: string,
    options: ServiceOptions & { readonly signal?: AbortSignal } = {},
  ): AsyncGenerator<Resolved, void, undefined> {
    const served = this.#follow(service, options)
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
        } else await this.#services.until(served, () => shown() !== last, Infinity, options.signal)
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
      ...this.#services.counts,
    }
  }

  /** Deregisters what is registered, writes what is not yet on disk, and lets go of everything. */
  async close(): Promise<void> {
    if (this.#closed || this.#closing) return
    this.#closing = true
    await this.#registrar.close()
    this.#closed = true
    this.#connection.close()
    this.#services.close()
    await this.#files?.close()
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

  #follow(service: string, options: ServiceOptions): Followed {
    const namespace = options.namespace ?? this.#namespace
    if (!isNamespace(namespace)) throw new TypeError(`not a namespace: ${JSON.stringify(namespace.slice(0, 80))}`)
    if (!isServiceName(service)) throw new TypeError(`not a service name: ${JSON.stringify(service.slice(0, 80))}`)
    if (this.#closed) throw new ResolveError('closed', service, ['the client is closed'])
    return this.#services.follow(namespace, service)
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
