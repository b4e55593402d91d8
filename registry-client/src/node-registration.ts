/** What a program says of a node when it registers one. */

import type { NodeStatus, Protocol } from './protocol.ts'

export interface NodeRegistration {
  readonly service: string
  /** Default: the client's. */
  readonly namespace?: string
  /** Default: `host:port`, so that a new life of the same instance replaces the old one. */
  readonly id?: string
  /** Where others reach the node. Default `127.0.0.1`. */
  readonly host?: string
  readonly port: number
  readonly protocol?: Protocol
  readonly weight?: number
  /** Default: the client's. */
  readonly zone?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly status?: NodeStatus
}
