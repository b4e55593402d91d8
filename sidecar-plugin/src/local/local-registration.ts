import { Backoff, sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { HealthCheck, Probe, ProbeResult } from './health-check.ts'
import type { Log } from '@holdfast/registry-client/log'
import type { Handle, NodeSpec, Registrar } from '../registry.ts'

/**
 * What is wanted of the registry. `absent` before the first success and while the service is stopped; `gone` for good.
 */
type Wanted = 'absent' | 'up' | 'down' | 'draining' | 'gone'

/**
 * `checking`: not seen healthy yet. `pending`: healthy, not acknowledged by the registry yet. `left`: stopped, and out
 * of the registry until it listens again. `refused`: the registry does not take it. `superseded`: somebody else
 * registered the same node id later.
 */
export type LocalState =
  'checking' | 'pending' | 'up' | 'down' | 'left' | 'draining' | 'refused' | 'superseded' | 'closed'

export interface Health {
  readonly status: 'unknown' | 'passing' | 'failing' | 'stopped'
  readonly detail: string
}

export interface LocalRegistrationOptions {
  readonly node: Omit<NodeSpec, 'status'>
  readonly check: HealthCheck
  readonly probe: Probe
  readonly registrar: Registrar
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
}

/** A service that is not up is looked at this often, however long its interval: who starts wants to be found. */
const EAGER_INTERVAL_MS = 500

/** Right after it was named it may be about to listen, and whoever named it waits for the answer. */
const STARTING = { ms: 5_000, intervalMs: 100 }

/** Between attempts to register what the registry refused: an operator has to act first. */
const REFUSED_RETRY = { baseMs: 1_000, capMs: 60_000 }

/**
 * Keeps one local service registered for as long as it is healthy: the node is registered after its first success,
 * becomes `down` when it answers wrongly, leaves when nobody listens any more, and returns by itself.
 *
 * Checks set what is wanted; one loop brings the registry there, one step at a time, so that a slow registry never
 * holds up a check and two changes never overtake each other.
 */
export class LocalRegistration {
  readonly #options: LocalRegistrationOptions
  readonly #stop = new AbortController()
  readonly #backoff: Backoff
  #wanted: Wanted = 'absent'
  #handle: Handle | undefined
  #shown: Wanted = 'absent'
  #working: Promise<void> | undefined
  #refusal: string | undefined
  #everUp = false
  #passes = 0
  #failures = 0
  #refusals = 0
  #health: Health = { status: 'unknown', detail: 'not checked yet' }
  #changed: (() => void)[] = []

  constructor(options: LocalRegistrationOptions) {
    this.#options = options
    this.#backoff = new Backoff(options.random, REFUSED_RETRY)
  }

  /** Begins to look at the service. */
  start(): void {
    void this.#watch()
  }

  /** Looks no more and tells the registry nothing more: for a sidecar that is cut. */
  stop(): void {
    this.#stop.abort()
  }

  get id(): string {
    return this.#options.node.id
  }

  get health(): Health {
    return this.#health
  }

  /** Why the registry refuses it. */
  get refusal(): string | undefined {
    return this.#refusal
  }

  get state(): LocalState {
    if (this.#wanted === 'gone') return this.#handle ? 'draining' : 'closed'
    if (this.#wanted === 'draining') return 'draining'
    if (this.#handle?.state === 'superseded') return 'superseded'
    if (this.#refusal !== undefined) return 'refused'
    if (this.#wanted === 'absent') return this.#everUp ? 'left' : 'checking'
    return this.#handle?.state === 'registered' ? this.#wanted : 'pending'
  }

  /**
   * Resolves when it is registered or refused, or `limitMs` have passed. A check that fails at first is no answer yet:
   * a service is often named in the moment in which it starts.
   */
  async settled(limitMs: number): Promise<void> {
    const isSettled = () =>
      !['checking', 'pending'].includes(this.state) ||
      // The client waits for a registry as long as is sensible: what is pending after that stays so for now.
      (this.#handle?.state === 'pending' && this.#working === undefined)
    await this.#until(isSettled, limitMs)
  }

  /** Says `draining`: what is under way is finished, nothing new shall come. */
  async drain(): Promise<void> {
    this.#stop.abort()
    this.#want('draining')
    await this.#working
  }

  /** Deregisters it. Returns once acknowledged or, without a registry, after as long as the client has patience. */
  async close(): Promise<void> {
    this.#stop.abort()
    this.#want('gone')
    await this.#working
  }

  async #until(done: () => boolean, limitMs: number): Promise<void> {
    const limit = new AbortController()
    const cancel = this.#options.clock.after(limitMs, () => {
      limit.abort()
      this.#notify()
    })
    while (!done() && !limit.signal.aborted) await new Promise<void>((resolve) => this.#changed.push(resolve))
    cancel()
  }

  #notify(): void {
    for (const resolve of this.#changed.splice(0)) resolve()
  }

  async #watch(): Promise<void> {
    const { probe, check, clock } = this.#options
    const { signal } = this.#stop
    const startedMs = clock.now()
    while (!signal.aborted) {
      const result = await probe(signal)
      if (signal.aborted) return
      this.#learn(result)
      const isStarting = !this.#everUp && clock.now() - startedMs < STARTING.ms
      const eagerMs = isStarting ? STARTING.intervalMs : EAGER_INTERVAL_MS
      await sleep(clock, this.#wanted === 'up' ? check.intervalMs : Math.min(check.intervalMs, eagerMs), signal)
    }
  }

  #learn({ verdict, detail }: ProbeResult): void {
    const { check, log, node } = this.#options
    const before = this.#health.status
    if (verdict === 'unmade') this.#health = { ...this.#health, detail }
    else if (verdict === 'passed') {
      this.#passes++
      this.#failures = 0
      this.#refusals = 0
      this.#health = { status: 'passing', detail }
      if (this.#wanted === 'up' || this.#passes >= check.healthyAfter) {
        this.#everUp = true
        // Taken at first and refused later: let go, and try again as after any refusal.
        if (this.#handle?.state === 'refused') this.#refused(new Error('the registry refuses the node'))
        this.#want('up')
      }
    } else {
      this.#passes = 0
      this.#failures++
      this.#refusals = verdict === 'refused' ? this.#refusals + 1 : 0
      this.#health = { status: verdict === 'refused' ? 'stopped' : 'failing', detail }
      if (this.#refusals >= check.unhealthyAfter) this.#want('absent')
      else if (this.#failures >= check.unhealthyAfter && this.#wanted === 'up') this.#want('down')
    }
    if (this.#health.status !== before)
      log.info({ service: node.service, node: node.id, health: this.#health.status, detail }, 'health changed')
    this.#notify()
  }

  #want(wanted: Wanted): void {
    if (this.#wanted === 'gone') return
    this.#wanted = wanted
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined
      this.#notify()
      // Changed between the last look and here.
      if (this.#isDue()) this.#want(this.#wanted)
    })
  }

  #isDue(): boolean {
    return this.#refusal === undefined && this.#handle?.state !== 'superseded' && this.#shown !== this.#target()
  }

  /** What a service that was never registered, or is not now, need not be told. */
  #target(): Wanted {
    if (this.#wanted === 'gone') return 'absent'
    if (this.#handle === undefined && this.#wanted === 'draining') return 'absent'
    return this.#wanted
  }

  async #work(): Promise<void> {
    while (this.#isDue()) {
      const target = this.#target()
      try {
        await this.#step(target)
      } catch (error) {
        this.#refused(error as Error)
        return
      }
      this.#notify()
    }
  }

  async #step(target: Wanted): Promise<void> {
    const { registrar, node } = this.#options
    if (target === 'absent' || target === 'gone') {
      const handle = this.#handle
      this.#shown = 'absent'
      await handle?.close()
      this.#handle = undefined
    } else if (this.#handle === undefined) {
      this.#handle = await registrar.register({ ...node, status: target })
      this.#shown = target
    } else {
      this.#shown = target
      await this.#handle.update({ status: target })
    }
  }

  #refused(error: Error): void {
    const { log, node, clock } = this.#options
    this.#handle = undefined
    this.#shown = 'absent'
    this.#refusal = error.message
    log.error({ service: node.service, node: node.id, reason: error.message }, 'the registry refuses the node')
    const cancel = clock.after(this.#backoff.next(), () => {
      this.#refusal = undefined
      if (!this.#stop.signal.aborted) this.#want(this.#wanted)
    })
    this.#stop.signal.addEventListener('abort', cancel, { once: true })
  }
}
