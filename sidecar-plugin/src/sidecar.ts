import { connect } from '@holdfast/registry-client'
import { systemClock, systemRandom, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { SidecarConfig } from './config.ts'
import { startControlPlane, type ControlClient, type ControlPlane } from './control-plane.ts'
import { createDataPlane, type DataClient, type DataPlaneLimits } from './data-plane.ts'

export { nodeIdOf } from './control-plane.ts'

/** What a sidecar uses of the client library. */
export type SidecarClient = DataClient & ControlClient

export interface SidecarOptions {
  readonly config: SidecarConfig
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** For those who bring their own; it is closed with the sidecar. */
  readonly client?: SidecarClient
  readonly limits?: DataPlaneLimits
}

export interface Sidecar extends ControlPlane {
  reopenLogs(): void
}

/**
 * Starts a sidecar: both planes, handed to each other.
 * @throws the system's error when an address cannot be used
 */
export async function createSidecar(options: SidecarOptions): Promise<Sidecar> {
  const { config, log, clock = systemClock, random = systemRandom, limits } = options
  const parts = { config, log, clock, random }
  const client = options.client ?? (await connectAs(parts))
  const plane = createDataPlane({ ...parts, client, limits })
  const control = await startControlPlane({ ...parts, client, plane })
  return { ...control, reopenLogs: () => plane.reopenLogs() }
}

/** The client library as the configuration wants it. */
function connectAs(parts: { config: SidecarConfig; log: Log; clock: Clock; random: Random }) {
  const { config, log, clock, random } = parts
  return connect({
    endpoints: config.registry,
    peers: config.peers,
    cacheDir: config.cacheDir,
    maxCacheBytes: config.cacheMax,
    outageProbes: !config.noOutageProbes,
    namespace: config.namespace,
    zone: config.zone,
    clock,
    random,
    log,
  })
}
