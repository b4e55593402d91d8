/**
 * The two transports of a watch: Server-Sent Events and WebSocket. Both write the hub's prebuilt bytes straight to the
 * socket: what is the same for ten thousand subscribers is made once, and a stream costs a socket and little more.
 */

import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import type { Socket } from 'node:net'
import { WebSocketServer, type RawData, type WebSocket } from 'ws'
import type { Clock, Random } from '@holdfast/registry-client/clock'
import {
  decodeClientMessage,
  DEFAULT_NAMESPACE,
  LIMITS,
  parseCursor,
  ProtocolError,
  type Cursor,
} from '@holdfast/registry-client/protocol'
import type { Lifecycle } from '../parts.ts'
import type { Exchanges } from '../api/exchanges.ts'
import { invalid, rawAnswer, Refusal, refusalOf } from '../api/problems.ts'
import { checkHost, targetOf } from '../api/request-head.ts'
import type { StreamEvent } from './stream-event.ts'
import type { EndReason, Sink, Subscriber } from './subscriber.ts'
import type { WatchHub } from './watch-hub.ts'
import { checkInterest, watchQuery, type Wanted } from './watch-query.ts'

const WATCH_PATH = '/v1/watch'
/** Services of one stream, over all its messages. */
const MAX_INTERESTS = 100_000
/** For event streams, whose clients know no backoff: at least so long, and spread over so long, however few they are. */
const RETRY_MS = { least: 1_000, spread: 4_000 }
/** An unmasked WebSocket ping without payload. Every client library answers it by itself. */
const WEBSOCKET_PING = Buffer.of(0x89, 0x00)
/** Unanswered pings after which a WebSocket's peer counts as gone, however alive its socket looks. */
const SILENT_PINGS = 3.5

export interface WatchStreamsOptions {
  readonly lifecycle: Lifecycle
  readonly exchanges: Exchanges
  readonly clock: Clock
  readonly random: Random
  readonly pingMs: number
  readonly maxSubscribers: number
}

export class WatchStreams {
  readonly #options: WatchStreamsOptions
  readonly #webSockets: WebSocketServer
  /** Sockets that carry a stream: nothing else may be written to them. */
  readonly #streaming = new Set<Duplex>()

  constructor(options: WatchStreamsOptions) {
    this.#options = options
    this.#webSockets = new WebSocketServer({
      noServer: true,
      clientTracking: false,
      perMessageDeflate: false,
      maxPayload: LIMITS.bodyBytes,
    })
    this.#webSockets.on('wsClientError', (error, socket) => {
      const [, field] = /(Sec-WebSocket-\w+|Upgrade) header/.exec(error.message) ?? []
      const refusal = invalid(field === undefined ? 'head' : `header.${field.toLowerCase()}`, error.message)
      socket.end(rawAnswer(refusal, { 'sec-websocket-version': '13' }))
    })
  }

  carries(socket: Duplex): boolean {
    return this.#streaming.has(socket)
  }

  /** Makes an answered-to-be request a stream. @throws Refusal before anything is written */
  openSse(request: IncomingMessage, response: ServerResponse, query: URLSearchParams): void {
    const lastEventId = request.headers['last-event-id']
    const wanted = watchQuery(query, Array.isArray(lastEventId) ? lastEventId[0] : lastEventId)
    if (wanted.length === 0) throw invalid('service', 'is required')
    // It begins at once, and an answer that is still to come would end up inside of it.
    if (!this.#options.exchanges.isNext(request))
      throw new Refusal('invalid_request', {
        detail: 'a stream cannot begin before the requests before it are answered',
      })
    const hub = this.#admit()
    const ageSeconds = Math.floor(this.#options.lifecycle.parts!.store.status().ageMs / 1000)
    const { socket } = request
    socket.write(
      'HTTP/1.1 200 OK\r\n' +
        'content-type: text/event-stream; charset=utf-8\r\n' +
        'cache-control: no-store, no-transform\r\n' +
        'x-accel-buffering: no\r\n' +
        `holdfast-cursor: ${hub.cursorText}\r\n` +
        `holdfast-age: ${ageSeconds}\r\n` +
        'connection: close\r\n\r\n',
    )
    const subscriber = this.#carry(hub, new SseSink(socket, hub, this.#options.random), socket)
    // The client's end of the connection; the response itself is never used.
    response.once('close', () => socket.destroy())
    const reached = hub.reach(cursorsOf(wanted))
    if (reached) void reached.then(() => subscriber.subscribe(wanted))
    else subscriber.subscribe(wanted)
  }

  /** Takes over the upgrade requests of a server. */
  attach(server: Server): void {
    server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
      if (this.carries(socket)) return socket.destroy()
      // Node does not put what follows an upgrade in order.
      if (!this.#options.exchanges.isIdle(socket)) return this.#refuseLater(socket)
      // Any other upgrade, such as HTTP/2's, may be ignored, and the request answered as it stands.
      if (request.headers.upgrade?.toLowerCase() !== 'websocket') return serveAnyway(server, request, socket, head)
      socket.on('error', () => socket.destroy())
      try {
        this.#upgrade(request, socket, head)
      } catch (error) {
        socket.end(rawAnswer(refusalOf(error)))
      }
    })
  }

  /** Ends connections whose clients do not. */
  destroy(): void {
    for (const socket of this.#streaming) socket.destroy()
  }

  #refuseLater(socket: Socket): void {
    socket.on('error', () => socket.destroy())
    const refusal = new Refusal('invalid_request', {
      detail: 'an upgrade cannot begin before the requests before it are answered',
    })
    this.#options.exchanges.afterAnswers(socket, () => {
      if (socket.writable) socket.end(rawAnswer(refusal))
    })
  }

  #upgrade(request: IncomingMessage, socket: Socket, head: Buffer): void {
    checkHost(request)
    const url = targetOf(request)
    if (url.pathname !== WATCH_PATH) throw new Refusal('not_found', { detail: `WebSockets are at ${WATCH_PATH}` })
    const wanted = watchQuery(url.searchParams, undefined)
    const hub = this.#admit()
    this.#webSockets.handleUpgrade(request, socket, head, (webSocket) => {
      const sink = new WebSocketSink(webSocket, socket, this.#options)
      const subscriber = this.#carry(hub, sink, socket)
      const inbox = new Inbox(webSocket)
      webSocket.on('message', (data, isBinary) => {
        sink.heard()
        inbox.add(() => this.#receive(hub, subscriber, data, isBinary))
      })
      webSocket.on('pong', () => sink.heard())
      // ws closes by itself what breaks the protocol.
      webSocket.on('error', () => {})
      webSocket.on('close', () => subscriber.close())
      if (wanted.length > 0) inbox.add(() => this.#subscribe(hub, subscriber, wanted))
    })
  }

  #admit(): WatchHub {
    const { lifecycle, maxSubscribers } = this.#options
    if (lifecycle.phase !== 'ready' || lifecycle.parts === undefined)
      throw new Refusal('not_ready', { detail: `the registry is ${lifecycle.phase}` })
    const { hub } = lifecycle.parts
    if (hub.subscriberCount >= maxSubscribers)
      throw new Refusal('too_many_requests', {
        detail: `the registry has ${maxSubscribers} streams, as many as it may`,
      })
    return hub
  }

  #carry(hub: WatchHub, sink: Sink, socket: Socket): Subscriber {
    const subscriber = hub.connect(sink)
    this.#streaming.add(socket)
    socket.on('drain', () => subscriber.drained())
    const forget = () => {
      this.#streaming.delete(socket)
      subscriber.close()
    }
    if (socket.destroyed) forget()
    else socket.once('close', forget)
    return subscriber
  }

  /** @returns what the messages after it have to wait for */
  #receive(hub: WatchHub, subscriber: Subscriber, data: RawData, isBinary: boolean): Promise<void> | undefined {
    try {
      if (isBinary) throw new ProtocolError('message', 'must be text')
      const message = decodeClientMessage(parseJson(data))
      if (message.type === 'ack') {
        subscriber.ack(parseCursor(message.cursor)!)
        return undefined
      }
      const wanted = message.services.map(({ namespace = DEFAULT_NAMESPACE, service, ...rest }, index) => {
        const cursor = 'cursor' in rest && rest.cursor !== undefined ? parseCursor(rest.cursor) : undefined
        checkInterest({ namespace, service }, `services.${index}`)
        return { namespace, service, cursor }
      })
      if (message.type === 'subscribe') return this.#subscribe(hub, subscriber, wanted, message)
      subscriber.unsubscribe(wanted)
    } catch (error) {
      subscriber.refuse(reasonFor(error))
    }
    return undefined
  }

  #subscribe(
    hub: WatchHub,
    subscriber: Subscriber,
    wanted: readonly Wanted[],
    { reach, ref }: { readonly reach?: string; readonly ref?: number } = {},
  ): Promise<void> | undefined {
    if (subscriber.interestCount + wanted.length > MAX_INTERESTS)
      throw new ProtocolError('services', `at most ${MAX_INTERESTS} on one stream`)
    const known = reach === undefined ? cursorsOf(wanted) : [parseCursor(reach), ...cursorsOf(wanted)]
    const reached = hub.reach(known)
    if (reached) return reached.then(() => subscriber.subscribe(wanted, ref))
    subscriber.subscribe(wanted, ref)
    return undefined
  }
}

/**
 * What one WebSocket's messages ask for, in order, also while one of them waits. Nothing more is read from the socket
 * meanwhile, so what is held is no more than what had been read with that message.
 */
class Inbox {
  readonly #webSocket: Pick<WebSocket, 'pause' | 'resume'>
  #held: Task[] | undefined

  constructor(webSocket: Pick<WebSocket, 'pause' | 'resume'>) {
    this.#webSocket = webSocket
  }

  add(task: Task): void {
    if (this.#held) this.#held.push(task)
    else this.#run([task])
  }

  #run(tasks: Task[]): void {
    for (const [index, task] of tasks.entries()) {
      const wait = task()
      if (wait === undefined) continue
      const held = (this.#held = tasks.slice(index + 1))
      this.#webSocket.pause()
      void wait.then(() => {
        this.#held = undefined
        this.#run(held)
        if (this.#held === undefined) this.#webSocket.resume()
      })
      return
    }
  }
}

type Task = () => Promise<void> | undefined

function* cursorsOf(wanted: readonly Wanted[]): Iterable<Cursor | undefined> {
  for (const { cursor } of wanted) yield cursor
}

class SocketSink {
  readonly remote: string
  readonly socket: Socket

  constructor(socket: Socket) {
    this.socket = socket
    this.remote = `${socket.remoteAddress ?? ''}:${socket.remotePort ?? ''}`
  }

  get unsentBytes(): number {
    return this.socket.writableLength
  }

  get sentBytes(): number {
    return this.socket.bytesWritten - this.socket.writableLength
  }

  /** Whole events only, so that nothing ever stands inside of one. */
  protected writeParts(parts: readonly Buffer[]): void {
    for (const part of parts) this.socket.write(part)
  }

  protected writeAll(events: readonly StreamEvent[], id: string | undefined, transport: Sink['transport']): void {
    if (!this.socket.writable) return
    const last = events.length - 1
    const isMany = last > 0
    if (isMany) this.socket.cork()
    for (const [index, event] of events.entries())
      this.writeParts(event.encode(transport, index === last ? id : undefined))
    if (isMany) this.socket.uncork()
  }
}

class SseSink extends SocketSink implements Sink {
  readonly transport = 'sse'
  readonly #hub: WatchHub
  readonly #random: Random
  #spreadMs = 0

  constructor(socket: Socket, hub: WatchHub, random: Random) {
    super(socket)
    this.#hub = hub
    this.#random = random
    this.#nameRetry()
  }

  write(events: readonly StreamEvent[], id: string | undefined): void {
    if (events[0]?.event === 'ping') this.#nameRetry()
    this.writeAll(events, id, 'sse')
  }

  end(reason: EndReason): void {
    if (reason === 'stalled') this.socket.destroy()
    else this.socket.end()
  }

  /** Its client takes this delay as it is, so it is drawn here; again when there are many more to share the time with. */
  #nameRetry(): void {
    const spreadMs = Math.max(RETRY_MS.spread, this.#hub.spreadMs)
    if (spreadMs === this.#spreadMs || !this.socket.writable) return
    this.#spreadMs = spreadMs
    this.socket.write(`retry: ${Math.round(RETRY_MS.least + this.#random() * spreadMs)}\n\n`)
  }
}

class WebSocketSink extends SocketSink implements Sink {
  readonly transport = 'websocket'
  readonly #webSocket: WebSocket
  readonly #clock: Clock
  readonly #silenceMs: number
  #heardMs: number

  constructor(webSocket: WebSocket, socket: Socket, options: { clock: Clock; pingMs: number }) {
    super(socket)
    this.#webSocket = webSocket
    this.#clock = options.clock
    this.#silenceMs = options.pingMs * SILENT_PINGS
    this.#heardMs = options.clock.now()
  }

  heard(): void {
    this.#heardMs = this.#clock.now()
  }

  write(events: readonly StreamEvent[], id: string | undefined): void {
    // After its close frame a WebSocket carries nothing more.
    if (this.#webSocket.readyState !== this.#webSocket.OPEN) return
    if (events[0]?.event === 'ping') {
      if (this.#clock.now() - this.#heardMs > this.#silenceMs) return this.#webSocket.terminate()
      this.socket.write(WEBSOCKET_PING)
    }
    this.writeAll(events, id, 'websocket')
  }

  end(reason: EndReason, message = ''): void {
    if (reason === 'stalled') this.#webSocket.terminate()
    else if (reason === 'stopping') this.#webSocket.close(1001, 'the registry is stopping')
    else this.#webSocket.close(1008, closeReason(message))
  }
}

/** Whole messages come as one buffer, unless the receiver is told otherwise. */
function parseJson(data: RawData): unknown {
  try {
    return JSON.parse((data as Buffer).toString())
  } catch {
    throw new ProtocolError('message', 'must be JSON')
  }
}

function reasonFor(error: unknown): string {
  if (error instanceof Refusal && error.details.errors?.[0]) {
    const [{ path, message }] = error.details.errors as [{ path: string; message: string }]
    return `${path}: ${message}`
  }
  return error instanceof ProtocolError || error instanceof Refusal ? error.message : 'the registry failed'
}

/** A close frame has room for 123 bytes. */
function closeReason(message: string): string {
  const bytes = Buffer.from(message.replaceAll(/[^\x20-\x7e]/g, '?'))
  return bytes.subarray(0, 123).toString('latin1')
}

/**
 * Gives a request that asked for an upgrade back to the server, without that wish. Node hands over every such request
 * once anyone takes upgrades; Java's HTTP client sends one with its first request to any server.
 */
function serveAnyway(server: Server, request: IncomingMessage, socket: Socket, head: Buffer): void {
  const lines = [`${request.method} ${request.url} HTTP/${request.httpVersion}`]
  const { rawHeaders } = request
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at]!
    if (!/^(upgrade|connection|http2-settings)$/i.test(name)) lines.push(`${name}: ${rawHeaders[at + 1]}`)
  }
  if (/\bclose\b/i.test(request.headers.connection ?? '')) lines.push('connection: close')
  socket.unshift(Buffer.concat([Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1'), head]))
  server.emit('connection', socket)
}
