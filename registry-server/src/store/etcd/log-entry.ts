/** One commit as the others read it: the transactions of a group, as the deeds that made them, and what history keeps. */

import { deflateRawSync, inflateRawSync } from 'node:zlib'
import { decodeHistory, decodeRecord, encodeHistory, historyKey } from '../records.ts'
import type { Deed } from '../store-state.ts'
import type { HistoryEntry, Why } from '../store.ts'
import { LOG, logKey } from './layout.ts'

/** Nodes are much alike: a batch of a hundred shrinks to a tenth. One alone stays readable to people. */
const DEFLATE_FROM_BYTES = 2_048
/** Room for the epoch and the author at the beginning of an entry. */
const AUTHOR_BYTES = 256
/** Far beyond what a request to etcd can hold: a bound on what a damaged value could unfold to. */
const MAX_INFLATED_BYTES = 268_435_456

export interface LoggedTransaction {
  readonly time: string
  readonly deeds: readonly Deed[]
  readonly history: readonly Omit<HistoryEntry, 'revision' | 'time'>[]
}

export interface LogEntry {
  /** Of its first transaction. */
  readonly first: number
  readonly last: number
  /** The store's identity at the time. */
  readonly epoch: string
  /** Names the commit, so that its author knows it again after losing the answer. */
  readonly author: string
  readonly transactions: readonly LoggedTransaction[]
}

/** One that is to be written: its deeds as JSON, which its author has anyway. */
export type LoggedText = Omit<LoggedTransaction, 'deeds'> & { readonly deeds: string }

/** What a start needs of an entry. */
export type LogHead = Omit<LogEntry, 'transactions'> & { readonly history: readonly HistoryEntry[] }

interface Head {
  readonly epoch: string
  readonly author: string
  readonly deflated: boolean
  /** Of each transaction. */
  readonly history: readonly unknown[]
}

/** Deeds, each as its record's key, its value or null, and why. */
type Line = readonly (readonly [key: string, value: unknown, why: Why | null])[]

export function encodeLogEntry(entry: {
  readonly epoch: string
  readonly author: string
  readonly transactions: readonly LoggedText[]
}): Buffer {
  const { epoch, author, transactions } = entry
  const body = Buffer.from(`[${transactions.map(({ deeds }) => deeds).join()}]`)
  const deflated = body.length >= DEFLATE_FROM_BYTES
  const history = transactions.map((item) => encodeHistory(item.time, item.history))
  // The epoch and the author first: see `authorOf`.
  const head: Head = { epoch, author, deflated, history }
  return Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), deflated ? deflateRawSync(body, { level: 1 }) : body])
}

/** Whose entry it is, without reading the rest: half of what a replica is told of is its own. */
export function authorOf(value: Buffer): string | undefined {
  return /^\{"epoch":"[^"]*","author":"([^"]*)"/.exec(value.subarray(0, AUTHOR_BYTES).toString('latin1'))?.[1]
}

/** @throws Error that names the key */
export function decodeLogEntry(key: string, value: Buffer): LogEntry {
  const { first, last, epoch, author, deflated, history, body } = open(key, value)
  const text = deflated ? inflateRawSync(body, { maxOutputLength: MAX_INFLATED_BYTES }) : body
  const lines = JSON.parse(text.toString()) as readonly Line[]
  if (lines.length !== history.length) throw new Error(`${key}: contradicts itself`)
  const transactions = lines.map((line, index) => {
    const { time } = history[index] as { time: string }
    const deeds = line.map(([record, content, why]): Deed => {
      const write = decodeRecord(record, content ?? undefined)
      if (write === undefined) throw new Error(`${key}: an unknown record ${record}`)
      return { ...write, why: why ?? undefined }
    })
    const parts = decodeHistory(historyKey(first + index), history[index])
    return {
      time,
      deeds,
      history: parts.map(({ namespace, service, after, items }) => ({ namespace, service, after, items })),
    }
  })
  return { first, last, epoch, author, transactions }
}

/** Without unfolding the deeds. @throws Error that names the key */
export function decodeLogHead(key: string, value: Buffer): LogHead {
  const { first, last, epoch, author, history } = open(key, value)
  return {
    first,
    last,
    epoch,
    author,
    history: history.flatMap((item, index) => decodeHistory(historyKey(first + index), item)),
  }
}

function open(key: string, value: Buffer): Head & { first: number; last: number; body: Buffer } {
  const first = Number(key.slice(LOG.length))
  const end = value.indexOf(0x0a)
  if (!Number.isSafeInteger(first) || key !== logKey(first) || end < 0) throw new Error(`${key}: no log entry`)
  const head = JSON.parse(value.subarray(0, end).toString()) as Head
  const { epoch, author, history } = head
  if (typeof epoch !== 'string' || typeof author !== 'string' || author === '') throw new Error(`${key}: no log entry`)
  if (!Array.isArray(history) || history.length === 0) throw new Error(`${key}: no log entry`)
  return { ...head, first, last: first + head.history.length - 1, body: value.subarray(end + 1) }
}
