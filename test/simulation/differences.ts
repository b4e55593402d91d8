/** Words that the invariants share: what is different, and what is kept aside. */

import type { Cursor } from '@holdfast/registry-client/protocol'
import type { RegistryClient } from '../../registry-client/src/index.ts'
import type { QuarantineReason } from '../../registry-client/src/cache/entry.ts'
import type { ClientProcess } from './client-process.ts'
import type { RegistryParts } from '../../registry-server/src/parts.ts'
import { textOf, type ServiceVersion } from './model.ts'
import type { Replica } from './registry-replica.ts'

export function keyOf(service: string): string {
  return `default/${service}`
}

/** The services of which a client keeps nodes aside, with the reason. */
export function quarantinedBy(library: RegistryClient): ReadonlyMap<string, QuarantineReason> {
  return new Map(
    library.status().quarantined.map(({ namespace, service, reason }) => [`${namespace}/${service}`, reason]),
  )
}

/** The replica that a client is connected to; undefined when it is not, or when that one is not ready. */
export function replicaOf({ client }: ClientProcess, replicas: readonly Replica[]): RegistryParts | undefined {
  const endpoint = client?.reachable === true ? client.status().connection.endpoint : undefined
  return replicas.find(({ address }) => endpoint === `http://${address}`)?.parts
}

export function text({ epoch, revision }: Cursor): string {
  return `${epoch}:${revision}`
}

/** What is different in a view; undefined when nothing is. */
export function differenceOf(
  version: ServiceVersion | undefined,
  nodes: ReadonlyMap<string, { readonly id: string }>,
  policy: unknown,
): string | undefined {
  for (const [id, { node }] of version?.nodes ?? []) {
    const there = nodes.get(id)
    if (there === undefined) return `node ${id} is missing`
    if (textOf(there as typeof node) !== textOf(node))
      return `node ${id} is ${JSON.stringify(there)}, expected ${JSON.stringify(node)}`
  }
  for (const id of nodes.keys()) if (!version?.nodes.has(id)) return `node ${id} is there, expected none`
  if (JSON.stringify(policy) !== JSON.stringify(version?.policy))
    return `policy ${JSON.stringify(policy)}, expected ${JSON.stringify(version?.policy)}`
  return undefined
}
