/** What a sidecar answers to a drill. Whoever it is, it is taken at its word only where that is one. */

import * as z from 'zod'
import type { Rehearsal } from '../cache/rehearsal.ts'
import { isNamespace, isServiceName } from '../protocol.ts'
import { problemsOf } from '../settings.ts'

/** More is no reason that anyone reads. */
const MAX_REASON_CHARS = 1_000
const NOT_A_REHEARSAL = 'the answer is no rehearsal'
const HINT = "is this a sidecar's admin API?"

/** Of a stranger's text what may be written to a terminal. */
const shownText = z.string().transform(plain)
const count = z.int().min(0)
const unanswered = z.array(shownText).optional()

const levelSchema = z.discriminatedUnion('resolves', [
  z.object({ resolves: z.literal(false), reason: shownText, unanswered }),
  z
    .object({
      resolves: z.literal(true),
      age: z.number().min(0),
      overridden: z.literal(true).optional(),
      nodes: count,
      usable: count,
      unanswered,
    })
    .refine(({ nodes, usable }) => usable <= nodes, { path: ['usable'], error: 'more than there are nodes' }),
])

const answerSchema = z.object({
  services: z.array(
    z.object({
      namespace: z.string().refine(isNamespace, { error: 'not a namespace' }),
      service: z.string().refine(isServiceName, { error: 'not a service name' }),
      levels: z.object({ memory: levelSchema, file: levelSchema, peer: levelSchema }),
    }),
  ),
})

const problemSchema = z.object({
  title: shownText,
  errors: z.array(z.object({ path: shownText, message: shownText })).optional(),
})

export type RehearsedService = Pick<Rehearsal, 'namespace' | 'service' | 'levels'>

/**
 * In the order of the answer.
 * @param services those that were asked for; undefined: all that the sidecar knows, of any namespace
 * @throws Error for what is no answer to that
 */
export function decodeRehearsal(
  body: string,
  services: readonly string[] | undefined,
  namespace: string,
): RehearsedService[] {
  let document: unknown
  try {
    document = JSON.parse(body)
  } catch {
    throw new Error(`${NOT_A_REHEARSAL}; ${HINT}`)
  }
  const result = answerSchema.safeParse(document, { reportInput: true })
  if (!result.success) {
    const [first] = problemsOf(result.error, answerSchema)
    throw new Error(`${NOT_A_REHEARSAL}: ${plain(`${first!.path}: ${first!.message}`)}; ${HINT}`)
  }
  const found = result.data.services as RehearsedService[]
  const seen = new Set<string>()
  for (const item of found) {
    const name = `${item.namespace}/${item.service}`
    if (services && (item.namespace !== namespace || !services.includes(item.service)))
      throw new Error(`${NOT_A_REHEARSAL} of what was asked: it tells of ${name}`)
    if (seen.has(name)) throw new Error(`${NOT_A_REHEARSAL}: it tells of ${name} twice`)
    seen.add(name)
  }
  const missing = services?.filter((service) => !seen.has(`${namespace}/${service}`)) ?? []
  if (missing.length > 0) throw new Error(`did not answer for ${missing.join(', ')}`)
  return found
}

/** Why a sidecar refused, in its own words. */
export function refusalOf(status: number, body: string): string {
  try {
    const { title, errors } = problemSchema.parse(JSON.parse(body))
    return `answered ${status}: ${errors?.map(({ path, message }) => `${path}: ${message}`).join('; ') ?? title}`
  } catch {
    return `answered ${status}; ${HINT}`
  }
}

function plain(text: string): string {
  return text.slice(0, MAX_REASON_CHARS).replaceAll(/\p{C}/gu, '?')
}
