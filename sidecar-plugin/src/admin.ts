import Fastify, { type FastifyError, type FastifyInstance, type FastifyRequest } from 'fastify'
import { problemsOf, type Problem } from '@holdfast/registry-client/settings'
import { isNamespace, isServiceName } from '@holdfast/registry-client/protocol'
import type * as z from 'zod'
import { localBodySchema, localSpecOf, type LocalSpec } from './local/local-spec.ts'
import type { LocalReport } from './local/local-services.ts'
import type { AskedRequest } from './planes.ts'
import { refuseBytes } from './refuse-bytes.ts'

/** What the admin API commands and shows; the composer hands it over. */
export interface AdminSubject {
  /** Undefined once ready; why not before, and while draining. */
  unready(): string | undefined
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

interface AdminProblem {
  readonly status: number
  readonly code: string
  readonly title: string
  readonly detail?: string
  readonly errors?: readonly Problem[]
  readonly allow?: string
}

class Refusal extends Error {
  readonly problem: AdminProblem
  constructor(problem: AdminProblem) {
    super(problem.title)
    this.problem = problem
  }
}

const BODY_BYTES = 65_536
/** More do not fit into a request's line anyway. */
const REHEARSED_MAX = 1_000
const METHODS = ['GET', 'PUT', 'DELETE', 'POST', 'PATCH'] as const

/**
 * The local admin API. Whoever reaches it commands the sidecar, so it listens on loopback, and a browser on this host
 * cannot be led to it: a `Host` other than loopback's is refused (DNS rebinding), and so is a change that another
 * site's page asks for.
 */
export function createAdmin(subject: AdminSubject, home: string): FastifyInstance {
  const app = Fastify({
    logger: false,
    bodyLimit: BODY_BYTES,
    // Bytes of a request must keep coming.
    connectionTimeout: 30_000,
    requestTimeout: 30_000,
    routerOptions: { maxParamLength: 512 },
    exposeHeadRoutes: false,
    clientErrorHandler: (error, socket) => void refuseBytes(error, socket),
  })
  app.removeAllContentTypeParsers()
  // Whatever it is called: curl calls a body a form unless told otherwise.
  app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => {
    if (body === '') return done(null, undefined)
    try {
      done(null, JSON.parse(body as string))
    } catch (error) {
      done(invalid([{ path: '(body)', message: `must be JSON: ${(error as Error).message}` }]))
    }
  })
  app.addHook('onRequest', (request, _reply, done) => done(refusalOf(request)))
  app.setErrorHandler((error: FastifyError, _request, reply) => {
    const { allow, ...shown } = problemOf(error)
    if (allow) void reply.header('allow', allow)
    return reply
      .code(shown.status)
      .type('application/problem+json')
      .send(JSON.stringify({ type: `urn:holdfast:problem:${shown.code}`, ...shown }))
  })
  app.setNotFoundHandler((request) => {
    const path = request.url.split('?')[0]!
    const allowed = METHODS.filter((method) => app.findRoute({ method, url: patternOf(path) }) !== null)
    if (allowed.length > 0)
      throw new Refusal({
        status: 405,
        code: 'method_not_allowed',
        title: `${path} takes ${allowed.join(', ')}`,
        allow: allowed.join(', '),
      })
    throw new Refusal({ status: 404, code: 'not_found', title: `There is nothing at ${path.slice(0, 200)}` })
  })
  addRoutes(app, subject, home)
  return app
}

function addRoutes(app: FastifyInstance, subject: AdminSubject, home: string): void {
  app.put<{ Params: { service: string } }>('/v1/registrations/:service', async (request, reply) => {
    queryOf(request, [])
    const service = serviceOf(request.params.service)
    const body = parse(localBodySchema, request.body)
    const { created, report } = await subject.put(localSpecOf({ ...body, service }))
    return reply.code(created ? 201 : 200).send(report)
  })
  app.delete<{ Params: { service: string } }>('/v1/registrations/:service', async (request, reply) => {
    queryOf(request, [])
    if (request.body !== undefined) throw invalid([{ path: '(body)', message: 'must be empty' }])
    await subject.remove(serviceOf(request.params.service))
    return reply.code(204).send()
  })
  app.get('/v1/registrations', async (request) => {
    queryOf(request, [])
    return { registrations: await subject.registrations() }
  })
  app.get('/v1/views', async (request) => {
    queryOf(request, [])
    return { views: await subject.views() }
  })
  app.get<{ Params: { service: string } }>('/v1/views/:service', async (request) => {
    const { namespace } = queryOf(request, ['namespace'])
    const { service } = request.params
    return found(await subject.view(serviceOf(service), namespaceOf(namespace, home)), service)
  })
  app.get('/v1/rehearsal', async (request, reply) => {
    const { service, namespace } = queryOf(request, ['service', 'namespace'])
    const names = service?.split(',').map((name, index) => serviceOf(name, `query.service.${index}`))
    if (names && names.length > REHEARSED_MAX)
      throw invalid([{ path: 'query.service', message: `at most ${REHEARSED_MAX} services, got ${names.length}` }])
    const gone = new AbortController()
    reply.raw.once('close', () => gone.abort())
    return { services: await subject.rehearse(names, namespaceOf(namespace, home), gone.signal) }
  })
  app.get('/v1/explain', async (request) => {
    const query = queryOf(request, ['service', 'namespace', 'method', 'path'], HEADER_PARAMETER)
    const { service, namespace, method = 'GET', path = '/' } = query
    if (service === undefined) throw invalid([{ path: 'query.service', message: 'is required' }])
    const name = serviceOf(service, 'query.service')
    const headers = Object.entries(query as Record<string, string>).flatMap(([key, value]) =>
      HEADER_PARAMETER.test(key) ? [[key.slice(key.indexOf('.') + 1).toLowerCase(), value] as const] : [],
    )
    const asked = { method, path, headers: Object.fromEntries(headers) }
    return found(await subject.explain(name, namespaceOf(namespace, home), asked), name)
  })
  app.get('/v1/config', (request) => {
    queryOf(request, [])
    return subject.config()
  })
  app.get('/v1/stats', (request) => {
    queryOf(request, [])
    return subject.stats()
  })
  app.get('/metrics', async (request, reply) => {
    queryOf(request, [])
    return reply.type('text/plain; version=0.0.4; charset=utf-8').send(await subject.metrics())
  })
  app.get('/healthz', () => ({ status: 'ok' }))
  app.get('/readyz', () => {
    const why = subject.unready()
    if (why === undefined) return { status: 'ready' }
    throw new Refusal({ status: 503, code: 'not_ready', title: 'Not ready', detail: why })
  })
  app.post('/v1/drain', async (request, reply) => {
    queryOf(request, [])
    subject.drain()
    return reply.code(202).send({ status: 'draining' })
  })
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

function invalid(errors: readonly Problem[]): Refusal {
  return new Refusal({ status: 400, code: 'invalid_request', title: 'The request is not valid', errors })
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

/** @param pattern of further parameters that are known */
function queryOf<const K extends string>(
  request: FastifyRequest,
  known: readonly K[],
  pattern?: RegExp,
): Partial<Record<K, string>> {
  const query = request.query as Record<string, string | string[]>
  const errors = Object.entries(query).flatMap(([key, value]) => {
    if (!(known as readonly string[]).includes(key) && !pattern?.test(key))
      return [{ path: `query.${key}`, message: 'unknown parameter' }]
    return typeof value === 'string' ? [] : [{ path: `query.${key}`, message: 'must be given once' }]
  })
  if (errors.length > 0) throw invalid(errors)
  return query as Partial<Record<K, string>>
}

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

function refusalOf(request: FastifyRequest): Refusal | undefined {
  const { host, origin } = request.headers
  if (host === undefined || !LOOPBACK_HOST.test(host))
    return new Refusal({
      status: 403,
      code: 'forbidden',
      title: 'The admin API answers to loopback names only',
      detail: `Host was ${JSON.stringify((host ?? '').slice(0, 200))}`,
    })
  if (origin !== undefined && request.method !== 'GET' && origin.toLowerCase() !== `http://${host.toLowerCase()}`)
    return new Refusal({ status: 403, code: 'forbidden', title: 'Pages of other sites may not change anything' })
  return undefined
}

/** A path as the router's patterns write it. */
function patternOf(path: string): string {
  return path.replace(/^(\/v1\/(?:registrations|views)\/)[^/]+$/, '$1:service')
}

function problemOf(
  error: Error & { code?: string; statusCode?: number; reason?: string; status?: number },
): AdminProblem {
  if (error instanceof Refusal) return error.problem
  if (error.reason !== undefined && error.status !== undefined)
    return { status: error.status, code: error.reason, title: error.message }
  const status = error.statusCode ?? 500
  if (status === 413) return { status, code: 'body_too_large', title: `A body may have ${BODY_BYTES} bytes at most` }
  if (status >= 400 && status < 500)
    return {
      status,
      code: 'invalid_request',
      title: 'The request is not valid',
      errors: [{ path: '(request)', message: error.message }],
    }
  return { status: 500, code: 'internal_error', title: 'The sidecar failed' }
}
