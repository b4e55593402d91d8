/** The engine that the settings name. */

import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import type { Clock, Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { RegistryConfig } from '../config.ts'
import type { StoreArchive } from './archive.ts'
import { embeddedArchive } from './embedded/embedded-archive.ts'
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
  /** Ends the waiting for etcd. */
  readonly signal: AbortSignal | undefined
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

/** The engine that the settings name, for the operator's commands. @throws StoreRefused */
export async function openArchive(
  config: Pick<RegistryConfig, 'store' | 'dataDir' | 'etcd'>,
  context: Pick<StoreContext, 'identifier' | 'clock'>,
): Promise<StoreArchive> {
  const address = addressOf(config)
  if (address.kind === 'embedded') return embeddedArchive({ ...context, directory: config.dataDir })
  const { etcdArchive } = await import('./etcd/etcd-archive.ts')
  const { endpoints } = address
  return etcdArchive({ ...context, endpoints, access: etcdAccess(config), prefix: config.etcd.prefix })
}

/**
 * How to get into etcd.
 * @throws StoreRefused that names the flag, for a file that cannot be read or does not hold what it should
 */
export function etcdAccess(config: Pick<RegistryConfig, 'store' | 'etcd'>): EtcdAccess {
  const { user, passwordFile, ca, cert, key } = config.etcd
  const address = addressOf(config)
  const access = {
    tls: (address.kind === 'etcd' && address.tls) || ca !== undefined || cert !== undefined,
    user,
    password: config.etcd.password ?? (passwordFile && readPassword(passwordFile)),
    ca: ca && readPem('etcd-ca', ca, 'certificate', (pem) => new X509Certificate(pem)),
    certificate: cert && readPem('etcd-cert', cert, 'certificate', (pem) => new X509Certificate(pem)),
    key: key && readPem('etcd-key', key, 'key without a passphrase', (pem) => createPrivateKey(pem)),
  }
  if (access.certificate && access.key && !isPair(access.certificate, access.key))
    throw new StoreRefused(`--etcd-key: ${key} is not the key of the certificate in ${cert}, as --etcd-cert says`)
  return access as EtcdAccess
}

function readPassword(file: string): string {
  const password = read('etcd-password-file', file)
    .toString()
    .replace(/\r?\n$/, '')
  if (password === '') throw new StoreRefused(`--etcd-password-file: ${file} is empty`)
  return password
}

/** @param parse throws when it is not what it should be */
function readPem(flag: string, file: string, what: string, parse: (pem: Buffer) => unknown): Buffer {
  const content = read(flag, file)
  try {
    // The parser takes what is not in PEM too, and TLS then passes over it in silence.
    if (!content.includes('-----BEGIN ')) throw new Error('not in PEM')
    parse(content)
    return content
  } catch (error) {
    throw new StoreRefused(`--${flag}: ${file} holds no ${what} in PEM`, error)
  }
}

function isPair(certificate: Buffer, key: Buffer): boolean {
  return new X509Certificate(certificate).checkPrivateKey(createPrivateKey(key))
}

function read(flag: string, file: string): Buffer {
  try {
    return readFileSync(file)
  } catch (error) {
    const reason = (error as Error).message.replace(/^[A-Z]+: /, '').replace(/, \w+( '.*')?$/, '')
    throw new StoreRefused(`--${flag}: cannot read ${file}: ${reason}`, error)
  }
}

function addressOf({ store }: Pick<RegistryConfig, 'store'>) {
  const address = parseStoreAddress(store)
  if (typeof address === 'string') throw new StoreRefused(`--store ${address}`)
  return address
}
