/** What a watch stream is asked for by its URL, the same for both transports. */

import {
  DEFAULT_NAMESPACE,
  isNamespace,
  isServiceName,
  LIMITS,
  parseCursor,
  type Cursor,
} from '@holdfast/registry-client/protocol'
import { invalid } from '../api/problems.ts'
import type { Interest } from './subscriber.ts'

export interface Wanted extends Interest {
  readonly cursor: Cursor | undefined
}

const KNOWN = ['service', 'namespace', 'cursor']

/**
 * @param lastEventId the header with which a browser resumes; wins over the query
 * @throws Refusal
 */
export function watchQuery(query: URLSearchParams, lastEventId: string | undefined): Wanted[] {
  for (const name of query.keys()) if (!KNOWN.includes(name)) throw invalid(name, 'unknown parameter')
  for (const name of ['namespace', 'cursor'])
    if (query.getAll(name).length > 1) throw invalid(name, 'must be given once')
  const namespace = query.get('namespace') ?? DEFAULT_NAMESPACE
  const services = query.getAll('service')
  if (services.length > LIMITS.subscribeServices)
    throw invalid('service', `at most ${LIMITS.subscribeServices} in one stream`)
  const text = lastEventId ?? query.get('cursor')
  const cursor = text === null ? undefined : parseCursor(text)
  if (text !== null && cursor === undefined)
    throw invalid(lastEventId === undefined ? 'cursor' : 'last-event-id', 'must be epoch:revision', 'bad_cursor')
  const wanted = [...new Set(services)].map((service) => ({ namespace, service, cursor }))
  for (const interest of wanted) checkInterest(interest, 'service')
  return wanted
}

/** @throws Refusal for names that cannot be watched */
export function checkInterest({ namespace, service }: Interest, path: string): void {
  if (namespace !== '*' && !isNamespace(namespace)) throw invalid('namespace', 'must be a namespace or *')
  if (service !== '*' && !isServiceName(service)) throw invalid(path, 'must be a service or *')
  if (namespace === '*' && service !== '*') throw invalid('namespace', 'may be * only with service=*')
}
