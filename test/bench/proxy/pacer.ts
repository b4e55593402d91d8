/** A process that sends requests at a steady rate, and prints a {@link PacerReport}. */

import { quantile } from '../table.ts'
import { Caller } from './caller.ts'

/** Milliseconds from when a request was due to its answer's last byte. */
export interface PacerReport {
  readonly p50: number
  readonly p99: number
  readonly p999: number
  /** The part of the time in which the process had no rest. */
  readonly busy: number
}

const CONNECTIONS = 64
/** Until then it is this process that warms up, and 64 connections are made at once. */
const WARM_UP_MS = 2_000
/** At most this late is a request sent by the clock alone. */
const TICK_MS = 1

const { port, bytes, perSecond, seconds } = JSON.parse(process.argv[2]!) as {
  port: number
  bytes: string
  perSecond: number
  seconds: number
}

const startMs = performance.now()
const countedMs = startMs + WARM_UP_MS
let before = performance.eventLoopUtilization()
const tookMs: number[] = []
const due: number[] = []
const free: Caller[] = []
for (let index = 0; index < CONNECTIONS; index++)
  free.push(
    new Caller(port, bytes, (caller, dueMs) => {
      if (dueMs >= countedMs) tookMs.push(performance.now() - dueMs)
      const next = due.shift()
      if (next === undefined) free.push(caller)
      else caller.ask(next)
    }),
  )

let sent = 0
const ticks = setInterval(() => {
  const elapsedMs = performance.now() - startMs
  if (elapsedMs < WARM_UP_MS) before = performance.eventLoopUtilization()
  if (elapsedMs > WARM_UP_MS + seconds * 1_000) return end()
  for (; sent < (elapsedMs / 1_000) * perSecond; sent++) {
    // Sent with the others of this tick: what the clock cannot tell apart is not held against the proxy.
    const dueMs = Math.max(startMs + (sent / perSecond) * 1_000, startMs + elapsedMs - TICK_MS)
    const caller = free.pop()
    if (caller) caller.ask(dueMs)
    else due.push(dueMs)
  }
}, TICK_MS)

function end(): void {
  clearInterval(ticks)
  const busy = performance.eventLoopUtilization(before).utilization
  const report: PacerReport = {
    p50: quantile(tookMs, 0.5),
    p99: quantile(tookMs, 0.99),
    p999: quantile(tookMs, 0.999),
    busy,
  }
  process.stdout.write(JSON.stringify(report))
  process.exit(0)
}
