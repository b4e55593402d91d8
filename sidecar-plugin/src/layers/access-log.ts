import type { Clock } from '@holdfast/registry-client/clock'
import type { Layer } from '../layer.ts'

/**
 * One line of JSON for each request, written when its answer has left. Outermost: it sees what the caller sees.
 * @param write takes a line with its end, and must not wait
 */
export function accessLog(options: { clock: Clock; write: (line: string) => void }): Layer {
  const { clock, write } = options
  return (inner) => async (exchange) => {
    const { target } = exchange
    const reply = await inner(exchange)
    exchange.whenEnded((ending) => {
      const query = exchange.target.indexOf('?')
      write(
        `${JSON.stringify({
          time: new Date(clock.wall()).toISOString(),
          direction: exchange.direction,
          requestId: exchange.id,
          method: exchange.method,
          // Without the query, where callers put what does not belong into logs.
          path: (query < 0 ? exchange.target || target : exchange.target.slice(0, query)).slice(0, 2048),
          service: exchange.service || undefined,
          namespace: exchange.namespace || undefined,
          node: exchange.destination?.id,
          peer: exchange.peer || undefined,
          status: reply.status,
          grpcStatus: exchange.grpcStatus,
          reason: ending.error?.reason ?? reply.reason,
          attempts: exchange.attempts,
          durationMs: Math.round((clock.now() - exchange.startedMs) * 1000) / 1000,
          bytesIn: ending.bytesIn,
          bytesOut: ending.bytesOut,
          source: exchange.known?.source,
        })}\n`,
      )
    })
    return reply
  }
}
