/**
 * Views, their history, and who watches them. Learns of changes only from the store, once they are durable.
 *
 * Every subscriber is sent each change of its services in order, or, when it fell behind, what it missed merged into
 * one frame per service. A reader that does not keep up is not buffered for: the hub notes which services it missed,
 * and sends their present state once the reader has taken what it was sent.
 */

import { every, type Clock } from '@holdfast/registry-client/clock'
import { formatCursor, MAX_SPREAD_MS, type Cursor, type PingData } from '@holdfast/registry-client/protocol'
import { ServiceView } from './service-view.ts'
import { serviceKey } from '../store/store-state.ts'
import type { Committed, Store, StoreListener, StoreState } from '../store/store.ts'
import { SharedSync } from './shared-sync.ts'
import { StreamEvent, type Transport } from './stream-event.ts'
import { Subscriber, type Due, type Interest, type Sink, type Topic } from './subscriber.ts'

/** Pings are spread over this many turns, so that ten thousand of them do not hold up everything else at once. */
const PING_SLOTS = 10
/** Written snapshots kept for the next subscriber: a herd that comes back asks for the same services. */
const SNAPSHOT_CACHE_BYTES = 16_777_216
/**
 * Streams that another replica can take over in a second beside its work: half of what fills one core. More at once
 * block it: 5,000 for two seconds, 16,000 for so long that their handshakes time out and come again. To refuse some of
 * them costs as much as to serve them; so they are told when to come.
 */
const RETURNS_PER_S = 1_000
/** The least spread, and by how much it grows: pings stay the same bytes while a few come and go. */
const SPREAD_STEP_MS = 200
/** An age below it is what a network takes anyway, and not worth a word. */
const AGE_TOLD_MS = 3_000

export interface WatchHubOptions {
  readonly store: Pick<Store, 'epoch' | 'sync' | 'status'>
  readonly clock: Clock
  /** Bytes that may wait for one reader before it counts as slow. One frame more may wait. */
  readonly maxBufferBytes: number
  readonly pingMs: number
  /** A slow reader that takes nothing for so long is disconnected. */
  readonly stallMs: number
}

export interface WatchHubStatus {
  readonly services: number
  readonly nodes: number
  readonly subscribers: Readonly<Record<Transport, number>>
  /** Times that a subscriber fell behind and was sent the present state instead. */
  readonly restarts: number
  readonly dropped: number
  readonly framesSent: number
  readonly snapshotsSent: number
  /** Services that clients came back to with a cursor, by what they were sent. */
  readonly resumes: Readonly<Record<Resume, number>>
}

export type Resume = 'nothing' | 'change' | 'snapshot'

interface Waiter {
  readonly wake: () => void
}

interface WatchedTopic extends Topic {
  view: ServiceView | undefined
  subscribers: Set<Subscriber> | undefined
  waiters: Set<Waiter> | undefined
}

export class WatchHub implements StoreListener {
  readonly #options: WatchHubOptions
  readonly #syncs: SharedSync
  readonly #topics = new Map<string, WatchedTopic>()
  /** Who watches all services of a namespace, and under `*` of all. */
  readonly #wildcards = new Map<string, Set<Subscriber>>()
  readonly #subscribers = new Map<number, Subscriber>()
  /** Which view each revision changed, oldest first, so that trimming need not look at all views. */
  #trail: { readonly revision: number; readonly view: ServiceView }[] = []
  #trailHead = 0
  readonly #snapshots = new Map<ServiceView, StreamEvent>()
  #snapshotBytes = 0
  #sortedKeys: string[] | undefined
  #revision = 0
  #cursorText: string
  #ping: { readonly event: StreamEvent; readonly data: PingData } | undefined
  #pingSlot = 0
  #lastId = 0
  #services = 0
  #nodes = 0
  #restarts = 0
  #dropped = 0
  #framesSent = 0
  #snapshotsSent = 0
  readonly #resumes = { nothing: 0, change: 0, snapshot: 0 }
  #closed = false
  readonly #stopPings: () => void

  constructor(options: WatchHubOptions) {
    this.#options = options
    this.#syncs = new SharedSync(() => options.store.sync(), options.clock)
    this.#cursorText = formatCursor(this.cursor)
    this.#stopPings = every(options.clock, options.pingMs / PING_SLOTS, () => this.#sendPings())
  }

  get epoch(): string {
    return this.#options.store.epoch
  }

  /** The newest durable place. */
  get cursor(): Cursor {
    return { epoch: this.epoch, revision: this.#revision }
  }

  get cursorText(): string {
    return this.#cursorText
  }

  /** Over which time the subscribers should come back elsewhere when this registry is gone: each at a moment of its own. */
  get spreadMs(): number {
    const ms = (this.#subscribers.size * 1_000) / RETURNS_PER_S
    return Math.min(MAX_SPREAD_MS, Math.max(1, Math.ceil(ms / SPREAD_STEP_MS)) * SPREAD_STEP_MS)
  }

  /**
   * For a client that has seen more at another replica than is known here: resolves once this hub has caught up with
   * what anyone was told before this call, or when that cannot be known. Undefined when there is nothing to wait for.
   */
  reach(known: Iterable<Cursor | undefined>): Promise<void> | undefined {
    for (const cursor of known)
      if (cursor?.epoch === this.epoch && cursor.revision > this.#revision) return this.#syncs.join()
    return undefined
  }

  /**
   * A service that the state leaves out keeps its view: a store forgets none, so this is no proof that its nodes are
   * gone.
   */
  load(state: StoreState): void {
    const before = new Map<ServiceView, number>()
    for (const { view } of this.#topics.values()) {
      if (view === undefined) continue
      before.set(view, view.revision)
      view.forget()
    }
    const changed: WatchedTopic[] = []
    for (const service of state.services) {
      const topic = this.#topic(service.namespace, service.service)
      const view = this.#viewOf(topic)
      const had = view.nodes.size
      view.load(service)
      this.#nodes += view.nodes.size - had
      if (view.revision !== (before.get(view) ?? 0)) changed.push(topic)
    }
    this.#trail = []
    this.#trailHead = 0
    for (const entry of state.history) {
      const view = this.#topics.get(serviceKey(entry.namespace, entry.service))?.view
      view?.remember(entry)
      if (view) this.#trail.push({ revision: entry.revision, view })
    }
    this.#snapshots.clear()
    this.#snapshotBytes = 0
    this.#moveTo(state.revision)
    const missed = new Set<Subscriber>()
    for (const topic of changed)
      for (const subscriber of this.#watchersOf(topic)) {
        subscriber.miss(topic, before.get(topic.view!) ?? 0, topic.view!.revision)
        missed.add(subscriber)
      }
    for (const subscriber of missed) subscriber.catchUp()
    for (const topic of changed) for (const waiter of [...(topic.waiters ?? [])]) waiter.wake()
  }

  apply(transactions: readonly Committed[], floor: number): void {
    const due: { topic: WatchedTopic; event: StreamEvent; after: number }[] = []
    const woken: Waiter[] = []
    for (const { revision, time, changes } of transactions) {
      for (const change of changes) {
        const topic = this.#topic(change.namespace, change.service)
        const view = this.#viewOf(topic)
        const before = view.nodes.size
        view.apply(change, revision, time)
        this.#nodes += view.nodes.size - before
        this.#trail.push({ revision, view })
        this.#forgetSnapshot(view)
        if (topic.waiters) woken.push(...topic.waiters)
        if (!topic.subscribers && this.#wildcards.size === 0) continue
        const { epoch } = this
        const frame = {
          kind: 'change' as const,
          namespace: change.namespace,
          service: change.service,
          after: { epoch, revision: change.after },
          cursor: { epoch, revision },
          put: change.put,
          remove: change.remove,
          ...(change.policy !== undefined && { policy: change.policy }),
        }
        due.push({ topic, event: StreamEvent.ofFrame(frame), after: change.after })
      }
    }
    this.#moveTo(transactions.at(-1)!.revision)
    this.#trim(floor)
    this.#fanOut(due)
    for (const waiter of woken) waiter.wake()
  }

  /** Undefined for a service never heard of. */
  view(namespace: string, service: string): ServiceView | undefined {
    return this.#topics.get(serviceKey(namespace, service))?.view
  }

  /**
   * Known services in the order of their keys, `namespace/service`.
   * @param namespace `*` for all
   * @param after the key after which to begin
   */
  *services(namespace: string, prefix: string, after: string): Iterable<ServiceView> {
    this.#sortedKeys ??= [...this.#topics.values()].flatMap((topic) => (topic.view ? [topic.key] : [])).sort()
    const keys = this.#sortedKeys
    const start = namespace === '*' ? '' : `${namespace}/${prefix}`
    for (let index = firstFrom(keys, start > after ? start : after); index < keys.length; index++) {
      const key = keys[index]!
      if (namespace !== '*' && !key.startsWith(start)) break
      const view = this.#topics.get(key)?.view
      if (key > after && view?.service.startsWith(prefix)) yield view
    }
  }

  /** Resolves when a service has changed after a revision, after `ms`, when `signal` aborts, or when the hub closes. */
  changed(namespace: string, service: string, revision: number, ms: number, signal: AbortSignal): Promise<void> {
    const topic = this.#topic(namespace, service)
    if ((topic.view?.revision ?? 0) > revision || signal.aborted || this.#closed) {
      this.#release(topic)
      return Promise.resolve()
    }
    return new Promise((resolve) => {
      const waiter: Waiter = {
        wake: () => {
          cancel()
          signal.removeEventListener('abort', waiter.wake)
          topic.waiters?.delete(waiter)
          if (topic.waiters?.size === 0) topic.waiters = undefined
          this.#release(topic)
          resolve()
        },
      }
      const cancel = this.#options.clock.after(ms, waiter.wake)
      signal.addEventListener('abort', waiter.wake)
      topic.waiters ??= new Set()
      topic.waiters.add(waiter)
    })
  }

  /** A new subscriber, without services yet. It must be closed. */
  connect(sink: Sink): Subscriber {
    const { clock, maxBufferBytes } = this.#options
    const { epoch } = this
    const subscriber: Subscriber = new Subscriber({
      id: ++this.#lastId,
      epoch,
      since: new Date(clock.wall()).toISOString(),
      sink,
      maxBufferBytes,
      hub: {
        cursor: () => ({ revision: this.#revision, text: this.#cursorText }),
        join: (interest) => this.#join(subscriber, interest),
        leave: (interest) => this.#leave(subscriber, interest),
        revisionOf: (topic) => (topic as WatchedTopic).view?.revision ?? 0,
        catchUp: (topic, due) => this.#catchUp(topic as WatchedTopic, due),
        ping: (subscribed) => this.#pingNow(subscribed),
        isAged: () => this.#ageMs() > 0,
        sent: (frames) => (this.#framesSent += frames),
        closed: () => this.#subscribers.delete(subscriber.id),
      },
    })
    this.#subscribers.set(subscriber.id, subscriber)
    return subscriber
  }

  /** In the order of their ids, from the first after `after`. */
  *subscribers(after = 0): Iterable<Subscriber> {
    for (const [id, subscriber] of this.#subscribers) if (id > after) yield subscriber
  }

  get subscriberCount(): number {
    return this.#subscribers.size
  }

  status(): WatchHubStatus {
    const subscribers = { sse: 0, websocket: 0 }
    for (const { sink } of this.#subscribers.values()) subscribers[sink.transport]++
    return {
      services: this.#services,
      nodes: this.#nodes,
      subscribers,
      restarts: this.#restarts,
      dropped: this.#dropped,
      framesSent: this.#framesSent,
      snapshotsSent: this.#snapshotsSent,
      resumes: { ...this.#resumes },
    }
  }

  /** Ends every stream and every wait. */
  close(): void {
    this.#closed = true
    this.#stopPings()
    // First to all, and with the number that there are now: the last word on when to come back elsewhere.
    const ping = [this.#pingNow()]
    const subscribers = [...this.#subscribers.values()]
    for (const subscriber of subscribers) this.#sendPing(subscriber, ping)
    for (const subscriber of subscribers) subscriber.end('stopping')
    for (const topic of [...this.#topics.values()]) for (const waiter of [...(topic.waiters ?? [])]) waiter.wake()
  }

  #moveTo(revision: number): void {
    this.#revision = revision
    this.#cursorText = formatCursor(this.cursor)
    this.#ping = undefined
  }

  #topic(namespace: string, service: string): WatchedTopic {
    const key = serviceKey(namespace, service)
    let topic = this.#topics.get(key)
    if (topic === undefined) {
      topic = { key, namespace, service, view: undefined, subscribers: undefined, waiters: undefined }
      this.#topics.set(key, topic)
    }
    return topic
  }

  #viewOf(topic: WatchedTopic): ServiceView {
    if (topic.view === undefined) {
      topic.view = new ServiceView(topic.namespace, topic.service)
      this.#services++
      this.#sortedKeys = undefined
    }
    return topic.view
  }

  /** A topic that nothing is known of lives only as long as someone asks for it. */
  #release(topic: WatchedTopic): void {
    if (!topic.view && !topic.subscribers && !topic.waiters) this.#topics.delete(topic.key)
  }

  #join(subscriber: Subscriber, { namespace, service }: Interest): readonly Topic[] {
    if (service !== '*') {
      const topic = this.#topic(namespace, service)
      topic.subscribers ??= new Set()
      topic.subscribers.add(subscriber)
      return [topic]
    }
    const watchers = this.#wildcards.get(namespace) ?? new Set()
    this.#wildcards.set(namespace, watchers.add(subscriber))
    return [...this.#topics.values()].filter(
      (topic) => topic.view && (namespace === '*' || topic.namespace === namespace),
    )
  }

  #leave(subscriber: Subscriber, { namespace, service }: Interest): void {
    if (service === '*') {
      const watchers = this.#wildcards.get(namespace)
      watchers?.delete(subscriber)
      if (watchers?.size === 0) this.#wildcards.delete(namespace)
      return
    }
    const topic = this.#topics.get(serviceKey(namespace, service))
    topic?.subscribers?.delete(subscriber)
    if (topic?.subscribers?.size === 0) {
      topic.subscribers = undefined
      this.#release(topic)
    }
  }

  *#watchersOf(topic: WatchedTopic): Iterable<Subscriber> {
    if (topic.subscribers) yield* topic.subscribers
    if (this.#wildcards.size === 0) return
    const { namespace, service } = topic
    const ofNamespace = this.#wildcards.get(namespace)
    if (ofNamespace) for (const subscriber of ofNamespace) if (!subscriber.wants(namespace, service)) yield subscriber
    for (const subscriber of this.#wildcards.get('*') ?? [])
      if (!subscriber.wants(namespace, service) && !subscriber.wants(namespace, '*')) yield subscriber
  }

  #fanOut(due: readonly { topic: WatchedTopic; event: StreamEvent; after: number }[]): void {
    if (due.length === 1) {
      const [only] = due
      const events = [only!.event]
      for (const subscriber of this.#watchersOf(only!.topic))
        this.#offer(subscriber, events, () => subscriber.miss(only!.topic, only!.after, only!.event.revision))
      return
    }
    const plan = new Map<Subscriber, (typeof due)[number][]>()
    for (const item of due)
      for (const subscriber of this.#watchersOf(item.topic)) {
        const items = plan.get(subscriber)
        if (items) items.push(item)
        else plan.set(subscriber, [item])
      }
    for (const [subscriber, items] of plan)
      this.#offer(
        subscriber,
        items.map(({ event }) => event),
        () => {
          for (const { topic, event, after } of items) subscriber.miss(topic, after, event.revision)
        },
      )
  }

  #offer(subscriber: Subscriber, events: readonly StreamEvent[], miss: () => void): void {
    if (subscriber.isBehind) miss()
    else if (subscriber.isSlow) {
      this.#restarts++
      miss()
    } else subscriber.send(events, this.#revision, this.#cursorText)
  }

  #catchUp(topic: WatchedTopic, { revision, resumes }: Due): StreamEvent | undefined {
    const event = this.#missing(topic, revision)
    if (event?.event === 'snapshot') this.#snapshotsSent++
    if (resumes) this.#resumes[(event?.event ?? 'nothing') as Resume]++
    return event
  }

  /** What a subscriber needs that has a service as of `revision`; undefined revision: has nothing. */
  #missing(topic: WatchedTopic, revision: number | undefined): StreamEvent | undefined {
    const { view } = topic
    const current = view?.revision ?? 0
    if (revision !== undefined && revision <= this.#revision) {
      if (current <= revision) return undefined
      const change = view?.since(revision, this.epoch)
      if (change) return StreamEvent.ofFrame(change)
    }
    if (view) return this.#snapshot(view)
    const unknown = new ServiceView(topic.namespace, topic.service)
    return StreamEvent.ofFrame({ kind: 'snapshot', view: unknown.snapshot(this.epoch) })
  }

  #snapshot(view: ServiceView): StreamEvent {
    const kept = this.#snapshots.get(view)
    if (kept) return kept
    const event = StreamEvent.ofFrame({ kind: 'snapshot', view: view.snapshot(this.epoch) })
    this.#snapshots.set(view, event)
    this.#snapshotBytes += event.bytes
    for (const oldest of this.#snapshots.keys()) {
      if (this.#snapshotBytes <= SNAPSHOT_CACHE_BYTES) break
      this.#forgetSnapshot(oldest)
    }
    return event
  }

  #forgetSnapshot(view: ServiceView): void {
    const event = this.#snapshots.get(view)
    if (event === undefined) return
    this.#snapshots.delete(view)
    this.#snapshotBytes -= event.bytes
  }

  #trim(floor: number): void {
    while (this.#trailHead < this.#trail.length && this.#trail[this.#trailHead]!.revision <= floor)
      this.#trail[this.#trailHead++]!.view.trim(floor)
    if (this.#trailHead > 1024 && this.#trailHead > this.#trail.length / 2) {
      this.#trail = this.#trail.slice(this.#trailHead)
      this.#trailHead = 0
    }
  }

  /** In whole seconds, so that pings of the same turn are the same; 0 when there is nothing to tell. */
  #ageMs(): number {
    const { ageMs } = this.#options.store.status()
    return ageMs > AGE_TOLD_MS ? Math.ceil(ageMs / 1_000) * 1_000 : 0
  }

  #pingNow(subscribed?: number): StreamEvent {
    const age = this.#ageMs()
    const spread = this.spreadMs
    if (subscribed !== undefined)
      return StreamEvent.ping(this.#revision, { spread, ...(age > 0 && { age }), subscribed })
    if (this.#ping?.data.spread !== spread || (this.#ping.data.age ?? 0) !== age) {
      const data = { spread, ...(age > 0 && { age }) }
      this.#ping = { event: StreamEvent.ping(this.#revision, data), data }
    }
    return this.#ping.event
  }

  #sendPing(subscriber: Subscriber, ping: readonly StreamEvent[]): void {
    if (!subscriber.isBehind && !subscriber.isSlow) subscriber.send(ping, this.#revision, this.#cursorText)
  }

  #sendPings(): void {
    this.#pingSlot = (this.#pingSlot + 1) % PING_SLOTS
    const nowMs = this.#options.clock.now()
    const ping = [this.#pingNow()]
    for (const [id, subscriber] of this.#subscribers) {
      if (id % PING_SLOTS !== this.#pingSlot) continue
      if (subscriber.stalledMs(nowMs) >= this.#options.stallMs) {
        this.#dropped++
        subscriber.end('stalled')
      } else this.#sendPing(subscriber, ping)
    }
  }
}

/** The index of the first key that is not before `start`. */
function firstFrom(keys: readonly string[], start: string): number {
  let low = 0
  let high = keys.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (keys[middle]! < start) low = middle + 1
    else high = middle
  }
  return low
}
