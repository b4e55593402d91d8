import { sleep, type Clock } from '@holdfast/registry-client/clock'
import type { Protocol } from '@holdfast/registry-client/protocol'
import type { Destination } from '../layer.ts'
import type { LocalTarget } from '../layers/local.ts'

/** A service of this host, as those need to know it who carry its traffic. */
export interface LocalNode {
  readonly service: string
  readonly id: string
  /** Where the service really listens. */
  readonly port: number
  readonly protocol: Protocol
}

/** Where the local services listen. */
export const LOCAL_HOST = '127.0.0.1'

class Entry implements LocalTarget {
  destination: Destination
  inFlight = 0
  readonly #idle = new Set<() => void>()

  constructor(destination: Destination) {
    this.destination = destination
  }

  begin(): () => void {
    this.inFlight++
    return () => {
      this.inFlight--
      if (this.inFlight > 0) return
      for (const resolve of this.#idle) resolve()
      this.#idle.clear()
    }
  }

  idle(): Promise<void> {
    return this.inFlight === 0 ? Promise.resolve() : new Promise((resolve) => this.#idle.add(resolve))
  }
}

/** The services that the inbound side passes to, and what is under way for each. */
export class LocalNodes {
  readonly #namespace: string
  readonly #clock: Clock
  readonly #entries = new Map<string, Entry>()

  constructor(options: { namespace: string; clock: Clock }) {
    this.#namespace = options.namespace
    this.#clock = options.clock
  }

  /** Adds one, or moves it: what is under way goes on where it is. */
  set({ service, id, port, protocol }: LocalNode): void {
    const destination = { id, host: LOCAL_HOST, port, protocol }
    const entry = this.#entries.get(service)
    if (entry) entry.destination = destination
    else this.#entries.set(service, new Entry(destination))
  }

  forget(service: string): void {
    this.#entries.delete(service)
  }

  /**
   * The target of a request or of a TCP connection.
   * @param overTcp what comes in by an entrance of TCP is for those who have one, and nothing else is
   */
  find(service: string, namespace: string, overTcp = false): LocalTarget | undefined {
    const entry = namespace === this.#namespace ? this.#entries.get(service) : undefined
    return entry && (entry.destination.protocol === 'tcp') === overTcp ? entry : undefined
  }

  /** Requests and connections under way, by service. */
  get inFlight(): Readonly<Record<string, number>> {
    return Object.fromEntries([...this.#entries].map(([service, { inFlight }]) => [service, inFlight]))
  }

  /** Resolves when nothing is under way for it, or after `limitMs`. */
  async idle(service: string, limitMs: number): Promise<void> {
    const limit = new AbortController()
    await Promise.race([this.#entries.get(service)?.idle(), sleep(this.#clock, limitMs, limit.signal)])
    limit.abort()
  }
}
