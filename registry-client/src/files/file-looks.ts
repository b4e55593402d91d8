/** Looking whether files are still what was written or read last: what no event told of is found so. */

import type { Clock } from '../clock.ts'
import type { Slot } from './slot.ts'
import type { ViewFiles } from './view-files.ts'

/** Files that are looked at again at each look: ten thousand within ten minutes, at a look every five seconds. */
const FILES_A_LOOK = 100

/** Half of what a file may be left alone before it counts as one that nobody follows. */
const MARK_MS = 300_000

export interface FileLooksOptions {
  readonly slots: ReadonlyMap<string, Slot>
  readonly views: Pick<ViewFiles, 'isStill' | 'mark'>
  readonly clock: Clock
  /** Whether a file is being written, or about to be: it is looked at then anyway. */
  readonly isBusy: (slot: Slot) => boolean
  readonly changed: (slot: Slot) => void
}

export class FileLooks {
  readonly #options: FileLooksOptions
  readonly #soon = new Set<Slot>()
  #round: Iterator<Slot> | undefined
  #isClosed = false

  constructor(options: FileLooksOptions) {
    this.#options = options
  }

  /** To be looked at at the next look: what was just written, or could not be read. */
  soon(slot: Slot): void {
    this.#soon.add(slot)
  }

  forget(slot: Slot): void {
    this.#soon.delete(slot)
  }

  close(): void {
    this.#isClosed = true
  }

  /** Those of {@link soon}, then the next of all in turn; more of them when one was not what it should be. */
  async look(): Promise<void> {
    const { slots } = this.#options
    const soon = [...this.#soon]
    this.#soon.clear()
    for (const slot of soon) await this.#lookAt(slot)
    for (let left = slots.size; left > 0 && !this.#isClosed;) {
      let found = 0
      for (let i = 0; i < FILES_A_LOOK && left > 0; i++, left--) {
        this.#round ??= slots.values()
        const item = this.#round.next()
        if (item.done) this.#round = undefined
        else found += await this.#lookAt(item.value)
      }
      if (found === 0) return
    }
  }

  /** Whether a file is what is known of it, or is about to be. */
  async isAsKnown(slot: Slot): Promise<boolean> {
    const { views, isBusy } = this.#options
    if (isBusy(slot)) return true
    return slot.known !== undefined && (await views.isStill(slot.file, slot.known).catch(() => false))
  }

  /** In an outage no ping dates the file, and another process must not take it for one that nobody needs. */
  async #mark(slot: Slot): Promise<void> {
    const { views, clock } = this.#options
    const nowMs = clock.now()
    if (slot.known === undefined || nowMs - slot.markedMs < MARK_MS) return
    slot.markedMs = nowMs
    await views.mark(slot.file, slot.known).catch(() => {})
  }

  async #lookAt(slot: Slot): Promise<number> {
    // Of one that never was there is nothing to miss.
    if (slot.known === undefined && slot.complaints.size === 0) return 0
    if (await this.isAsKnown(slot)) {
      await this.#mark(slot)
      return 0
    }
    this.#options.changed(slot)
    return 1
  }
}
