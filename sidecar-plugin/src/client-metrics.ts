/** What Prometheus is told of the client library. Read when asked for: the client counts anyway. */

import type { ClientMetrics } from '@holdfast/registry-client'
import { Counter, Gauge, type Aggregator, type Registry } from 'prom-client'

type Labelled = Readonly<Record<string, number>>

export function exposeClient(register: Registry, read: () => ClientMetrics): void {
  // One reading serves the whole page, which walks over every service.
  let page: { readonly metrics: ClientMetrics } | undefined
  const metrics = () => {
    if (page === undefined) {
      page = { metrics: read() }
      setImmediate(() => (page = undefined))
    }
    return page.metrics
  }
  const registers = [register]
  // Of several processes the highest value stands for all: mostly they follow the same services, read the same directory.
  const gauge = (
    name: string,
    help: string,
    value: (metrics: ClientMetrics) => number,
    aggregator: Aggregator = 'max',
  ) =>
    new Gauge({
      name: `holdfast_client_${name}`,
      help,
      aggregator,
      registers,
      collect() {
        this.set(value(metrics()))
      },
    })
  const counter = (name: string, help: string, value: (metrics: ClientMetrics) => number) =>
    new Counter({
      name: `holdfast_client_${name}_total`,
      help,
      registers,
      collect() {
        this.reset()
        this.inc(value(metrics()))
      },
    })
  const gauges = (name: string, help: string, label: string, values: (metrics: ClientMetrics) => Labelled) =>
    new Gauge({
      name: `holdfast_client_${name}`,
      help,
      aggregator: 'max',
      labelNames: [label],
      registers,
      collect() {
        for (const [key, value] of Object.entries(values(metrics()))) this.set({ [label]: key }, value)
      },
    })
  const counters = (name: string, help: string, label: string, values: (metrics: ClientMetrics) => Labelled) =>
    new Counter({
      name: `holdfast_client_${name}_total`,
      help,
      labelNames: [label],
      registers,
      collect() {
        this.reset()
        for (const [key, value] of Object.entries(values(metrics()))) this.inc({ [label]: key }, value)
      },
    })

  gauge('reachable', '1 while the registry is connected', ({ connection }) => (connection.reachable ? 1 : 0), 'min')
  counter('connections', 'Times that the registry was connected', ({ connection }) => connection.opened)
  counter('reconnects', 'Tries to connect again', ({ connection }) => connection.reconnects)
  gauge('services', 'Services followed', ({ services }) => services)
  gauge('watched_services', 'Services watched, which are never evicted', ({ memory }) => memory.pinned)
  gauge('unknown_services', 'Names remembered as unknown to the registry', ({ unknown }) => unknown)
  gauge('nodes', 'Nodes held in memory', ({ memory }) => memory.nodes)
  gauge('ahead_services', 'Services known further than the registry that answers has reached', (m) => m.ahead.length)
  gauge('quarantined_services', 'Services kept against an unproven word of the registry', (m) => m.quarantined.length)
  gauge('overridden_services', 'Services with an override file in force', ({ overridden }) => overridden.length)
  gauge('registrations', 'Nodes that are kept registered', ({ registrations }) => registrations, 'sum')
  gauges('views', 'Views by where they come from', 'source', ({ sources }) =>
    pluck(sources, ({ services }) => services),
  )
  gauges('oldest_view_seconds', 'Age of the oldest view, by where it comes from', 'source', ({ sources }) =>
    pluck(sources, ({ oldestMs }) => oldestMs / 1_000),
  )
  counters('hits', 'Calls that a level answered; of files and peers first uses', 'level', ({ levels }) =>
    pluck(levels, ({ hits }) => hits),
  )
  counters('misses', 'Calls that a level could not answer', 'level', ({ levels }) =>
    pluck(levels, ({ misses }) => misses),
  )
  counter('negative_answers', 'Names that the registry said it never heard of', (m) => m.negativeAnswers)
  counter('snapshots', 'Whole views received', ({ snapshots }) => snapshots)
  counter('changes', 'Changes received', ({ changes }) => changes)
  counter('restarts', 'Snapshots asked for because a change did not continue a view', ({ restarts }) => restarts)
  counters('resumes', 'Services that came back with a cursor, by what they were sent', 'with', (m) => m.resumes)
  counter('quarantines', 'Quarantines begun', ({ quarantines }) => quarantines)
  counter('quarantines_released', 'Quarantines released by proof', ({ released }) => released)
  counters('evictions', 'Services that had to make room, by the bound met', 'bound', ({ memory }) => memory.evicted)
  counter('idle_drops', 'Services dropped because nobody asked for them', ({ idled }) => idled)
  counters('peer_requests', 'Requests to peers, by what came of them', 'outcome', ({ peers }) => {
    const { answered, unknown, failed, crowded, skipped } = peers
    return { answered, unknown, failed, crowded, skipped }
  })
  for (const [name, kind] of Object.entries(FILE)) {
    const value = (m: ClientMetrics) => Number((m.file as Partial<Record<string, unknown>> | undefined)?.[name] ?? 0)
    if (kind.isCounter) counter(`file_${kind.name}`, kind.help, value)
    else gauge(`file_${kind.name}`, kind.help, value, kind.aggregator)
  }
}

/** What the file cache says of itself that is a number. */
const FILE: Readonly<
  Record<
    string,
    { readonly name: string; readonly help: string; readonly isCounter?: boolean; readonly aggregator?: Aggregator }
  >
> = {
  writable: { name: 'writable', help: '1 while the cache directory can be written', aggregator: 'min' },
  written: { name: 'writes', help: 'Views written to file', isCounter: true },
  failed: { name: 'failures', help: 'Writes that failed', isCounter: true },
  corrupt: { name: 'corrupt', help: 'Files whose content was not what was written', isCounter: true },
  coalesced: { name: 'coalesced', help: 'Views not written because a later one came first', isCounter: true },
  mended: { name: 'mended', help: 'Files written again after someone else lost them', isCounter: true },
  evicted: { name: 'evictions', help: 'Files removed to keep the directory within its bound', isCounter: true },
  refused: { name: 'refused', help: 'Views not written because the directory is full', isCounter: true },
  leftovers: { name: 'leftovers', help: 'Files of crashed writers removed', isCounter: true },
  bytes: { name: 'bytes', help: 'What the cache directory takes on disk' },
  malformedOverrides: { name: 'malformed_overrides', help: 'Override files that cannot be read' },
}

function pluck<K extends string, V>(record: Readonly<Record<K, V>>, value: (item: V) => number): Labelled {
  return Object.fromEntries(Object.entries<V>(record).map(([key, item]) => [key, value(item)]))
}
