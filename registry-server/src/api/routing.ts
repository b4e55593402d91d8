/** What the routes have in common: whom a request means, and answers with a cursor. */

import type { FastifyReply, FastifyRequest } from 'fastify'
import { DEFAULT_NAMESPACE, formatCursor, parseCursor, type Cursor } from '@holdfast/registry-client/protocol'
import type { RegistryParts } from '../parts.ts'
import { Refusal } from './problems.ts'
import type { ServiceView } from '../watch/service-view.ts'
import type { NodeRef } from '../store/store.ts'

export interface Namespaced {
  readonly namespace?: string
}

export interface ServiceParams {
  readonly service: string
}

export interface NodeParams extends ServiceParams {
  readonly id: string
}

export function namespaceOf(query: Namespaced): string {
  return query.namespace ?? DEFAULT_NAMESPACE
}

export function refOf(request: FastifyRequest<{ Params: NodeParams; Querystring: Namespaced }>): NodeRef {
  const { service, id } = request.params
  return { namespace: namespaceOf(request.query), service, id }
}

/** @throws Refusal for a service never heard of */
export function viewOf({ hub }: RegistryParts, request: FastifyRequest): ServiceView {
  const view = hub.view(namespaceOf(request.query as Namespaced), (request.params as ServiceParams).service)
  if (view === undefined) throw new Refusal('service_not_found')
  return view
}

/** Answers with a document at its cursor, or with 304 when the client has that already. */
export function tagged(
  request: FastifyRequest,
  reply: FastifyReply,
  epoch: string,
  revision: number,
  document: object,
): FastifyReply {
  const etag = `"${formatCursor({ epoch, revision })}"`
  void reply.header('etag', etag)
  if (tagsOf(request).some((tag) => tag === etag || tag === '*')) return reply.code(304).send()
  return reply.send(document)
}

/** What the client has, each as an `ETag`. */
function tagsOf(request: FastifyRequest): readonly string[] {
  return request.headers['if-none-match']?.split(',').map((item) => item.trim().replace(/^W\//, '')) ?? []
}

/** What the client has, each by its cursor. */
export function cursorsOf(request: FastifyRequest): readonly (Cursor | undefined)[] {
  return tagsOf(request).map((tag) => parseCursor(tag.slice(1, -1)))
}
