/** A listener and a forward on real sockets, with one layer between that names the service's port. */

import { once } from 'node:events'
import { createServer, type AddressInfo, type Socket } from 'node:net'
import type { TestContext } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import type { RequestListener } from 'node:http'
import { systemClock, type Clock } from '@holdfast/registry-client/clock'
import type { Protocol } from '@holdfast/registry-client/protocol'
import { Forward, type ForwardLimits } from '../../sidecar-plugin/src/forward.ts'
import { stack, type Ending, type Exchange, type Layer } from '../../sidecar-plugin/src/layer.ts'
import { answers } from '../../sidecar-plugin/src/layers/answers.ts'
import { cleanHead } from '../../sidecar-plugin/src/layers/clean-head.ts'
import { Listener, type ListenerLimits } from '../../sidecar-plugin/src/listener.ts'
import { freePort } from '../support/free-port.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { quietLog, startService } from './fakes.ts'

export interface Wire {
  readonly port: number
  readonly servicePort: number
  readonly listener: Listener
  readonly forward: Forward
  /** Each exchange as it began. */
  readonly exchanges: Exchange[]
  readonly endings: Ending[]
  /** The kinds of what was refused. */
  readonly malformed: string[]
  stop(): Promise<void>
}

export async function startWire(
  handler: RequestListener,
  options: {
    listener?: Partial<ListenerLimits>
    forward?: Partial<ForwardLimits>
    trustReason?: boolean
    clock?: Clock
    /** Instead of the service's. */
    destinationPort?: number
    /** What the service speaks. */
    protocol?: Protocol
    layers?: Layer[]
    /** A service that is no node:http server. */
    service?: { port: number; stop(): void }
  } = {},
): Promise<Wire> {
  const { clock = systemClock } = options
  const service = options.service ?? (await startService(handler))
  const forward = new Forward({
    clock,
    trustReason: options.trustReason ?? false,
    ...(options.forward && { limits: options.forward }),
  })
  const exchanges: Exchange[] = []
  const endings: Ending[] = []
  const malformed: string[] = []
  const name: Layer = (inner) => (exchange) => {
    exchanges.push(exchange)
    exchange.whenEnded((ending) => endings.push(ending))
    exchange.destination = {
      id: 'node',
      host: '127.0.0.1',
      port: options.destinationPort ?? service.port,
      protocol: options.protocol ?? 'http',
    }
    return inner(exchange)
  }
  const listener = new Listener({
    direction: 'inbound',
    clock,
    random: seededRandom(1),
    serve: stack([answers(quietLog), name, cleanHead(), ...(options.layers ?? [])], forward.serve),
    onMalformed: (_reason, kind) => malformed.push(kind),
    ...(options.listener && { limits: options.listener }),
  })
  const port = await listener.listen('127.0.0.1', 0)
  return {
    port,
    servicePort: service.port,
    listener,
    forward,
    exchanges,
    endings,
    malformed,
    stop: async () => {
      listener.close()
      forward.close()
      service.stop()
    },
  }
}

/** A service on bare sockets, for what node:http would not send. */
export async function rawService(t: TestContext, onSocket: (socket: Socket) => void) {
  const sockets = new Set<Socket>()
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    onSocket(socket)
  })
  // Once it has stopped nobody else is to be found there.
  server.listen(await freePort(), '127.0.0.1')
  await once(server, 'listening')
  const stop = () => {
    server.close()
    for (const socket of sockets) socket.destroy()
  }
  t.after(stop)
  return { port: (server.address() as AddressInfo).port, stop }
}

/** Looks again after each turn of the event loop: for what happens elsewhere in this process without an event. */
export async function eventually(what: string, holds: () => boolean): Promise<void> {
  const endMs = systemClock.now() + 10_000
  while (!holds()) {
    if (systemClock.now() > endMs) throw new Error(`never: ${what}`)
    await turn()
  }
}
