import { decodeView, encodeView, type Removal, type ServiceNode, type View } from '@holdfast/registry-client/protocol'

/** A node as the registry would send it. */
export function nodeOf(id: string, more: Partial<ServiceNode> = {}): ServiceNode {
  const { status = 'up', weight = 100 } = more
  return {
    id,
    host: '127.0.0.1',
    port: 8080,
    protocol: 'http',
    weight,
    labels: {},
    status,
    incarnation: 1,
    leased: true,
    registered: { status, weight },
    ...more,
  }
}

/** A frozen view of the nodes named, at `epoch:revision`. */
export function viewOf(
  cursor: string,
  nodes: readonly (string | ServiceNode)[] = [],
  more: { service?: string; namespace?: string; emptied?: Removal; policy?: object } = {},
): View {
  return decodeView({
    namespace: more.namespace ?? 'default',
    service: more.service ?? 'stock',
    cursor,
    nodes: nodes.map((node) => (typeof node === 'string' ? nodeOf(node) : node)),
    policy: more.policy ?? null,
    ...(more.emptied && { emptied: more.emptied }),
  })
}

/** The same as the data of a `snapshot` event. */
export function snapshotOf(...args: Parameters<typeof viewOf>): object {
  return encodeView(viewOf(...args))
}

export function removalOf(
  id: string,
  revision: number,
  cause: Removal['cause'] = 'deregistered',
  incarnation = 1,
): Removal {
  return { id, cause, time: '2026-01-01T00:00:00.000Z', revision, incarnation }
}

/** The data of a `change` event of the service `stock` in `default`. */
export function changeOf(
  after: string,
  cursor: string,
  put: readonly (string | ServiceNode)[] = [],
  remove: readonly Removal[] = [],
  more: { service?: string; policy?: object | null } = {},
): object {
  return {
    namespace: 'default',
    service: 'stock',
    after,
    cursor,
    put: put.map((node) => (typeof node === 'string' ? nodeOf(node) : node)),
    remove,
    ...more,
  }
}

export function idsOf(view: { readonly nodes: ReadonlyMap<string, unknown> } | undefined): string[] {
  return [...(view?.nodes.keys() ?? [])].sort()
}
