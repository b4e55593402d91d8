/** An operator with a command line: asks one replica after the other until one answers, one thing at a time. */

import type { Random } from '@holdfast/registry-client/clock'
import { Host, SimProcess } from './process.ts'
import type { Scheduler } from './scheduler.ts'
import type { Network } from './sim-network.ts'
import { SimClientNetwork, type AnswerMessage, type RequestMessage } from './sim-wire.ts'

const TIMEOUT_MS = 5_000
const AGAIN_MS = 1_000
const TRIES = 6

export interface OperatorOptions {
  readonly scheduler: Scheduler
  readonly network: Network
  readonly addresses: readonly string[]
  readonly random: Random
  readonly answered: (request: RequestMessage, answer: AnswerMessage, sentMs: number) => void
}

export class Operator {
  readonly #options: OperatorOptions
  readonly #process: SimProcess
  readonly #network: SimClientNetwork
  #last: Promise<void> = Promise.resolve()
  #closed = false

  constructor(options: OperatorOptions) {
    this.#options = options
    this.#process = new SimProcess('operator', new Host('operator'), options.scheduler)
    const observer = {
      answered: options.answered,
      sent() {},
      received() {},
      opened() {},
      closed() {},
      serves: () => true,
    }
    this.#network = new SimClientNetwork(options.network, this.#process, options.random, observer)
  }

  override(service: string, id: string, weight: number | null): void {
    this.#ask('PATCH', nodePath(service, id), { override: weight === null ? null : { weight } })
  }

  deregister(service: string, id: string): void {
    this.#ask('DELETE', nodePath(service, id))
  }

  register(service: string, id: string): void {
    this.#ask('PUT', nodePath(service, id), { host: '10.0.0.9', port: 9_000 })
  }

  policy(service: string, timeout: string | null): void {
    const path = `/v1/services/${service}/policy`
    if (timeout === null) this.#ask('DELETE', path)
    else this.#ask('PUT', path, { timeout })
  }

  /** What has not begun is left. */
  close(): void {
    this.#closed = true
  }

  #ask(method: string, path: string, body?: object): void {
    this.#last = this.#last.then(() => this.#askNow(method, path, body))
  }

  async #askNow(method: string, path: string, body: object | undefined): Promise<void> {
    const { addresses, random } = this.#options
    for (let attempt = 0; attempt < TRIES && !this.#closed; attempt++) {
      const address = addresses[Math.floor(random() * addresses.length)]!
      const late = new AbortController()
      const cancel = this.#process.after(TIMEOUT_MS, () => late.abort(new Error('no answer')))
      try {
        const { status } = await this.#network.request({
          method,
          url: `http://${address}${path}`,
          signal: late.signal,
          ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
        })
        if (status < 500) return
      } catch {
        // The next may do better.
      } finally {
        cancel()
      }
      await new Promise<void>((resolve) => void this.#process.after(AGAIN_MS, resolve))
    }
  }
}

function nodePath(service: string, id: string): string {
  return `/v1/services/${service}/nodes/${id}`
}
