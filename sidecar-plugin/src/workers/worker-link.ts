import type { Clock } from '@holdfast/registry-client/clock'
import { isFromWorker, type Question, type WorkerApi } from './messages.ts'
import type { Fork, RawConnection, WorkerProcess } from './worker-process.ts'

/** A worker that gives no answer: it has ended, or is too busy. */
export class NoAnswerError extends Error {
  readonly code = 'no_answer'
  constructor(message: string) {
    super(message)
    this.name = 'NoAnswerError'
  }
}

/** A connection on its way to a worker. */
export interface Passed {
  readonly opening: string
  readonly raw: RawConnection
}

export interface LinkEvents {
  readonly took: (link: WorkerLink) => void
  /** The connection that it was sent has not come: it is this process’s again. */
  readonly lost: (link: WorkerLink) => void
  readonly leave: (link: WorkerLink, opening: string) => void
  readonly ended: (link: WorkerLink, reason: string) => void
}

/** Questions that a worker has not answered yet. What it does not read waits in this process. */
const UNANSWERED_MAX = 256

/**
 * How long a connection may be on its way until the worker is asked, in milliseconds, and how often it may leave that
 * unanswered until it is killed. Shorter kills one that collects garbage; longer lets the caller wait who is on its way.
 */
const PASSING = { doubtMs: 500, askMs: 2_000, asks: 2 }

interface Asked {
  answer(value: unknown): void
  fail(error: Error): void
}

/** One process of a worker, and what is between it and this one. */
export class WorkerLink {
  readonly #clock: Clock
  readonly #events: LinkEvents
  readonly #process: WorkerProcess
  readonly #asked = new Map<number, Asked>()
  #ids = 0
  #unanswered = 0
  #killedFor: string | undefined
  #isEnded = false
  #cancelDoubt: () => void = () => {}
  #passing: Passed | undefined
  /** Whether it has begun to serve. */
  isListening = false
  /** The openings of which it takes connections. */
  readonly takes = new Set<string>()

  constructor(options: { clock: Clock; fork: Fork; events: LinkEvents }) {
    this.#clock = options.clock
    this.#events = options.events
    this.#process = options.fork({
      message: (message) => this.#heard(message),
      ended: (reason) => this.#ended(this.#killedFor ?? reason),
    })
  }

  get pid(): number | undefined {
    return this.#process.pid
  }

  /**
   * Asks, and waits `limitMs` for the answer.
   * @throws NoAnswerError
   */
  ask<Q extends Question>(
    question: Q,
    limitMs: number,
    ...args: Parameters<WorkerApi[Q]>
  ): Promise<Awaited<ReturnType<WorkerApi[Q]>>> {
    if (this.#unanswered >= UNANSWERED_MAX) this.kill(`does not answer: ${UNANSWERED_MAX} questions wait`)
    if (this.#isEnded || this.#killedFor !== undefined)
      return Promise.reject(new NoAnswerError(`the worker has ended: ${this.#killedFor ?? 'by itself'}`))
    const id = ++this.#ids
    return new Promise((resolve, reject) => {
      const cancel = this.#clock.after(limitMs, () => {
        this.#asked.delete(id)
        reject(new NoAnswerError(`no answer to ${question} in ${limitMs} ms`))
      })
      this.#asked.set(id, {
        answer(value) {
          cancel()
          resolve(value as Awaited<ReturnType<WorkerApi[Q]>>)
        },
        fail(error) {
          cancel()
          reject(error)
        },
      })
      this.#unanswered++
      this.#process.send({ kind: 'ask', id, question, args })
    })
  }

  /** One at a time. */
  pass(connection: Passed): void {
    this.#passing = connection
    this.#process.send({ kind: 'connection', opening: connection.opening }, connection.raw)
    this.#cancelDoubt = this.#clock.after(PASSING.doubtMs, () => void this.#doubt(connection))
  }

  /** The connection that it has been sent, if it has not said that it has it: after this it is not on its way any more. */
  release(): Passed | undefined {
    this.#cancelDoubt()
    const passing = this.#passing
    this.#passing = undefined
    return passing
  }

  left(opening: string): void {
    this.#process.send({ kind: 'left', opening })
  }

  kill(reason: string): void {
    this.#killedFor ??= reason
    this.#process.kill()
  }

  /**
   * Messages keep their order. Whoever answers a question and has not taken the connection that was sent before has lost
   * it: the system drops one for which a process has no descriptor left. Whoever does not answer may still take it, so
   * that no other can have it while that one lives.
   */
  async #doubt(connection: Passed): Promise<void> {
    // More than once, so that a machine that stands still for a while is nobody's fault.
    for (let asks = 0; asks < PASSING.asks && this.#passing === connection; asks++) {
      try {
        await this.ask('report', PASSING.askMs, false)
      } catch (error) {
        if (error instanceof NoAnswerError) continue
      }
      if (this.#passing === connection) this.#events.lost(this)
      return
    }
    if (this.#passing === connection) this.kill('does not take the connection that it was given, nor answer')
  }

  #heard(message: unknown): void {
    if (!isFromWorker(message)) return
    switch (message.kind) {
      case 'took':
        return this.#events.took(this)
      case 'leave':
        return this.#events.leave(this, message.opening)
      default: {
        this.#unanswered--
        const asked = this.#asked.get(message.id)
        this.#asked.delete(message.id)
        if (message.kind === 'answer') return asked?.answer(message.value)
        const { code } = message
        asked?.fail(Object.assign(new Error(message.message), code !== undefined && { code }))
      }
    }
  }

  #ended(reason: string): void {
    this.#isEnded = true
    for (const asked of this.#asked.values()) asked.fail(new NoAnswerError(`the worker has ended: ${reason}`))
    this.#asked.clear()
    this.#events.ended(this, reason)
  }
}
