/** What the file cache knows of one service. */

import type { Good, Held } from './view-files.ts'

export interface Slot {
  readonly namespace: string
  readonly service: string
  /** The name in use: its own while another version of this library uses the one that belongs to all. */
  file: string
  /** To be written. */
  next: Held | undefined
  /** Being written. */
  writing: Held | undefined
  /** What is in the file, as it was written or read last. */
  known: Good | undefined
  /** The same where it was this process that wrote it. */
  written: Good | undefined
  /** The known view was confirmed: date its file. */
  dateAnew: boolean
  /** What a peer said is to go from its files. */
  discard: boolean
  confirmedMs: number
  forgotten: boolean
  /** Since when its files could not be read. */
  unreadMs: number | undefined
  /** Whether there was one, since the service was followed. */
  hadFile: boolean
  /** When its file was marked last as one that is followed. */
  markedMs: number
  /** Whether all of its files could be read. */
  isRead: boolean
  /** Whether this process has written its file since it began to follow the service. */
  isWritten: boolean
  /** What was reported of each of its files, so that it is reported once. */
  readonly complaints: Map<string, string>
}

/** @param file its own name */
export function createSlot(namespace: string, service: string, file: string): Slot {
  return {
    namespace,
    service,
    file,
    next: undefined,
    writing: undefined,
    known: undefined,
    written: undefined,
    dateAnew: false,
    discard: false,
    confirmedMs: -Infinity,
    forgotten: false,
    unreadMs: undefined,
    hadFile: false,
    markedMs: -Infinity,
    isRead: false,
    isWritten: false,
    complaints: new Map(),
  }
}
