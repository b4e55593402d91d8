import { connect, type RegistryClient } from '@holdfast/registry-client'
import type { Clock, Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { SidecarConfig } from './config.ts'

/** The client library as the configuration wants it. */
export function connectClient(parts: {
  readonly config: SidecarConfig
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
}): Promise<RegistryClient> {
  const { config, ...injected } = parts
  return connect({
    endpoints: config.registry,
    peers: config.peers,
    cacheDir: config.cacheDir,
    maxCacheBytes: config.cacheMax,
    outageProbes: !config.noOutageProbes,
    namespace: config.namespace,
    zone: config.zone,
    ...injected,
  })
}
