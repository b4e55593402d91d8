/** The HTTP edge: how requests are bounded, checked, counted and refused. The routes themselves are beside it. */

import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import type { Clock } from '@holdfast/registry-client/clock'
import { LIMITS } from '@holdfast/registry-client/protocol'
import type { Log } from '@holdfast/registry-client/log'
import type { Metrics } from '../metrics.ts'
import { checkCoding, parseBodies } from './bodies.ts'
import type { Exchanges } from './exchanges.ts'
import { operatorRoutes } from './operator-routes.ts'
import type { Lifecycle, RegistryParts } from '../parts.ts'
import { problemAnswer, rawAnswer, Refusal, refusalOf } from './problems.ts'
import { overrideRoutes } from './override-routes.ts'
import { checkHost, targetOf } from './request-head.ts'
import { leaseRoutes, nodeRoutes } from './registration-routes.ts'
import { content, problems, queries } from './schemas.ts'
import { policyRoutes, serviceRoutes } from './service-routes.ts'
import { version } from '../version.ts'
import type { WatchStreams } from '../watch/watch-streams.ts'

/** Slow senders may not hold connections: a head must be there within `headMs`, a body within `requestMs`. */
export interface Timeouts {
  readonly headMs: number
  readonly requestMs: number
  /** How often Node looks for those that are late. */
  readonly checkMs: number
}
export const TIMEOUTS: Timeouts = { headMs: 10_000, requestMs: 30_000, checkMs: 1_000 }
/** Room for the names of some hundred services in the URL of an event stream. */
const MAX_HEAD_BYTES = 65_536
/** Longer than any name that a route takes, percent-encoded; what is longer finds no route. */
const MAX_PARAM_CHARS = 512

const LOGO =
  '<svg xmlns="http://www.w3.org/2000/svg" width="150" height="40"><text x="0" y="28" fill="#fff" ' +
  'font-family="sans-serif" font-size="26">Holdfast</text></svg>'

/** Answer also while the state is not there. */
const ALWAYS = new Set(['/healthz', '/readyz', '/metrics', '/openapi.json', '/docs'])

export interface ApiOptions {
  readonly lifecycle: Lifecycle
  readonly streams: WatchStreams
  readonly exchanges: Exchanges
  readonly metrics: Metrics
  readonly clock: Clock
  readonly log: Log
  readonly timeouts: Timeouts
  readonly maxOverrides: number
}

export async function createApi(options: ApiOptions): Promise<FastifyInstance> {
  const { lifecycle, streams, exchanges, metrics, clock, log, timeouts } = options
  const app = fastify({
    bodyLimit: LIMITS.bodyBytes,
    requestTimeout: timeouts.requestMs,
    return503OnClosing: false,
    forceCloseConnections: 'idle',
    exposeHeadRoutes: true,
    http: {
      headersTimeout: timeouts.headMs,
      connectionsCheckingInterval: timeouts.checkMs,
      // Node's own answer has no body; ours is below.
      requireHostHeader: false,
      maxHeaderSize: MAX_HEAD_BYTES,
    },
    routerOptions: { maxParamLength: MAX_PARAM_CHARS, caseSensitive: true },
    ajv: {
      // What a client sends is what it means: nothing is turned into what it might have meant, nothing left out.
      customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: false, allErrors: true },
    },
    clientErrorHandler(error, socket) {
      // A stream's client has sent what is no request: there is no answer in the middle of a stream.
      if (!socket.writable || error.code === 'ECONNRESET' || streams.carries(socket)) socket.destroy()
      else
        exchanges.afterAnswers(socket, () => socket.end(rawAnswer(refusalBelow(error, exchanges.isReceiving(socket)))))
    },
    frameworkErrors(error, _request, reply) {
      sendProblem(error, reply, log)
    },
  })
  // Every answer is written as it is: the schemas describe answers to clients, and a test holds them to it.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data))
  parseBodies(app)
  bound(app, streams)
  exchanges.attach(app.server)
  streams.attach(app.server)

  app.addHook('onRequest', (request, reply, done) => {
    started.set(request, clock.now())
    if (streams.carries(request.raw.socket)) {
      // It would never be answered, and its sender was told that nothing comes after a stream.
      request.raw.socket.destroy()
      return done(new Refusal('invalid_request'))
    }
    try {
      checkHost(request.raw)
      checkCoding(request)
    } catch (error) {
      void reply.header('connection', 'close')
      return done(error as Error)
    }
    const path = request.routeOptions.url ?? ''
    if (lifecycle.phase === 'ready' || ALWAYS.has(path) || path.startsWith('/docs')) return done()
    if (lifecycle.phase === 'stopping') void reply.header('connection', 'close')
    done(new Refusal('not_ready', { detail: `the registry is ${lifecycle.phase}` }))
  })
  app.addHook('preValidation', (request, _reply, done) => {
    readQuery(request)
    done()
  })
  app.addHook('onSend', (_request, reply, _payload, done) => {
    if (lifecycle.parts) {
      const { hub, store } = lifecycle.parts
      void reply.header('holdfast-cursor', hub.cursorText)
      void reply.header('holdfast-age', String(Math.floor(store.status().ageMs / 1000)))
    }
    if (lifecycle.phase === 'stopping') void reply.header('connection', 'close')
    done()
  })
  app.addHook('onResponse', (request, reply, done) => {
    const route = request.routeOptions.url ?? 'none'
    metrics.request(route, request.method, reply.statusCode, clock.now() - (started.get(request) ?? clock.now()))
    done()
  })
  app.setErrorHandler((error, _request, reply) => sendProblem(error, reply, log))

  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Holdfast registry',
        version,
        license: { name: 'MIT', identifier: 'MIT' },
        description:
          'Every answer names the newest place of the store in `holdfast-cursor`, and in `holdfast-age` for how many ' +
          'seconds it may have been overtaken, while the store cannot be reached. Reads carry their own in `ETag`, and ' +
          '`If-None-Match` gives 304. Errors are problem documents (RFC 9457) with a stable `code`. Durations carry their ' +
          'unit. Unknown fields and parameters are refused.',
      },
      tags: ['services', 'nodes', 'leases', 'policies', 'watch', 'operation'].map((name) => ({ name })),
    },
  })
  const allow = knownMethods(app)
  const parts = (): RegistryParts => {
    if (lifecycle.parts === undefined) throw new Refusal('not_ready')
    return lifecycle.parts
  }
  leaseRoutes(app, parts)
  nodeRoutes(app, parts, options.maxOverrides)
  overrideRoutes(app, parts)
  serviceRoutes(app, parts)
  policyRoutes(app, parts)
  operatorRoutes(app, { lifecycle, parts, metrics, clock })
  watchRoute(app, streams)
  await documentRoutes(app)
  app.setNotFoundHandler((request) => {
    const methods = allow(request.url)
    if (methods.length === 0) throw new Refusal('not_found', { detail: 'no such path; /docs lists them all' })
    throw new Refusal('method_not_allowed', { headers: { allow: methods.join(', ') } })
  })
  await app.ready()
  return app
}

/** When each request came, for its duration. */
const started = new WeakMap<FastifyRequest, number>()

function watchRoute(app: FastifyInstance, streams: WatchStreams): void {
  app.get(
    '/v1/watch',
    {
      exposeHeadRoute: false,
      schema: {
        tags: ['watch'],
        summary: 'Follow services as Server-Sent Events, or by WebSocket',
        description:
          'Events are `snapshot`, `change` and `ping`; the id of an event promises that everything up to it has been sent, ' +
          'and `Last-Event-ID` resumes there. With `Upgrade: websocket` the same events come as text messages ' +
          '`{"event", "id", "data"}`, and the client may send `{"type": "subscribe", "services": [{"service", ' +
          '"namespace", "cursor"}], "reach", "ref"}`, `unsubscribe` and `{"type": "ack", "cursor"}`. With a cursor in ' +
          '`reach` the registry catches up with it first; once all that was asked for has been sent, a ping says the ' +
          "`ref` in `subscribed`. A ping's data also names, in milliseconds, the `spread` over which clients come back " +
          'when the stream is lost, each at random, and, while it may be behind, the `age` of what the registry knows.',
        querystring: { ...queries.watch, required: ['service'] },
        response: {
          200: content('The stream, which does not end', 'text/event-stream', { type: 'string' }),
          ...problems,
        },
      },
    },
    (request, reply) => {
      streams.openSse(request.raw, reply.raw, targetOf(request.raw).searchParams)
      reply.hijack()
    },
  )
}

async function documentRoutes(app: FastifyInstance): Promise<void> {
  app.get('/openapi.json', { schema: { hide: true, querystring: queries.none } }, () => app.swagger())
  app.get('/', { schema: { hide: true } }, (_request, reply) => reply.redirect('/docs', 302))
  await app.register(swaggerUi, {
    routePrefix: '/docs',
    uiConfig: { docExpansion: 'list' },
    logo: { type: 'image/svg+xml', content: Buffer.from(LOGO), href: '/docs' },
    theme: { title: 'Holdfast registry' },
  })
}

/** What Node would answer, accept or leave open by itself. */
function bound(app: FastifyInstance, streams: WatchStreams): void {
  const { server } = app
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  app.addHook('preClose', (done) => {
    // Node does not count a connection as idle before its first request.
    for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy()
    done()
  })
  server.on('checkContinue', (request: IncomingMessage, response: ServerResponse) => {
    // A body that will be refused need not be sent.
    if (Number(request.headers['content-length'] ?? 0) <= LIMITS.bodyBytes) response.writeContinue()
    server.emit('request', request, response)
  })
  server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) => {
    if (streams.carries(request.socket)) return request.socket.destroy()
    const { status, problem } = problemAnswer(new Refusal('expectation_failed'))
    response.writeHead(status, { 'content-type': 'application/problem+json; charset=utf-8', connection: 'close' })
    response.end(JSON.stringify(problem))
  })
}

/** Query values are text: makes numbers of those that are numbers in the schemas, and a list of what may be one. */
function readQuery(request: FastifyRequest): void {
  const query = request.query as Record<string, unknown>
  for (const name of ['limit', 'incarnation']) {
    const value = query[name]
    if (typeof value === 'string' && /^\d{1,16}$/.test(value)) query[name] = Number(value)
  }
  if (typeof query.service === 'string') query.service = [query.service]
}

/** Which methods a path knows, for those that were asked for another. */
function knownMethods(app: FastifyInstance): (url: string) => string[] {
  const routes = new Map<string, { pattern: RegExp; methods: Set<string> }>()
  app.addHook('onRoute', ({ url, method }) => {
    const source = url
      .replaceAll(/[.+?^${}()|[\]\\]/g, '\\$&')
      .replaceAll(/:\w+/g, '[^/]+')
      .replaceAll('*', '.*')
    const route = routes.get(url) ?? { pattern: new RegExp(`^${source}$`), methods: new Set() }
    for (const name of [method].flat()) route.methods.add(name)
    routes.set(url, route)
  })
  return (url) => {
    const [path = ''] = url.split('?')
    const found = new Set<string>()
    for (const { pattern, methods } of routes.values())
      if (pattern.test(path)) for (const method of methods) found.add(method)
    return [...found].sort()
  }
}

function sendProblem(error: unknown, reply: FastifyReply, log: Log): void {
  const refusal = refusalOf(error)
  if (refusal.code === 'internal_error')
    log.error({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) }, 'a request failed')
  const { status, headers, problem } = problemAnswer(refusal)
  void reply
    .code(status)
    .headers(headers)
    .type('application/problem+json; charset=utf-8')
    .serializer((data: unknown) => JSON.stringify(data))
    .send(problem)
}

/** Below the routes: a head that cannot be read, one too large, a sender too slow. */
function refusalBelow(error: NodeJS.ErrnoException, isBody: boolean): Refusal {
  const at = (message: string) => ({ errors: [{ path: isBody ? 'body' : 'head', message }] })
  switch (error.code) {
    case 'HPE_HEADER_OVERFLOW':
      return new Refusal('header_too_large')
    case 'ERR_HTTP_REQUEST_TIMEOUT':
      return new Refusal('request_timeout', at('did not arrive in time'))
    case 'HPE_CHUNK_EXTENSIONS_OVERFLOW':
      return new Refusal('body_too_large')
    default:
      return new Refusal('invalid_request', at('is not one that HTTP/1.1 allows'))
  }
}
