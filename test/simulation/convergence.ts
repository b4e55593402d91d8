/** What must be true at the end of a run, a while after the last fault: everyone knows the truth. */

import type { ClientProcess } from './client-process.ts'
import { RETURN_MS } from './evidence.ts'
import { differenceOf, keyOf, quarantinedBy, text } from './differences.ts'
import { Violation, type Invariant } from './invariants.ts'
import type { Lies } from './lies.ts'
import type { Epoch, Model } from './model.ts'
import type { Replica } from './registry-replica.ts'

type Say = (invariant: Invariant, message: string) => void

export class Convergence {
  readonly #model: Model
  readonly #lies: Lies
  readonly #mayOutrank: (host: string) => boolean

  /** @param mayOutrank whether a backup may hold an earlier life of a host's nodes that counts as the later one */
  constructor(model: Model, lies: Lies, mayOutrank: (host: string) => boolean) {
    this.#model = model
    this.#lies = lies
    this.#mayOutrank = mayOutrank
  }

  /**
   * What has not converged yet; undefined when all has.
   * @param isLate whether nobody waits any more
   */
  divergence(replicas: readonly Replica[], clients: readonly ClientProcess[], isLate: boolean): Violation | undefined {
    const found: Violation[] = []
    const say = (invariant: Invariant, message: string) => found.push(new Violation(invariant, message))
    const epoch = this.#model.current
    if (epoch === undefined) return new Violation('convergence', 'there is no store')
    this.#checkReplicas(replicas, epoch, say)
    const leases = new Map<string, string>()
    const kept = new Set(
      clients.flatMap(({ host, client }) =>
        (client ? [...quarantinedBy(client).keys()] : []).map((key) => `${host.name} ${key}`),
      ),
    )
    for (const client of clients) {
      this.#checkClient(client, epoch, kept, isLate, say)
      if (client.lease !== undefined) leases.set(client.lease, client.name)
    }
    for (const [id, { endedMs, lease }] of epoch.leases)
      if (endedMs === undefined && !leases.has(id))
        say('convergence', `lease ${id} of ${lease.owner} is there, and nobody renews it`)
    for (const [key, versions] of epoch.services)
      for (const [id, { lease }] of versions.at(-1)!.nodes)
        if (lease !== undefined && !leases.has(lease)) say('convergence', `${key}/${id} is there, and nobody keeps it`)
    return found[0]
  }

  #checkReplicas(replicas: readonly Replica[], epoch: Epoch, say: Say): void {
    const alive = [...epoch.leases.values()].filter(({ endedMs }) => endedMs === undefined).length
    let counted = 0
    for (const { name, parts } of replicas) {
      if (parts === undefined) {
        say('convergence', `${name} is not ready`)
        continue
      }
      const { hub, store, leases } = parts
      const { lost, ageMs, setAside, pending } = store.status()
      if (lost !== undefined) say('convergence', `${name} has lost its store: ${lost}`)
      if (ageMs > 0) say('convergence', `${name} may be ${ageMs} ms behind`)
      if (setAside.length > 0) say('convergence', `${name} has set aside ${setAside.map(({ key }) => key).join()}`)
      if (pending > 100) say('bounds', `${name} has ${pending} transactions that wait`)
      if (hub.epoch !== epoch.id || hub.cursor.revision !== epoch.revision)
        say('convergence', `${name} is at ${hub.cursorText}, expected ${epoch.id}:${epoch.revision}`)
      for (const key of epoch.services.keys()) {
        const [namespace, service] = key.split('/') as [string, string]
        const view = hub.view(namespace, service)
        const difference = differenceOf(epoch.newest(key), view?.nodes ?? new Map(), view?.policy)
        if (difference) say('convergence', `${name} has ${key}: ${difference}`)
      }
      const status = leases.status()
      if (status.active !== alive) say('convergence', `${name} knows ${status.active} leases, expected ${alive}`)
      counted += status.counted
    }
    if (counted !== alive) say('owner', `${alive} leases are counted ${counted} times by ${replicas.length} replicas`)
  }

  /** @param kept in which hosts a process keeps nodes of which services in quarantine, and in the file */
  #checkClient(client: ClientProcess, epoch: Epoch, kept: ReadonlySet<string>, isLate: boolean, say: Say): void {
    const { client: library, name } = client
    if (library === undefined) return void say('convergence', `${name} has not started`)
    if (client.carried === undefined) say('convergence', `${name} is not connected`)
    const quarantined = quarantinedBy(library)
    for (const service of client.followed) {
      const key = keyOf(service)
      const answer = library.peek(service)
      const version = epoch.newest(key)
      // Whoever kept it may have let it go as idle.
      if (this.#lies.isInFile(client, service) && !kept.has(`${client.host.name} ${key}`) && !isLate)
        say('hearsay', `the file of ${service} at ${client.host.name} is a lie`)
      if (answer?.overridden === true) say('convergence', `${name} has an override of ${service}`)
      if (quarantined.has(key)) {
        const left = [...(answer?.view.nodes.values() ?? [])].filter(({ id }) => !version?.nodes.has(id))
        // For static nodes nobody speaks but an operator, and a store that was lost has no word for a service that is
        // empty in it.
        const isExpected = left.every(({ leased }) => !leased || (version?.nodes.size ?? 0) === 0)
        // Nor is anybody but an operator a match for a liar who made a history up, where the registry names nothing.
        const isForged = answer !== undefined && this.#lies.has(answer.view)
        // Whoever has let it go as idle, and follows it anew, gives its nodes their time anew.
        const forMs = library.status().quarantined.find((item) => keyOf(item.service) === key)?.forMs ?? Infinity
        if (isLate && forMs < RETURN_MS) continue
        if (!isExpected || (this.#model.epochs.size < 2 && !isForged))
          say('convergence', `${name} keeps ${left.map(({ id }) => id).join()} of ${service} in quarantine`)
        continue
      }
      if (version === undefined) {
        if (answer !== undefined)
          say('convergence', `${name} shows ${service} at ${text(answer.cursor)}, which is unknown`)
        continue
      }
      // It had to make room.
      if (answer === undefined && client.bounds) continue
      if (answer === undefined) {
        say('convergence', `${name} does not know ${service}, expected ${epoch.id}:${version.revision}`)
        continue
      }
      if (answer.cursor.epoch !== epoch.id || answer.cursor.revision !== version.revision)
        say(
          'convergence',
          `${name} shows ${service} at ${text(answer.cursor)}, expected ${epoch.id}:${version.revision}`,
        )
      const difference = differenceOf(version, answer.view.nodes, answer.view.policy)
      if (difference) say('convergence', `${name} shows ${service}: ${difference}`)
    }
    for (const [key, { wanted, registration, isShared, isLeaving }] of client.own) {
      const entry = epoch.newest(keyOf(wanted.service))?.nodes.get(wanted.id!)
      const isOwn = entry?.lease !== undefined && entry.lease === client.lease
      const state = registration?.state
      if (state === 'closed' || isLeaving) {
        if (isOwn) say('convergence', `${name} has deregistered ${key}, and it is there`)
      } else if (state === 'registered') {
        if (entry === undefined) {
          // An operator's word stands until the registrant says something new.
          const last = epoch.removed.get(keyOf(wanted.service))?.findLast((item) => item.entry.node.id === wanted.id)
          // Who has taken the id over may have gone; whoever had it before learns of neither.
          if (last?.cause !== 'operator' && !isShared)
            say('convergence', `${name} keeps ${key} registered, and it is missing`)
        } else if (!isOwn && !isShared)
          say('convergence', `${name} keeps ${key} registered, and it is under ${entry.lease}`)
        else if (isOwn) {
          const { weight = 100, status = 'up' } = wanted
          const { registered } = entry.node
          if (registered.weight !== weight || registered.status !== status)
            say(
              'acknowledged',
              `${name} says that ${key} is ${status} with weight ${weight}, and it is ${registered.status} with ` +
                `${registered.weight}`,
            )
        }
      } else if (state !== 'superseded' || !(isShared || this.#mayOutrank(client.host.name)))
        say('convergence', `${name} has ${key} ${state ?? 'not begun'}`)
    }
  }
}
