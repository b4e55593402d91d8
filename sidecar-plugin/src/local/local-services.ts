import { SidecarError } from '../errors.ts'
import type { LocalSpec } from './local-spec.ts'
import type { Health, LocalState } from './local-registration.ts'

/** Keeps one service registered: a `LocalRegistration`, or what plays one. */
export interface Keeper {
  readonly id: string
  readonly state: LocalState
  readonly health: Health
  readonly refusal: string | undefined
  readonly inFlight: number
  start(): void
  stop(): void
  begin(): () => void
  settled(limitMs: number): Promise<void>
  drain(): Promise<void>
  idle(limitMs: number): Promise<void>
  close(): Promise<void>
}

/** What the admin API shows of a registration. */
export interface LocalReport {
  readonly service: string
  readonly namespace: string
  readonly id: string
  /** What others call: an address of the sidecar. */
  readonly host: string
  readonly port: number
  readonly localPort: number
  readonly state: LocalState
  readonly health: Health
  readonly refusal?: string
  readonly inFlight: number
}

/** What others call of a service: an address of the sidecar. */
export interface Entrance {
  readonly host: string
  readonly port: number
  /** It is nobody's any more, or not this one's. */
  close(): void
}

interface Entry {
  readonly spec: LocalSpec
  readonly keeper: Keeper
  readonly entrance: Entrance
  /** Whether a restart has to remember it; what the configuration names comes back by itself. */
  readonly isSaved: boolean
}

export interface LocalServicesOptions {
  readonly namespace: string
  /**
   * What other hosts call; for a service that has an entrance already, that one where it fits.
   * @param isRestored whether it was registered before this process began
   */
  readonly enter: (spec: LocalSpec, isRestored: boolean) => Promise<Entrance>
  /** Where the services listen. */
  readonly localHost: string
  readonly keeper: (spec: LocalSpec, entrance: Entrance) => Keeper
  /** Called with the whole set after each change made by a request. */
  readonly save: (specs: readonly LocalSpec[]) => Promise<void>
  /** How long a request waits for a first check and the registry, in milliseconds. */
  readonly patienceMs: number
  /** How long `remove` waits for requests under way. */
  readonly drainMs: number
}

/** The services behind this sidecar. A service is served from the moment it is added, registered or not. */
export class LocalServices {
  readonly #options: LocalServicesOptions
  readonly #entries = new Map<string, Entry>()
  /** Changes of one service one after the other, so that a removal and a registration cannot overtake each other. */
  readonly #queues = new Map<string, Promise<unknown>>()
  #closing = false

  constructor(options: LocalServicesOptions) {
    this.#options = options
  }

  get size(): number {
    return this.#entries.size
  }

  /**
   * Adds what is known at the start, without waiting for its check and without saving. An earlier one of the same name
   * stays.
   */
  async add(spec: LocalSpec, isSaved: boolean): Promise<void> {
    if (this.#entries.has(spec.service)) return
    this.#set(spec, await this.#options.enter(spec, isSaved), isSaved)
  }

  /**
   * Registers, or changes what was registered; waits a little for its first check and for the registry.
   * @throws SidecarError `draining` once everything is being deregistered
   */
  put(spec: LocalSpec): Promise<{ readonly created: boolean; readonly report: LocalReport }> {
    return this.#queued(spec.service, async () => {
      if (this.#closing) throw new SidecarError('draining', 'this sidecar takes no registrations any more')
      const old = this.#entries.get(spec.service)
      if (old === undefined || JSON.stringify(old.spec) !== JSON.stringify(spec)) {
        // What fails here leaves the old one as it is.
        const entrance = await this.#options.enter(spec, false)
        // The old registration lets go first: two of one node id would fence each other out.
        await old?.keeper.close()
        this.#set(spec, entrance, true)
        if (old && old.entrance !== entrance) old.entrance.close()
        await this.#save()
      }
      const entry = this.#entries.get(spec.service)!
      await entry.keeper.settled(this.#options.patienceMs)
      return { created: old === undefined, report: this.#report(entry) }
    })
  }

  /**
   * Drains, then deregisters. While it drains it is still served.
   * @returns whether it was there
   */
  remove(service: string): Promise<boolean> {
    return this.#queued(service, async () => {
      const entry = this.#entries.get(service)
      if (entry === undefined) return false
      await entry.keeper.drain()
      await entry.keeper.idle(this.#options.drainMs)
      await entry.keeper.close()
      this.#entries.delete(service)
      entry.entrance.close()
      await this.#save()
      return true
    })
  }

  /** Deregisters all, which stay served. Returns once acknowledged, or when the client's patience has ended. */
  async deregister(): Promise<void> {
    this.#closing = true
    await Promise.all([...this.#entries.values()].map(({ keeper }) => keeper.close()))
  }

  /** Ends all checks without telling the registry. */
  stop(): void {
    this.#closing = true
    for (const { keeper } of this.#entries.values()) keeper.stop()
  }

  /**
   * The target of a request or of a TCP connection, for the inbound stacks.
   * @param overTcp what comes in by an entrance of TCP is for those who have one, and nothing else is
   */
  find(service: string, namespace: string, overTcp = false) {
    const entry = namespace === this.#options.namespace ? this.#entries.get(service) : undefined
    if (entry === undefined || (entry.spec.protocol === 'tcp') !== overTcp) return undefined
    const { keeper, spec } = entry
    return {
      destination: { id: keeper.id, host: this.#options.localHost, port: spec.port, protocol: spec.protocol ?? 'http' },
      begin: () => keeper.begin(),
    }
  }

  reports(): LocalReport[] {
    return [...this.#entries.values()].map((entry) => this.#report(entry))
  }

  #set(spec: LocalSpec, entrance: Entrance, isSaved: boolean): void {
    const keeper = this.#options.keeper(spec, entrance)
    this.#entries.set(spec.service, { spec, keeper, entrance, isSaved })
    keeper.start()
  }

  #report({ spec, keeper, entrance: { host, port } }: Entry): LocalReport {
    return {
      service: spec.service,
      namespace: this.#options.namespace,
      id: keeper.id,
      host,
      port,
      localPort: spec.port,
      state: keeper.state,
      health: keeper.health,
      ...(keeper.refusal !== undefined && { refusal: keeper.refusal }),
      inFlight: keeper.inFlight,
    }
  }

  #save(): Promise<void> {
    return this.#options.save([...this.#entries.values()].filter((entry) => entry.isSaved).map(({ spec }) => spec))
  }

  #queued<T>(service: string, run: () => Promise<T>): Promise<T> {
    const result = (this.#queues.get(service) ?? Promise.resolve()).then(run, run)
    const settled = result.catch(() => {})
    this.#queues.set(service, settled)
    void settled.then(() => {
      if (this.#queues.get(service) === settled) this.#queues.delete(service)
    })
    return result
  }
}
