/** What a client is started with, checked before anything is opened. */

import { checkInteger, checkList, checkMethods, checkNamespace, checkObject, millisecondsOf } from './checks.ts'
import { systemClock, systemRandom, type Clock, type Random } from './clock.ts'
import { systemDisk, type Disk } from './disk.ts'
import { silentLog, type Log } from './log.ts'
import { systemNetwork, type Network } from './network.ts'
import { DEFAULT_NAMESPACE, LIMITS } from './protocol.ts'
import { show } from './shown.ts'

export interface ConnectOptions {
  /** Base URLs of registries that hold the same state, at most 100. */
  readonly endpoints: readonly string[]
  /**
   * Base URLs of sidecars, or of other programs that answer `GET /v1/views/{service}`: asked, while the registry cannot
   * be reached, for services of which neither memory nor file knows anything. At most 16. Default none.
   */
  readonly peers?: readonly string[]
  /** Left out: nothing is kept on disk, and a restart during an outage knows nothing. */
  readonly cacheDir?: string | undefined
  /**
   * Of the cache directory, over all processes that share it: beyond it the files of services that nobody has followed for
   * longest go. Default 1 GiB, at least 1 MiB.
   */
  readonly maxCacheBytes?: number
  /** Of services named without one. Default `default`. */
  readonly namespace?: string
  /** Of the nodes that this process registers. */
  readonly zone?: string | undefined
  /** Life of this process's registrations without a word of it. Default 15 s, from 2 s to 1 h. */
  readonly leaseTtlMs?: number
  /** Nodes kept in memory for services that nobody watches. Default 100,000. */
  readonly maxNodes?: number
  /** Services kept in memory, and followed, that nobody watches. Default 20,000. */
  readonly maxServices?: number
  /**
   * How long a service that nobody watches is followed after it was last resolved or picked from, as `1h`; a number counts
   * milliseconds. Then it is dropped from memory, where its file holds it. Default 1 h; `false` or 0: never.
   */
  readonly idleAfter?: string | number | false
  /**
   * Whether nodes of services in use are asked for a TCP connection while the registry cannot be reached, so that dead
   * ones are found without calls and come back without the registry. Default false.
   */
  readonly outageProbes?: boolean
  readonly log?: Log
  readonly clock?: Clock
  readonly random?: Random
  readonly network?: Network
  readonly disk?: Disk
}

/** The same with its defaults, checked. */
export interface ConnectSettings {
  readonly endpoints: readonly string[]
  readonly peers: readonly string[]
  readonly cacheDir: string | undefined
  readonly maxCacheBytes: number
  readonly namespace: string
  readonly zone: string | undefined
  readonly leaseTtlMs: number
  readonly maxNodes: number
  readonly maxServices: number
  /** Infinity: never. */
  readonly idleAfterMs: number
  readonly outageProbes: boolean
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  readonly network: Network
  readonly disk: Disk
}

const DEFAULT_LEASE_TTL_MS = 15_000
const DEFAULT_MAX_NODES = 100_000
/** Far below what a registry takes on one stream; whoever calls more services than this calls them all rarely. */
const DEFAULT_MAX_SERVICES = 20_000
/** Some ten times what memory holds by default, in two generations: room for many processes, not for a full disk. */
const DEFAULT_MAX_CACHE_BYTES = 1_073_741_824
/** Less would not hold the views of a small host. */
const MIN_CACHE_BYTES = 1_048_576
/** Longer than the pauses of a job that runs every half hour; shorter, and each of its runs would begin with a stale view. */
const DEFAULT_IDLE_MS = 3_600_000
/** A request may have to try all of them. */
const MAX_ENDPOINTS = 100
/** Each service that is missing is asked of all of them. */
const MAX_PEERS = 16

const CLOCK = ['now', 'wall', 'after'] as const
const LOG = ['debug', 'info', 'warn', 'error'] as const
const NETWORK = ['request', 'open', 'probe'] as const
const DISK = Object.keys(systemDisk) as (keyof Disk)[]

/** @throws TypeError that names the option, and what was given */
export function settingsOf(options: ConnectOptions): ConnectSettings {
  checkObject(options, 'options')
  // Each is read once: what was checked is what is used.
  const { endpoints, peers = [], cacheDir, namespace = DEFAULT_NAMESPACE, zone, outageProbes = false } = options
  const { leaseTtlMs = DEFAULT_LEASE_TTL_MS, maxCacheBytes = DEFAULT_MAX_CACHE_BYTES } = options
  const { maxNodes = DEFAULT_MAX_NODES, maxServices = DEFAULT_MAX_SERVICES, idleAfter = DEFAULT_IDLE_MS } = options
  const { log = silentLog, clock = systemClock, random = systemRandom } = options
  const { network = systemNetwork, disk = systemDisk } = options
  const urls = urlsOf(endpoints, MAX_ENDPOINTS, 'endpoints')
  if (urls.length === 0) throw new TypeError('endpoints: at least one is needed')
  const peerUrls = urlsOf(peers, MAX_PEERS, 'peers')
  if (cacheDir !== undefined && (typeof cacheDir !== 'string' || cacheDir === '' || cacheDir.includes('\0')))
    throw new TypeError(`cacheDir: must be a path; leave it out to keep nothing on disk; got ${show(cacheDir)}`)
  checkNamespace(namespace)
  if (zone !== undefined) checkNamespace(zone, 'zone')
  const { leaseTtlMinMs, leaseTtlMaxMs } = LIMITS
  if (typeof leaseTtlMs !== 'number' || !(leaseTtlMs >= leaseTtlMinMs && leaseTtlMs <= leaseTtlMaxMs))
    throw new TypeError(`leaseTtlMs: must be ${leaseTtlMinMs}..${leaseTtlMaxMs}, got ${show(leaseTtlMs)}`)
  checkInteger(maxNodes, 1, 'maxNodes')
  checkInteger(maxServices, 1, 'maxServices')
  checkInteger(maxCacheBytes, MIN_CACHE_BYTES, 'maxCacheBytes')
  const idleAfterMs = (idleAfter !== false && millisecondsOf(idleAfter, 'idleAfter')) || Infinity
  if (typeof outageProbes !== 'boolean')
    throw new TypeError(`outageProbes: must be true or false, got ${show(outageProbes)}`)
  checkMethods(log, LOG, 'log')
  checkMethods(clock, CLOCK, 'clock')
  if (typeof random !== 'function') throw new TypeError(`random: must be a function, got ${show(random)}`)
  checkMethods(network, NETWORK, 'network')
  checkMethods(disk, DISK, 'disk')
  return {
    ...{
      endpoints: urls,
      peers: peerUrls,
      cacheDir,
      maxCacheBytes,
      namespace,
      zone,
      leaseTtlMs,
      maxNodes,
      maxServices,
    },
    ...{ idleAfterMs, outageProbes, log, clock, random, network, disk },
  }
}

function urlsOf(urls: readonly string[], most: number, name: string): string[] {
  checkList(urls, most, name)
  return urls.map((url: unknown) => {
    if (typeof url !== 'string' || !URL_PATTERN.test(url) || !URL.canParse(url))
      throw new TypeError(`${name}: not an http URL: ${show(url)}`)
    return url.replace(/\/+$/, '')
  })
}

/**
 * Written as it is sent: what a URL would have to escape is a slip, such as a space at the end. An @ behind the host is the
 * end of a password that had to be escaped.
 */
const URL_PATTERN = /^https?:\/\/[^\s/?#\\"<>^`{|}]+(?:\/[^\s?#\\"<>^`{|}@]*)?$/
