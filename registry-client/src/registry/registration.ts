/** One node of this process, as the program that registers it sees it and as the registrar works on it. */

import { checkObject, registrationOf } from '../checks.ts'
import type { RefusedError } from './connection.ts'
import type { Lease } from './leases.ts'
import type { NodeRegistration } from '../node-registration.ts'

/**
 * `pending`: not acknowledged yet. `superseded`: a newer instance has taken the node id over, and this one has let go.
 */
export type RegistrationState = 'pending' | 'registered' | 'superseded' | 'refused' | 'closed'

export interface Registration {
  readonly service: string
  readonly namespace: string
  readonly id: string
  readonly state: RegistrationState
  /**
   * Where the store's history stood once the registry had acknowledged the last change of this node, as
   * `epoch:revision`: whoever resolves with this as `minRevision` sees it. Undefined until then.
   */
  readonly cursor: string | undefined
  /**
   * Changes what the node says of itself. Returns once the registry has acknowledged, or after a while without it.
   * @throws TypeError for what cannot be; RefusedError when the registry refuses it: the node then stays what it was
   */
  update(change: Partial<Pick<NodeRegistration, 'status' | 'weight' | 'labels'>>): Promise<void>
  /** Takes the node out. Returns once acknowledged, or after a while without the registry; it goes on trying then. */
  close(): Promise<void>
}

/** What an attempt that was not answered has said of a node. */
interface Unanswered {
  readonly lease: Lease
  readonly incarnation: number
  readonly version: number
}

/** A node of this process: what is wanted of it, and how far the registry has taken that. */
export class Registered implements Registration {
  readonly service: string
  readonly namespace: string
  readonly id: string
  wanted: NodeRegistration
  state: RegistrationState = 'pending'
  cursor: string | undefined
  incarnation: number
  /** Grows with every change of what is wanted; what the registry has is `acknowledged`. */
  version = 1
  acknowledged = 0
  /** What the registry took last: what a refused change falls back to. */
  accepted: NodeRegistration | undefined
  /** Under which the registry took it last. */
  lease: Lease | undefined
  /** The last attempt that may still arrive. */
  unanswered: Unanswered | undefined
  leaving = false
  refused: RefusedError | undefined
  settled: (() => void)[] = []
  readonly #wake: (node: Registered) => Promise<void>

  /** @param wake works on what is due, and returns once it is done, or after a while */
  constructor(
    wanted: NodeRegistration,
    namespace: string,
    incarnation: number,
    wake: (node: Registered) => Promise<void>,
  ) {
    this.wanted = wanted
    this.service = wanted.service
    this.namespace = namespace
    // An id begins with a letter or digit, the host `::1` does not.
    this.id = wanted.id ?? `${wanted.host ?? '127.0.0.1'}:${wanted.port}`.replace(/^:+/, '')
    this.incarnation = incarnation
    this.#wake = wake
  }

  async update(change: Partial<NodeRegistration>): Promise<void> {
    checkObject(change, 'change')
    const { status = this.wanted.status, weight = this.wanted.weight, labels = this.wanted.labels } = change
    this.wanted = registrationOf({ ...this.wanted, status, weight, labels })
    this.version++
    if (this.state === 'registered') this.refused = undefined
    await this.#wake(this)
    // One that was superseded says so by its state.
    if (this.refused && this.state !== 'superseded') throw this.refused
  }

  async close(): Promise<void> {
    if (this.leaving || this.state === 'superseded' || this.state === 'refused') return
    this.leaving = true
    await this.#wake(this)
  }

  get path(): string {
    return `/v1/services/${this.service}/nodes/${encodeURIComponent(this.id)}?namespace=${this.namespace}`
  }

  get isDue(): boolean {
    return this.leaving || this.acknowledged < this.version
  }

  /** Whether an attempt may still arrive that its incarnation does not refuse. */
  get isUnfenced(): boolean {
    return this.unanswered?.incarnation === this.incarnation
  }

  settle(): void {
    for (const resolve of this.settled.splice(0)) resolve()
  }
}
