/** The composer: builds a registry of its parts, and takes it down again. It decides nothing else. */

import { randomBytes } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import { systemClock, systemRandom, type Clock, type Random } from '@holdfast/registry-client/clock'
import { createApi, TIMEOUTS, type Timeouts } from './api/api.ts'
import { Exchanges } from './api/exchanges.ts'
import type { RegistryConfig } from './config.ts'
import { Leases } from './leases.ts'
import type { Log } from '@holdfast/registry-client/log'
import { createMetrics } from './metrics.ts'
import type { Phase, RegistryParts } from './parts.ts'
import { openStore } from './store/open-store.ts'
import type { Store } from './store/store.ts'
import { WatchHub } from './watch/watch-hub.ts'
import { WatchStreams } from './watch/watch-streams.ts'

/** Clients take two and a half of these in silence for a dead path. */
const PING_MS = 10_000

/** How long a stop waits for the rest of a request: one on its way is there by then, and nothing of it was begun. */
const UNFINISHED_MS = 1_000

export interface RegistryOptions {
  readonly config: RegistryConfig
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** Names that nobody guesses: of the store's epoch, and of leases. */
  readonly identifier?: () => string
  /** Ends the loading. */
  readonly signal?: AbortSignal
  /** Another engine than the configured one. */
  readonly openStore?: () => Promise<Store>
  /** How long a client may take to send a request: 10 s for the head, 30 s for all. */
  readonly timeouts?: Timeouts
  /** Called once the port is bound, before the state is loaded: from then on `/healthz` answers, and `/readyz` says no. */
  readonly onListening?: (url: string) => void
}

export interface Registry {
  readonly url: string
  readonly port: number
  readonly parts: RegistryParts
  /** Ends streams, finishes what was begun, and closes the store; forced after the configured time. */
  close(): Promise<void>
}

/**
 * Listens, loads, and serves.
 * @throws StoreRefused when the store must not be opened; the error of `listen` when the port cannot be had; the
 * signal's reason
 */
export async function createRegistry(options: RegistryOptions): Promise<Registry> {
  const { config, log, clock = systemClock, random = systemRandom, signal } = options
  const identifier = options.identifier ?? (() => randomBytes(16).toString('base64url'))
  const lifecycle = { phase: 'loading' as Phase, parts: undefined as RegistryParts | undefined }
  const metrics = createMetrics(lifecycle)
  const { maxSubscribers } = config.watch
  const exchanges = new Exchanges()
  const streams = new WatchStreams({ lifecycle, exchanges, clock, random, pingMs: PING_MS, maxSubscribers })
  const api = await createApi({
    lifecycle,
    streams,
    exchanges,
    metrics,
    clock,
    log,
    maxOverrides: config.overrides.max,
    timeouts: options.timeouts ?? TIMEOUTS,
  })
  let store: Store | undefined
  try {
    await api.listen({ host: config.host, port: config.port })
    const { port } = api.server.address() as AddressInfo
    const url = `http://${config.host.includes(':') ? `[${config.host}]` : config.host}:${port}`
    options.onListening?.(url)
    const context = {
      identifier,
      clock,
      random,
      log,
      url,
      signal,
      onCommit: (count: number, ms: number) => metrics.commit(count, ms),
    }
    store = await openUnlessAborted(() => options.openStore?.() ?? openStore(config, context), signal)
    const hub = new WatchHub({
      store,
      clock,
      maxBufferBytes: config.watch.maxBuffer,
      pingMs: PING_MS,
      stallMs: config.watch.stall,
    })
    const { max: maxLeases, hold: holdMs } = config.leases
    const leases = new Leases({ store, clock, log, identifier, maxLeases, holdMs })
    // The hub first: when a lease is known, its nodes are too.
    await store.watch(hub)
    await store.watch(leases)
    signal?.throwIfAborted()
    const parts = { store, hub, leases }
    lifecycle.parts = parts
    lifecycle.phase = 'ready'
    const opened = store
    let closing: Promise<void> | undefined
    const close = async () => {
      lifecycle.phase = 'stopping'
      leases.close()
      hub.close()
      const cut = clock.after(UNFINISHED_MS, () => exchanges.cutUnfinished())
      const force = clock.after(config.shutdown, () => {
        streams.destroy()
        api.server.closeAllConnections()
      })
      try {
        await api.close()
      } finally {
        cut()
        force()
        await opened.close()
      }
    }
    return { url, port, parts, close: () => (closing ??= close()) }
  } catch (error) {
    lifecycle.phase = 'stopping'
    // Nothing but refusals was ever promised to them.
    api.server.closeAllConnections()
    await api.close()
    await store?.close()
    throw error
  }
}

/** A store that opens all the same is closed again. */
async function openUnlessAborted(open: () => Promise<Store>, signal: AbortSignal | undefined): Promise<Store> {
  if (signal === undefined) return open()
  signal.throwIfAborted()
  const opening = open()
  return new Promise((resolve, reject) => {
    const stop = () => {
      reject(signal.reason)
      opening.then((store) => store.close()).catch(() => {})
    }
    signal.addEventListener('abort', stop, { once: true })
    void opening.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop))
  })
}
