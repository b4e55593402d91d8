/** The route that lists overrides: those of nodes that are gone are seen nowhere else. */

import type { FastifyInstance } from 'fastify'
import type {} from '@fastify/swagger'
import type { Override } from '@holdfast/registry-client/protocol'
import type { RegistryParts } from '../parts.ts'
import type { NodeRef } from '../store/store.ts'
import { pageOf, type PageQuery } from './paging.ts'
import { namespaceOf, type Namespaced } from './routing.ts'
import { answers, json, problems, queries } from './schemas.ts'

interface Held {
  readonly key: string
  readonly ref: NodeRef
  readonly override: Override
  readonly present: boolean
}

export function overrideRoutes(app: FastifyInstance, parts: () => RegistryParts): void {
  app.get<{ Querystring: Namespaced & PageQuery }>(
    '/v1/overrides',
    {
      schema: {
        tags: ['nodes'],
        summary: 'The overrides, also those of nodes that are not there now',
        querystring: queries.overrides,
        response: { 200: json('The overrides', answers.overrides), ...problems },
      },
    },
    async (request, reply) => {
      const namespace = namespaceOf(request.query)
      const page = pageOf(request.query, ({ key }: Held) => key)
      const after = page.after ?? ''
      const held = await parts().store.read((state) => {
        const found: Held[] = []
        for (const { ref, override } of state.overrides()) {
          const key = `${ref.namespace}/${ref.service}/${ref.id}`
          if ((namespace === '*' || namespace === ref.namespace) && key > after)
            found.push({ key, ref, override, present: state.node(ref) !== undefined })
        }
        return found.sort((a, b) => (a.key < b.key ? -1 : 1))
      })
      const { items, next } = page.take(held)
      const overrides = items.map(({ ref, override, present }) => ({ ...ref, override, present }))
      return reply.send({ overrides, ...(next && { next }) })
    },
  )
}
