import { createServer, STATUS_CODES, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { Server as NetServer, type AddressInfo, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import { asSidecarError, problemReply, SidecarError, type Reason } from './errors.ts'
import { valueOf } from './headers.ts'
import {
  createExchange,
  discard,
  type Direction,
  type Ending,
  type Exchange,
  type Reply,
  type Service,
} from './layer.ts'
import { PulledBody } from './request-body.ts'

/** Bounds on what a stranger may send or hold, in the unit the name ends in. */
export interface ListenerLimits {
  readonly headBytes: number
  readonly headFields: number
  readonly headMs: number
  /** Without a byte in either direction. */
  readonly idleMs: number
  readonly connections: number
}

export const DEFAULT_LISTENER_LIMITS: ListenerLimits = {
  /** Envoy's default. Smaller refuses big cookies; larger lets every connection hold more memory before it is known. */
  headBytes: 61_440,
  headFields: 100,
  /** Longer lets those who trickle bytes hold sockets. */
  headMs: 10_000,
  /** Shorter cuts long polls and quiet event streams. */
  idleMs: 300_000,
  connections: 10_000,
}

export interface ListenerOptions {
  readonly direction: Direction
  readonly serve: Service
  readonly clock: Clock
  readonly random: Random
  readonly limits?: Partial<ListenerLimits>
  /** Told of each connection that sent what is not HTTP. */
  readonly onMalformed?: (reason: Reason) => void
}

/** How long an answered caller may go on sending a body that nobody wants, before its connection is cut. */
const LINGER_MS = 2_000

/**
 * How long a connection may wait for its next request. Longer than any pool of a peer keeps one: the side that sends
 * must be the one that closes, or a request meets a connection that is just being closed.
 */
const KEEP_ALIVE_MS = 65_000

/** Nobody is on the way any more when nothing has arrived for so long. Longer makes every drain take longer. */
const QUIET_MS = 500

/**
 * An HTTP/1.1 server that turns what arrives into exchanges and replies into answers. It decides nothing about a
 * request: refusing, naming and routing are the layers' business.
 */
export class Listener {
  readonly #options: ListenerOptions
  readonly #limits: ListenerLimits
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  readonly #emptied = new Set<() => void>()
  readonly #cut = new AbortController()
  /** Requests of a connection whose answers have not left yet: pipelining makes them several. */
  readonly #underWay = new WeakMap<Duplex, Set<IncomingMessage>>()
  /** What a connection is to be told once the requests before it have their answers. */
  readonly #refusals = new WeakMap<Duplex, SidecarError>()
  #inFlight = 0
  #closing = false
  #leaving = false
  #arrivedMs = -Infinity

  constructor(options: ListenerOptions) {
    this.#options = options
    this.#limits = { ...DEFAULT_LISTENER_LIMITS, ...options.limits }
    this.#server = createServer({
      maxHeaderSize: this.#limits.headBytes,
      headersTimeout: this.#limits.headMs,
      // A body may take as long as it moves: idleMs bounds it.
      requestTimeout: 0,
      connectionsCheckingInterval: Math.min(1_000, this.#limits.headMs),
      keepAliveTimeout: KEEP_ALIVE_MS,
      noDelay: true,
      // A layer refuses a request without Host, with a reason; the server's own refusal has none.
      requireHostHeader: false,
      insecureHTTPParser: false,
    })
    const server = this.#server
    server.maxConnections = this.#limits.connections
    // Counted in #handle: the server's own limit cuts the list silently.
    server.maxHeadersCount = 0
    // A caller that has sent its request may close its half of the connection and still read the answer.
    ;(server as Server & { httpAllowHalfOpen: boolean }).httpAllowHalfOpen = true
    server.setTimeout(this.#limits.idleMs, (socket) => socket.destroy())
    server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket)
      socket.once('close', () => {
        this.#sockets.delete(socket)
        this.#settle()
      })
    })
    server.on('request', (request, response) => this.#handle(request, response, false))
    server.on('checkContinue', (request, response) => this.#handle(request, response, true))
    server.on('checkExpectation', (request, response) => this.#handle(request, response, false))
    server.on('connect', (_request, socket) =>
      this.#refuse(socket, new SidecarError('not_supported', 'CONNECT is not supported')),
    )
    server.on('clientError', (error: NodeJS.ErrnoException, socket) => this.#malformed(error, socket))
  }

  /**
   * Starts to accept.
   * @param port 0 for a free one
   * @returns the port
   * @throws the system's error when the address cannot be used
   */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(port, host, () => {
        this.#server.off('error', reject)
        resolve()
      })
    })
    return (this.#server.address() as AddressInfo).port
  }

  /** Requests whose answers have not left yet. */
  get inFlight(): number {
    return this.#inFlight
  }

  get connections(): number {
    return this.#sockets.size
  }

  /** From now on every answer closes its connection; everything is still accepted and served. */
  retire(): void {
    this.#closing = true
  }

  /** Whether {@link finish} has begun: whoever can go elsewhere should be sent there. */
  get leaving(): boolean {
    return this.#leaving
  }

  /**
   * Goes on accepting until no request has arrived for a while, for `idleMs` at most: the system resets connections
   * that wait to be accepted when the socket closes, and with them requests that are written already. Then accepts no
   * connection any more and waits for those there are. A connection without a request is left to its owner for
   * `idleMs`, because closing it could meet a request on its way; then it is closed. One with a request is cut
   * `timeoutMs` after the beginning.
   */
  async finish(options: { idleMs: number; timeoutMs: number }): Promise<void> {
    this.retire()
    this.#leaving = true
    const { clock } = this.#options
    const endMs = clock.now() + options.timeoutMs
    await this.#quiet(Math.min(options.idleMs, options.timeoutMs))
    // Not the http server's own close: that would cut idle connections at once.
    if (this.#server.listening) NetServer.prototype.close.call(this.#server)
    const cancelIdle = clock.after(options.idleMs, () => this.#server.closeIdleConnections())
    const limit = new AbortController()
    await Promise.race([this.#empty(), sleep(clock, endMs - clock.now(), limit.signal)])
    limit.abort()
    cancelIdle()
    this.close()
  }

  /** Cuts everything. */
  close(): void {
    this.#cut.abort()
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
  }

  /** Resolves when nothing has arrived for a while, or after `limitMs`. */
  async #quiet(limitMs: number): Promise<void> {
    const { clock } = this.#options
    const { signal } = this.#cut
    const endMs = clock.now() + limitMs
    for (;;) {
      const waitMs = Math.min(this.#arrivedMs + QUIET_MS, endMs) - clock.now()
      if (waitMs <= 0 || signal.aborted) break
      await sleep(clock, waitMs, signal)
    }
    // Right after the system was asked for connections, the fewest wait to be accepted.
    await new Promise((resolve) => setImmediate(resolve))
  }

  #empty(): Promise<void> {
    if (this.#sockets.size === 0) return Promise.resolve()
    return new Promise((resolve) => this.#emptied.add(resolve))
  }

  #settle(): void {
    if (this.#sockets.size > 0) return
    for (const resolve of this.#emptied) resolve()
    this.#emptied.clear()
  }

  #handle(request: IncomingMessage, response: ServerResponse, expectsContinue: boolean): void {
    const { clock, random, direction, serve } = this.#options
    const headers = request.rawHeaders
    this.#arrivedMs = clock.now()
    const hasBody =
      request.headers['transfer-encoding'] !== undefined || Number(request.headers['content-length'] ?? 0) > 0
    let waits = expectsContinue && hasBody
    const body = new PulledBody(
      request,
      () => {
        if (waits) response.writeContinue()
        waits = false
      },
      (bytes) => (exchange.bytesIn += bytes),
    )
    let end!: (ending: Ending) => void
    const ended = new Promise<Ending>((resolve) => (end = resolve))
    const exchange = createExchange({
      direction,
      id: valueOf(headers, 'x-request-id')?.slice(0, 128) || randomId(random),
      startedMs: clock.now(),
      peer: request.socket.remoteAddress ?? '',
      httpVersion: request.httpVersion,
      method: request.method ?? '',
      target: request.url ?? '',
      headers,
      body: hasBody ? body : undefined,
      ended,
    })
    const { socket } = request
    const answer = new Answer(exchange, request, response, clock, (ending) => {
      this.#inFlight--
      this.#underWay.get(socket)?.delete(request)
      end(ending)
      const refusal = this.#refusals.get(socket)
      if (refusal) this.#refuseInTurn(socket, refusal)
    })
    this.#inFlight++
    const underWay = this.#underWay.get(socket)
    if (underWay) underWay.add(request)
    else this.#underWay.set(socket, new Set([request]))
    const tooMany = headers.length > this.#limits.headFields * 2
    const served = tooMany
      ? Promise.reject(new SidecarError('head_too_large', `more than ${this.#limits.headFields} fields`))
      : serve(exchange)
    served
      .catch((error: unknown) => problemReply(asSidecarError(error)))
      // A caller that still waits to be told to continue would send its body, or not, as it likes.
      .then((reply) => answer.send(reply, this.#closing || waits))
      .catch((error: unknown) => answer.fail(asSidecarError(error)))
  }

  #malformed(error: NodeJS.ErrnoException, socket: Duplex): void {
    if (error.code === 'ECONNRESET' || !socket.writable) {
      socket.destroy()
      return
    }
    const refusal =
      error.code === 'HPE_HEADER_OVERFLOW'
        ? new SidecarError('head_too_large', `more than ${this.#limits.headBytes} bytes`)
        : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
          ? new SidecarError('request_timeout', `the head took more than ${this.#limits.headMs} ms`)
          : new SidecarError('bad_request', `not HTTP/1.1: ${error.code ?? 'unreadable'}`)
    this.#refuseInTurn(socket, refusal)
  }

  /**
   * What came whole before the bytes that nobody can read was served, and its caller takes the first answer for that
   * of the first request. A request that is not whole has those bytes in its body: it is what is refused.
   */
  #refuseInTurn(socket: Duplex, error: SidecarError): void {
    const isAwaited = [...(this.#underWay.get(socket) ?? [])].some((request) => request.complete)
    if (isAwaited) this.#refusals.set(socket, error)
    else {
      this.#refusals.delete(socket)
      if (socket.writable) this.#refuse(socket, error)
      else socket.destroy()
    }
  }

  /** Answers below HTTP, where no response object exists. */
  #refuse(socket: Duplex, error: SidecarError): void {
    this.#options.onMalformed?.(error.reason)
    // An answer of which a part has left already cannot be followed by another.
    const pending = (socket as Duplex & { _httpMessage?: ServerResponse })._httpMessage
    if (pending?.headersSent) {
      socket.destroy()
      return
    }
    const reply = problemReply(error)
    const fields = [...reply.headers, 'x-holdfast-reason', error.reason, 'connection', 'close']
    let head = `HTTP/1.1 ${error.status} ${STATUS_CODES[error.status] ?? ''}\r\n`
    for (let i = 0; i < fields.length; i += 2) head += `${fields[i]}: ${fields[i + 1]}\r\n`
    socket.on('error', () => socket.destroy())
    socket.end(Buffer.concat([Buffer.from(`${head}\r\n`), reply.body as Buffer]), () => socket.destroy())
  }
}

/** Writes one reply, and tells how it went. */
class Answer {
  readonly #exchange: Exchange
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  readonly #clock: Clock
  readonly #onEnd: (ending: Ending) => void
  #body: Exclude<Reply['body'], Buffer> = undefined
  #bytesOut = 0
  #over = false

  constructor(
    exchange: Exchange,
    request: IncomingMessage,
    response: ServerResponse,
    clock: Clock,
    onEnd: (ending: Ending) => void,
  ) {
    this.#exchange = exchange
    this.#request = request
    this.#response = response
    this.#clock = clock
    this.#onEnd = onEnd
    response.on('error', () => response.destroy())
    response.on('close', () => {
      if (!response.writableFinished)
        this.#end(new SidecarError('caller_gone', 'the caller closed its connection', { delivered: true }))
    })
    response.on('finish', () => {
      this.#end(undefined)
      this.#linger()
    })
  }

  send(reply: Reply, closing: boolean): void {
    const response = this.#response
    if (this.#over || response.destroyed) {
      discard(reply)
      return
    }
    const headers = [...reply.headers]
    if (reply.reason !== undefined) headers.push('x-holdfast-reason', reply.reason)
    if (closing) headers.push('connection', 'close')
    try {
      const statusText = reply.statusText && /^[\t\x20-\x7e]*$/.test(reply.statusText) ? reply.statusText : undefined
      // Always said: the response remembers the text of a head that could not be written.
      response.writeHead(reply.status, statusText ?? STATUS_CODES[reply.status] ?? '', headers)
    } catch (error) {
      discard(reply)
      if (reply.own || response.headersSent) throw error
      const refused = new SidecarError('upstream_protocol', 'the answer has a head that cannot be passed on', {
        delivered: true,
        cause: error,
      })
      this.send(problemReply(refused), true)
      return
    }
    if (reply.body === undefined || Buffer.isBuffer(reply.body)) {
      this.#bytesOut = this.#exchange.method === 'HEAD' ? 0 : (reply.body?.length ?? 0)
      response.end(reply.body)
      return
    }
    this.#pour(reply.body)
  }

  /** After the head there is no other way to say that something failed. */
  fail(error: SidecarError): void {
    this.#end(error)
    // A reset: to a body that ends with its connection, a plain close would look like the end. The socket's own
    // resetAndDestroy says a polite goodbye first, which is just that.
    const socket = this.#request.socket as Socket & { resetAndClosing: boolean }
    socket.resetAndClosing = true
    socket.destroy()
  }

  #pour(body: Exclude<Reply['body'], Buffer | undefined>): void {
    const response = this.#response
    this.#body = body
    let first = true
    const resume = () => body.resume()
    response.on('drain', resume)
    body.on('data', (chunk: Buffer) => {
      first = false
      this.#bytesOut += chunk.length
      if (!response.write(chunk)) body.pause()
    })
    body.once('end', () => response.end())
    body.once('error', (error) => this.fail(asSidecarError(error)))
    body.once('close', () => {
      response.off('drain', resume)
      if (!body.readableEnded && !this.#over)
        this.fail(new SidecarError('upstream_reset', 'the body broke off', { delivered: true }))
    })
    // The head goes with the first piece of the body in one write, unless that piece takes its time.
    setImmediate(() => {
      if (first && !response.writableEnded && !response.destroyed) response.flushHeaders()
    })
  }

  #end(error: SidecarError | undefined): void {
    if (this.#over) return
    this.#over = true
    if (error) {
      this.#exchange.abort(error)
      this.#body?.destroy()
    }
    this.#onEnd({ error, bytesIn: this.#exchange.bytesIn, bytesOut: this.#bytesOut })
  }

  /** An answer may come before the request's body has ended. The rest is read and dropped, within bounds. */
  #linger(): void {
    const request = this.#request
    if (request.complete || request.destroyed) return
    const cancel = this.#clock.after(LINGER_MS, () => request.socket.destroy())
    request.once('close', cancel)
    request.resume()
  }
}

/** 128 bits in hexadecimal. */
function randomId(random: Random): string {
  let id = ''
  for (let part = 0; part < 4; part++)
    id += Math.floor(random() * 0x1_0000_0000)
      .toString(16)
      .padStart(8, '0')
  return id
}
