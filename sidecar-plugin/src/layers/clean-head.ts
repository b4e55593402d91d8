import { parseDuration } from '@holdfast/registry-client/clock'
import { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import { isHost } from '../http1/head.ts'
import type { Exchange, Layer, Reply } from '../layer.ts'

/**
 * Leaves behind what both ends understand alike: a target in origin form, and the authority that it named. Stands above
 * every layer that reads them. Answers what has gone as far as its `Max-Forwards` lets it: `OPTIONS` by 204.
 *
 * Throws `bad_request`, `not_supported`, and outbound `loop_detected`: a peer's mark on a request from a local caller
 * means that some node's address is an outbound port.
 */
export function cleanHead(): Layer {
  return (inner) => (exchange) => {
    clean(exchange)
    return isAtItsEnd(exchange) ? Promise.resolve(OPTIONS_REPLY) : inner(exchange)
  }
}

/** RFC 9110, section 9.3.7: of the sidecar itself, which passes on whatever its caller may think of. */
const OPTIONS_REPLY: Reply = {
  status: 204,
  headers: Fields.of(['allow', 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT']),
  body: undefined,
  own: true,
}

/**
 * RFC 9110, section 7.6.2. Not even to its end is a TRACE answered here: what it would reflect are fields that the
 * caller's own page must not read.
 */
function isAtItsEnd(exchange: Exchange): boolean {
  const { method, headers } = exchange
  if (method !== 'OPTIONS' && method !== 'TRACE') return false
  const left = headers.get('max-forwards')
  if (left === undefined || !/^\d{1,9}$/.test(left)) return false
  if (Number(left) > 0) exchange.headers = withValue(headers, 'Max-Forwards', String(Number(left) - 1))
  else if (method === 'TRACE') throw new SidecarError('not_supported', 'a sidecar reflects no request')
  return Number(left) === 0
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
  const absolute = /^http:\/\/([^/?]*)(.*)/i.exec(target)
  if (!absolute)
    throw new SidecarError(
      'not_supported',
      'only http URLs; the connection between sidecars is not the caller’s concern',
    )
  // RFC 9112 §3.2.2: the URL's authority counts, and the Host as received does not travel on.
  const authority = absolute[1]!.slice(absolute[1]!.lastIndexOf('@') + 1)
  if (authority === '' || authority.startsWith(':') || !isHost(authority))
    throw new SidecarError('bad_request', `the URL must name a host, got ${JSON.stringify(target.slice(0, 200))}`)
  const path = absolute[2]!
  exchange.authority = authority
  // RFC 9112 §3.2.4: of the server as a whole there is no other form.
  exchange.target = path === '' && method === 'OPTIONS' ? '*' : path.startsWith('/') ? path : `/${path}`
  exchange.headers = withValue(headers, 'Host', authority)
}

/** Where the first of that name stood, because some look at the first field first. */
function withValue({ list }: Fields, name: string, value: string): Fields {
  const at = list.findIndex((part, i) => i % 2 === 0 && part.toLowerCase() === name.toLowerCase())
  return Fields.of(at < 0 ? [name, value, ...list] : list.with(at + 1, value))
}
