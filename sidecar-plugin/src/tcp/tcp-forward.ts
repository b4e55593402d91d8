import type { Clock } from '@holdfast/registry-client/clock'
import { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import type { Destination, Exchange, Reply } from '../layer.ts'
import { TcpStream, type TcpStreamHost } from './tcp-stream.ts'

/** Bounds, in the unit the name ends in. */
export interface TcpForwardLimits {
  /** Of one attempt. Longer makes callers wait for a host that has vanished; shorter than 1 s takes one lost SYN for a dead node. */
  readonly connectMs: number
  /** Without a byte, until the system asks whether the other side is still there. Longer than what lies between forgets. */
  readonly keepAliveMs: number
}

export const DEFAULT_TCP_FORWARD_LIMITS: TcpForwardLimits = { connectMs: 2_000, keepAliveMs: 60_000 }

/**
 * The innermost service of TCP: opens a connection of its own to an exchange's destination. The reply is a tunnel, and
 * stands as soon as the connection does: nothing is waited for that one side would have to say first.
 */
export class TcpForward {
  readonly #clock: Clock
  readonly #limits: TcpForwardLimits
  readonly #open = new Set<TcpStream>()

  constructor(options: { clock: Clock; limits?: Partial<TcpForwardLimits> }) {
    this.#clock = options.clock
    this.#limits = { ...DEFAULT_TCP_FORWARD_LIMITS, ...options.limits }
  }

  /** Connections, with those that are not there yet. */
  get connections(): number {
    return this.#open.size
  }

  /** The service. Throws {@link SidecarError} `upstream_connect`; what breaks later fails as `upstream_reset`. */
  readonly serve = (exchange: Exchange): Promise<Reply> =>
    new Promise<Reply>((resolve, reject) => {
      const { destination, aborted } = exchange
      if (destination === undefined) throw new SidecarError('no_nodes', 'no layer chose a node')
      if (aborted) throw aborted
      const { connectMs, keepAliveMs } = this.#limits
      const at = originOf(destination)
      let isConnected = false
      const cancelLimit = this.#clock.after(connectMs, () =>
        stream.fail(new SidecarError('upstream_connect', `${at}: no connection within ${connectMs} ms`)),
      )
      const host: TcpStreamHost = {
        failure: (cause) => {
          const why = cause?.code ?? cause?.message ?? 'closed'
          return isConnected
            ? new SidecarError('upstream_reset', `${at}: ${why}`, { delivered: true, cause })
            : new SidecarError('upstream_connect', `${at}: ${why}`, { cause })
        },
        closed: (failure) => {
          cancelLimit()
          this.#open.delete(stream)
          // Of no effect once it has been resolved.
          if (failure) reject(failure)
        },
      }
      const stream = TcpStream.connect(destination.host, destination.port, host, () => {
        cancelLimit()
        isConnected = true
        stream.keepAlive(keepAliveMs)
        resolve({
          status: 200,
          headers: Fields.NONE,
          body: stream,
          tunnel: { protocol: undefined, open: (incoming) => stream.take(incoming) },
        })
      })
      this.#open.add(stream)
      exchange.whenAborted((reason) => stream.fail(reason))
    })

  /** Cuts every connection. */
  close(): void {
    for (const stream of this.#open) stream.cancel()
  }
}

function originOf({ host, port }: Destination): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}
