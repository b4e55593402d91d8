import { isNamespace, isServiceName } from '@holdfast/registry-client/protocol'

export interface ServiceAddress {
  readonly service: string
  readonly namespace: string
  /** Both, as `service.namespace`. */
  readonly name: string
}

/** Hosts that are remembered; past this many the memory starts again. */
const HOSTS_MAX = 10_000

/** The same as {@link parseServiceHost}, for hosts of which most come again and again. */
export class ServiceHosts {
  readonly #home: string
  readonly #known = new Map<string, ServiceAddress>()

  /** @param home the namespace of names without a dot */
  constructor(home: string) {
    this.#home = home
  }

  find(host: string): ServiceAddress | undefined {
    const known = this.#known.get(host)
    if (known) return known
    const found = parseServiceHost(host, this.#home)
    if (found === undefined) return undefined
    if (this.#known.size >= HOSTS_MAX) this.#known.clear()
    this.#known.set(host, found)
    return found
  }
}

/**
 * The service that a host names. A port is ignored, case too. Without a dot the namespace is `home`; with one it is
 * what follows the last dot, so a dotted service is written with its namespace: `a.b.default`.
 *
 * Undefined when it names none.
 */
export function parseServiceHost(host: string, home: string): ServiceAddress | undefined {
  const name = host.trim().toLowerCase().replace(/:\d*$/, '').replace(/\.$/, '')
  const dot = name.lastIndexOf('.')
  const service = dot < 0 ? name : name.slice(0, dot)
  const namespace = dot < 0 ? home : name.slice(dot + 1)
  if (!isServiceName(service) || !isNamespace(namespace)) return undefined
  return { service, namespace, name: `${service}.${namespace}` }
}
