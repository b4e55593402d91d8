/**
 * What the sidecar needs of the client library. The library's `RegistryClient` is all of these; each part takes only
 * what it uses, so that a test need not play the rest.
 */

import type { NodeStatus, PolicyDocument, Protocol, ServiceNode } from '@holdfast/registry-client/protocol'
import type { ViewSource } from './layer.ts'

/** A view as the client hands it out. */
export interface KnownView {
  readonly source: ViewSource
  /** Milliseconds since it was known to be current. */
  readonly age: number
  readonly reachable: boolean
  readonly nodes: readonly ServiceNode[]
  readonly policy: PolicyDocument | undefined
}

export interface Resolver {
  /** From memory, else from file, else from the registry; subscribes. */
  resolve(service: string, options: { namespace: string; deadline: number; signal: AbortSignal }): Promise<KnownView>
  /** From memory, at once. */
  peek(service: string, options: { namespace: string }): KnownView | undefined
}

export interface Picker {
  /** Throws an error with the code `no_nodes` when none can be had. */
  pick(
    service: string,
    options: { namespace: string; not: ReadonlySet<string> },
  ): { readonly node: ServiceNode; done(outcome: 'ok' | 'failed' | 'ignored', latencyMs?: number): void }
}

/** A node as the registry is told of it. */
export interface NodeSpec {
  readonly service: string
  readonly namespace: string
  readonly id: string
  readonly host: string
  readonly port: number
  readonly protocol?: Protocol
  readonly weight?: number
  readonly zone?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly status: NodeStatus
}

export interface Handle {
  readonly id: string
  readonly state: 'pending' | 'registered' | 'superseded' | 'refused' | 'closed'
  update(change: { status?: NodeStatus }): Promise<void>
  close(): Promise<void>
}

export interface Registrar {
  register(spec: NodeSpec): Promise<Handle>
}
