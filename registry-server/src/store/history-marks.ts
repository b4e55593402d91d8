/** How far a store's history reaches: which revisions have a record, and which must go to keep within the bounds. */

import type { ChangeItem } from './store.ts'

export interface HistoryMark {
  readonly revision: number
  /** Single nodes and policies changed. */
  readonly changes: number
}

/** What a commit does to history, to be taken once it is durable. */
export interface HistoryPlan {
  readonly added: readonly HistoryMark[]
  readonly trimmed: readonly HistoryMark[]
  readonly floor: number
}

export interface HistoryBounds {
  readonly historyRevisions: number
  readonly historyChanges: number
}

export class HistoryMarks {
  readonly #bounds: HistoryBounds
  #marks: HistoryMark[]
  /** Marks before it are gone; the array is cut now and then, not on every commit. */
  #head = 0
  #changes = 0
  #floor = 0

  /** @param revision the newest; marks beyond the bounds are trimmed with the next commit */
  constructor(bounds: HistoryBounds, marks: HistoryMark[], revision: number) {
    this.#bounds = bounds
    this.#marks = marks
    for (const mark of marks) this.#changes += mark.changes
    this.#floor = this.plan([], revision).floor
  }

  /** What happened at or before this revision has left history. */
  get floor(): number {
    return this.#floor
  }

  plan(added: readonly HistoryMark[], revision: number): HistoryPlan {
    const { historyRevisions, historyChanges } = this.#bounds
    const trimmed: HistoryMark[] = []
    let floor = Math.max(this.#floor, revision - historyRevisions)
    let changes = added.reduce((sum, mark) => sum + mark.changes, this.#changes)
    for (let index = this.#head; index < this.#marks.length; index++) {
      const mark = this.#marks[index]!
      if (mark.revision > floor && changes <= historyChanges) break
      trimmed.push(mark)
      changes -= mark.changes
      floor = Math.max(floor, mark.revision)
    }
    return { added, trimmed, floor }
  }

  take({ added, trimmed, floor }: HistoryPlan): void {
    this.#head += trimmed.length
    for (const mark of trimmed) this.#changes -= mark.changes
    for (const mark of added) {
      this.#marks.push(mark)
      this.#changes += mark.changes
    }
    this.#floor = floor
    if (this.#head > this.#marks.length / 2) {
      this.#marks = this.#marks.slice(this.#head)
      this.#head = 0
    }
  }
}

export function changesOf(entries: readonly { readonly items: readonly ChangeItem[] }[]): number {
  let changes = 0
  for (const { items } of entries) for (const { ids } of items) changes += Math.max(1, ids.length)
  return changes
}
