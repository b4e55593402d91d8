/** Stores on a real etcd, what they tell, and whether all of it was told and kept. */

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { TestContext } from 'node:test'
import { systemClock, systemRandom } from '@holdfast/registry-client/clock'
import type { ServiceNode } from '@holdfast/registry-client/protocol'
import { EtcdStore, type EtcdStoreOptions } from '../../../registry-server/src/store/etcd/etcd-store.ts'
import { decodeMeta, logKey } from '../../../registry-server/src/store/etcd/layout.ts'
import type {
  Committed,
  HistoryEntry,
  Lease,
  NodeRef,
  Store,
  StoreListener,
  StoreState,
  Transaction,
} from '../../../registry-server/src/store/store.ts'
import { node, pictureOf, type Picture } from '../../store.contract.ts'
import type { Gateway, Member } from '../../support/etcd.ts'
import { startProxy, type TcpProxy } from '../../support/tcp-proxy.ts'
import { silent } from '../support.ts'

export function openStore(options: Pick<EtcdStoreOptions, 'endpoints' | 'prefix'> & Partial<EtcdStoreOptions>) {
  return EtcdStore.open({
    access: { tls: false },
    maxRequestBytes: 1_572_864,
    timeoutMs: 30_000,
    newEpoch: false,
    name: 'test',
    identifier: () => randomBytes(12).toString('base64url'),
    clock: systemClock,
    random: systemRandom,
    log: silent,
    historyRevisions: 10_000,
    historyChanges: 1_000_000,
    ...options,
  })
}

let serial = 0

/** Of its own, so that stores of one test know nothing of those of another. */
export function freshPrefix(): string {
  return `/holdfast-${++serial}/`
}

const PATIENCE_MS = 30_000

/** Waits for a state that is reached on its own. */
export async function until(holds: () => boolean | Promise<boolean>, what: string, ms = PATIENCE_MS): Promise<void> {
  const endMs = performance.now() + ms
  while (!(await holds())) {
    if (performance.now() > endMs) throw new Error(`not in ${ms} ms: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

interface Service {
  revision: number
  readonly nodes: Map<string, ServiceNode>
  policy: unknown
  emptied: unknown
}

/** Follows a store as its listeners do. What breaks a promise is kept in `broken`: a listener must not throw. */
export class Recorder implements StoreListener {
  readonly broken: string[] = []
  readonly seen: Committed[] = []
  loads = 0
  revision = 0
  #floor = 0
  #services = new Map<string, Service>()
  #leases = new Map<string, Lease>()
  #history: HistoryEntry[] = []

  load(state: StoreState): void {
    this.loads++
    if (state.revision < this.revision) this.#broke(`loaded revision ${state.revision} after ${this.revision}`)
    this.revision = state.revision
    this.#floor = state.floor
    this.#services = new Map(
      [...state.services].map(({ namespace, service, record, nodes, policy }) => [
        `${namespace}/${service}`,
        {
          revision: record.revision,
          nodes: new Map([...nodes].map((item) => [item.id, item])),
          policy,
          emptied: record.emptied,
        },
      ]),
    )
    this.#leases = new Map([...state.leases].map((lease) => [lease.id, lease]))
    this.#history = [...state.history]
  }

  apply(transactions: readonly Committed[], floor: number): void {
    if (transactions.length === 0) this.#broke('told of nothing')
    for (const item of transactions) this.#take(item)
    if (floor < this.#floor) this.#broke(`floor ${floor} after ${this.#floor}`)
    this.#floor = floor
    this.#history = this.#history.filter(({ revision }) => revision > floor)
  }

  picture(): Picture {
    const services = [...this.#services].sort(([a], [b]) => (a < b ? -1 : 1))
    return {
      revision: this.revision,
      services: Object.fromEntries(
        services.map(([key, { nodes, ...rest }]) => [
          key,
          { ...rest, nodes: [...nodes.values()].sort((a, b) => (a.id < b.id ? -1 : 1)) },
        ]),
      ),
      leases: Object.fromEntries(this.#leases),
      history: this.#history,
    }
  }

  #take(item: Committed): void {
    if (item.revision !== this.revision + 1) this.#broke(`told of revision ${item.revision} after ${this.revision}`)
    this.revision = item.revision
    this.seen.push(item)
    for (const { namespace, service, after, put, remove, policy, emptied, items } of item.changes) {
      const key = `${namespace}/${service}`
      const known = this.#services.get(key) ?? { revision: 0, nodes: new Map(), policy: undefined, emptied: undefined }
      this.#services.set(key, known)
      if (after !== known.revision) this.#broke(`${key}: ${item.revision} after ${after}, known is ${known.revision}`)
      known.revision = item.revision
      for (const one of put) known.nodes.set(one.id, one)
      for (const { id, cause } of remove) {
        if (!known.nodes.delete(id)) this.#broke(`${key}: ${id} went and was not there`)
        if (!cause) this.#broke(`${key}: ${id} went without a cause`)
      }
      if (policy !== undefined) known.policy = policy ?? undefined
      known.emptied = emptied
      this.#history.push({ namespace, service, revision: item.revision, time: item.time, after, items })
    }
    for (const lease of item.leases.put) this.#leases.set(lease.id, lease)
    for (const id of item.leases.removed) this.#leases.delete(id)
  }

  #broke(what: string): void {
    this.broken.push(what)
  }
}

export const ref = (id: string, service = 'stock'): NodeRef => ({ namespace: 'default', service, id })

let written = 0

/** Remembers what became of each write: a write is two nodes of two services, and bears a name of its own. */
export class Ledger {
  readonly acknowledged = new Map<string, number>()
  readonly failed = new Map<string, Error>()
  #lastMs = performance.now()
  #longestMs = 0

  /** The longest time without an acknowledgement so far. */
  get stallMs(): number {
    return Math.round(Math.max(this.#longestMs, performance.now() - this.#lastMs))
  }

  resetStall(): void {
    this.#lastMs = performance.now()
    this.#longestMs = 0
  }

  /** Resolves whatever becomes of it, to whether it was acknowledged. */
  async write(store: Store, also?: (tx: Transaction) => void): Promise<boolean> {
    const by = `write-${++written}`
    const [id, port] = [`n${written % 40}`, 1 + (written % 60_000)]
    try {
      const { revision } = await store.transact((tx) => {
        for (const service of ['left', 'right'])
          tx.putNode(ref(id, service), { node: node(id, { port }) }, { cause: 'registered', by })
        also?.(tx)
      })
      this.acknowledged.set(by, revision)
      const nowMs = performance.now()
      this.#longestMs = Math.max(this.#longestMs, nowMs - this.#lastMs)
      this.#lastMs = nowMs
      return true
    } catch (error) {
      this.failed.set(by, error as Error)
      return false
    }
  }

  /** Writes one after the other until stopped. Stopping returns once the last is answered. */
  writeOn(context: TestContext, store: Store, lanes = 4): () => Promise<void> {
    let stopped = false
    context.after(() => void (stopped = true))
    const running = Array.from({ length: lanes }, async () => {
      while (!stopped)
        // One that is refused at once must not keep this process from all else.
        if (!(await this.write(store))) await new Promise((resolve) => setTimeout(resolve, 5))
    })
    return async () => {
      stopped = true
      await Promise.all(running)
    }
  }
}

export interface Follower {
  readonly store: EtcdStore
  readonly recorder: Recorder
  readonly proxy: TcpProxy
}

/**
 * Breaks every connection; until `restore` new ones break at once. What has just ended is passed on first: a socket that
 * is told to reset in the turn in which it ends stays open, and keeps the process from ending.
 */
export async function cut(proxy: TcpProxy): Promise<void> {
  proxy.hold()
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve))
  proxy.cut()
  proxy.dropHeld()
}

/** A proxy before a member, whose connections are gone before it is. */
export async function openProxy(context: TestContext, member: Member): Promise<TcpProxy> {
  const opened: TcpProxy[] = []
  context.after(async () => {
    for (const proxy of opened) await cut(proxy)
  })
  const proxy = await startProxy(context, { host: '127.0.0.1', port: member.clientPort })
  opened.push(proxy)
  return proxy
}

/** A store that reaches a member through a proxy of its own, and a recorder on it. */
export async function openThroughProxy(
  context: TestContext,
  member: Member,
  prefix: string,
  options: Partial<EtcdStoreOptions> = {},
): Promise<Follower> {
  const stores: EtcdStore[] = []
  // Before the proxy goes, so that it can sign off.
  context.after(() => stores[0]?.close())
  const proxy = await openProxy(context, member)
  const opened = await openRecorded(context, [proxy.endpoint], prefix, options)
  stores.push(opened.store)
  return { proxy, ...opened }
}

export async function openRecorded(
  context: TestContext,
  endpoints: readonly string[],
  prefix: string,
  options: Partial<EtcdStoreOptions> = {},
): Promise<Omit<Follower, 'proxy'>> {
  const store = await openStore({ endpoints, prefix, ...options })
  context.after(() => store.close())
  const recorder = new Recorder()
  await store.watch(recorder)
  return { store, recorder }
}

export interface Checked {
  readonly followers: readonly Omit<Follower, 'proxy'>[]
  readonly ledgers?: readonly Ledger[]
  /** Of a member that is up. */
  readonly gateway: Gateway
  readonly endpoints: readonly string[]
  readonly prefix: string
  readonly options?: Partial<EtcdStoreOptions>
}

/**
 * Nothing lost, nothing twice, nothing half, and everyone agrees: each recorder, a store that is opened now, and the
 * keys in etcd.
 */
export async function checkAgreement({ followers, ledgers = [], gateway, endpoints, prefix, options }: Checked) {
  for (const { store } of followers) await until(() => isWritable(store), 'every store works again')
  const fresh = await openStore({ endpoints, prefix, ...options })
  const picture = await pictureOf(fresh).finally(() => fresh.close())
  assert.deepEqual(fresh.status().setAside, [])
  for (const { recorder } of followers) {
    await until(() => recorder.revision >= picture.revision, 'every store has followed', 5_000)
    assert.deepEqual(recorder.broken, [])
    assert.deepEqual(recorder.picture(), picture)
  }
  await checkLog(gateway, prefix, picture.revision)
  const [left, right] = ['left', 'right'].map((service) => picture.services[`default/${service}`]?.nodes)
  assert.deepEqual(left, right, 'a write is there whole')
  const revisions = new Map<string, Set<number>>()
  const told = followers.flatMap(({ recorder }) => recorder.seen.flatMap(historyOf))
  for (const { revision, items } of [...picture.history, ...told])
    for (const { by } of items) revisions.set(by, (revisions.get(by) ?? new Set()).add(revision))
  for (const [by, revision] of ledgers.flatMap(({ acknowledged }) => [...acknowledged])) {
    const found = revisions.get(by)
    // What has left history, and was told to nobody, cannot be looked up.
    if (found === undefined && revision <= firstKnown(picture, followers)) continue
    assert.deepEqual(found && [...found], [revision], `${by} was acknowledged`)
  }
  for (const by of ledgers.flatMap(({ failed }) => [...failed.keys()]))
    assert.ok((revisions.get(by)?.size ?? 0) <= 1, `${by} failed, and happened more than once`)
}

async function isWritable(store: EtcdStore): Promise<boolean> {
  return store.sync().then(
    () => true,
    () => false,
  )
}

function historyOf({ revision, time, changes }: Committed): HistoryEntry[] {
  return changes.map(({ namespace, service, after, items }) => ({ namespace, service, after, revision, time, items }))
}

function firstKnown({ history }: Picture, followers: Checked['followers']): number {
  const told = followers.flatMap(({ recorder: { seen, loads } }) => (loads === 1 ? (seen[0]?.revision ?? []) : []))
  return Math.min(history[0]?.revision ?? Infinity, ...told) - 1
}

/** The log in etcd is one line up to the newest revision, and each entry was written once. */
async function checkLog(gateway: Gateway, prefix: string, revision: number): Promise<void> {
  const entries = await gateway.entries(`${prefix}feed/log/`)
  let next: number | undefined
  for (const { key, value, version } of entries) {
    const { history } = JSON.parse(value.slice(0, value.indexOf('\n'))) as { history: unknown[] }
    const first = Number(key.slice(-16))
    assert.equal(key, prefix + logKey(first))
    assert.equal(version, 1, `${key} was written once`)
    if (next !== undefined) assert.equal(first, next, 'the log has no gap')
    next = first + history.length
  }
  const meta = decodeMeta(Buffer.from((await gateway.get(`${prefix}meta`))!))
  assert.equal(meta.revision, revision)
  if (revision > 0) assert.equal(next, revision + 1)
}
