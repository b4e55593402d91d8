/**
 * How far the registry stands by what is served: of which services the present life of its stream has sent everything,
 * and which views it has confirmed. A view that it confirmed shares its {@link Session} and grows younger by itself, so
 * that only those are looked at which it has not confirmed yet.
 */

import type { Entry } from './entry.ts'
import { hasLapsed } from './gate.ts'
import type { Log } from '../log.ts'
import { formatCursor, isAfter, type Cursor, type StreamEvent } from '../protocol.ts'
import type { Session } from '../registry/connection.ts'

export interface ConfirmationsOptions {
  /** Whether all that was asked of a service has been sent on the present stream. */
  readonly isSent: (entry: Entry) => boolean
  /** All of it has been sent. */
  readonly covered: (entry: Entry) => void
  /** The registry, which is not behind, stands by the view. */
  readonly confirmed: (entry: Entry) => void
  /** The registry, which is not behind, has said what it knows of a service of which a peer's word is held. */
  readonly answered: (entry: Entry, session: Session) => void
  readonly log: Log
}

export class Confirmations {
  readonly #options: ConfirmationsOptions
  /** Entries whose view this life of the stream has not confirmed yet. */
  readonly #unconfirmed = new Set<Entry>()
  /** Entries of which this life of the stream has not sent all yet. */
  readonly #uncovered = new Set<Entry>()
  /** Those whose view is of a later place than the registry has reached. */
  readonly #ahead = new Set<Entry>()
  /** The life of the stream whose registry said last that it may be behind. */
  #aged: Session | undefined

  constructor(options: ConfirmationsOptions) {
    this.#options = options
  }

  /** Services whose view is of a later place than the registry that answers has reached: they age. */
  get ahead(): Iterable<Entry> {
    return this.#ahead
  }

  /** A service that is asked for from now on, or once more from the beginning. */
  begin(entry: Entry): void {
    entry.cover(undefined)
    this.#uncovered.add(entry)
    this.#unconfirmed.add(entry)
  }

  /** What is served comes from somebody else. */
  doubt(entry: Entry): void {
    this.#unconfirmed.add(entry)
  }

  /** The registry itself said it just now. */
  settle(entry: Entry): void {
    this.#unconfirmed.delete(entry)
    this.#ahead.delete(entry)
  }

  forget(entry: Entry): void {
    this.settle(entry)
    this.#uncovered.delete(entry)
  }

  /** A new life of the stream has confirmed nothing yet. */
  reconnected(entries: Iterable<Entry>): void {
    for (const entry of entries) {
      this.#unconfirmed.add(entry)
      this.#uncovered.add(entry)
    }
  }

  isConfirmed(entry: Entry): boolean {
    return !this.#unconfirmed.has(entry)
  }

  /** Whether the registry says that it may be behind. */
  isAged(session: Session): boolean {
    return this.#aged === session
  }

  /**
   * One event of the stream, after what it brings was offered.
   * @param entries all that are followed
   */
  heard(event: StreamEvent, session: Session, entries: () => Iterable<Entry>): void {
    if (event.event === 'ping') {
      this.#noteAge(event.ageMs, session, entries)
      if (event.subscribed !== undefined) this.#cover(session)
    }
    if (event.id && this.#unconfirmed.size > 0) this.#confirm(event.id, session)
  }

  /** What a registry says that is cut off from its store confirms nothing; what it said since it was, neither. */
  #noteAge(ageMs: number | undefined, session: Session, entries: () => Iterable<Entry>): void {
    if (ageMs !== undefined || this.#aged === session) for (const entry of entries()) this.#unconfirmed.add(entry)
    this.#aged = ageMs === undefined ? undefined : session
  }

  #cover(session: Session): void {
    for (const entry of this.#uncovered) {
      if (!this.#options.isSent(entry)) continue
      this.#uncovered.delete(entry)
      entry.cover(session)
      this.#options.covered(entry)
    }
  }

  /** Each view of this epoch is current, or as old as the registry says that it is itself. */
  #confirm(id: Cursor, session: Session): void {
    for (const entry of this.#unconfirmed) {
      const { view } = entry
      if (entry.quarantined && this.#isStood(entry, id, session)) entry.confirmed = session
      if (view?.cursor.epoch !== id.epoch || !entry.isCoveredBy(session)) continue
      if (entry.origin === 'peer') {
        // Of hearsay the registry has to say the whole itself.
        if (this.#aged !== session) this.#options.answered(entry, session)
        continue
      }
      if (entry.quarantined) continue
      // Of a place that it has not reached itself it knows nothing, nor of what may have changed on the way there.
      const { asOf } = entry
      if (asOf && isAfter(asOf, id)) {
        this.#noteAhead(entry, asOf, id)
        continue
      }
      // An earlier life of the stream may know better than a registry that is behind.
      if (session.heardMs >= entry.confirmed.heardMs) entry.confirmed = session
      entry.origin = 'registry'
      if (this.#aged === session) continue
      this.settle(entry)
      this.#options.confirmed(entry)
    }
  }

  /**
   * Whether the registry stands by all that is served but nodes that nobody speaks for: those with leases had their time,
   * and are gone. An operator will say what becomes of the others; until then the rest is as young as it is.
   */
  #isStood(entry: Entry, id: Cursor, session: Session): boolean {
    const { heard, asOf } = entry
    const isReached = heard?.cursor.epoch === id.epoch && !(asOf && isAfter(asOf, id))
    return isReached && hasLapsed(entry) && entry.isCoveredBy(session) && this.#aged !== session
  }

  #noteAhead(entry: Entry, held: Cursor, reached: Cursor): void {
    const isFirst = this.#ahead.size === 0
    this.#ahead.add(entry)
    if (!isFirst) return
    const { namespace, service } = entry
    this.#options.log.warn(
      { namespace, service, held: formatCursor(held), reached: formatCursor(reached) },
      'the registry has not reached what is known: views age until it has',
    )
  }
}
