/** The routes for those who run a registry: health, status, metrics, subscribers, and what documents look like. */

import type { FastifyInstance } from 'fastify'
import type {} from '@fastify/swagger'
import type { Clock } from '@holdfast/registry-client/clock'
import { policySchema } from '@holdfast/registry-client/policy'
import type { Metrics } from '../metrics.ts'
import { pageOf, type PageQuery } from './paging.ts'
import type { Lifecycle, RegistryParts } from '../parts.ts'
import { invalid, Refusal } from './problems.ts'
import { answers, content, json, problems, queries } from './schemas.ts'
import type { Subscriber } from '../watch/subscriber.ts'
import { version } from '../version.ts'

/** Services listed of one subscriber: a client may watch thousands, and a page shows many clients. */
const SERVICES_SHOWN = 100
const SET_ASIDE_SHOWN = 100

export interface OperatorRoutesOptions {
  readonly lifecycle: Lifecycle
  readonly parts: () => RegistryParts
  readonly metrics: Metrics
  readonly clock: Clock
}

export function operatorRoutes(app: FastifyInstance, options: OperatorRoutesOptions): void {
  const { lifecycle, parts, metrics, clock } = options
  const startedMs = clock.now()
  const tags = ['operation']

  app.get(
    '/healthz',
    {
      schema: {
        tags,
        summary: 'Whether the process runs',
        querystring: queries.none,
        response: { 200: json('It runs', answers.health), ...problems },
      },
    },
    () => ({ status: 'ok' }),
  )
  app.get(
    '/readyz',
    {
      schema: {
        tags,
        summary: 'Whether the state is loaded and followed, so that answers are true',
        querystring: queries.none,
        response: { 200: json('It is', answers.health), ...problems },
      },
    },
    () => {
      if (lifecycle.phase !== 'ready') throw new Refusal('not_ready', { detail: `the registry is ${lifecycle.phase}` })
      const { lost } = parts().store.status()
      // It still answers from what it knows; whoever can choose does better elsewhere.
      if (lost !== undefined) throw new Refusal('store_unavailable', { detail: `the store is lost: ${lost}` })
      return { status: 'ready' }
    },
  )
  app.get(
    '/v1/status',
    {
      schema: {
        tags,
        summary: 'What the registry is and holds',
        querystring: queries.none,
        response: { 200: json('The status', answers.status), ...problems },
      },
    },
    () => {
      const { store, hub, leases } = parts()
      const { services, nodes, subscribers, snapshotsSent, resumes } = hub.status()
      const { overrides, pending, ageMs, lost, setAside, ...engine } = store.status()
      const { rss, heapUsed } = process.memoryUsage()
      return {
        version,
        epoch: hub.epoch,
        revision: hub.cursor.revision,
        uptimeSeconds: Math.round(clock.now() - startedMs) / 1000,
        services,
        nodes,
        overrides,
        leases: leases.status(),
        subscribers: { ...subscribers, snapshotsSent, resumes },
        store: {
          kind: engine.kind,
          location: engine.location,
          commits: engine.commits,
          failures: engine.failures,
          pending,
          ageSeconds: Math.round(ageMs) / 1000,
          lost: lost ?? null,
          setAside: { count: setAside.length, first: setAside.slice(0, SET_ASIDE_SHOWN) },
          replica: store.replicas.self ?? null,
          replicas: store.replicas.list(),
        },
        memoryBytes: { rss, heapUsed },
      }
    },
  )
  app.get<{ Querystring: PageQuery }>(
    '/v1/subscribers',
    {
      schema: {
        tags,
        summary: 'Who watches what, and how far behind',
        querystring: queries.page,
        response: { 200: json('The subscribers', answers.subscribers), ...problems },
      },
    },
    (request) => {
      const page = pageOf(request.query, (subscriber: Subscriber) => String(subscriber.id))
      if (page.after !== undefined && !/^\d{1,15}$/.test(page.after)) throw invalid('page', 'is not one of `next`')
      const { items, next } = page.take(parts().hub.subscribers(Number(page.after ?? 0)))
      return { subscribers: items.map(describe), ...(next && { next }) }
    },
  )
  app.get(
    '/metrics',
    {
      schema: {
        tags,
        summary: 'Metrics for Prometheus',
        querystring: queries.none,
        response: {
          200: content('The metrics', 'text/plain', { type: 'string' }),
          ...problems,
        },
      },
    },
    async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()),
  )
  app.get(
    '/v1/schemas/policy',
    {
      schema: {
        tags,
        summary: 'The JSON Schema of a policy',
        querystring: queries.none,
        response: {
          200: content('The schema', 'application/schema+json', { type: 'object' }),
          ...problems,
        },
      },
    },
    (_request, reply) => reply.type('application/schema+json').send(policySchema),
  )
}

function describe(subscriber: Subscriber): object {
  const { id, sink, since, interestCount, sentRevision, ackedRevision, lag } = subscriber
  const services: object[] = []
  for (const interest of subscriber.interests) if (services.push(interest) === SERVICES_SHOWN) break
  return {
    id,
    remote: sink.remote,
    transport: sink.transport,
    since,
    services,
    serviceCount: interestCount,
    sent: sentRevision,
    acked: ackedRevision ?? null,
    lag,
  }
}
