import { AggregatorRegistry, Counter, Gauge, type MetricObject, type Registry } from 'prom-client'
import type { Traffic } from '../planes.ts'
import { NO_TRAFFIC, pastTraffic, sumTraffic } from './merging.ts'
import type { Counts } from './messages.ts'
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
 * What several processes have counted. It stays counted when one ends, or gives no answer: a sum that went down would
 * be taken for a restart of everything.
 */
export class WorkerCounts {
  readonly #registry: Registry
  /** What each one said last. */
  readonly #heard = new Map<WorkerLink, Counts>()
  #past: Counts = { metrics: [], traffic: NO_TRAFFIC }

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

  heard(link: WorkerLink, counts: Counts): void {
    this.#heard.set(link, counts)
  }

  ended(link: WorkerLink): void {
    const last = this.#heard.get(link)
    this.#heard.delete(link)
    if (last === undefined) return
    this.#past = {
      metrics: sumOf([this.#past.metrics, last.metrics.filter(isCounted)]),
      traffic: sumTraffic([this.#past.traffic, pastTraffic(last.traffic)]),
    }
  }

  traffic(): Traffic {
    return sumTraffic([this.#past, ...this.#heard.values()].map(({ traffic }) => traffic))
  }

  /** A page for Prometheus. */
  async page(): Promise<string> {
    const own = await this.#registry.getMetricsAsJSON()
    const all = [this.#past, ...this.#heard.values()].map(({ metrics }) => [...metrics])
    return AggregatorRegistry.aggregate([own, ...all]).metrics()
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
