/** What plays the rest of the world for one part of the sidecar. */

import { once } from 'node:events'
import { createServer, type RequestListener, type Server } from 'node:http'
import { connect, type AddressInfo, type Socket } from 'node:net'
import {
  NoNodesError,
  ResolveError,
  type ClientMetrics,
  type KnownView,
  type Resolved,
} from '@holdfast/registry-client'
import {
  decodeView,
  encodeView,
  type NodeStatus,
  type PolicyDocument,
  type Protocol,
  type View,
} from '@holdfast/registry-client/protocol'
import { Fields } from '../../sidecar-plugin/src/fields.ts'
import { Exchange, type Arrival, type Content, type Ending, type Reply } from '../../sidecar-plugin/src/layer.ts'
import type { Log } from '@holdfast/registry-client/log'
import type { Handle, NodeSpec } from '../../sidecar-plugin/src/registry.ts'
import { freePort } from '../support/free-port.ts'

export const quietLog: Log = { debug() {}, info() {}, warn() {}, error() {} }

/** An exchange as a listener makes it, and the way to end it. */
export function exchangeFor({
  headers = ['Host', 'stock'],
  ...over
}: Partial<Omit<Arrival, 'headers'>> &
  Partial<Pick<Exchange, 'service' | 'namespace'>> & { headers?: readonly string[] } = {}) {
  const exchange = new Exchange({
    direction: 'outbound',
    id: 'request-1',
    startedMs: 0,
    peer: '127.0.0.1',
    method: 'GET',
    target: '/',
    headers: Fields.of(headers),
    authority: 'stock',
    control: new Map(),
    body: undefined,
    ...over,
  })
  exchange.service = over.service ?? 'stock'
  exchange.namespace = over.namespace ?? 'default'
  exchange.name = `${exchange.service}.${exchange.namespace}`
  return {
    exchange,
    end: (ending: Partial<Ending> = {}) => exchange.end({ error: undefined, bytesIn: 0, bytesOut: 0, ...ending }),
  }
}

export function replyOf(over: Partial<Reply> = {}): Reply {
  return { status: 200, headers: Fields.NONE, body: undefined, ...over }
}

/** A body that says whether it can be sent again. */
export function bodyOf(repeatable: boolean, length?: number): Content {
  return {
    length,
    repeatable,
    pour: () => {
      throw new Error('nobody reads in this test')
    },
    resume() {},
    cancel() {},
  }
}

export interface FakeNode {
  readonly id: string
  readonly host?: string
  readonly port?: number
  readonly status?: NodeStatus
  readonly protocol?: Protocol
  readonly labels?: Readonly<Record<string, string>>
}

export function viewOf(service: string, nodes: readonly FakeNode[], policy: PolicyDocument | null = null): View {
  return decodeView({
    namespace: 'default',
    service,
    cursor: 'epoch:1',
    nodes: nodes.map(({ id, host = '127.0.0.1', port = 1, status = 'up', protocol = 'http', labels }) => ({
      id,
      host,
      port,
      protocol,
      weight: 100,
      status,
      ...(labels && { labels }),
    })),
    policy,
  })
}

/** A client library whose registry is a table in this process. */
export class FakeClient {
  readonly table = new Map<string, View>()
  readonly subscribed: string[] = []
  readonly outcomes: string[] = []
  readonly registered: NodeSpec[] = []
  readonly events: string[] = []
  source: Resolved['source'] = 'memory'
  #turn = 0

  set(service: string, nodes: readonly FakeNode[], policy?: PolicyDocument): void {
    this.table.set(service, viewOf(service, nodes, policy ?? null))
  }

  async resolve(service: string): Promise<Resolved> {
    this.subscribed.push(service)
    return this.peek(service) ?? Promise.reject(new ResolveError('unknown_service', service, []))
  }

  peek(service: string): Resolved | undefined {
    const view = this.table.get(service)
    return view && resolvedOf(view, this.source)
  }

  async lookup(service: string): Promise<KnownView | undefined> {
    const view = this.table.get(service)
    return view && { view, age: 0, source: 'memory' }
  }

  get reachable(): boolean {
    return true
  }

  async rehearse(): Promise<never[]> {
    return []
  }

  metrics(): ClientMetrics {
    const none = { services: 0, oldestMs: 0 }
    const level = { hits: 0, misses: 0 }
    return {
      connection: { reachable: true, endpoint: '', reconnects: 0, opened: 1, lastError: undefined, subscriptions: 0 },
      file: undefined,
      memory: { services: 0, pinned: 0, nodes: 0, evicted: { nodes: 0, services: 0, names: 0 } },
      peers: { urls: [], asked: 0, answered: 0, unknown: 0, failed: 0, crowded: 0, skipped: 0, lastError: undefined },
      services: this.table.size,
      unknown: 0,
      quarantined: [],
      ahead: [],
      overridden: [],
      sources: { memory: none, file: none, peer: none },
      registrations: 0,
      resumes: { nothing: 0, change: 0, snapshot: 0 },
      ...{ snapshots: 0, changes: 0, restarts: 0, quarantines: 0, released: 0, idled: 0 },
      levels: { memory: level, file: level, peer: level, registry: level },
      outageProbes: undefined,
      negativeAnswers: 0,
    }
  }

  views(): Resolved[] {
    return [...this.table.values()].map((view) => resolvedOf(view, this.source))
  }

  pick(service: string, options: { not?: ReadonlySet<string> } = {}) {
    const up = [...(this.table.get(service)?.nodes.values() ?? [])].filter((node) => node.status === 'up')
    const left = up.filter((node) => !options.not?.has(node.id))
    const node = left[options.not?.size ? 0 : this.#turn++ % left.length]
    if (node === undefined) throw new NoNodesError(service, up.length)
    return { node, done: (outcome: string) => void this.outcomes.push(`${node.id} ${outcome}`) }
  }

  nodeReports() {
    return []
  }

  async register(spec: NodeSpec): Promise<Handle & { service: string; namespace: string; cursor: string | undefined }> {
    this.registered.push(spec)
    this.events.push(`register ${spec.service} ${spec.status}`)
    let state: Handle['state'] = 'registered'
    return {
      id: spec.id,
      service: spec.service,
      namespace: spec.namespace,
      cursor: undefined,
      get state() {
        return state
      },
      update: async (change) => void this.events.push(`update ${spec.service} ${change.status}`),
      close: async () => {
        state = 'closed'
        this.events.push(`close ${spec.service}`)
      },
    }
  }

  status(): never {
    return { fake: true } as never
  }

  async close(): Promise<void> {
    this.events.push('close client')
  }
}

function resolvedOf(view: View, source: Resolved['source']): Resolved {
  return {
    view,
    nodes: [...view.nodes.values()],
    policy: encodeView(view).policy ? view.policy : undefined,
    cursor: view.cursor,
    asOf: view.cursor,
    source,
    age: 0,
    reachable: true,
    overridden: false,
  }
}

/** A local service. Close it with `stop`. */
export async function startService(handler: RequestListener): Promise<{ port: number; server: Server; stop(): void }> {
  const server = createServer(handler)
  // Once it has stopped nobody else is to be found there.
  server.listen(await freePort(), '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    server,
    stop: () => {
      server.close()
      server.closeAllConnections()
    },
  }
}

/** A raw connection that collects what it is told. */
export class RawCaller {
  readonly socket: Socket
  text = ''
  error: Error | undefined
  readonly closed: Promise<void>

  constructor(port: number, options: { allowHalfOpen?: boolean } = {}) {
    this.socket = connect({ port, host: '127.0.0.1', ...options })
    this.socket.setEncoding('latin1')
    this.socket.on('data', (chunk: string) => (this.text += chunk))
    this.socket.on('error', (error) => (this.error = error))
    this.closed = new Promise((resolve) => this.socket.once('close', () => resolve()))
  }

  send(text: string): this {
    this.socket.write(text, 'latin1')
    return this
  }

  /** Resolves once what was heard matches; rejects when the connection ends before. */
  async until(pattern: RegExp): Promise<string> {
    while (!pattern.test(this.text)) {
      if (this.socket.destroyed || this.socket.readableEnded)
        throw new Error(`the connection ended before ${pattern}: ${JSON.stringify(this.text.slice(0, 500))}`)
      await Promise.race([once(this.socket, 'data').catch(() => {}), once(this.socket, 'end'), this.closed])
    }
    return this.text
  }
}
