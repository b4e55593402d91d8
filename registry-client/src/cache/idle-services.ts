/**
 * Lets go of services that nobody has asked for in a long time. Only while the registry confirms what is dropped, and only
 * where its file holds it: a call that comes after all then begins with what is known now.
 */

import type { Clock } from '../clock.ts'
import type { Session } from '../registry/connection.ts'
import type { FileCache } from '../files/file-cache.ts'
import type { Log } from '../log.ts'
import type { Entry } from './entry.ts'
import type { MemoryCache } from './memory-cache.ts'
import { isAfter } from '../protocol.ts'

/** Services looked at in one turn, so that none costs more where there are many. */
const SLICE = 500

interface Used {
  readonly key: string
  readonly entry: Entry
}

export interface IdleServicesOptions {
  readonly memory: Pick<MemoryCache, 'size' | 'evict'>
  readonly files: Pick<FileCache, 'peek' | 'save'> | undefined
  /** All that are followed, in any grouping. */
  readonly services: ReadonlyMap<string, ReadonlyMap<string, Used>>
  /** Whether the registry stands by what is served of a service in this life of its stream. */
  readonly isConfirmed: (entry: Entry, session: Session) => boolean
  /** Infinity: never. */
  readonly idleAfterMs: number
  readonly clock: Clock
  readonly log: Log
}

export class IdleServices {
  readonly #options: IdleServicesOptions
  readonly #round: Iterator<Used | undefined>
  dropped = 0

  constructor(options: IdleServicesOptions) {
    this.#options = options
    this.#round = rounds(options.services)
  }

  /** Looks at the next few. */
  look(session: Session): void {
    const { idleAfterMs, clock, memory } = this.#options
    if (idleAfterMs === Infinity) return
    const nowMs = clock.now()
    for (let left = Math.min(SLICE, memory.size); left > 0; left--) {
      const used = this.#round.next().value as Used | undefined
      if (used === undefined) return
      if (nowMs - used.entry.usedSince(nowMs) >= idleAfterMs) void this.#drop(used, session)
    }
  }

  async #drop({ key, entry }: Used, session: Session): Promise<void> {
    const { files, memory, log, isConfirmed } = this.#options
    const { namespace, service, view } = entry
    const isSafe = () =>
      entry.view === view &&
      !entry.touched &&
      entry.pins === 0 &&
      !entry.quarantined &&
      // What an operator's file says stays in force, also when the file cannot be read any more.
      entry.override === undefined &&
      isConfirmed(entry, session)
    if (view === undefined || !isSafe()) return
    // What the registry never heard of is on no disk.
    if (files && view.cursor.revision > 0) {
      const saved = await files.peek(namespace, service)
      if (!isSafe()) return
      // Not written yet, or lost since: written now, and looked for again next time.
      if (saved?.view.cursor.epoch !== view.cursor.epoch || isAfter(view.cursor, saved.view.cursor))
        return files.save(view)
    }
    this.dropped++
    log.debug({ namespace, service }, 'nobody has asked for a service for long: not followed any more')
    memory.evict(key)
  }
}

/** Every service in turn, for ever, whatever comes and goes meanwhile; undefined when there is none. */
function* rounds(services: IdleServicesOptions['services']): Generator<Used | undefined, never, void> {
  for (;;) {
    let some = false
    for (const group of services.values())
      for (const used of group.values()) {
        some = true
        yield used
      }
    if (!some) yield undefined
  }
}
