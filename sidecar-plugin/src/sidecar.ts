import { fileURLToPath } from 'node:url'
import { systemClock, systemRandom, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { collectDefaultMetrics, Registry } from 'prom-client'
import { exposeClient } from './client-metrics.ts'
import type { SidecarConfig } from './config.ts'
import { connectClient } from './connect-client.ts'
import { startControlPlane, type ControlClient, type ControlPlane } from './control-plane.ts'
import { createDataPlane, type DataClient, type DataPlaneLimits } from './data-plane.ts'
import type { DataPlane } from './planes.ts'
import { WorkerPool } from './workers/worker-pool.ts'
import { forkWorker } from './workers/worker-process.ts'

export { nodeIdOf } from './control-plane.ts'

/** The program of a worker. */
const WORKER = fileURLToPath(new URL('../bin/holdfast-sidecar-worker.js', import.meta.url))

/** What a sidecar uses of the client library. */
export type SidecarClient = DataClient & ControlClient

export interface SidecarOptions {
  readonly config: SidecarConfig
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** For those who bring their own; it is closed with the sidecar. Workers have theirs. */
  readonly client?: SidecarClient
  readonly limits?: DataPlaneLimits
}

export interface Sidecar extends ControlPlane {
  reopenLogs(): void
  /** Resolves, with the reason, when the workers cannot be kept running. Never where there are none. */
  readonly failed: Promise<Error>
}

/**
 * Starts a sidecar: both planes, handed to each other.
 * @throws the system's error when an address cannot be used
 */
export async function createSidecar(options: SidecarOptions): Promise<Sidecar> {
  const { config, log, clock = systemClock, random = systemRandom, limits } = options
  const parts = { config, log, clock, random }
  const client = options.client ?? (await connectClient(parts))
  const startAround = async (plane: DataPlane, failed: Promise<Error>) => {
    const control = await startControlPlane({ ...parts, client, plane })
    return { ...control, failed, reopenLogs: () => plane.reopenLogs() }
  }
  if (config.workers === 1) return startAround(createDataPlane({ ...parts, client, limits }), new Promise(() => {}))
  const registry = new Registry()
  collectDefaultMetrics({ register: registry })
  exposeClient(registry, () => client.metrics())
  const pool = new WorkerPool({ ...parts, fork: (events) => forkWorker(WORKER, events), registry })
  return startAround(pool, pool.failed)
}
