/** Stores on a real etcd. */

import { randomBytes } from 'node:crypto'
import { systemClock, systemRandom } from '@holdfast/registry-client/clock'
import { EtcdStore, type EtcdStoreOptions } from '../../../registry-server/src/store/etcd/etcd-store.ts'
import { silent } from '../support.ts'

export function openStore(options: Pick<EtcdStoreOptions, 'endpoints' | 'prefix'> & Partial<EtcdStoreOptions>) {
  return EtcdStore.open({
    access: { tls: false },
    maxRequestBytes: 1_572_864,
    timeoutMs: 30_000,
    newEpoch: false,
    name: 'test',
    identifier: () => randomBytes(12).toString('base64url'),
    clock: systemClock,
    random: systemRandom,
    log: silent,
    historyRevisions: 10_000,
    historyChanges: 1_000_000,
    ...options,
  })
}

let serial = 0

/** Of its own, so that stores of one test know nothing of those of another. */
export function freshPrefix(): string {
  return `/holdfast-${++serial}/`
}
