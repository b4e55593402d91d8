import type { LocalSpec } from './local-spec.ts'

/** A service that shall be where the sidecar is. The message says what stands there, for a field named `port`. */
export class OwnPortError extends Error {
  constructor(port: number, name: string) {
    super(`must be the port of the service: ${port} is ${name} port of the sidecar itself`)
    this.name = 'OwnPortError'
  }
}

/** Of a listener there, connections to local services would be. */
const LOCAL_HOSTS: ReadonlySet<string> = new Set(['127.0.0.1', 'localhost', '0.0.0.0', '::'])

/** Where this sidecar listens: what is passed on to one of these comes back, and each round holds two connections. */
export class OwnPorts {
  readonly #names = new Map<number, string>()

  /**
   * @param host where no local service is looked for when it is another address than loopback's
   * @param port 0 while it is not known
   */
  add(name: string, host: string, port: number): void {
    if (port !== 0 && LOCAL_HOSTS.has(host)) this.#names.set(port, name)
  }

  /**
   * @param entrances ports of the services that have one of their own
   * @throws OwnPortError
   */
  check({ port, inboundPort }: LocalSpec, entrances: ReadonlyMap<string, number>): void {
    const name = this.#names.get(port)
    if (name !== undefined) throw new OwnPortError(port, name)
    for (const taken of entrances.values()) if (taken === port) throw new OwnPortError(port, 'an inbound')
    if (inboundPort === port) throw new OwnPortError(port, 'to be the inbound')
  }
}
