import { cursorOf, formatCursor } from './cursor.ts'
import { LIMITS } from './limits.ts'
import { namespaceOf, serviceOf } from './names.ts'
import { integer, list, oneOf, only, ProtocolError, record } from './reading.ts'

/** What a client sends on the WebSocket. One connection carries every service of a process. */
export type ClientMessage =
  | {
      readonly type: 'subscribe'
      readonly services: readonly Subscription[]
      /** A cursor that the registry is to have caught up with first, whichever service it is of. */
      readonly reach?: string
      /** Asks for a ping with this number in `subscribed`. Numbers grow on a stream. */
      readonly ref?: number
    }
  | { readonly type: 'unsubscribe'; readonly services: readonly ServiceRef[] }
  | { readonly type: 'ack'; readonly cursor: string }

export interface ServiceRef {
  readonly namespace?: string
  readonly service: string
}

/** `cursor` is that of the view the client has: it gets only what changed since, or nothing. */
export interface Subscription extends ServiceRef {
  readonly cursor?: string
}

/**
 * Reads what a client sent on the WebSocket.
 * @throws ProtocolError with the path of the offending field
 */
export function decodeClientMessage(input: unknown): ClientMessage {
  const doc = record(input, 'message')
  const type = oneOf(doc.type, ['subscribe', 'unsubscribe', 'ack'] as const, 'type')
  only(doc, KNOWN_FIELDS[type], '')
  if (type === 'ack') return { type, cursor: formatCursor(cursorOf(doc.cursor, 'cursor')) }
  const items = list(doc.services, 'services')
  if (items.length > LIMITS.subscribeServices)
    throw new ProtocolError('services', `at most ${LIMITS.subscribeServices} in one message, got ${items.length}`)
  const services = items.map((item, index) => {
    const path = `services.${index}`
    const ref = record(item, path)
    only(ref, type === 'subscribe' ? ['namespace', 'service', 'cursor'] : ['namespace', 'service'], `${path}.`)
    return {
      service: ref.service === '*' ? '*' : serviceOf(ref.service, `${path}.service`),
      ...(ref.namespace !== undefined && {
        namespace: ref.namespace === '*' ? '*' : namespaceOf(ref.namespace, `${path}.namespace`),
      }),
      ...(ref.cursor !== undefined && { cursor: formatCursor(cursorOf(ref.cursor, `${path}.cursor`)) }),
    }
  })
  if (type === 'unsubscribe') return { type, services }
  return {
    type,
    services,
    ...(doc.reach !== undefined && { reach: formatCursor(cursorOf(doc.reach, 'reach')) }),
    ...(doc.ref !== undefined && { ref: integer(doc.ref, 0, Number.MAX_SAFE_INTEGER, 'ref') }),
  }
}

/** Of the messages of a client. */
const KNOWN_FIELDS = {
  subscribe: ['type', 'services', 'reach', 'ref'],
  unsubscribe: ['type', 'services'],
  ack: ['type', 'cursor'],
} as const
