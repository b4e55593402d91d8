/**
 * The single gate through which every view comes, wherever it was read. A cursor never goes back within an epoch; a view
 * never loses its nodes without proof.
 *
 * Cursors of two epochs cannot be compared. There the registry wins, which speaks now, over whatever is held, together
 * with the nodes that it does not account for; a file wins only over nothing, and over a peer's word. That one wins over
 * nothing alone, and counts for no more than a claim: what the registry has answered ends it.
 */

import type { Entry, Origin, QuarantineReason } from './entry.ts'
import {
  accountsFor,
  carryOver,
  isAfter,
  takeApart,
  unaccounted,
  type Removal,
  type ServiceNode,
  type View,
} from '../protocol.ts'
import type { Session } from '../registry/connection.ts'

/**
 * What became of an offered view: `accepted` is served from now on; `current` was served already and is now confirmed;
 * `older` changes nothing; `unproven` leaves nodes out without a cause, and is served together with them.
 */
export type Verdict = 'accepted' | 'current' | 'older' | 'unproven'

export interface Offer {
  readonly view: View
  readonly origin: Origin
  /** The life of the stream, or the file, that says so. */
  readonly confirmed: Session
  /** What the frame behind the view says it removed. */
  readonly removed?: readonly Removal[]
  /**
   * Whether the registry has answered what it was asked, and is not behind: it is not waited for any more to reach the
   * place that a peer claimed to know.
   */
  readonly isSettled?: boolean
}

/**
 * How long a node with a lease has to come back to a registry that has lost its state, while that registry is connected.
 * Longer than most registrants take to see that their lease is gone; a dead node among them is ejected by its calls.
 */
const RETURN_MS = 600_000

/** Judges a view, and makes of the entry what follows from that. */
export function judge(entry: Entry, offer: Offer, nowMs: number): Verdict {
  const { view: next, origin, confirmed, removed = [], isSettled = false } = offer
  const { view } = entry
  if (view !== undefined && origin === 'peer') return 'older'
  if (origin === 'registry') {
    // It was further already, as another replica.
    if (entry.carried && isBefore(next, entry.heard)) return 'older'
    entry.heard = next
  }
  if (view === undefined) return accept(entry, offer, nowMs)
  const isHearsay = entry.origin === 'peer'
  const sameEpoch = view.cursor.epoch === next.cursor.epoch
  const ahead = sameEpoch ? next.cursor.revision - view.cursor.revision : 0
  if (sameEpoch && ahead === 0 && !isHearsay) {
    if (origin === 'registry') {
      follow(entry, view)
      entry.origin = origin
    }
    if (confirmed.heardMs >= entry.confirmed.heardMs) entry.confirmed = confirmed
    return 'current'
  }
  const isForeign = origin === 'file' && !sameEpoch && !isHearsay
  // While the registry speaks of another epoch than what is held, a file of what is held is history.
  const isPast = origin === 'file' && entry.carried && entry.heard?.cursor.epoch !== next.cursor.epoch
  if (isForeign || isPast || (ahead < 0 && !isSettled)) {
    // A word that is older than what we hold cannot carry the next change: resume from what we hold. Unless a peer
    // said that: what the registry says next continues its own word.
    if (origin === 'registry' && !isHearsay) follow(entry, view)
    return 'older'
  }
  // A store forgets no service: what it never heard of nobody has from it.
  if (isHearsay && sameEpoch && isSettled && next.cursor.revision === 0) return accept(entry, offer, nowMs)
  if (!sameEpoch)
    for (const removal of removed) {
      const node = view.nodes.get(removal.id)
      if (node && accountsFor(removal, node)) entry.removed.add(removal.id)
    }
  const missing = missingFrom(entry, isHearsay && sameEpoch ? before(view, next) : view, offer, nowMs)
  // Never heard of is no word about a view either, not even about one without nodes.
  if (missing.length > 0 || (next.cursor.revision === 0 && view.cursor.revision > 0)) {
    if (origin === 'registry') {
      const { carried } = entry
      // Said once more: whoever watches must not take it for news.
      const isSame = carried?.cursor === next.cursor && carried.kept?.ids.length === missing.length
      if (!isSame) entry.carried = missing.length > 0 ? carryOver(view, next, missing) : view
      // Known to be current up to now; the stream goes on, and its word is not about this any more.
      if (!entry.quarantine) entry.confirmed = { heardMs: entry.confirmed.heardMs }
      entry.quarantine = { sinceMs: entry.quarantine?.sinceMs ?? nowMs, reason: reasonOf(next) }
    }
    return 'unproven'
  }
  return accept(entry, offer, nowMs)
}

function accept(entry: Entry, { view, origin, confirmed }: Offer, nowMs: number): Verdict {
  entry.carried = undefined
  entry.quarantine = undefined
  entry.awaited = undefined
  entry.removed.clear()
  entry.view = view
  entry.hadNodes ||= view.nodes.size > 0
  entry.origin = origin
  entry.confirmed = confirmed
  // It was made by one who kept nodes of another history: it goes on from where that one was.
  if (origin !== 'registry' && view.kept) {
    const { known, heard } = takeApart(view, view.kept)
    entry.view = known
    if (origin === 'file') entry.heard = heard
    entry.carried = view
    entry.quarantine = { sinceMs: nowMs, reason: 'incomplete' }
  }
  return 'accepted'
}

function isBefore(view: View, other: View | undefined): boolean {
  return other !== undefined && isAfter(other.cursor, view.cursor)
}

/** The registry continues what is held. */
function follow(entry: Entry, view: View): void {
  entry.heard = view
  entry.carried = undefined
  entry.quarantine = undefined
}

/** What a peer knew, as though it had known it before the registry's word: the place that it named proves nothing. */
function before(view: View, next: View): View {
  const revision = Math.min(view.cursor.revision, Math.max(0, (next.emptied?.revision ?? next.cursor.revision) - 1))
  return { ...view, cursor: { ...view.cursor, revision } }
}

function missingFrom(entry: Entry, view: View, offer: Offer, nowMs: number): readonly ServiceNode[] {
  const { view: next, confirmed: session } = offer
  const missing = unaccounted(view, next, entry.removed)
  if (missing.length === 0 || next.nodes.size === 0) return missing
  const { epoch } = next.cursor
  const last = entry.awaited?.epoch === epoch ? entry.awaited : { epoch, session, lookedMs: nowMs, forMs: 0 }
  // Time without a stream does not count: who cannot reach the registry cannot come back to it.
  const forMs = last.forMs + (last.session === session ? nowMs - last.lookedMs : 0)
  entry.awaited = { epoch, session, lookedMs: nowMs, forMs }
  if (!hasLapsed(entry)) return missing
  // Registrants come back by themselves. Nobody speaks for a static node but an operator, and nobody for hearsay.
  return entry.origin === 'peer' ? [] : missing.filter((node) => !node.leased)
}

/** Whether those who could have come back by themselves had their time. */
export function hasLapsed({ awaited }: Entry): boolean {
  return awaited !== undefined && awaited.forMs >= RETURN_MS
}

function reasonOf(heard: View): QuarantineReason {
  if (heard.cursor.revision === 0) return 'unknown'
  return heard.nodes.size === 0 ? 'empty' : 'incomplete'
}
