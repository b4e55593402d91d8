import { Backoff, every, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { Registry } from 'prom-client'
import { portAcceptor, type Acceptor } from '../acceptor.ts'
import type { SidecarConfig } from '../config.ts'
import type { LocalNode } from '../local/local-nodes.ts'
import type { AskedRequest, DataPlane, FullName, Opening, Patience, ShownView, WorkerReport } from '../planes.ts'
import { Handoff } from './handoff.ts'
import { bestView, nameOf, sumCounts, uniteViews, worstRehearsals } from './merging.ts'
import type { Question, WorkerApi } from './messages.ts'
import { rawOf } from './raw-connection.ts'
import { NoAnswerError, WorkerLink } from './worker-link.ts'
import type { Fork } from './worker-process.ts'
import { WorkerCounts } from './worker-counts.ts'

export interface WorkerPoolOptions {
  readonly config: SidecarConfig
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  readonly fork: Fork
  /** What this process itself has to say to Prometheus; the pool adds what it knows of the workers. */
  readonly registry: Registry
}

/** In milliseconds. */
const LIMITS = {
  /** For a process to be there and to have loaded what it needs. */
  start: 60_000,
  /** For what is asked on the way to a page or a status. Longer lets one that hangs hold up the view of all. */
  ask: 2_000,
  /** For what has to be known to all: one that does not take it in time would serve what is not true any more. */
  change: 10_000,
  /** Reads files and asks peers. */
  rehearsal: 30_000,
  /** Beyond what an end may take. */
  end: 5_000,
}

/** Whether each one still answers is looked at this often, and how often it may fail to. */
const PULSE = { everyMs: 5_000, missed: 3 }

/** Shorter gives up a sidecar whose other workers serve, for what passes in a few seconds. */
const RESTART = { baseMs: 500, capMs: 10_000 }

/** One that did not get a connection is given no other for so long: mostly it has no descriptor left. */
const REST_MS = 1_000

/** Served for so long, a worker that ends is a new story. */
const STABLE_MS = 60_000

/** Starts that fail one after another before the sidecar gives up: what keeps it from starting is there to stay. */
const START_FAILURES = 5

/** A place in the pool: its process may be another one from time to time. */
interface Slot {
  readonly worker: number
  readonly backoff: Backoff
  link: WorkerLink | undefined
  restarts: number
  failures: number
  missed: number
  isSilent: boolean
  hasLost: boolean
  lastError: string | undefined
  cancel: () => void
}

interface Door {
  readonly opening: Opening
  readonly acceptor: Acceptor
  /** Whether a worker has left it already: it closes when all have. */
  isLeft: boolean
}

/**
 * The data plane as several processes, each with all of it. This process holds the ports and hands out the connections;
 * what workers have to know is kept here, so that one that is started again knows it before it serves.
 */
export class WorkerPool implements DataPlane {
  readonly #options: WorkerPoolOptions
  readonly #slots: readonly Slot[]
  readonly #handoff = new Handoff()
  readonly #counts: WorkerCounts
  readonly #doors = new Map<string, Door>()
  readonly #nodes = new Map<string, LocalNode>()
  #stopPulse: () => void = () => {}
  #isRetired = false
  #isFinishing = false
  #isCut = false
  #fail!: (error: Error) => void
  /** Resolves when the workers cannot be kept running, with the reason. */
  readonly failed = new Promise<Error>((resolve) => (this.#fail = resolve))

  constructor(options: WorkerPoolOptions) {
    this.#options = options
    this.#slots = Array.from({ length: options.config.workers }, (_, index) => ({
      worker: index + 1,
      backoff: new Backoff(options.random, RESTART),
      link: undefined,
      restarts: 0,
      failures: 0,
      missed: 0,
      isSilent: false,
      hasLost: false,
      lastError: undefined,
      cancel: () => {},
    }))
    this.#counts = new WorkerCounts(options.registry, {
      restarts: () => this.#slots.reduce((sum, { restarts }) => sum + restarts, 0),
      listening: () => this.#listening.length,
      waiting: () => this.#handoff.waiting,
      refused: () => this.#handoff.refused,
      returned: () => this.#handoff.returned,
    })
  }

  async open(opening: Opening): Promise<number> {
    const { id } = opening
    const acceptor = portAcceptor((socket) => {
      const raw = rawOf(socket)
      if (raw) this.#handoff.arrived({ opening: id, raw })
    })
    const port = await acceptor.listen(opening.host, opening.port)
    const door: Door = { opening: { ...opening, port }, acceptor, isLeft: false }
    this.#doors.set(id, door)
    await this.#change('open', door.opening)
    for (const { link } of this.#listening) link.takes.add(id)
    return port
  }

  async shut(id: string, patience: Patience): Promise<void> {
    const door = this.#doors.get(id)
    if (door === undefined) return
    door.isLeft = true
    this.#closeLeft()
    const limitMs = patience.timeoutMs + LIMITS.end
    for (const { link } of this.#slots)
      if (link?.isListening === false) void link.ask('shut', limitMs, id, patience).catch(() => {})
    await this.#tell('shut', limitMs, id, patience)
  }

  async start(): Promise<void> {
    await Promise.all(this.#slots.map((slot) => this.#begin(slot)))
    this.#stopPulse = every(this.#options.clock, PULSE.everyMs, () => this.#pulse())
  }

  async set(node: LocalNode): Promise<void> {
    this.#nodes.set(node.service, node)
    await this.#change('set', node)
  }

  async forget(service: string): Promise<void> {
    this.#nodes.delete(service)
    await this.#change('forget', service)
  }

  async idle(service: string, limitMs: number): Promise<void> {
    await this.#tell('idle', limitMs + LIMITS.end, service, limitMs)
  }

  retire(): void {
    this.#isRetired = true
    void this.#change('retire')
  }

  async finish(patience: Patience): Promise<void> {
    this.#isFinishing = true
    for (const slot of this.#slots) {
      slot.cancel()
      if (slot.link?.isListening === false) slot.link.kill('is not needed any more')
    }
    await this.#tell('finish', patience.timeoutMs + LIMITS.end, patience)
  }

  cut(): void {
    this.#isCut = true
    this.#stopPulse()
    for (const door of this.#doors.values()) this.#close(door)
    for (const { cancel } of this.#slots) cancel()
  }

  async close(): Promise<void> {
    await this.#tell('close', LIMITS.end)
    for (const { link } of this.#slots) link?.kill('is not needed any more')
  }

  reopenLogs(): void {
    void this.#change('reopenLogs')
  }

  async inFlight(): Promise<Readonly<Record<string, number>>> {
    return sumCounts(await this.#askAll('inFlight', LIMITS.ask))
  }

  async traffic() {
    await this.#count()
    return this.#counts.traffic()
  }

  async metrics(): Promise<string> {
    await this.#count()
    return this.#counts.page()
  }

  async views(): Promise<readonly ShownView[]> {
    return uniteViews((await this.#askAll('views', LIMITS.ask)).flat())
  }

  async view(name: FullName): Promise<ShownView | undefined> {
    const views = await this.#askAll('view', LIMITS.ask, name)
    return views.reduce(bestView, undefined)
  }

  async peerView(name: FullName) {
    const views = (await this.#askAll('peerView', LIMITS.ask, name)).filter((view) => view !== undefined)
    const best = views.map(({ document }) => document).reduce<ShownView | undefined>(bestView, undefined)
    return views.find(({ document }) => document === best)
  }

  isAtHand(): boolean {
    return false
  }

  async explain(name: FullName, request: AskedRequest): Promise<object | undefined> {
    const explained = await this.#askAll('explain', LIMITS.ask, name, request)
    return explained.find((item) => item !== undefined)
  }

  async rehearse(names: readonly FullName[] | undefined, signal: AbortSignal) {
    const rehearsed = await this.#askEach('rehearse', LIMITS.rehearsal, names)
    signal.throwIfAborted()
    const all = rehearsed.flatMap(({ answer }) => answer)
    if (names !== undefined) return worstRehearsals(all)
    // A call of what one of them knows may meet another, which does not.
    const known = new Map(all.map((item) => [nameOf(item), { namespace: item.namespace, service: item.service }]))
    const others = await Promise.all(
      rehearsed.map(({ link, answer }) => {
        const missing = new Map(known)
        for (const item of answer) missing.delete(nameOf(item))
        if (missing.size === 0) return Promise.resolve([])
        return link.ask('rehearse', LIMITS.rehearsal, [...missing.values()]).catch(() => [])
      }),
    )
    signal.throwIfAborted()
    return worstRehearsals([...all, ...others.flat()])
  }

  workers(): Promise<readonly WorkerReport[]> {
    return Promise.all(
      this.#slots.map(async (slot) => {
        const report = slot.link?.isListening
          ? await slot.link.ask('report', LIMITS.ask, true).catch(() => undefined)
          : undefined
        const { worker, restarts, lastError, link } = slot
        return {
          worker,
          pid: link?.pid,
          state: this.#stateOf(slot, report !== undefined),
          restarts,
          connections: report?.connections,
          ...(lastError !== undefined && { lastError }),
          ...(report?.client && { client: report.client }),
        }
      }),
    )
  }

  #stateOf({ link, isSilent }: Slot, hasAnswered: boolean): WorkerReport['state'] {
    if (link === undefined) return 'waiting'
    if (!link.isListening) return 'starting'
    if (isSilent || !hasAnswered) return 'silent'
    return this.#isRetired ? 'draining' : 'listening'
  }

  async #count(): Promise<void> {
    const counted = await this.#askEach('counts', LIMITS.ask)
    for (const { link, answer } of counted) if (link.isListening) this.#counts.heard(link, answer)
  }

  get #listening() {
    return this.#slots.flatMap(({ worker, link }) => (link?.isListening ? [{ worker, link }] : []))
  }

  /** Tells all, and waits for those who serve. One that has not begun yet takes it before it does. */
  async #change<Q extends Question>(question: Q, ...args: Parameters<WorkerApi[Q]>): Promise<void> {
    await Promise.all(
      this.#slots.flatMap(({ link }) => {
        if (link === undefined) return []
        const told = link
          .ask(question, link.isListening ? LIMITS.change : LIMITS.start, ...args)
          .catch((error: Error) => {
            link.kill(error instanceof NoAnswerError ? `does not answer: ${error.message}` : `failed: ${error.message}`)
          })
        return link.isListening ? [told] : []
      }),
    )
  }

  /** Asks those who serve for something that takes its time; one that ends meanwhile is done. */
  async #tell<Q extends Question>(question: Q, limitMs: number, ...args: Parameters<WorkerApi[Q]>): Promise<void> {
    await this.#askEach(question, limitMs, ...args)
  }

  async #askAll<Q extends Question>(question: Q, limitMs: number, ...args: Parameters<WorkerApi[Q]>) {
    return (await this.#askEach(question, limitMs, ...args)).map(({ answer }) => answer)
  }

  /** The answers of those who give one. */
  async #askEach<Q extends Question>(question: Q, limitMs: number, ...args: Parameters<WorkerApi[Q]>) {
    const answers = await Promise.all(
      this.#listening.map(async ({ worker, link }) => {
        try {
          return [{ link, answer: await link.ask(question, limitMs, ...args) }]
        } catch (error) {
          this.#options.log.warn({ worker, question, reason: (error as Error).message }, 'a worker is left out')
          return []
        }
      }),
    )
    return answers.flat()
  }

  #pulse(): void {
    for (const slot of this.#slots) {
      const { link } = slot
      if (!link?.isListening) continue
      slot.isSilent = slot.missed > 0
      // Of this process's own turns, so that a machine that stands still for a while is nobody's fault.
      if (++slot.missed > PULSE.missed) link.kill(`did not answer for ${slot.missed * PULSE.everyMs} ms`)
      link.ask('report', PULSE.everyMs * PULSE.missed, false).then(
        () => (slot.missed = 0),
        () => {},
      )
    }
  }

  /** @throws why it does not begin to serve */
  async #begin(slot: Slot): Promise<void> {
    const { clock, fork, log, config } = this.#options
    const link = new WorkerLink({
      clock,
      fork,
      events: {
        took: (from) => this.#handoff.took(from),
        lost: (from) => this.#lost(slot, from),
        leave: (from, id) => this.#left(from, id),
        ended: (from, reason) => this.#ended(slot, from, reason),
      },
    })
    slot.link = link
    slot.missed = 0
    slot.isSilent = false
    slot.hasLost = false
    const openings = [...this.#doors.values()].filter(({ isLeft }) => !isLeft).map(({ opening }) => opening)
    const nodes = [...this.#nodes.values()]
    const { worker } = slot
    try {
      await link.ask('begin', LIMITS.start, { config, worker, openings, nodes, isRetired: this.#isRetired })
    } catch (error) {
      link.kill((error as Error).message)
      throw error
    }
    slot.failures = 0
    link.isListening = true
    // What was opened meanwhile it has been told.
    for (const [id, { isLeft }] of this.#doors) if (!isLeft) link.takes.add(id)
    this.#handoff.join(link)
    slot.cancel = clock.after(STABLE_MS, () => slot.backoff.reset())
    log.debug({ worker, process: link.pid }, 'a worker serves')
  }

  #ended(slot: Slot, link: WorkerLink, reason: string): void {
    const { clock, log } = this.#options
    slot.cancel()
    slot.link = undefined
    slot.lastError = reason
    const hasServed = link.isListening
    link.isListening = false
    link.takes.clear()
    this.#counts.ended(link)
    this.#handoff.remove(link)
    this.#closeLeft()
    if (this.#isFinishing || this.#isCut) return
    const { worker } = slot
    // Its first start is waited for by whoever started all.
    if (!hasServed && slot.restarts === 0) return
    if (!hasServed && ++slot.failures >= START_FAILURES)
      return this.#fail(new Error(`worker ${worker} does not start: ${reason}`))
    log.warn({ worker, process: link.pid, reason }, 'a worker has ended and is started again')
    slot.restarts++
    slot.cancel = clock.after(slot.backoff.next(), () => {
      // It is told by its end.
      this.#begin(slot).catch(() => {})
    })
  }

  #lost(slot: Slot, link: WorkerLink): void {
    const { clock, log } = this.#options
    // Once of each process: it is counted, and comes again for as long as the reason lasts.
    if (!slot.hasLost) {
      const reason = 'it may have no file descriptor left'
      log.warn({ worker: slot.worker, process: link.pid, reason }, 'a worker does not get its connections')
    }
    slot.hasLost = true
    this.#handoff.lost(link)
    clock.after(REST_MS, () => {
      if (link.isListening) this.#handoff.join(link)
    })
  }

  #left(link: WorkerLink, id: string): void {
    const door = this.#doors.get(id)
    link.takes.delete(id)
    if (door) door.isLeft = true
    this.#closeLeft()
    link.left(id)
  }

  #closeLeft(): void {
    for (const door of this.#doors.values())
      if (door.isLeft && !this.#listening.some(({ link }) => link.takes.has(door.opening.id))) this.#close(door)
  }

  #close({ opening, acceptor }: Door): void {
    this.#doors.delete(opening.id)
    void acceptor.close()
    this.#handoff.drop(opening.id)
  }
}
