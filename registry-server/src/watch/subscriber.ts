/** One watch stream: what it wants, what it has been sent, and what it still has to be sent. */

import type { Cursor } from '@holdfast/registry-client/protocol'
import { serviceKey } from '../store/store-state.ts'
import type { StreamEvent, Transport } from './stream-event.ts'

/** A stream's connection, as the hub sees it. */
export interface Sink {
  readonly transport: Transport
  readonly remote: string
  /** Accepted by {@link write}, not yet taken by the network. */
  readonly unsentBytes: number
  /** Taken by the network, ever. */
  readonly sentBytes: number
  /** Writes whole events, the last with an id. After a write that left bytes unsent, the owner calls `drained`. */
  write(events: readonly StreamEvent[], id: string | undefined): void
  end(reason: EndReason, message?: string): void
}

/** `refused`: what it asked for cannot be. */
export type EndReason = 'stopping' | 'stalled' | 'refused'

/** Either may be `*`; a `*` namespace only with a `*` service. */
export interface Interest {
  readonly namespace: string
  readonly service: string
}

export interface Topic extends Interest {
  readonly key: string
}

/** What a stream still has to be sent of one service. */
export interface Due {
  /** What the client has; undefined for nothing. */
  readonly revision: number | undefined
  /** Whether the client came with a cursor, rather than fell behind on this stream or asked afresh. */
  readonly resumes: boolean
}

/** What a subscriber needs of its hub. */
export interface SubscriberHub {
  cursor(): { readonly revision: number; readonly text: string }
  /** @returns the services there are now */
  join(interest: Interest): readonly Topic[]
  leave(interest: Interest): void
  revisionOf(topic: Topic): number
  /** Undefined when the client has it all. */
  catchUp(topic: Topic, due: Due): StreamEvent | undefined
  /** @param subscribed the `ref` of the messages whose services have all been sent */
  ping(subscribed?: number): StreamEvent
  /** Whether what the hub knows may have been overtaken a while ago. */
  isAged(): boolean
  sent(frames: number): void
  closed(): void
}

export interface SubscriberOptions {
  readonly id: number
  readonly epoch: string
  readonly since: string
  readonly sink: Sink
  readonly maxBufferBytes: number
  readonly hub: SubscriberHub
}

export class Subscriber {
  readonly id: number
  readonly since: string
  readonly sink: Sink
  readonly #epoch: string
  readonly #maxBufferBytes: number
  readonly #hub: SubscriberHub
  readonly #interests = new Map<string, Interest>()
  /** What is still to be sent, by topic. Bounded by the number of its services, whatever happens to them meanwhile. */
  #behind: Map<Topic, Due> | undefined
  #sentRevision = 0
  #ackedRevision: number | undefined
  /** The newest change of its services. */
  #dueRevision = 0
  #stalledSinceMs: number | undefined
  #stalledAtBytes = 0
  /** The `ref` to be told of once nothing is behind any more. */
  #ref: number | undefined
  #isClosed = false

  constructor(options: SubscriberOptions) {
    this.id = options.id
    this.since = options.since
    this.sink = options.sink
    this.#epoch = options.epoch
    this.#maxBufferBytes = options.maxBufferBytes
    this.#hub = options.hub
  }

  get interests(): Iterable<Interest> {
    return this.#interests.values()
  }

  get interestCount(): number {
    return this.#interests.size
  }

  /** Everything up to here has been written to it. */
  get sentRevision(): number {
    return this.#sentRevision
  }

  /** Everything up to here has arrived: by its word on a WebSocket, by the network's for Server-Sent Events. */
  get ackedRevision(): number | undefined {
    this.#noteFlush()
    return this.#ackedRevision
  }

  /** Revisions from what has arrived to the newest change of its services. */
  get lag(): number {
    return Math.max(0, this.#dueRevision - (this.ackedRevision ?? 0))
  }

  get isBehind(): boolean {
    return this.#behind !== undefined
  }

  get isSlow(): boolean {
    return this.sink.unsentBytes > this.#maxBufferBytes
  }

  wants(namespace: string, service: string): boolean {
    return this.#interests.has(serviceKey(namespace, service))
  }

  /**
   * Adds services; naming one again asks for it afresh.
   * @param wanted with the cursor of what the client has of each
   * @param ref said in a ping once all of them have been sent
   */
  subscribe(wanted: Iterable<Interest & { readonly cursor?: Cursor | undefined }>, ref?: number): void {
    // A message may still arrive on a stream that is being closed.
    if (this.#isClosed) return
    this.#ref = ref ?? this.#ref
    for (const { namespace, service, cursor } of wanted) {
      const interest = { namespace, service }
      this.#interests.set(serviceKey(namespace, service), interest)
      const revision = cursor?.epoch === this.#epoch ? cursor.revision : undefined
      const due = { revision, resumes: cursor !== undefined }
      this.#behind ??= new Map()
      for (const topic of this.#hub.join(interest)) {
        this.#behind.set(topic, due)
        this.#dueRevision = Math.max(this.#dueRevision, this.#hub.revisionOf(topic))
      }
    }
    this.#behind ??= new Map()
    this.#pump(true)
  }

  unsubscribe(unwanted: Iterable<Interest>): void {
    for (const { namespace, service } of unwanted) {
      const key = serviceKey(namespace, service)
      const interest = this.#interests.get(key)
      if (interest === undefined) continue
      this.#interests.delete(key)
      this.#hub.leave(interest)
    }
    for (const topic of this.#behind?.keys() ?? []) if (!this.#covers(topic)) this.#behind?.delete(topic)
  }

  ack(cursor: Cursor): void {
    if (cursor.epoch !== this.#epoch) return
    // Nothing can have arrived that was not sent.
    const revision = Math.min(cursor.revision, this.#sentRevision)
    this.#ackedRevision = Math.max(this.#ackedRevision ?? 0, revision)
  }

  /** Writes the events of one commit. Only while it is neither behind nor slow. */
  send(events: readonly StreamEvent[], revision: number, id: string): void {
    this.#noteFlush()
    this.sink.write(events, id)
    this.#sentRevision = revision
    const last = events[events.length - 1]!
    if (last.event !== 'ping') this.#dueRevision = last.revision
    this.#hub.sent(events.length)
  }

  /** Notes a change that was not written; `after` is what it changed. */
  miss(topic: Topic, after: number, revision: number): void {
    this.#behind ??= new Map()
    if (!this.#behind.has(topic)) this.#behind.set(topic, { revision: after, resumes: false })
    this.#dueRevision = Math.max(this.#dueRevision, revision)
  }

  /** Sends what was missed, as far as the reader takes it. */
  catchUp(): void {
    if (this.#behind) this.#pump(false)
  }

  /** The network took all that was written. */
  drained(): void {
    this.#noteFlush()
    this.#stalledSinceMs = undefined
    this.catchUp()
  }

  /** For how long it has been behind without taking anything. */
  stalledMs(nowMs: number): number {
    const { sentBytes, unsentBytes } = this.sink
    if (unsentBytes === 0 || sentBytes !== this.#stalledAtBytes || this.#stalledSinceMs === undefined) {
      this.#stalledAtBytes = sentBytes
      this.#stalledSinceMs = nowMs
    }
    return nowMs - this.#stalledSinceMs
  }

  /** Ends the stream for what its client asked for. */
  refuse(message: string): void {
    this.sink.end('refused', message)
    this.close()
  }

  /** Ends the stream from this side. */
  end(reason: EndReason): void {
    this.sink.end(reason)
    this.close()
  }

  /** Forgets it, after its connection is gone. */
  close(): void {
    this.#isClosed = true
    for (const interest of this.#interests.values()) this.#hub.leave(interest)
    this.#interests.clear()
    this.#behind = undefined
    this.#hub.closed()
  }

  #covers({ namespace, service }: Interest): boolean {
    return this.wants(namespace, service) || this.wants(namespace, '*') || this.wants('*', '*')
  }

  /** Sends what is due until the reader is slow; the rest follows when it has drained. */
  #pump(first: boolean): void {
    const behind = this.#behind!
    let held: StreamEvent | undefined
    let wrote = 0
    // Before anything that the client would take for current.
    if (first && this.#hub.isAged()) this.sink.write([this.#hub.ping()], undefined)
    for (const [topic, due] of behind) {
      if (this.isSlow) break
      behind.delete(topic)
      const event = this.#hub.catchUp(topic, due)
      if (event === undefined) continue
      // One is held back, since only the very last may carry the id.
      if (held) this.sink.write([held], undefined)
      held = event
      wrote++
    }
    const { revision, text } = this.#hub.cursor()
    const isDone = behind.size === 0
    if (held) this.sink.write([held], isDone ? text : undefined)
    this.#hub.sent(wrote)
    if (!isDone) return
    // Whoever waits for nothing hears that nothing comes.
    if (this.#ref !== undefined || (first && !held)) this.sink.write([this.#hub.ping(this.#ref)], text)
    this.#ref = undefined
    this.#behind = undefined
    this.#sentRevision = revision
  }

  #noteFlush(): void {
    if (this.sink.transport === 'sse' && this.sink.unsentBytes === 0 && !this.isBehind)
      this.#ackedRevision = this.#sentRevision
  }
}
