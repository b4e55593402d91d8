/** The routes of leases and nodes. Writes go to the store; what is read comes from the hub. */

import type { FastifyInstance } from 'fastify'
import type {} from '@fastify/swagger'
import { formatDuration, parseDuration } from '@holdfast/registry-client/clock'
import { formatCursor, LIMITS } from '@holdfast/registry-client/protocol'
import type { RegistryParts } from '../parts.ts'
import { invalid, Refusal } from './problems.ts'
import {
  anonymous,
  overrideNode,
  registerNode,
  removeNode,
  type Fence,
  type NodeSpec,
  type OverridePatch,
} from '../registration.ts'
import { namespaceOf, refOf, tagged, viewOf, type Namespaced, type NodeParams } from './routing.ts'
import { answers, bodies, empty, json, params, problems, queries, reads } from './schemas.ts'

type NodeBody = Omit<NodeSpec, 'ttlMs'> & { readonly ttl?: string }

export function leaseRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
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

export function nodeRoutes(app: FastifyInstance, parts: () => RegistryParts, maxOverrides: number): void {
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
      // Before as well: it must not run out while the disk is busy with its renewal.
      if (spec.lease !== undefined) leases.touch(spec.lease)
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
      for (const { spec } of items) if (spec.lease !== undefined) leases.touch(spec.lease)
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
        response: { ...reads('The node', answers.node), ...problems },
      },
    },
    async (request, reply) => {
      const view = viewOf(parts(), request)
      const node = view.nodes.get(request.params.id)
      if (node === undefined) {
        // Nothing else shows that an override waits for the node's return.
        const override = await parts().store.read((state) => state.override(refOf(request)))
        throw new Refusal(
          'node_not_found',
          override && {
            detail: `an override waits for its return: ${JSON.stringify(override)}; PATCH {"override": null} clears it`,
          },
        )
      }
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
        description: 'Of a node that is not there now an override can only be taken back, as a whole or in part.',
        body: bodies.override,
        response: {
          200: json('The node as it is now', answers.node),
          204: empty('Taken back; the node is not there now'),
          ...problems,
        },
      },
    },
    async (request, reply) => {
      const ref = refOf(request)
      const { override } = request.body
      const { result } = await parts().store.transact((tx) => {
        const outcome = overrideNode(tx, ref, { patch: override, max: maxOverrides, remote: request.ip })
        if (outcome === 'absent') throw new Refusal('node_not_found')
        return outcome
      })
      return result === 'cleared' ? reply.code(204).send() : reply.send(result)
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
