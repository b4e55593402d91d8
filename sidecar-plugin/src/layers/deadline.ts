import { parseDuration, type Clock } from '@holdfast/registry-client/clock'
import type { PolicyDocument } from '@holdfast/registry-client/protocol'
import { SidecarError } from '../errors.ts'
import { parseGrpcTimeout } from '../http2/grpc.ts'
import { Whole, type Exchange, type Layer } from '../layer.ts'

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
 * Gives an exchange up when its time is over: answers 504 `deadline`, or 408 `request_timeout` where it is the request
 * that has not arrived, and aborts what goes on upstream.
 *
 * A **stated** timeout (the policy's, or the caller's `x-holdfast-timeout` or `grpc-timeout`, or what remains of it at
 * the next sidecar: the least of them) is of the whole exchange, the answer's body included. The **default** limits only
 * silence of the node before the answer's head: it begins anew for as long as the request arrives or is waited for, which
 * has a limit of its own on the connection, and once the head is there it is over. A limit that nobody asked for must not
 * cut an event stream or a long upload.
 *
 * Stands above `retry`: all attempts share the time.
 */
export function deadline(options: DeadlineOptions): Layer {
  const { clock, policyTimeoutMs, defaultMs = DEFAULT_TIMEOUT_MS } = options
  return (inner) => async (exchange) => {
    const { control } = exchange
    const policyMs = policyTimeoutMs(exchange.known?.policy)
    const statedMs = least(
      control.size > 0 ? parseDuration(control.get('timeout')) : undefined,
      control.size > 0 ? remaining(exchange) : undefined,
      exchange.isGrpc ? parseGrpcTimeout(exchange.headers.get('grpc-timeout')) : undefined,
      policyMs,
    )
    exchange.isHurried = statedMs !== undefined && statedMs < (policyMs ?? defaultMs)
    // Of no use to its caller any more, whatever the service would do for it.
    if (statedMs !== undefined && exchange.startedMs + statedMs <= clock.now())
      throw new SidecarError('deadline', `over on arrival: the timeout is ${statedMs} ms`)
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
    const isOwed = owesContent(this.#exchange)
    if (this.#extends && (isOwed || bytesIn !== this.#seen)) {
      // Once it has arrived the node still has its time, even if the end brought no byte.
      this.#seen = isOwed ? NaN : bytesIn
      this.#cancel = this.#clock.after(this.#ms, () => this.#expire())
      return
    }
    const within = `within ${Math.round(this.#ms)} ms`
    const delivered = attempts > 0
    this.#exchange.abort(
      isOwed
        ? new SidecarError('request_timeout', `the request did not arrive ${within}`, { delivered })
        : new SidecarError('deadline', `no answer ${within}`, { delivered }),
    )
  }
}

/** Whether it is the caller who is waited for: not while the node reads nothing, or has yet to ask for the content. */
function owesContent({ body, bytesIn, headers }: Exchange): boolean {
  if (body === undefined || body instanceof Whole || body.flows !== true) return false
  return bytesIn > 0 || !headers.has('expect')
}

/** What the sidecar before says is left, in milliseconds. Unreadable means unsaid: the word is a peer's, not a user's. */
function remaining(exchange: Exchange): number | undefined {
  const text = exchange.direction === 'inbound' ? exchange.control.get('deadline') : undefined
  return text !== undefined && /^\d{1,17}$/.test(text) ? Number(text) : undefined
}

function least(...values: readonly (number | undefined)[]): number | undefined {
  let least: number | undefined
  for (const value of values) if (value !== undefined && (least === undefined || value < least)) least = value
  return least
}
