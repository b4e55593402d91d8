import type { HttpAnswer, HttpCall, Network, Stream, StreamHandlers } from '../../registry-client/src/network.ts'
import { settle } from './manual-clock.ts'

/** A stream that the client opened, and the test plays. */
export class ScriptedStream implements Stream {
  readonly url: string
  readonly sent: Record<string, unknown>[] = []
  readonly handlers: StreamHandlers
  closed = false

  constructor(url: string, handlers: StreamHandlers) {
    this.url = url
    this.handlers = handlers
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text) as Record<string, unknown>)
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    // As a socket does: the word of its end comes later.
    queueMicrotask(() => this.handlers.close('closed by the client'))
  }

  /** The handshake succeeds. */
  async accept(): Promise<this> {
    this.handlers.open()
    await settle()
    return this
  }

  /** A ping says that all that was asked for has been sent, unless its data says otherwise. */
  async event(event: string, data: object = {}, id?: string): Promise<void> {
    const ref = this.sent.findLast(({ type }) => type === 'subscribe')?.ref
    const told = event === 'ping' ? { subscribed: ref, ...data } : data
    this.handlers.message(JSON.stringify({ event, data: told, ...(id !== undefined && { id }) }))
    await settle()
  }

  async raw(text: string): Promise<void> {
    this.handlers.message(text)
    await settle()
  }

  async cut(reason = 'connection reset'): Promise<void> {
    this.closed = true
    this.handlers.close(reason)
    await settle()
  }

  /** The services of each subscribe message so far, in one list. */
  get subscribed(): { namespace: string; service: string; cursor?: string }[] {
    return this.sent
      .filter((message) => message.type === 'subscribe')
      .flatMap((message) => message.services as { namespace: string; service: string; cursor?: string }[])
  }
}

export interface ScriptedCall extends HttpCall {
  readonly path: string
  readonly json: Record<string, unknown> | undefined
}

export type Responder = (call: ScriptedCall) => Promise<HttpAnswer> | HttpAnswer

/** A network whose streams and answers the test controls. Without a responder nothing answers. */
export class ScriptedNetwork implements Network {
  readonly streams: ScriptedStream[] = []
  readonly calls: ScriptedCall[] = []
  /** Addresses that were asked for a connection. */
  readonly probes: string[] = []
  /** Without one nothing takes a connection. */
  listens: (address: string) => boolean = () => false
  respond: Responder = () => Promise.reject(new Error('connect ECONNREFUSED'))

  async request(call: HttpCall): Promise<HttpAnswer> {
    const { pathname, search } = new URL(call.url)
    const json = call.body === undefined ? undefined : (JSON.parse(call.body) as Record<string, unknown>)
    const scripted = { ...call, path: pathname + search, json }
    this.calls.push(scripted)
    if (call.signal.aborted) throw call.signal.reason
    return new Promise<HttpAnswer>((resolve, reject) => {
      call.signal.addEventListener('abort', () => reject(call.signal.reason), { once: true })
      Promise.resolve()
        .then(() => this.respond(scripted))
        .then(resolve, reject)
    })
  }

  open(url: string, handlers: StreamHandlers): Stream {
    const stream = new ScriptedStream(url, handlers)
    this.streams.push(stream)
    return stream
  }

  probe(host: string, port: number): Promise<'ok' | 'failed'> {
    this.probes.push(`${host}:${port}`)
    return Promise.resolve(this.listens(`${host}:${port}`) ? 'ok' : 'failed')
  }

  /** The stream opened last. */
  get stream(): ScriptedStream {
    const stream = this.streams.at(-1)
    if (stream === undefined) throw new Error('no stream was opened')
    return stream
  }
}

export function answer(status: number, body?: unknown): HttpAnswer {
  return { status, header: () => undefined, body: body === undefined ? '' : JSON.stringify(body) }
}

export function problem(status: number, code: string, more: object = {}): HttpAnswer {
  return answer(status, { type: 'about:blank', title: code, status, code, ...more })
}

/** What never answers: the caller's own time limit has to end it. */
export function silence(): Promise<HttpAnswer> {
  return new Promise(() => {})
}
