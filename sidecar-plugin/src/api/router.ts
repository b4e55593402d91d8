import type { Exchange, Reply, Service } from '../layer.ts'
import type { ListenerOptions } from '../listener.ts'
import { invalid, Refusal } from './refusal.ts'
import { ApiRequest } from './request.ts'

/** What an API says of how it is listened for. */
export type Listening = Omit<ListenerOptions, 'clock' | 'random' | 'acceptor'>

/** @param segments what the pattern leaves open, without percent-encoding */
export type Handler = (request: ApiRequest, ...segments: string[]) => Reply | Promise<Reply>

/** By method and pattern, in which `:name` stands for one segment of the path, whatever it holds. */
export type Routes = Readonly<Record<`${string} /${string}`, Handler>>

interface Route {
  readonly method: string
  readonly pattern: readonly string[]
  readonly handle: Handler
}

/**
 * Serves requests in origin form by a table; throws a {@link Refusal} where it has nothing. A target that is no path
 * stands for all there is: only its method can be refused.
 */
export function router(routes: Routes): Service {
  const table = Object.entries(routes).map(([key, handle]): Route => {
    const [method = '', path = ''] = key.split(' ')
    return { method, pattern: path.split('/'), handle }
  })
  return async (exchange) => {
    const [path, search] = split(exchange.target)
    const segments = path.startsWith('/') ? path.split('/').map(decoded) : undefined
    const there = segments ? table.filter(({ pattern }) => matches(pattern, segments)) : table
    const route = there.find(({ method }) => method === exchange.method)
    if (route === undefined || segments === undefined) throw refusalOf(path, there)
    const open = segments.filter((_, index) => route.pattern[index]!.startsWith(':'))
    return route.handle(new ApiRequest(exchange, search), ...open)
  }
}

function split(target: Exchange['target']): readonly [path: string, search: string] {
  const at = target.indexOf('?')
  return at < 0 ? [target, ''] : [target.slice(0, at), target.slice(at + 1)]
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment)
  } catch {
    throw invalid([{ path: '(path)', message: 'must be percent-encoded UTF-8 where it holds a %' }])
  }
}

function matches(pattern: readonly string[], segments: readonly string[]): boolean {
  return (
    pattern.length === segments.length &&
    pattern.every((part, index) => part.startsWith(':') || part === segments[index])
  )
}

function refusalOf(path: string, there: readonly Route[]): Refusal {
  const shown = path.slice(0, 200)
  if (there.length === 0) return new Refusal({ status: 404, code: 'not_found', title: `There is nothing at ${shown}` })
  const allow = [...new Set(there.map(({ method }) => method))].join(', ')
  return new Refusal({ status: 405, code: 'method_not_allowed', title: `${shown} takes ${allow}` }, ['allow', allow])
}
