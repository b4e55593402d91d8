import { join } from 'node:path'
import { connect, type RegistryClient } from '@holdfast/registry-client'
import {
  parseDuration,
  sleep,
  systemClock,
  systemRandom,
  type Clock,
  type Random,
} from '@holdfast/registry-client/clock'
import { openAccessLog } from './access-log-file.ts'
import { createAdmin } from './admin.ts'
import { exposeClient } from './client-metrics.ts'
import type { SidecarConfig } from './config.ts'
import { exposeConnections, type ConnectionStats } from './connection-metrics.ts'
import { Forward, type ForwardLimits } from './forward.ts'
import { createProbe } from './local/health-check.ts'
import { explain, shownConfig, shownKnown, shownView } from './inspection.ts'
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
import { Listener, type ListenerLimits } from './listener.ts'
import { LocalServices, type Entrance } from './local/local-services.ts'
import type { LocalSpec } from './local/local-spec.ts'
import { PeerListener } from './peer-listener.ts'
import { policyReader } from './policy-reader.ts'
import { LocalRegistration } from './local/local-registration.ts'
import { RegistrationFile, type SavedServices } from './local/registration-file.ts'
import type { Log } from '@holdfast/registry-client/log'
import { Stats } from './stats.ts'
import { withGreeting } from './tcp/greeting.ts'
import type { TcpBinding } from './tcp/tcp-binding.ts'
import { exposeTcp } from './tcp/tcp-metrics.ts'
import { composeTcp, type TcpSidesOptions } from './tcp/tcp-sides.ts'

/** What a sidecar uses of the client library. */
export type SidecarClient = Pick<
  RegistryClient,
  | 'resolve'
  | 'peek'
  | 'lookup'
  | 'views'
  | 'pick'
  | 'nodeReports'
  | 'register'
  | 'rehearse'
  | 'status'
  | 'reachable'
  | 'metrics'
  | 'close'
>

export interface SidecarOptions {
  readonly config: SidecarConfig
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** For those who bring their own; it is closed with the sidecar. */
  readonly client?: SidecarClient
  readonly limits?: {
    readonly listener?: Partial<ListenerLimits>
    readonly forward?: Partial<ForwardLimits>
    readonly tcp?: TcpSidesOptions['limits']
  }
}

export interface SidecarPorts {
  readonly admin: number
  readonly outbound: number
  readonly inbound: number
  readonly peers?: number
}

export interface Sidecar {
  /** `peers` is absent where no other host is answered. */
  readonly ports: SidecarPorts
  /** The TCP listeners of the configuration, in its order, with the ports that they have got. */
  readonly tcp: readonly TcpBinding[]
  /** The ready line's addresses. */
  readonly addresses: { readonly [K in keyof SidecarPorts]: string }
  /** Resolves when somebody asked for a drain by the admin API; `drain` is then up to the owner. */
  readonly drainAsked: Promise<void>
  /** Deregisters, finishes what runs, and closes everything. Once, whoever asks how often. */
  drain(): Promise<void>
  /** Cuts everything. Deregisters, if the registry answers in time. */
  close(): Promise<void>
  reopenLogs(): void
}

/** How long a `PUT` waits for a first check and for the registry before it answers with what is known. */
const PUT_PATIENCE_MS = 5_000

/**
 * Services come and go with their servers, and a service's own idle limit is unknown: gunicorn's is two seconds. A new
 * connection on loopback costs little; a request into a closing one is lost.
 */
const LOCAL_KEEP_ALIVE_MS = 1_000

/** On this host an end is heard of, and servers of gRPC take more than a ping in five minutes for abuse. */
const LOCAL_QUIET_MS = 360_000

/** Where the local services listen. */
const LOCAL_HOST = '127.0.0.1'

/**
 * Starts a sidecar: all parts, handed to each other. Listeners accept once everything that was known before is known
 * again, so a restart during an outage serves from its first request.
 * @throws the system's error when an address cannot be used
 */
export async function createSidecar(options: SidecarOptions): Promise<Sidecar> {
  const { config, log, clock = systemClock, random = systemRandom } = options
  const { namespace } = config
  const client =
    options.client ??
    (await connect({
      endpoints: config.registry,
      peers: config.peers,
      cacheDir: config.cacheDir,
      maxCacheBytes: config.cacheMax,
      outageProbes: !config.noOutageProbes,
      namespace,
      zone: config.zone,
      clock,
      random,
      log,
    }))
  const accessLogFile = config.accessLog === 'off' ? undefined : openAccessLog(config.accessLog, log)
  const policyOf = policyReader(log)

  const outboundForward = new Forward({
    clock,
    trustReason: true,
    fields: (exchange) => peerFields(exchange, clock),
    replaces: ['x-request-id'],
    ...(options.limits?.forward && { limits: options.limits.forward }),
  })
  const inboundForward = new Forward({
    clock,
    trustReason: false,
    fields: serviceFields,
    replaces: ['x-request-id', 'x-forwarded-for'],
    limits: { ...options.limits?.forward, keepAliveMs: LOCAL_KEEP_ALIVE_MS, quietMs: LOCAL_QUIET_MS },
  })
  const { inbound: inboundAt, outbound: outboundAt, admin: adminAt, peers: peersAt } = config.listeners
  const file =
    config.cacheDir !== undefined && inboundAt.port !== 0
      ? new RegistrationFile(join(config.cacheDir, `sidecar-${inboundAt.port}.json`), log)
      : undefined
  const saved: SavedServices = (await file?.load()) ?? { registrations: [], ports: new Map() }
  // Of all who speak HTTP. The port is known once the inbound side listens, which is before the first of them is added.
  const shared = { host: config.advertise, port: 0, close: () => {} }
  const services: LocalServices = new LocalServices({
    namespace,
    enter: (spec, isRestored) =>
      spec.protocol === 'tcp' ? tcp.entrances.enter(spec, isRestored) : Promise.resolve(shared),
    localHost: LOCAL_HOST,
    patienceMs: PUT_PATIENCE_MS,
    drainMs: config.drain.timeout,
    save: (registrations) => file?.save({ registrations, ports: tcp.entrances.ports }) ?? Promise.resolve(),
    keeper: (spec, entrance) => keeperOf(spec, entrance, { client, clock, random, log, config }),
  })
  const stats = new Stats({
    holdfast_sidecar_nodes_connected: { help: 'Nodes with connections.', read: () => outboundForward.load.nodes },
    holdfast_sidecar_local_services: { help: 'Services behind this sidecar.', read: () => services.size },
    holdfast_sidecar_access_log_dropped: { help: 'Lines lost.', read: () => accessLogFile?.dropped ?? 0 },
  })

  exposeClient(stats.registry, () => client.metrics())
  const peerListener =
    peersAt &&
    new PeerListener({
      clock,
      log,
      namespace,
      view: async (service, of) => {
        const known = await client.lookup(service, { namespace: of })
        if (known === undefined) return undefined
        return {
          document: shownKnown(known, undefined, client.reachable),
          nodes: known.view.nodes.size,
        }
      },
      isAtHand: (service, of) => client.peek(service, { namespace: of }) !== undefined,
    })

  // Each stack in the order in which a request meets it.
  const record: Layer[] = [
    // Outermost, so that both see what the caller sees and how long it took.
    ...(accessLogFile ? [accessLog({ clock, write: (line) => accessLogFile.write(line) })] : []),
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
    ...(options.limits?.listener && { limits: options.limits.listener }),
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
    ...(options.limits?.listener && { limits: options.limits.listener }),
    onMalformed: (reason, kind) => stats.malformed(reason, kind),
    serve: stack(
      [
        ...record,
        // Before the request counts as one of a service.
        leaving(() => inbound.leaving),
        local(namespace, (service, of) => services.find(service, of)),
        // What is left of the caller's time came with the request; the policy was applied there.
        deadline({ clock, policyTimeoutMs: () => undefined }),
      ],
      inboundForward.serve,
    ),
  })

  const tcp = composeTcp({
    config,
    clock,
    random,
    log,
    client,
    limits: options.limits?.tcp,
    write: accessLogFile && ((line) => accessLogFile.write(line)),
    policyAttempts: (document) => policyOf(document)?.retryAttempts,
    onRetry: (failed) => stats.retried(failed),
    find: (service, of) => services.find(service, of, true),
    remembered: saved.ports,
  })
  exposeTcp(stats.registry, tcp.traffic)
  const connections = (): ConnectionStats => ({
    outbound: { open: outbound.connections, refused: outbound.refused },
    inbound: { open: inbound.connections, refused: inbound.refused },
  })
  exposeConnections(stats.registry, connections)

  let draining: Promise<void> | undefined
  let isReady = false
  let askDrain!: () => void
  const drainAsked = new Promise<void>((resolve) => (askDrain = resolve))

  const admin = createAdmin(
    {
      unready: () => (draining ? 'draining' : isReady ? undefined : 'starting'),
      put: (spec) => services.put(spec),
      remove: (service) => services.remove(service),
      registrations: () => services.reports(),
      views: () => client.views().map(shownView),
      view: async (service, of) => {
        const known = await client.lookup(service, { namespace: of })
        const served = client.peek(service, { namespace: of })
        // An operator's word for a service that the registry said nothing of is nothing to peers: it has no cursor.
        return known ? shownKnown(known, served, client.reachable) : served && shownView(served)
      },
      rehearse: (names, of, signal) =>
        client.rehearse(
          names?.map((service) => ({ service, namespace: of })),
          { signal },
        ),
      explain: (service, of, request) => {
        const known = client.peek(service, { namespace: of })
        if (known === undefined) return undefined
        const policy = policyOf(known.policy)
        return explain({
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
      },
      config: () => shownConfig(config),
      stats: () => ({
        ...stats.snapshot(),
        connections: connections(),
        tcp: tcp.traffic(),
        registrations: countStates(services),
        client: client.status(),
      }),
      metrics: () => stats.registry.metrics(),
      drain: askDrain,
    },
    namespace,
  )

  let closed: Promise<void> | undefined
  const cut = () => (closed ??= closeAll())
  const closing = new AbortController()
  const closeAll = async () => {
    closing.abort()
    services.stop()
    outbound.close()
    inbound.close()
    tcp.close()
    peerListener?.close()
    outboundForward.close()
    inboundForward.close()
    await Promise.all([admin.close(), client.close()])
    await accessLogFile?.close()
  }
  const addresses: { -readonly [K in keyof Sidecar['addresses']]: string } = { admin: '', outbound: '', inbound: '' }
  const ports: { -readonly [K in keyof SidecarPorts]: SidecarPorts[K] } = { admin: 0, outbound: 0, inbound: 0 }
  const tcpPorts: TcpBinding[] = []
  try {
    const named = new Set(config.services.map(({ service }) => service))
    const known = [
      ...config.services.map((spec) => ({ spec, isSaved: false })),
      ...saved.registrations.filter(({ service }) => !named.has(service)).map((spec) => ({ spec, isSaved: true })),
    ]
    const isTcp = ({ spec }: { spec: LocalSpec }) => spec.protocol === 'tcp'
    // The port is part of what is registered, so it has to be had first; what arrives is served once all are added,
    // which happens before this process reads from any connection.
    for (const { spec, isSaved } of known.filter(isTcp)) await services.add(spec, isSaved)
    ports.inbound = await inbound.listen(inboundAt.host, inboundAt.port)
    shared.port = ports.inbound
    await Promise.all(known.filter((item) => !isTcp(item)).map(({ spec, isSaved }) => services.add(spec, isSaved)))
    if (tcp.entrances.ports.size > 0)
      await file?.save({ registrations: saved.registrations, ports: tcp.entrances.ports })
    ports.outbound = await outbound.listen(outboundAt.host, outboundAt.port)
    for (const binding of config.listeners.tcp) {
      const { port } = await tcp.outbound.open(binding)
      tcpPorts.push({ ...binding, port })
    }
    await admin.listen({ host: adminAt.host, port: adminAt.port })
    ports.admin = (admin.server.address() as { port: number }).port
    if (peerListener && peersAt) {
      ports.peers = await peerListener.listen(peersAt.host, peersAt.port)
      addresses.peers = urlOf(peersAt.host, ports.peers)
    }
    addresses.inbound = urlOf(inboundAt.host, ports.inbound)
    addresses.outbound = urlOf(outboundAt.host, ports.outbound)
    addresses.admin = urlOf(adminAt.host, ports.admin)
    isReady = true
  } catch (error) {
    await cut()
    throw error
  }

  const drain = async () => {
    const { settle, idle, timeout } = config.drain
    log.info({ services: services.size }, 'draining')
    inbound.retire()
    outbound.retire()
    // Others hear of it first; meanwhile everything is served as before.
    await services.deregister()
    await sleep(clock, settle, closing.signal)
    const endMs = clock.now() + timeout
    const params = { idleMs: idle, timeoutMs: timeout }
    await Promise.all([inbound.finish(params), tcp.inbound.finish(params)])
    // Last, because a service that finishes a request may have to call others for it. Who holds connections for later,
    // as pools do, never lets go of them by itself: they have what is left of the time.
    await Promise.all([
      outbound.finish({ idleMs: 0, timeoutMs: timeout }),
      tcp.outbound.finish({ idleMs: 0, timeoutMs: Math.max(0, endMs - clock.now()) }),
    ])
    await cut()
    log.info({}, 'drained')
  }
  return {
    ports,
    tcp: tcpPorts,
    addresses,
    drainAsked,
    drain: () => (draining ??= drain()),
    close: cut,
    reopenLogs: () => accessLogFile?.reopen(),
  }
}

interface KeeperParts {
  readonly client: SidecarClient
  readonly clock: Clock
  readonly random: Random
  readonly log: Log
  readonly config: SidecarConfig
}

function keeperOf(spec: LocalSpec, entrance: Entrance, parts: KeeperParts): LocalRegistration {
  const { client, clock, random, log, config } = parts
  const { healthCheck: check, service, port, id, protocol, weight, labels } = spec
  const zone = spec.zone ?? config.zone
  return new LocalRegistration({
    node: {
      service,
      namespace: config.namespace,
      id: id ?? nodeIdOf(entrance.host, entrance.port),
      host: entrance.host,
      port: entrance.port,
      ...(protocol !== undefined && { protocol }),
      ...(weight !== undefined && { weight }),
      // Of TCP the entrance is what others connect to.
      ...(protocol === 'tcp' ? { labels: withGreeting(labels) } : labels !== undefined && { labels }),
      ...(zone !== undefined && { zone }),
    },
    check,
    probe: createProbe(check, { host: LOCAL_HOST, port, protocol }, clock),
    registrar: client,
    clock,
    random,
    log,
  })
}

/** `host:port`; an id may not begin with a colon, as an IPv6 address may. */
export function nodeIdOf(host: string, port: number): string {
  const id = `${host}:${port}`
  return id.startsWith(':') ? `ip6-${id}` : id
}

/** What one sidecar tells the next: whose request it is, what is left of a stated timeout, and whether it has a choice. */
function peerFields(exchange: Exchange, clock: Clock): string[] {
  const fields = ['x-request-id', exchange.id, 'x-holdfast-service', exchange.name]
  if (exchange.deadlineMs !== undefined)
    fields.push('x-holdfast-deadline', String(Math.max(1, Math.ceil(exchange.deadlineMs - clock.now()))))
  if (exchange.elsewhere) fields.push('x-holdfast-elsewhere', 'true')
  return fields
}

/** What the service is told: the request's id, and appended to what it says already, the address it came from. */
function serviceFields(exchange: Exchange): string[] {
  const forwarded = exchange.headers.getAll('x-forwarded-for')
  if (exchange.peer) forwarded.push(exchange.peer)
  return ['x-request-id', exchange.id, ...(forwarded.length > 0 ? ['x-forwarded-for', forwarded.join(', ')] : [])]
}

function countStates(services: LocalServices): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const { state } of services.reports()) counts[state] = (counts[state] ?? 0) + 1
  return counts
}

function urlOf(host: string, port: number): string {
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}
