import { request } from 'node:http'
import { connect as connectHttp2, type ClientHttp2Stream, type IncomingHttpHeaders } from 'node:http2'
import { connect } from 'node:net'
import type { Clock } from '@holdfast/registry-client/clock'
import type { Protocol } from '@holdfast/registry-client/protocol'
import { selfConnection } from '../self-connection.ts'
import { HEALTH_CHECK_PATH, healthCheckRequest, readHealthCheckResponse } from './grpc-health.ts'

/** How a local service is looked at. */
export interface HealthCheck {
  /** `none`: taken for healthy as long as it is registered. `http`: in the protocol that the service speaks. */
  readonly type: 'http' | 'tcp' | 'none'
  /**
   * Of an HTTP check: any answer from 200 to 399 passes. Of gRPC, which has a call for it: `/` asks for the server as a
   * whole, `/NAME` for its service of that name; `SERVING` passes.
   */
  readonly path: string
  readonly intervalMs: number
  readonly timeoutMs: number
  /** Failures in a row until it is down, or gone. */
  readonly unhealthyAfter: number
  /** Successes in a row until it is up. */
  readonly healthyAfter: number
}

/**
 * `refused`: nobody listens, so it is stopped rather than ill. `unmade`: the sidecar could not look, which says nothing
 * of the service.
 */
export interface ProbeResult {
  readonly verdict: 'passed' | 'failed' | 'refused' | 'unmade'
  readonly detail: string
}

/** Looks once; never rejects. Ends early, as failed, when the signal aborts. */
export type Probe = (signal: AbortSignal) => Promise<ProbeResult>

/** Where a service listens, and what it speaks; `http` unless said. */
export interface ProbeTarget {
  readonly host: string
  readonly port: number
  readonly protocol?: Protocol | undefined
}

/** A probe of the service on a port of this host, each time over a connection of its own. */
export function createProbe(check: HealthCheck, target: ProbeTarget, clock: Clock): Probe {
  if (check.type === 'none') return () => Promise.resolve({ verdict: 'passed', detail: 'not checked' })
  const begin = beginOf(check, target)
  return (signal) =>
    new Promise((resolve) => {
      const finish = (result: ProbeResult) => {
        cancel()
        signal.removeEventListener('abort', stop)
        end()
        resolve(result)
      }
      const stop = () => finish({ verdict: 'failed', detail: 'stopped' })
      const cancel = clock.after(check.timeoutMs, () =>
        finish({ verdict: 'failed', detail: `no answer within ${check.timeoutMs} ms` }),
      )
      signal.addEventListener('abort', stop, { once: true })
      const end = begin(target, check, finish)
      if (signal.aborted) stop()
    })
}

/** Asks. @param finish told of the outcome, later @returns what gives it up */
type Begin = (target: ProbeTarget, check: HealthCheck, finish: (result: ProbeResult) => void) => () => void

function beginOf({ type }: HealthCheck, { protocol }: ProbeTarget): Begin {
  if (type === 'tcp') return tcpProbe
  if (protocol === 'grpc') return grpcProbe
  return protocol === 'h2' ? http2Probe : httpProbe
}

const USER_AGENT = 'holdfast-sidecar'

/** The answer to a call of gRPC is one number. */
const ANSWER_BYTES = 1_024

const tcpProbe: Begin = ({ host, port }, _check, finish) => {
  const socket = connect({ host, port })
  socket.once('connect', () => {
    const refused = selfConnection(socket)
    finish(refused ? failure(refused) : { verdict: 'passed', detail: 'connected' })
  })
  socket.on('error', (error) => finish(failure(error)))
  return () => socket.destroy()
}

const httpProbe: Begin = ({ host, port }, { path }, finish) => {
  const call = request({
    host,
    port,
    path,
    agent: false,
    headers: { 'user-agent': USER_AGENT, connection: 'close' },
  })
  call.on('response', (response) => {
    response.on('error', () => {})
    finish(judged(path, response.statusCode ?? 0))
  })
  call.on('error', (error) => finish(failure(error)))
  call.end()
  return () => call.destroy()
}

/** By prior knowledge (RFC 9113, section 3.3): a server of HTTP/2 alone takes a request of HTTP/1.1 for an attack. */
const http2Probe: Begin = (target, { path }, finish) => {
  const { stream, destroy } = openStream(target, { ':path': path }, true, finish)
  stream.on('response', (head) => finish(judged(path, head[':status'] ?? 0)))
  return destroy
}

const grpcProbe: Begin = (target, { path, timeoutMs }, finish) => {
  const fields = {
    ':method': 'POST',
    ':path': HEALTH_CHECK_PATH,
    'content-type': 'application/grpc',
    te: 'trailers',
    'grpc-timeout': `${timeoutMs}m`,
  }
  const { stream, destroy } = openStream(target, fields, false, finish)
  const pieces: Buffer[] = []
  let bytes = 0
  let status: number | undefined
  let outcome: IncomingHttpHeaders = {}
  stream.on('response', (head) => {
    status = head[':status']
    // Where nothing but the outcome is answered, it comes with the head.
    outcome = head
  })
  stream.on('trailers', (trailers: IncomingHttpHeaders) => (outcome = trailers))
  stream.on('data', (piece: Buffer) => {
    bytes += piece.length
    if (bytes > ANSWER_BYTES) finish({ verdict: 'failed', detail: `Check answered more than ${ANSWER_BYTES} bytes` })
    else pieces.push(piece)
  })
  stream.on('end', () => {
    if (status !== undefined) finish(judgedCall(status, outcome, Buffer.concat(pieces)))
  })
  stream.end(healthCheckRequest(path.slice(1)))
  return destroy
}

function openStream(
  { host, port }: ProbeTarget,
  fields: Readonly<Record<string, string>>,
  endStream: boolean,
  finish: (result: ProbeResult) => void,
): { stream: ClientHttp2Stream; destroy: () => void } {
  const session = connectHttp2(`http://${host.includes(':') ? `[${host}]` : host}:${port}`)
  session.on('error', (error: Error) => finish(failure(error)))
  const stream = session.request({ 'user-agent': USER_AGENT, ...fields }, { endStream })
  // Of a connection that fails, its session says why; the stream's own failures come without that.
  stream.on('error', (error: Error) => {
    if (!session.destroyed) finish(failure(error))
  })
  session.on('close', () => finish({ verdict: 'failed', detail: 'the connection ended before an answer' }))
  return { stream, destroy: () => session.destroy() }
}

function judged(path: string, status: number): ProbeResult {
  return { verdict: status >= 200 && status < 400 ? 'passed' : 'failed', detail: `GET ${path} answered ${status}` }
}

function judgedCall(status: number, outcome: IncomingHttpHeaders, content: Buffer): ProbeResult {
  const code = outcome['grpc-status']
  if (status !== 200 || code !== '0') {
    const said = code === undefined ? `${status} and no grpc-status` : `grpc-status ${String(code).slice(0, 20)}`
    const hint = code === '12' ? ': the service does not have grpc.health.v1.Health' : ''
    return { verdict: 'failed', detail: `Check answered ${said}${hint}` }
  }
  const health = readHealthCheckResponse(content)
  return {
    verdict: health === 'SERVING' ? 'passed' : 'failed',
    detail: `Check answered ${health ?? 'what cannot be read'}`,
  }
}

/** What this process, or its host, has run out of. */
const SHORTAGES: ReadonlySet<string | undefined> = new Set(['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM', 'EADDRNOTAVAIL'])

function failure({ code, message }: NodeJS.ErrnoException): ProbeResult {
  if (SHORTAGES.has(code)) return { verdict: 'unmade', detail: `could not be checked: ${code}` }
  return { verdict: code === 'ECONNREFUSED' ? 'refused' : 'failed', detail: code ?? message }
}
