/**
 * Garbage at every public call and option. What comes out is what is documented; nothing is left unhandled; and the client
 * answers as before. One seed is one run; `HOLDFAST_FUZZ_SEEDS` asks for more than the default 20, from
 * `HOLDFAST_FUZZ_FROM` on.
 */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  NoNodesError,
  RefusedError,
  ResolveError,
  type ConnectOptions,
  type RegistryClient,
} from '@holdfast/registry-client'
import type { Random } from '@holdfast/registry-client/clock'
import { resolved, world, type World } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'
import { idsOf } from '../support/sample-views.ts'
import { seededRandom } from '../support/seeded-random.ts'

const FROM = Number(process.env.HOLDFAST_FUZZ_FROM ?? 1)
const SEEDS = Number(process.env.HOLDFAST_FUZZ_SEEDS ?? 20)
const CALLS_PER_SEED = 150

/** What a getter or a trap of the caller's own throws is the caller's own, and comes back as it is. */
class OwnError extends Error {}

const boom = () => {
  throw new OwnError('thrown by what was handed over')
}

const NAMES = ['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'stock', 'a', 'a.override', 'x'.repeat(63)]
const TEXTS = [
  ...NAMES,
  ...[
    '',
    ' ',
    '\0',
    '..',
    '../..',
    '/',
    '%2e%2e',
    'a/b',
    'a\nb',
    '\ud800',
    '\u202e',
    'ſtock',
    'ß',
    '💥',
    'x'.repeat(100_000),
  ],
  ...['5s', '0s', '1e9s', '9'.repeat(400), 'e:5', 'e:9007199254740993', ':5', 'e:-1', 'NaN', 'null', '[object Object]'],
  ...['http://', 'http://[', 'http://u:p@h:99999', 'http://one', 'http://one ', 'javascript:0', 'file:///', '/cache'],
]
const NUMBERS = [0, -0, 1, -1, 1.5, NaN, Infinity, -Infinity, 2 ** 31, 2 ** 53, 1e308, 5e-324, 16, 80, 2_000, 1_048_576]
const OPTIONS: readonly (keyof ConnectOptions)[] = [
  ...(['endpoints', 'peers', 'cacheDir', 'maxCacheBytes', 'namespace', 'zone', 'leaseTtlMs', 'maxNodes'] as const),
  ...(['maxServices', 'idleAfter', 'outageProbes', 'log', 'clock', 'random', 'network', 'disk'] as const),
]
const FIELDS = [
  ...['namespace', 'maxStale', 'minRevision', 'deadline', 'signal', 'not', 'key', 'service', 'id', 'host', 'port'],
  ...['protocol', 'weight', 'zone', 'labels', 'status', '__proto__', 'constructor', 'then', 'toJSON'],
]

/** Draws garbage. */
function garbage(random: Random) {
  const below = (count: number) => Math.floor(random() * count)
  const one = <T>(items: readonly T[]): T => items[below(items.length)]!
  const text = () =>
    random() < 0.8 ? one(TEXTS) : String.fromCharCode(...Array.from({ length: 9 }, () => below(65_536)))
  const revoked = () => {
    const { proxy, revoke } = Proxy.revocable({}, {})
    revoke()
    return proxy
  }
  const any = (depth = 3): unknown => {
    const kinds: (() => unknown)[] = [
      () => undefined,
      () => null,
      text,
      text,
      () => one(NUMBERS),
      () => random() < 0.5,
      () => Symbol('garbage'),
      () => BigInt(below(1_000)),
      () => boom,
      () => (): unknown => any(1),
      () => new Date(NaN),
      () => /x/,
      () => new Set(['a', 'b']),
      () => new Map([['a', 1]]),
      () => new AbortController().signal,
      () => AbortSignal.abort(),
      () => new EventTarget(),
      () => new URL('http://one/'),
      () => Promise.resolve(5),
      () => Object.create(null) as unknown,
      () => new Proxy({}, { get: boom }),
      () => new Proxy([], { get: (target, key): unknown => (key === 'length' ? Infinity : Reflect.get(target, key)) }),
      () => ({ then: (resolve: (value: unknown) => void) => resolve(1) }),
      () => ({ toString: boom, valueOf: boom, [Symbol.toPrimitive]: boom, toJSON: boom }),
      revoked,
    ]
    if (depth > 0)
      kinds.push(
        () => Array.from({ length: below(4) }, () => any(depth - 1)),
        () => record(depth - 1),
        () => record(depth - 1),
      )
    return one(kinds)()
  }
  const record = (depth = 2): object => {
    const made: object = random() < 0.2 ? (Object.create(null) as object) : {}
    for (let left = below(4); left > 0; left--) {
      const value = any(depth)
      const accessor = random() < 0.1 ? { get: boom } : { value, writable: true }
      Object.defineProperty(made, one(FIELDS), { ...accessor, enumerable: true, configurable: true })
    }
    return made
  }
  /** Mostly what is asked for, so that garbage comes further than the first check. */
  const or = <T>(usual: T): T => (random() < 0.7 ? usual : (any() as T))
  return { any, record, one, or, below }
}

function isDocumented(error: unknown): boolean {
  if (error instanceof OwnError) return true
  return [TypeError, ResolveError, NoNodesError, RefusedError].some((known) => error instanceof known)
}

type Call = readonly [name: string, run: () => unknown]

function callsOn(client: RegistryClient, random: Random): Call {
  const { any, record, one, or } = garbage(random)
  const options = () => or(record() as never)
  const name = () => or(one(NAMES))
  const node = () => or({ service: name(), port: or(80), host: or('10.0.0.1'), ...tryOr(() => ({ ...record() })) })
  return one<Call>([
    ['resolve', () => client.resolve(name(), options())],
    ['resolve', () => client.resolve('stock', options())],
    ['watch', () => first(client.watch(name(), options()))],
    ['pick', () => client.pick(name(), options()).done(any() as never)],
    ['pick', () => client.pick('stock', options()).done(any() as never)],
    ['peek', () => client.peek(name(), options())],
    ['lookup', () => client.lookup(name(), options())],
    ['nodeReports', () => client.nodeReports(name(), options())],
    ['rehearse', () => client.rehearse(or([{ service: name() }, record() as never]), options())],
    ['register', () => registered(client, node() as never, record() as never)],
  ])
}

function tryOr(run: () => object): object {
  try {
    return run()
  } catch {
    return {}
  }
}

/** One turn of a loop that may wait for ever: it is left soon. */
async function first(loop: AsyncGenerator<unknown>): Promise<void> {
  const turn = loop.next()
  turn.catch(() => {})
  await Promise.race([turn, settle().then(settle)])
}

async function registered(client: RegistryClient, node: never, change: never): Promise<void> {
  const registration = await client.register(node)
  try {
    await registration.update(change)
  } finally {
    await registration.close()
  }
}

/** Runs a call to its end, whatever time that takes on the clock of the world. */
async function outcome(made: World, run: () => unknown): Promise<unknown> {
  let ended = false
  let error: unknown
  const running = (async () => run())()
    .catch((reason: unknown) => (error = reason ?? 'nothing'))
    .finally(() => (ended = true))
  await settle()
  for (let turn = 0; !ended && turn < 12; turn++) await made.clock.advance(1_000)
  // A wait without an end was asked for.
  if (ended) await running
  return error
}

test(`garbage at every call and option, ${SEEDS} seeds`, async (context) => {
  const unhandled: unknown[] = []
  const note = (reason: unknown) => void unhandled.push(reason)
  process.on('unhandledRejection', note)
  context.after(() => process.off('unhandledRejection', note))
  const outcomes = new Map<string, number>()
  for (let seed = FROM; seed < FROM + SEEDS; seed++) {
    const random = seededRandom(seed)
    const made = world()
    const client = await made.start()
    await resolved(made, client, 'a', 'b')
    const { any, one } = garbage(random)
    for (let i = 0; i < CALLS_PER_SEED; i++) {
      const option = one(OPTIONS)
      const value = any()
      const [name, run] =
        random() < 0.2
          ? ([`connect ${option}`, () => made.start({ [option]: value }).then((other) => other.close())] as const)
          : callsOn(client, random)
      const error = await outcome(made, run)
      if (error !== undefined)
        assert.ok(isDocumented(error), `seed ${seed}, call ${i}, ${name}: ${(error as Error).stack ?? 'no stack'}`)
      assert.deepEqual(unhandled, [], `seed ${seed}, call ${i}, ${name}`)
      const kind = error === undefined ? 'answered' : (error as Error).constructor.name
      outcomes.set(kind, (outcomes.get(kind) ?? 0) + 1)
    }
    assert.deepEqual(idsOf((await client.resolve('stock')).view), ['a', 'b'], `seed ${seed}`)
    assert.ok(['a', 'b'].includes(client.pick('stock').node.id))
    assert.equal(JSON.stringify(client.status()).includes('[object'), false)
    const closing = client.close()
    await made.clock.advance(20_000)
    await closing
    assert.equal(({} as { service?: unknown }).service, undefined)
    assert.deepEqual(unhandled, [], `seed ${seed}`)
  }
  context.diagnostic([...outcomes].map(([kind, count]) => `${kind} ${count}`).join(', '))
  for (const kind of ['answered', 'TypeError', 'ResolveError', 'NoNodesError']) assert.ok(outcomes.has(kind), kind)
})
