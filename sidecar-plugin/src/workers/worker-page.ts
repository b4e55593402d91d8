import { AggregatorRegistry, Counter, Gauge, type MetricObject, type Registry } from 'prom-client'
import type { WorkerLink } from './worker-link.ts'

/** What is known of the workers without asking them. */
export interface PoolCounts {
  restarts(): number
  listening(): number
  /** Connections that wait for a worker. */
  waiting(): number
  /** Connections that were one too many to wait. */
  refused(): number
  /** Connections that a worker was given and did not get. */
  returned(): number
}

/**
 * The page for Prometheus of several processes. What one has counted stays counted when it ends, or gives no answer: a
 * sum that went down would be taken for a restart of everything.
 */
export class WorkerPage {
  readonly #registry: Registry
  /** What each one said last. */
  readonly #heard = new Map<WorkerLink, readonly MetricObject[]>()
  #ended: MetricObject[] = []

  /** @param registry of this process; what is known of the workers is added to it */
  constructor(registry: Registry, pool: PoolCounts) {
    this.#registry = registry
    const registers = [registry]
    new Counter({
      name: 'holdfast_sidecar_worker_restarts_total',
      help: 'Workers that ended and were started again.',
      registers,
      collect() {
        this.reset()
        this.inc(pool.restarts())
      },
    })
    new Gauge({
      name: 'holdfast_sidecar_workers_listening',
      help: 'Workers that take connections.',
      registers,
      collect() {
        this.set(pool.listening())
      },
    })
    new Gauge({
      name: 'holdfast_sidecar_connections_waiting',
      help: 'Connections that no worker has taken yet.',
      registers,
      collect() {
        this.set(pool.waiting())
      },
    })
    new Counter({
      name: 'holdfast_sidecar_connections_unserved_total',
      help: 'Connections that were closed at once, because too many waited for a worker.',
      registers,
      collect() {
        this.reset()
        this.inc(pool.refused())
      },
    })
    new Counter({
      name: 'holdfast_sidecar_connections_returned_total',
      help: 'Connections that a worker was given and did not get, as when it has no descriptor left.',
      registers,
      collect() {
        this.reset()
        this.inc(pool.returned())
      },
    })
  }

  heard(link: WorkerLink, metrics: readonly MetricObject[]): void {
    this.#heard.set(link, metrics)
  }

  ended(link: WorkerLink): void {
    const last = this.#heard.get(link)
    this.#heard.delete(link)
    if (last) this.#ended = sumOf([this.#ended, last.filter(isCounted)])
  }

  async text(): Promise<string> {
    const own = await this.#registry.getMetricsAsJSON()
    return AggregatorRegistry.aggregate([own, ...this.#heard.values(), this.#ended]).metrics()
  }
}

/** Whether it only grows. */
function isCounted({ type }: MetricObject): boolean {
  return ['counter', 'histogram'].includes(String(type))
}

function sumOf(all: readonly (readonly MetricObject[])[]): MetricObject[] {
  const sums: unknown = AggregatorRegistry.aggregate([...all]).getMetricsAsArray()
  return sums as MetricObject[]
}
