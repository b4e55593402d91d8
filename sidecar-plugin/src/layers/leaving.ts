import { SidecarError } from '../errors.ts'
import { consume, type Layer } from '../layer.ts'

/**
 * Inbound: once this sidecar leaves, sends away each request that its caller would send to another node, so that
 * callers who have not heard turn away before the port closes. Everything else is served to the end: for a caller
 * without a choice, an answer now is better than none.
 *
 * Throws `draining`.
 */
export function leaving(isLeaving: () => boolean): Layer {
  return (inner) => async (exchange) => {
    if (!isLeaving() || !exchange.control.has('elsewhere')) return inner(exchange)
    // Its body first, which is small: bytes that nobody has read turn the end of the connection into a reset, and a
    // reset may overtake the answer.
    await consume(exchange.body)
    throw new SidecarError('draining', 'this sidecar is leaving')
  }
}
