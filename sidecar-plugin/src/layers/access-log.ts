import type { Clock, Random } from '@holdfast/registry-client/clock'
import type { Ending, Exchange, Layer, Reply } from '../layer.ts'

export interface AccessLogOptions {
  readonly clock: Clock
  readonly random: Random
  /** The part of the requests that went well that is written; the others always are. Default: 1, all. */
  readonly sample?: number
  /** Takes a line with its end, and must not wait. */
  readonly write: (line: string) => void
}

/**
 * One line of JSON for a request, written when its answer has left. Outermost: it sees what the caller sees.
 */
export function accessLog({ clock, random, sample = 1, write }: AccessLogOptions): Layer {
  const time = isoTime()
  return (inner) => async (exchange) => {
    const { target } = exchange
    const reply = await inner(exchange)
    exchange.whenEnded((ending) => {
      const wentWell = ending.error === undefined && reply.reason === undefined && reply.status < 500
      if (sample < 1 && wentWell && random() >= sample) return
      write(lineOf(exchange, reply, ending, { time: time(clock.wall()), target, nowMs: clock.now() }))
    })
    return reply
  }
}

/**
 * Put together by hand: as an object through `JSON.stringify` a line takes three times as long. Only what others have
 * written needs to be quoted by its rules.
 */
function lineOf(
  exchange: Exchange,
  reply: Reply,
  ending: Ending,
  { time, target, nowMs }: { time: string; target: string; nowMs: number },
): string {
  const query = exchange.target.indexOf('?')
  // Without the query, where callers put what does not belong into logs.
  const path = (query < 0 ? exchange.target || target : exchange.target.slice(0, query)).slice(0, 2048)
  const durationMs = Math.round((nowMs - exchange.startedMs) * 1000) / 1000
  return (
    `{"time":"${time}","direction":"${exchange.direction}","requestId":${JSON.stringify(exchange.id)}` +
    `,"method":${JSON.stringify(exchange.method)},"path":${JSON.stringify(path)}` +
    `${text('service', exchange.service)}${text('namespace', exchange.namespace)}` +
    `${text('node', exchange.destination?.id)}${text('peer', exchange.peer)},"status":${reply.status}` +
    `${text('grpcStatus', exchange.grpcStatus)}${text('reason', ending.error?.reason ?? reply.reason)},"attempts":${exchange.attempts}` +
    `,"durationMs":${durationMs},"bytesIn":${ending.bytesIn},"bytesOut":${ending.bytesOut}` +
    `${text('source', exchange.known?.source)}}\n`
  )
}

function text(name: string, value: string | undefined): string {
  return value === undefined || value === '' ? '' : `,"${name}":${JSON.stringify(value)}`
}

/** Makes the text of a time once for all who ask within a millisecond. */
function isoTime(): (wallMs: number) => string {
  let lastMs = NaN
  let last = ''
  return (wallMs) => {
    if (wallMs !== lastMs) last = new Date((lastMs = wallMs)).toISOString()
    return last
  }
}
