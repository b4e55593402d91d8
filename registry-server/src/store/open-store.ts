/** The engine that the settings name. */

import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import type { Clock, Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { RegistryConfig } from '../config.ts'
import { openEmbeddedStore } from './embedded/embedded-store.ts'
import type { EtcdAccess } from './etcd/etcd-connection.ts'
import { StoreRefused, type Store } from './store.ts'
import { parseStoreAddress } from './store-address.ts'

/**
 * On etcd the log of changes is read at each start, and holds what was written besides who wrote it: more than this
 * would cost more than the snapshots that it saves.
 */
const MOST_CHANGES_ON_ETCD = 500_000

export interface StoreContext {
  readonly identifier: () => string
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly onCommit: (transactions: number, ms: number) => void
  /** Where this replica listens, for people. */
  readonly url: string
}

/** @throws StoreRefused */
export async function openStore(config: RegistryConfig, context: StoreContext): Promise<Store> {
  const { history, newEpoch, dataDir } = config
  const address = addressOf(config)
  const common = { ...context, newEpoch, historyRevisions: history.revisions }
  if (address.kind === 'embedded')
    return openEmbeddedStore({ ...common, directory: dataDir, historyChanges: history.changes })
  // etcd's client is large, and most registries need none.
  const { EtcdStore } = await import('./etcd/etcd-store.ts')
  return EtcdStore.open({
    ...common,
    endpoints: address.endpoints,
    access: etcdAccess(config),
    prefix: config.etcd.prefix,
    maxRequestBytes: config.etcd.maxRequest,
    timeoutMs: config.storeTimeout,
    name: `${hostname()} ${context.url}`,
    historyChanges: Math.min(history.changes, MOST_CHANGES_ON_ETCD),
  })
}

/** How to get into etcd. @throws StoreRefused for a file that cannot be read */
export function etcdAccess(config: Pick<RegistryConfig, 'store' | 'etcd'>): EtcdAccess {
  const { user, password, passwordFile, ca, cert, key } = config.etcd
  const address = addressOf(config)
  const file = (path: string | undefined, flag: string) => path && read(path, flag)
  return {
    tls: (address.kind === 'etcd' && address.tls) || ca !== undefined || cert !== undefined,
    user,
    password:
      password ??
      file(passwordFile, 'etcd-password-file')
        ?.toString()
        .replace(/\r?\n$/, ''),
    ca: file(ca, 'etcd-ca') as Buffer | undefined,
    certificate: file(cert, 'etcd-cert') as Buffer | undefined,
    key: file(key, 'etcd-key') as Buffer | undefined,
  }
}

function read(path: string, flag: string): Buffer {
  try {
    return readFileSync(path)
  } catch (error) {
    throw new StoreRefused(`--${flag}: ${(error as Error).message}`, error)
  }
}

function addressOf({ store }: Pick<RegistryConfig, 'store'>) {
  const address = parseStoreAddress(store)
  if (typeof address === 'string') throw new StoreRefused(`--store ${address}`)
  return address
}
