/**
 * What the file system tells of the directories of namespaces, one watch each, whatever the number of their files.
 *
 * Not by chokidar, which is made for trees of sources: it lists a directory anew after every change in it and keeps a
 * watch for each file, so that in a directory of ten thousand views, which change and are dated all the time, it takes
 * half a processor; and it hears nothing any more once its directory was deleted.
 */

import path from 'node:path'
import type { Changed, Disk } from '../disk.ts'
import type { Log } from '../log.ts'

export interface NamespaceWatchesOptions {
  readonly directory: string
  readonly disk: Disk
  readonly log: Log
  readonly changed: Changed
  /** A watch that could not be begun. */
  readonly failed: (error: unknown) => void
}

export class NamespaceWatches {
  readonly #options: NamespaceWatchesOptions
  readonly #watches = new Map<string, Promise<() => Promise<void>>>()
  /** Whether it was said that there is one that cannot be watched. */
  #isTold = false

  constructor(options: NamespaceWatchesOptions) {
    this.#options = options
  }

  /** Hears of a namespace's files from now on, if it does not already; anew if its directory was deleted meanwhile. */
  ensure(namespace: string): void {
    if (this.#watches.has(namespace)) return
    const { directory, log, failed } = this.#options
    const watching = this.#begin(path.join(directory, namespace), () => {
      this.#watches.delete(namespace)
      void watching.then((stop) => stop())
    })
    this.#watches.set(namespace, watching)
    watching.then(
      () => (this.#isTold = false),
      (error: unknown) => {
        this.#watches.delete(namespace)
        failed(error)
        if (!this.#isTold)
          log.warn({ directory, namespace, reason: (error as Error).message }, 'cache directory cannot be watched')
        this.#isTold = true
      },
    )
  }

  async close(): Promise<void> {
    await Promise.allSettled([...this.#watches.values()].map(async (watching) => (await watching)()))
  }

  async #begin(folder: string, ended: () => void): Promise<() => Promise<void>> {
    const { disk, changed } = this.#options
    await disk.makeDirectory(folder)
    return disk.watch(folder, changed, ended)
  }
}
