/** What a client is started with, checked before anything is opened. */

import { parseDuration, type Clock, type Random } from './clock.ts'
import type { Disk } from './disk.ts'
import type { Log } from './log.ts'
import type { Network } from './network.ts'
import { isNamespace, LIMITS } from './protocol.ts'
import { show } from './shown.ts'

export interface ConnectOptions {
  /** Base URLs of registries that hold the same state. */
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

/** The options that have a default which takes reading. */
export interface ConnectLimits {
  readonly endpoints: readonly string[]
  readonly peers: readonly string[]
  readonly leaseTtlMs: number
  readonly maxNodes: number
  readonly maxServices: number
  readonly maxCacheBytes: number
  /** Infinity: never. */
  readonly idleAfterMs: number
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
/** Each service that is missing is asked of all of them. */
const MAX_PEERS = 16

/** @throws TypeError that names the option */
export function limitsOf(options: ConnectOptions): ConnectLimits {
  if (!Array.isArray(options.endpoints) || options.endpoints.length === 0)
    throw new TypeError('endpoints: at least one is needed')
  const endpoints = urlsOf(options.endpoints, 'endpoints')
  const peers = urlsOf(options.peers ?? [], 'peers')
  if (peers.length > MAX_PEERS) throw new TypeError(`peers: at most ${MAX_PEERS}, got ${peers.length}`)
  if (options.namespace !== undefined && !isNamespace(options.namespace))
    throw new TypeError(`namespace: not a namespace: ${options.namespace}`)
  const { leaseTtlMs = DEFAULT_LEASE_TTL_MS } = options
  if (!(leaseTtlMs >= LIMITS.leaseTtlMinMs && leaseTtlMs <= LIMITS.leaseTtlMaxMs))
    throw new TypeError(`leaseTtlMs: must be ${LIMITS.leaseTtlMinMs}..${LIMITS.leaseTtlMaxMs}, got ${leaseTtlMs}`)
  if (options.zone !== undefined && !isNamespace(options.zone))
    throw new TypeError(`zone: must be lower-case letters, digits and -: ${options.zone}`)
  if (options.cacheDir === '') throw new TypeError('cacheDir: must not be empty; leave it out to keep nothing on disk')
  const { maxNodes = DEFAULT_MAX_NODES, maxServices = DEFAULT_MAX_SERVICES } = options
  for (const [name, value] of Object.entries({ maxNodes, maxServices }))
    if (!(Number.isInteger(value) && value > 0))
      throw new TypeError(`${name}: must be an integer above zero, got ${value}`)
  const { maxCacheBytes = DEFAULT_MAX_CACHE_BYTES } = options
  if (!(Number.isInteger(maxCacheBytes) && maxCacheBytes >= MIN_CACHE_BYTES))
    throw new TypeError(`maxCacheBytes: must be an integer of at least ${MIN_CACHE_BYTES}, got ${maxCacheBytes}`)
  const { idleAfter = DEFAULT_IDLE_MS } = options
  const idleAfterMs = idleAfter === false ? 0 : millisecondsOf(idleAfter, 'idleAfter')!
  return { endpoints, peers, leaseTtlMs, maxNodes, maxServices, maxCacheBytes, idleAfterMs: idleAfterMs || Infinity }
}

function urlsOf(urls: readonly string[], name: string): string[] {
  return urls.map((url) => {
    if (!/^https?:\/\/[^/?#]+[^?#]*$/.test(url) || !URL.canParse(url))
      throw new TypeError(`${name}: not an http URL: ${show(url)}`)
    return url.replace(/\/+$/, '')
  })
}

/**
 * @param name of the option, for the error
 * @throws TypeError for what is neither a duration with its unit nor a number of milliseconds
 */
export function millisecondsOf(input: string | number | undefined, name: string): number | undefined {
  const ms = typeof input === 'string' ? parseDuration(input) : input
  if (input !== undefined && (ms === undefined || !(ms >= 0)))
    throw new TypeError(`${name}: must be a duration with its unit, such as 250ms, 15s or 10m, got ${input}`)
  return ms
}
