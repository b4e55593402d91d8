/** The settings of `holdfast-sidecar`: flags over environment over file over these defaults. */

import { availableParallelism, homedir } from 'node:os'
import { join } from 'node:path'
import { isNamespace, LIMITS, PATTERNS } from '@holdfast/registry-client/protocol'
import {
  commonSettings,
  duration,
  fraction,
  helpText,
  httpUrl,
  leaf,
  listOf,
  loadSettings,
  integer,
  port,
  show,
  size,
  SettingsError,
  toggle,
  type Sources,
} from '@holdfast/registry-client/settings'
import * as z from 'zod'
import { localSpecOf, localSpecSchema, type LocalSpec } from './local/local-spec.ts'
import { parseServiceHost } from './service-address.ts'
import { parseTcpBinding, type TcpBinding } from './tcp/tcp-binding.ts'

const LOOPBACK: ReadonlySet<string> = new Set(['127.0.0.1', '::1', 'localhost'])
const EVERYWHERE: ReadonlySet<string> = new Set(['0.0.0.0', '::'])

const host = () =>
  z
    .string()
    .max(LIMITS.hostChars)
    .regex(new RegExp(`${PATTERNS.host}|^::1?$`), 'must be an IP address or a DNS name')
/** As many as the client takes. */
const MAX_PEERS = 16
/** Each is a socket and a line in the metrics. */
const MAX_TCP = 1_000

const tcpBinding = () =>
  z.any().transform((input: unknown, context) => {
    const binding = typeof input === 'string' ? parseTcpBinding(input) : undefined
    if (binding) return binding
    const message = `must be [HOST:]PORT=SERVICE[.NAMESPACE], such as 127.0.0.1:15432=orders-db, got ${show(input)}`
    context.issues.push({ code: 'custom', input, message })
    return z.NEVER
  })

/** Of one core each; a machine with more of them has other means. */
const MAX_WORKERS = 64

const workers = () =>
  z.any().transform((input: unknown, context) => {
    if (input === 'auto') return Math.min(availableParallelism(), MAX_WORKERS)
    const count = typeof input === 'string' && /^\d{1,2}$/.test(input) ? Number(input) : input
    if (typeof count === 'number' && Number.isInteger(count) && count >= 1 && count <= MAX_WORKERS) return count
    const message = `must be 1..${MAX_WORKERS} or auto, got ${show(input)}`
    context.issues.push({ code: 'custom', input, message })
    return z.NEVER
  })

const loopback = () =>
  host().refine((name) => LOOPBACK.has(name), 'must be a loopback address: anybody could command it')

export const sidecarSettings = z.strictObject({
  registry: leaf(listOf(httpUrl()), {
    flag: 'registry',
    value: 'URL[,URL]',
    doc: 'registries that hold the same state',
  }).prefault(['http://127.0.0.1:7400']),
  peers: leaf(
    listOf(httpUrl()).refine((urls) => urls.length <= MAX_PEERS, `at most ${MAX_PEERS}`),
    {
      flag: 'peers',
      value: 'URL[,URL]',
      doc: 'other sidecars’ --peer-port, asked for what is unknown here while the registry is out of reach (default none)',
    },
  ).optional(),
  cacheDir: leaf(z.string().min(1), {
    flag: 'cache-dir',
    value: 'DIR',
    doc: 'views and registrations that outlive a restart (default $XDG_CACHE_HOME/holdfast, else ~/.cache/holdfast)',
  }).optional(),
  cacheMax: leaf(
    size().refine((bytes) => bytes >= 1_048_576, 'must be at least 1MiB'),
    {
      flag: 'cache-max',
      value: 'SIZE',
      doc: 'of the cache directory; beyond it the files of services that nobody has followed for longest go',
    },
  ).prefault('1GiB'),
  noFileCache: leaf(toggle(), {
    flag: 'no-file-cache',
    doc: 'nothing on disk: a restart without the registry then knows nothing',
  }).default(false),
  noOutageProbes: leaf(toggle(), {
    flag: 'no-outage-probes',
    doc: 'asks no nodes for a TCP connection while the registry is out of reach: only calls then tell which are dead',
  }).default(false),
  listeners: z
    .strictObject({
      admin: z
        .strictObject({
          host: loopback().default('127.0.0.1'),
          port: leaf(port(), { flag: 'admin-port', value: 'PORT', doc: 'admin API, loopback only' }).default(7500),
        })
        .prefault({}),
      outbound: z
        .strictObject({
          // Others on the network would call in this host's name.
          host: host().default('127.0.0.1'),
          port: leaf(port(), {
            flag: 'outbound-port',
            value: 'PORT',
            doc: 'for local callers, who name a service in Host',
          }).default(7501),
        })
        .prefault({}),
      inbound: z
        .strictObject({
          host: leaf(host(), { flag: 'host', value: 'HOST', doc: 'where the inbound side listens' }).default(
            '127.0.0.1',
          ),
          port: leaf(port(), {
            flag: 'inbound-port',
            value: 'PORT',
            doc: 'in front of the local services',
          }).default(7502),
        })
        .prefault({}),
      tcp: leaf(
        listOf(tcpBinding()).check(({ value, issues }) => {
          if (value.length > MAX_TCP)
            issues.push({ code: 'custom', input: value, message: `at most ${MAX_TCP}, got ${value.length}` })
          const seen = new Set<string>()
          for (const [index, { host, port }] of value.entries()) {
            const at = `${host}:${port}`
            if (port !== 0 && seen.has(at))
              issues.push({ code: 'custom', input: at, path: [index], message: `a second listener on ${at}` })
            seen.add(at)
          }
        }),
        {
          flag: 'tcp',
          value: '[HOST:]PORT=SERVICE[,…]',
          doc: 'for local callers of anything over TCP: what connects there, on 127.0.0.1 unless told, is connected to a node of SERVICE (default none)',
        },
      ).optional(),
      peers: z
        .strictObject({
          host: host().optional(),
          port: leaf(port(), {
            flag: 'peer-port',
            value: 'PORT',
            doc: 'where other hosts may read, on --host, what this one knows of services (default: nowhere)',
          }).optional(),
        })
        .prefault({}),
    })
    .prefault({}),
  advertise: leaf(host(), {
    flag: 'advertise',
    value: 'HOST',
    doc: 'the address that other hosts use (default: --host)',
  }).optional(),
  namespace: leaf(
    z
      .string()
      .max(LIMITS.namespaceChars)
      .refine(isNamespace, { error: 'must be a namespace: lower-case letters, digits and -' }),
    { flag: 'namespace', value: 'NAME', doc: 'of the local services, and of names without a dot' },
  ).default('default'),
  workers: leaf(workers(), {
    flag: 'workers',
    value: 'N',
    doc: 'processes that carry the traffic, up to one per core; auto is as many as there are cores',
    // More than one: each has a client of the registry, pools and limits of its own.
  }).prefault(1),
  zone: leaf(
    z.string().max(LIMITS.namespaceChars).regex(new RegExp(PATTERNS.zone), 'must be lower-case letters, digits and -'),
    { flag: 'zone', value: 'NAME', doc: 'where this host stands' },
  ).optional(),
  tcp: z
    .strictObject({
      idle: leaf(duration({ min: '1s', max: '30d' }), {
        flag: 'tcp-idle',
        value: 'DURATION',
        doc: 'TCP connections without a byte in either direction are closed after this',
        // Shorter cuts the idle connections of database pools, whose owners notice at their next query.
      }).prefault('1h'),
      // Longer lets callers wait for what is not there; each node has 2 s of it.
      connect: duration({ min: '10ms', max: '10m' }).prefault('10s'),
      // Of all TCP listeners of one direction; each relay is two sockets.
      connections: integer(1, 1_000_000).prefault(10_000),
    })
    .prefault({}),
  accessLog: leaf(z.string().min(1), {
    flag: 'access-log',
    value: 'FILE',
    doc: 'a line of JSON per request; - is standard output, off is none; opened again on SIGHUP',
    // Off: a file that nobody rotates fills a disk.
  }).default('off'),
  accessLogSample: leaf(fraction(), {
    flag: 'access-log-sample',
    value: 'FRACTION',
    doc: 'the part of the requests that went well that has a line; of the others each has one',
  }).default(1),
  drain: z
    .strictObject({
      settle: leaf(duration({ max: '10m' }), {
        flag: 'drain-settle',
        value: 'DURATION',
        doc: 'goes on as before for so long after deregistering, until others have heard of it',
        // Shorter: callers that have not heard yet meet a closed port, and have to try another node.
      }).prefault('1s'),
      idle: duration({ max: '10m' })
        // A peer lets go of an idle connection within 4 s. Shorter: a connection may be closed as a request enters it.
        .prefault('5s'),
      timeout: leaf(duration({ max: '1h' }), {
        flag: 'drain-timeout',
        value: 'DURATION',
        doc: 'requests under way are cut after this',
        // Longer than most supervisors wait before they kill would be in vain.
      }).prefault('30s'),
    })
    .prefault({}),
  services: z
    .array(localSpecSchema)
    .max(1_000)
    .superRefine(
      (services, context) => {
        const seen = new Set<unknown>()
        for (const [index, entry] of (services as readonly unknown[]).entries()) {
          const service = (entry as { service?: unknown } | null | undefined)?.service
          if (typeof service === 'string' && seen.has(service))
            context.addIssue({ code: 'custom', path: [index, 'service'], message: `a second service ${service}` })
          seen.add(service)
        }
      },
      // Beside whatever else is wrong, with these services or elsewhere: all problems are reported at once.
      { when: ({ value }) => Array.isArray(value) },
    )
    .default([]),
  ...commonSettings,
})

type Settings = z.output<typeof sidecarSettings>

/** The effective configuration. Frozen. */
export interface SidecarConfig extends Omit<
  Settings,
  'services' | 'cacheDir' | 'noFileCache' | 'advertise' | 'listeners' | 'peers'
> {
  readonly peers: readonly string[]
  readonly listeners: Omit<Settings['listeners'], 'peers' | 'tcp'> & {
    /** Undefined: no other host is answered. */
    readonly peers: { readonly host: string; readonly port: number } | undefined
    readonly tcp: readonly TcpBinding[]
  }
  /** Undefined: nothing is kept on disk. */
  readonly cacheDir: string | undefined
  readonly advertise: string
  readonly services: readonly LocalSpec[]
}

/**
 * Loads the configuration.
 * @returns the configuration, or what was asked for instead of running
 * @throws SettingsError with all problems
 */
export function loadConfig(sources: Sources): { config: SidecarConfig; asked?: 'help' | 'version' } {
  const { settings, asked } = loadSettings(sidecarSettings, sources)
  const { cacheDir, noFileCache, advertise, services, listeners, peers = [], ...rest } = settings
  const inbound = listeners.inbound.host
  const { host: peerHost = inbound, port: peerPort } = listeners.peers
  if (advertise === undefined && EVERYWHERE.has(inbound) && asked === undefined)
    throw new SettingsError([{ path: 'advertise', message: `is required when the inbound side listens on ${inbound}` }])
  const config: SidecarConfig = {
    ...rest,
    peers,
    listeners: {
      ...listeners,
      tcp: (listeners.tcp ?? []).map(({ host, port, service: written }) => {
        const { service, namespace } = parseServiceHost(written, rest.namespace)!
        return { host, port, service, namespace }
      }),
      peers: peerPort === undefined ? undefined : { host: peerHost, port: peerPort },
    },
    cacheDir: noFileCache ? undefined : (cacheDir ?? defaultCacheDir(sources.env)),
    advertise: advertise ?? inbound,
    services: services.map(localSpecOf),
  }
  return { config: Object.freeze(config), ...(asked && { asked }) }
}

export function sidecarHelp(): string {
  return helpText('Usage: holdfast-sidecar [options]', sidecarSettings)
}

function defaultCacheDir(env: Sources['env']): string {
  return join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'holdfast')
}
