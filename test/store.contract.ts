/**
 * What every store promises, run on each engine by its own test file. The promises are those of `store.ts`.
 */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import type { ServiceNode } from '@holdfast/registry-client/protocol'
import type { Committed, HistoryEntry, NodeRef, Store, Transaction } from '../registry-server/src/store/store.ts'

/** A store on a place of its own. */
export interface StoreHarness {
  readonly store: Store
  /** Closes the store and opens it again on the same place. */
  reopen(): Promise<Store>
  dispose(): Promise<void>
}

const ref = (id: string, service = 'stock', namespace = 'default'): NodeRef => ({ namespace, service, id })
const why = { cause: 'registered', by: 'test' } as const
const gone = { cause: 'deregistered', by: 'test' } as const

export function node(id: string, fields: Partial<ServiceNode> = {}): ServiceNode {
  return Object.freeze({
    id,
    host: '10.0.0.1',
    port: 8080,
    protocol: 'http',
    weight: 100,
    labels: Object.freeze({}),
    status: 'up',
    incarnation: 1,
    leased: false,
    registered: Object.freeze({ status: 'up', weight: 100 }),
    ...fields,
  })
}

const put = (id: string, service?: string, fields?: Partial<ServiceNode>) => (tx: Transaction) =>
  tx.putNode(ref(id, service), { node: node(id, fields) }, why)

/** Everything that a store tells a listener, as plain data. */
export interface Picture {
  readonly revision: number
  readonly services: Record<string, { revision: number; nodes: ServiceNode[]; policy: unknown; emptied: unknown }>
  readonly leases: Record<string, unknown>
  readonly history: HistoryEntry[]
}

export async function pictureOf(store: Store): Promise<Picture> {
  let picture: Picture | undefined
  const stop = await store.watch({
    load(state) {
      picture = {
        revision: state.revision,
        services: Object.fromEntries(
          [...state.services]
            .map(
              ({ namespace, service, record, nodes, policy }) =>
                [
                  `${namespace}/${service}`,
                  {
                    revision: record.revision,
                    nodes: [...nodes].sort((a, b) => (a.id < b.id ? -1 : 1)),
                    policy,
                    emptied: record.emptied,
                  },
                ] as const,
            )
            .sort(([a], [b]) => (a < b ? -1 : 1)),
        ),
        leases: Object.fromEntries([...state.leases].map((lease) => [lease.id, lease])),
        history: [...state.history],
      }
    },
    apply() {},
  })
  stop()
  return picture!
}

async function recorded(store: Store): Promise<Committed[]> {
  const seen: Committed[] = []
  await store.watch({ load() {}, apply: (transactions) => void seen.push(...transactions) })
  return seen
}

export function storeContract(engine: string, open: () => Promise<StoreHarness>): void {
  const promise = (sentence: string, body: (harness: StoreHarness) => Promise<void>) =>
    test(`${engine}: ${sentence}`, async () => {
      const harness = await open()
      try {
        await body(harness)
      } finally {
        await harness.dispose()
      }
    })

  promise('a new store is empty, at revision 0, with an epoch of its own', async ({ store }) => {
    assert.deepEqual(await pictureOf(store), { revision: 0, services: {}, leases: {}, history: [] })
    assert.match(store.epoch, /^[A-Za-z0-9_-]{1,64}$/)
  })

  promise('an acknowledged write is there after the store is opened again, in the same epoch', async (harness) => {
    const { epoch } = harness.store
    const { revision } = await harness.store.transact(put('a'))
    assert.equal(revision, 1)
    const again = await harness.reopen()
    assert.equal(again.epoch, epoch)
    const picture = await pictureOf(again)
    assert.equal(picture.revision, 1)
    assert.deepEqual(picture.services['default/stock']?.nodes, [node('a')])
  })

  promise('listeners learn of a transaction before its author is answered', async ({ store }) => {
    const seen = await recorded(store)
    await store.transact(put('a'))
    assert.deepEqual(
      seen.map(({ revision }) => revision),
      [1],
    )
  })

  promise('a transaction is one revision, whatever it changes', async ({ store }) => {
    const seen = await recorded(store)
    const { revision } = await store.transact((tx) => {
      put('a')(tx)
      put('b')(tx)
      put('c', 'cart')(tx)
    })
    assert.equal(revision, 1)
    assert.deepEqual(
      seen.map((item) => item.changes.map(({ service, after, put: nodes }) => [service, after, nodes.length])),
      [
        [
          ['stock', 0, 2],
          ['cart', 0, 1],
        ],
      ],
    )
  })

  promise('concurrent transactions get revisions without gaps, and are told in their order', async ({ store }) => {
    const seen = await recorded(store)
    const outcomes = await Promise.all(Array.from({ length: 200 }, (_, index) => store.transact(put(`n${index}`))))
    const expected = Array.from({ length: 200 }, (_, index) => index + 1)
    assert.deepEqual(
      outcomes.map(({ revision }) => revision),
      expected,
    )
    assert.deepEqual(
      seen.map(({ revision }) => revision),
      expected,
    )
    assert.deepEqual(
      seen.map(({ changes }) => changes[0]?.after),
      expected.map((revision) => revision - 1),
    )
  })

  promise('a transaction sees those before it that are not durable yet, and its own writes', async ({ store }) => {
    const first = store.transact(put('a'))
    const second = store.transact((tx) => {
      const before = tx.node(ref('a'))?.node.id
      put('b')(tx)
      return [before, tx.node(ref('b'))?.node.id]
    })
    assert.deepEqual((await second).result, ['a', 'b'])
    await first
  })

  promise('a body that throws writes nothing, takes no revision, and its error reaches its author', async (harness) => {
    const { store } = harness
    await store.transact(put('a'))
    const seen = await recorded(store)
    const before = await pictureOf(store)
    class Refused extends Error {}
    await assert.rejects(
      store.transact((tx) => {
        put('b')(tx)
        put('c', 'never-heard-of')(tx)
        tx.removeNode(ref('a'), gone)
        tx.putLease({ id: 'l', ttlMs: 1000, owner: 'x' })
        tx.putPolicy('default', 'stock', { timeout: '1s' }, why)
        tx.putOverride(ref('a'), { weight: 1 }, why)
        throw new Refused('no')
      }),
      Refused,
    )
    assert.deepEqual(await pictureOf(store), before)
    assert.deepEqual(seen, [])
    assert.deepEqual(await pictureOf(await harness.reopen()), before)
  })

  promise('a body that changes nothing makes no revision and no event', async ({ store }) => {
    await store.transact(put('a'))
    const seen = await recorded(store)
    assert.deepEqual(await store.transact((tx) => tx.node(ref('a'))?.node.id), { revision: 1, result: 'a' })
    assert.deepEqual(seen, [])
  })

  promise('a body that changes nothing is answered only when what it saw is durable', async ({ store }) => {
    const order: string[] = []
    const write = store.transact(put('a')).then(() => order.push('write'))
    const read = store.transact((tx) => tx.node(ref('a'))).then(() => order.push('read'))
    await Promise.all([read, write])
    assert.deepEqual(order, ['write', 'read'])
  })

  promise('a refusal is told only when what it was decided on is durable', async ({ store }) => {
    const order: string[] = []
    const write = store.transact(put('a')).then(() => order.push('write'))
    const refused = store
      .transact((tx) => {
        if (tx.node(ref('a'))) throw new Error('it is there')
      })
      .catch(() => order.push('refused'))
    await Promise.all([refused, write])
    assert.deepEqual(order, ['write', 'refused'])
  })

  promise(
    'a removal carries its cause, its time and its revision, also in history after a restart',
    async (harness) => {
      const { store } = harness
      const seen = await recorded(store)
      await store.transact(put('a'))
      await store.transact((tx) => tx.removeNode(ref('a'), { cause: 'lease_expired', by: 'owner of a' }))
      const [removal] = seen[1]!.changes[0]!.remove
      const { incarnation } = seen[0]!.changes[0]!.put[0]!
      assert.deepEqual(removal, { id: 'a', cause: 'lease_expired', time: seen[1]!.time, revision: 2, incarnation })
      const { history } = await pictureOf(await harness.reopen())
      assert.deepEqual(history.at(-1), {
        namespace: 'default',
        service: 'stock',
        revision: 2,
        time: removal.time,
        after: 1,
        items: [{ kind: 'node', cause: 'lease_expired', by: 'owner of a', ids: ['a'] }],
      })
    },
  )

  promise('a service that lost its last node remembers its revision and that removal for ever', async (harness) => {
    const { store } = harness
    await store.transact(put('a'))
    await store.transact((tx) => tx.removeNode(ref('a'), gone))
    await store.transact(put('x', 'other'))
    const { services } = await pictureOf(await harness.reopen())
    assert.equal(services['default/stock']?.revision, 2)
    assert.equal((services['default/stock'].emptied as { id: string }).id, 'a')
  })

  promise('an override outlives the node that it was made for', async (harness) => {
    await harness.store.transact((tx) => {
      put('a')(tx)
      tx.putOverride(ref('a'), { status: 'draining' }, { cause: 'operator', by: 'op' })
    })
    await harness.store.transact((tx) => tx.removeNode(ref('a'), gone))
    const again = await harness.reopen()
    assert.deepEqual((await again.transact((tx) => tx.override(ref('a')))).result, { status: 'draining' })
    assert.deepEqual((await again.transact((tx) => [...tx.overrides()])).result, [
      { ref: ref('a'), override: { status: 'draining' } },
    ])
    const counts = await again.transact((tx) => {
      const before = tx.overrideCount()
      tx.putOverride(ref('a'), undefined, { cause: 'operator', by: 'test' })
      return [before, tx.overrideCount(), again.status().overrides]
    })
    assert.deepEqual(counts.result, [1, 0, 0])
  })

  promise('a lease knows its nodes, and those that moved to another are not under it any more', async (harness) => {
    const leased = (id: string, lease: string) => (tx: Transaction) =>
      tx.putNode(ref(id), { node: node(id, { leased: true }), lease }, why)
    await harness.store.transact((tx) => {
      for (const id of ['one', 'two']) tx.putLease({ id, ttlMs: 10_000, owner: id })
      leased('a', 'one')(tx)
      leased('b', 'one')(tx)
    })
    await harness.store.transact(leased('a', 'two'))
    const again = await harness.reopen()
    const { result } = await again.transact((tx) => [tx.nodesOfLease('one'), tx.nodesOfLease('two')])
    assert.deepEqual(
      result.map((refs) => refs.map(({ id }) => id)),
      [['b'], ['a']],
    )
  })

  promise('a listener is told the state once, and then only what comes after it', async ({ store }) => {
    await store.transact(put('a'))
    const pending = store.transact(put('b'))
    const told: string[] = []
    await store.watch({
      load: (state) => void told.push(`state ${state.revision}`),
      apply: (transactions) => void told.push(...transactions.map(({ revision }) => `change ${revision}`)),
    })
    await pending
    await store.transact(put('c'))
    // An engine may tell of the one that was under way as part of the state or after it, but not both.
    const all = ['state 1', 'change 2', 'change 3']
    assert.deepEqual(told, told.length === 3 ? all : ['state 2', 'change 3'])
  })

  promise('a closed store refuses', async ({ store }) => {
    await store.close()
    await assert.rejects(store.transact(put('a')), { code: 'store_unavailable' })
  })

  promise('close finishes what was accepted', async (harness) => {
    const accepted = Array.from({ length: 50 }, (_, index) => harness.store.transact(put(`n${index}`)))
    const again = await harness.reopen()
    await Promise.all(accepted)
    assert.equal((await pictureOf(again)).services['default/stock']?.nodes.length, 50)
  })

  test(`${engine}: whatever is written in whatever order, the state is what a model says, also after a restart`, async () => {
    const id = fc.constantFrom('a', 'b', 'c')
    const service = fc.constantFrom('stock', 'cart')
    const lease = fc.constantFrom('l1', 'l2', undefined)
    const operation = fc.oneof(
      fc.record({ kind: fc.constant('put' as const), id, service, lease, port: fc.integer({ min: 1, max: 4 }) }),
      fc.record({ kind: fc.constant('remove' as const), id, service }),
      fc.record({ kind: fc.constant('policy' as const), service, timeout: fc.constantFrom('1s', '2s', undefined) }),
      fc.record({ kind: fc.constant('end' as const), lease: fc.constantFrom('l1', 'l2') }),
    )
    const transaction = fc.record({ operations: fc.array(operation, { maxLength: 4 }), fails: fc.boolean() })
    await fc.assert(
      fc.asyncProperty(fc.array(transaction, { maxLength: 20 }), async (transactions) => {
        const harness = await open()
        try {
          const model = new Model()
          const running: Promise<unknown>[] = []
          for (const { operations, fails } of transactions) {
            const body = (tx: Transaction) => {
              for (const item of operations) run(tx, item)
              if (fails) throw new Error('refused')
            }
            if (!fails) model.apply(operations)
            running.push(harness.store.transact(body).catch((error: Error) => assert.equal(error.message, 'refused')))
          }
          await Promise.all(running)
          const before = await pictureOf(harness.store)
          assert.deepEqual(model.nodesOf(before), model.nodes())
          assert.deepEqual(await pictureOf(await harness.reopen()), before)
        } finally {
          await harness.dispose()
        }
      }),
      { numRuns: 25 },
    )
  })
}

type Operation =
  | { kind: 'put'; id: string; service: string; lease: string | undefined; port: number }
  | { kind: 'remove'; id: string; service: string }
  | { kind: 'policy'; service: string; timeout: string | undefined }
  | { kind: 'end'; lease: string }

function run(tx: Transaction, item: Operation): void {
  switch (item.kind) {
    case 'put':
      if (item.lease && !tx.lease(item.lease)) tx.putLease({ id: item.lease, ttlMs: 5_000, owner: item.lease })
      tx.putNode(
        ref(item.id, item.service),
        {
          node: node(item.id, { port: item.port, leased: item.lease !== undefined }),
          ...(item.lease !== undefined && { lease: item.lease }),
        },
        why,
      )
      break
    case 'remove':
      tx.removeNode(ref(item.id, item.service), gone)
      break
    case 'policy':
      tx.putPolicy('default', item.service, item.timeout === undefined ? undefined : { timeout: item.timeout }, why)
      break
    case 'end':
      for (const held of tx.nodesOfLease(item.lease)) tx.removeNode(held, gone)
      tx.removeLease(item.lease)
  }
}

/** The same operations on the simplest data there is. */
class Model {
  readonly #nodes = new Map<string, { port: number; lease: string | undefined }>()

  apply(operations: readonly Operation[]): void {
    for (const item of operations)
      if (item.kind === 'put') this.#nodes.set(`${item.service}/${item.id}`, { port: item.port, lease: item.lease })
      else if (item.kind === 'remove') this.#nodes.delete(`${item.service}/${item.id}`)
      else if (item.kind === 'end')
        for (const [key, { lease }] of this.#nodes) if (lease === item.lease) this.#nodes.delete(key)
  }

  nodes(): string[] {
    return [...this.#nodes].map(([key, { port }]) => `${key}:${port}`).sort()
  }

  nodesOf(picture: Picture): string[] {
    return Object.entries(picture.services)
      .flatMap(([key, { nodes }]) => nodes.map(({ id, port }) => `${key.split('/')[1]}/${id}:${port}`))
      .sort()
  }
}
