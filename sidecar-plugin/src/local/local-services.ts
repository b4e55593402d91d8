import { SidecarError } from '../errors.ts'
import type { DataPlane } from '../planes.ts'
import type { LocalSpec } from './local-spec.ts'
import type { Health, LocalState } from './local-registration.ts'

/** Keeps one service registered: a `LocalRegistration`, or what plays one. */
export interface Keeper {
  readonly id: string
  readonly state: LocalState
  readonly health: Health
  readonly refusal: string | undefined
  start(): void
  stop(): void
  settled(limitMs: number): Promise<void>
  drain(): Promise<void>
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
  /** What has to know of each service before anybody is told that it does. */
  readonly plane: Pick<DataPlane, 'set' | 'forget' | 'idle' | 'inFlight'>
  readonly keeper: (spec: LocalSpec, entrance: Entrance) => Keeper
  /** Called with the whole set after each change made by a request. */
  readonly save: (specs: readonly LocalSpec[]) => Promise<void>
  /** How long a request waits for a first check and the registry, in milliseconds. */
  readonly patienceMs: number
  /** How long `remove` waits for requests under way. */
  readonly drainMs: number
}

/** The services behind this sidecar. A service is served once it is added, registered or not. */
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
   * Adds what is known at the start, without saving; {@link start} begins to look at it. An earlier one of the same name
   * stays.
   */
  async add(spec: LocalSpec, isSaved: boolean): Promise<void> {
    if (this.#entries.has(spec.service)) return
    await this.#set(spec, await this.#options.enter(spec, isSaved), isSaved)
  }

  /** Begins to look at what was added, now that it is served. */
  start(): void {
    for (const { keeper } of this.#entries.values()) keeper.start()
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
        const { keeper } = await this.#set(spec, entrance, true)
        keeper.start()
        if (old && old.entrance !== entrance) old.entrance.close()
        await this.#save()
      }
      const entry = this.#entries.get(spec.service)!
      await entry.keeper.settled(this.#options.patienceMs)
      const inFlight = await this.#options.plane.inFlight()
      return { created: old === undefined, report: this.#report(entry, inFlight) }
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
      await this.#options.plane.idle(service, this.#options.drainMs)
      await entry.keeper.close()
      this.#entries.delete(service)
      await this.#options.plane.forget(service)
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

  async reports(): Promise<LocalReport[]> {
    const inFlight = await this.#options.plane.inFlight()
    return [...this.#entries.values()].map((entry) => this.#report(entry, inFlight))
  }

  /** How many are in each state. */
  get states(): Readonly<Record<string, number>> {
    const counts: Record<string, number> = {}
    for (const { keeper } of this.#entries.values()) counts[keeper.state] = (counts[keeper.state] ?? 0) + 1
    return counts
  }

  async #set(spec: LocalSpec, entrance: Entrance, isSaved: boolean): Promise<Entry> {
    const keeper = this.#options.keeper(spec, entrance)
    const entry = { spec, keeper, entrance, isSaved }
    this.#entries.set(spec.service, entry)
    const { service, port, protocol = 'http' } = spec
    await this.#options.plane.set({ service, id: keeper.id, port, protocol })
    return entry
  }

  #report({ spec, keeper, entrance: { host, port } }: Entry, inFlight: Readonly<Record<string, number>>): LocalReport {
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
      inFlight: inFlight[spec.service] ?? 0,
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
