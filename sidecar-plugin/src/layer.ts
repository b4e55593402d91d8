/**
 * The contract of the data plane. A {@link Service} answers one {@link Exchange}; a {@link Layer} wraps a service;
 * the list of layers is the life of a request, read from top to bottom.
 *
 * Nothing here knows a wire: listeners make exchanges out of whatever they read, `forward` sends them by whatever it
 * has, and the layers between stay the same.
 */

import type { Readable } from 'node:stream'
import type { ServiceNode, PolicyDocument } from '@holdfast/registry-client/protocol'
import type { SidecarError } from './errors.ts'

/** `outbound`: from a local caller to some node. `inbound`: from somebody to the local service. */
export type Direction = 'outbound' | 'inbound'

export type ViewSource = 'memory' | 'file' | 'peer' | 'registry'

/**
 * A request's body. Nothing is read from the caller before somebody reads from {@link RequestBody.stream}, and its
 * beginning is kept, so a request that found no taker can be sent again with its body whole.
 */
export interface RequestBody {
  /** Whether another {@link RequestBody.stream} would begin at the beginning. False for ever once too much was read. */
  readonly repeatable: boolean
  /**
   * A stream over the whole body; one at a time. Destroying it leaves the body itself alone. Fails when the caller
   * breaks off.
   */
  stream(): Readable
}

/** Where a request is sent. A node of a view is one. */
export interface Destination {
  readonly id: string
  readonly host: string
  readonly port: number
}

/** What is known of the service when its request was accepted; from memory, never asked for on the way. */
export interface Known {
  readonly source: ViewSource
  /** Milliseconds since it was known to be current. */
  readonly age: number
  readonly nodes: readonly ServiceNode[]
  readonly policy: PolicyDocument | undefined
}

/** How an exchange ended, body included. */
export interface Ending {
  /** Undefined: the answer was delivered whole. */
  readonly error: SidecarError | undefined
  readonly bytesIn: number
  readonly bytesOut: number
}

/** One request on its way through the stack. Layers fill in what they decide; those further out read it afterwards. */
export interface Exchange {
  readonly direction: Direction
  /** The caller's `x-request-id`, or a new one. */
  readonly id: string
  /** Milliseconds of the clock, when the head had arrived. */
  readonly startedMs: number
  /** The address of the connection's other end, or an empty string when it has gone already. */
  readonly peer: string
  readonly httpVersion: string
  readonly method: string
  readonly body: RequestBody | undefined
  /** Aborts when nobody waits for the answer any more; its reason is a {@link SidecarError}. */
  readonly signal: AbortSignal
  /** Resolves once the answer has left or the exchange was broken off. Never rejects. */
  readonly ended: Promise<Ending>

  /** As received; in origin form behind the layer `clean-head`. */
  target: string
  /** Flat, `[name, value, …]`, with case, order and duplicates kept. Only end-to-end fields behind `clean-head`. */
  headers: readonly string[]
  /** What stood for the host: of the absolute URL, else of `Host`. Set by `clean-head`. */
  authority: string
  /** The `x-holdfast-*` fields by what follows the prefix. Set by `clean-head`, and not relayed. */
  control: ReadonlyMap<string, string>
  service: string
  namespace: string
  /** Set by `resolve`. */
  known: Known | undefined
  /** Milliseconds of the clock when a stated timeout ends; undefined when none was stated. Set by `deadline`. */
  deadlineMs: number | undefined
  /** Times that it was sent, or that sending was tried. */
  attempts: number
  /** Whether this attempt, if it is refused, will be followed by one on another node. Set by `retry`. */
  elsewhere: boolean
  /** Nodes that failed this request: the next attempt goes elsewhere. */
  readonly tried: Set<string>
  /** Where it was sent last. */
  destination: Destination | undefined
  /** Bytes of the body that have arrived so far. */
  bytesIn: number

  /** Gives the exchange up: aborts `signal`, and so whatever goes on upstream. The first reason stays. */
  abort(reason: SidecarError): void
}

/** The answer to an exchange. */
export interface Reply {
  readonly status: number
  readonly statusText?: string
  /** Flat, end-to-end fields only, without `x-holdfast-*`. */
  readonly headers: readonly string[]
  /**
   * A stream that fails mid-way breaks the caller's connection: never a cut body that looks whole. Whoever does not
   * pass a reply on destroys its stream.
   */
  readonly body: Readable | Buffer | undefined
  /** Why a sidecar answered by itself; undefined for an answer of the service. */
  readonly reason?: string
  /** Whether this sidecar made it up, not a peer. */
  readonly own?: boolean
}

/** Answers an exchange, or throws a {@link SidecarError}. Settles soon after the exchange's signal aborts. */
export type Service = (exchange: Exchange) => Promise<Reply>
export type Layer = (inner: Service) => Service

/** A service out of layers, the first of which meets a request first. */
export function stack(layers: readonly Layer[], innermost: Service): Service {
  return layers.reduceRight((inner, layer) => layer(inner), innermost)
}

/** What a listener knows of a request when its head has arrived. */
export type Arrival = Pick<
  Exchange,
  'direction' | 'id' | 'startedMs' | 'peer' | 'httpVersion' | 'method' | 'target' | 'headers' | 'body' | 'ended'
>

/** An exchange at the head of the stack, with nothing decided yet. */
export function createExchange(arrival: Arrival): Exchange {
  const controller = new AbortController()
  return {
    ...arrival,
    signal: controller.signal,
    authority: '',
    control: new Map(),
    service: '',
    namespace: '',
    known: undefined,
    deadlineMs: undefined,
    attempts: 0,
    elsewhere: false,
    tried: new Set(),
    destination: undefined,
    bytesIn: 0,
    abort: (reason) => controller.abort(reason),
  }
}

/** Gives back what a reply holds, for those who do not pass it on. */
export function discard(reply: Reply): void {
  if (reply.body !== undefined && !Buffer.isBuffer(reply.body)) reply.body.destroy()
}
