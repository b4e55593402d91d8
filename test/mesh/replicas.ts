/** Several registries on one etcd, and what someone who watches all of them sees. */

import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { TestContext } from 'node:test'
import { WebSocket } from 'ws'
import { connect, type Registration, type RegistryClient } from '@holdfast/registry-client'
import { Metrics, type Member } from '../support/etcd.ts'
import { eventually, Mesh, type Program } from './mesh.ts'

const REGISTRY = 'registry-server/bin/holdfast-registry.js'

/** A registry that shares its store. */
export class Replica {
  readonly name: string
  program!: Program
  readonly #mesh: Mesh
  readonly #store: string
  readonly #more: readonly string[]
  #port = 0

  /** @param more further flags */
  constructor(mesh: Mesh, name: string, store: string, more: readonly string[] = []) {
    this.#mesh = mesh
    this.name = name
    this.#store = store
    this.#more = more
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`
  }

  /** On its old port when it ran before. */
  async start(): Promise<void> {
    this.program = await this.#mesh.start(this.name, REGISTRY, {
      args: ['--port', String(this.#port), '--store', this.#store, ...this.#more],
    })
    this.#port = this.program.port('ready')
  }

  async ask(method: string, target: string, body?: object) {
    const answer = await fetch(this.url + target, {
      method,
      ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
    })
    const text = await answer.text()
    return {
      status: answer.status,
      headers: answer.headers,
      body: (text === '' ? {} : JSON.parse(text)) as Record<string, unknown>,
    }
  }

  async metrics(): Promise<Metrics> {
    return new Metrics(await (await fetch(`${this.url}/metrics`)).text())
  }

  /** Its name among the replicas. */
  async id(): Promise<string> {
    const { body } = await this.ask('GET', '/v1/status')
    return (body.store as { replica: string }).replica
  }
}

export interface Seen {
  readonly revision: number
  readonly removed: readonly { readonly id: string; readonly cause: string; readonly atMs: number }[]
}

/** Follows all services of one replica, on one stream, and remembers each removal. */
export class Watcher {
  readonly removed: { id: string; cause: string; atMs: number }[] = []
  readonly nodes = new Set<string>()
  readonly #wakers = new Set<() => void>()
  readonly #socket: WebSocket

  constructor(replica: Replica) {
    this.#socket = new WebSocket(`${replica.url.replace('http', 'ws')}/v1/watch?service=*`)
    this.#socket.on('error', () => {})
    this.#socket.on('message', (data: Buffer) => {
      const { event, data: frame } = JSON.parse(data.toString()) as {
        event: string
        data: { nodes?: { id: string }[]; put?: { id: string }[]; remove?: { id: string; cause: string }[] }
      }
      if (event === 'snapshot') for (const { id } of frame.nodes!) this.nodes.add(id)
      if (event === 'change') {
        for (const { id } of frame.put!) this.nodes.add(id)
        for (const { id, cause } of frame.remove!) {
          this.nodes.delete(id)
          this.removed.push({ id, cause, atMs: performance.now() })
        }
      }
      for (const wake of this.#wakers) wake()
    })
  }

  async open(): Promise<this> {
    await once(this.#socket, 'open')
    return this
  }

  /** Resolves once `test` holds of what was seen. */
  until(test: (watcher: this) => boolean): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        if (!test(this)) return
        this.#wakers.delete(wake)
        resolve()
      }
      this.#wakers.add(wake)
      wake()
    })
  }

  close(): void {
    this.#socket.terminate()
  }
}

/** A process with one node, by the client library. */
export interface Registrant {
  readonly client: RegistryClient
  readonly registration: Registration
}

export async function registrants(urls: readonly string[], count: number, leaseTtlMs: number): Promise<Registrant[]> {
  return Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const client = await connect({ endpoints: urls, leaseTtlMs })
      const registration = await client.register({ service: `service-${index % 5}`, id: `node-${index}`, port: 8080 })
      return { client, registration }
    }),
  )
}

/** A node whose registrant says nothing more: when it has gone, so much time has passed for all. */
export async function canary(replica: Replica, id: string, ttl: string): Promise<void> {
  const answer = await replica.ask('PUT', `/v1/services/canary/nodes/${id}`, { host: '10.9.9.9', port: 1, ttl })
  if (answer.status !== 201) throw new Error(`the canary was not registered: ${answer.status}`)
}

/** Which replica counts each lease, by the state in etcd. */
export async function holders(etcd: Member): Promise<Map<string, string | undefined>> {
  const entries = await etcd.gateway.entries('/holdfast/state/lease/')
  return new Map(
    entries.map(({ value }) => {
      const { id, holder } = JSON.parse(value) as { id: string; holder?: string }
      return [id, holder]
    }),
  )
}

/** Waits until each lease is counted by one of these replicas. */
export async function settledOn(etcd: Member, replicas: readonly Replica[]): Promise<void> {
  const ids = await Promise.all(replicas.map((replica) => replica.id()))
  await eventually(
    () => holders(etcd),
    (found) => [...found.values()].every((holder) => holder !== undefined && ids.includes(holder)),
    'all leases with a living replica',
  )
}

export const TTL_MS = 4_000
export const REGISTRANTS = 30

/** @param settings what the replicas' configuration file says */
export async function setUp(t: TestContext, store: string, count = 3, settings = '') {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'))
  const mesh = new Mesh({ directory })
  t.after(async () => {
    await mesh.stop('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  })
  const file = path.join(directory, 'registry.yaml')
  writeFileSync(file, settings)
  const more = settings === '' ? [] : ['--config', file]
  const replicas = Array.from({ length: count }, (_, index) => new Replica(mesh, `registry-${index}`, store, more))
  await Promise.all(replicas.map((replica) => replica.start()))
  return { mesh, replicas }
}

export async function populate(t: TestContext, replicas: readonly Replica[]) {
  const people = await registrants(
    replicas.map(({ url }) => url),
    REGISTRANTS,
    TTL_MS,
  )
  const watchers = await Promise.all(replicas.map((replica) => new Watcher(replica).open()))
  t.after(async () => {
    for (const watcher of watchers) watcher.close()
    await Promise.all(people.map(({ client }) => client.close()))
  })
  await Promise.all(watchers.map((watcher) => watcher.until(({ nodes }) => nodes.size === REGISTRANTS)))
  return { people, watchers }
}

/** Waits for as long as any lease of the registrants could live unrenewed, and more. */
export async function longEnough(replica: Replica, watchers: readonly Watcher[]): Promise<void> {
  await canary(replica, 'canary', `${TTL_MS * 2}ms`)
  await Promise.all(
    watchers.map((watcher) => watcher.until(({ removed }) => removed.some(({ id }) => id === 'canary'))),
  )
}

export function goneBesidesCanary(watchers: readonly Watcher[]): string[] {
  return watchers.flatMap(({ removed }) =>
    removed.filter(({ id }) => id !== 'canary').map(({ id, cause }) => `${id} ${cause}`),
  )
}

export const ofOne = (member: Member) => `etcd://${member.endpoint}`
