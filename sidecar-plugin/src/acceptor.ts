import { createServer, type AddressInfo, type Server, type Socket } from 'node:net'

/** Where a listener's connections come from. */
export interface Acceptor {
  /**
   * @param port 0 for a free one
   * @returns the port
   * @throws the system's error when the address cannot be used
   */
  listen(host: string, port: number): Promise<number>
  /** Once it resolves, no connection comes any more. */
  close(): Promise<void>
}

/** @param accepted takes each connection, of which nothing has been read */
export type AcceptorFactory = (accepted: (socket: Socket) => void) => Acceptor

/** A port of this process. */
export class PortAcceptor implements Acceptor {
  readonly #server: Server

  constructor(accepted: (socket: Socket) => void) {
    this.#server = createServer({ pauseOnConnect: true, noDelay: true, allowHalfOpen: true }, accepted)
    // One that could not be accepted, for want of a descriptor: it waits, or has been closed. The port stays.
    this.#server.on('error', () => {})
  }

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

  close(): Promise<void> {
    this.#server.close()
    return Promise.resolve()
  }
}

export const portAcceptor: AcceptorFactory = (accepted) => new PortAcceptor(accepted)
