/** The second level as the services that are followed see it: when their files are read, and as what that counts. */

import type { Clock } from '../clock.ts'
import { channels, type FileMessage } from '../diagnostics.ts'
import type { Entry } from './entry.ts'
import type { FileCache, Loaded } from '../files/file-cache.ts'
import { FileReadings, FirstReadings } from './file-readings.ts'
import type { Offer } from './gate.ts'
import { isSameCursor, type View } from '../protocol.ts'
import type { Session } from '../registry/connection.ts'

export interface FileLevelOptions {
  readonly files: FileCache
  readonly clock: Clock
  /** Whether an entry is still followed. */
  readonly holds: (entry: Entry) => boolean
  /** An operator's word, or its end. */
  readonly override: (entry: Entry, view: View | undefined) => void
  /** Has the view judged. With `isAnew` as though it had come before whatever the registry has said so far. */
  readonly offer: (entry: Entry, offer: Offer, isAnew: boolean) => void
  /** What is served may be another than before. */
  readonly changed: (entry: Entry) => void
}

export class FileLevel {
  readonly #options: FileLevelOptions
  readonly #first: FirstReadings
  readonly #readings = new WeakMap<Entry, FileReadings>()

  constructor(options: FileLevelOptions) {
    this.#options = options
    this.#first = new FirstReadings(options.clock)
  }

  /** Reads the files of a service that is new here. Waits for them, but not for a disk that does not answer. */
  begin(entry: Entry): Promise<void> {
    const readings = new FileReadings(() => this.#read(entry))
    this.#readings.set(entry, readings)
    const { files, holds } = this.#options
    const { namespace, service } = entry
    const isDone = () => {
      if (!holds(entry)) return true
      // One that was given up is tried on: in an outage it may be all that there is.
      return entry.isFileKnown && (files.isRead(namespace, service) || files.isWritten(namespace, service))
    }
    return this.#first.wait(readings, isDone)
  }

  /** A file may hold something new. */
  async changed(entry: Entry): Promise<void> {
    await this.#readings.get(entry)?.run()
  }

  /** Whether a view is to be written over the file of another history. */
  replaces(entry: Entry, view: View, found: Loaded): boolean {
    if (!this.#isKnown(entry)) {
      this.#offer(entry, found, { heardMs: this.#options.clock.now() - found.ageMs })
      this.#noteKnown(entry)
    }
    // What was accepted before its file was known may not be any more.
    const now = (view.kept ? entry.carried : entry.view)?.cursor
    return now !== undefined && isSameCursor(now, view.cursor)
  }

  close(): void {
    this.#first.close()
  }

  /** Never rejects: what cannot be read is the file cache's business. */
  async #read(entry: Entry): Promise<void> {
    const { files, holds } = this.#options
    const { namespace, service } = entry
    const loaded = await files.load(namespace, service)
    const confirmed = { heardMs: this.#options.clock.now() - (loaded?.ageMs ?? 0) }
    const isRead = files.isRead(namespace, service) || files.isGivenUp(namespace, service)
    // Before the view is served, since an operator's word wins from the first answer on.
    const override = await files.override(namespace, service, entry.view ?? loaded?.view, entry.override)
    // Evicted, or everything closed, while the disk was read.
    if (!holds(entry)) return
    if (channels.file.hasSubscribers) {
      const { view, ageMs } = loaded ?? {}
      const overridden = override !== undefined
      channels.file.publish({ namespace, service, view, ageMs, overridden } satisfies FileMessage)
    }
    const isNews = override !== entry.override
    if (isNews) this.#options.override(entry, override)
    if (!holds(entry)) return
    if (loaded) this.#offer(entry, loaded, confirmed)
    if (isRead) this.#noteKnown(entry)
    if (isNews) this.#options.changed(entry)
  }

  /**
   * What a service's file holds. Until it has been read in full, which a slow or a failing disk may put off, it counts
   * as though it had been read before anyone spoke.
   */
  #offer(entry: Entry, { view, origin }: Loaded, confirmed: Session): void {
    // Found again, or still waiting to be written: what the registry has said about it since counts.
    const isHeld = isSamePlace(entry.view, view) || isSamePlace(entry.carried, view)
    this.#options.offer(entry, { view, origin, confirmed }, !isHeld && !this.#isKnown(entry))
  }

  #isKnown({ isFileKnown, namespace, service }: Entry): boolean {
    return isFileKnown || this.#options.files.isWritten(namespace, service)
  }

  #noteKnown(entry: Entry): void {
    const before = entry.served
    entry.isFileKnown = true
    if (entry.served !== before) this.#options.changed(entry)
  }
}

function isSamePlace(held: View | undefined, view: View): boolean {
  return held !== undefined && isSameCursor(held.cursor, view.cursor) && held.kept?.ids.length === view.kept?.ids.length
}
