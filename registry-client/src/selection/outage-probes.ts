/**
 * While the registry cannot be reached nobody says which nodes have died, and calls find out only on nodes that are
 * called. So the nodes of the services in use are asked for a connection now and then: one that fails again and again is
 * taken out of the turns, and one that is out comes back. It all ends when the registry is back.
 *
 * A thousand clients lose a registry in the same moment and know the same nodes. None begins at once, each walks in an
 * order of its own and at a pace that varies, and none asks a node that has answered a call of its own since.
 *
 * One that finds most nodes of a service dead has more likely lost its own way to them: it stops believing what it finds
 * of that service, and keeps all of its nodes. A share of more than a half: with less left than that, what remains would
 * get more than twice its load, and independent faults hardly ever take so many at once. Source: the panic threshold of
 * Envoy. One failure each is enough to put nobody out any more; to bring back those that are, it takes as many in a row as
 * put them out: where half of the nodes are gone with their zone, one lost packet must not bring them back.
 */

import type { Clock, Random } from '../clock.ts'
import type { Log } from '../log.ts'
import type { Network } from '../network.ts'
import type { ServiceNode } from '../protocol.ts'
import type { Selector } from './selector.ts'

/** Shorter, and every restart of a registry, or change to another, would set all its clients to probing. */
const PATIENCE_MS = 5_000
/**
 * How often a node is asked, on average; the pace varies by half. A thousand clients make 67 connections a second on a
 * node that they share. Three in a row fail within a minute, and a node that is out, for 30 s at least, is asked before.
 */
const INTERVAL_MS = 15_000
/** Nodes asked in one round, and of one service: no service crowds out the others. 67 connections a second at most. */
const MAX_NODES = 1_000
const MAX_NODES_OF_SERVICE = 250
/** Enough for the pace when each runs into the time limit. */
const MAX_IN_FLIGHT = 128
/** Long enough for one lost packet, which is sent again after a second. */
const TIME_LIMIT_MS = 2_000
/** From so many failures in a row on a node is dead, as for its selector. */
const DEAD_AFTER = 3

export interface ProbedService {
  /** Unlike that of any other. */
  readonly key: string
  readonly selector: Pick<Selector, 'probeable' | 'tookCalls' | 'probed' | 'disregardProbes'>
}

export interface OutageProbesOptions {
  /** Those in use, the ones used last first. Read once a round. */
  readonly services: () => Iterable<ProbedService>
  readonly network: Pick<Network, 'probe'>
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
}

export interface OutageProbesStatus {
  /** Addresses that are asked; 0 while the registry is there. */
  readonly nodes: number
  readonly sent: number
  readonly failed: number
  /** Left out because the node had answered a call since. */
  readonly spared: number
  /** Left out because too many were under way. */
  readonly crowded: number
  /** Times that most nodes of a service looked dead, and probes of it were not believed any more. */
  readonly disbelieved: number
  /** Services of which they are not believed now. */
  readonly disbelievedServices: readonly string[]
}

/** What probes have found of one service. */
interface Findings {
  readonly service: ProbedService
  /** Nodes of it that are asked in this round. */
  asked: number
  /** By address: how often in a row it did not answer. */
  readonly missed: Map<string, number>
  isDisbelieved: boolean
  isLogged: boolean
}

/** One address, whatever services have a node there. */
interface Target {
  readonly address: string
  /** Its place in every round: two visits lie about one round apart. */
  readonly order: number
  nodes: { readonly findings: Findings; readonly node: ServiceNode }[]
}

export class OutageProbes {
  readonly #options: OutageProbesOptions
  #findings = new Map<string, Findings>()
  #targets = new Map<string, Target>()
  #round: Target[] = []
  #inFlight = 0
  /** Present from the loss of the registry until it is back. */
  #outage: AbortController | undefined
  #cancel: () => void = () => {}
  readonly #counts = { sent: 0, failed: 0, spared: 0, crowded: 0, disbelieved: 0 }

  constructor(options: OutageProbesOptions) {
    this.#options = options
  }

  /** To be told at the start too, when the registry has not been reached yet. */
  reachable(isReachable: boolean): void {
    if (isReachable) this.close()
    else if (this.#outage === undefined) {
      this.#outage = new AbortController()
      const { random } = this.#options
      this.#after(PATIENCE_MS + random() * INTERVAL_MS, () => this.#startRound())
    }
  }

  /** Ends what runs, at once. */
  close(): void {
    this.#cancel()
    this.#outage?.abort()
    this.#outage = undefined
    this.#findings.clear()
    this.#targets.clear()
    this.#round = []
  }

  status(): OutageProbesStatus {
    const findings = [...this.#findings.values()]
    return {
      nodes: this.#targets.size,
      ...this.#counts,
      disbelievedServices: findings.filter((item) => item.isDisbelieved).map((item) => item.service.key),
    }
  }

  #after(ms: number, run: () => void): void {
    this.#cancel = this.#options.clock.after(ms, run)
  }

  #startRound(): void {
    this.#gather()
    this.#round = [...this.#targets.values()].sort((a, b) => a.order - b.order)
    this.#step()
  }

  /** Looks anew at what is in use: services and nodes come and go in the middle of an outage too. */
  #gather(): void {
    const { random } = this.#options
    const findings = new Map<string, Findings>()
    const targets = new Map<string, Target>()
    let left = MAX_NODES
    for (const service of this.#options.services()) {
      if (left === 0) break
      const nodes = drawn(service.selector.probeable(), Math.min(MAX_NODES_OF_SERVICE, left), random)
      if (nodes.length === 0) continue
      left -= nodes.length
      const known = this.#findings.get(service.key)
      const found: Findings = known ?? { service, asked: 0, missed: new Map(), isDisbelieved: false, isLogged: false }
      found.asked = nodes.length
      findings.set(service.key, found)
      const addresses = new Set(nodes.map(addressOf))
      for (const address of found.missed.keys()) if (!addresses.has(address)) found.missed.delete(address)
      for (const node of nodes) {
        const address = addressOf(node)
        let target = targets.get(address)
        if (target === undefined) {
          const order = this.#targets.get(address)?.order ?? random()
          targets.set(address, (target = { address, order, nodes: [] }))
        }
        target.nodes.push({ findings: found, node })
      }
    }
    this.#findings = findings
    this.#targets = targets
  }

  #step(): void {
    const target = this.#round.pop()
    if (target) this.#visit(target)
    const pauseMs = (INTERVAL_MS / Math.max(1, this.#targets.size)) * (0.5 + this.#options.random())
    this.#after(pauseMs, () => (this.#round.length > 0 ? this.#step() : this.#startRound()))
  }

  #visit(target: Target): void {
    let tookCalls = false
    for (const { findings, node } of target.nodes) if (findings.service.selector.tookCalls(node)) tookCalls = true
    if (tookCalls) {
      this.#counts.spared++
      this.#conclude(target, true)
    } else if (this.#inFlight < MAX_IN_FLIGHT) void this.#probe(target, this.#outage!.signal)
    else this.#counts.crowded++
  }

  async #probe(target: Target, outage: AbortSignal): Promise<void> {
    const { network, clock } = this.#options
    const { host, port } = target.nodes[0]!.node
    const limit = new AbortController()
    const end = () => limit.abort()
    const cancel = clock.after(TIME_LIMIT_MS, end)
    outage.addEventListener('abort', end, { once: true })
    this.#inFlight++
    this.#counts.sent++
    const outcome = await network.probe(host, port, limit.signal)
    this.#inFlight--
    cancel()
    outage.removeEventListener('abort', end)
    if (outage.aborted || outcome === 'ignored') return
    if (outcome === 'failed') this.#counts.failed++
    this.#conclude(target, outcome === 'ok')
  }

  #conclude({ address, nodes }: Target, isUp: boolean): void {
    for (const { findings, node } of nodes) {
      const { service, missed, asked } = findings
      if (isUp) missed.delete(address)
      else missed.set(address, (missed.get(address) ?? 0) + 1)
      const isDoubted = missed.size * 2 > asked
      this.#weigh(findings, isDoubted)
      if (isUp || !isDoubted) service.selector.probed(node, isUp)
    }
  }

  /** Whether this service's findings can be true. */
  #weigh(findings: Findings, isDoubted: boolean): void {
    const { service, missed, asked } = findings
    if (!isDoubted) findings.isDisbelieved = false
    if (!isDoubted || findings.isDisbelieved) return
    let dead = 0
    for (const count of missed.values()) if (count >= DEAD_AFTER) dead++
    if (dead * 2 <= asked) return
    findings.isDisbelieved = true
    this.#counts.disbelieved++
    service.selector.disregardProbes()
    if (findings.isLogged) return
    findings.isLogged = true
    const text = 'most nodes look dead from here while the registry cannot be reached: probes are not believed'
    this.#options.log.warn({ service: service.key, dead, asked }, text)
  }
}

function addressOf({ host, port }: ServiceNode): string {
  return `${host} ${port}`
}

/** At most so many of them, each set with the same chance. */
function drawn<T>(items: T[], count: number, random: Random): T[] {
  if (items.length <= count) return items
  for (let at = 0; at < count; at++) {
    const other = at + Math.floor(random() * (items.length - at))
    const item = items[at]!
    items[at] = items[other]!
    items[other] = item
  }
  return items.slice(0, count)
}
