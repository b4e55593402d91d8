/**
 * What each connection still has to answer. Node puts the answers to pipelined requests in order; whatever is written
 * to a socket beside them (an event stream, a handshake, a refusal of what is no request) has to know what comes first.
 */

import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'

interface Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
}

export class Exchanges {
  readonly #open = new Map<Duplex, Set<Exchange>>()

  attach(server: Server): void {
    const begin = (request: IncomingMessage, response: ServerResponse) => this.#begin({ request, response })
    // Before anyone who answers.
    server.prependListener('request', begin)
    server.prependListener('checkExpectation', begin)
  }

  /** Whether a request's answer is the next that its connection waits for. */
  isNext(request: IncomingMessage): boolean {
    const [first] = this.#open.get(request.socket) ?? []
    return first === undefined || first.request === request
  }

  isIdle(socket: Duplex): boolean {
    return (this.#open.get(socket)?.size ?? 0) === 0
  }

  /** Whether a request's head has come, and its body not yet. */
  isReceiving(socket: Duplex): boolean {
    return [...(this.#open.get(socket) ?? [])].some(({ request }) => !request.complete)
  }

  /** Runs `then` once every request that came whole is answered; not at all when the connection ends before. */
  afterAnswers(socket: Duplex, then: () => void): void {
    const waiting = [...(this.#open.get(socket) ?? [])].filter(({ request }) => request.complete)
    const last = waiting.at(-1)
    if (last === undefined) then()
    else last.response.once('close', then)
  }

  /** Ends connections whose request has not come whole. */
  cutUnfinished(): void {
    for (const [socket, open] of this.#open) if ([...open].some(({ request }) => !request.complete)) socket.destroy()
  }

  #begin(exchange: Exchange): void {
    const { socket } = exchange.request
    let open = this.#open.get(socket)
    if (open === undefined) {
      this.#open.set(socket, (open = new Set()))
      socket.once('close', () => this.#open.delete(socket))
    }
    // Again, when someone takes an expectation for a request.
    if ([...open].some(({ request }) => request === exchange.request)) return
    const held = open
    held.add(exchange)
    exchange.response.once('close', () => held.delete(exchange))
  }
}
