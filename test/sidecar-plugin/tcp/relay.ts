/** The TCP side of a sidecar as its composer builds it, on real sockets, with a table for a registry. */

import { once } from 'node:events'
import { connect, type Socket, type SocketConstructorOpts } from 'node:net'
import type { TestContext } from 'node:test'
import { systemClock, type Clock } from '@holdfast/registry-client/clock'
import { stack } from '../../../sidecar-plugin/src/layer.ts'
import { address } from '../../../sidecar-plugin/src/layers/address.ts'
import { answers } from '../../../sidecar-plugin/src/layers/answers.ts'
import { balance } from '../../../sidecar-plugin/src/layers/balance.ts'
import { deadline } from '../../../sidecar-plugin/src/layers/deadline.ts'
import { resolve } from '../../../sidecar-plugin/src/layers/resolve.ts'
import { retry } from '../../../sidecar-plugin/src/layers/retry.ts'
import type { TakeHttp } from '../../../sidecar-plugin/src/tcp/detection.ts'
import { connectionLog } from '../../../sidecar-plugin/src/tcp/connection-log.ts'
import { TcpForward, type TcpForwardLimits } from '../../../sidecar-plugin/src/tcp/tcp-forward.ts'
import { TcpListeners, type TcpLimits } from '../../../sidecar-plugin/src/tcp/tcp-listeners.ts'
import { seededRandom } from '../../support/seeded-random.ts'
import { FakeClient, quietLog } from '../fakes.ts'

export interface LogLine {
  readonly protocol: string
  readonly direction: string
  readonly service?: string
  readonly node?: string
  readonly reason?: string
  readonly attempts: number
  readonly connectMs: number
  readonly durationMs: number
  readonly bytesIn: number
  readonly bytesOut: number
  readonly source?: string
}

export async function startRelay(
  t: TestContext,
  nodePorts: readonly number[],
  options: {
    limits?: Partial<TcpLimits & TcpForwardLimits>
    clock?: Clock
    connectMs?: number
    http?: TakeHttp
  } = {},
) {
  const { clock = systemClock, connectMs = 10_000 } = options
  const client = new FakeClient()
  client.set(
    'db',
    nodePorts.map((port, index) => ({ id: `n${index + 1}`, port })),
  )
  const lines: LogLine[] = []
  const random = seededRandom(1)
  const limits = options.limits ?? {}
  const forward = new TcpForward({ clock, limits })
  const listeners = new TcpListeners({
    direction: 'outbound',
    clock,
    random,
    limits,
    ...(options.http && { http: options.http }),
    serve: stack(
      [
        connectionLog({ clock, write: (line) => void lines.push(JSON.parse(line) as LogLine) }),
        answers(quietLog),
        address('default'),
        resolve({ resolver: client, limitMs: connectMs }),
        deadline({ clock, policyTimeoutMs: () => undefined, defaultMs: connectMs }),
        retry({ clock, random, policyAttempts: () => undefined }),
        balance({
          picker: client,
          clock,
          brokenBy: ({ error, bytesOut }) => error?.source === 'upstream' && bytesOut === 0,
        }),
      ],
      forward.serve,
    ),
  })
  const stop = () => {
    listeners.close()
    forward.close()
  }
  t.after(stop)
  const { port } = await listeners.open({ host: '127.0.0.1', port: 0, service: 'db', namespace: 'default' })
  return { port, client, lines, listeners, forward, stop, traffic: () => listeners.traffic[0]! }
}

/** One end of a connection, with what it heard. */
export class End {
  readonly socket: Socket
  text = ''
  bytes = 0
  hasEnded = false
  error: NodeJS.ErrnoException | undefined
  readonly closed: Promise<void>

  constructor(socket: Socket, reads = true) {
    this.socket = socket
    if (reads) this.read()
    socket.on('end', () => (this.hasEnded = true))
    socket.on('error', (error) => (this.error = error))
    this.closed = new Promise((done) => socket.once('close', () => done()))
  }

  read(): this {
    this.socket.on('data', (chunk: Buffer) => {
      this.bytes += chunk.length
      if (this.bytes < 65_536) this.text += chunk.toString('latin1')
    })
    return this
  }

  async until(text: string): Promise<void> {
    while (!this.text.includes(text)) {
      if (this.socket.destroyed) throw new Error(`closed before ${text}: ${this.text}`)
      await Promise.race([once(this.socket, 'data').catch(() => {}), this.closed])
    }
  }

  async ended(): Promise<void> {
    while (!this.hasEnded && !this.socket.destroyed)
      await Promise.race([once(this.socket, 'end').catch(() => {}), this.closed])
  }
}

/** A caller who may close its half alone. */
export function call(t: TestContext, port: number, options: SocketConstructorOpts & { reads?: boolean } = {}): End {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true, ...options })
  t.after(() => socket.destroy())
  return new End(socket, options.reads)
}
