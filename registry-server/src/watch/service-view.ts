/** One service as the registry knows it: its nodes and policy at one revision, and what changed lately, by whom. */

import type {
  ChangeFrame,
  Cause,
  PolicyDocument,
  Removal,
  RemovalCause,
  ServiceNode,
  View,
} from '@holdfast/registry-client/protocol'
import type { ChangeItem, ChangeKind, HistoryEntry, ServiceChange, ServiceState } from '../store/store.ts'

interface Entry {
  readonly revision: number
  readonly time: string
  readonly items: readonly ChangeItem[]
}

/** One change, as history tells it. */
export interface HistoryLine {
  readonly revision: number
  readonly time: string
  readonly cause: Cause
  readonly by: string
  readonly kind: ChangeKind
  /** Of the node; absent for a policy. */
  readonly id?: string
}

/** A line and where it stands among those of its revision. */
export interface HistoryPlace {
  readonly line: HistoryLine
  readonly index: number
}

export class ServiceView {
  readonly namespace: string
  readonly service: string
  #revision = 0
  #nodes = new Map<string, ServiceNode>()
  #policy: PolicyDocument | undefined
  #emptied: Removal | undefined
  /** Oldest first. Holds who changed what, not the states: those are in the nodes, or nobody needs them any more. */
  #history: Entry[] = []
  /** Entries before it are forgotten; the array is cut now and then, since a busy service forgets one with every change. */
  #head = 0
  /** Changes of this service up to here have left its history. */
  #floor = 0

  constructor(namespace: string, service: string) {
    this.namespace = namespace
    this.service = service
  }

  get revision(): number {
    return this.#revision
  }

  get nodes(): ReadonlyMap<string, ServiceNode> {
    return this.#nodes
  }

  get policy(): PolicyDocument | undefined {
    return this.#policy
  }

  /** Takes the place of all that was known, history included. */
  load(state: ServiceState): void {
    this.#revision = state.record.revision
    this.#emptied = state.record.emptied
    this.#policy = state.policy
    this.#nodes = new Map()
    for (const node of state.nodes) this.#nodes.set(node.id, node)
    this.forget()
  }

  /** Forgets all history. */
  forget(): void {
    this.#history = []
    this.#head = 0
    this.#floor = this.#revision
  }

  /** Adds what happened before {@link load}'s state; oldest first. */
  remember({ revision, time, after, items }: HistoryEntry): void {
    if (this.#history.length === 0) this.#floor = after
    this.#history.push({ revision, time, items })
  }

  apply(change: ServiceChange, revision: number, time: string): void {
    this.#revision = revision
    for (const removal of change.remove) this.#nodes.delete(removal.id)
    for (const node of change.put) this.#nodes.set(node.id, node)
    if (change.policy !== undefined) this.#policy = change.policy ?? undefined
    this.#emptied = change.emptied
    this.#history.push({ revision, time, items: change.items })
  }

  /** Forgets history up to and with a revision. */
  trim(floor: number): void {
    while (this.#head < this.#history.length && this.#history[this.#head]!.revision <= floor)
      this.#floor = this.#history[this.#head++]!.revision
    if (this.#head > 16 && this.#head > this.#history.length / 2) {
      this.#history = this.#history.slice(this.#head)
      this.#head = 0
    }
  }

  /** An immutable picture of this moment. */
  snapshot(epoch: string): View {
    return {
      namespace: this.namespace,
      service: this.service,
      cursor: { epoch, revision: this.#revision },
      nodes: this.#nodes,
      policy: this.#policy,
      ...(this.#emptied && this.#nodes.size === 0 && { emptied: this.#emptied }),
    }
  }

  /** The net effect of all changes after a revision; undefined when history does not reach back that far. */
  since(revision: number, epoch: string): ChangeFrame | undefined {
    if (revision < this.#floor) return undefined
    const put = new Map<string, ServiceNode>()
    const remove = new Map<string, Removal>()
    let after = this.#floor
    let policy = false
    // From the newest back: of each node only the last word counts.
    for (let index = this.#history.length - 1; index >= this.#head; index--) {
      const entry = this.#history[index]!
      if (entry.revision <= revision) {
        after = entry.revision
        break
      }
      for (let at = entry.items.length - 1; at >= 0; at--) {
        const { kind, cause, ids } = entry.items[at]!
        if (kind === 'policy') policy = true
        for (const id of ids) {
          const node = this.#nodes.get(id)
          if (node) put.set(id, node)
          else if (kind === 'node' && cause !== 'registered' && !remove.has(id)) {
            const { time, revision: at } = entry
            // Of the last one more is known.
            const isLast = this.#emptied?.id === id && this.#emptied.revision === at
            remove.set(id, isLast ? this.#emptied! : { id, cause: cause satisfies RemovalCause, time, revision: at })
          }
        }
      }
    }
    return {
      kind: 'change',
      namespace: this.namespace,
      service: this.service,
      after: { epoch, revision: after },
      cursor: { epoch, revision: this.#revision },
      put: [...put.values()].reverse(),
      // The node that went last comes last, as a client that empties a view keeps that one.
      remove: [...remove.values()].reverse(),
      ...(policy && { policy: this.#policy ?? null }),
    }
  }

  /**
   * Newest first.
   * @param skip lines to leave out within the newest revision that is asked for
   * @param from the newest revision to tell of
   */
  *history(from = Infinity, skip = 0): Iterable<HistoryPlace> {
    for (let at = this.#history.length - 1; at >= this.#head; at--) {
      const { revision, time, items } = this.#history[at]!
      if (revision > from) continue
      let index = 0
      for (const { kind, cause, by, ids } of items)
        for (const id of ids.length > 0 ? ids : [undefined]) {
          if (revision < from || index >= skip)
            yield { line: { revision, time, cause, by, kind, ...(id !== undefined && { id }) }, index }
          index++
        }
    }
  }
}
