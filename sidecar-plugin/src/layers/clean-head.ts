import { parseDuration } from '@holdfast/registry-client/clock'
import { SidecarError } from '../errors.ts'
import { controlFields, endToEnd, faultOf, valueOf } from '../headers.ts'
import type { Exchange, Layer } from '../layer.ts'

/**
 * Refuses ambiguous heads, and leaves behind only what concerns both ends: a target in origin form, end-to-end fields,
 * and in `control` what sidecars say to each other. Stands above every layer that reads fields.
 *
 * Throws `bad_request`, `not_supported`, and outbound `loop_detected`: a peer's mark on a request from a local caller
 * means that some node's address is an outbound port.
 */
export function cleanHead(): Layer {
  return (inner) => async (exchange) => {
    clean(exchange)
    return inner(exchange)
  }
}

function clean(exchange: Exchange): void {
  const { headers } = exchange
  const fault = faultOf(headers, exchange.httpVersion)
  if (fault !== undefined) throw new SidecarError('bad_request', fault)
  const coding = valueOf(headers, 'transfer-encoding')
  if (coding !== undefined && coding.trim().toLowerCase() !== 'chunked')
    throw new SidecarError('not_supported', `the transfer coding ${JSON.stringify(coding)} is not supported`)
  if (valueOf(headers, 'upgrade')?.toLowerCase().includes('websocket'))
    throw new SidecarError('not_supported', 'WebSocket is not supported')
  const expectation = valueOf(headers, 'expect')
  if (expectation !== undefined && expectation.toLowerCase() !== '100-continue')
    throw new SidecarError('bad_request', `the expectation ${JSON.stringify(expectation)} is unknown`)

  exchange.control = controlFields(headers)
  if (exchange.direction === 'outbound' && exchange.control.has('service'))
    throw new SidecarError('loop_detected', 'a sidecar sent this request to an outbound port')
  const timeout = exchange.control.get('timeout')
  if (timeout !== undefined && parseDuration(timeout) === undefined)
    throw new SidecarError(
      'bad_request',
      `x-holdfast-timeout must be a duration with its unit, such as 250ms, got ${JSON.stringify(timeout)}`,
    )

  exchange.authority = valueOf(headers, 'host') ?? ''
  exchange.headers = endToEnd(headers)
  const absolute = /^(https?):\/\/([^/?#]*)([^#]*)/i.exec(exchange.target)
  if (!absolute) return
  if (absolute[1]!.toLowerCase() !== 'http')
    throw new SidecarError(
      'not_supported',
      'only http URLs; the connection between sidecars is not the caller’s concern',
    )
  // RFC 9112 §3.2.2: the URL's authority counts, and the Host as received does not travel on.
  exchange.authority = absolute[2]!.slice(absolute[2]!.lastIndexOf('@') + 1)
  const path = absolute[3]!
  exchange.target = path.startsWith('/') ? path : `/${path}`
  exchange.headers = exchange.headers.map((part, i, all) =>
    i % 2 === 1 && all[i - 1]!.toLowerCase() === 'host' ? exchange.authority : part,
  )
}
