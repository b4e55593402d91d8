/** Records of a small sound store at revision 6, with one of everything, in the order of their keys. */

import type { PortableRecord } from '../../registry-server/src/store/archive.ts'

const TIME = '2026-01-01T00:00:00.000Z'

function nodeOf(id: string, fields: object = {}): object {
  return {
    id,
    host: '10.0.0.1',
    port: 8080,
    protocol: 'http',
    weight: 100,
    labels: { version: 'v2' },
    status: 'up',
    incarnation: 1,
    leased: false,
    registered: { status: 'up', weight: 100 },
    ...fields,
  }
}

function historyOf(service: string, after: number, item: object): object {
  return { time: TIME, entries: [{ namespace: 'default', service, after, items: [item] }] }
}

export function sampleRecords(): PortableRecord[] {
  return [
    {
      key: 'history/0000000000000003',
      value: historyOf('gone', 0, { kind: 'node', cause: 'registered', by: 'x', ids: ['g'] }),
    },
    {
      key: 'history/0000000000000004',
      value: historyOf('gone', 3, { kind: 'node', cause: 'deregistered', by: 'x', ids: ['g'] }),
    },
    {
      key: 'history/0000000000000005',
      value: historyOf('stock', 2, { kind: 'policy', cause: 'operator', by: 'operator@127.0.0.1', ids: [] }),
    },
    { key: 'lease/l1', value: { id: 'l1', ttlMs: 15_000, owner: 'sidecar on host-1', own: true } },
    { key: 'node/default/stock/a', value: { node: nodeOf('a', { leased: true }), lease: 'l1' } },
    {
      key: 'node/default/stock/b',
      value: { node: nodeOf('b', { status: 'draining', override: { status: 'draining' } }) },
    },
    { key: 'override/default/gone/g', value: { weight: 0 } },
    { key: 'override/default/stock/b', value: { status: 'draining' } },
    { key: 'policy/default/stock', value: { timeout: '3s' } },
    {
      key: 'service/default/gone',
      value: { revision: 4, emptied: { id: 'g', cause: 'deregistered', time: TIME, revision: 4 } },
    },
    { key: 'service/default/stock', value: { revision: 5 } },
  ]
}
