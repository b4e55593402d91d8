/** Steady calls to services, each one counted by how it ended and by which view served it. */

import http from 'node:http'

export interface Counts {
  sent: number
  /** Of those, how many posted something, and so may not be sent twice. */
  posted: number
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
  return { sent: 0, posted: 0, failed: 0, memory: 0, file: 0, registry: 0, longestMs: 0, failures: [] }
}

/** A failure that would have happened again a thousand times is told a few times only. */
const KEPT_FAILURES = 5

interface Answer {
  readonly status: number
  readonly body: string
}

/** Every third call posts, while posting is on. */
const POST_EVERY = 3

/**
 * One worker after the other calls the given URLs in turn; `pause` lets the calls under way end and sends no more.
 */
export class Load {
  readonly #agent = new http.Agent({ keepAlive: true })
  readonly #url: () => string
  readonly #view: (body: string) => string | undefined
  #workers: Promise<void>[] = []
  #running = false
  #posting = true
  #calls = 0
  readonly #posts = new Set<Promise<unknown>>()
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

  /** Whether calls post from now on. Switched off, it returns when the last post under way has ended. */
  async post(on: boolean): Promise<void> {
    this.#posting = on
    if (!on) await Promise.allSettled(this.#posts)
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
      const isPost = this.#posting && ++this.#calls % POST_EVERY === 0
      const calling = this.#call(url, isPost)
      if (isPost) this.#posts.add(calling)
      const answer = await calling.catch((error: Error) => error)
      this.#posts.delete(calling)
      const tookMs = performance.now() - startMs
      const { counts } = this
      counts.sent++
      if (isPost) counts.posted++
      counts.longestMs = Math.max(counts.longestMs, tookMs)
      if (answer instanceof Error || answer.status !== 200) {
        counts.failed++
        const reason = answer instanceof Error ? answer.message : `${answer.status} ${answer.body.trim()}`
        const method = isPost ? 'POST' : 'GET'
        if (counts.failures.length < KEPT_FAILURES) counts.failures.push(`${method} ${url}: ${reason.slice(0, 300)}`)
        // A dead mesh must not turn the drill into a busy loop.
        await new Promise((resolve) => setTimeout(resolve, 20))
        continue
      }
      const view = this.#view(answer.body)
      if (view === 'memory' || view === 'file' || view === 'registry') counts[view]++
    }
  }

  #call(url: string, isPost: boolean): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const method = isPost ? 'POST' : 'GET'
      const request = http.request(url, { method, agent: this.#agent, timeout: 20_000 }, (response) => {
        let body = ''
        response.setEncoding('utf8')
        response.on('data', (chunk: string) => (body += chunk))
        response.on('error', reject)
        response.on('end', () => resolve({ status: response.statusCode ?? 0, body }))
      })
      request.on('timeout', () => request.destroy(new Error('no answer in 20 s')))
      request.on('error', reject)
      request.end(isPost ? JSON.stringify({ count: 2 }) : undefined)
    })
  }
}

export function add(a: Counts, b: Counts): Counts {
  return {
    sent: a.sent + b.sent,
    posted: a.posted + b.posted,
    failed: a.failed + b.failed,
    memory: a.memory + b.memory,
    file: a.file + b.file,
    registry: a.registry + b.registry,
    longestMs: Math.max(a.longestMs, b.longestMs),
    failures: [...a.failures, ...b.failures].slice(0, KEPT_FAILURES),
  }
}
