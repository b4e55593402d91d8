import { PATTERNS } from './patterns.ts'
import { ProtocolError, show } from './reading.ts'

const CURSOR = new RegExp(PATTERNS.cursor)

/**
 * A place in the registry's history: `epoch` is the identity of one store, `revision` an integer that only grows
 * within it. Cursors of different epochs cannot be compared: neither is older.
 */
export interface Cursor {
  readonly epoch: string
  readonly revision: number
}

/** The written form, `epoch:revision`, as in headers, `ETag` and event ids. */
export function formatCursor(cursor: Cursor): string {
  return `${cursor.epoch}:${cursor.revision}`
}

/** Reads the written form; undefined when it cannot be read. */
export function parseCursor(text: string): Cursor | undefined {
  if (!CURSOR.test(text)) return undefined
  const colon = text.indexOf(':')
  const revision = Number(text.slice(colon + 1))
  return Number.isSafeInteger(revision) ? { epoch: text.slice(0, colon), revision } : undefined
}

/** Whether `a` is a later place of the same history than `b`. False across epochs. */
export function isAfter(a: Cursor, b: Cursor): boolean {
  return a.epoch === b.epoch && a.revision > b.revision
}

/** Whether `a` and `b` are one place of one history. */
export function isSameCursor(a: Cursor, b: Cursor): boolean {
  return a.epoch === b.epoch && a.revision === b.revision
}

export function cursorOf(input: unknown, path: string): Cursor {
  const cursor = typeof input === 'string' ? parseCursor(input) : undefined
  if (cursor === undefined) throw new ProtocolError(path, `must be epoch:revision, got ${show(input)}`)
  return cursor
}
