import type { Clock } from '@holdfast/registry-client/clock'
import type { Layer } from '../layer.ts'

/**
 * One line of JSON for each TCP connection, written when it has ended. Outermost: what the sidecar refuses is there too.
 * @param write takes a line with its end, and must not wait
 */
export function connectionLog(options: { clock: Clock; write: (line: string) => void }): Layer {
  const { clock, write } = options
  return (inner) => async (exchange) => {
    const reply = await inner(exchange)
    const connectMs = clock.now() - exchange.startedMs
    exchange.whenEnded((ending) =>
      write(
        `${JSON.stringify({
          time: new Date(clock.wall()).toISOString(),
          direction: exchange.direction,
          protocol: 'tcp',
          connectionId: exchange.id,
          service: exchange.service || undefined,
          namespace: exchange.namespace || undefined,
          node: exchange.destination?.id,
          peer: exchange.peer || undefined,
          reason: reply.reason ?? ending.error?.reason,
          attempts: exchange.attempts,
          connectMs: toMicroseconds(connectMs),
          durationMs: toMicroseconds(clock.now() - exchange.startedMs),
          bytesIn: ending.bytesIn,
          bytesOut: ending.bytesOut,
          source: exchange.known?.source,
        })}\n`,
      ),
    )
    return reply
  }
}

function toMicroseconds(ms: number): number {
  return Math.round(ms * 1000) / 1000
}
