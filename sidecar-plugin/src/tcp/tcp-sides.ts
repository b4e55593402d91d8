import type { Clock, Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { PolicyDocument } from '@holdfast/registry-client/protocol'
import type { SidecarConfig } from '../config.ts'
import { stack, type Layer } from '../layer.ts'
import { address } from '../layers/address.ts'
import { answers } from '../layers/answers.ts'
import { balance } from '../layers/balance.ts'
import { deadline } from '../layers/deadline.ts'
import { local, type LocalTarget } from '../layers/local.ts'
import { resolve } from '../layers/resolve.ts'
import { retry } from '../layers/retry.ts'
import type { Picker, Resolver } from '../registry.ts'
import { connectionLog } from './connection-log.ts'
import { TcpForward, type TcpForwardLimits } from './tcp-forward.ts'
import type { TcpTraffic } from './tcp-listener.ts'
import { TcpListeners, type TcpLimits } from './tcp-listeners.ts'

export interface TcpSidesOptions {
  readonly config: Pick<SidecarConfig, 'tcp' | 'namespace'>
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly client: Resolver & Picker
  readonly limits?: Partial<TcpLimits & TcpForwardLimits> | undefined
  /** Takes a line of the access log; undefined for none. */
  readonly write: ((line: string) => void) | undefined
  readonly policyAttempts: (policy: PolicyDocument | undefined) => number | undefined
  readonly onRetry: (failed: string) => void
  /** The target of a connection that came in by an entrance. */
  readonly find: (service: string, namespace: string) => LocalTarget | undefined
}

/** What a sidecar does with TCP. */
export interface TcpSides {
  readonly outbound: TcpListeners
  readonly inbound: TcpListeners
  readonly traffic: () => readonly TcpTraffic[]
  /** Cuts everything. */
  close(): void
}

/** Composes both directions of TCP out of the layers that requests pass. */
export function composeTcp(options: TcpSidesOptions): TcpSides {
  const { config, clock, random, log, client, write } = options
  const limits = { ...options.limits, idleMs: config.tcp.idle, connections: config.tcp.connections }
  const forward = new TcpForward({ clock, limits })
  // Each stack in the order in which a connection meets it.
  const record: Layer[] = [...(write ? [connectionLog({ clock, write })] : []), answers(log)]
  // Of a policy's timeout nothing is read here: it is that of a request, and a connection may stand for days.
  const connectDeadline = deadline({ clock, policyTimeoutMs: () => undefined, defaultMs: config.tcp.connect })
  const outbound = new TcpListeners({
    direction: 'outbound',
    clock,
    random,
    limits,
    serve: stack(
      [
        ...record,
        address(config.namespace),
        resolve({ resolver: client, limitMs: config.tcp.connect }),
        connectDeadline,
        retry({
          clock,
          random,
          policyAttempts: options.policyAttempts,
          onRetry: (_exchange, failed) => options.onRetry(failed),
        }),
        balance({
          picker: client,
          clock,
          // A node that has answered is there; why it breaks off later, only its caller could know.
          brokenBy: ({ error, bytesOut }) => error?.source === 'upstream' && bytesOut === 0,
        }),
      ],
      forward.serve,
    ),
  })
  const inbound = new TcpListeners({
    direction: 'inbound',
    clock,
    random,
    limits,
    serve: stack([...record, local(config.namespace, options.find), connectDeadline], forward.serve),
  })
  return {
    outbound,
    inbound,
    traffic: () => [...outbound.traffic, ...inbound.traffic],
    close() {
      outbound.close()
      inbound.close()
      forward.close()
    },
  }
}
