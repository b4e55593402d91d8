import type { Passed, WorkerLink } from './worker-link.ts'

/** Each holds a socket. As many come in a moment when all workers start again. */
const WAITING_MAX = 1_024

/**
 * Hands connections to workers, one at a time each, in turn. One that has not taken its last yet is passed over, so that
 * who is busy gets fewer. A connection is held here until a worker has it, and goes to another when that one dies
 * before, or does not get it: nothing of it has been read then.
 *
 * In turn, and not whoever is first to accept: the system wakes the same process again and again, which leaves
 * connections that live long on one core. It costs a few messages per connection, and nothing per request. `node:cluster`
 * takes turns, too, but loses what it has just handed to a process that dies: the caller waits for ever, and the socket
 * stays open here.
 */
export class Handoff {
  #waiting: Passed[] = []
  /** In the order in which it is their turn. */
  #free: WorkerLink[] = []
  #refused = 0
  #returned = 0

  /** Connections that were closed because too many waited for a worker. */
  get refused(): number {
    return this.#refused
  }

  /** Connections that did not get to the worker that they were given to. */
  get returned(): number {
    return this.#returned
  }

  get waiting(): number {
    return this.#waiting.length
  }

  arrived(connection: Passed): void {
    if (this.#waiting.length >= WAITING_MAX) {
      this.#refused++
      connection.raw.close()
      return
    }
    this.#waiting.push(connection)
    this.#pump()
  }

  join(link: WorkerLink): void {
    this.#free.push(link)
    this.#pump()
  }

  /** It has what it was sent. */
  took(link: WorkerLink): void {
    const taken = link.release()
    if (taken === undefined) return
    taken.raw.close()
    this.join(link)
  }

  /** It has not got what it was sent, and gets no more until it joins again. */
  lost(link: WorkerLink): void {
    this.#returned++
    this.#takeBack(link)
  }

  /** It is gone. */
  remove(link: WorkerLink): void {
    this.#free = this.#free.filter((other) => other !== link)
    this.#takeBack(link)
  }

  /** Closes what waits for an opening that nobody serves any more. */
  drop(opening: string): void {
    for (const { raw } of this.#waiting.filter((connection) => connection.opening === opening)) raw.close()
    this.#waiting = this.#waiting.filter((connection) => connection.opening !== opening)
  }

  #takeBack(link: WorkerLink): void {
    const connection = link.release()
    // Before those who came later.
    if (connection) this.#waiting.unshift(connection)
    this.#pump()
  }

  #pump(): void {
    for (let at = 0; at < this.#waiting.length && this.#free.length > 0;) {
      const connection = this.#waiting[at]!
      const index = this.#free.findIndex((link) => link.takes.has(connection.opening))
      if (index < 0) {
        at++
        continue
      }
      this.#waiting.splice(at, 1)
      const [link] = this.#free.splice(index, 1)
      link!.pass(connection)
    }
  }
}
