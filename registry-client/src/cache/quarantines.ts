/** Services of which the registry leaves out nodes without a cause: told when it begins, and when and by what it ends. */

import type { Clock } from '../clock.ts'
import type { Log } from '../log.ts'
import type { Entry } from './entry.ts'
import type { Verdict } from './gate.ts'
import type { Removal, View } from '../protocol.ts'

export class Quarantines {
  readonly #clock: Clock
  readonly #log: Log
  readonly #entries = new Set<Entry>()
  /** Begun, and released by proof. */
  readonly counts = { quarantines: 0, released: 0 }

  constructor(clock: Clock, log: Log) {
    this.#clock = clock
    this.#log = log
  }

  get entries(): Iterable<Entry> {
    return this.#entries
  }

  forget(entry: Entry): void {
    this.#entries.delete(entry)
  }

  /**
   * Looks at an entry before a view is offered to it.
   * @param removed what the frame behind that view says it removed
   * @returns what to call after
   */
  observe(entry: Entry, removed: readonly Removal[]): (verdict: Verdict) => void {
    const { quarantine, view } = entry
    if (quarantine === undefined) return () => this.#begin(entry)
    const gone = new Set([...entry.removed, ...removed.map(({ id }) => id)])
    return (verdict) => {
      if (entry.quarantine === undefined) this.#release(entry, quarantine.sinceMs, view, gone, verdict)
    }
  }

  #begin(entry: Entry): void {
    const { namespace, service, quarantine, carried, heard } = entry
    if (quarantine === undefined) return
    this.#entries.add(entry)
    this.counts.quarantines++
    const kept = (carried?.nodes.size ?? 0) - (heard?.nodes.size ?? 0)
    const { reason } = quarantine
    this.#log.warn({ namespace, service, kept, reason }, 'the registry leaves out nodes without a cause: they stay')
  }

  /** By which proof: what became of each node that was known. */
  #release(entry: Entry, sinceMs: number, known: View | undefined, gone: ReadonlySet<string>, verdict: Verdict): void {
    const { namespace, service, view } = entry
    this.#entries.delete(entry)
    this.counts.released++
    const proof = { present: 0, removed: 0, lapsed: 0 }
    // Within one history the removal of the last node accounts for all.
    const isSameEpoch = known?.cursor.epoch === view?.cursor.epoch
    for (const id of known?.nodes.keys() ?? [])
      if (view?.nodes.has(id)) proof.present++
      else if (isSameEpoch || gone.has(id) || view?.emptied?.id === id) proof.removed++
      else proof.lapsed++
    const how = verdict === 'accepted' ? 'each node is accounted for' : 'the registry holds what is served'
    const keptMs = Math.round(this.#clock.now() - sinceMs)
    this.#log.info({ namespace, service, keptMs, ...proof }, `quarantine released: ${how}`)
  }
}
