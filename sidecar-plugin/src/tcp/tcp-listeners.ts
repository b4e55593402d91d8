import type { Clock, Random } from '@holdfast/registry-client/clock'
import type { AcceptorFactory } from '../acceptor.ts'
import type { Direction, Service } from '../layer.ts'
import { Capacity } from './capacity.ts'
import type { TakeHttp } from './detection.ts'
import type { TcpBinding } from './tcp-binding.ts'
import { TcpListener, type TcpListenerLimits, type TcpTraffic } from './tcp-listener.ts'

export interface TcpLimits extends TcpListenerLimits {
  /** Of all listeners together. */
  readonly connections: number
}

export const DEFAULT_TCP_LIMITS: TcpLimits = {
  idleMs: 3_600_000,
  lingerMs: 2_000,
  /** Shorter than what firewalls and address translators between hosts forget after. */
  keepAliveMs: 60_000,
  /** Longer delays what only begins like a request; shorter takes a request whose rest was lost on the way for something else. */
  detectMs: 1_000,
  connections: 10_000,
}

export interface TcpListenersOptions {
  readonly direction: Direction
  readonly serve: Service
  readonly clock: Clock
  readonly random: Random
  readonly limits?: Partial<TcpLimits>
  /** Takes the connections whose clients speak HTTP; without it nobody looks what they speak. */
  readonly http?: TakeHttp
}

/** The TCP listeners of one direction, each of which stands for one service. */
export class TcpListeners {
  readonly #options: TcpListenersOptions
  readonly #limits: TcpLimits
  readonly #capacity: Capacity
  readonly #open = new Set<TcpListener>()

  constructor(options: TcpListenersOptions) {
    this.#options = options
    this.#limits = { ...DEFAULT_TCP_LIMITS, ...options.limits }
    this.#capacity = new Capacity(this.#limits.connections)
  }

  /** What went through each. */
  get traffic(): readonly TcpTraffic[] {
    return [...this.#open].map((listener) => listener.traffic)
  }

  /** @throws the system's error when the address cannot be used */
  async open({ host, port, service, namespace }: TcpBinding, acceptor?: AcceptorFactory): Promise<TcpListener> {
    const listener = new TcpListener({
      ...this.#options,
      ...(acceptor && { acceptor }),
      limits: this.#limits,
      capacity: this.#capacity,
      service,
      namespace,
    })
    await listener.listen(host, port)
    this.#open.add(listener)
    return listener
  }

  /** Lets go of one, as {@link TcpListener.finish} does. */
  async drop(listener: TcpListener, options: { idleMs: number; timeoutMs: number }): Promise<void> {
    await listener.finish(options)
    this.#open.delete(listener)
  }

  async finish(options: { idleMs: number; timeoutMs: number }): Promise<void> {
    await Promise.all([...this.#open].map((listener) => listener.finish(options)))
  }

  /** Cuts everything. */
  close(): void {
    for (const listener of this.#open) listener.close()
  }
}
