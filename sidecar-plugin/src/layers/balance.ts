import type { Clock } from '@holdfast/registry-client/clock'
import { asSidecarError, REASONS, SidecarError } from '../errors.ts'
import type { Ending, Exchange, Layer, Reply } from '../layer.ts'
import type { Picker } from '../registry.ts'

/**
 * Chooses the node, from memory, and tells the balancer how it went: the latency up to the answer's head, reported when
 * the answer's body has ended, so that a node counts as busy for as long as it is.
 *
 * What counts against a node: no connection, a broken connection, an answer that came too late, and what its sidecar
 * says about it (any answer with `x-holdfast-reason` and a status of 500 or more). A 5xx of the service itself does
 * not: the node is there and answers, and one bad request must not empty a service. Nor does an answer that came too late
 * for a caller who waits for less than the policy or the default has it: one who is in a hurry must not empty it either.
 * Who has gone, gave no verdict.
 *
 * Throws `no_nodes`. Never asks the registry.
 * @param brokenBy whether an answer that was begun failed by the node's fault
 */
export function balance(options: { picker: Picker; clock: Clock; brokenBy?: (ending: Ending) => boolean }): Layer {
  const { picker, clock, brokenBy = ({ error }) => error?.source === 'upstream' } = options
  return (inner) => async (exchange) => {
    const pick = pickFrom(picker, exchange.service, exchange.namespace, exchange.tried)
    exchange.destination = pick.node
    exchange.attempts++
    const startedMs = clock.now()
    let reply: Reply
    try {
      reply = await inner(exchange)
    } catch (thrown) {
      const error = asSidecarError(thrown)
      const isFailure = error.source === 'upstream' && !isHaste(exchange, error.reason)
      pick.done(isFailure ? 'failed' : 'ignored', clock.now() - startedMs)
      throw thrown
    }
    const latencyMs = clock.now() - startedMs
    if (isSidecarFailure(reply)) {
      pick.done(isHaste(exchange, reply.reason) ? 'ignored' : 'failed', latencyMs)
      return reply
    }
    exchange.whenEnded((ending) => {
      const isFailure = brokenBy(ending) && !isHaste(exchange, ending.error?.reason)
      pick.done(isFailure ? 'failed' : 'ok', latencyMs)
    })
    return reply
  }
}

function isHaste({ isHurried }: Exchange, reason: string | undefined): boolean {
  return isHurried && reason === 'deadline'
}

function isSidecarFailure(reply: Reply): boolean {
  // What its callers send round and round says nothing about it.
  if (reply.reason === undefined || reply.reason === 'loop_detected') return false
  // By the reason: of a failed call of gRPC the status says nothing.
  const status = (REASONS as Readonly<Record<string, { status: number }>>)[reply.reason]?.status ?? reply.status
  return status >= 500 || reply.reason === 'not_here'
}

function pickFrom(picker: Picker, service: string, namespace: string, not: ReadonlySet<string>) {
  try {
    return picker.pick(service, { namespace, not })
  } catch (error) {
    const { code, known } = error as { code?: string; known?: number }
    if (code !== 'no_nodes') throw error
    throw new SidecarError('no_nodes', `${service} in ${namespace}: ${describe(known ?? 0, not.size)}`, {
      cause: error,
    })
  }
}

function describe(known: number, tried: number): string {
  if (known === 0) return 'no nodes are registered'
  return `none of ${known} known nodes can be used${tried > 0 ? `, ${tried} failed this request` : ''}`
}
