/** What Prometheus is told of the connections that callers of HTTP hold. Read when asked for: the listeners count anyway. */

import { Counter, Gauge, type Registry } from 'prom-client'
import type { Direction } from './layer.ts'

/** Of one listener. */
export interface ConnectionCounts {
  readonly open: number
  /** Since it was opened: those that were one too many. */
  readonly refused: number
}

export type ConnectionStats = Readonly<Record<Direction, ConnectionCounts>>

export function exposeConnections(register: Registry, read: () => ConnectionStats): void {
  const registers = [register]
  const labelNames = ['direction'] as const
  new Gauge({
    name: 'holdfast_sidecar_connections_open',
    help: 'Connections of HTTP callers, idle or not.',
    labelNames,
    registers,
    collect() {
      for (const [direction, { open }] of Object.entries(read())) this.set({ direction }, open)
    },
  })
  new Counter({
    name: 'holdfast_sidecar_connections_refused_total',
    help: 'Connections of HTTP callers that were closed at once, because there were as many as there may be.',
    labelNames,
    registers,
    collect() {
      this.reset()
      for (const [direction, { refused }] of Object.entries(read())) this.inc({ direction }, refused)
    },
  })
}
