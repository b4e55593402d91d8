/**
 * The contract of the data plane. A {@link Service} answers one {@link Exchange}; a {@link Layer} wraps a service;
 * the list of layers is the life of a request, read from top to bottom.
 *
 * Nothing here knows a wire: listeners make exchanges out of whatever they read, `forward` sends them by whatever it
 * has, and the layers between stay the same.
 */

import type { ServiceNode, PolicyDocument, Protocol } from '@holdfast/registry-client/protocol'
import type { SidecarError } from './errors.ts'
import type { Fields } from './fields.ts'

/** `outbound`: from a local caller to some node. `inbound`: from somebody to the local service, or to the sidecar itself. */
export type Direction = 'outbound' | 'inbound'

export type ViewSource = 'memory' | 'file' | 'peer' | 'registry'

/** Takes a message's content, piece by piece. */
export interface Sink {
  /**
   * @param piece whose memory is the source's again when the call returns true; when it returns false, once the sink has
   * called {@link Content.resume}. Whoever keeps a piece copies it
   * @returns false to be given no more until then, but for what is on its way already
   */
  write(piece: Buffer): boolean
  /** That was all. */
  end(trailers: Fields): void
  /** There is more, and it will not come. */
  fail(error: SidecarError): void
}

/** The content of a message while it arrives. Nothing is read from its connection before somebody takes it. */
export interface Content {
  /** In bytes; undefined until it has ended. */
  readonly length: number | undefined
  /** Whether it could be poured from its beginning once more. */
  readonly repeatable: boolean
  /** Whether somebody takes it and has to wait for whoever sends it. Of a request's content; left out: no. */
  readonly flows?: boolean
  /** Lets it flow, from its beginning. Into one sink at a time. */
  pour(sink: Sink): void
  /** Goes on after {@link Sink.write} has returned false. */
  resume(): void
  /** The sink wants no more. A request's content stays where it is; an answer's is given up with its connection. */
  cancel(): void
}

/** Content that is there as a whole, and small. */
export class Whole {
  /** A character for each byte: one string costs less to make, to keep and to write than a buffer of its own. */
  readonly latin1: string

  constructor(latin1: string) {
    this.latin1 = latin1
  }

  /** In UTF-8. */
  static of(text: string): Whole {
    return new Whole(Buffer.from(text).toString('latin1'))
  }

  /** In bytes. */
  get length(): number {
    return this.latin1.length
  }
}

/** A message's content: all of it when it came with the head and is small, else as it arrives. */
export type Body = Whole | Content

/** Whether a request with this body could be sent once more. */
export function isRepeatable(body: Body | undefined): boolean {
  return body === undefined || body instanceof Whole || body.repeatable
}

/** Where a request is sent. A node of a view is one. */
export interface Destination {
  readonly id: string
  readonly host: string
  readonly port: number
  /** What it speaks; `http` unless said. */
  readonly protocol?: Protocol
  readonly labels?: Readonly<Record<string, string>>
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

/** An answer's head, or one that goes before it. */
export interface ReplyHead {
  readonly status: number
  readonly statusText?: string
  /** End-to-end fields only, without those `x-holdfast-*` that this sidecar adds. */
  readonly headers: Fields
}

/** The answer to an exchange. */
export interface Reply extends ReplyHead {
  /**
   * Content that fails mid-way breaks the caller's connection: never a cut body that looks whole. Whoever does not
   * pass a reply on cancels it.
   */
  readonly body: Body | undefined
  /** The connection has become a tunnel: `body` is what comes out of it, and this takes what goes in. Of 101, and of 2xx to CONNECT. */
  readonly tunnel?: Tunnel
  /** Why a sidecar answered by itself; undefined for an answer of the service. */
  readonly reason?: string
  /** Whether this sidecar made it up, not a peer. */
  readonly own?: boolean
  /** Whether its connection takes no other request. Of HTTP/1.1, where a connection is one caller's. */
  readonly isLast?: boolean
}

export interface Tunnel {
  /** The protocol that both ends have agreed on; undefined behind CONNECT. */
  readonly protocol: string | undefined
  open(incoming: Content): void
}

/** The connection that a request came by. */
export interface Caller {
  /** Tells it something before the answer: a status of 1xx other than 101. */
  inform(head: ReplyHead): void
}

/** What a listener knows of a request when its head has arrived. */
export interface Arrival {
  readonly direction: Direction
  /** The caller's `x-request-id`, or a new one. */
  readonly id: string
  /** Milliseconds of the clock, when the head had arrived. */
  readonly startedMs: number
  /** The address of the connection's other end, or an empty string when it has gone already. */
  readonly peer: string
  readonly method: string
  /** As received; in origin form behind the layer `clean-head`, but for CONNECT and `OPTIONS *`. */
  readonly target: string
  /** End-to-end fields only. */
  readonly headers: Fields
  /** What stands for the host; behind `clean-head`, that of an absolute URL. */
  readonly authority: string
  /** The `x-holdfast-*` fields by what follows the prefix. Not relayed. */
  readonly control: ReadonlyMap<string, string>
  readonly body: Body | undefined
  /** The protocols that the caller would change to. */
  readonly upgrade?: string | undefined
  /** Whether the caller said that it takes trailers. */
  readonly takesTrailers?: boolean
  /** Whether it is a call of gRPC, which is told of failures in its own words. */
  readonly isGrpc?: boolean
  readonly caller?: Caller
}

/** One request on its way through the stack. Layers fill in what they decide; those further out read it afterwards. */
export class Exchange {
  readonly direction: Direction
  readonly id: string
  readonly startedMs: number
  readonly peer: string
  readonly method: string
  readonly body: Body | undefined
  readonly upgrade: string | undefined
  readonly takesTrailers: boolean
  readonly isGrpc: boolean
  readonly caller: Caller | undefined

  target: string
  headers: Fields
  authority: string
  control: ReadonlyMap<string, string>
  service = ''
  namespace = ''
  /** Both, as `service.namespace`. */
  name = ''
  /** Set by `resolve`. */
  known: Known | undefined = undefined
  /** Milliseconds of the clock when a stated timeout ends; undefined when none was stated. Set by `deadline`. */
  deadlineMs: number | undefined = undefined
  /** Whether its caller gives less time than the service's policy or the default does. Set by `deadline`. */
  isHurried = false
  /** Times that it was sent, or that sending was tried. */
  attempts = 0
  /** Whether this attempt, if it is refused, will be followed by one on another node. Set by `retry`. */
  elsewhere = false
  /** Nodes that failed this request: the next attempt goes elsewhere. */
  readonly tried = new Set<string>()
  /** Where it was sent last. */
  destination: Destination | undefined = undefined
  /** How a call of gRPC ended, once that is known: a number from 0 to 16. */
  grpcStatus: string | undefined = undefined
  /** Bytes of the body that have arrived so far. */
  bytesIn = 0

  #aborted: SidecarError | undefined
  #ending: Ending | undefined
  #whenAborted: ((reason: SidecarError) => void)[] | undefined
  #whenEnded: ((ending: Ending) => void)[] | undefined
  #controller: AbortController | undefined

  constructor(arrival: Arrival) {
    this.direction = arrival.direction
    this.id = arrival.id
    this.startedMs = arrival.startedMs
    this.peer = arrival.peer
    this.method = arrival.method
    this.target = arrival.target
    this.headers = arrival.headers
    this.authority = arrival.authority
    this.control = arrival.control
    this.body = arrival.body
    this.upgrade = arrival.upgrade
    this.takesTrailers = arrival.takesTrailers ?? false
    this.isGrpc = arrival.isGrpc ?? false
    this.caller = arrival.caller
  }

  /** Why nobody waits for the answer any more; undefined as long as somebody does. */
  get aborted(): SidecarError | undefined {
    return this.#aborted
  }

  /** Gives the exchange up, and so whatever goes on upstream. The first reason stays. */
  abort(reason: SidecarError): void {
    if (this.#aborted) return
    this.#aborted = reason
    this.#controller?.abort(reason)
    for (const run of this.#whenAborted ?? []) run(reason)
    this.#whenAborted = undefined
  }

  /** Runs `run` once it is given up; at once if it has been. */
  whenAborted(run: (reason: SidecarError) => void): void {
    if (this.#aborted) run(this.#aborted)
    else (this.#whenAborted ??= []).push(run)
  }

  /** The same for those who take a signal; its reason is a {@link SidecarError}. Costs more than the rest of an exchange. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.#aborted) this.#controller.abort(this.#aborted)
    }
    return this.#controller.signal
  }

  /** Runs `run` once the answer has left or the exchange was broken off; at once if that was before. */
  whenEnded(run: (ending: Ending) => void): void {
    if (this.#ending) run(this.#ending)
    else (this.#whenEnded ??= []).push(run)
  }

  /** Said by the listener. The first ending stays. */
  end(ending: Ending): void {
    if (this.#ending) return
    this.#ending = ending
    for (const run of this.#whenEnded ?? []) run(ending)
    this.#whenEnded = undefined
  }
}

/** Answers an exchange, or throws a {@link SidecarError}, at once or later. Settles soon after the exchange was aborted. */
export type Service = (exchange: Exchange) => Promise<Reply>
export type Layer = (inner: Service) => Service

/** A service out of layers, the first of which meets a request first. */
export function stack(layers: readonly Layer[], innermost: Service): Service {
  return layers.reduceRight((inner, layer) => layer(inner), innermost)
}

/** Gives back what a reply holds, for those who do not pass it on. */
export function discard(reply: Reply): void {
  if (reply.body !== undefined && !(reply.body instanceof Whole)) reply.body.cancel()
}

/**
 * Ends an exchange, for the listener whose connection it came by.
 * @param content of the request, which will not come any more after an error
 * @param writer of the answer, which is not written any more after one
 */
export function endExchange(
  exchange: Exchange,
  error: SidecarError | undefined,
  bytesOut: number,
  content?: { fail(error: SidecarError): void },
  writer?: { stop(): void },
): void {
  if (error) {
    // First, so that the reason is known to those whom the rest makes fail.
    exchange.abort(error)
    content?.fail(error)
    writer?.stop()
  }
  exchange.end({ error, bytesIn: exchange.bytesIn, bytesOut })
}

/** Resolves once all of a body has been read and dropped, or nothing more of it will come. */
export function consume(body: Body | undefined): Promise<void> {
  if (body === undefined || body instanceof Whole) return Promise.resolve()
  return new Promise((resolve) => body.pour({ write: () => true, end: () => resolve(), fail: () => resolve() }))
}
