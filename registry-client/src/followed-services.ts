/**
 * The services that this process follows, each with what is served of it: the road of a view from whatever level it was
 * read on, through the memory cache's gate, to its selector, its watchers and its file.
 */

import { sleep, type Clock } from './clock.ts'
import type { Connection, Session } from './connection.ts'
import type { FileCache } from './file-cache.ts'
import type { Log } from './log.ts'
import { Entry, type MemoryCache, type Origin } from './memory-cache.ts'
import { fold, type Cursor, type PolicyDocument, type Removal, type StreamEvent, type View } from './protocol.ts'
import type { Selector, SelectorStrategy } from './selector.ts'

const MAX_UNKNOWN = 1_000
/** A name that was mistyped, or is about to be registered: known to be unknown for so long, then asked for again. */
const UNKNOWN_MS = 60_000
/** How often files of unchanged views are dated anew. */
const DATING_MS = 30_000
/** How long the registry waits for a disk that does not answer: then the service is subscribed without a cursor. */
const LOAD_PATIENCE_MS = 1_000

/** One service, from its first use until it is evicted. */
export interface Followed {
  readonly key: string
  readonly entry: Entry
  readonly selector: Selector
  readonly watchers: Set<() => void>
  /** The life of the stream on which a fresh snapshot was asked for and has not come yet. */
  restarted: Session | undefined
  /** The one read of the file; settled once its view was offered. */
  loading: Promise<void> | undefined
}

export interface FollowedServicesOptions {
  readonly memory: MemoryCache
  readonly files: FileCache | undefined
  readonly subscriptions: Pick<Connection, 'subscribe' | 'unsubscribe' | 'restart'>
  readonly selectorOf: (service: string) => Selector
  readonly clock: Clock
  readonly log: Log
}

export class FollowedServices {
  readonly #memory: MemoryCache
  readonly #files: FileCache | undefined
  readonly #subscriptions: FollowedServicesOptions['subscriptions']
  readonly #selectorOf: FollowedServicesOptions['selectorOf']
  readonly #clock: Clock
  readonly #log: Log
  readonly #followed = new WeakMap<Entry, Followed>()
  /** By namespace, then by service: a lookup without building a key. */
  readonly #byName = new Map<string, Map<string, Followed>>()
  /** Entries whose view this life of the stream has not confirmed yet. */
  readonly #unconfirmed = new Set<Entry>()
  /** The life of the stream whose registry said last that it may be behind. */
  #aged: Session | undefined
  /** Entries in which the registry leaves nodes out without proof. */
  readonly #quarantined = new Set<Entry>()
  /** Names that the registry never heard of, oldest first, with when it said so. */
  readonly #unknown = new Map<string, number>()
  #datedMs = -Infinity
  /** Files that are waited for. */
  readonly #loads = new Set<AbortController>()
  #closed = false
  /** Frames received, and snapshots asked for because one did not continue a view. */
  readonly counts = { snapshots: 0, changes: 0, restarts: 0 }

  constructor(options: FollowedServicesOptions) {
    this.#memory = options.memory
    this.#files = options.files
    this.#subscriptions = options.subscriptions
    this.#selectorOf = options.selectorOf
    this.#clock = options.clock
    this.#log = options.log
  }

  /** Undefined for a service that is not followed. */
  find(namespace: string, service: string): Followed | undefined {
    return this.#byName.get(namespace)?.get(service)
  }

  /** A new life of the stream has confirmed nothing yet. */
  reconnected(): void {
    for (const [, entry] of this.#memory.entries()) this.#unconfirmed.add(entry)
  }

  /** Lets everyone who waits go, and everything that was held. */
  close(): void {
    this.#closed = true
    for (const load of this.#loads) load.abort()
    for (const [, entry] of this.#memory.entries()) this.#notify(this.#followed.get(entry))
    for (const services of this.#byName.values()) for (const { selector } of services.values()) selector.close()
    this.#memory.clear()
    this.#byName.clear()
  }

  /** The entry of a service, subscribed and with its file on the way, from the first call on. */
  follow(namespace: string, service: string): Followed {
    const key = keyOf(namespace, service)
    const known = this.#memory.get(key)
    if (known) return this.#followed.get(known)!
    const entry = new Entry(namespace, service)
    const selector = this.#selectorOf(service)
    const followed: Followed = {
      key,
      entry,
      selector,
      watchers: new Set(),
      restarted: undefined,
      loading: undefined,
    }
    this.#followed.set(entry, followed)
    const services = this.#byName.get(namespace) ?? new Map<string, Followed>()
    this.#byName.set(namespace, services.set(service, followed))
    this.#memory.add(key, entry)
    this.#unconfirmed.add(entry)
    // Loaded first and subscribed with its cursor then, so that only what changed is sent; but always subscribed.
    followed.loading = this.#loadInTime(entry).then(() => {
      followed.loading = undefined
      if (this.#holds(entry)) this.#subscriptions.subscribe(key, namespace, service)
    })
    return followed
  }

  async #loadInTime(entry: Entry): Promise<void> {
    if (this.#files === undefined) return
    const loaded = new AbortController()
    this.#loads.add(loaded)
    void this.#load(this.#files, entry).then(() => loaded.abort())
    await sleep(this.#clock, LOAD_PATIENCE_MS, loaded.signal)
    this.#loads.delete(loaded)
  }

  /** Never rejects: what cannot be read is the file cache's business. */
  async #load(files: FileCache, entry: Entry): Promise<void> {
    const { namespace, service } = entry
    const loaded = await files.load(namespace, service)
    // Before the view is served, since an operator's word wins from the first answer on.
    const override = await files.override(namespace, service, entry.view ?? loaded?.view, entry.override)
    // Evicted, or everything closed, while the disk was read.
    if (!this.#holds(entry)) return
    const isNews = override !== entry.override
    entry.override = override
    if (loaded) this.#offer(entry, loaded.view, 'file', { heardMs: this.#clock.now() - loaded.ageMs })
    if (isNews) this.#publish(entry)
  }

  /** A file of a service may hold something new. */
  async fileChanged(namespace: string, service: string): Promise<void> {
    const entry = this.#memory.peek(keyOf(namespace, service))
    if (this.#files && entry && !this.#followed.get(entry)?.loading && !this.#closed)
      await this.#load(this.#files, entry)
  }

  #holds(entry: Entry): boolean {
    return !this.#closed && this.#memory.peek(keyOf(entry.namespace, entry.service)) === entry
  }

  /** One event of the stream. */
  event(event: StreamEvent, session: Session): void {
    if (event.event === 'ping') this.#noteAge(event.ageMs, session)
    else {
      const { frame } = event
      const { namespace, service } = frame.kind === 'snapshot' ? frame.view : frame
      const key = keyOf(namespace, service)
      const entry = this.#memory.peek(key)
      if (entry) {
        if (frame.kind === 'snapshot') this.counts.snapshots++
        else this.counts.changes++
        const served = this.#followed.get(entry)!
        const next = fold(entry.heard ?? entry.view, frame)
        if (next) {
          if (frame.kind === 'snapshot') served.restarted = undefined
          this.#offer(entry, next, 'registry', session, frame.kind === 'change' ? frame.remove : [])
        } else if (served.restarted !== session) {
          // Once: the changes that follow before the snapshot comes do not continue the view either.
          served.restarted = session
          this.counts.restarts++
          this.#log.info({ namespace, service }, 'a change does not continue the view: asking for a snapshot')
          entry.heard = undefined
          this.#subscriptions.restart(key)
        }
      }
    }
    if (event.id && (event.event === 'ping' || this.#unconfirmed.size > 0)) this.#confirm(event.id, session)
    if (event.event === 'ping') this.#tidy(session)
  }

  /** What a registry says that is cut off from its store confirms nothing; what it said since it was, neither. */
  #noteAge(ageMs: number | undefined, session: Session): void {
    if (ageMs !== undefined || this.#aged === session) this.reconnected()
    this.#aged = ageMs === undefined ? undefined : session
  }

  /**
   * Everything up to this id has been sent: each view of this epoch is current, or as old as the registry says that it is
   * itself. Looks only at those that have not been confirmed in this life of the stream yet; the others share its
   * {@link Session}, which grows younger by itself.
   */
  #confirm(id: Cursor, session: Session): void {
    for (const entry of this.#unconfirmed) {
      const served = this.#followed.get(entry)
      if (entry.view === undefined || entry.quarantined || entry.view.cursor.epoch !== id.epoch) continue
      if (served?.restarted === session) continue
      // An earlier life of the stream may know better than a registry that is behind.
      if (session.heardMs >= entry.confirmed.heardMs) entry.confirmed = session
      entry.origin = 'registry'
      if (this.#aged === session) continue
      this.#unconfirmed.delete(entry)
      if (isKnown(entry.view)) this.#files?.confirm(entry.view)
      // Whoever waits for a view that is fresh enough may have it now.
      this.#notify(served)
    }
  }

  /** What is due now and then, with the pings: dates of files, names that nobody knows, nodes that did not come back. */
  #tidy(session: Session): void {
    const nowMs = this.#clock.now()
    for (const [key, sinceMs] of this.#unknown) {
      if (nowMs - sinceMs < UNKNOWN_MS) break
      this.#forgetUnknown(key)
    }
    for (const entry of this.#quarantined) if (entry.heard) this.#offer(entry, entry.heard, 'registry', session)
    if (nowMs - this.#datedMs < DATING_MS || this.#aged === session) return
    this.#datedMs = nowMs
    for (const [, { view, confirmed }] of this.#memory.entries())
      if (view && confirmed === session && isKnown(view)) this.#files?.confirm(view)
  }

  #forgetUnknown(key: string): void {
    this.#unknown.delete(key)
    const entry = this.#memory.peek(key)
    if (entry && isUnknown(entry) && entry.pins === 0) this.#memory.evict(key)
  }

  #offer(entry: Entry, next: View, origin: Origin, confirmed: Session, removed: readonly Removal[] = []): void {
    const { namespace, service } = entry
    const key = keyOf(namespace, service)
    const before = entry.served
    const verdict = this.#memory.offer(key, entry, next, origin, confirmed, removed)
    if (verdict === 'accepted' || verdict === 'current') {
      this.#quarantined.delete(entry)
      if (origin === 'registry') this.#unconfirmed.delete(entry)
    }
    if (verdict === 'unproven' && !this.#quarantined.has(entry)) {
      this.#quarantined.add(entry)
      const kept = (entry.carried?.nodes.size ?? 0) - next.nodes.size
      this.#log.warn({ namespace, service, kept }, 'the registry leaves out nodes without a cause: they stay')
    }
    if (verdict === 'accepted' && origin === 'registry') {
      if (isKnown(next)) {
        this.#unknown.delete(key)
        this.#files?.save(next)
      } else this.#noteUnknown(key)
    }
    if (entry.served !== before) this.#publish(entry)
    else if (verdict === 'current') this.#notify(this.#followed.get(entry))
  }

  /** Names that nobody registered are remembered for a while, and few of them: a stranger can think of any number. */
  #noteUnknown(key: string): void {
    this.#unknown.delete(key)
    this.#unknown.set(key, this.#clock.now())
    if (this.#unknown.size > MAX_UNKNOWN) this.#forgetUnknown(this.#unknown.keys().next().value!)
  }

  #publish(entry: Entry): void {
    const served = this.#followed.get(entry)
    served?.selector.update(entry.served, strategyOf(entry.served?.policy))
    this.#notify(served)
  }

  #notify(served: Followed | undefined): void {
    if (served) for (const changed of [...served.watchers]) changed()
  }

  /** An entry was evicted. */
  drop(key: string, entry: Entry): void {
    this.#subscriptions.unsubscribe(key)
    this.#unknown.delete(key)
    this.#unconfirmed.delete(entry)
    this.#quarantined.delete(entry)
    this.#files?.forget(entry.namespace, entry.service)
    this.#followed.get(entry)?.selector.close()
    this.#byName.get(entry.namespace)?.delete(entry.service)
  }

  /** Waits until `test` holds after a change of the service; false when the deadline or the signal came first. */
  until(served: Followed, test: () => boolean, deadlineMs: number, signal: AbortSignal | undefined): Promise<boolean> {
    return new Promise((resolve) => {
      const end = (result: boolean) => {
        cancel()
        served.watchers.delete(changed)
        signal?.removeEventListener('abort', aborted)
        resolve(result)
      }
      const changed = () => {
        if (test()) end(true)
        else if (this.#closed) end(false)
      }
      const aborted = () => end(false)
      const cancel = deadlineMs === Infinity ? () => {} : this.#clock.after(deadlineMs, aborted)
      served.watchers.add(changed)
      signal?.addEventListener('abort', aborted, { once: true })
      if (signal?.aborted) end(false)
      else changed()
    })
  }
}

/** Whether the registry says that it never heard of the service: nothing to serve. */
export function isUnknown(entry: Entry): boolean {
  return entry.override === undefined && entry.view !== undefined && !isKnown(entry.view)
}

/** Whether the registry ever heard of the service; what it did not is not written to disk. */
function isKnown(view: View): boolean {
  return view.cursor.revision > 0
}

export function keyOf(namespace: string, service: string): string {
  return `${namespace}/${service}`
}

/** Of the strategies that a policy may name, those that this version executes; the others fall back to taking turns. */
function strategyOf(policy: PolicyDocument | undefined): SelectorStrategy {
  const loadBalancing = policy?.loadBalancing as { strategy?: unknown } | undefined
  return loadBalancing?.strategy === 'random' ? 'random' : 'round_robin'
}
