import { SidecarError } from '../errors.ts'
import type { Destination, Layer } from '../layer.ts'
import { ServiceHosts } from '../service-address.ts'

/** A service that runs behind this sidecar. */
export interface LocalTarget {
  readonly destination: Destination
  /** Called when a request for it begins; returns what to call when it has ended. */
  begin(): () => void
}

/**
 * Inbound: finds the local service that a request is for, by the mark of the sidecar that sent it, else by `Host` for
 * callers without one.
 *
 * Throws `not_here` for any other service. An address outlives the node that had it: a caller with an old view must be
 * told, not served by a stranger.
 */
export function local(home: string, find: (service: string, namespace: string) => LocalTarget | undefined): Layer {
  const hosts = new ServiceHosts(home)
  return (inner) => async (exchange) => {
    const wanted = exchange.control.get('service') ?? exchange.authority
    const found = hosts.find(wanted)
    const target = found && find(found.service, found.namespace)
    if (found === undefined || target === undefined)
      throw new SidecarError(
        'not_here',
        `${JSON.stringify(wanted.slice(0, 200))} is not registered through this sidecar`,
      )
    exchange.service = found.service
    exchange.namespace = found.namespace
    exchange.name = found.name
    exchange.destination = target.destination
    exchange.attempts++
    const end = target.begin()
    exchange.whenEnded(end)
    return inner(exchange)
  }
}
