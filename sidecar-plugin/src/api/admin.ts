import type { Log } from '@holdfast/registry-client/log'
import { isNamespace, isServiceName } from '@holdfast/registry-client/protocol'
import { problemsOf } from '@holdfast/registry-client/settings'
import type * as z from 'zod'
import { Fields } from '../fields.ts'
import { stack, type Layer } from '../layer.ts'
import { cleanHead } from '../layers/clean-head.ts'
import { localBodySchema, localSpecOf, type LocalSpec } from '../local/local-spec.ts'
import type { LocalReport } from '../local/local-services.ts'
import { OwnPortError } from '../local/own-ports.ts'
import type { AskedRequest } from '../planes.ts'
import { EntranceError } from '../tcp/tcp-entrances.ts'
import { invalid, Refusal, refusals } from './refusal.ts'
import { json, text } from './reply.ts'
import { router, type Listening, type Routes } from './router.ts'

/** What the admin API commands and shows; the composer hands it over. */
export interface AdminSubject {
  /** Undefined once ready; why not before, and while draining. */
  unready(): string | undefined
  /** Throws {@link EntranceError}, {@link OwnPortError}, or a `SidecarError` while it drains. */
  put(spec: LocalSpec): Promise<{ readonly created: boolean; readonly report: LocalReport }>
  remove(service: string): Promise<boolean>
  registrations(): Promise<readonly LocalReport[]>
  views(): Promise<readonly object[]>
  /** Undefined when neither memory nor file holds one. */
  view(service: string, namespace: string): Promise<object | undefined>
  /**
   * @param services default: all that are known
   * @param signal whoever asked has gone
   */
  rehearse(services: readonly string[] | undefined, namespace: string, signal: AbortSignal): Promise<readonly object[]>
  explain(service: string, namespace: string, request: AskedRequest): Promise<object | undefined>
  config(): object
  stats(): Promise<object>
  metrics(): Promise<string>
  /** Begins to drain; resolves at once. */
  drain(): void
}

/** Bytes of a request must keep coming. */
const PATIENCE_MS = 30_000
/** Names of more than a few characters do not fit into a request's line beyond that. */
const REHEARSED_MAX = 1_000

/**
 * The local admin API. Whoever reaches it commands the sidecar, so it listens on loopback, and a browser on this host
 * cannot be led to it: a `Host` other than loopback's is refused (DNS rebinding), and so is a change that another
 * site's page asks for.
 * @param home the namespace of services that are named without one
 */
export function adminApi(subject: AdminSubject, home: string, log: Log): Listening {
  return {
    direction: 'inbound',
    // What it rehearses is not for those who have gone.
    allowHalfOpen: false,
    limits: { headMs: PATIENCE_MS, idleMs: PATIENCE_MS },
    serve: stack([refusals(log), cleanHead(), loopbackOnly], router(routesOf(subject, home))),
  }
}

function routesOf(subject: AdminSubject, home: string): Routes {
  return {
    'PUT /v1/registrations/:service': async (request, segment) => {
      request.query([])
      const service = serviceOf(segment)
      const body = parse(localBodySchema, await request.json())
      const { created, report } = await subject.put(localSpecOf({ ...body, service })).catch(refuseEntrance)
      return json(report, created ? 201 : 200)
    },
    'DELETE /v1/registrations/:service': async (request, segment) => {
      request.query([])
      const service = serviceOf(segment)
      if ((await request.json()) !== undefined) throw invalid([{ path: '(body)', message: 'must be empty' }])
      await subject.remove(service)
      return { status: 204, headers: Fields.NONE, body: undefined }
    },
    'GET /v1/registrations': async (request) => {
      request.query([])
      return json({ registrations: await subject.registrations() })
    },
    'GET /v1/views': async (request) => {
      request.query([])
      return json({ views: await subject.views() })
    },
    'GET /v1/views/:service': async (request, segment) => {
      const { namespace } = request.query(['namespace'])
      const service = serviceOf(segment)
      return json(found(await subject.view(service, namespaceOf(namespace, home)), service))
    },
    'GET /v1/rehearsal': async (request) => {
      const { service, namespace } = request.query(['service', 'namespace'])
      const names = service?.split(',').map((name, index) => serviceOf(name, `query.service.${index}`))
      if (names && names.length > REHEARSED_MAX)
        throw invalid([{ path: 'query.service', message: `at most ${REHEARSED_MAX} services, got ${names.length}` }])
      const { signal } = request.exchange
      return json({ services: await subject.rehearse(names, namespaceOf(namespace, home), signal) })
    },
    'GET /v1/explain': async (request) => {
      const query = request.query(['service', 'namespace', 'method', 'path'], HEADER_PARAMETER)
      const { service, namespace, method = 'GET', path = '/' } = query
      if (service === undefined) throw invalid([{ path: 'query.service', message: 'is required' }])
      const name = serviceOf(service, 'query.service')
      const headers = Object.entries(query as Record<string, string>).flatMap(([key, value]) =>
        HEADER_PARAMETER.test(key) ? [[key.slice(key.indexOf('.') + 1).toLowerCase(), value] as const] : [],
      )
      const asked = { method, path, headers: Object.fromEntries(headers) }
      return json(found(await subject.explain(name, namespaceOf(namespace, home), asked), name))
    },
    'GET /v1/config': (request) => {
      request.query([])
      return json(subject.config())
    },
    'GET /v1/stats': async (request) => {
      request.query([])
      return json(await subject.stats())
    },
    'GET /metrics': async (request) => {
      request.query([])
      return text(await subject.metrics(), 'text/plain; version=0.0.4; charset=utf-8')
    },
    'GET /healthz': () => json({ status: 'ok' }),
    'GET /readyz': () => {
      const why = subject.unready()
      if (why === undefined) return json({ status: 'ready' })
      throw new Refusal({ status: 503, code: 'not_ready', title: 'Not ready', detail: why })
    },
    'POST /v1/drain': async (request) => {
      request.query([])
      // It may say anything, in JSON.
      await request.json()
      subject.drain()
      return json({ status: 'draining' }, 202)
    },
  }
}

function refuseEntrance(error: unknown): never {
  if (error instanceof OwnPortError) throw invalid([{ path: 'port', message: error.message }])
  if (!(error instanceof EntranceError)) throw error
  throw new Refusal({ status: 409, code: 'port_in_use', title: error.message })
}

function found(shown: object | undefined, service: string): object {
  if (shown) return shown
  throw new Refusal({
    status: 404,
    code: 'service_not_found',
    title: `Nothing is known of ${service}`,
    detail: 'The sidecar learns of a service when it is called for the first time.',
  })
}

function parse<T extends z.ZodType>(schema: T, input: unknown): z.output<T> {
  const result = schema.safeParse(input, { reportInput: true })
  if (result.success) return result.data
  throw invalid(
    problemsOf(result.error, schema).map((item) => ({
      ...item,
      path: ['', '(document)'].includes(item.path) ? '(body)' : item.path,
    })),
  )
}

/** `header.NAME` */
const HEADER_PARAMETER = /^header\.[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$/

function serviceOf(text: string, path = 'service'): string {
  if (isServiceName(text)) return text
  throw invalid([{ path, message: 'must be a service name: lower-case letters, digits, . and -, at most 128' }])
}

function namespaceOf(text: string | undefined, home: string): string {
  if (text === undefined) return home
  if (isNamespace(text)) return text
  throw invalid([{ path: 'query.namespace', message: 'must be a namespace: lower-case letters, digits and -' }])
}

const LOOPBACK_HOST = /^(?:127\.\d{1,3}\.\d{1,3}\.\d{1,3}|localhost|\[::1\])(?::\d{1,5})?$/i

const loopbackOnly: Layer = (inner) => async (exchange) => {
  const { authority, method } = exchange
  if (!LOOPBACK_HOST.test(authority))
    throw new Refusal({
      status: 403,
      code: 'forbidden',
      title: 'The admin API answers to loopback names only',
      detail: `Host was ${JSON.stringify(authority.slice(0, 200))}`,
    })
  const origin = exchange.headers.get('origin')?.toLowerCase()
  if (origin !== undefined && method !== 'GET' && origin !== `http://${authority.toLowerCase()}`)
    throw new Refusal({ status: 403, code: 'forbidden', title: 'Pages of other sites may not change anything' })
  return inner(exchange)
}
