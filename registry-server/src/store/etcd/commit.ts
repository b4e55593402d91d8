/** A commit as etcd takes it: what the drafts of a group write, and the entry that says so in the log. */

import { changesOf, type HistoryMarks } from '../history-marks.ts'
import { keyOf } from '../records.ts'
import type { Draft } from '../store-state.ts'
import type { Operation } from './etcd-connection.ts'
import { encodeMeta, LOG, logKey, META, STATE } from './layout.ts'
import { encodeLogEntry, type LoggedText } from './log-entry.ts'

/** What a request holds beside keys and values, generously: meta, the log's head, and lengths. */
const REQUEST_OVERHEAD_BYTES = 4_096
const OPERATION_OVERHEAD_BYTES = 32
/** Meta, the entry, and the entries that leave history. */
export const FIXED_OPERATIONS = 3

/** A draft with everything that is to be sent of it as text: each record is written out once, and sent twice. */
export interface PreparedDraft {
  readonly draft: Draft
  /** By the record's key, as JSON; undefined removes it. */
  readonly records: readonly (readonly [key: string, json: string | undefined])[]
  readonly logged: LoggedText
  /** Single nodes and policies changed. */
  readonly changes: number
  /** About as many as its part of a request will have, and rather more: the log's entry may shrink yet. */
  readonly bytes: number
}

/** @param draft one that changed something */
export function prepare(draft: Draft): PreparedDraft {
  const { time, changes } = draft.committed!
  const records: (readonly [string, string | undefined])[] = []
  const deeds: string[] = []
  let bytes = 0
  for (const write of draft.writes) {
    const key = keyOf(write)
    const json = write.value === undefined ? undefined : JSON.stringify(write.value)
    records.push([key, json])
    bytes += key.length + (json?.length ?? 0) + OPERATION_OVERHEAD_BYTES
    // Those who follow derive the records of services from the rest.
    if (write.kind !== 'service')
      deeds.push(`[${JSON.stringify(key)},${json ?? 'null'},${write.why ? JSON.stringify(write.why) : 'null'}]`)
  }
  const line = `[${deeds.join()}]`
  const history = changes.map(({ namespace, service, after, items }) => ({ namespace, service, after, items }))
  return {
    draft,
    records,
    logged: { time, history, deeds: line },
    changes: changesOf(history),
    bytes: bytes + line.length,
  }
}

export interface Commit {
  readonly epoch: string
  readonly author: string
  /** In the order of their revisions. */
  readonly drafts: readonly PreparedDraft[]
  readonly history: HistoryMarks
}

/** What a group writes, all of it or nothing. */
export function operationsOf({ epoch, author, drafts, history }: Commit): Operation[] {
  // Of a record written twice the last counts; etcd refuses to write a key twice in one transaction.
  const values = new Map<string, string | undefined>()
  for (const { records } of drafts) for (const [key, json] of records) values.set(key, json)
  const operations: Operation[] = []
  for (const [key, json] of values)
    operations.push(json === undefined ? { remove: STATE + key } : { put: STATE + key, value: Buffer.from(json) })
  const first = drafts[0]!.draft.revision
  const last = drafts.at(-1)!.draft.revision
  const changes = drafts.reduce((sum, item) => sum + item.changes, 0)
  const left = history.plan([{ revision: last, changes }], last).trimmed.at(-1)
  // From the beginning, so that what a replica failed to remove goes with the next.
  if (left) operations.push({ removeRange: [LOG, logKey(left.revision + 1)] })
  const transactions = drafts.map(({ logged }) => logged)
  operations.push({ put: logKey(first), value: encodeLogEntry({ epoch, author, transactions }) })
  operations.push({ put: META, value: encodeMeta({ epoch, revision: last }) })
  return operations
}

/** @param prefix of all keys */
export function bytesOf(operations: readonly Operation[], prefix: string): number {
  let bytes = REQUEST_OVERHEAD_BYTES
  for (const item of operations) {
    bytes += OPERATION_OVERHEAD_BYTES + prefix.length
    if ('put' in item) bytes += item.put.length + item.value.length
    else if ('remove' in item) bytes += item.remove.length
  }
  return bytes
}
