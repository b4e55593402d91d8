import type { Clock } from '@holdfast/registry-client/clock'
import type { Layer } from '../layer.ts'
import type { Stats } from '../stats.ts'

/** Counts and times every request. Above `answers`, so that what the sidecar answers by itself is counted too. */
export function metrics(options: { clock: Clock; stats: Pick<Stats, 'began' | 'ended'> }): Layer {
  const { clock, stats } = options
  return (inner) => async (exchange) => {
    stats.began(exchange.direction)
    const reply = await inner(exchange)
    exchange.whenEnded((ending) => stats.ended(exchange, reply, ending, clock.now() - exchange.startedMs))
    return reply
  }
}
