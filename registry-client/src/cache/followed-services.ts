/**
 * The services that this process follows, each with what is served of it: the road of a view from whatever level it was
 * read on, through the memory cache's gate, to its selector, its watchers and its file.
 */

import { AwaitedPlaces, type Place } from './awaited-places.ts'
import type { Clock } from '../clock.ts'
import type { Connection, Held, Session } from '../registry/connection.ts'
import { Confirmations } from './confirmations.ts'
import { channels, type ViewMessage } from '../diagnostics.ts'
import { Entry } from './entry.ts'
import type { FileCache, Loaded } from '../files/file-cache.ts'
import { FileLevel } from './file-level.ts'
import type { Offer, Verdict } from './gate.ts'
import { IdleServices } from './idle-services.ts'
import type { Log } from '../log.ts'
import type { MemoryCache } from './memory-cache.ts'
import type { Peers } from './peers.ts'
import {
  fold,
  isAfter,
  isProven,
  type Cursor,
  type Frame,
  type PolicyDocument,
  type StreamEvent,
  type View,
} from '../protocol.ts'
import { Quarantines } from './quarantines.ts'
import type { Selector, SelectorStrategy } from '../selection/selector.ts'
import { keyOf } from '../service-key.ts'
import { UnknownNames } from './unknown-names.ts'
import { Watchers } from './watchers.ts'

/** How often files of unchanged views are dated anew. */
const DATING_MS = 30_000
/** Longer, and a long outage would be spent on nodes that nobody calls any more. */
const IN_USE_MS = 600_000

/** One service, from its first use until it is evicted. */
export interface Followed {
  readonly key: string
  readonly entry: Entry
  readonly selector: Selector
  readonly watchers: Watchers
  /** The life of the stream on which a fresh snapshot was asked for and has not come yet. */
  restarted: Session | undefined
  /** The first reading of the file, as long as it is waited for. */
  loading: Promise<void> | undefined
  /** Ends the asking of peers. */
  seeking: AbortController | undefined
}

export interface FollowedServicesOptions {
  readonly memory: MemoryCache
  readonly files: FileCache | undefined
  readonly peers: Peers
  readonly subscriptions: Pick<
    Connection,
    'subscribe' | 'unsubscribe' | 'restart' | 'ask' | 'refresh' | 'covers' | 'isDown'
  >
  readonly selectorOf: (service: string) => Selector
  /** Without a call for so long a service is not followed any more. Infinity: never. */
  readonly idleAfterMs: number
  readonly clock: Clock
  readonly log: Log
}

export class FollowedServices {
  readonly #options: FollowedServicesOptions
  readonly #memory: MemoryCache
  readonly #files: FileCache | undefined
  readonly #fileLevel: FileLevel | undefined
  readonly #subscriptions: FollowedServicesOptions['subscriptions']
  readonly #clock: Clock
  readonly #log: Log
  readonly #followed = new WeakMap<Entry, Followed>()
  /** By namespace, then by service: a lookup without building a key. */
  readonly #byName = new Map<string, Map<string, Followed>>()
  readonly #confirmations: Confirmations
  /** Those with a cursor to resume from, until it shows with what. */
  readonly #resuming = new Set<Entry>()
  /** The life of the stream that spoke last. */
  #session: Session | undefined
  readonly #quarantines: Quarantines
  readonly #awaited = new AwaitedPlaces<Followed>()
  readonly #unknown: UnknownNames
  readonly #idle: IdleServices
  #datedMs = -Infinity
  #closed = false
  /** Frames received, and snapshots asked for because one did not continue a view. */
  readonly #frames = { snapshots: 0, changes: 0, restarts: 0 }
  /** Services that came back to the registry with a cursor, by what it sent. */
  readonly resumes = { nothing: 0, change: 0, snapshot: 0 }
  /** First uses, by whether a level knew the service. */
  readonly levels = { file: { hits: 0, misses: 0 }, peer: { hits: 0, misses: 0 } }

  constructor(options: FollowedServicesOptions) {
    this.#options = options
    this.#memory = options.memory
    this.#files = options.files
    this.#subscriptions = options.subscriptions
    this.#clock = options.clock
    this.#log = options.log
    this.#unknown = new UnknownNames(options.clock)
    this.#quarantines = new Quarantines(options.clock, options.log)
    if (options.files)
      this.#fileLevel = new FileLevel({
        files: options.files,
        clock: options.clock,
        holds: (entry) => this.#holds(entry),
        override: (entry, view) => this.#memory.override(keyOf(entry.namespace, entry.service), entry, view),
        offer: (entry, offer, isAnew) => (isAnew ? this.#replay(entry, offer) : this.#offer(entry, offer)),
        changed: (entry) => this.#publish(entry),
      })
    this.#confirmations = new Confirmations({
      isSent: ({ namespace, service }) => this.#subscriptions.covers(keyOf(namespace, service)),
      covered: (entry) => {
        if (this.#resuming.delete(entry)) this.resumes.nothing++
      },
      confirmed: (entry) => {
        if (isKnown(entry.view!)) this.#files?.confirm(entry.view!)
        // Whoever waits for a view that is fresh enough may have it now.
        this.#followed.get(entry)?.watchers.wake()
      },
      answered: (entry, session) => this.#overrule(entry, session),
      log: options.log,
    })
    this.#idle = new IdleServices({
      ...options,
      services: this.#byName,
      // A view that it has not confirmed may be all that is left of a service.
      isConfirmed: (entry, session) =>
        this.#holds(entry) &&
        entry.confirmed === session &&
        this.#confirmations.isConfirmed(entry) &&
        !this.#subscriptions.isDown &&
        !this.#followed.get(entry)?.loading,
    })
  }

  /** Undefined for a service that is not followed. */
  find(namespace: string, service: string): Followed | undefined {
    return this.#byName.get(namespace)?.get(service)
  }

  /** Those that were asked for lately, the last ones first. */
  *inUse(): Generator<Followed, undefined> {
    const nowMs = this.#clock.now()
    for (const [, entry] of this.#memory.entries()) {
      if (nowMs - entry.usedSince(nowMs) < IN_USE_MS) yield this.#followed.get(entry)!
    }
  }

  /** What has happened so far. */
  get counts() {
    return { ...this.#frames, ...this.#quarantines.counts, idled: this.#idle.dropped }
  }

  /** Names that the registry never heard of: remembered now, and ever. */
  get unknown(): { readonly remembered: number; readonly noted: number } {
    return { remembered: this.#unknown.size, noted: this.#unknown.noted }
  }

  /** Services whose view is of a later place than the registry that answers has reached. */
  get ahead(): readonly string[] {
    return [...this.#confirmations.ahead].map(({ namespace, service }) => keyOf(namespace, service))
  }

  /** A new life of the stream has confirmed nothing yet; what peers could say, the registry will. */
  reconnected(): void {
    this.#confirmations.reconnected(this.#entries())
    for (const entry of this.#entries()) {
      if (entry.view) this.#resuming.add(entry)
      this.#stopSeeking(this.#followed.get(entry)!)
    }
  }

  /** The registry cannot be reached: whoever waits is helped by peers. */
  lost(): void {
    for (const entry of this.#entries()) this.#seek(this.#followed.get(entry)!)
  }

  *#entries(): Generator<Entry> {
    for (const [, entry] of this.#memory.entries()) yield entry
  }

  /** Lets everyone who waits go, and everything that was held. */
  close(): void {
    this.#closed = true
    this.#fileLevel?.close()
    for (const services of this.#byName.values())
      for (const served of services.values()) {
        this.#stopSeeking(served)
        served.watchers.close()
        served.selector.close()
      }
    this.#memory.clear()
    this.#byName.clear()
  }

  /** The entry of a service, subscribed and with its file on the way, from the first call on. */
  follow(namespace: string, service: string): Followed {
    const key = keyOf(namespace, service)
    const known = this.#memory.get(key)
    if (known) return this.#followed.get(known)!
    const entry = new Entry(namespace, service)
    entry.isFileKnown = this.#files === undefined
    const followed: Followed = {
      key,
      entry,
      selector: this.#options.selectorOf(service),
      watchers: new Watchers(),
      restarted: undefined,
      loading: undefined,
      seeking: undefined,
    }
    this.#followed.set(entry, followed)
    const services = this.#byName.get(namespace) ?? new Map<string, Followed>()
    this.#byName.set(namespace, services.set(service, followed))
    this.#memory.add(key, entry)
    this.#confirmations.begin(entry)
    // Loaded first and subscribed with its cursor then, so that only what changed is sent; but always subscribed.
    const reading = this.#fileLevel?.begin(entry) ?? Promise.resolve()
    followed.loading = reading.then(() => {
      followed.loading = undefined
      if (!this.#holds(entry)) return
      if (this.#files) this.levels.file[entry.view || entry.override ? 'hits' : 'misses']++
      if (entry.view) this.#resuming.add(entry)
      this.#subscriptions.subscribe(key, namespace, service)
      this.#seek(followed)
      // It was held until there was something to judge its worth by.
      this.#memory.unpin(key, entry)
    })
    return followed
  }

  /** A file of a service may hold something new. */
  async fileChanged(namespace: string, service: string): Promise<void> {
    const served = this.find(namespace, service)
    if (served && !served.loading && !this.#closed) await this.#fileLevel?.changed(served.entry)
  }

  /** Whether a view is to be written over the file of another history. */
  replacesFile(view: View, found: Loaded): boolean {
    const { namespace, service } = view
    const entry = this.find(namespace, service)?.entry
    if (entry && this.#holds(entry)) return this.#fileLevel!.replaces(entry, view, found)
    // Let go since: nobody judges any more what it did not know of when it was saved.
    return this.#files!.isRead(namespace, service)
  }

  /** What the registry has said so far is judged once more after what counts as said before it. */
  #replay(entry: Entry, offer: Offer): void {
    const word = entry.heard ?? (entry.origin === 'registry' ? entry.view : undefined)
    const said = word && this.#session && ({ view: word, origin: 'registry', confirmed: this.#session } satisfies Offer)
    this.#judge(entry, said ? [offer, said] : [offer], true)
  }

  #holds(entry: Entry): boolean {
    return !this.#closed && this.#memory.peek(keyOf(entry.namespace, entry.service)) === entry
  }

  /** Peers are asked while someone waits for a service of which nothing is known, and the registry is out of reach. */
  #seek(served: Followed): void {
    const { entry } = served
    const { peers } = this.#options
    if (peers.isEmpty || served.seeking || served.loading || entry.served || served.watchers.size === 0) return
    if (this.#closed || !this.#subscriptions.isDown) return
    const seeking = (served.seeking = new AbortController())
    void peers.seek(entry.namespace, entry.service, seeking.signal).then((found) => {
      if (served.seeking === seeking) served.seeking = undefined
      this.levels.peer[found ? 'hits' : 'misses']++
      if (!found || !this.#holds(entry) || seeking.signal.aborted) return
      const { view, heardMs, peer } = found
      this.#log.info({ namespace: entry.namespace, service: entry.service, peer }, 'served as a peer knows it')
      this.#offer(entry, { view, origin: 'peer', confirmed: { heardMs } })
    })
  }

  #stopSeeking(served: Followed): void {
    served.seeking?.abort()
    served.seeking = undefined
  }

  /** What the registry is told, on subscribing, of what is here. */
  held(key: string): Held {
    const entry = this.#memory.peek(key)
    if (entry === undefined) return {}
    const cursor = (entry.heard ?? entry.view)?.cursor
    // Hearsay is no base for a change: the whole view, of a registry that is as far as the peer was.
    if (entry.origin === 'peer' && !entry.heard) return { reach: (entry.carried ?? entry.view)?.cursor }
    const wanted = this.#awaited.latest(this.#followed.get(entry)!)
    // And not before it is as far as others have shown to be: of what came since it could say nothing.
    return { cursor, reach: laterOf(wanted, entry.origin === 'peer' ? undefined : entry.asOf) }
  }

  /** One event of the stream. */
  event(event: StreamEvent, session: Session): void {
    this.#session = session
    if (event.event !== 'ping') this.#frame(event.frame, session)
    this.#confirmations.heard(event, session, () => this.#entries())
    if (event.id) for (const served of this.#awaited.services) served.watchers.wake()
    if (event.event === 'ping') this.#tidy(session)
  }

  #frame(frame: Frame, session: Session): void {
    const { namespace, service } = frame.kind === 'snapshot' ? frame.view : frame
    const key = keyOf(namespace, service)
    const entry = this.#memory.peek(key)
    if (entry === undefined) return
    if (frame.kind === 'snapshot') this.#frames.snapshots++
    else this.#frames.changes++
    if (this.#resuming.delete(entry)) this.resumes[frame.kind]++
    const served = this.#followed.get(entry)!
    const next = fold(entry.heard ?? (entry.origin === 'peer' ? undefined : entry.view), frame)
    if (next) {
      if (frame.kind === 'snapshot') served.restarted = undefined
      const removed = frame.kind === 'change' ? frame.remove : []
      this.#offer(entry, { view: next, origin: 'registry', confirmed: session, removed })
    } else if (served.restarted !== session) {
      // Once: the changes that follow before the snapshot comes do not continue the view either.
      served.restarted = session
      this.#frames.restarts++
      this.#log.info({ namespace, service }, 'a change does not continue the view: asking for a snapshot')
      entry.heard = undefined
      this.#confirmations.begin(entry)
      this.#subscriptions.restart(key)
    }
  }

  /** The registry has said what it knows; that a peer claimed to know of later places does not count any more. */
  #overrule(entry: Entry, session: Session): void {
    const { heard, carried } = entry
    if (heard === undefined || carried?.cursor === heard.cursor) return
    this.#offer(entry, { view: heard, origin: 'registry', confirmed: session, isSettled: true })
  }

  /** What is due now and then, with the pings: dates of files, names that nobody knows, nodes that did not come back. */
  #tidy(session: Session): void {
    const nowMs = this.#clock.now()
    for (const key of this.#unknown.due()) this.#forgetUnknown(key)
    for (const entry of this.#quarantines.entries)
      if (entry.heard) this.#offer(entry, { view: entry.heard, origin: 'registry', confirmed: session })
    if (this.#confirmations.isAged(session)) return
    this.#idle.look(session)
    if (nowMs - this.#datedMs < DATING_MS) return
    this.#datedMs = nowMs
    for (const { view, carried, confirmed } of this.#entries())
      if (view && confirmed === session && isKnown(view)) this.#files?.confirm(carried ?? view)
  }

  #forgetUnknown(key: string): void {
    this.#unknown.forget(key)
    const entry = this.#memory.peek(key)
    if (entry && isUnknown(entry) && entry.pins === 0) this.#memory.evict(key)
  }

  #offer(entry: Entry, offer: Offer): void {
    this.#judge(entry, [offer], false)
  }

  /** @param isAnew whether what was said before counts as not said */
  #judge(entry: Entry, offers: readonly Offer[], isAnew: boolean): void {
    const { namespace, service, served: before } = entry
    const key = keyOf(namespace, service)
    const judged = this.#quarantines.observe(entry, offers[0]!.removed ?? [])
    if (isAnew) {
      entry.rewind()
      this.#confirmations.doubt(entry)
    }
    const { carried } = entry
    let verdict: Verdict = 'older'
    for (const offer of offers) {
      verdict = this.#memory.offer(key, entry, offer)
      this.#announce(entry, offer, verdict)
      // It has grown over the bound, and was the one that had to make room.
      if (this.#memory.peek(key) !== entry) return
      if (verdict === 'accepted' || verdict === 'current') this.#keep(key, entry, offer, verdict)
      if (entry.carried !== carried) this.#keepCarried(entry)
      // Another process here has written down what a peer said, of what the registry says that it never heard of.
      const isRefuted = offer.origin === 'peer' && isUnknown(entry) && this.#confirmations.isConfirmed(entry)
      if (isRefuted) this.#files?.discard(namespace, service)
    }
    judged(verdict)
    if (entry.served !== before) this.#publish(entry)
    else if (verdict === 'current') this.#followed.get(entry)?.watchers.wake()
  }

  /** What follows from a view that is served from now on, or was already. */
  #keep(key: string, entry: Entry, { view, origin, confirmed }: Offer, verdict: Verdict): void {
    if (origin === 'registry' && entry.confirmed === confirmed) this.#confirmations.settle(entry)
    // Dated by someone else from now on, whose date does not grow; the stream's next word makes it this stream's again.
    else this.#confirmations.doubt(entry)
    if (verdict !== 'accepted' || origin === 'file') return
    if (isKnown(view)) {
      this.#unknown.forget(key)
      this.#files?.save(view, this.#clock.now() - confirmed.heardMs, origin)
    } else {
      this.#unknown.note(key)
      if (origin === 'registry') this.#files?.discard(entry.namespace, entry.service)
    }
  }

  /**
   * What a new history names beside nodes of the last one: a restart goes on from there. While it names nothing, what was
   * known before stays in the file as it is.
   */
  #keepCarried({ view, heard, carried, confirmed, origin }: Entry): void {
    if (carried === undefined || heard === undefined || heard.cursor.epoch === view?.cursor.epoch) return
    const saidBy = origin === 'peer' ? 'peer' : 'registry'
    if (isProven(heard)) this.#files?.save(carried, this.#clock.now() - confirmed.heardMs, saidBy)
  }

  #announce(entry: Entry, { view: offered, origin }: Offer, verdict: Verdict): void {
    if (!channels.view.hasSubscribers) return
    const { namespace, service, served } = entry
    channels.view.publish({ namespace, service, origin, verdict, offered, served } satisfies ViewMessage)
  }

  #publish(entry: Entry): void {
    const served = this.#followed.get(entry)
    if (served === undefined) return
    if (entry.served) this.#stopSeeking(served)
    served.selector.update(entry.served, strategyOf(entry.served?.policy))
    served.watchers.wake()
  }

  /** An entry was evicted. */
  drop(key: string, entry: Entry): void {
    const served = this.#followed.get(entry)
    this.#subscriptions.unsubscribe(key)
    this.#unknown.forget(key)
    this.#confirmations.forget(entry)
    this.#resuming.delete(entry)
    this.#quarantines.forget(entry)
    this.#files?.forget(entry.namespace, entry.service)
    if (served) {
      this.#stopSeeking(served)
      served.selector.close()
    }
    const services = this.#byName.get(entry.namespace)
    services?.delete(entry.service)
    if (services?.size === 0) this.#byName.delete(entry.namespace)
  }

  /**
   * Waits until `test` holds after a change of the service, or after the registry said how far it is; false when the
   * deadline or the signal came first.
   * @param wanted a place of the history that is waited for: the registry is asked for it. Undefined while nothing is known
   * that it could be a place of
   */
  async until(
    served: Followed,
    test: () => boolean,
    deadlineMs: number,
    signal: AbortSignal | undefined,
    wanted?: Place,
  ): Promise<boolean> {
    const waiting = served.watchers.until(test, deadlineMs, signal, this.#clock)
    this.#seek(served)
    if (wanted) {
      this.#awaited.add(served, wanted)
      // While its file is read it is not subscribed yet; then it is with this.
      if (!served.loading) {
        if (wanted()) this.#subscriptions.ask(served.key)
        else this.#subscriptions.refresh()
      }
    }
    const held = await waiting
    if (served.watchers.size === 0) this.#stopSeeking(served)
    if (wanted) this.#awaited.delete(served, wanted)
    return held
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

/** Of two histories either; the registry knows one of them. */
function laterOf(a: Cursor | undefined, b: Cursor | undefined): Cursor | undefined {
  return a === undefined || (b !== undefined && isAfter(b, a)) ? b : a
}

/** Of the strategies that a policy may name, those that this version executes; the others fall back to taking turns. */
function strategyOf(policy: PolicyDocument | undefined): SelectorStrategy {
  const loadBalancing = policy?.loadBalancing as { strategy?: unknown } | undefined
  return loadBalancing?.strategy === 'random' ? 'random' : 'round_robin'
}
