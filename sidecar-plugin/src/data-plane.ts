import type { RegistryClient } from '@holdfast/registry-client'
import { parseDuration, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import type { Registry } from 'prom-client'
import { AccessLogFile } from './access-log-file.ts'
import { portAcceptor, type AcceptorFactory } from './acceptor.ts'
import { exposeClient } from './client-metrics.ts'
import type { SidecarConfig } from './config.ts'
import { exposeConnections, type ConnectionStats } from './connection-metrics.ts'
import { SidecarError } from './errors.ts'
import { DEFAULT_FORWARD_LIMITS, Forward, type ForwardLimits } from './forward.ts'
import { explain, shownKnown, shownView } from './inspection.ts'
import { stack, type Exchange, type Layer } from './layer.ts'
import { accessLog } from './layers/access-log.ts'
import { address } from './layers/address.ts'
import { answers } from './layers/answers.ts'
import { balance } from './layers/balance.ts'
import { cleanHead } from './layers/clean-head.ts'
import { deadline, DEFAULT_TIMEOUT_MS } from './layers/deadline.ts'
import { leaving } from './layers/leaving.ts'
import { local } from './layers/local.ts'
import { metrics } from './layers/metrics.ts'
import { resolve } from './layers/resolve.ts'
import { DEFAULT_ATTEMPTS, retry } from './layers/retry.ts'
import { DEFAULT_LISTENER_LIMITS, Listener, type ListenerLimits } from './listener.ts'
import { LocalNodes } from './local/local-nodes.ts'
import type { DataPlane } from './planes.ts'
import { policyReader } from './policy-reader.ts'
import { Stats } from './stats.ts'
import type { TcpListener } from './tcp/tcp-listener.ts'
import { exposeTcp } from './tcp/tcp-metrics.ts'
import { composeTcp, type TcpSidesOptions } from './tcp/tcp-sides.ts'

/** What traffic needs of the client library. */
export type DataClient = Pick<
  RegistryClient,
  'resolve' | 'peek' | 'lookup' | 'views' | 'pick' | 'nodeReports' | 'rehearse' | 'status' | 'reachable' | 'metrics'
>

export interface DataPlaneOptions {
  readonly config: SidecarConfig
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  /** Is not closed with the plane. */
  readonly client: DataClient
  readonly limits?: DataPlaneLimits | undefined
  /** Where the connections of an opening come from. Default: a port of this process. */
  readonly acceptor?: (id: string) => AcceptorFactory
}

export interface DataPlaneLimits {
  readonly listener?: Partial<ListenerLimits>
  readonly forward?: Partial<ForwardLimits>
  readonly tcp?: TcpSidesOptions['limits']
}

/** The data plane of one process. */
export interface ProcessDataPlane extends DataPlane {
  /** What {@link DataPlane.metrics} is made of. */
  readonly registry: Registry
}

/**
 * Services come and go with their servers, and a service's own idle limit is unknown: gunicorn's is two seconds. A new
 * connection on loopback costs little; a request into a closing one is lost.
 */
const LOCAL_KEEP_ALIVE_MS = 1_000

/** On this host an end is heard of, and servers of gRPC take more than a ping in five minutes for abuse. */
const LOCAL_QUIET_MS = 360_000

/**
 * What a message may have more of where a sidecar has sent it: fields of its own, those of the connection, and what
 * fields take up in HTTP/2. Without it the second sidecar refuses what the first has taken.
 */
const PEER_ROOM = { headFields: 16, headBytes: 8_192 }

/** Hands the parts that carry traffic to each other. */
export function createDataPlane(options: DataPlaneOptions): ProcessDataPlane {
  const { config, log, clock, random, client, limits, acceptor = () => portAcceptor } = options
  const { namespace } = config
  const accessLogFile =
    config.accessLog === 'off'
      ? undefined
      : new AccessLogFile({ destination: config.accessLog, shared: config.workers > 1, log, clock, random })
  const policyOf = policyReader(log)
  const nodes = new LocalNodes({ namespace, clock })

  const outboundForward = new Forward({
    clock,
    trustReason: true,
    fields: (exchange) => peerFields(exchange, clock),
    replaces: ['x-request-id'],
    limits: withPeerRoom({ ...DEFAULT_FORWARD_LIMITS, ...limits?.forward }),
  })
  const inboundForward = new Forward({
    clock,
    trustReason: false,
    fields: serviceFields,
    replaces: ['x-request-id', 'x-forwarded-for'],
    limits: { ...limits?.forward, keepAliveMs: LOCAL_KEEP_ALIVE_MS, quietMs: LOCAL_QUIET_MS },
  })
  const stats = new Stats({
    holdfast_sidecar_nodes_connected: {
      help: 'Nodes with connections.',
      aggregator: 'max',
      read: () => outboundForward.load.nodes,
    },
    holdfast_sidecar_access_log_dropped: { help: 'Lines lost.', read: () => accessLogFile?.dropped ?? 0 },
  })
  exposeClient(stats.registry, () => client.metrics())

  // Each stack in the order in which a request meets it.
  const record: Layer[] = [
    // Outermost, so that both see what the caller sees and how long it took.
    ...(accessLogFile
      ? [accessLog({ clock, random, sample: config.accessLogSample, write: (line) => accessLogFile.write(line) })]
      : []),
    metrics({ clock, stats }),
    // Below those who only look, above all who may refuse.
    answers(log),
    // Before anything reads a field.
    cleanHead(),
  ]
  const outbound = new Listener({
    direction: 'outbound',
    clock,
    random,
    acceptor: acceptor('outbound'),
    ...(limits?.listener && { limits: limits.listener }),
    onMalformed: (reason, kind) => stats.malformed(reason, kind),
    serve: stack(
      [
        ...record,
        address(namespace),
        // Before the deadline, whose length stands in the view's policy.
        resolve({ resolver: client, limitMs: DEFAULT_TIMEOUT_MS }),
        // Above retry: all attempts share it.
        deadline({ clock, policyTimeoutMs: (document) => policyOf(document)?.timeoutMs }),
        retry({
          clock,
          random,
          policyAttempts: (document) => policyOf(document)?.retryAttempts,
          onRetry: (_exchange, failed) => stats.retried(failed),
        }),
        // Innermost, because every attempt chooses anew.
        balance({ picker: client, clock }),
      ],
      outboundForward.serve,
    ),
  })
  const inbound: Listener = new Listener({
    direction: 'inbound',
    clock,
    random,
    acceptor: acceptor('inbound'),
    limits: withPeerRoom({ ...DEFAULT_LISTENER_LIMITS, ...limits?.listener }),
    onMalformed: (reason, kind) => stats.malformed(reason, kind),
    serve: stack(
      [
        ...record,
        // Before the request counts as one of a service.
        leaving(() => inbound.leaving),
        local(namespace, (service, of) => nodes.find(service, of)),
        // What is left of the caller's time came with the request; the policy was applied there.
        deadline({ clock, policyTimeoutMs: () => undefined }),
      ],
      inboundForward.serve,
    ),
  })
  const http = { outbound, inbound }
  const tcp = composeTcp({
    config,
    clock,
    random,
    log,
    client,
    limits: limits?.tcp,
    write: accessLogFile && ((line) => accessLogFile.write(line)),
    policyAttempts: (document) => policyOf(document)?.retryAttempts,
    onRetry: (failed) => stats.retried(failed),
    find: (service, of) => nodes.find(service, of, true),
  })
  exposeTcp(stats.registry, tcp.traffic)
  const tcpListeners = new Map<string, TcpListener>()
  const connections = (): ConnectionStats => ({
    outbound: { open: outbound.connections, refused: outbound.refused },
    inbound: { open: inbound.connections, refused: inbound.refused },
  })
  exposeConnections(stats.registry, connections)

  return {
    registry: stats.registry,
    async open({ id, direction, host, port, tcp: binding }) {
      if (binding === undefined) return http[direction].listen(host, port)
      const listener = await tcp[direction].open({ host, port, ...binding }, acceptor(id))
      tcpListeners.set(id, listener)
      return listener.port
    },
    async shut(id, patience) {
      const listener = tcpListeners.get(id)
      tcpListeners.delete(id)
      if (listener) await tcp.inbound.drop(listener, patience)
    },
    start: () => Promise.resolve(),
    set: (node) => Promise.resolve(nodes.set(node)),
    forget: (service) => Promise.resolve(nodes.forget(service)),
    idle: (service, limitMs) => nodes.idle(service, limitMs),
    retire() {
      inbound.retire()
      outbound.retire()
    },
    async finish(patience) {
      const endMs = clock.now() + patience.timeoutMs
      await Promise.all([inbound.finish(patience), tcp.inbound.finish(patience)])
      // Who holds connections for later, as pools do, never lets go of them by itself: they have what is left of the time.
      const rest = { idleMs: 0, timeoutMs: Math.max(0, endMs - clock.now()) }
      await Promise.all([outbound.finish(rest), tcp.outbound.finish(rest)])
    },
    cut() {
      outbound.close()
      inbound.close()
      tcp.close()
      outboundForward.close()
      inboundForward.close()
    },
    close: () => accessLogFile?.close() ?? Promise.resolve(),
    reopenLogs: () => accessLogFile?.reopen(),

    inFlight: () => Promise.resolve(nodes.inFlight),
    traffic: () => Promise.resolve({ ...stats.snapshot(), connections: connections(), tcp: tcp.traffic() }),
    metrics: () => stats.registry.metrics(),
    views: () => Promise.resolve(client.views().map(shownView)),
    async view({ service, namespace: of }) {
      const known = await client.lookup(service, { namespace: of })
      const served = client.peek(service, { namespace: of })
      // An operator's word for a service that the registry said nothing of is nothing to peers: it has no cursor.
      return known ? shownKnown(known, served, client.reachable) : served && shownView(served)
    },
    async peerView({ service, namespace: of }) {
      const known = await client.lookup(service, { namespace: of })
      return known && { document: shownKnown(known, undefined, client.reachable), nodes: known.view.nodes.size }
    },
    isAtHand: ({ service, namespace: of }) => client.peek(service, { namespace: of }) !== undefined,
    explain({ service, namespace: of }, request) {
      const known = client.peek(service, { namespace: of })
      if (known === undefined) return Promise.resolve(undefined)
      const policy = policyOf(known.policy)
      const explained = explain({
        service,
        namespace: of,
        ...request,
        known,
        calls: client.nodeReports(service, { namespace: of }),
        timeoutMs: Math.min(
          parseDuration(request.headers['x-holdfast-timeout']) ?? Infinity,
          policy?.timeoutMs ?? DEFAULT_TIMEOUT_MS,
        ),
        retries: policy?.retryAttempts ?? DEFAULT_ATTEMPTS,
        strategy: policy?.strategy === 'random' ? 'random' : 'round_robin',
      })
      return Promise.resolve(explained)
    },
    rehearse: (names, signal) => client.rehearse(names, { signal }),
    workers: () => Promise.resolve([]),
  }
}

function withPeerRoom<Limits extends typeof PEER_ROOM>(limits: Limits): Limits {
  return {
    ...limits,
    headFields: limits.headFields + PEER_ROOM.headFields,
    headBytes: limits.headBytes + PEER_ROOM.headBytes,
  }
}

/** What one sidecar tells the next: whose request it is, what is left of a stated timeout, and whether it has a choice. */
function peerFields(exchange: Exchange, clock: Clock): string[] {
  const fields = ['x-request-id', exchange.id, 'x-holdfast-service', exchange.name]
  if (exchange.deadlineMs !== undefined)
    fields.push('x-holdfast-deadline', String(Math.max(1, Math.ceil(exchange.deadlineMs - clock.now()))))
  if (exchange.elsewhere) fields.push('x-holdfast-elsewhere', 'true')
  return fields
}

/**
 * Hops after which a request is taken to run in circles, through a service that is a proxy and leads back. More holds two
 * connections for each; less refuses what long chains of services pass on.
 */
const HOPS_MAX = 32

/**
 * What the service is told: the request's id, and appended to what it says already, the address it came from.
 * @throws SidecarError `loop_detected`
 */
function serviceFields(exchange: Exchange): string[] {
  const forwarded = exchange.headers.getAll('x-forwarded-for')
  if (forwarded.length > 0 && hopsOf(forwarded) >= HOPS_MAX)
    throw new SidecarError('loop_detected', `x-forwarded-for names ${HOPS_MAX} hops and more`)
  if (exchange.peer) forwarded.push(exchange.peer)
  return ['x-request-id', exchange.id, ...(forwarded.length > 0 ? ['x-forwarded-for', forwarded.join(', ')] : [])]
}

function hopsOf(forwarded: readonly string[]): number {
  let hops = forwarded.length
  for (const list of forwarded) for (let at = list.indexOf(','); at >= 0; at = list.indexOf(',', at + 1)) hops++
  return hops
}
