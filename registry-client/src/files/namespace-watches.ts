/**
 * What the file system tells of the directories of namespaces, one watch each, whatever the number of their files; and
 * one of the cache directory, which tells when such a directory appears. Names cost nothing: only a directory that is
 * there is watched, and only as long as a service in it is followed.
 *
 * Not by chokidar, which is made for trees of sources: it lists a directory anew after every change in it and keeps a
 * watch for each file, so that in a directory of ten thousand views, which change and are dated all the time, it takes
 * half a processor; and it hears nothing any more once its directory was deleted.
 */

import path from 'node:path'
import type { Changed, Disk } from '../disk.ts'
import { codeOf } from './fault-log.ts'
import type { Log } from '../log.ts'

export interface NamespaceWatchesOptions {
  readonly directory: string
  readonly disk: Disk
  readonly log: Log
  /** A file of a namespace that is watched. */
  readonly changed: Changed
  /** A watch that could not be begun. */
  readonly failed: (error: unknown) => void
}

type Watching = Promise<() => Promise<void>>

/** In the place of a namespace: the cache directory itself. */
const ROOT = ''

export class NamespaceWatches {
  readonly #options: NamespaceWatchesOptions
  /** Services followed, by namespace. */
  readonly #followed = new Map<string, number>()
  readonly #watches = new Map<string, Watching>()
  #isOpen = false
  /** Whether it was said that there is one that cannot be watched. */
  #isTold = false

  constructor(options: NamespaceWatchesOptions) {
    this.#options = options
  }

  /** From now on there is something to hear. */
  open(): void {
    this.#isOpen = true
    this.#begin(ROOT)
    for (const namespace of this.#followed.keys()) this.#begin(namespace)
  }

  /** One more service of a namespace is followed. */
  follow(namespace: string): void {
    const services = this.#followed.get(namespace) ?? 0
    this.#followed.set(namespace, services + 1)
    if (services === 0) this.#begin(namespace)
  }

  /** One less; with the last the watch ends. */
  release(namespace: string): void {
    const services = this.#followed.get(namespace) ?? 0
    if (services > 1) this.#followed.set(namespace, services - 1)
    else if (this.#followed.delete(namespace)) this.#end(namespace)
  }

  /**
   * Begins what no event told of, and again what has ended.
   * @returns the namespaces of which services are followed and that have a directory, or may have one
   */
  async look(): Promise<string[]> {
    const { directory, disk } = this.#options
    const names = await disk.list(directory).then(
      (found) => new Set(found),
      () => undefined,
    )
    const present = [...this.#followed.keys()].filter((namespace) => names?.has(namespace) ?? true)
    for (const namespace of [ROOT, ...present]) this.#begin(namespace)
    return present
  }

  async close(): Promise<void> {
    this.#isOpen = false
    const all = [...this.#watches.values()]
    this.#watches.clear()
    await Promise.allSettled(all.map(async (watching) => (await watching)()))
  }

  #begin(namespace: string): void {
    if (!this.#isOpen || this.#watches.has(namespace)) return
    const { directory, disk, log, changed, failed } = this.#options
    const heard: Changed = namespace === ROOT ? (file) => this.#appeared(file) : changed
    const watching: Watching = disk.watch(path.join(directory, namespace), heard, () => {
      if (this.#watches.get(namespace) === watching) this.#end(namespace)
    })
    this.#watches.set(namespace, watching)
    watching.then(
      () => (this.#isTold = false),
      (error: unknown) => {
        if (this.#watches.get(namespace) === watching) this.#watches.delete(namespace)
        // It is not there; it is watched when it is.
        if (codeOf(error) === 'ENOENT') return
        failed(error)
        if (!this.#isTold)
          log.warn({ directory, namespace, reason: (error as Error).message }, 'cache directory cannot be watched')
        this.#isTold = true
      },
    )
  }

  #end(namespace: string): void {
    const watching = this.#watches.get(namespace)
    this.#watches.delete(namespace)
    watching?.then(
      (stop) => stop(),
      () => {},
    )
  }

  #appeared(file: string): void {
    const [namespace] = path.relative(this.#options.directory, file).split(path.sep)
    if (namespace !== undefined && this.#followed.has(namespace)) this.#begin(namespace)
  }
}
