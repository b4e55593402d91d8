import type { Socket } from 'node:net'
import type { Acceptor, AcceptorFactory } from '../acceptor.ts'

/** Where a worker's connections come from: the sidecar holds the ports, and hands over each connection. */
export class HandedAcceptors {
  readonly #leave: (opening: string) => void
  readonly #accepted = new Map<string, (socket: Socket) => void>()
  readonly #left = new Map<string, () => void>()
  #isAlone = false

  /** @param leave tells the sidecar that no more connections of an opening are wanted */
  constructor(leave: (opening: string) => void) {
    this.#leave = leave
  }

  of(opening: string): AcceptorFactory {
    return (accepted): Acceptor => ({
      listen: (_host, port) => {
        this.#accepted.set(opening, accepted)
        return Promise.resolve(port)
      },
      close: () => {
        if (this.#isAlone || !this.#accepted.has(opening)) return Promise.resolve()
        this.#leave(opening)
        // Until then some may be on their way.
        return new Promise((resolve) => this.#left.set(opening, resolve))
      },
    })
  }

  arrived(opening: string, socket: Socket): void {
    const accepted = this.#accepted.get(opening)
    if (accepted) accepted(socket)
    else socket.destroy()
  }

  /** None comes any more. */
  left(opening: string): void {
    this.#accepted.delete(opening)
    this.#left.get(opening)?.()
    this.#left.delete(opening)
  }

  /** The sidecar is gone, and with it all ports. */
  leftAlone(): void {
    this.#isAlone = true
    for (const opening of [...this.#accepted.keys()]) this.left(opening)
  }
}
