/** What must be true of the files in the cache directories of a run's hosts, seen from outside the processes. */

import type { Log } from '@holdfast/registry-client/log'
import type { Cursor, View } from '@holdfast/registry-client/protocol'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { parseView } from '../../registry-client/src/files/view-text.ts'
import { CACHE_DIR, type ClientProcess } from './client-process.ts'
import { text } from './differences.ts'
import type { Evidence } from './evidence.ts'
import { Violation, type Invariant } from './invariants.ts'
import type { Lies } from './lies.ts'
import { InstantDisk, type HostDisk } from './sim-disk.ts'

export interface CacheFilesOptions {
  readonly evidence: Evidence
  readonly lies: Lies
  /** Whether one of several processes of a host has a node in memory, and so writes it again. */
  readonly isHeld: (host: string, service: string, id: string) => boolean
  readonly violated: (violation: Violation) => void
}

export class CacheFiles {
  readonly #options: CacheFilesOptions
  /** By host, what is known to be safely there, by service. */
  readonly #saved = new Map<string, Map<string, Cursor>>()
  checks = 0

  constructor(options: CacheFilesOptions) {
    this.#options = options
  }

  /** Follows a host's disk from now on. */
  follow(disk: HostDisk): void {
    const { name } = disk.host
    disk.saved = (file, content) => this.#noteSaved(name, file, content)
    disk.replaced = (file, before, after) => this.#checkReplaced(name, file, before, after)
  }

  /** A host has another disk. */
  renewed(host: string): void {
    this.#saved.delete(host)
  }

  /** What a process that starts now would find of a service. */
  async load(disk: HostDisk, service: string): Promise<View | undefined> {
    const clock = { now: () => 0, wall: () => 0, after: () => () => {} }
    const files = new FileCache({ directory: CACHE_DIR, disk: new InstantDisk(disk), clock, log: NO_LOG })
    return (await files.peek('default', service))?.view
  }

  /**
   * A process has crashed: what was safe before is there.
   * @param isAlone whether nobody else writes there: of several one may put an older view in the place of a newer, for a
   * while
   */
  crashed({ host, disk, services }: ClientProcess, isAlone: boolean): void {
    for (const service of services) {
      const saved = this.#saved.get(host.name)?.get(service)
      if (saved)
        void this.load(disk, service).then((view) => this.#checkLoaded(host.name, isAlone, service, saved, view))
    }
  }

  #checkLoaded(host: string, isAlone: boolean, service: string, saved: Cursor, view: View | undefined): void {
    this.checks++
    const loaded = view?.cursor
    if (loaded === undefined)
      this.#violated('crash', `${host} had ${service} at ${text(saved)} on disk, and nothing of it can be loaded`)
    else if (isAlone && loaded.epoch === saved.epoch && loaded.revision < saved.revision)
      this.#violated('crash', `${host} had ${service} at ${text(saved)} on disk, and loads ${text(loaded)}`)
  }

  /** One view's file takes the place of another's. */
  #checkReplaced(host: string, file: string, before: string, after: string): void {
    const { lies, evidence, isHeld } = this.#options
    const [old, next] = [before, after].map((content) => viewIn(file, content))
    if (old === undefined || next === undefined || lies.has(old)) return
    // What only a peer said gives way to whatever the registry says; and of two who say something at once the last one stays.
    if (before.includes(HEARSAY)) return
    this.checks++
    const what = `${file} at ${host} went from ${text(old.cursor)} to ${text(next.cursor)}`
    if (lies.has(next)) return this.#violated('hearsay', `${what}, which is a lie`)
    const id = evidence.missing(old, next)
    // Of two processes one may have missed what the other keeps; for a moment, since that one writes it again.
    if (id !== undefined && !isHeld(host, old.service, id))
      this.#violated('proof', `${what} and has lost ${id}, and nobody has removed it`)
  }

  #noteSaved(host: string, file: string, content: string): void {
    const view = viewIn(file, content)
    if (view === undefined || this.#options.lies.has(view)) return
    // The registry may refute it at any time, and then it goes.
    if (content.includes(HEARSAY)) return
    let saved = this.#saved.get(host)
    if (saved === undefined) this.#saved.set(host, (saved = new Map<string, Cursor>()))
    const before = saved.get(view.service)
    const { cursor } = view
    if (before?.epoch !== cursor.epoch || before.revision < cursor.revision) saved.set(view.service, cursor)
  }

  #violated(invariant: Invariant, message: string): void {
    this.#options.violated(new Violation(invariant, message))
  }
}

const HEARSAY = '"origin":"peer"'
const NO_LOG: Log = { debug() {}, info() {}, warn() {}, error() {} }

/** The view in a service's file; undefined for other files, and for one that is torn. */
export function viewIn(file: string, content: string): View | undefined {
  const [, namespace, service] = /^\/cache\/([^/]+)\/([^/.]+)\.json$/.exec(file) ?? []
  if (namespace === undefined || service === undefined) return undefined
  try {
    return parseView(content, namespace, service).view
  } catch {
    return undefined
  }
}
