import { parseDuration, type Clock } from '@holdfast/registry-client/clock'
import type { PolicyDocument } from '@holdfast/registry-client/protocol'
import { SidecarError } from '../errors.ts'
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
 * A **stated** timeout (the policy's, or the caller's `x-holdfast-timeout`, or what remains of it at the next sidecar:
 * the least of them) is of the whole exchange, the answer's body included. The **default** limits only silence before
 * the answer's head: bytes of the request that still arrive extend it, and once the head is there it is over. A limit
 * that nobody asked for must not cut an event stream or a long upload.
 *
 * Stands above `retry`: all attempts share the time.
 */
export function deadline(options: DeadlineOptions): Layer {
  const { clock, policyTimeoutMs, defaultMs = DEFAULT_TIMEOUT_MS } = options
  return (inner) => async (exchange) => {
    const { control } = exchange
    const statedMs = least(
      control.size > 0 ? parseDuration(control.get('timeout')) : undefined,
      control.size > 0 ? remaining(exchange) : undefined,
      policyTimeoutMs(exchange.known?.policy),
    )
    const limit = new Limit(exchange, clock, statedMs ?? defaultMs, statedMs === undefined)
    if (statedMs !== undefined) exchange.deadlineMs = limit.endMs
    try {
      const reply = await inner(exchange)
      // Where a tunnel begins, the answer has come.
      if (statedMs === undefined || reply.tunnel) limit.cancel()
      else exchange.whenEnded(() => limit.cancel())
      return reply
    } catch (error) {
      limit.cancel()
      // An inner service that was aborted may fail with whatever the abort broke; what counts is why it was aborted.
      throw exchange.aborted ?? error
    }
  }
}

/** Gives an exchange up in time. */
class Limit {
  readonly #exchange: Exchange
  readonly #clock: Clock
  readonly #ms: number
  /** Whether bytes of the request that arrive begin it anew. */
  readonly #extends: boolean
  #seen: number
  #cancel: () => void
  readonly endMs: number

  constructor(exchange: Exchange, clock: Clock, ms: number, doesExtend: boolean) {
    this.#exchange = exchange
    this.#clock = clock
    this.#ms = ms
    this.#extends = doesExtend
    this.#seen = exchange.bytesIn
    this.endMs = exchange.startedMs + ms
    // Whole milliseconds: the system keeps a list of timers for each duration there is.
    this.#cancel = clock.after(Math.ceil(this.endMs - clock.now()), () => this.#expire())
  }

  cancel(): void {
    this.#cancel()
  }

  #expire(): void {
    const { bytesIn, attempts } = this.#exchange
    if (this.#extends && bytesIn !== this.#seen) {
      this.#seen = bytesIn
      this.#cancel = this.#clock.after(this.#ms, () => this.#expire())
      return
    }
    const detail = `no answer within ${Math.round(this.#ms)} ms`
    this.#exchange.abort(new SidecarError('deadline', detail, { delivered: attempts > 0 }))
  }
}

/** What the sidecar before says is left, in milliseconds. Unreadable means unsaid: the word is a peer's, not a user's. */
function remaining(exchange: Exchange): number | undefined {
  const text = exchange.direction === 'inbound' ? exchange.control.get('deadline') : undefined
  return text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : undefined
}

function least(...values: readonly (number | undefined)[]): number | undefined {
  let least: number | undefined
  for (const value of values) if (value !== undefined && (least === undefined || value < least)) least = value
  return least
}
