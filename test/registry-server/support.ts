/** What the registry's tests share: registries on a directory of their own, and calls to them. */

import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { TestContext } from 'node:test'
import type { Clock } from '@holdfast/registry-client/clock'
import type { Removal, ServiceNode } from '@holdfast/registry-client/protocol'
import { ManualClock } from '../support/manual-clock.ts'
import { settings, type RegistryConfig } from '../../registry-server/src/config.ts'
import { createRegistry, type Registry, type RegistryOptions } from '../../registry-server/src/server.ts'
import type { HistoryLine } from '../../registry-server/src/watch/service-view.ts'
import type { Log } from '@holdfast/registry-client/log'

export const silent: Log = { debug() {}, info() {}, warn() {}, error() {} }

export async function temporaryDirectory(context: TestContext): Promise<string> {
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-'))
  context.after(() => rm(directory, { recursive: true, force: true }))
  return directory
}

export function configOf(dataDir: string, fields: object = {}): RegistryConfig {
  return settings.parse({ port: 0, dataDir, ...fields })
}

/** The fields of all documents that the API answers with. Which are there is what the tests are about. */
export interface AnyDocument {
  readonly id: string
  readonly ttl: string
  readonly lease: string
  readonly code: string
  readonly detail: string
  readonly errors: readonly { readonly path: string; readonly message: string }[]
  readonly status: string | number
  readonly weight: number
  readonly incarnation: number
  readonly leased: boolean
  readonly registered: ServiceNode['registered']
  readonly override: ServiceNode['override']
  readonly overrides: readonly { readonly id: string; readonly override: object; readonly present: boolean }[]
  readonly labels: ServiceNode['labels']
  readonly cursor: string
  readonly created: number
  readonly nodes: readonly ServiceNode[]
  readonly policy: unknown
  readonly emptied: Removal
  readonly services: readonly {
    readonly service: string
    readonly namespace: string
    readonly nodes: Readonly<Record<string, number>>
    readonly policy: boolean
  }[]
  readonly entries: readonly HistoryLine[]
  readonly subscribers: readonly {
    readonly id: number
    readonly transport: string
    readonly services: readonly unknown[]
    readonly serviceCount: number
    readonly sent: number
    readonly acked: number | null
    readonly lag: number
  }[]
  readonly next: string | undefined
  readonly epoch: string
  readonly revision: number
  readonly store: { readonly kind: string }
  readonly timeout: string
}

export interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** Empty where the answer is no JSON. */
  readonly body: AnyDocument
}

export interface TestRegistry {
  readonly registry: Registry
  readonly url: string
  readonly call: (method: string, path: string, body?: unknown, headers?: Record<string, string>) => Promise<Answer>
}

export interface StartOptions extends Partial<Omit<RegistryOptions, 'config'>> {
  readonly directory?: string
  readonly config?: object
  readonly clock?: Clock
}

/**
 * A registry on loopback that ends with the test. Its clock stands still unless a test hands in one that it moves: no
 * ping, no expiry and no time-out comes in between because the machine was busy.
 */
export async function startRegistry(context: TestContext, options: StartOptions = {}): Promise<TestRegistry> {
  const { directory, config, ...rest } = options
  const registry = await createRegistry({
    log: silent,
    clock: new ManualClock(),
    ...rest,
    config: configOf(directory ?? (await temporaryDirectory(context)), config),
  })
  context.after(() => registry.close())
  return { registry, url: registry.url, call: caller(registry.url) }
}

export function caller(url: string): TestRegistry['call'] {
  return async (method, target, body, headers = {}) => {
    const isRaw = typeof body === 'string' || body instanceof Uint8Array
    const response = await fetch(url + target, {
      method,
      headers: { ...(body !== undefined && { 'content-type': 'application/json' }), ...headers },
      ...(body !== undefined && { body: isRaw ? (body as string | Uint8Array<ArrayBuffer>) : JSON.stringify(body) }),
    })
    const text = await response.text()
    const isJson = response.headers.get('content-type')?.includes('json') === true && text !== ''
    return {
      status: response.status,
      headers: response.headers,
      text,
      body: (isJson ? JSON.parse(text) : {}) as AnyDocument,
    }
  }
}

export const someNode = { host: '10.0.0.1', port: 8080 }

/** A promise and its settling. */
export function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>((settle) => (resolve = settle))
  return { promise, resolve }
}
