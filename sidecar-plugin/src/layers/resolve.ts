import { parseDuration } from '@holdfast/registry-client/clock'
import { SidecarError } from '../errors.ts'
import type { Exchange, Layer } from '../layer.ts'
import type { KnownView, Resolver } from '../registry.ts'

/** Services that are known to be subscribed; past this many the memory of it starts again, at the cost of a call each. */
const SUBSCRIBED_MAX = 10_000

/**
 * Finds what is known of the service. Its first request subscribes to it, and waits for the registry if neither memory
 * nor file knows it; every later one reads memory and waits for nothing.
 *
 * That first call is made even when memory has a view: a service loaded from file and never subscribed would grow
 * stale unnoticed.
 *
 * Tells the caller by `x-holdfast-view` which view chose the node and how old it was, in whole seconds: whoever looks
 * at a strange answer sees whether the registry was silent.
 *
 * Stands above `deadline`, because the policy that the deadline reads comes with the view; it counts against it.
 * Throws `unknown_service`, `unresolved`, `deadline`.
 * @param limitMs how long a first request may wait when it states no timeout
 */
export function resolve(options: { resolver: Resolver; limitMs: number }): Layer {
  const { resolver, limitMs } = options
  const subscribed = new Set<string>()
  return (inner) => async (exchange) => {
    const { name } = exchange
    const view = subscribed.has(name) ? resolver.peek(exchange.service, exchange) : undefined
    if (view) exchange.known = view
    else {
      exchange.known = await firstUse(resolver, exchange, limitMs)
      if (subscribed.size >= SUBSCRIBED_MAX) subscribed.clear()
      subscribed.add(name)
    }
    const { source, age } = exchange.known
    const reply = await inner(exchange)
    const headers = reply.headers.with('x-holdfast-view', `${source}; age=${Math.floor(age / 1000)}`)
    // Not spread: it would cost more than the field.
    const { status, statusText, body, tunnel, reason, own } = reply
    return { status, statusText, headers, body, tunnel, reason, own }
  }
}

async function firstUse(resolver: Resolver, exchange: Exchange, limitMs: number): Promise<KnownView> {
  const statedMs = parseDuration(exchange.control.get('timeout'))
  try {
    return await resolver.resolve(exchange.service, {
      namespace: exchange.namespace,
      deadline: Math.min(limitMs, statedMs ?? limitMs),
      signal: exchange.signal,
    })
  } catch (error) {
    if (exchange.aborted) throw exchange.aborted
    const name = `${exchange.service} in ${exchange.namespace}`
    const { code, message } = error as { code?: string; message?: string }
    if (code === 'unknown_service') throw new SidecarError('unknown_service', `${name}: unknown`, { cause: error })
    if (code === 'unresolved') throw new SidecarError('unresolved', `${name}: ${message ?? ''}`, { cause: error })
    throw error
  }
}
