/** What the admin API shows of the views, as documents. Pure: looking changes nothing. */

import type { NodeReport, Resolved } from '@holdfast/registry-client'
import { formatDuration } from '@holdfast/registry-client/clock'
import { encodeView } from '@holdfast/registry-client/protocol'
import type { SidecarConfig } from './config.ts'
import { localSpecDocument } from './local/local-spec.ts'
import { maskPasswords } from './masked.ts'

/** The effective configuration as its file would say it. */
export function shownConfig(config: SidecarConfig): object {
  const { settle, idle, timeout } = config.drain
  return {
    ...config,
    registry: config.registry.map(maskPasswords),
    drain: { settle: formatDuration(settle), idle: formatDuration(idle), timeout: formatDuration(timeout) },
    services: config.services.map(localSpecDocument),
  }
}

/** A view with where it came from and how old it is. */
export function shownView(resolved: Resolved): object {
  const { source, age, reachable } = resolved
  return { ...encodeView(resolved.view), source, age: Math.round(age), reachable }
}

/**
 * Which nodes a request could go to, and why not to the others. Which one it would be is drawn anew for each request,
 * so it is not pretended to be known; nothing is changed by asking.
 */
export function explain(asked: {
  readonly service: string
  readonly namespace: string
  readonly path: string
  readonly known: Resolved
  readonly calls: readonly NodeReport[]
  readonly timeoutMs: number
  readonly retries: number
}): object {
  const { known, calls, ...question } = asked
  const reports = new Map(calls.map((report) => [report.id, report]))
  const nodes = known.nodes.map((node) => {
    const ejectedMs = reports.get(node.id)?.ejectedForMs ?? 0
    const why =
      node.status !== 'up'
        ? `its status is ${node.status}`
        : node.weight === 0
          ? 'its weight is 0'
          : ejectedMs > 0
            ? `calls to it failed: left out for another ${formatDuration(Math.ceil(ejectedMs))} unless too few remain`
            : undefined
    return {
      id: node.id,
      host: node.host,
      port: node.port,
      status: node.status,
      weight: node.weight,
      candidate: why === undefined,
      ...(why !== undefined && { why }),
      calls: reports.get(node.id),
    }
  })
  return {
    ...question,
    source: known.source,
    age: Math.round(known.age),
    candidates: nodes.filter((node) => node.candidate).map((node) => node.id),
    nodes,
  }
}
