/** The same questions to the twin and to a real etcd, and the same answers. */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { systemClock } from '@holdfast/registry-client/clock'
import {
  EtcdConnection,
  EtcdFailure,
  type FeedEvent,
  type Operation,
  type RangeAnswer,
  type RangeRequest,
  type TransactionRequest,
} from '../../registry-server/src/store/etcd/etcd-connection.ts'
import { startEtcd, withoutEtcd, type Member } from '../support/etcd.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { SimEtcdConnection } from './etcd-client.ts'
import { EtcdMembers } from './etcd-members.ts'
import { EtcdTwin } from './etcd-twin.ts'
import { Host, SimProcess } from './process.ts'
import { Scheduler } from './scheduler.ts'
import { Network } from './sim-network.ts'

type Connection = Pick<EtcdConnection, keyof EtcdConnection>

/** What a connection is asked, with revisions counted from the beginning of the case. */
type Question =
  | { readonly put: string; readonly value: string; readonly leased: boolean }
  | { readonly get: string }
  | { readonly range: RangeRequest & { readonly back?: number } }
  | { readonly transact: Omit<TransactionRequest, 'compare'>; readonly compare: string; readonly isRight: boolean }
  | { readonly revoke: true }
  | { readonly renew: true }

const KEYS = ['a', 'b', 'b/1', 'b/2', 'b/22', 'c']
const key = fc.constantFrom(...KEYS)
const value = fc.constantFrom('', 'x', 'y'.repeat(100))
const prefix = fc.constantFrom('', 'b', 'b/', 'c', 'z')
/** `after` begins with the prefix, as everywhere in the product. */
const range = prefix.chain((begin) =>
  fc.record(
    {
      prefix: fc.constant(begin),
      after: fc.constantFrom(begin, ...KEYS.filter((name) => name.startsWith(begin))),
      limit: fc.integer({ min: 1, max: 3 }),
      keysOnly: fc.boolean(),
    },
    { requiredKeys: ['prefix'] },
  ),
)
const operation: fc.Arbitrary<Operation> = fc.oneof(
  fc.record({ put: key, value: value.map((text) => Buffer.from(text)) }),
  fc.record({ remove: key }),
  fc.record({ removeRange: fc.constantFrom(['b', 'b/2'] as const, ['a', 'z'] as const, ['b/', 'b0'] as const) }),
  fc.record({ get: key }),
  fc.record({ range }),
)
const question: fc.Arbitrary<Question> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ put: key, value, leased: fc.boolean() }) },
  fc.record({ get: key }),
  fc.record({
    range: fc
      .tuple(range, fc.option(fc.integer({ min: 0, max: 5 }), { nil: undefined }))
      .map(([request, back]) => ({ ...request, ...(back !== undefined && { back }) })),
  }),
  {
    weight: 4,
    arbitrary: fc.record({
      transact: fc.record({
        success: fc.array(operation, { maxLength: 6 }),
        failure: fc.array(operation, { maxLength: 2 }),
      }),
      compare: key,
      isRight: fc.boolean(),
    }),
  },
  fc.record({ revoke: fc.constant(true as const) }),
  fc.record({ renew: fc.constant(true as const) }),
)

/** Asks all, and notes what is answered. Revisions and leases are counted from the beginning. */
async function ask(connection: Connection, questions: readonly Question[]): Promise<unknown[]> {
  const start = (await connection.get('none')).revision
  const events: object[] = []
  let seen = start
  let told = () => {}
  await connection.watch('', start + 1, {
    events: (items) => {
      for (const item of items) {
        events.push(eventOf(item, start))
        seen = Math.max(seen, item.revision)
      }
      told()
    },
    failed: (failure) => events.push({ failure: failure.kind }),
  })
  let lease = await connection.grantLease(3_600)
  const answers: unknown[] = []
  for (const item of questions) {
    try {
      if ('put' in item) {
        const { revision } = await connection.put(item.put, Buffer.from(item.value), item.leased ? lease : undefined)
        answers.push({ revision: revision - start })
      } else if ('get' in item) {
        const { item: found, revision } = await connection.get(item.get)
        answers.push(rangeOf({ revision, items: found ? [found] : [], more: false }, start))
      } else if ('range' in item) {
        const { back, ...request } = item.range
        const { revision } = await connection.get('none')
        const at = back === undefined ? {} : { at: Math.max(start, revision - back) }
        answers.push(rangeOf(await connection.range({ ...request, ...at }), start))
      } else if ('transact' in item) {
        const { item: found } = await connection.get(item.compare)
        const held = found?.revision ?? 0
        const compare = [{ key: item.compare, revision: item.isRight ? held : held + 1 }]
        const { succeeded, revision, found: all } = await connection.transact({ compare, ...item.transact })
        answers.push({ succeeded, revision: revision - start, found: all.map((one) => rangeOf(one, start)) })
      } else if ('revoke' in item) {
        await connection.revokeLease(lease)
        const isThere = await connection.renewLease(lease)
        lease = await connection.grantLease(3_600)
        answers.push({ isThere })
      } else answers.push({ isThere: await connection.renewLease(lease) })
    } catch (error) {
      if (!(error instanceof EtcdFailure)) throw error
      answers.push({ kind: error.kind, reason: error.message })
    }
  }
  await connection.revokeLease(lease)
  const { revision } = await connection.transact({ compare: [], success: [{ removeRange: ['a', 'z'] }], failure: [] })
  while (seen < revision) await new Promise<void>((resolve) => (told = resolve))
  return [...answers, events]
}

function eventOf({ key: name, value: content, revision }: FeedEvent, start: number): object {
  return { key: name, value: content?.toString(), revision: revision - start }
}

function rangeOf({ revision, items, more }: RangeAnswer, start: number): object {
  const plain = items.map((item) => ({ ...item, value: item.value.toString(), revision: item.revision - start }))
  return { revision: revision - start, items: plain, more }
}

/** What is left of a key's history once etcd has compacted it, and what a watch is told of it. */
async function askCompacted(connection: Connection, compact: (revision: number) => Promise<void>): Promise<unknown[]> {
  let start = 0
  for (const text of ['0', '1', '2', '3', '4']) {
    const { revision } = await connection.put('a', Buffer.from(text))
    if (text === '0') start = revision
  }
  await compact(start + 2)
  const answers: unknown[] = []
  for (const after of [1, 2, 3, 4, 9])
    try {
      answers.push(rangeOf(await connection.range({ prefix: 'a', at: start + after }), start))
    } catch (error) {
      answers.push((error as EtcdFailure).kind)
    }
  for (const after of [1, 3]) {
    const told = await new Promise<unknown>((resolve) => {
      const events: object[] = []
      void connection
        .watch('a', start + after, {
          events: (items) => {
            events.push(...items.map((item) => eventOf(item, start)))
            if (events.length === 2) resolve(events)
          },
          failed: (failure) => resolve(failure.kind),
        })
        .catch(() => {})
    })
    answers.push(told)
  }
  return answers
}

/** A connection to a twin whose time runs for as long as the case. */
async function onTwin<T>(use: (connection: Connection, twin: EtcdTwin) => Promise<T>): Promise<T> {
  const scheduler = new Scheduler()
  const random = seededRandom(1)
  const network = new Network(scheduler, () => random)
  let members: EtcdMembers | undefined = undefined
  const twin = new EtcdTwin({ nowMs: () => scheduler.nowMs, committed: () => members?.committed() })
  members = new EtcdMembers({ scheduler, network, random, twin, members: 3 })
  const process = new SimProcess('r1', new Host('r1'), scheduler)
  const running = scheduler.runUntil(Infinity)
  const connection = new SimEtcdConnection(network, process, members.endpoints[0]!)
  try {
    return await use(connection, twin)
  } finally {
    connection.close()
    scheduler.stop()
    await running
  }
}

const missing = await withoutEtcd()
let cases = 0

async function onEtcd<T>(member: Member, use: (connection: Connection) => Promise<T>): Promise<T> {
  const { endpoint } = member
  const prefixed = `/case-${++cases}/`
  const connection = new EtcdConnection({ endpoint, access: { tls: false }, prefix: prefixed, clock: systemClock })
  try {
    return await use(connection)
  } finally {
    connection.close()
  }
}

test('whatever is asked in whatever order, the twin answers as etcd does', { skip: missing }, async (context) => {
  const member = await startEtcd(context)
  await fc.assert(
    fc.asyncProperty(fc.array(question, { minLength: 1, maxLength: 25 }), async (questions) => {
      const expected = await onEtcd(member, (connection) => ask(connection, questions))
      assert.deepEqual(await onTwin((connection) => ask(connection, questions)), expected)
    }),
    { numRuns: 150, endOnFailure: false },
  )
  context.diagnostic(`${cases} cases`)
})

test('what is compacted is gone for the twin as for etcd', { skip: missing }, async (context) => {
  const member = await startEtcd(context)
  const expected = await onEtcd(member, (connection) =>
    askCompacted(connection, (revision) => member.gateway.compact(revision)),
  )
  const found = await onTwin((connection, twin) => askCompacted(connection, async (revision) => twin.compact(revision)))
  assert.deepEqual(found, expected)
  assert.equal(expected[0], 'compacted')
})
