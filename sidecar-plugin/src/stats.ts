import { collectDefaultMetrics, Counter, Gauge, Registry, type Aggregator } from 'prom-client'
import { Durations } from './durations.ts'
import type { Direction, Ending, Exchange, Reply, ViewSource } from './layer.ts'

/** What `GET /v1/stats` shows of the requests. */
export interface RequestStats {
  readonly requests: Readonly<Record<Direction, number>>
  /** Answers that a sidecar made up, and answers that broke off, by reason. */
  readonly failed: Readonly<Record<Direction, Readonly<Record<string, number>>>>
  readonly inFlight: Readonly<Record<Direction, number>>
  /** Requests that were sent out, by where the view came from. */
  readonly servedFrom: Readonly<Record<ViewSource, number>>
  readonly retries: number
  readonly malformed: number
}

interface Count {
  readonly direction: Direction
  readonly service: string
  readonly statusClass: number
  readonly reason: string
  value: number
}

/** Service names in metrics; more are counted as `other`, so that no caller can make the page grow without end. */
const SERVICES_MAX = 1_000

/** Counts of one sidecar, for people (`/v1/stats`) and for Prometheus (`/metrics`). */
export class Stats {
  readonly registry = new Registry()
  readonly #requests = { outbound: 0, inbound: 0 }
  readonly #failed = { outbound: new Map<string, number>(), inbound: new Map<string, number>() }
  readonly #inFlight = { outbound: 0, inbound: 0 }
  readonly #servedFrom = { memory: 0, file: 0, peer: 0, registry: 0 }
  readonly #services = new Set<string>()
  #retries = 0
  #malformed = 0
  readonly #grpcCount: Counter
  /** What the page shows, kept as plain numbers: the library's own counters cost a request more than its routing. */
  readonly #counts = new Map<string, Count>()
  #last: Count | undefined
  readonly #seconds: Durations
  readonly #retryCount: Counter
  readonly #malformedCount: Counter

  /**
   * @param gauges values that are read when somebody asks for the page, by name; of several processes the sum is shown
   * unless `aggregator` says otherwise
   */
  constructor(gauges: Readonly<Record<string, { help: string; aggregator?: Aggregator; read: () => number }>> = {}) {
    const registers = [this.registry]
    collectDefaultMetrics({ register: this.registry })
    const counts = this.#counts
    new Counter({
      name: 'holdfast_sidecar_requests_total',
      help: 'Requests by direction, service, class of status, and reason of the sidecar if it answered by itself.',
      labelNames: ['direction', 'service', 'status', 'reason'],
      registers,
      collect() {
        this.reset()
        for (const { direction, service, statusClass, reason, value } of counts.values())
          this.inc({ direction, service, status: `${statusClass}xx`, reason }, value)
      },
    })
    this.#grpcCount = new Counter({
      name: 'holdfast_sidecar_grpc_calls_total',
      help: 'Calls of gRPC by direction, service and grpc-status.',
      labelNames: ['direction', 'service', 'status'],
      registers,
    })
    this.#seconds = new Durations(
      'holdfast_sidecar_request_duration_seconds',
      'Time from a request’s head to its answer’s last byte.',
      ['outbound', 'inbound'],
    )
    this.registry.registerMetric(this.#seconds.metric)
    const servedFrom = this.#servedFrom
    new Counter({
      name: 'holdfast_requests_by_view_source',
      help: 'Requests by where the view came from that they were sent by.',
      labelNames: ['source'],
      registers,
      collect() {
        this.reset()
        for (const [source, count] of Object.entries(servedFrom)) if (count > 0) this.inc({ source }, count)
      },
    })
    this.#retryCount = new Counter({
      name: 'holdfast_sidecar_retries_total',
      help: 'Attempts beyond the first, by what failed before.',
      labelNames: ['reason'],
      registers,
    })
    this.#malformedCount = new Counter({
      name: 'holdfast_sidecar_malformed_total',
      help: 'Connections that sent what is not HTTP, by the answer to it and by what was wrong.',
      labelNames: ['reason', 'kind'],
      registers,
    })
    const inFlight = this.#inFlight
    new Gauge({
      name: 'holdfast_sidecar_requests_in_flight',
      help: 'Requests whose answers have not left yet.',
      labelNames: ['direction'],
      registers,
      collect() {
        for (const direction of ['outbound', 'inbound'] as const) this.set({ direction }, inFlight[direction])
      },
    })
    for (const [name, gauge] of Object.entries(gauges))
      new Gauge({
        name,
        help: gauge.help,
        aggregator: gauge.aggregator ?? 'sum',
        registers,
        collect() {
          this.set(gauge.read())
        },
      })
  }

  began(direction: Direction): void {
    this.#requests[direction]++
    this.#inFlight[direction]++
  }

  ended(exchange: Exchange, reply: Reply, ending: Ending, durationMs: number): void {
    const { direction } = exchange
    this.#inFlight[direction]--
    const reason = ending.error?.reason ?? reply.reason
    if (reason !== undefined) this.#failed[direction].set(reason, (this.#failed[direction].get(reason) ?? 0) + 1)
    const source = exchange.known?.source
    if (source && exchange.attempts > 0) {
      this.#servedFrom[source]++
    }
    this.#count(direction, this.#label(exchange), Math.floor(reply.status / 100), reason ?? '')
    if (exchange.grpcStatus !== undefined)
      this.#grpcCount.inc({ direction, service: this.#label(exchange), status: grpcLabel(exchange.grpcStatus) })
    this.#seconds.observe(direction, durationMs / 1000)
  }

  retried(reason: string): void {
    this.#retries++
    this.#retryCount.inc({ reason })
  }

  malformed(reason: string, kind: string): void {
    this.#malformed++
    this.#malformedCount.inc({ reason, kind })
  }

  snapshot(): RequestStats {
    return {
      requests: { ...this.#requests },
      failed: {
        outbound: Object.fromEntries(this.#failed.outbound),
        inbound: Object.fromEntries(this.#failed.inbound),
      },
      inFlight: { ...this.#inFlight },
      servedFrom: { ...this.#servedFrom },
      retries: this.#retries,
      malformed: this.#malformed,
    }
  }

  #count(direction: Direction, service: string, statusClass: number, reason: string): void {
    // Mostly the same as before: the key costs more than a look.
    let count = this.#last
    if (
      count?.service !== service ||
      count.direction !== direction ||
      count.statusClass !== statusClass ||
      count.reason !== reason
    ) {
      const key = `${direction} ${service} ${statusClass} ${reason}`
      count = this.#counts.get(key)
      if (count === undefined) this.#counts.set(key, (count = { direction, service, statusClass, reason, value: 0 }))
      this.#last = count
    }
    count.value++
  }

  /** A service's name only once something is known of it: callers choose names, and each one is a line for ever. */
  #label(exchange: Exchange): string {
    if (exchange.known === undefined && exchange.destination === undefined) return 'unknown'
    const { name } = exchange
    if (!this.#services.has(name)) {
      if (this.#services.size >= SERVICES_MAX) return 'other'
      this.#services.add(name)
    }
    return name
  }
}

/** One of the seventeen: a service may say anything, and each thing said is a line for ever. */
function grpcLabel(status: string): string {
  return /^(?:[0-9]|1[0-6])$/.test(status) ? status : 'other'
}
