/**
 * How much a cache directory holds, and what goes when it is too much. Shared by many processes without locks: each
 * counts what it writes itself, and looks through the directory now and then for what the others do.
 *
 * A file's date is when its view was last confirmed, and whoever follows a service dates its file every 30 s: the
 * oldest file is the one that nobody has followed for the longest time. Every process sees the same dates, and so evicts
 * the same files in the same order. Age alone evicts nothing: an outage may last as long as it likes.
 */

import path from 'node:path'
import { classify, type FileKind } from './cache-paths.ts'
import type { Clock } from '../clock.ts'
import type { Disk } from '../disk.ts'
import type { Log } from '../log.ts'
import { isNamespace } from '../protocol.ts'

/** The first look waits until a starting process has read what it starts with. */
const FIRST_LOOK_MS = 5_000
const LOOK_MS = 600_000
/** Over the bound it looks sooner, but not all the time. */
const HURRIED_LOOK_MS = 60_000
/** No write takes as long, unless its process is dead, or so stuck that it has to write again. */
const LEFTOVER_MS = 60_000
/** How long a person may want to know what was wrong with a file. */
const CORRUPT_MS = 7 * 86_400_000
/** Whoever follows the service would have marked its file twice. */
const FOLLOWED_MS = 600_000
/** Some room, so that the next file does not begin it all again. */
const EVICT_TO = 0.9
/** What a file takes on most file systems at least, and in what steps. */
const BLOCK_BYTES = 4_096

export interface CacheDirectoryOptions {
  readonly directory: string
  readonly disk: Disk
  readonly clock: Clock
  readonly log: Log
  readonly maxBytes: number
  /** Whether this process follows a service: its view is not evicted. */
  readonly isFollowed: (namespace: string, service: string) => boolean
}

interface Found {
  readonly file: string
  readonly kind: FileKind
  readonly bytes: number
  /** Nobody can set this one, and whoever follows the service marks its file now and then. */
  readonly changedMs: number
  readonly isFollowed: boolean
}

export class CacheDirectory {
  readonly #options: CacheDirectoryOptions
  #bytes = 0
  #lookedMs: number
  #isLooking = false
  #isFull = false
  /** Files removed to keep the bound. */
  evicted = 0
  /** Temporary files of crashed writers, and old corrupt ones, removed. */
  leftovers = 0
  /** Views of services without a file that were not written for want of room. */
  refused = 0

  constructor(options: CacheDirectoryOptions) {
    this.#options = options
    this.#lookedMs = options.clock.now() - LOOK_MS + FIRST_LOOK_MS
  }

  /** What the directory takes on disk, as far as this process knows. */
  get bytes(): number {
    return this.#bytes
  }

  /** Whether a file may be written for a service that has none. What has one may always be replaced. */
  admits(): boolean {
    if (this.#bytes < this.#options.maxBytes) return true
    this.refused++
    this.#complain()
    return false
  }

  /** A file of so many bytes came; a negative number: went. */
  account(bytes: number): void {
    this.#bytes = Math.max(0, this.#bytes + Math.sign(bytes) * onDisk(Math.abs(bytes)))
  }

  /** Warns of a directory that others can read or write. */
  async checkAccess(): Promise<void> {
    const { directory, disk, log } = this.#options
    const stat = await disk.stat(directory, true)
    if (stat === undefined) return
    const mode = stat.mode.toString(8).padStart(4, '0')
    if (!stat.trusted)
      log.warn({ directory, mode }, 'cache directory belongs to another user, or everyone may write it')
    else if (stat.mode & 0o077) log.warn({ directory, mode }, 'cache directory is open to others: 0700 is enough')
  }

  /** Looks through the directory if it is time to. Never rejects. */
  async lookIfDue(): Promise<void> {
    const { clock, maxBytes } = this.#options
    const waitMs = this.#bytes > maxBytes ? HURRIED_LOOK_MS : LOOK_MS
    if (this.#isLooking || clock.now() - this.#lookedMs < waitMs) return
    this.#isLooking = true
    await this.#look()
    this.#isLooking = false
    this.#lookedMs = clock.now()
  }

  /** One file after the other, so that it never takes the disk from those who wait for it. */
  async #look(): Promise<void> {
    const { directory, disk, log } = this.#options
    try {
      const found: Found[] = []
      for (const namespace of (await disk.list(directory)).filter(isNamespace))
        for (const name of await disk.list(path.join(directory, namespace))) {
          const file = await this.#lookAt(namespace, name)
          if (file) found.push(file)
        }
      this.#bytes = found.reduce((sum, { bytes }) => sum + bytes, 0)
      if (this.#bytes > this.#options.maxBytes) await this.#evict(found)
      else this.#isFull &&= this.#bytes === this.#options.maxBytes
    } catch (error) {
      log.warn({ directory, reason: (error as Error).message }, 'cache directory cannot be looked through')
    }
  }

  async #lookAt(namespace: string, name: string): Promise<Found | undefined> {
    const { directory, disk, clock, isFollowed } = this.#options
    const known = classify(name)
    if (known === undefined || known.kind === 'override') return undefined
    const file = path.join(directory, namespace, name)
    const stat = await disk.stat(file).catch(() => undefined)
    if (stat === undefined) return undefined
    // In either direction: a date that lies ahead was not written now either, only by a clock that was wrong.
    const ageMs = Math.abs(clock.wall() - stat.changedMs)
    const limitMs = known.kind === 'temporary' ? LEFTOVER_MS : known.kind === 'corrupt' ? CORRUPT_MS : Infinity
    if (ageMs > limitMs && (await disk.remove(file).catch(() => false))) {
      this.leftovers++
      return undefined
    }
    const { kind, service } = known
    const { changedMs } = stat
    return { file, kind, bytes: onDisk(stat.bytes), changedMs, isFollowed: isFollowed(namespace, service) }
  }

  async #evict(found: readonly Found[]): Promise<void> {
    const { directory, disk, clock, log, maxBytes } = this.#options
    const wallMs = clock.wall()
    const order = ['corrupt', 'previous', 'view']
    const evictable = found
      .filter(({ kind, isFollowed, changedMs }) => {
        if (kind === 'temporary') return false
        return kind !== 'view' || (!isFollowed && Math.abs(wallMs - changedMs) > FOLLOWED_MS)
      })
      .sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind) || ageOrder(a, wallMs) - ageOrder(b, wallMs))
    const gone: string[] = []
    for (const { file, bytes, changedMs } of evictable) {
      if (this.#bytes <= maxBytes * EVICT_TO) break
      // Somebody may have begun to follow it since.
      const stat = await disk.stat(file).catch(() => undefined)
      if (stat !== undefined && stat.changedMs !== changedMs) continue
      if (stat !== undefined && !(await disk.remove(file).catch(() => undefined))) continue
      this.#bytes -= bytes
      if (stat !== undefined) gone.push(path.relative(directory, file))
    }
    this.evicted += gone.length
    if (gone.length > 0)
      log.info(
        { directory, evicted: gone.length, first: gone.slice(0, 10), maxBytes },
        'cache files evicted to keep the bound',
      )
    if (this.#bytes > maxBytes) this.#complain()
    else this.#isFull = false
  }

  #complain(): void {
    if (this.#isFull) return
    this.#isFull = true
    const { directory, log, maxBytes } = this.#options
    log.warn({ directory, bytes: this.#bytes, maxBytes }, 'cache directory is full: services new to it stay in memory')
  }
}

/** Oldest first; what is dated ahead, by a clock that was wrong, says nothing of its use and comes before all. */
function ageOrder({ changedMs }: Found, wallMs: number): number {
  return changedMs > wallMs + FOLLOWED_MS ? -changedMs : changedMs
}

function onDisk(bytes: number): number {
  return Math.ceil(bytes / BLOCK_BYTES) * BLOCK_BYTES
}
