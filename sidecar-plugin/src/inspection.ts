/** What the admin API shows of the views, as documents. Pure: looking changes nothing. */

import { maskUrl, type KnownView, type NodeReport, type Resolved } from '@holdfast/registry-client'
import { formatDuration } from '@holdfast/registry-client/clock'
import { encodeView, type ServiceNode } from '@holdfast/registry-client/protocol'
import type { SidecarConfig } from './config.ts'
import { localSpecDocument } from './local/local-spec.ts'
import type { ShownView } from './planes.ts'
import { formatTcpBinding } from './tcp/tcp-binding.ts'

/** The effective configuration as its file would say it. */
export function shownConfig(config: SidecarConfig): object {
  const { settle, idle, timeout } = config.drain
  return {
    ...config,
    registry: config.registry.map(maskUrl),
    peers: config.peers.map(maskUrl),
    listeners: { ...config.listeners, tcp: config.listeners.tcp.map(formatTcpBinding) },
    tcp: { ...config.tcp, idle: formatDuration(config.tcp.idle), connect: formatDuration(config.tcp.connect) },
    drain: { settle: formatDuration(settle), idle: formatDuration(idle), timeout: formatDuration(timeout) },
    services: config.services.map(localSpecDocument),
  }
}

/** What is served of a service, with where it came from and how old it is. */
export function shownView(resolved: Resolved): ShownView {
  const { source, age, reachable, overridden } = resolved
  return { ...encodeView(resolved.view), source, age: Math.round(age), reachable, ...(overridden && { overridden }) }
}

/**
 * What the registry last said of a service, in the form in which views travel, with where it came from and how old it
 * is: for people, and for peers, who take it as their own.
 *
 * Where something else is served here, by an operator's override or because the registry left nodes out without a cause,
 * that stands under `serving`, which a peer does not read.
 */
export function shownKnown(known: KnownView, served: Resolved | undefined, reachable: boolean): ShownView {
  const { view, source, age } = known
  return {
    ...encodeView(view),
    source,
    age: Math.round(age),
    reachable,
    ...(served && served.view !== view && { serving: shownServing(served) }),
  }
}

function shownServing(served: Resolved): object {
  const { cursor, nodes, policy } = encodeView(served.view)
  return { why: served.overridden ? 'override' : 'quarantine', cursor, nodes, policy }
}

/**
 * Which nodes a request could go to, each with its share of such requests, and why not to the others. Which one it
 * would be is decided anew for each request, so it is not pretended to be known; nothing is changed by asking.
 */
export function explain(asked: {
  readonly service: string
  readonly namespace: string
  readonly method: string
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly known: Pick<Resolved, 'nodes' | 'source' | 'age'>
  readonly calls: readonly NodeReport[]
  readonly timeoutMs: number
  readonly retries: number
  readonly strategy: string
}): object {
  const { known, calls, strategy, ...question } = asked
  const reports = new Map(calls.map((report) => [report.id, report]))
  const ejectedMs = (node: ServiceNode) => reports.get(node.id)?.ejectedForMs ?? 0
  const able = known.nodes.filter((node) => node.status === 'up' && node.weight > 0)
  const trusted = able.filter((node) => ejectedMs(node) === 0)
  // As the selector does: a node that may work beats none.
  const candidates = new Set(trusted.length > 0 ? trusted : able)
  let total = 0
  for (const { weight } of candidates) total += weight
  const why = (node: ServiceNode) => {
    if (node.status !== 'up') return `its status is ${node.status}`
    if (node.weight === 0) return 'its weight is 0'
    if (ejectedMs(node) === 0) return 'it is up'
    const verdict = candidates.has(node) ? 'none is left without failures' : 'it is left out'
    return `calls to it failed: ${verdict}, for another ${formatDuration(Math.ceil(ejectedMs(node)))}`
  }
  return {
    ...question,
    source: known.source,
    age: Math.round(known.age),
    strategy,
    candidates: [...candidates].map((node) => node.id),
    nodes: known.nodes.map((node) => ({
      id: node.id,
      host: node.host,
      port: node.port,
      status: node.status,
      weight: node.weight,
      candidate: candidates.has(node),
      why: why(node),
      share: candidates.has(node) ? Math.round((node.weight / total) * 10_000) / 10_000 : 0,
      calls: reports.get(node.id),
    })),
  }
}
