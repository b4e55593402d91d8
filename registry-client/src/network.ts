/** The only sockets of the client library, behind an interface that a simulation can play. */

import type { Agent } from 'node:http'
import { connect } from 'node:net'
import type * as Ws from 'ws'
import { sleep, systemClock } from './clock.ts'

export interface HttpAnswer {
  readonly status: number
  readonly header: (name: string) => string | undefined
  readonly body: string
}

export interface HttpCall {
  readonly method: string
  readonly url: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string
  /** A longer answer is cut off, and none. Default 64 MiB. */
  readonly maxBytes?: number
  /** Told of each piece of the answer's body as it comes. */
  readonly received?: (bytes: number) => void
  readonly signal: AbortSignal
}

export interface StreamHandlers {
  open(): void
  message(text: string): void
  /** Called once, also when the stream never opened. */
  close(reason: string): void
}

export interface Stream {
  send(text: string): void
  /** Abrupt; `close` of the handlers still follows. */
  close(): void
}

export interface Network {
  /** Rejects when no answer came; any status is an answer. */
  request(call: HttpCall): Promise<HttpAnswer>
  /** Opens a WebSocket. Never throws: a failure arrives as `close`. */
  open(url: string, handlers: StreamHandlers): Stream
  /**
   * Whether something takes a connection there, which is closed at once; a signal that aborts is a failure. `ignored`:
   * this host could not even try. Never rejects.
   */
  probe(host: string, port: number, signal: AbortSignal): Promise<'ok' | 'failed' | 'ignored'>
}

/** Errors of a connection that say something of this host alone. */
const OWN_FAULTS = new Set(['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM', 'EADDRNOTAVAIL', 'EACCES', 'EPERM', 'EAI_AGAIN'])

/** A registry sends a ping every few seconds and no single frame near this size; what exceeds it is not a registry. */
const MAX_MESSAGE_BYTES = 64 * 1_048_576
const HANDSHAKE_TIMEOUT_MS = 5_000

/** Larger than any answer: a page of a thousand services, or the view of a hundred thousand nodes. */
const MAX_ANSWER_BYTES = 64 * 1_048_576

/**
 * To load the WebSocket library takes as long as all else at the start of a process. So much later, what is on disk has
 * answered before.
 */
const LOAD_AFTER_MS = 20

let webSockets: Promise<typeof Ws> | undefined

async function loadWebSockets(): Promise<typeof Ws> {
  await sleep(systemClock, LOAD_AFTER_MS)
  return import('ws')
}

const agents = new Map<string, Agent>()

export const systemNetwork: Network = {
  // Not `fetch`, which refuses a registry on any of some eighty ports that browsers are kept from.
  async request({ method, url, headers, body, maxBytes = MAX_ANSWER_BYTES, received, signal }) {
    const target = new URL(url)
    const { protocol } = target
    const { default: http } = protocol === 'https:' ? await import('node:https') : await import('node:http')
    const agent = agents.get(protocol) ?? new http.Agent({ keepAlive: true })
    agents.set(protocol, agent)
    return new Promise((resolve, reject) => {
      const fail = (error: Error) => reject(new Error(reasonOf(signal.aborted ? signal.reason : error)))
      const request = http.request(
        target,
        {
          method,
          agent,
          headers: { ...headers, ...(body !== undefined && { 'content-length': Buffer.byteLength(body) }) },
          signal,
        },
        (response) => {
          const chunks: Buffer[] = []
          let bytes = 0
          response.on('data', (chunk: Buffer) => {
            bytes += chunk.length
            received?.(chunk.length)
            if (bytes > maxBytes) response.destroy(new Error(`an answer of over ${maxBytes} bytes`))
            else chunks.push(chunk)
          })
          response.on('error', fail)
          response.on('end', () => {
            const header = (name: string) => response.headers[name.toLowerCase()]?.toString()
            resolve({ status: response.statusCode ?? 0, header, body: Buffer.concat(chunks).toString('utf8') })
          })
        },
      )
      request.on('error', fail)
      request.end(body)
    })
  },

  open(url, handlers) {
    let closed = false
    let stream: Stream | undefined
    const begin = async () => {
      const { WebSocket } = await (webSockets ??= loadWebSockets())
      if (closed) return handlers.close('closed')
      const socket = new WebSocket(url.replace(/^http/, 'ws'), {
        handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
        maxPayload: MAX_MESSAGE_BYTES,
        perMessageDeflate: false,
      })
      let reason: string | undefined
      socket.on('open', () => handlers.open())
      socket.on('message', (data) => handlers.message((data as Buffer).toString('utf8')))
      socket.on('error', (error) => (reason ??= reasonOf(error)))
      socket.on('close', (code, text) => handlers.close(reason ?? `closed ${code} ${text.toString()}`.trim()))
      stream = {
        send: (text) => {
          if (socket.readyState === WebSocket.OPEN) socket.send(text)
        },
        close: () => socket.terminate(),
      }
    }
    // A URL that cannot be one.
    begin().catch((error: unknown) => handlers.close(reasonOf(error)))
    return {
      send: (text) => stream?.send(text),
      close: () => {
        closed = true
        stream?.close()
      },
    }
  },

  probe(host, port, signal) {
    return new Promise((resolve) => {
      const socket = connect({ host, port, signal })
      socket.on('connect', () => {
        resolve('ok')
        socket.destroy()
      })
      socket.on('error', (error: NodeJS.ErrnoException) =>
        resolve(OWN_FAULTS.has(codeOf(error)) ? 'ignored' : 'failed'),
      )
    })
  },
}

function codeOf(error: NodeJS.ErrnoException): string {
  const first: unknown = error instanceof AggregateError ? error.errors[0] : error
  return (first as NodeJS.ErrnoException).code ?? ''
}

/**
 * The innermost reason of a network error: `fetch` hides it as a cause, a dual-stack connect in a list. Without the
 * passwords of URLs, which an error may repeat.
 */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return maskUrl(String(error))
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0])
  if (error.cause instanceof Error) return reasonOf(error.cause)
  return maskUrl(error.message || ((error as NodeJS.ErrnoException).code ?? error.name))
}

const CREDENTIALS = /\b((?:https?|wss?):\/\/)(?:([^\s/?#:@"\\]+):)?[^\s/?#"\\]*@/gi

/**
 * A URL, or a text with URLs in it, as it may be shown: a password is for the one that is asked, and neither logs nor
 * answers show it. A name that stands alone is masked too, since it may be a token.
 */
export function maskUrl(text: string): string {
  return text.replace(CREDENTIALS, (_, scheme: string, user?: string) => `${scheme}${user ? `${user}:` : ''}***@`)
}
