/** What the file cache tells of itself: for status, metrics and operators. */

export interface FileCacheStatus {
  readonly directory: string
  /** Whether every file could be written the last time. */
  readonly writable: boolean
  /** Views asked for, and those of them that a file had. */
  readonly reads: number
  readonly hits: number
  readonly written: number
  /** Views that were never written because a later one came before their turn. */
  readonly coalesced: number
  /** Views that wait to be written. */
  readonly waiting: number
  /** Writes that failed. */
  readonly failed: number
  /** Reads and writes that failed, by the error's code: `ENOSPC`, `EIO`, `corrupt`, `untrusted`, … */
  readonly failures: Readonly<Record<string, number>>
  /** Files whose content was not what was written. */
  readonly corrupt: number
  /** Files that another process had put an older view into, or that were gone, and were written again. */
  readonly mended: number
  /** What the directory takes on disk, as far as this process knows. */
  readonly bytes: number
  /** Files removed to keep the bound. */
  readonly evicted: number
  /** Times that a view was not written, since its service has no file and the directory is full. */
  readonly refused: number
  /** What crashed writers left, and corrupt files that nobody looked at, removed. */
  readonly leftovers: number
  /** Override files in force. */
  readonly overrides: number
  /** Versions of override files that were refused. */
  readonly malformedOverrides: number
}
