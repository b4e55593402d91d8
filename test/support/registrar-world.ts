import type { Random } from '@holdfast/registry-client/clock'
import type { NodeRegistration } from '@holdfast/registry-client'
import { Connection } from '../../registry-client/src/registry/connection.ts'
import type { HttpAnswer } from '../../registry-client/src/network.ts'
import { Registrar } from '../../registry-client/src/registry/registrar.ts'
import { ManualClock } from './manual-clock.ts'
import { MemoryLog } from './memory-log.ts'
import { answer, problem, ScriptedNetwork, type ScriptedCall } from './scripted-network.ts'
import { seededRandom } from './seeded-random.ts'

export const TTL_MS = 15_000
export const NODE: NodeRegistration = { service: 'stock', port: 8080 }
/** Of that node, and of another, in the registry. */
export const KEY = 'stock/127.0.0.1:8080'
export const OTHER = 'shop/127.0.0.1:9090'

/** A registry of leases and nodes, as far as a registrant sees it. */
export class TinyRegistry {
  readonly leases = new Set<string>()
  readonly nodes = new Map<string, Record<string, unknown>>()
  epoch = 'e1'
  down = false
  #leases = 0
  /** Answers instead of the registry. */
  instead: (call: ScriptedCall) => HttpAnswer | Promise<HttpAnswer> | undefined = () => undefined

  async answer(call: ScriptedCall): Promise<HttpAnswer> {
    const given = await this.#answer(call)
    return { ...given, header: (name) => (name === 'holdfast-cursor' ? `${this.epoch}:1` : given.header(name)) }
  }

  #answer(call: ScriptedCall): HttpAnswer | Promise<HttpAnswer> {
    if (this.down) throw new Error('connect ECONNREFUSED')
    const instead = this.instead(call)
    if (instead) return instead
    const url = new URL(call.url)
    const words = url.pathname.split('/').slice(2).map(decodeURIComponent)
    if (words[0] === 'leases') {
      if (words.length === 1) {
        const id = `L${++this.#leases}`
        this.leases.add(id)
        return answer(201, { id, ttl: call.json!.ttl })
      }
      const lease = words[1]!
      if (!this.leases.has(lease)) return problem(404, 'lease_not_found')
      if (call.method === 'DELETE') {
        this.forget(lease)
        return answer(204)
      }
      return answer(200, {})
    }
    const key = `${words[1]}/${words[3]}`
    const held = this.nodes.get(key)
    if (call.method === 'DELETE') {
      const query = url.searchParams
      if (held && query.has('incarnation') && query.get('incarnation') !== String(held.incarnation))
        return problem(409, 'stale_incarnation')
      if (held && query.has('lease') && query.get('lease') !== held.lease) return problem(409, 'stale_incarnation')
      this.nodes.delete(key)
      return answer(204)
    }
    const body = call.json!
    if (typeof body.lease !== 'string') throw new Error('registered without a lease: it would stay for ever')
    if (!this.leases.has(body.lease)) return problem(404, 'lease_not_found')
    if (held && (held.incarnation as number) > (body.incarnation as number))
      return problem(409, 'stale_incarnation', { incarnation: held.incarnation })
    this.nodes.set(key, body)
    return answer(held ? 200 : 201, {})
  }

  /** The lease ends, and its nodes with it. */
  forget(lease: string): void {
    this.leases.delete(lease)
    for (const [key, node] of this.nodes) if (node.lease === lease) this.nodes.delete(key)
  }

  /** @returns what brings the store back to what it is now, as another store */
  backup(): () => void {
    const [leases, nodes] = [[...this.leases], [...this.nodes]]
    return () => {
      this.epoch += 'x'
      this.leases.clear()
      this.nodes.clear()
      for (const id of leases) this.leases.add(id)
      for (const [key, node] of nodes) this.nodes.set(key, node)
    }
  }
}

export function world(endpoints = ['http://registry:7400'], random: Random = seededRandom(7)) {
  const clock = new ManualClock()
  const network = new ScriptedNetwork()
  const registry = new TinyRegistry()
  const log = new MemoryLog()
  network.respond = (call) => registry.answer(call)
  const connection = new Connection(
    { endpoints, network, clock, random, log },
    { event() {}, reachable() {}, held: () => ({}) },
  )
  const registrar = new Registrar({
    connection,
    clock,
    random,
    log,
    owner: 'test',
    namespace: 'default',
    zone: 'z1',
    ttlMs: TTL_MS,
    patienceMs: 3_000,
  })
  const asked = (method: string, part: string) =>
    network.calls.filter((call) => call.method === method && call.path.includes(part))
  return { clock, network, registry, registrar, log, asked }
}
