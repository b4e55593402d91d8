import type { Log } from '@holdfast/registry-client/log'
import type { Entrance } from '../local/local-services.ts'
import type { LocalSpec } from '../local/local-spec.ts'
import type { DataPlane } from '../planes.ts'

/** A port that a service asked for, and that somebody else has. */
export class EntranceError extends Error {
  constructor(message: string, cause: unknown) {
    super(message, { cause })
    this.name = 'EntranceError'
  }
}

export interface TcpEntrancesOptions {
  readonly plane: Pick<DataPlane, 'open' | 'shut'>
  readonly namespace: string
  /** Where they listen. */
  readonly host: string
  /** What others are told. */
  readonly advertise: string
  /** For the connections of one that is replaced, in milliseconds. */
  readonly drainMs: number
  /** The ports that services had before, by name: the registry and everybody's views still name them. */
  readonly remembered: ReadonlyMap<string, number>
  readonly log: Log
}

/**
 * The inbound side of local services that speak no HTTP: each has a port of its own, since nothing in its bytes says
 * whom they are for. What is passed on there are the bytes as they are, so anybody may connect.
 */
export class TcpEntrances {
  readonly #options: TcpEntrancesOptions
  readonly #open = new Map<string, Entrance>()
  #opened = 0

  constructor(options: TcpEntrancesOptions) {
    this.#options = options
  }

  /** Ports by service, to be remembered. */
  get ports(): ReadonlyMap<string, number> {
    return new Map([...this.#open].map(([service, { port }]) => [service, port]))
  }

  /**
   * The entrance of a service: the one that it has if that is on the port it asks for, or a new one on that port, else
   * on the one that it had before, else on a free one.
   * @param isRestored whether it was registered before this process began, so that another port is better than none
   * @throws EntranceError when the port that it asks for cannot be had
   */
  async enter(spec: LocalSpec, isRestored: boolean): Promise<Entrance> {
    const { service, inboundPort } = spec
    const present = this.#open.get(service)
    if (present && (inboundPort === undefined || inboundPort === present.port)) return present
    const { plane, advertise, drainMs } = this.#options
    const id = `entrance ${++this.#opened}`
    const entrance: Entrance = {
      host: advertise,
      port: await this.#listen(id, service, inboundPort, isRestored),
      close: () => {
        if (this.#open.get(service) === entrance) this.#open.delete(service)
        void plane.shut(id, { idleMs: 0, timeoutMs: drainMs })
      },
    }
    this.#open.set(service, entrance)
    return entrance
  }

  async #listen(id: string, service: string, wanted: number | undefined, isRestored: boolean): Promise<number> {
    const { plane, host, namespace, remembered, log } = this.#options
    const before = remembered.get(service)
    const bind = (port: number) => plane.open({ id, direction: 'inbound', host, port, tcp: { service, namespace } })
    const [first = 0, ...others] = [wanted, before].filter((port) => port !== undefined)
    try {
      return await bind(first)
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      if (code !== 'EADDRINUSE' && code !== 'EACCES') throw error
      if (wanted !== undefined && !isRestored) throw new EntranceError(message, error)
      log.warn({ service, port: first, reason: message }, 'the port of a service cannot be had; it gets another one')
      for (const port of others) {
        const taken = await bind(port).catch(() => undefined)
        if (taken !== undefined) return taken
      }
      return bind(0)
    }
  }
}
