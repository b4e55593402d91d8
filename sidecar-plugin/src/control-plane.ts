import { join } from 'node:path'
import type { RegistryClient } from '@holdfast/registry-client'
import { sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { Gauge, Registry } from 'prom-client'
import { adminApi } from './api/admin.ts'
import { PeerApi } from './api/peers.ts'
import type { SidecarConfig } from './config.ts'
import { shownConfig } from './inspection.ts'
import { createProbe } from './local/health-check.ts'
import { Listener } from './listener.ts'
import { LOCAL_HOST } from './local/local-nodes.ts'
import { LocalRegistration } from './local/local-registration.ts'
import { LocalServices, type Entrance } from './local/local-services.ts'
import type { LocalSpec } from './local/local-spec.ts'
import { OwnPortError, OwnPorts } from './local/own-ports.ts'
import { RegistrationFile, type SavedServices } from './local/registration-file.ts'
import type { DataPlane } from './planes.ts'
import { withGreeting } from './tcp/greeting.ts'
import type { TcpBinding } from './tcp/tcp-binding.ts'
import { TcpEntrances } from './tcp/tcp-entrances.ts'

/** What the control plane needs of the client library. */
export type ControlClient = Pick<RegistryClient, 'register' | 'status' | 'close'>

export interface ControlPlaneOptions {
  readonly config: SidecarConfig
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  /** It is closed with the plane, and so is `plane`. */
  readonly client: ControlClient
  readonly plane: DataPlane
}

export interface SidecarPorts {
  readonly admin: number
  readonly outbound: number
  readonly inbound: number
  readonly peers?: number
}

export interface ControlPlane {
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
}

/** How long a `PUT` waits for a first check and for the registry before it answers with what is known. */
const PUT_PATIENCE_MS = 5_000

/**
 * Starts a sidecar around its data plane. Listeners accept once everything that was known before is known again, so a
 * restart during an outage serves from its first request.
 * @throws the system's error when an address cannot be used
 */
export async function startControlPlane(options: ControlPlaneOptions): Promise<ControlPlane> {
  const { config, log, clock, random, client, plane } = options
  const { namespace } = config
  const { inbound: inboundAt, outbound: outboundAt, admin: adminAt, peers: peersAt } = config.listeners
  const file =
    config.cacheDir !== undefined && inboundAt.port !== 0
      ? new RegistrationFile(join(config.cacheDir, `sidecar-${inboundAt.port}.json`), log)
      : undefined
  const saved: SavedServices = (await file?.load()) ?? { registrations: [], ports: new Map() }
  const entrances = new TcpEntrances({
    plane,
    namespace,
    host: inboundAt.host,
    advertise: config.advertise,
    drainMs: config.drain.timeout,
    remembered: saved.ports,
    log,
  })
  // Of all who speak HTTP. The port is known once the inbound side listens, which is before the first of them is added.
  const shared = { host: config.advertise, port: 0, close: () => {} }
  const own = new OwnPorts()
  own.add('the inbound', inboundAt.host, inboundAt.port)
  own.add('the outbound', outboundAt.host, outboundAt.port)
  own.add('the admin', adminAt.host, adminAt.port)
  if (peersAt) own.add('the peer', peersAt.host, peersAt.port)
  for (const { host, port } of config.listeners.tcp) own.add('a TCP', host, port)
  const services = new LocalServices({
    namespace,
    plane,
    enter: async (spec, isRestored) => {
      own.check(spec, entrances.ports)
      return spec.protocol === 'tcp' ? entrances.enter(spec, isRestored) : shared
    },
    patienceMs: PUT_PATIENCE_MS,
    drainMs: config.drain.timeout,
    save: (registrations) => file?.save({ registrations, ports: entrances.ports }) ?? Promise.resolve(),
    keeper: (spec, entrance) => keeperOf(spec, entrance, options),
  })
  const registry = new Registry()
  new Gauge({
    name: 'holdfast_sidecar_local_services',
    help: 'Services behind this sidecar.',
    registers: [registry],
    collect() {
      this.set(services.size)
    },
  })

  let draining: Promise<void> | undefined
  let isReady = false
  let askDrain!: () => void
  const drainAsked = new Promise<void>((resolve) => (askDrain = resolve))
  const adminListening = adminApi(
    {
      unready: () => (draining ? 'draining' : isReady ? undefined : 'starting'),
      put: (spec) => services.put(spec),
      remove: (service) => services.remove(service),
      registrations: () => services.reports(),
      views: () => plane.views(),
      view: (service, of) => plane.view({ service, namespace: of }),
      rehearse: (names, of, signal) =>
        plane.rehearse(
          names?.map((service) => ({ service, namespace: of })),
          signal,
        ),
      explain: (service, of, request) => plane.explain({ service, namespace: of }, request),
      config: () => shownConfig(config),
      stats: async () => {
        const [traffic, workers] = await Promise.all([plane.traffic(), plane.workers()])
        return { ...traffic, registrations: services.states, client: client.status(), workers }
      },
      metrics: async () => (await Promise.all([plane.metrics(), registry.metrics()])).join('\n'),
      drain: askDrain,
    },
    namespace,
    log,
  )
  const admin = new Listener({ ...adminListening, clock, random })
  const peers = new PeerApi({
    clock,
    log,
    namespace,
    view: (service, of) => plane.peerView({ service, namespace: of }),
    isAtHand: (service, of) => plane.isAtHand({ service, namespace: of }),
  })
  const peerListener = new Listener({ ...peers.listening, clock, random })

  let closed: Promise<void> | undefined
  const closing = new AbortController()
  const cut = () => (closed ??= closeAll())
  const closeAll = async () => {
    closing.abort()
    services.stop()
    plane.cut()
    peerListener.close()
    // Whoever has asked for the end is still told.
    await Promise.all([admin.finish({ idleMs: 0, timeoutMs: PUT_PATIENCE_MS }), client.close()])
    await plane.close()
  }
  const addresses: { -readonly [K in keyof SidecarPorts]: string } = { admin: '', outbound: '', inbound: '' }
  const ports: { -readonly [K in keyof SidecarPorts]: SidecarPorts[K] } = { admin: 0, outbound: 0, inbound: 0 }
  const tcp: TcpBinding[] = []
  try {
    const named = new Set(config.services.map(({ service }) => service))
    const known = [
      ...config.services.map((spec) => ({ spec, isSaved: false })),
      ...saved.registrations.filter(({ service }) => !named.has(service)).map((spec) => ({ spec, isSaved: true })),
    ]
    const add = async ({ spec, isSaved }: (typeof known)[number]) => {
      try {
        await services.add(spec, isSaved)
      } catch (error) {
        if (!(error instanceof OwnPortError)) throw error
        log.error({ service: spec.service, path: 'port', reason: error.message }, 'a service is left out')
      }
    }
    const isTcp = ({ spec }: { spec: LocalSpec }) => spec.protocol === 'tcp'
    // The port is part of what is registered, so it has to be had first; what arrives is served once all are added,
    // which happens before any connection is read from.
    for (const item of known.filter(isTcp)) await add(item)
    ports.inbound = await plane.open({ id: 'inbound', direction: 'inbound', ...inboundAt })
    shared.port = ports.inbound
    own.add('the inbound', inboundAt.host, ports.inbound)
    await Promise.all(known.filter((item) => !isTcp(item)).map(add))
    if (entrances.ports.size > 0) await file?.save({ registrations: saved.registrations, ports: entrances.ports })
    ports.outbound = await plane.open({ id: 'outbound', direction: 'outbound', ...outboundAt })
    own.add('the outbound', outboundAt.host, ports.outbound)
    for (const [index, binding] of config.listeners.tcp.entries()) {
      const { service, namespace: of } = binding
      const opening = { id: `tcp ${index}`, direction: 'outbound', tcp: { service, namespace: of } } as const
      const port = await plane.open({ ...opening, host: binding.host, port: binding.port })
      own.add('a TCP', binding.host, port)
      tcp.push({ ...binding, port })
    }
    ports.admin = await admin.listen(adminAt.host, adminAt.port)
    own.add('the admin', adminAt.host, ports.admin)
    if (peersAt) {
      ports.peers = await peerListener.listen(peersAt.host, peersAt.port)
      own.add('the peer', peersAt.host, ports.peers)
      addresses.peers = urlOf(peersAt.host, ports.peers)
    }
    // Once all ports are had: a sidecar that cannot start starts nothing.
    await plane.start()
    services.start()
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
    plane.retire()
    // Others hear of it first; meanwhile everything is served as before.
    await services.deregister()
    await sleep(clock, settle, closing.signal)
    await plane.finish({ idleMs: idle, timeoutMs: timeout })
    await cut()
    log.info({}, 'drained')
  }
  return { ports, tcp, addresses, drainAsked, drain: () => (draining ??= drain()), close: cut }
}

function keeperOf(spec: LocalSpec, entrance: Entrance, parts: ControlPlaneOptions): LocalRegistration {
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

function urlOf(host: string, port: number): string {
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}
