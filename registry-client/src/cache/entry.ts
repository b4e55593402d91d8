/** One service in memory: what is served of it, what the registry said last, and how far each is known to reach. */

import type { Clock } from '../clock.ts'
import type { Session } from '../registry/connection.ts'
import { isAfter, type Cursor, type View } from '../protocol.ts'

/** Where a view came from. A view of a file or a peer counts as such until the registry has confirmed it. */
export type Origin = 'file' | 'peer' | 'registry'

/**
 * Why the registry's last word is not taken as it is: `unknown`, it never heard of the service; `empty`, it names no
 * node, and no removal that took the last; `incomplete`, its history is another one and does not account for some nodes.
 */
export type QuarantineReason = 'unknown' | 'empty' | 'incomplete'

export interface Quarantine {
  readonly sinceMs: number
  readonly reason: QuarantineReason
}

/** One service in memory. */
export class Entry {
  readonly namespace: string
  readonly service: string
  /** What is served; undefined until anything is known. */
  view: View | undefined
  origin: Origin = 'registry'
  /** Until when the view is known to have been current, by the life of the stream (or the file) that said so. */
  confirmed: Session = { heardMs: -Infinity }
  /**
   * The registry's last word: the base of its next change and the cursor to resume from. It differs from `view` only
   * while it leaves nodes out without proof, or disputes what a peer said.
   */
  heard: View | undefined
  /** `heard` with the nodes of `view` that it does not account for: what is served while there are any. */
  carried: View | undefined
  /** Set while there is `carried`. */
  quarantine: Quarantine | undefined
  /** Nodes of `view` that stores of later epochs have removed with a cause. */
  readonly removed = new Set<string>()
  /** For how long streams of a history have not accounted for every node: up to the last look, in this life of one. */
  awaited:
    { readonly epoch: string; readonly session: Session; readonly lookedMs: number; readonly forMs: number } | undefined
  /** Whether it is known what the service's files hold, which a slow or a failing disk may put off. */
  isFileKnown = false
  /** Whether it has ever served nodes: what says that there are none was judged against them. */
  hadNodes = false
  /** What an operator's file says instead of the registry. */
  override: View | undefined
  /** How many watch the service: while anyone does, it is not evicted. */
  pins = 0
  /** Whether anyone has asked since the last look at {@link usedSince}. Keeps the clock out of a pick. */
  touched = true
  #usedMs = 0
  /** As it was counted last. */
  size = 0
  /** The life of the stream that has sent every change of this service. */
  #covered: Session | undefined
  /** What earlier lives have shown. */
  #shown: Cursor | undefined

  constructor(namespace: string, service: string) {
    this.namespace = namespace
    this.service = service
  }

  /**
   * What answers a caller. Nobody is told that there are no nodes before the files were read: they may hold some of which
   * even the proof that is at hand says nothing.
   */
  get served(): View | undefined {
    return this.override ?? this.carried ?? (this.isFileKnown || this.hadNodes ? this.view : undefined)
  }

  /** Whether the registry's last word leaves nodes out without proof, and they are served all the same. */
  get quarantined(): boolean {
    return this.carried !== undefined
  }

  /** Up to where in the store's history the view is known to be complete; the cursor of the view at least. */
  get asOf(): Cursor | undefined {
    const cursor = (this.carried ?? this.view ?? this.override)?.cursor
    return cursor && later(this.#covered?.asOf, later(this.#shown, cursor))
  }

  /** Milliseconds since the served view was known to be current. */
  ageMs(clock: Clock): number {
    return Math.max(0, clock.now() - this.confirmed.heardMs)
  }

  /** From now on what this life of the stream has sent up to an id includes every change of this service. */
  cover(session: Session | undefined): void {
    if (this.#covered === session) return
    // What a peer claimed to know shows nothing.
    this.#shown = this.origin === 'peer' ? undefined : this.asOf
    this.#covered = session
  }

  isCoveredBy(session: Session): boolean {
    return this.#covered === session
  }

  /** Forgets what it serves and what it heard, as though nothing had been said yet. */
  rewind(): void {
    this.view = this.heard = this.carried = this.quarantine = this.awaited = undefined
    this.removed.clear()
  }

  /** When it was last asked for, as far as anyone has looked. */
  usedSince(nowMs: number): number {
    if (this.touched || this.pins > 0) this.#usedMs = nowMs
    this.touched = false
    return this.#usedMs
  }
}

function later(a: Cursor | undefined, b: Cursor): Cursor {
  return a !== undefined && isAfter(a, b) ? a : b
}
