/** The routes of leases, nodes, services and policies. Writes go to the store, reads come from the hub. */

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type {} from '@fastify/swagger'
import { formatDuration, parseDuration } from '@holdfast/registry-client/clock'
import { parsePolicy } from '@holdfast/registry-client/policy'
import {
  DEFAULT_NAMESPACE,
  encodeView,
  formatCursor,
  LIMITS,
  parseCursor,
  type PolicyDocument,
  type ServiceNode,
} from '@holdfast/registry-client/protocol'
import { pageOf, type PageQuery } from './paging.ts'
import type { RegistryParts } from './parts.ts'
import { parseYamlBody, checkDocument } from './policy-document.ts'
import { invalid, Refusal } from './problems.ts'
import { deepFreeze } from './records.ts'
import {
  anonymous,
  operator,
  overrideNode,
  registerNode,
  removeNode,
  type Fence,
  type NodeSpec,
  type OverridePatch,
} from './registration.ts'
import { answers, bodies, empty, json, params, problems, queries } from './schemas.ts'
import type { HistoryPlace, ServiceView } from './service-view.ts'
import type { NodeRef } from './store.ts'

/** A longer wait outlives what proxies in between allow a silent connection. */
const MAX_WAIT_MS = 300_000

interface Namespaced {
  readonly namespace?: string
}
interface ServiceParams {
  readonly service: string
}
interface NodeParams extends ServiceParams {
  readonly id: string
}
type NodeBody = Omit<NodeSpec, 'ttlMs'> & { readonly ttl?: string }
interface ViewQuery extends Namespaced {
  readonly status?: string
  readonly zone?: string
  readonly after?: string
  readonly wait?: string
}

export function registryRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  leaseRoutes(app, parts)
  nodeRoutes(app, parts)
  serviceRoutes(app, parts)
  policyRoutes(app, parts)
}

function leaseRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  const tags = ['leases']
  app.post<{ Body: { ttl: string; owner: string } }>(
    '/v1/leases',
    {
      schema: {
        tags,
        summary: 'Begin a lease',
        querystring: queries.namespace,
        body: bodies.lease,
        response: { 201: json('Granted', answers.lease), ...problems },
      },
    },
    async (request, reply) => {
      const { ttl, owner } = request.body
      const lease = await parts().leases.grant(leaseTtl(ttl, 'ttl'), owner)
      return reply.code(201).send({ id: lease.id, ttl: formatDuration(lease.ttlMs) })
    },
  )
  app.post<{ Params: { lease: string } }>(
    '/v1/leases/:lease/renew',
    {
      schema: {
        tags,
        summary: 'Give a lease its full ttl again',
        params: params.lease,
        querystring: queries.namespace,
        response: { 200: json('Renewed', answers.lease), ...problems },
      },
    },
    async (request, reply) => {
      const lease = await parts().leases.renew(request.params.lease)
      return reply.send({ id: lease.id, ttl: formatDuration(lease.ttlMs) })
    },
  )
  app.delete<{ Params: { lease: string } }>(
    '/v1/leases/:lease',
    {
      schema: {
        tags,
        summary: 'End a lease, and its nodes with it',
        params: params.lease,
        querystring: queries.namespace,
        response: { 204: empty('Ended'), ...problems },
      },
    },
    async (request, reply) => {
      await parts().leases.end(request.params.lease)
      return reply.code(204).send()
    },
  )
}

function nodeRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  const tags = ['nodes']
  const path = '/v1/services/:service/nodes/:id'
  app.put<{ Params: NodeParams; Querystring: Namespaced; Body: NodeBody }>(
    path,
    {
      schema: {
        tags,
        summary: 'Register a node, or say it again',
        params: params.node,
        querystring: queries.namespace,
        body: bodies.node,
        response: {
          200: json('It was there', answers.registeredNode),
          201: json('It is new', answers.registeredNode),
          ...problems,
        },
      },
    },
    async (request, reply) => {
      const { store, leases } = parts()
      const ref = refOf(request)
      const spec = specOf(request.body, '')
      const by = anonymous(request.ip)
      const { result } = await store.transact((tx) => registerNode(tx, leases, ref, spec, by))
      if (result.lease !== undefined) leases.touch(result.lease)
      return reply
        .code(result.created ? 201 : 200)
        .send(result.isOwn ? { ...result.node, lease: result.lease } : result.node)
    },
  )
  app.put<{ Querystring: Namespaced; Body: (NodeBody & NodeParams)[] }>(
    '/v1/nodes',
    {
      schema: {
        tags,
        summary: 'Register many nodes in one transaction, all or none',
        querystring: queries.namespace,
        body: bodies.nodes,
        response: { 200: json('Registered', answers.registeredNodes), ...problems },
      },
    },
    async (request, reply) => {
      const { store, leases, hub } = parts()
      const namespace = namespaceOf(request.query)
      const seen = new Set<string>()
      const items = request.body.map(({ service, id, ...body }, index) => {
        const key = `${service}/${id}`
        if (seen.has(key)) throw invalid(String(index), `names ${key} a second time`)
        seen.add(key)
        return { ref: { namespace, service, id }, spec: specOf(body, `${index}.`) }
      })
      const by = anonymous(request.ip)
      const { revision, result } = await store.transact((tx) =>
        items.map(({ ref, spec }) => ({ ref, ...registerNode(tx, leases, ref, spec, by) })),
      )
      for (const lease of new Set(result.map((item) => item.lease))) if (lease !== undefined) leases.touch(lease)
      return reply.send({
        cursor: formatCursor({ epoch: hub.epoch, revision }),
        created: result.filter((item) => item.created).length,
        nodes: result.map(({ ref, node, lease, isOwn }) => ({
          service: ref.service,
          id: ref.id,
          incarnation: node.incarnation,
          ...(isOwn && { lease }),
        })),
      })
    },
  )
  app.get<{ Params: NodeParams; Querystring: Namespaced }>(
    path,
    {
      schema: {
        tags,
        summary: 'One node',
        params: params.node,
        querystring: queries.namespace,
        response: { 200: json('The node', answers.node), 304: empty('Not modified'), ...problems },
      },
    },
    async (request, reply) => {
      const view = viewOf(parts(), request)
      const node = view.nodes.get(request.params.id)
      if (node === undefined) throw new Refusal('node_not_found')
      return tagged(request, reply, parts().hub.epoch, view.revision, node)
    },
  )
  app.patch<{ Params: NodeParams; Querystring: Namespaced; Body: { override: OverridePatch } }>(
    path,
    {
      schema: {
        tags,
        summary: "The operator's word on a node, which outlives its registration",
        params: params.node,
        querystring: queries.namespace,
        body: bodies.override,
        response: { 200: json('The node as it is now', answers.node), ...problems },
      },
    },
    async (request, reply) => {
      const ref = refOf(request)
      const { override } = request.body
      const { result } = await parts().store.transact((tx) => {
        const node = overrideNode(tx, ref, override, request.ip)
        if (node === undefined) throw new Refusal('node_not_found')
        return node
      })
      return reply.send(result)
    },
  )
  app.delete<{ Params: NodeParams; Querystring: Namespaced & Fence }>(
    path,
    {
      schema: {
        tags,
        summary: 'Remove a node',
        description:
          'With `incarnation` or `lease` it is the registrant that speaks, and only of the node that it means; without ' +
          'both it is an operator, and the override goes too.',
        params: params.node,
        querystring: queries.removal,
        response: { 204: empty('It is not there any more'), ...problems },
      },
    },
    async (request, reply) => {
      const ref = refOf(request)
      await parts().store.transact((tx) => removeNode(tx, ref, request.query, request.ip))
      return reply.code(204).send()
    },
  )
}

function serviceRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  const tags = ['services']
  app.get<{ Querystring: Namespaced & PageQuery & { prefix?: string } }>(
    '/v1/services',
    {
      schema: {
        tags,
        summary: 'The services, with their nodes counted by status',
        querystring: queries.services,
        response: { 200: json('The services', answers.services), 304: empty('Not modified'), ...problems },
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
        response: { 200: json('The view', answers.view), 304: empty('Not modified'), ...problems },
      },
    },
    async (request, reply) => {
      const { hub } = parts()
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
        response: { 200: json('The changes', answers.history), 304: empty('Not modified'), ...problems },
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

function policyRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  const tags = ['policies']
  const path = '/v1/services/:service/policy'
  void app.register((scope, _options, done) => {
    for (const type of ['application/yaml', 'application/x-yaml', 'text/yaml'])
      scope.addContentTypeParser(type, { parseAs: 'string' }, (_request, body, parsed) => {
        try {
          parsed(null, parseYamlBody(body as string))
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
        response: { 200: json('The policy', answers.policy), 304: empty('Not modified'), ...problems },
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

function namespaceOf(query: Namespaced): string {
  return query.namespace ?? DEFAULT_NAMESPACE
}

function refOf(request: FastifyRequest<{ Params: NodeParams; Querystring: Namespaced }>): NodeRef {
  const { service, id } = request.params
  return { namespace: namespaceOf(request.query), service, id }
}

function leaseTtl(text: string, path: string): number {
  const ttlMs = parseDuration(text)
  if (ttlMs === undefined || ttlMs < LIMITS.leaseTtlMinMs || ttlMs > LIMITS.leaseTtlMaxMs)
    throw invalid(path, `must be from 2s to 1h, got ${text}`)
  return ttlMs
}

function specOf({ ttl, ...spec }: NodeBody, path: string): NodeSpec {
  if (ttl === undefined) return spec
  if (spec.lease !== undefined) throw invalid(`${path}ttl`, 'not together with lease')
  return { ...spec, ttlMs: leaseTtl(ttl, `${path}ttl`) }
}

/** @throws Refusal for a service never heard of */
function viewOf({ hub }: RegistryParts, request: FastifyRequest): ServiceView {
  const view = hub.view(namespaceOf(request.query as Namespaced), (request.params as ServiceParams).service)
  if (view === undefined) throw new Refusal('service_not_found')
  return view
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
  if (wait === undefined) return
  const waitMs = parseDuration(wait)
  if (waitMs === undefined || waitMs > MAX_WAIT_MS) throw invalid('wait', `must be at most 5m, got ${wait}`)
  // A place of another history, or one that is not reached yet, says nothing about ours: answer with what there is.
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

/** Answers with a document at its cursor, or with 304 when the client has that already. */
function tagged(
  request: FastifyRequest,
  reply: FastifyReply,
  epoch: string,
  revision: number,
  document: object,
): FastifyReply {
  const etag = `"${formatCursor({ epoch, revision })}"`
  void reply.header('etag', etag)
  const known = request.headers['if-none-match']?.split(',').map((item) => item.trim().replace(/^W\//, ''))
  if (known?.some((item) => item === etag || item === '*')) return reply.code(304).send()
  return reply.send(document)
}
