/** Steady calls to services, each one counted by how it ended and by which view served it. */

import http from 'node:http'

export interface Counts {
  sent: number
  failed: number
  /** Calls whose sidecar chose the node from a view in memory that the registry has confirmed. */
  memory: number
  /** … from a view read from its file, not confirmed since. */
  file: number
  /** … that waited for the registry, on the first use of a service. */
  registry: number
  /** The longest call, in milliseconds. */
  longestMs: number
  readonly failures: string[]
}

export function noCounts(): Counts {
  return { sent: 0, failed: 0, memory: 0, file: 0, registry: 0, longestMs: 0, failures: [] }
}

/** A failure that would have happened again a thousand times is told a few times only. */
const KEPT_FAILURES = 5

interface Answer {
  readonly status: number
  readonly body: string
}

/**
 * One worker after the other calls the given URLs in turn; `pause` lets the calls under way end and sends no more.
 */
export class Load {
  readonly #agent = new http.Agent({ keepAlive: true })
  readonly #url: () => string
  readonly #view: (body: string) => string | undefined
  #workers: Promise<void>[] = []
  #running = false
  counts = noCounts()

  /**
   * @param url the next call
   * @param view reads from an answer which view served it: `memory`, `file` or `registry`
   */
  constructor(url: () => string, view: (body: string) => string | undefined) {
    this.#url = url
    this.#view = view
  }

  run(workers: number): void {
    this.#running = true
    this.#workers = Array.from({ length: workers }, () => this.#work())
  }

  /** Returns when the last call under way has ended. */
  async pause(): Promise<void> {
    this.#running = false
    await Promise.all(this.#workers)
  }

  /** The counts since the last time, and new ones from here on. */
  take(): Counts {
    const { counts } = this
    this.counts = noCounts()
    return counts
  }

  close(): void {
    this.#agent.destroy()
  }

  async #work(): Promise<void> {
    while (this.#running) {
      const url = this.#url()
      const startMs = performance.now()
      const answer = await this.#call(url).catch((error: Error) => error)
      const tookMs = performance.now() - startMs
      const { counts } = this
      counts.sent++
      counts.longestMs = Math.max(counts.longestMs, tookMs)
      if (answer instanceof Error || answer.status !== 200) {
        counts.failed++
        const reason = answer instanceof Error ? answer.message : `${answer.status} ${answer.body.trim()}`
        if (counts.failures.length < KEPT_FAILURES) counts.failures.push(`${url}: ${reason.slice(0, 300)}`)
        // A dead mesh must not turn the drill into a busy loop.
        await new Promise((resolve) => setTimeout(resolve, 20))
        continue
      }
      const view = this.#view(answer.body)
      if (view === 'memory' || view === 'file' || view === 'registry') counts[view]++
    }
  }

  #call(url: string): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const request = http.get(url, { agent: this.#agent, timeout: 20_000 }, (response) => {
        let body = ''
        response.setEncoding('utf8')
        response.on('data', (chunk: string) => (body += chunk))
        response.on('error', reject)
        response.on('end', () => resolve({ status: response.statusCode ?? 0, body }))
      })
      request.on('timeout', () => request.destroy(new Error('no answer in 20 s')))
      request.on('error', reject)
    })
  }
}

export function add(a: Counts, b: Counts): Counts {
  return {
    sent: a.sent + b.sent,
    failed: a.failed + b.failed,
    memory: a.memory + b.memory,
    file: a.file + b.file,
    registry: a.registry + b.registry,
    longestMs: Math.max(a.longestMs, b.longestMs),
    failures: [...a.failures, ...b.failures].slice(0, KEPT_FAILURES),
  }
}
