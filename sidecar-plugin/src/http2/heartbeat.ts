import type { Http2Session } from 'node:http2'
import type { Socket } from 'node:net'
import { handleOf } from './handle.ts'

export interface HeartbeatLimits {
  /** A session from which nothing has come for so long is asked for a sign of life when somebody waits on it. */
  readonly quietMs: number
  /** How long to wait for that sign. */
  readonly pingMs: number
}

/**
 * Notices that the other side of a session is there no more: a host that loses its power or its network says nothing, not
 * even that it ends; and neither does the library once it has given a session up.
 */
export class Heartbeat {
  readonly #session: Http2Session
  readonly #socket: Socket
  readonly #limits: HeartbeatLimits
  #bytesRead = 0
  #heardMs: number
  #askedMs: number | undefined
  #lastRead = 0
  #lastWritten = 0
  #silentMs: number | undefined

  constructor(session: Http2Session, socket: Socket, limits: HeartbeatLimits, nowMs: number) {
    this.#session = session
    this.#socket = socket
    this.#limits = limits
    this.#heardMs = nowMs
  }

  /** Something was written that had to wait for the other side: it takes, if it does not send. */
  heard(nowMs: number): void {
    this.#heardMs = nowMs
  }

  /** Milliseconds since something came, as far as is known. */
  quietMs(nowMs: number): number {
    const { bytesRead } = this.#socket
    if (bytesRead !== this.#bytesRead) {
      this.#bytesRead = bytesRead
      this.#heardMs = nowMs
    }
    return nowMs - this.#heardMs
  }

  /** Asks for a sign of life, if nothing has come for long. */
  ask(nowMs: number): void {
    if (this.#askedMs !== undefined || this.quietMs(nowMs) < this.#limits.quietMs) return
    // The library asks nothing any more once it was told to close.
    if (this.#session.closed || this.#session.destroyed) return
    this.#askedMs = nowMs
    this.#session.ping((error) => {
      // One that the library did not send is no sign of life.
      if (error === null) this.#askedMs = undefined
    })
  }

  /**
   * To be called now and then.
   * @param isWaited whether somebody waits for the other side
   * @returns false when it was asked for a sign of life, and gave none in time
   */
  check(nowMs: number, isWaited: boolean): boolean {
    const quietMs = this.quietMs(nowMs)
    if (this.#askedMs !== undefined) {
      if (this.#heardMs < this.#askedMs) return nowMs - this.#askedMs < this.#limits.pingMs
      this.#askedMs = undefined
    }
    if (isWaited && quietMs >= this.#limits.quietMs) this.ask(nowMs)
    return true
  }

  /**
   * Whether the library has been silent for so long. For some faults it says GOAWAY and then reads no more, not even the
   * end, writes no more, and tells nobody. What shows it: it has stopped reading, and not because the other side does not
   * take what it writes. To be called now and then.
   */
  isSilent(nowMs: number, limitMs: number): boolean {
    if (this.#silentMs === undefined && this.#hasStopped()) this.#silentMs = nowMs
    return this.#silentMs !== undefined && nowMs - this.#silentMs >= limitMs
  }

  /** Starts reading again where the library has stopped, so that the end is heard whatever it thinks. */
  #hasStopped(): boolean {
    const { bytesRead, bytesWritten } = this.#socket
    const isStill = bytesRead === this.#lastRead && bytesWritten === this.#lastWritten
    this.#lastRead = bytesRead
    this.#lastWritten = bytesWritten
    const handle = handleOf(this.#socket)
    return isStill && handle !== null && handle.readStart() === 0 && handle.writeQueueSize === 0
  }
}
