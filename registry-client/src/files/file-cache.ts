/**
 * The second level: `{cacheDir}/{namespace}/{service}.json`, shared by any number of processes without locks, readable
 * by a person. A file is also a resume token: whoever starts from it asks only for what changed.
 *
 * What is in the files is never trusted to stay: files of services that are followed are looked at again and again, and
 * written again when they hold an older view, a broken one or none. That is how a directory heals that was deleted,
 * filled, or written to by a process that knew less.
 */

import { CacheDirectory } from './cache-directory.ts'
import { CORRUPT, OWN_SCHEMA, PREVIOUS, serviceOf, viewPath } from './cache-paths.ts'
import { every, sleep, type Clock } from '../clock.ts'
import type { Disk } from '../disk.ts'
import { FaultLog } from './fault-log.ts'
import type { FileCacheStatus } from './file-cache-status.ts'
import { FileLooks } from './file-looks.ts'
import { limitedDisk } from './limited-disk.ts'
import type { Log } from '../log.ts'
import { NamespaceWatches } from './namespace-watches.ts'
import { OverrideFiles } from './override-file.ts'
import { isSameCursor, type View } from '../protocol.ts'
import { keyOf } from '../service-key.ts'
import { createSlot, type Slot } from './slot.ts'
import { isPassing, isSame, keptIn, supersedes, ViewFiles, type Bad, type Found, type Held } from './view-files.ts'
import { CorruptFileError, OtherSchemaError } from './view-text.ts'
import { WriteQueue } from './write-queue.ts'

export type { FileCacheStatus }

/** A service that changes without pause is written at this interval; what is lost in a crash is asked for again. */
const WRITE_INTERVAL_MS = 500
/** A file that could not be written is tried again after this: a disk that is full stays so for a while. */
const RETRY_MS = 5_000
/** An unchanged view's file is dated anew this often: the precision of its age after a restart. */
const CONFIRM_INTERVAL_MS = 30_000
/** A file that cannot be read is left alone for so long, for the sake of what it may hold; then it is replaced. */
const UNREAD_MS = 60_000
const CONCURRENT_WRITES = 2
/** One less than Node has threads for files and host names, so that a disk that hangs takes no names with it. */
const CONCURRENT_OPERATIONS = 3
/** Events are hints: what they missed is found by looking. */
const LOOK_MS = 5_000
/** How long a start waits for a disk that does not answer. */
const OPEN_LIMIT_MS = 1_000
const CLOSE_LIMIT_MS = 5_000
/** A disk that takes longer than this for one file is reported. */
const HANGING_MS = 10_000

/** A view read from disk. */
export interface Loaded {
  readonly view: View
  /**
   * Milliseconds since the registry last confirmed it, by the machine's clock; never negative. A file that is dated in
   * the future says nothing of its age, and counts as dating from 1970.
   */
  readonly ageMs: number
  /** `peer`: a peer said it, and the registry had not confirmed it when it was written. */
  readonly origin: 'file' | 'peer'
}

export interface FileCacheEvents {
  /** A file of this service holds something that this process has not read. */
  changed(namespace: string, service: string): void
  /**
   * A file that holds another history is about to be written over, which this process may not have read yet.
   * @returns whether the view is still to be written. Left out: it always is
   */
  replaces?(view: View, found: Loaded): boolean
}

export interface FileCacheOptions {
  readonly directory: string
  readonly disk: Disk
  readonly clock: Clock
  readonly log: Log
  /** What the directory may take on disk, override files left out. Default: any number. */
  readonly maxBytes?: number | undefined
}

export class FileCache {
  readonly #directory: string
  readonly #disk: Disk
  readonly #clock: Clock
  readonly #log: Log
  readonly #slots = new Map<string, Slot>()
  readonly #queue: WriteQueue<Slot>
  readonly #overrides: OverrideFiles
  readonly #watches: NamespaceWatches
  readonly #views: ViewFiles
  readonly #bounds: CacheDirectory
  readonly #faults: FaultLog
  readonly #counts = { reads: 0, hits: 0, written: 0, coalesced: 0, failed: 0, corrupt: 0, mended: 0 }
  readonly #looks: FileLooks
  /** Since when no file could be read at all. */
  #unreadMs: number | undefined
  #events: FileCacheEvents = { changed() {} }
  #closing = false
  #isLooking = false
  #cancelLook: () => void = () => {}

  constructor(options: FileCacheOptions) {
    const { directory, disk, clock, log, maxBytes = Infinity } = options
    this.#directory = directory
    this.#disk = limitedDisk(disk, CONCURRENT_OPERATIONS)
    this.#clock = clock
    this.#log = log
    this.#faults = new FaultLog(directory, log)
    this.#queue = new WriteQueue({ clock, concurrency: CONCURRENT_WRITES, run: (slot) => this.#run(slot) })
    this.#watches = new NamespaceWatches({
      directory,
      disk: this.#disk,
      log,
      changed: (file, event) => void this.#hear(file, event),
      failed: (error) => this.#faults.count(error),
    })
    this.#overrides = new OverrideFiles({ directory, disk: this.#disk, log })
    this.#views = new ViewFiles({
      disk: this.#disk,
      clock,
      account: (bytes) => this.#bounds.account(bytes),
      unkept: (error) => this.#faults.count(error),
    })
    this.#looks = new FileLooks({
      slots: this.#slots,
      views: this.#views,
      clock,
      isBusy: (slot) => slot.next !== undefined || this.#queue.isRunning(slot),
      changed: ({ namespace, service }) => this.#tell(namespace, service),
    })
    this.#bounds = new CacheDirectory({
      directory,
      disk: this.#disk,
      clock,
      log,
      maxBytes,
      isFollowed: (namespace, service) => this.#slots.has(keyOf(namespace, service)),
    })
  }

  status(): FileCacheStatus {
    const { bytes, evicted, refused, leftovers } = this.#bounds
    return {
      directory: this.#directory,
      writable: this.#faults.isWell,
      ...this.#counts,
      waiting: this.#queue.size,
      failures: { ...this.#faults.counts },
      bytes,
      evicted,
      refused,
      leftovers,
      overrides: this.#overrides.inForce,
      malformedOverrides: this.#overrides.malformed,
    }
  }

  /** Prepares the directory and looks at it from then on. One that cannot be used is reported, and is no error. */
  async open(events: FileCacheEvents): Promise<void> {
    this.#events = events
    const opened = new AbortController()
    void this.#prepare().then(() => {
      if (!this.#closing) this.#watches.open()
      opened.abort()
    })
    // A disk that hangs must not keep a program from starting.
    await sleep(this.#clock, OPEN_LIMIT_MS, opened.signal)
    if (!this.#closing) this.#cancelLook = every(this.#clock, LOOK_MS, () => void this.#look())
  }

  async #prepare(): Promise<void> {
    try {
      await this.#disk.makeDirectory(this.#directory)
      await this.#bounds.checkAccess()
    } catch (error) {
      this.#faults.begin(this.#directory, error)
    }
  }

  /**
   * The view in a service's file, or in its previous generation where that cannot be read; undefined when there is
   * none. What cannot be read is reported once, kept beside as `.corrupt`, and written again from what is known.
   * @throws TypeError for names that cannot be names
   */
  async load(namespace: string, service: string): Promise<Loaded | undefined> {
    const slot = this.#slot(namespace, service)
    slot.forgotten = false
    this.#counts.reads++
    const current = await this.#readCurrent(slot)
    let found: Held | undefined = current.kind === 'good' ? current : undefined
    slot.isRead = !isPassing(current)
    const own = viewPath(this.#directory, namespace, service)
    for (const file of [slot.file + PREVIOUS, own + OWN_SCHEMA, own + PREVIOUS])
      if (found === undefined && file !== slot.file) {
        const other = await this.#read(slot, file)
        if (other.kind === 'good') found = other
        slot.isRead &&= !isPassing(other)
      }
    // What waits to be written, or was in the file before, may be what it should hold.
    // But for what others have kept there of another history, of which that says nothing.
    const isOwn = current.kind === 'good' && current.head === slot.written?.head
    for (const held of [slot.known, slot.writing, slot.next])
      if (held && (found === undefined || (supersedes(held, found) && (isOwn || keptIn(held) >= keptIn(found)))))
        found = held
    if (!slot.writing && !slot.next) {
      if (current.kind === 'good') slot.known = current
      // What only a peer said may be gone because the registry knows better.
      if (found && found !== current && slot.isRead && !found.isHearsay) this.#mend(slot, found)
    }
    if (found) this.#counts.hits++
    return found && this.#loadedOf(found)
  }

  /** Whether the last `load` could read all that there was: it left no file that may be readable later. */
  isRead(namespace: string, service: string): boolean {
    return this.#slots.get(keyOf(namespace, service))?.isRead ?? false
  }

  /** Whether nothing is to be expected any more of the files that it could not read. */
  isGivenUp(namespace: string, service: string): boolean {
    const slot = this.#slots.get(keyOf(namespace, service))
    return slot !== undefined && this.#isGivenUp(slot)
  }

  /** Whether its file, or every file, could not be read for so long that nothing is to be expected of it any more. */
  #isGivenUp({ unreadMs }: Slot): boolean {
    const sinceMs = Math.min(unreadMs ?? Infinity, this.#unreadMs ?? Infinity)
    return this.#clock.now() - sinceMs >= UNREAD_MS
  }

  /** Whether this process has written a service's file since it was loaded first: it knows then what was there before. */
  isWritten(namespace: string, service: string): boolean {
    return this.#slots.get(keyOf(namespace, service))?.isWritten ?? false
  }

  #loadedOf({ view, heardMs, isHearsay }: Held): Loaded {
    return { view, ageMs: Math.max(0, this.#clock.now() - heardMs), origin: isHearsay ? 'peer' : 'file' }
  }

  /**
   * What a process that starts now would read, from the disk and nowhere else. Changes and counts nothing.
   * @throws TypeError for names that cannot be names
   */
  async peek(namespace: string, service: string): Promise<Loaded | undefined> {
    const own = viewPath(this.#directory, namespace, service)
    for (const file of [own, own + OWN_SCHEMA, own + PREVIOUS, own + OWN_SCHEMA + PREVIOUS]) {
      const found = await this.#views.read(file, namespace, service)
      if (found.kind === 'good') return this.#loadedOf(found)
    }
    return undefined
  }

  /** Writes what a file should hold and does not. */
  #mend(slot: Slot, held: Held): void {
    if (this.#closing) return
    this.#counts.mended++
    slot.next = held
    this.#queue.want(slot)
  }

  /**
   * What the operator's override file makes of a service; undefined while there is none. A malformed one is ignored with
   * a warning, and what was in force stays.
   * @param base supplies the policy where the file has none
   */
  override(namespace: string, service: string, base: View | undefined, before: View | undefined) {
    return this.#overrides.read(namespace, service, base, before)
  }

  /** What the operator's override file would make of a service in a process that starts now. Changes and counts nothing. */
  peekOverride(namespace: string, service: string, base: View | undefined): Promise<View | undefined> {
    return this.#overrides.peek(namespace, service, base)
  }

  /**
   * Saves a view soon, off everyone's path; of several in a short time only the last is written.
   * @param ageMs how long ago it was known to be current, for a view that did not come from the registry just now
   * @param origin who said it
   */
  save(view: View, ageMs = 0, origin: 'registry' | 'peer' = 'registry'): void {
    if (this.#closing) return
    const slot = this.#slot(view.namespace, view.service)
    slot.forgotten = false
    if (slot.next) this.#counts.coalesced++
    slot.next = { view, heardMs: this.#clock.now() - ageMs, isHearsay: origin === 'peer' }
    this.#queue.want(slot)
  }

  /** The registry never heard of a service: a file that holds what a peer said of it goes. */
  discard(namespace: string, service: string): void {
    const slot = this.#slots.get(keyOf(namespace, service))
    if (this.#closing || slot === undefined) return
    if (slot.next?.isHearsay) slot.next = undefined
    if (slot.known?.isHearsay !== true && slot.writing?.isHearsay !== true) return
    slot.discard = true
    this.#queue.want(slot)
  }

  /** The registry confirmed that a saved view is still current. */
  confirm(view: View): void {
    const slot = this.#slot(view.namespace, view.service)
    const nowMs = this.#clock.now()
    if (this.#closing || slot.next || this.#queue.isRunning(slot)) return
    if (nowMs - slot.confirmedMs < CONFIRM_INTERVAL_MS) return
    slot.confirmedMs = nowMs
    // Only a file that holds this very view may be dated anew: an old one after a failed write, or none, is written.
    if (slot.known === undefined || !isSame(slot.known, { view, isHearsay: false })) return this.save(view)
    slot.known = { ...slot.known, heardMs: nowMs }
    slot.dateAnew = true
    this.#queue.want(slot)
  }

  /** Forgets what it knows of a service that is no longer held in memory; its file stays. */
  forget(namespace: string, service: string): void {
    this.#overrides.forget(namespace, service)
    const slot = this.#slots.get(keyOf(namespace, service))
    if (slot === undefined) return
    slot.forgotten = true
    slot.isWritten = false
    if (!slot.next && !this.#queue.isRunning(slot)) this.#drop(slot)
  }

  /** Writes what still waits, then stops; after five seconds without it, since a disk may hang. */
  async close(): Promise<void> {
    this.#closing = true
    this.#cancelLook()
    this.#looks.close()
    await this.#queue.close(CLOSE_LIMIT_MS)
    const lost = [...this.#slots.values()].filter((slot) => slot.next || this.#queue.isRunning(slot)).length
    if (lost > 0) this.#log.warn({ directory: this.#directory, views: lost }, 'closed with views that are not on disk')
    const ended = new AbortController()
    void this.#watches.close().then(() => ended.abort())
    await sleep(this.#clock, CLOSE_LIMIT_MS, ended.signal)
  }

  #slot(namespace: string, service: string): Slot {
    const key = keyOf(namespace, service)
    let slot = this.#slots.get(key)
    if (slot === undefined) {
      slot = createSlot(namespace, service, viewPath(this.#directory, namespace, service))
      this.#slots.set(key, slot)
      this.#watches.follow(namespace)
    }
    return slot
  }

  #drop(slot: Slot): void {
    if (this.#slots.delete(keyOf(slot.namespace, slot.service))) this.#watches.release(slot.namespace)
    this.#looks.forget(slot)
    this.#faults.end(keyOf(slot.namespace, slot.service))
  }

  /** Does what a slot wants, and answers how long it may not want again. */
  async #run(slot: Slot): Promise<number> {
    const held = slot.next
    slot.writing = held
    slot.next = undefined
    let restMs = WRITE_INTERVAL_MS
    try {
      if (slot.discard) await this.#discard(slot)
      if (held) await this.#write(slot, held)
      else if (slot.dateAnew) await this.#date(slot)
      this.#faults.end(keyOf(slot.namespace, slot.service))
      this.#faults.end(this.#directory)
    } catch (error) {
      this.#counts.failed++
      this.#faults.begin(keyOf(slot.namespace, slot.service), error)
      restMs = RETRY_MS
      // Not for a service that nobody follows: on a disk that stays full they would gather.
      if (!slot.forgotten) slot.next ??= held
    }
    slot.writing = undefined
    slot.dateAnew = false
    const isWanting = slot.next !== undefined || (slot.discard && !slot.forgotten)
    if (isWanting && !(this.#closing && restMs === RETRY_MS)) this.#queue.want(slot)
    if (slot.forgotten && !slot.next) this.#drop(slot)
    return restMs
  }

  async #write(slot: Slot, held: Held): Promise<void> {
    const { namespace, service } = slot
    const found = await this.#whatIsThere(slot)
    // It may hold what must not be lost: tried again, but not for ever, since then nothing new would be kept.
    if (isPassing(found) && !this.#isGivenUp(slot)) throw found.error
    if (found.kind === 'good') {
      // Who kept nodes may let them go: nobody else knows that they had their time.
      const isOwnLess = found.head === slot.written?.head && isSameCursor(found.view.cursor, held.view.cursor)
      if (supersedes(found, held) && !isOwnLess) return this.#events.changed(namespace, service)
      if (isSame(found, held)) {
        slot.known = { ...found, heardMs: Math.max(held.heardMs, found.heardMs) }
        return this.#date(slot)
      }
      const isForeign = found.view.cursor.epoch !== held.view.cursor.epoch
      // Of two peers' words about two histories the first one stays.
      if (isForeign && held.isHearsay) return
      // What it keeps of another history may not have been known either.
      const isToBeJudged = isForeign || (found.view.kept !== undefined && found.head !== slot.written?.head)
      if (isToBeJudged && this.#events.replaces?.(held.view, this.#loadedOf(found)) === false) return
    }
    // What had a file may have it again: it was in the bound.
    if (found.kind === 'absent' && !slot.hadFile && !this.#bounds.admits()) return
    slot.known = slot.written = await this.#views.replace(slot.file, found, held)
    if (slot.known === undefined) {
      // Somebody was faster: see what it is, and whether ours is still needed.
      slot.next ??= held
      return
    }
    slot.confirmedMs = this.#clock.now()
    slot.isWritten = slot.hadFile = true
    this.#counts.written++
    this.#looks.soon(slot)
  }

  /** Both generations, as far as they are hearsay still. */
  async #discard(slot: Slot): Promise<void> {
    // First, or what is removed would be mended.
    slot.known = undefined
    for (const file of [slot.file, slot.file + PREVIOUS]) {
      const found = await this.#views.read(file, slot.namespace, slot.service)
      if (isPassing(found)) throw found.error
      if (found.kind === 'good' && found.isHearsay) await this.#views.remove(file, found)
    }
    slot.discard = false
  }

  async #date(slot: Slot): Promise<void> {
    const { known } = slot
    if (known === undefined || (await this.#views.date(slot.file, known))) return
    slot.known = undefined
    slot.next ??= known
  }

  /** What a service's file holds; without reading it while it is the one that was written or read last. */
  async #whatIsThere(slot: Slot): Promise<Found> {
    const { known, file } = slot
    if (known && (await this.#views.isStill(file, known))) return known
    const found = await this.#readCurrent(slot)
    slot.known = found.kind === 'good' ? found : undefined
    return found
  }

  /** What has the name of a service's file, or, where another version of this library uses that, the name beside it. */
  async #readCurrent(slot: Slot): Promise<Found> {
    const file = viewPath(this.#directory, slot.namespace, slot.service)
    const found = await this.#read(slot, file)
    if (found.kind === 'good') {
      slot.hadFile = true
    }
    const ownedByOther = found.kind === 'bad' && found.ownedByOther
    slot.file = ownedByOther ? file + OWN_SCHEMA : file
    const own = ownedByOther ? await this.#read(slot, slot.file) : found
    slot.unreadMs = isPassing(own) ? (slot.unreadMs ?? this.#clock.now()) : undefined
    return own
  }

  async #read(slot: Slot, file: string): Promise<Found> {
    const found = await this.#views.read(file, slot.namespace, slot.service)
    this.#unreadMs = isPassing(found) ? (this.#unreadMs ?? this.#clock.now()) : undefined
    if (found.kind === 'bad') await this.#complain(slot, file, found)
    else slot.complaints.delete(file)
    return found
  }

  /** Reports a file that cannot be used, once. */
  async #complain(slot: Slot, file: string, { error, content }: Bad): Promise<void> {
    const reason = (error as Error).message
    const complaint = `${reason} ${content?.modifiedMs}`
    // It may be whole, and readable the next time.
    if (content === undefined) this.#looks.soon(slot)
    if (slot.complaints.get(file) === complaint) return
    slot.complaints.set(file, complaint)
    this.#faults.count(error)
    if (error instanceof OtherSchemaError)
      return this.#log.warn({ file, reason }, "another version's cache file: left alone")
    this.#log.error({ file, reason }, 'cache file cannot be read: ignored')
    if (!(error instanceof CorruptFileError)) return
    this.#counts.corrupt++
    if (!file.endsWith(PREVIOUS)) await this.#views.keep(file, file + CORRUPT)
  }

  /** One look at a time, whatever the disk takes for it. */
  async #look(): Promise<void> {
    const longMs = this.#queue.longestMs
    if (longMs > HANGING_MS) this.#faults.begin('hanging', coded('hanging', `no answer for ${Math.round(longMs)} ms`))
    else this.#faults.end('hanging')
    if (this.#isLooking) return
    this.#isLooking = true
    try {
      const namespaces = await this.#watches.look()
      const isFollowed = (namespace: string, service: string) => this.#slots.has(keyOf(namespace, service))
      for (const { namespace, service } of await this.#overrides.changed(namespaces, isFollowed))
        this.#tell(namespace, service)
      await this.#looks.look()
      // Not waited for: it takes its time, and what was overruled must not wait for it.
      void this.#bounds.lookIfDue()
    } finally {
      this.#isLooking = false
    }
  }

  /** A file event. */
  async #hear(file: string, event: 'rename' | 'change' = 'rename'): Promise<void> {
    const target = serviceOf(this.#directory, file)
    const slot = target && this.#slots.get(keyOf(target.namespace, target.service))
    if (slot === undefined) return
    const isView = target!.kind === 'view'
    // Views are renamed into their place, and only dated there.
    if (isView && (event === 'change' || (await this.#looks.isAsKnown(slot)))) return
    this.#tell(slot.namespace, slot.service)
  }

  #tell(namespace: string, service: string): void {
    if (!this.#closing) this.#events.changed(namespace, service)
  }
}

function coded(code: string, reason: string): Error {
  return Object.assign(new Error(reason), { code })
}
