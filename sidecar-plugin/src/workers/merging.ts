/** What several workers say, as one answer. */

import type { Rehearsal } from '@holdfast/registry-client'
import { isAfter, parseCursor } from '@holdfast/registry-client/protocol'
import type { ConnectionCounts } from '../connection-metrics.ts'
import type { ShownView, Traffic } from '../planes.ts'
import type { TcpTraffic } from '../tcp/tcp-listener.ts'

type Counts = Readonly<Record<string, number>>

export function sumCounts<C extends Counts>(all: readonly C[]): C {
  const sums: Record<string, number> = {}
  for (const counts of all) for (const [name, count] of Object.entries(counts)) sums[name] = (sums[name] ?? 0) + count
  return sums as C
}

/** @param all at least one */
export function sumTraffic(all: readonly Traffic[]): Traffic {
  const connections = (direction: 'outbound' | 'inbound') =>
    sumCounts(all.map((item) => item.connections[direction] as ConnectionCounts & Counts))
  const failed = (direction: 'outbound' | 'inbound') => sumCounts(all.map((item) => item.failed[direction]))
  return {
    requests: sumCounts(all.map(({ requests }) => requests)),
    failed: { outbound: failed('outbound'), inbound: failed('inbound') },
    inFlight: sumCounts(all.map(({ inFlight }) => inFlight)),
    servedFrom: sumCounts(all.map(({ servedFrom }) => servedFrom)),
    retries: all.reduce((sum, { retries }) => sum + retries, 0),
    malformed: all.reduce((sum, { malformed }) => sum + malformed, 0),
    connections: { outbound: connections('outbound'), inbound: connections('inbound') },
    tcp: sumTcp(all.flatMap(({ tcp }) => tcp)),
  }
}

const NO_CONNECTIONS: ConnectionCounts = { open: 0, refused: 0 }

export const NO_TRAFFIC: Traffic = {
  requests: { outbound: 0, inbound: 0 },
  failed: { outbound: {}, inbound: {} },
  inFlight: { outbound: 0, inbound: 0 },
  servedFrom: { memory: 0, file: 0, peer: 0, registry: 0 },
  retries: 0,
  malformed: 0,
  connections: { outbound: NO_CONNECTIONS, inbound: NO_CONNECTIONS },
  tcp: [],
}

/** Of a process that has ended: what was open with it is not. */
export function pastTraffic(traffic: Traffic): Traffic {
  const { inFlight, connections, tcp } = traffic
  return {
    ...traffic,
    inFlight: { ...inFlight, ...NO_TRAFFIC.inFlight },
    connections: { outbound: { ...connections.outbound, open: 0 }, inbound: { ...connections.inbound, open: 0 } },
    tcp: tcp.map((port) => ({ ...port, open: 0 })),
  }
}

function sumTcp(all: readonly TcpTraffic[]): readonly TcpTraffic[] {
  const byPort = new Map<string, TcpTraffic>()
  for (const traffic of all) {
    const key = `${traffic.direction} ${traffic.service}.${traffic.namespace} ${traffic.host} ${traffic.port}`
    const other = byPort.get(key)
    byPort.set(key, {
      ...traffic,
      opened: traffic.opened + (other?.opened ?? 0),
      open: traffic.open + (other?.open ?? 0),
      bytesIn: traffic.bytesIn + (other?.bytesIn ?? 0),
      bytesOut: traffic.bytesOut + (other?.bytesOut ?? 0),
      failed: sumCounts([traffic.failed, other?.failed ?? {}]),
    })
  }
  return [...byPort.values()]
}

/** Each service once, as whoever knows it best has it. */
export function uniteViews(all: readonly ShownView[]): readonly ShownView[] {
  const best = new Map<string, ShownView>()
  for (const view of all) {
    const key = `${view.namespace}/${view.service}`
    best.set(key, bestView(best.get(key), view)!)
  }
  return [...best.values()]
}

/** The one with the highest cursor; of those that cannot be compared, the one that was confirmed last. */
export function bestView<V extends ShownView>(a: V | undefined, b: V | undefined): V | undefined {
  if (a === undefined || b === undefined) return a ?? b
  const [ours, theirs] = [parseCursor(a.cursor), parseCursor(b.cursor)]
  if (ours && theirs && ours.epoch === theirs.epoch && ours.revision !== theirs.revision)
    return isAfter(theirs, ours) ? b : a
  return b.age < a.age ? b : a
}

/** How far away the answer would come from. */
const DISTANCE: Readonly<Record<string, number>> = { memory: 0, file: 1, peer: 2 }

/** Of each service the worst: a call may meet any worker. */
export function worstRehearsals(all: readonly Rehearsal[]): readonly Rehearsal[] {
  const worst = new Map<string, Rehearsal>()
  const distance = ({ resolves, level }: Rehearsal) => (resolves ? (DISTANCE[level ?? ''] ?? 0) : Infinity)
  for (const rehearsal of all) {
    const key = nameOf(rehearsal)
    const other = worst.get(key)
    if (other === undefined || distance(rehearsal) > distance(other)) worst.set(key, rehearsal)
  }
  return [...worst.values()]
}

export function nameOf({ namespace, service }: { readonly namespace: string; readonly service: string }): string {
  return `${namespace}/${service}`
}
