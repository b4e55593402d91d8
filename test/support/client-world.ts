import assert from 'node:assert/strict'
import {
  connect,
  ResolveError,
  type ConnectOptions,
  type RegistryClient,
  type Resolved,
} from '@holdfast/registry-client'
import { FailingDisk } from './failing-disk.ts'
import { ManualClock, settle } from './manual-clock.ts'
import { MemoryLog } from './memory-log.ts'
import { snapshotOf } from './sample-views.ts'
import { ScriptedNetwork } from './scripted-network.ts'
import { seededRandom } from './seeded-random.ts'

/** Where the view of `stock` is kept, and where an operator overrides it. */
export const FILE = '/cache/default/stock.json'
export const OVERRIDE = '/cache/default/stock.override.json'

/** All that a client touches, in the hands of a test. */
export interface World {
  readonly clock: ManualClock
  readonly network: ScriptedNetwork
  readonly disk: FailingDisk
  readonly log: MemoryLog
  readonly start: (options?: Partial<ConnectOptions>) => Promise<RegistryClient>
}

export function world(): World {
  const clock = new ManualClock()
  const network = new ScriptedNetwork()
  const disk = new FailingDisk(clock)
  const log = new MemoryLog()
  const start = (options: Partial<ConnectOptions> = {}) =>
    connect({
      endpoints: ['http://registry:7400'],
      cacheDir: '/cache',
      clock,
      network,
      disk,
      log,
      random: seededRandom(1),
      ...options,
    })
  return { clock, network, disk, log, start }
}

/** A client that hears the registry, and has asked it for `stock`. */
export async function asking(world: World): Promise<{ client: RegistryClient; resolving: Promise<Resolved> }> {
  const client = await world.start()
  await world.network.stream.accept()
  const resolving = client.resolve('stock')
  await settle()
  return { client, resolving }
}

/** Reading the file of `stock` takes so long. */
export function slowReads({ disk, clock }: World, ms: number): void {
  disk.hold = (operation, file) =>
    operation === 'read' && file.startsWith(FILE)
      ? new Promise((resolve) => clock.after(ms, () => resolve()))
      : undefined
}

/** Time with a registry that pings every ten seconds. */
export async function pass({ clock, network }: World, ms: number, cursor = 'e:5'): Promise<void> {
  for (let passed = 0; passed < ms; passed += 10_000) {
    await clock.advance(Math.min(10_000, ms - passed))
    await network.stream.event('ping', {}, cursor)
  }
}

/** A world whose disk holds what an earlier process knew. */
export async function worldWithFile(...nodes: string[]): Promise<World> {
  const made = world()
  const { client, resolving } = await asking(made)
  await made.network.stream.event('snapshot', snapshotOf('e:5', nodes), 'e:5')
  await resolving
  await client.close()
  made.network.streams.length = 0
  return made
}

/** Resolves `stock` by a snapshot of it at `e:5`. */
export async function resolved(world: World, client: RegistryClient, ...nodes: string[]): Promise<Resolved> {
  if (world.network.streams.length > 0 && !client.status().connection.reachable) await world.network.stream.accept()
  const resolving = client.resolve('stock')
  await settle()
  await world.network.stream.event('snapshot', snapshotOf('e:5', nodes), 'e:5')
  return resolving
}

export async function failure(promise: Promise<unknown>): Promise<ResolveError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  assert.ok(error instanceof ResolveError, `expected a ResolveError, got ${String(error)}`)
  return error
}
