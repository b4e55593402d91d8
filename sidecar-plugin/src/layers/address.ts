import { SidecarError } from '../errors.ts'
import type { Layer } from '../layer.ts'
import { ServiceHosts } from '../service-address.ts'

/**
 * Outbound: names the service by the host that the caller asked for. Throws `bad_request`.
 * @param home the namespace of names without a dot
 */
export function address(home: string): Layer {
  const hosts = new ServiceHosts(home)
  return (inner) => (exchange) => {
    const found = hosts.find(exchange.authority)
    if (found === undefined)
      throw new SidecarError(
        'bad_request',
        `the host must name a service, as stock or stock.${home}, got ${JSON.stringify(exchange.authority.slice(0, 200))}`,
      )
    exchange.service = found.service
    exchange.namespace = found.namespace
    exchange.name = found.name
    return inner(exchange)
  }
}
