import { Backoff, sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { PolicyDocument } from '@holdfast/registry-client/protocol'
import { asSidecarError, REFUSALS, type SidecarError } from '../errors.ts'
import { discard, isRepeatable, Whole, type Exchange, type Layer, type Reply } from '../layer.ts'
import { KEPT_BYTES } from '../http1/incoming-content.ts'

/** Attempts beyond the first. More multiplies the load on a service that is failing already. */
export const DEFAULT_ATTEMPTS = 2

export const DEFAULT_BUDGET = {
  /** Retries per request, at most. Without a limit the retries of all callers become the outage. */
  ratio: 0.2,
  /** Allowed whatever the load, so that a service with few calls gets its retries. */
  minPerSecond: 10,
} as const

/** Services whose budgets are kept; the one longest known goes first. */
const BUDGETS_MAX = 10_000

const WINDOW_SECONDS = 10

/** How many retries the requests of the last ten seconds allow. */
export class RetryBudget {
  readonly #clock: Clock
  readonly #ratio: number
  readonly #minPerSecond: number
  readonly #requests = new Float64Array(WINDOW_SECONDS)
  readonly #retries = new Float64Array(WINDOW_SECONDS)
  #second = 0

  constructor(clock: Clock, limits: { ratio: number; minPerSecond: number } = DEFAULT_BUDGET) {
    this.#clock = clock
    this.#ratio = limits.ratio
    this.#minPerSecond = limits.minPerSecond
    this.#second = Math.floor(clock.now() / 1000)
  }

  request(): void {
    this.#requests[this.#slot()]!++
  }

  /** Whether a retry is left. */
  get isLeft(): boolean {
    this.#slot()
    return sum(this.#retries) + 1 <= sum(this.#requests) * this.#ratio + this.#minPerSecond * WINDOW_SECONDS
  }

  /** Takes one retry, if there is one. */
  take(): boolean {
    if (!this.isLeft) return false
    this.#retries[this.#slot()]!++
    return true
  }

  #slot(): number {
    const second = Math.floor(this.#clock.now() / 1000)
    const passed = Math.min(second - this.#second, WINDOW_SECONDS)
    for (let i = 0; i < passed; i++) {
      const slot = (this.#second + 1 + i) % WINDOW_SECONDS
      this.#requests[slot] = 0
      this.#retries[slot] = 0
    }
    this.#second = second
    return second % WINDOW_SECONDS
  }
}

export interface RetryOptions {
  readonly clock: Clock
  readonly random: Random
  /** Attempts beyond the first that a policy states; undefined for none. */
  readonly policyAttempts: (policy: PolicyDocument | undefined) => number | undefined
  /** Told of each retry with what failed before. */
  readonly onRetry?: (exchange: Exchange, failed: string) => void
}

/**
 * Sends a failed request again, to another node, when its body can still be sent whole and that cannot do a thing
 * twice:
 *
 * - nothing of it was delivered: no connection, or a peer sidecar's word that the service never saw it
 *   ({@link REFUSALS}). Safe for every method;
 * - its method is idempotent, and the connection broke before an answer, here or between the peer and its service.
 *
 * Once every node known has failed it, it waits and begins again with all of them. What fails in the end is answered
 * with the last failure of a node: `no_nodes` would hide why.
 *
 * Tells the peer by `elsewhere` when a refusal would cost nothing, so that a sidecar that leaves refuses only then.
 *
 * Stands above `balance`, which chooses anew for each attempt, and below `deadline`, which ends them all.
 */
export function retry(options: RetryOptions): Layer {
  const { clock, random } = options
  const budgets = new Map<string, RetryBudget>()
  const budgetOf = (exchange: Exchange) => {
    let budget = budgets.get(exchange.name)
    if (budget === undefined) {
      if (budgets.size >= BUDGETS_MAX) budgets.delete(budgets.keys().next().value!)
      budgets.set(exchange.name, (budget = new RetryBudget(clock)))
    }
    return budget
  }
  return (inner) => async (exchange) => {
    const budget = budgetOf(exchange)
    budget.request()
    const most = 1 + (options.policyAttempts(exchange.known?.policy) ?? DEFAULT_ATTEMPTS)
    let backoff: Backoff | undefined
    let failure: Failure | undefined
    for (;;) {
      const before = exchange.attempts
      // Said of the first attempt only: where a request came after it was sent away, it is served.
      exchange.elsewhere = before === 0 && most > 1 && isSmall(exchange) && hasChoice(exchange) && budget.isLeft
      const result = await attempt(inner, exchange)
      if (result.ok) {
        if (failure) drop(failure)
        return result.reply
      }
      const exhausted = exchange.attempts === before && exchange.tried.size > 0
      if (exhausted) {
        // Nothing was sent: every node had its turn. All may be tried again, after a pause.
        exchange.tried.clear()
        backoff ??= new Backoff(random, { baseMs: 50, capMs: 250 })
        await sleep(clock, backoff.next(), exchange.signal)
        if (exchange.aborted === undefined) continue
      } else {
        if (failure) drop(failure)
        failure = result
      }
      if (
        exchange.aborted ||
        exchange.attempts >= most ||
        exchange.attempts === 0 ||
        !mayRepeat(exchange, result) ||
        !budget.take()
      )
        return conclude(exchange, failure ?? result)
      options.onRetry?.(exchange, result.reason)
      if (exchange.destination) exchange.tried.add(exchange.destination.id)
    }
  }
}

type Result = { readonly ok: true; readonly reply: Reply } | Failure
interface Failure {
  readonly ok: false
  readonly reason: string
  readonly delivered: boolean
  readonly reply?: Reply
  readonly error?: SidecarError
}

async function attempt(inner: (exchange: Exchange) => Promise<Reply>, exchange: Exchange): Promise<Result> {
  try {
    const reply = await inner(exchange)
    const { reason } = reply
    // A peer whose service broke off says the same as a connection that broke here.
    if (reason === undefined || !(REFUSALS.has(reason) || reason === 'upstream_reset')) return { ok: true, reply }
    return { ok: false, reason, delivered: !REFUSALS.has(reason), reply }
  } catch (thrown) {
    const error = asSidecarError(thrown)
    return { ok: false, reason: error.reason, delivered: error.delivered, error }
  }
}

/** Whether the whole body is sure to be kept for another attempt. */
function isSmall({ body }: Exchange): boolean {
  return body === undefined || body instanceof Whole || (body.length ?? Infinity) <= KEPT_BYTES
}

function hasChoice(exchange: Exchange): boolean {
  let candidates = 0
  for (const { status, weight } of exchange.known?.nodes ?? [])
    if (status === 'up' && weight > 0 && ++candidates === 2) return true
  return false
}

const IDEMPOTENT: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE', 'PUT', 'DELETE'])

function mayRepeat(exchange: Exchange, failure: Failure): boolean {
  if (!isRepeatable(exchange.body)) return false
  if (!failure.delivered) return REFUSALS.has(failure.reason)
  return failure.reason === 'upstream_reset' && IDEMPOTENT.has(exchange.method)
}

function conclude(exchange: Exchange, failure: Failure): Reply {
  if (exchange.aborted) {
    drop(failure)
    throw exchange.aborted
  }
  if (failure.reply) return failure.reply
  throw failure.error!
}

function drop(failure: Failure): void {
  if (failure.reply) discard(failure.reply)
}

function sum(values: Float64Array): number {
  let total = 0
  for (const value of values) total += value
  return total
}
