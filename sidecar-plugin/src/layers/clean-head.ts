import { parseDuration } from '@holdfast/registry-client/clock'
import { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import type { Exchange, Layer } from '../layer.ts'

/**
 * Leaves behind what both ends understand alike: a target in origin form, and the authority that it named. Stands above
 * every layer that reads them.
 *
 * Throws `bad_request`, `not_supported`, and outbound `loop_detected`: a peer's mark on a request from a local caller
 * means that some node's address is an outbound port.
 */
export function cleanHead(): Layer {
  return (inner) => (exchange) => {
    clean(exchange)
    return inner(exchange)
  }
}

function clean(exchange: Exchange): void {
  const { control } = exchange
  if (control.size > 0) {
    if (exchange.direction === 'outbound' && control.has('service'))
      throw new SidecarError('loop_detected', 'a sidecar sent this request to an outbound port')
    const timeout = control.get('timeout')
    if (timeout !== undefined && parseDuration(timeout) === undefined)
      throw new SidecarError(
        'bad_request',
        `x-holdfast-timeout must be a duration with its unit, such as 250ms, got ${JSON.stringify(timeout)}`,
      )
  }
  const { method, target, headers } = exchange
  if (target.startsWith('/') || (target === '*' && method === 'OPTIONS')) return
  if (method === 'CONNECT') {
    exchange.authority = target
    return
  }
  const absolute = /^http:\/\/([^/?#]*)([^#]*)/i.exec(target)
  if (!absolute)
    throw new SidecarError(
      'not_supported',
      'only http URLs; the connection between sidecars is not the caller’s concern',
    )
  // RFC 9112 §3.2.2: the URL's authority counts, and the Host as received does not travel on.
  const authority = absolute[1]!.slice(absolute[1]!.lastIndexOf('@') + 1)
  const path = absolute[2]!
  exchange.authority = authority
  exchange.target = path.startsWith('/') ? path : `/${path}`
  exchange.headers = withHost(headers, authority)
}

/** Where it stood, because some look at the first field first. */
function withHost(headers: Fields, host: string): Fields {
  const { list } = headers
  const at = list.findIndex((part, i) => i % 2 === 0 && part.toLowerCase() === 'host')
  return Fields.of(at < 0 ? ['Host', host, ...list] : list.with(at + 1, host))
}
