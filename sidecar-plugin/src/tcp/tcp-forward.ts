import type { Clock } from '@holdfast/registry-client/clock'
import { SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import type { Content, Destination, Exchange, Reply } from '../layer.ts'
import { greetingOf, takesGreeting, WELCOME } from './greeting.ts'
import { PrefixedContent } from './prefixed-content.ts'
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
 * stands as soon as the connection does: nothing is waited for that one side would have to say first. Where another
 * sidecar stands before the service, it stands once that one has a connection to the service; what fails before is not
 * `delivered`, because nothing was passed.
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
      let stands = false
      const cancelLimit = this.#clock.after(connectMs, () => {
        const what = isConnected ? 'no word of the sidecar there' : 'no connection'
        stream.fail(new SidecarError('upstream_connect', `${at}: ${what} within ${connectMs} ms`))
      })
      const host: TcpStreamHost = {
        failure: (cause) => {
          const why = cause?.code ?? cause?.message ?? 'closed'
          if (stands) return new SidecarError('upstream_reset', `${at}: ${why}`, { delivered: true, cause })
          return isConnected
            ? refusal(at, why, cause)
            : new SidecarError('upstream_connect', `${at}: ${why}`, { cause })
        },
        closed: (failure) => {
          cancelLimit()
          this.#open.delete(stream)
          // Of no effect once it has been resolved.
          if (failure) reject(failure)
        },
      }
      const stand = (body: Content) => {
        stands = true
        cancelLimit()
        resolve({
          status: 200,
          headers: Fields.NONE,
          body,
          tunnel: { protocol: undefined, open: (incoming) => stream.take(incoming) },
        })
      }
      const stream = TcpStream.connect(destination.host, destination.port, host, () => {
        isConnected = true
        stream.keepAlive(keepAliveMs)
        if (!takesGreeting(destination)) return stand(stream)
        stream.write(greetingOf(exchange.name))
        const content: PrefixedContent = new PrefixedContent(stream, WELCOME, (beginning) => {
          if (beginning === 'ended') stream.fail(refusal(at, 'the connection ended'))
          else stand(content)
          return beginning !== 'ended'
        })
        content.look()
      })
      this.#open.add(stream)
      exchange.whenAborted((reason) => stream.fail(reason))
    })

  /** Cuts every connection. */
  close(): void {
    for (const stream of this.#open) stream.cancel()
  }
}

function refusal(at: string, why: string, cause?: Error): SidecarError {
  return new SidecarError('upstream_refused', `${at}: ${why} before the sidecar there had one to its service`, {
    cause,
  })
}

function originOf({ host, port }: Destination): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}
