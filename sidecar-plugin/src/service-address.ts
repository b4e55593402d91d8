import { isNamespace, isServiceName } from '@holdfast/registry-client/protocol'

export interface ServiceAddress {
  readonly service: string
  readonly namespace: string
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
  return isServiceName(service) && isNamespace(namespace) ? { service, namespace } : undefined
}
