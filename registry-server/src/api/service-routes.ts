/** The routes of services, as views, lists and history, and of their policies. */

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type {} from '@fastify/swagger'
import { parseDuration } from '@holdfast/registry-client/clock'
import { parsePolicy } from '@holdfast/registry-client/policy'
import {
  encodeView,
  formatCursor,
  parseCursor,
  type PolicyDocument,
  type ServiceNode,
} from '@holdfast/registry-client/protocol'
import { decodeBody } from './bodies.ts'
import { pageOf, type PageQuery } from './paging.ts'
import type { RegistryParts } from '../parts.ts'
import { checkDocument, parseYamlBody } from './policy-document.ts'
import { invalid, Refusal } from './problems.ts'
import { deepFreeze } from '../store/records.ts'
import { operator } from '../registration.ts'
import { cursorsOf, namespaceOf, tagged, viewOf, type Namespaced, type ServiceParams } from './routing.ts'
import { answers, bodies, empty, json, params, problems, queries, reads } from './schemas.ts'
import type { HistoryPlace, ServiceView } from '../watch/service-view.ts'

/** A longer wait outlives what proxies in between allow a silent connection. */
const MAX_WAIT_MS = 300_000

interface ViewQuery extends Namespaced {
  readonly status?: string
  readonly zone?: string
  readonly after?: string
  readonly wait?: string
}

export function serviceRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  const tags = ['services']
  app.get<{ Querystring: Namespaced & PageQuery & { prefix?: string } }>(
    '/v1/services',
    {
      schema: {
        tags,
        summary: 'The services, with their nodes counted by status',
        querystring: queries.services,
        response: { ...reads('The services', answers.services), ...problems },
      },
    },
    async (request, reply) => {
      const { hub } = parts()
      const { prefix = '' } = request.query
      const page = pageOf(request.query, (view: ServiceView) => `${view.namespace}/${view.service}`)
      const { items, next } = page.take(hub.services(namespaceOf(request.query), prefix, page.after ?? ''))
      const services = items.map((view) => {
        const nodes = { up: 0, draining: 0, down: 0 }
        for (const { status } of view.nodes.values()) nodes[status]++
        return {
          namespace: view.namespace,
          service: view.service,
          cursor: formatCursor({ epoch: hub.epoch, revision: view.revision }),
          nodes,
          policy: view.policy !== undefined,
        }
      })
      return tagged(request, reply, hub.epoch, hub.cursor.revision, { services, ...(next && { next }) })
    },
  )
  app.get<{ Params: ServiceParams; Querystring: ViewQuery }>(
    '/v1/services/:service',
    {
      schema: {
        tags,
        summary: 'The view of a service: its nodes and policy',
        description: 'Also filtered by labels: `?label.version=v2`.',
        params: params.service,
        querystring: queries.view,
        response: { ...reads('The view', answers.view), ...problems },
      },
    },
    async (request, reply) => {
      const { hub } = parts()
      // Nobody is answered with less than they have seen at another replica.
      await hub.reach(cursorsOf(request))
      await awaitNewer(hub, request, reply)
      const view = viewOf(parts(), request)
      const picture = view.snapshot(hub.epoch)
      const document = { ...encodeView(picture), nodes: [...picture.nodes.values()].filter(filterOf(request.query)) }
      return tagged(request, reply, hub.epoch, view.revision, document)
    },
  )
  app.get<{ Params: ServiceParams; Querystring: Namespaced & PageQuery }>(
    '/v1/services/:service/history',
    {
      schema: {
        tags,
        summary: 'What changed lately, why, and by whom; the newest first',
        params: params.service,
        querystring: queries.history,
        response: { ...reads('The changes', answers.history), ...problems },
      },
    },
    async (request, reply) => {
      const view = viewOf(parts(), request)
      const page = pageOf(request.query, ({ line, index }: HistoryPlace) => `${line.revision}.${index}`)
      const [revision, index] = (page.after ?? '').split('.').map(Number)
      if (page.after !== undefined && !/^\d+\.\d+$/.test(page.after)) throw invalid('page', 'is not one of `next`')
      const { items, next } = page.take(view.history(revision || undefined, (index ?? -1) + 1))
      const entries = items.map(({ line }) => line)
      return tagged(request, reply, parts().hub.epoch, view.revision, { entries, ...(next && { next }) })
    },
  )
}

export function policyRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  const tags = ['policies']
  const path = '/v1/services/:service/policy'
  void app.register((scope, _options, done) => {
    for (const type of ['application/yaml', 'application/x-yaml', 'text/yaml'])
      scope.addContentTypeParser(type, { parseAs: 'buffer' }, (_request, body, parsed) => {
        try {
          parsed(null, parseYamlBody(decodeBody(body as Buffer)))
        } catch (error) {
          parsed(error as Error)
        }
      })
    scope.put<{ Params: ServiceParams; Querystring: Namespaced; Body: PolicyDocument }>(
      path,
      {
        schema: {
          tags,
          summary: 'Set the policy of a service',
          description: 'Its schema is at /v1/schemas/policy.',
          consumes: ['application/json', 'application/yaml', 'application/x-yaml', 'text/yaml'],
          params: params.service,
          querystring: queries.namespace,
          body: bodies.policy,
          response: {
            200: json('It had one', answers.policy),
            201: json('It had none', answers.policy),
            ...problems,
          },
        },
      },
      async (request, reply) => {
        const { service } = request.params
        const namespace = namespaceOf(request.query)
        checkDocument(request.body)
        parsePolicy(request.body)
        const document = deepFreeze(request.body)
        const { result: created } = await parts().store.transact((tx) => {
          const before = tx.policy(namespace, service)
          if (JSON.stringify(before) !== JSON.stringify(document))
            tx.putPolicy(namespace, service, document, { cause: 'operator', by: operator(request.ip) })
          return before === undefined
        })
        return reply.code(created ? 201 : 200).send(document)
      },
    )
    done()
  })
  app.get<{ Params: ServiceParams; Querystring: Namespaced }>(
    path,
    {
      schema: {
        tags,
        summary: 'The policy of a service',
        params: params.service,
        querystring: queries.namespace,
        response: { ...reads('The policy', answers.policy), ...problems },
      },
    },
    async (request, reply) => {
      const view = viewOf(parts(), request)
      if (view.policy === undefined) throw new Refusal('policy_not_found')
      return tagged(request, reply, parts().hub.epoch, view.revision, view.policy)
    },
  )
  app.delete<{ Params: ServiceParams; Querystring: Namespaced }>(
    path,
    {
      schema: {
        tags,
        summary: 'Remove the policy of a service',
        params: params.service,
        querystring: queries.namespace,
        response: { 204: empty('It has none any more'), ...problems },
      },
    },
    async (request, reply) => {
      const { service } = request.params
      const namespace = namespaceOf(request.query)
      await parts().store.transact((tx) => {
        if (tx.policy(namespace, service) !== undefined)
          tx.putPolicy(namespace, service, undefined, { cause: 'operator', by: operator(request.ip) })
      })
      return reply.code(204).send()
    },
  )
}

async function awaitNewer(
  hub: RegistryParts['hub'],
  request: FastifyRequest<{ Params: ServiceParams; Querystring: ViewQuery }>,
  reply: FastifyReply,
): Promise<void> {
  const { after, wait } = request.query
  if (after === undefined) {
    if (wait !== undefined) throw invalid('wait', 'needs `after`: newer than what?')
    return
  }
  const known = /^\d{1,16}$/.test(after) ? { epoch: hub.epoch, revision: Number(after) } : parseCursor(after)
  if (known === undefined || !Number.isSafeInteger(known.revision))
    throw invalid('after', 'must be a revision or epoch:revision', 'bad_cursor')
  const waitMs = wait === undefined ? 0 : parseDuration(wait)
  if (waitMs === undefined || waitMs > MAX_WAIT_MS) throw invalid('wait', `must be at most 5m, got ${wait}`)
  await hub.reach([known])
  if (waitMs === 0) return
  // A place of another history, or one that nobody has reached, says nothing about ours: answer with what there is.
  if (known.epoch !== hub.epoch || known.revision > hub.cursor.revision) return
  const gone = new AbortController()
  reply.raw.once('close', () => gone.abort())
  await hub.changed(namespaceOf(request.query), request.params.service, known.revision, waitMs, gone.signal)
}

function filterOf(query: ViewQuery): (node: ServiceNode) => boolean {
  const labels = Object.entries(query).flatMap(([name, value]) =>
    name.startsWith('label.') ? [[name.slice('label.'.length), value as string] as const] : [],
  )
  return (node) =>
    (query.status === undefined || node.status === query.status) &&
    (query.zone === undefined || node.zone === query.zone) &&
    labels.every(([name, value]) => Object.hasOwn(node.labels, name) && node.labels[name] === value)
}
