import { request } from 'node:http'
import { connect } from 'node:net'
import type { Clock } from '@holdfast/registry-client/clock'

/** How a local service is looked at. */
export interface HealthCheck {
  /** `none`: taken for healthy as long as it is registered. */
  readonly type: 'http' | 'tcp' | 'none'
  /** Of an HTTP check: any answer from 200 to 399 passes. */
  readonly path: string
  readonly intervalMs: number
  readonly timeoutMs: number
  /** Failures in a row until it is down, or gone. */
  readonly unhealthyAfter: number
  /** Successes in a row until it is up. */
  readonly healthyAfter: number
}

/** `refused`: nobody listens, so it is stopped rather than ill. */
export interface ProbeResult {
  readonly verdict: 'passed' | 'failed' | 'refused'
  readonly detail: string
}

/** Looks once; never rejects. Ends early, as failed, when the signal aborts. */
export type Probe = (signal: AbortSignal) => Promise<ProbeResult>

/** A probe of the service on a port of this host, each time over a connection of its own. */
export function createProbe(check: HealthCheck, target: { host: string; port: number }, clock: Clock): Probe {
  if (check.type === 'none') return () => Promise.resolve({ verdict: 'passed', detail: 'not checked' })
  return (signal) =>
    new Promise((resolve) => {
      const begin = check.type === 'http' ? httpProbe : tcpProbe
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
      const end = begin(target, check.path, finish)
      if (signal.aborted) stop()
    })
}

type Begin = (target: { host: string; port: number }, path: string, finish: (result: ProbeResult) => void) => () => void

const tcpProbe: Begin = (target, _path, finish) => {
  const socket = connect(target)
  socket.once('connect', () => finish({ verdict: 'passed', detail: 'connected' }))
  socket.on('error', (error) => finish(failure(error)))
  return () => socket.destroy()
}

const httpProbe: Begin = (target, path, finish) => {
  const call = request({
    ...target,
    path,
    agent: false,
    headers: { 'user-agent': 'holdfast-sidecar', connection: 'close' },
  })
  call.on('response', (response) => {
    const status = response.statusCode ?? 0
    response.on('error', () => {})
    finish({
      verdict: status >= 200 && status < 400 ? 'passed' : 'failed',
      detail: `GET ${path} answered ${status}`,
    })
  })
  call.on('error', (error) => finish(failure(error)))
  call.end()
  return () => call.destroy()
}

function failure(error: NodeJS.ErrnoException): ProbeResult {
  return { verdict: error.code === 'ECONNREFUSED' ? 'refused' : 'failed', detail: error.code ?? error.message }
}
