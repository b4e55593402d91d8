/**
 * A sidecar is two planes. The control plane decides: who is registered, who is healthy, where is listened, in which order
 * things start and end. The data plane carries traffic. This contract is all that they know of each other, so that the
 * data plane may stand in the same process or in several others.
 */

import type { Rehearsal } from '@holdfast/registry-client'
import type { ConnectionStats } from './connection-metrics.ts'
import type { Direction } from './layer.ts'
import type { LocalNode } from './local/local-nodes.ts'
import type { RequestStats } from './stats.ts'
import type { TcpTraffic } from './tcp/tcp-listener.ts'

/** Somewhere to listen. */
export interface Opening {
  /** By which it is closed again; the control plane makes them up, none twice. */
  readonly id: string
  readonly direction: Direction
  readonly host: string
  /** 0 for a free one. */
  readonly port: number
  /** Whom all its connections are for. Left out: callers speak HTTP, and each request says it. */
  readonly tcp?: { readonly service: string; readonly namespace: string }
}

/** How long an end may take, in milliseconds. */
export interface Patience {
  /** For those who hold a connection and send nothing. */
  readonly idleMs: number
  /** For what is under way; then it is cut. */
  readonly timeoutMs: number
}

/** What went through since the start. */
export interface Traffic extends RequestStats {
  readonly connections: ConnectionStats
  readonly tcp: readonly TcpTraffic[]
}

/** A view as the admin API shows it. */
export interface ShownView {
  /** The rest is for people. */
  readonly [member: string]: unknown
  readonly namespace: string
  readonly service: string
  readonly cursor: string
  /** Milliseconds since it was known to be current. */
  readonly age: number
}

/** A view for other hosts. */
export interface PeerView {
  readonly document: ShownView
  readonly nodes: number
}

export interface FullName {
  readonly namespace: string
  readonly service: string
}

/** A request that somebody thinks of. */
export interface AskedRequest {
  readonly method: string
  readonly path: string
  /** By names in lower case. */
  readonly headers: Readonly<Record<string, string>>
}

/** A process that carries traffic. */
export interface WorkerReport {
  /** From 1 on. One that is started again keeps it. */
  readonly worker: number
  /** Undefined while there is no process. */
  readonly pid: number | undefined
  /** `waiting`: to be started again. `silent`: listening, and gave no answer just now. */
  readonly state: 'starting' | 'listening' | 'silent' | 'draining' | 'waiting'
  /** Times that it was started again. */
  readonly restarts: number
  /** Connections that callers hold, HTTP and TCP; undefined when it did not say. */
  readonly connections: number | undefined
  /** Why it ended last. */
  readonly lastError?: string
  /** What its client library says of itself. */
  readonly client?: object
}

export interface DataPlane {
  /**
   * Binds a port. Before {@link start} nothing is served there; connections wait.
   * @returns the port
   * @throws the system's error when the address cannot be used
   */
  open(opening: Opening): Promise<number>
  /** Lets go of a port of TCP, as at the end of a drain. */
  shut(id: string, patience: Patience): Promise<void>
  /** Once it resolves, all that was opened and set is served. */
  start(): Promise<void>
  /** Once it resolves, whatever arrives for the service goes where the node says. */
  set(node: LocalNode): Promise<void>
  forget(service: string): Promise<void>
  /** Resolves when nothing is under way for a local service, or after `limitMs`. */
  idle(service: string, limitMs: number): Promise<void>
  /** From now on every answer closes its connection; everything is still accepted and served. */
  retire(): void
  /** Finishes what is under way, inbound first: a service that finishes a request may have to call others for it. */
  finish(patience: Patience): Promise<void>
  /** Cuts everything. */
  cut(): void
  /** After {@link cut}: writes what is not written yet. */
  close(): Promise<void>
  reopenLogs(): void

  /** Requests and connections under way, by local service. */
  inFlight(): Promise<Readonly<Record<string, number>>>
  traffic(): Promise<Traffic>
  /** A page for Prometheus. */
  metrics(): Promise<string>
  views(): Promise<readonly ShownView[]>
  /** What is known of a service and what is served of it; undefined when neither memory nor file holds one. */
  view(name: FullName): Promise<ShownView | undefined>
  /** What the registry said of a service. */
  peerView(name: FullName): Promise<PeerView | undefined>
  /** Whether {@link peerView} answers at once, without a file. */
  isAtHand(name: FullName): boolean
  /** Undefined of a service that nobody has called. */
  explain(name: FullName, request: AskedRequest): Promise<object | undefined>
  /** @param names default: all that are known */
  rehearse(names: readonly FullName[] | undefined, signal: AbortSignal): Promise<readonly Rehearsal[]>
  /** The processes, where they are several. */
  workers(): Promise<readonly WorkerReport[]>
}
