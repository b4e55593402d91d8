import { parseDuration, type Clock } from '@holdfast/registry-client/clock'
import type { PolicyDocument } from '@holdfast/registry-client/protocol'
import { SidecarError } from '../errors.ts'
import { fieldOf } from '../http1/head-text.ts'
import { parseGrpcTimeout } from '../http2/grpc.ts'
import type { Exchange, Layer } from '../layer.ts'

/**
 * The default for a service without a stated timeout. Shorter fails slow but healthy calls; longer lets a stuck node
 * hold its callers. Envoy's is the same.
 */
export const DEFAULT_TIMEOUT_MS = 15_000

export interface DeadlineOptions {
  readonly clock: Clock
  /** The timeout that a policy states; undefined for none. */
  readonly policyTimeoutMs: (policy: PolicyDocument | undefined) => number | undefined
  readonly defaultMs?: number
}

/**
 * Gives an exchange up when its time is over: answers 504 `deadline` and aborts what goes on upstream.
 *
 * A **stated** timeout (the policy's, or the caller's `x-holdfast-timeout` or `grpc-timeout`, or what remains of it at the next sidecar:
 * the least of them) is of the whole exchange, the answer's body included. The **default** limits only silence before
 * the answer's head: bytes of the request that still arrive extend it, and once the head is there it is over. A limit
 * that nobody asked for must not cut an event stream or a long upload.
 *
 * Stands above `retry`: all attempts share the time.
 */
export function deadline(options: DeadlineOptions): Layer {
  const { clock, policyTimeoutMs, defaultMs = DEFAULT_TIMEOUT_MS } = options
  return (inner) => async (exchange) => {
    const statedMs = least(
      parseDuration(exchange.control.get('timeout')),
      exchange.isGrpc ? parseGrpcTimeout(fieldOf(exchange.headers, 'grpc-timeout')) : undefined,
      remaining(exchange),
      policyTimeoutMs(exchange.known?.policy),
    )
    const expire = (limitMs: number) =>
      exchange.abort(
        new SidecarError('deadline', `no answer within ${Math.round(limitMs)} ms`, {
          delivered: exchange.attempts > 0,
        }),
      )
    if (statedMs !== undefined) {
      exchange.deadlineMs = exchange.startedMs + statedMs
      const cancel = clock.after(exchange.deadlineMs - clock.now(), () => expire(statedMs))
      exchange.whenEnded(cancel)
      return untilAborted(exchange, inner(exchange))
    }
    let seen = exchange.bytesIn
    let cancel = () => {}
    const arm = (ms: number) => {
      cancel = clock.after(ms, () => {
        if (exchange.bytesIn === seen) return expire(defaultMs)
        seen = exchange.bytesIn
        arm(defaultMs)
      })
    }
    arm(exchange.startedMs + defaultMs - clock.now())
    try {
      return await untilAborted(exchange, inner(exchange))
    } finally {
      cancel()
    }
  }
}

/** An inner service that was aborted may fail with whatever the abort broke; what counts is why it was aborted. */
async function untilAborted<T>(exchange: Exchange, reply: Promise<T>): Promise<T> {
  try {
    return await reply
  } catch (error) {
    throw exchange.aborted ?? error
  }
}

/** What the sidecar before says is left, in milliseconds. Unreadable means unsaid: the word is a peer's, not a user's. */
function remaining(exchange: Exchange): number | undefined {
  const text = exchange.direction === 'inbound' ? exchange.control.get('deadline') : undefined
  return text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : undefined
}

function least(...values: readonly (number | undefined)[]): number | undefined {
  const stated = values.filter((value) => value !== undefined)
  return stated.length > 0 ? Math.min(...stated) : undefined
}
