/** What Prometheus is told. */

import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { Lifecycle, RegistryParts } from './parts.ts'

export interface Metrics {
  readonly contentType: string
  text(): Promise<string>
  request(route: string, method: string, status: number, ms: number): void
  commit(transactions: number, ms: number): void
}

export function createMetrics(lifecycle: Lifecycle): Metrics {
  const register = new Registry()
  collectDefaultMetrics({ register })
  const requests = new Counter({
    name: 'holdfast_requests_total',
    help: 'Requests answered',
    labelNames: ['route', 'method', 'status'],
    registers: [register],
  })
  const seconds = new Histogram({
    name: 'holdfast_request_seconds',
    help: 'Time to answer a request, waits of long polls included',
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5],
    registers: [register],
  })
  const commitSeconds = new Histogram({
    name: 'holdfast_commit_seconds',
    help: 'Time of one durable commit',
    buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5],
    registers: [register],
  })
  const commitSize = new Histogram({
    name: 'holdfast_commit_transactions',
    help: 'Transactions of one commit',
    buckets: [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024],
    registers: [register],
  })

  // Read when asked for: what the parts know anyway need not be counted twice.
  const gauge = (name: string, help: string, read: (parts: RegistryParts) => number) =>
    new Gauge({
      name,
      help,
      registers: [register],
      collect() {
        if (lifecycle.parts) this.set(read(lifecycle.parts))
      },
    })
  const counter = (name: string, help: string, read: (parts: RegistryParts) => number) =>
    new Counter({
      name,
      help,
      registers: [register],
      collect() {
        this.reset()
        if (lifecycle.parts) this.inc(read(lifecycle.parts))
      },
    })
  gauge('holdfast_revision', 'The newest durable revision', ({ hub }) => hub.cursor.revision)
  gauge('holdfast_services', 'Services known', ({ hub }) => hub.status().services)
  gauge('holdfast_nodes', 'Nodes registered', ({ hub }) => hub.status().nodes)
  gauge('holdfast_leases', 'Leases held', ({ leases }) => leases.status().active)
  gauge('holdfast_overrides', 'Overrides held', ({ store }) => store.status().overrides)
  counter('holdfast_leases_expired_total', 'Leases that ran out', ({ leases }) => leases.status().expired)
  counter('holdfast_pauses_total', 'Times all leases got their full ttl again', ({ leases }) => leases.status().pauses)
  gauge('holdfast_leases_counted', 'Leases whose time is counted here', ({ leases }) => leases.status().counted)
  gauge('holdfast_leases_held', 'Leases that ran out and are kept', ({ leases }) => leases.status().held)
  counter('holdfast_slow_readers_total', 'Readers that fell behind', ({ hub }) => hub.status().restarts)
  counter(
    'holdfast_dropped_readers_total',
    'Readers disconnected for taking nothing',
    ({ hub }) => hub.status().dropped,
  )
  counter('holdfast_frames_sent_total', 'Frames sent to subscribers', ({ hub }) => hub.status().framesSent)
  counter('holdfast_snapshots_sent_total', 'Whole views sent to subscribers', ({ hub }) => hub.status().snapshotsSent)
  counter('holdfast_store_commits_total', 'Durable commits', ({ store }) => store.status().commits)
  counter('holdfast_store_failures_total', 'Commits that failed', ({ store }) => store.status().failures)
  gauge('holdfast_store_pending', 'Transactions that wait for the store', ({ store }) => store.status().pending)
  gauge(
    'holdfast_store_age_seconds',
    'For how long the state may have been overtaken elsewhere',
    ({ store }) => store.status().ageMs / 1000,
  )
  gauge('holdfast_store_lost', '1 while nothing can be written', ({ store }) =>
    store.status().lost === undefined ? 0 : 1,
  )
  gauge(
    'holdfast_store_set_aside',
    'Records that cannot be read, and are left out',
    ({ store }) => store.status().setAside.length,
  )
  gauge(
    'holdfast_store_replicas',
    'Replicas that share the store, this one included; 0 where there can be one only',
    ({ store }) => store.replicas.list().length,
  )
  new Counter({
    name: 'holdfast_lease_holds_total',
    help: 'Decisions to keep leases that ran out',
    labelNames: ['reason'],
    registers: [register],
    collect() {
      this.reset()
      for (const [reason, count] of Object.entries(lifecycle.parts?.leases.status().holds ?? {}))
        this.inc({ reason }, count)
    },
  })
  new Gauge({
    name: 'holdfast_subscribers',
    help: 'Watch streams',
    labelNames: ['transport'],
    registers: [register],
    collect() {
      for (const [transport, count] of Object.entries(lifecycle.parts?.hub.status().subscribers ?? {}))
        this.set({ transport }, count)
    },
  })
  new Counter({
    name: 'holdfast_resumes_total',
    help: 'Services that clients came back to with a cursor, by what they were sent',
    labelNames: ['with'],
    registers: [register],
    collect() {
      this.reset()
      for (const [what, count] of Object.entries(lifecycle.parts?.hub.status().resumes ?? {}))
        this.inc({ with: what }, count)
    },
  })

  return {
    contentType: register.contentType,
    text: () => register.metrics(),
    request(route, method, status, ms) {
      requests.inc({ route, method, status })
      seconds.observe(ms / 1000)
    },
    commit(transactions, ms) {
      commitSeconds.observe(ms / 1000)
      commitSize.observe(transactions)
    },
  }
}
