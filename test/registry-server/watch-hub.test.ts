import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  decodeEvent,
  fold,
  unaccounted,
  type Removal,
  type ServiceNode,
  type View,
} from '@holdfast/registry-client/protocol'
import { StoreMemory, type Draft } from '../../registry-server/src/store/store-state.ts'
import type { HistoryEntry, Store, StoreStatus, Transaction } from '../../registry-server/src/store/store.ts'
import type { StreamEvent } from '../../registry-server/src/watch/stream-event.ts'
import type { EndReason, Sink } from '../../registry-server/src/watch/subscriber.ts'
import { WatchHub } from '../../registry-server/src/watch/watch-hub.ts'
import { node } from '../store.contract.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'

const PING_MS = 10_000

interface Seen {
  readonly event: string
  readonly id: string | undefined
  readonly data: Record<string, unknown>
}

/** A connection that takes what it is sent, unless it is told to stall. */
class FakeSink implements Sink {
  readonly remote = 'test'
  readonly transport: Sink['transport']
  readonly seen: Seen[] = []
  unsentBytes = 0
  sentBytes = 0
  ended: EndReason | undefined
  isStalled = false
  #buffered = ''

  constructor(transport: Sink['transport'] = 'sse') {
    this.transport = transport
  }

  write(events: readonly StreamEvent[], id: string | undefined): void {
    assert.equal(this.ended, undefined, 'nothing is written after the end')
    for (const [index, event] of events.entries()) {
      const bytes = Buffer.concat([...event.encode('sse', index === events.length - 1 ? id : undefined)])
      if (this.isStalled) this.unsentBytes += bytes.length
      else this.sentBytes += bytes.length
      this.#buffered += bytes.toString()
    }
    for (;;) {
      const end = this.#buffered.indexOf('\n\n')
      if (end < 0) break
      const fields = Object.fromEntries(
        this.#buffered
          .slice(0, end)
          .split('\n')
          .map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 2)] as const),
      )
      this.#buffered = this.#buffered.slice(end + 2)
      this.seen.push({ event: fields.event!, id: fields.id, data: JSON.parse(fields.data!) as Seen['data'] })
    }
  }

  end(reason: EndReason): void {
    this.ended = reason
  }

  drain(): void {
    this.isStalled = false
    this.sentBytes += this.unsentBytes
    this.unsentBytes = 0
  }

  take(): string[] {
    return this.seen
      .splice(0)
      .map(({ event, id, data }) =>
        [event, data.service as string | undefined, id && `id ${id.split(':')[1]}`]
          .filter((part) => part !== undefined)
          .join(' '),
      )
  }
}

/** A client's side of a stream: folds what comes, and asks for a snapshot when a frame does not fit. */
function foldAll(views: Map<string, View>, seen: readonly Seen[]): void {
  for (const { event, id, data } of seen) {
    const decoded = decodeEvent(event, id, data)
    if (decoded.event === 'ping') continue
    const { namespace, service } = decoded.frame.kind === 'snapshot' ? decoded.frame.view : decoded.frame
    const key = `${namespace}/${service}`
    const before = views.get(key)
    const after = fold(before, decoded.frame)
    assert.ok(after, `${key}: ${JSON.stringify(data)} does not continue ${before?.cursor.revision}`)
    assert.ok(!before || after.cursor.revision >= before.cursor.revision, `${key} goes back`)
    assert.deepEqual(unaccounted(before, after), [], `${key} is emptied without proof`)
    views.set(key, after)
  }
}

/** What a hub asks of its store. */
class FakeStore implements Pick<Store, 'epoch' | 'sync' | 'status'> {
  readonly epoch = 'e'
  ageMs = 0
  /** Of each sync that was asked for, in order. */
  readonly syncs: { readonly resolve: () => void; readonly reject: (error: Error) => void }[] = []

  sync(): Promise<void> {
    return new Promise((resolve, reject) => this.syncs.push({ resolve, reject }))
  }

  status(): StoreStatus {
    return { ageMs: this.ageMs } as StoreStatus
  }
}

function hubOn(store: FakeStore, clock: ManualClock): WatchHub {
  return new WatchHub({ store, clock, maxBufferBytes: 65_536, pingMs: PING_MS, stallMs: 60_000 })
}

function setUp(options: { floor?: (revision: number) => number } = {}) {
  const clock = new ManualClock()
  const store = new FakeStore()
  const hub = hubOn(store, clock)
  const memory = new StoreMemory()
  const history: HistoryEntry[] = []
  const transact = (body: (tx: Transaction) => void): Draft => {
    const { draft } = memory.run(body, new Date(clock.wall()).toISOString())
    const { revision, time, changes } = draft.committed ?? { revision: 0, time: '', changes: [] }
    for (const { namespace, service, after, items } of changes)
      history.push({ namespace, service, revision, time, after, items })
    return draft
  }
  const commit = (...bodies: ((tx: Transaction) => void)[]) => {
    const drafts = bodies.map(transact)
    const committed = drafts.flatMap((draft) => draft.committed ?? [])
    if (committed.length > 0) hub.apply(committed, options.floor?.(memory.revision) ?? 0)
  }
  const connect = (transport?: Sink['transport']) => {
    const sink = new FakeSink(transport)
    return { sink, subscriber: hub.connect(sink) }
  }
  /** Done at another replica: this hub hears of it only by a state that is loaded. */
  const elsewhere = (...bodies: ((tx: Transaction) => void)[]) => bodies.forEach(transact)
  const load = ({ floor = options.floor?.(memory.revision) ?? 0, without = '' } = {}) =>
    hub.load({
      revision: memory.revision,
      floor,
      services: [...memory.services()].filter(({ service }) => service !== without),
      leases: [],
      history: history.filter(({ revision }) => revision > floor),
    })
  return { clock, store, hub, memory, commit, connect, elsewhere, load }
}

const registered = { cause: 'registered', by: 'x' } as const
const put =
  (id: string, service = 'stock', fields: Partial<ServiceNode> = {}, namespace = 'default') =>
  (tx: Transaction) =>
    tx.putNode({ namespace, service, id }, { node: node(id, fields) }, registered)
const remove =
  (id: string, service = 'stock', cause: Removal['cause'] = 'deregistered') =>
  (tx: Transaction) =>
    tx.removeNode({ namespace: 'default', service, id }, { cause, by: 'x' })
const want = (service: string, revision?: number, namespace = 'default', epoch = 'e') => ({
  namespace,
  service,
  cursor: revision === undefined ? undefined : { epoch, revision },
})

test('a first subscription gets a snapshot of each service, and only the last carries the id', () => {
  const { commit, connect } = setUp()
  commit(put('a'))
  commit(put('b', 'cart'))
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock'), want('cart'), want('unknown')])
  assert.deepEqual(sink.take(), ['snapshot stock', 'snapshot cart', 'snapshot unknown id 2'])
})

test('a service never heard of is a snapshot at revision 0 without nodes', () => {
  const { connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('nobody')])
  assert.deepEqual(sink.seen[0]?.data, {
    namespace: 'default',
    service: 'nobody',
    cursor: 'e:0',
    nodes: [],
    policy: null,
  })
})

test('each change reaches those who watch the service, in order, and nobody else', () => {
  const { commit, connect } = setUp()
  commit(put('a'))
  const stock = connect()
  const cart = connect()
  stock.subscriber.subscribe([want('stock')])
  cart.subscriber.subscribe([want('cart')])
  stock.sink.take()
  cart.sink.take()
  commit(put('b'))
  commit(remove('a'))
  assert.deepEqual(stock.sink.take(), ['change stock id 2', 'change stock id 3'])
  assert.deepEqual(cart.sink.take(), [])
})

test('of the frames of one transaction only the last to a subscriber carries the id', () => {
  const { commit, connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock'), want('cart')])
  sink.take()
  commit((tx) => {
    put('a')(tx)
    put('b', 'cart')(tx)
    put('c', 'other')(tx)
  })
  assert.deepEqual(sink.take(), ['change stock', 'change cart id 1'])
})

test('transactions of one commit reach a subscriber each as a frame of its own', () => {
  const { commit, connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock')])
  sink.take()
  commit(put('a'), put('b'), remove('a'))
  assert.deepEqual(sink.take(), ['change stock', 'change stock', 'change stock id 3'])
})

test('a subscription that is current gets nothing but a ping that says so', () => {
  const { commit, connect } = setUp()
  commit(put('a'))
  commit(put('b', 'cart'))
  for (const revision of [1, 2]) {
    const { sink, subscriber } = connect()
    subscriber.subscribe([want('stock', revision)])
    assert.deepEqual(sink.take(), ['ping id 2'])
  }
})

test('a subscription that resumes gets what it missed as one change, each removal with its cause', () => {
  const { commit, connect } = setUp()
  commit(put('a'), put('b'), put('c'))
  commit(put('x', 'other'))
  commit(put('a', 'stock', { port: 1 }))
  commit(remove('b', 'stock', 'lease_expired'))
  commit(put('a', 'stock', { port: 2 }))
  commit(remove('c', 'stock', 'operator'))
  commit(put('c'))
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock', 4)])
  const [change] = sink.seen
  assert.equal(change?.event, 'change')
  assert.equal(change.data.after, 'e:3')
  assert.equal(change.data.cursor, 'e:9')
  assert.deepEqual(
    (change.data.put as ServiceNode[]).map(({ id, port }) => [id, port]),
    [
      ['a', 2],
      ['c', 8080],
    ],
  )
  assert.deepEqual(
    (change.data.remove as Removal[]).map(({ id, cause, revision }) => [id, cause, revision]),
    [['b', 'lease_expired', 6]],
  )
})

test('a resumed policy change is there, null when the policy went', () => {
  const { commit, connect } = setUp()
  const policy = (value: object | undefined) => (tx: Transaction) =>
    tx.putPolicy('default', 'stock', value as never, { cause: 'operator', by: 'x' })
  commit(put('a'))
  commit(policy({ timeout: '1s' }))
  commit(policy(undefined))
  const resumed = connect()
  resumed.subscriber.subscribe([want('stock', 1)])
  assert.equal(resumed.sink.seen[0]?.data.policy, null)
  commit(put('b'))
  const later = connect()
  later.subscriber.subscribe([want('stock', 3)])
  assert.ok(!('policy' in later.sink.seen[0]!.data))
})

for (const [what, cursor] of [
  ['of another epoch', want('stock', 3, 'default', 'other')],
  ['from the future', want('stock', 99)],
  ['older than history', want('stock', 1)],
] as const)
  test(`a cursor ${what} gets a snapshot`, () => {
    const { commit, connect } = setUp({ floor: (revision) => revision - 2 })
    for (const id of ['a', 'b', 'c', 'd', 'e']) commit(put(id))
    const { sink, subscriber } = connect()
    subscriber.subscribe([cursor])
    assert.deepEqual(sink.take(), ['snapshot stock id 5'])
  })

test('a current view gets nothing even where no history is left', () => {
  const { commit, connect } = setUp({ floor: (revision) => revision })
  commit(put('a'))
  for (let index = 0; index < 5; index++) commit(put('x', 'other', { port: index + 1 }))
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock', 1)])
  assert.deepEqual(sink.take(), ['ping id 6'])
})

test('after a restart views, their cursors and their history are as before', () => {
  const { commit, memory, clock } = setUp()
  commit(put('a'))
  commit(put('b'))
  commit(remove('a'))
  const again = hubOn(new FakeStore(), clock)
  const entry = (revision: number, id: string, cause: 'registered' | 'deregistered') => ({
    namespace: 'default',
    service: 'stock',
    revision,
    after: revision - 1,
    time: '2026-01-01T00:00:00.000Z',
    items: [{ kind: 'node' as const, cause, by: 'x', ids: [id] }],
  })
  again.load({
    revision: 3,
    floor: 1,
    services: memory.services(),
    leases: [],
    history: [entry(2, 'b', 'registered'), entry(3, 'a', 'deregistered')],
  })
  const sinks = [0, 1, 2, 3].map((revision) => {
    const sink = new FakeSink()
    again.connect(sink).subscribe([want('stock', revision)])
    return sink.take()[0]
  })
  assert.deepEqual(sinks, ['snapshot stock id 3', 'change stock id 3', 'change stock id 3', 'ping id 3'])
})

test('a star watches all services of its namespace, a namespace star those of all, and nobody gets a frame twice', () => {
  const { commit, connect } = setUp()
  commit(put('a'))
  const own = connect()
  const all = connect()
  own.subscriber.subscribe([want('*'), want('stock')])
  all.subscriber.subscribe([want('*', undefined, '*')])
  assert.deepEqual(own.sink.take(), ['snapshot stock id 1'])
  assert.deepEqual(all.sink.take(), ['snapshot stock id 1'])
  commit(put('b', 'brand-new'))
  commit(put('c', 'stock', {}, 'blue'))
  commit(put('d'))
  assert.deepEqual(own.sink.take(), ['change brand-new id 2', 'change stock id 4'])
  assert.deepEqual(all.sink.take(), ['change brand-new id 2', 'change stock id 3', 'change stock id 4'])
})

test('after unsubscribing nothing of the service comes any more', () => {
  const { commit, connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock'), want('cart')])
  subscriber.unsubscribe([want('stock')])
  sink.take()
  commit(put('a'))
  commit(put('b', 'cart'))
  assert.deepEqual(sink.take(), ['change cart id 2'])
})

test('subscribing again without a cursor brings a fresh snapshot', () => {
  const { commit, connect } = setUp()
  commit(put('a'))
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock')])
  sink.take()
  subscriber.subscribe([want('stock')])
  assert.deepEqual(sink.take(), ['snapshot stock id 1'])
})

test('pings come every ten seconds, and tell of revisions outside the subscription', async () => {
  const { clock, commit, connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock')])
  sink.take()
  commit(put('x', 'other'))
  await clock.advance(PING_MS)
  assert.deepEqual(sink.take(), ['ping id 1'])
  await clock.advance(3 * PING_MS)
  assert.equal(sink.take().length, 3)
})

test('a slow reader is not buffered for: it gets the present state of what it missed once it has drained', () => {
  const { hub, commit, connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock'), want('cart'), want('idle')])
  sink.take()
  sink.isStalled = true
  for (let index = 0; index < 2_000; index++) commit(put('a', 'stock', { port: index + 1 }), put('b', 'cart'))
  const waiting = sink.unsentBytes
  assert.ok(waiting < 2 * 65_536, `${waiting} bytes wait`)
  assert.equal(hub.status().restarts, 1)
  sink.take()
  sink.drain()
  subscriber.drained()
  assert.deepEqual(sink.take(), ['change stock', 'change cart id 4000'])
  commit(put('c'))
  assert.deepEqual(sink.take(), ['change stock id 4001'])
})

test('first snapshots larger than the buffer come in pieces, with what changed meanwhile', () => {
  const { commit, connect } = setUp()
  const services = Array.from({ length: 50 }, (_, index) => `s${index}`)
  const labels = Object.fromEntries(Array.from({ length: 40 }, (_, index) => [`label-${index}`, 'x'.repeat(200)]))
  for (const service of services) commit(put('a', service, { labels }))
  const views = new Map<string, View>()
  const { sink, subscriber } = connect()
  sink.isStalled = true
  subscriber.subscribe(services.map((service) => want(service)))
  let rounds = 0
  while (subscriber.isBehind) {
    assert.ok(sink.unsentBytes < 3 * 65_536)
    commit(put('b', `s${rounds % 50}`, { port: rounds + 1 }))
    foldAll(views, sink.seen.splice(0))
    sink.drain()
    sink.isStalled = rounds < 200
    subscriber.drained()
    assert.ok(++rounds < 500, 'it comes to an end')
  }
  assert.ok(rounds > 3)
  foldAll(views, sink.seen.splice(0))
  assert.equal(views.size, 50)
  for (let index = 0; index < Math.min(rounds, 50); index++) assert.ok(views.get(`default/s${index}`)?.nodes.has('b'))
})

test('whoever gives a number is told it when all that was asked for has been sent, and not before', () => {
  const { commit, connect } = setUp()
  commit(put('a'))
  const { sink, subscriber } = connect('websocket')
  const told = () =>
    sink.seen.splice(0).map(({ event, id, data }) => `${event} ${id?.split(':')[1] ?? ''} ${String(data.subscribed)}`)
  subscriber.subscribe([want('stock')], 7)
  assert.deepEqual(told(), ['snapshot 1 undefined', 'ping 1 7'])
  subscriber.subscribe([want('stock', 1)], 8)
  assert.deepEqual(told(), ['ping 1 8'])
  subscriber.subscribe([want('stock', 1)])
  assert.deepEqual(told(), ['ping 1 undefined'])

  // Larger than what may wait for a reader, so that the rest has to wait.
  const labels = Object.fromEntries(Array.from({ length: 60 }, (_, index) => [`label-${index}`, 'x'.repeat(250)]))
  const services = Array.from({ length: 12 }, (_, index) => `s${index}`)
  for (const service of services) commit(put('a', service, { labels }))
  sink.isStalled = true
  subscriber.subscribe(
    services.map((service) => want(service)),
    9,
  )
  subscriber.subscribe([want('stock', 1)], 10)
  assert.ok(subscriber.isBehind)
  assert.ok(told().every((line) => line.startsWith('snapshot')))
  commit(put('b'))
  for (let round = 0; subscriber.isBehind; round++) {
    assert.ok(round < 50)
    assert.ok(told().every((line) => line.endsWith('undefined')))
    sink.drain()
    sink.isStalled = true
    subscriber.drained()
  }
  // The last number stands for those before it; the change came before it.
  assert.deepEqual(told().slice(-2), ['change 14 undefined', 'ping 14 10'])
})

test('a reader that takes nothing for a minute is disconnected', async () => {
  const { clock, hub, commit, connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock')])
  sink.isStalled = true
  commit(put('a'))
  await clock.advance(50_000)
  assert.equal(sink.ended, undefined)
  await clock.advance(30_000)
  assert.equal(sink.ended, 'stalled')
  assert.equal(hub.status().dropped, 1)
  assert.equal(hub.subscriberCount, 0)
})

test('a WebSocket has arrived where its client says, an event stream where the network took it', () => {
  const { commit, connect } = setUp()
  const socket = connect('websocket')
  const events = connect('sse')
  for (const { subscriber } of [socket, events]) subscriber.subscribe([want('stock')])
  commit(put('a'))
  assert.deepEqual([socket.subscriber.ackedRevision, socket.subscriber.lag], [undefined, 1])
  assert.deepEqual([events.subscriber.ackedRevision, events.subscriber.lag], [1, 0])
  socket.subscriber.ack({ epoch: 'e', revision: 99 })
  assert.deepEqual([socket.subscriber.ackedRevision, socket.subscriber.lag], [1, 0])
  commit(put('x', 'other'))
  assert.equal(socket.subscriber.lag, 0, 'what it does not watch is no lag')
})

test('closing ends every stream and every wait, and forgets them', async () => {
  const { hub, clock, connect } = setUp()
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock')])
  const waiting = hub.changed('default', 'stock', 0, 60_000, new AbortController().signal)
  hub.close()
  await waiting
  assert.equal(sink.ended, 'stopping')
  assert.equal(hub.subscriberCount, 0)
  assert.equal(clock.pending, 0)
})

test('a wait ends with a change, with its time, or with its client, and leaves nothing behind', async () => {
  const { hub, clock, commit } = setUp()
  const gone = new AbortController()
  const changed = hub.changed('default', 'stock', 0, 60_000, new AbortController().signal)
  const timed = hub.changed('default', 'other', 0, 1_000, new AbortController().signal)
  const aborted = hub.changed('default', 'third', 0, 60_000, gone.signal)
  const before = clock.pending
  commit(put('a'))
  await changed
  await clock.advance(1_000)
  await timed
  gone.abort()
  await aborted
  assert.equal(clock.pending, before - 3)
})

test('pings name the time over which so many subscribers should come back, and their number rounds it', () => {
  const { hub, connect } = setUp()
  const { sink, subscriber } = connect()
  for (const [count, spread] of [
    [1, 200],
    [200, 200],
    [201, 400],
    [5_000, 5_000],
    [31_000, 30_000],
  ] as const) {
    while (hub.subscriberCount < count) connect()
    subscriber.subscribe([want('stock', 0)])
    assert.deepEqual(sink.seen.at(-1)?.data, { spread }, `${count} subscribers`)
  }
})

test('all subscribers are sent the same bytes of a ping', async () => {
  const { clock, connect } = setUp()
  const written: StreamEvent[] = []
  for (let count = 0; count < 1_000; count++) connect().sink.write = (events) => void written.push(...events)
  await clock.advance(PING_MS)
  assert.equal(written.length, 1_000)
  assert.equal(new Set(written).size, 1)
})

test('the last word of a registry that stops is the time to spread over, the same for all', () => {
  const { hub, connect } = setUp()
  const all = Array.from({ length: 401 }, () => connect())
  for (const { subscriber } of all) subscriber.subscribe([want('stock', 0)])
  const [reader] = all
  reader!.subscriber.miss({ namespace: 'default', service: 'stock', key: 'default/stock' }, 0, 1)
  for (const { sink } of all) sink.seen.splice(0)
  hub.close()
  assert.deepEqual(reader!.sink.take(), [], 'one that is behind must not be told that it is not')
  for (const { sink } of all.slice(1)) {
    assert.deepEqual(sink.seen, [{ event: 'ping', id: 'e:0', data: { spread: 600 } }])
    assert.equal(sink.ended, 'stopping')
  }
})

test('a registry that may be behind says for how long, before and after all else', async () => {
  const { clock, store, commit, connect } = setUp()
  commit(put('a'))
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock')])
  sink.take()
  store.ageMs = 3_000
  await clock.advance(PING_MS)
  assert.deepEqual(sink.seen.splice(0)[0]?.data, { spread: 200 }, 'what any network takes is no age')
  store.ageMs = 12_300
  await clock.advance(PING_MS)
  assert.deepEqual(sink.seen.splice(0)[0]?.data, { spread: 200, age: 13_000 })
  const late = connect()
  late.subscriber.subscribe([want('stock')])
  assert.deepEqual(late.sink.seen[0], { event: 'ping', id: undefined, data: { spread: 200, age: 13_000 } })
  assert.deepEqual(late.sink.take(), ['ping', 'snapshot stock id 1'])
  store.ageMs = 0
  await clock.advance(PING_MS)
  assert.deepEqual(sink.seen.splice(0)[0]?.data, { spread: 200 })
})

test('what clients come back with is counted by what they were sent, and every snapshot', () => {
  const { hub, commit, connect } = setUp({ floor: (revision) => revision - 2 })
  for (const id of ['a', 'b', 'c', 'd', 'e']) commit(put(id))
  commit(put('x', 'cart'))
  const { sink, subscriber } = connect()
  subscriber.subscribe([want('stock'), want('cart')])
  subscriber.subscribe([want('stock', 5), want('cart', 6)])
  subscriber.subscribe([want('stock', 4)])
  subscriber.subscribe([want('stock', 1), want('cart', 6, 'default', 'other')])
  const counted = { snapshotsSent: 4, resumes: { nothing: 2, change: 1, snapshot: 2 } }
  const { snapshotsSent, resumes } = hub.status()
  assert.deepEqual({ snapshotsSent, resumes }, counted)
  sink.isStalled = true
  sink.unsentBytes = 100_000
  commit(put('y', 'cart'))
  sink.drain()
  subscriber.drained()
  assert.equal(hub.status().restarts, 1)
  assert.deepEqual(hub.status().resumes, counted.resumes, 'a slow reader has not come back')
})

describe('a cursor from the future', () => {
  test('is waited for by one sync for all who come before it, and one for all who come while it runs', async () => {
    const { hub, store } = setUp()
    const ahead = [{ epoch: 'e', revision: 1 }]
    const first = hub.reach(ahead)
    const later = [hub.reach(ahead), hub.reach([undefined, ...ahead])]
    assert.equal(store.syncs.length, 1)
    store.syncs[0]!.resolve()
    await first
    await settle()
    assert.equal(store.syncs.length, 2, 'what they saw may be younger than the first sync')
    store.syncs[1]!.resolve()
    for (const each of later) await each
    assert.equal(hub.reach(ahead) === undefined, false)
    assert.equal(store.syncs.length, 3)
  })

  test('is not waited for when it is reached, or of another epoch', () => {
    const { hub, store, commit } = setUp()
    commit(put('a'))
    for (const cursor of [undefined, { epoch: 'e', revision: 1 }, { epoch: 'other', revision: 9 }])
      assert.equal(hub.reach([cursor]), undefined)
    assert.equal(store.syncs.length, 0)
  })

  test('is waited for no longer than a store that fails or is silent', async () => {
    const { hub, store, clock } = setUp()
    const pings = clock.pending
    const ahead = [{ epoch: 'e', revision: 1 }]
    const failed = hub.reach(ahead)
    store.syncs[0]!.reject(new Error('cut off'))
    await failed
    let isOver = false
    const silent = hub.reach(ahead)!.then(() => (isOver = true))
    await clock.advance(1_999)
    assert.equal(isOver, false)
    await clock.advance(1)
    await silent
    assert.equal(clock.pending, pings)
  })
})

describe('a state loaded again', () => {
  test('brings each subscriber what changed, and nothing of the rest', async () => {
    const { hub, clock, commit, connect, elsewhere, load } = setUp()
    commit(put('a'))
    commit(put('b'))
    commit(put('x', 'cart'))
    const stock = connect()
    const cart = connect()
    const all = connect()
    const unknown = connect()
    stock.subscriber.subscribe([want('stock')])
    cart.subscriber.subscribe([want('cart')])
    all.subscriber.subscribe([want('*')])
    unknown.subscriber.subscribe([want('new')])
    for (const { sink } of [stock, cart, all, unknown]) sink.take()
    elsewhere(put('c'), remove('a'), put('n', 'new'))
    load({ floor: 3 })
    assert.deepEqual(stock.sink.seen[0]?.data.after, 'e:2')
    assert.deepEqual(
      (stock.sink.seen[0]?.data.remove as Removal[]).map(({ id, cause }) => [id, cause]),
      [['a', 'deregistered']],
    )
    assert.deepEqual(stock.sink.take(), ['change stock id 6'])
    assert.deepEqual(all.sink.take(), ['change stock', 'change new id 6'])
    assert.deepEqual(unknown.sink.take(), ['change new id 6'])
    assert.deepEqual(cart.sink.take(), [])
    await clock.advance(PING_MS)
    assert.deepEqual(cart.sink.take(), ['ping id 6'])
    const { services, nodes } = hub.status()
    assert.deepEqual([services, nodes], [3, 4])
    assert.equal(hub.status().snapshotsSent, 5, 'only those of the first subscriptions')
  })

  test('is a snapshot where history does not reach back, and history goes on from it', () => {
    const { commit, connect, elsewhere, load } = setUp()
    commit(put('a'))
    const { sink, subscriber } = connect()
    subscriber.subscribe([want('stock')])
    sink.take()
    elsewhere(put('b'), remove('a'), put('c'))
    load({ floor: 3 })
    assert.deepEqual(sink.take(), ['snapshot stock id 4'])
    commit(put('d'))
    assert.deepEqual(sink.take(), ['change stock id 5'])
    for (const [revision, expected] of [
      [1, 'snapshot stock id 5'],
      [3, 'change stock id 5'],
      [4, 'change stock id 5'],
      [5, 'ping id 5'],
    ] as const) {
      const late = connect()
      late.subscriber.subscribe([want('stock', revision)])
      assert.deepEqual(late.sink.take(), [expected])
    }
  })

  test('reaches a slow reader once it has drained', () => {
    const { commit, connect, elsewhere, load } = setUp()
    commit(put('a'))
    const { sink, subscriber } = connect()
    subscriber.subscribe([want('stock')])
    sink.take()
    sink.isStalled = true
    sink.unsentBytes = 100_000
    commit(put('b'))
    elsewhere(put('c'))
    load()
    assert.deepEqual(sink.take(), [])
    sink.drain()
    subscriber.drained()
    assert.deepEqual(sink.take(), ['change stock id 3'])
  })

  test('wakes those who wait for what changed, and nobody else', async () => {
    const { hub, commit, elsewhere, load } = setUp()
    commit(put('a'))
    commit(put('x', 'cart'))
    const { signal } = new AbortController()
    let isWoken = false
    const stock = hub.changed('default', 'stock', 2, 60_000, signal)
    void hub.changed('default', 'cart', 2, 60_000, signal).then(() => (isWoken = true))
    elsewhere(put('b'))
    load()
    await stock
    assert.equal(isWoken, false)
  })

  test('leaves a view as it was that it does not tell of', () => {
    const { hub, commit, connect, elsewhere, load } = setUp()
    commit(put('a'))
    commit(put('x', 'cart'))
    const { sink, subscriber } = connect()
    subscriber.subscribe([want('stock')])
    sink.take()
    elsewhere(put('y', 'cart'))
    load({ without: 'stock' })
    assert.deepEqual(sink.take(), [])
    assert.deepEqual([...hub.view('default', 'stock')!.nodes.keys()], ['a'])
    assert.equal(hub.status().nodes, 3)
    const late = connect()
    late.subscriber.subscribe([want('stock')])
    assert.deepEqual(late.sink.take(), ['snapshot stock id 3'])
  })
})

test('whatever happens, a client that folds its frames has what the registry has', () => {
  const service = fc.constantFrom('s1', 's2', 's3')
  const id = fc.constantFrom('a', 'b', 'c')
  const step = fc.oneof(
    {
      weight: 6,
      arbitrary: fc.record({ kind: fc.constant('put' as const), service, id, port: fc.integer({ min: 1, max: 9 }) }),
    },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('remove' as const), service, id }) },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('policy' as const), service, value: fc.constantFrom('1s', '2s') }),
    },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('elsewhere' as const),
        service,
        id,
        port: fc.integer({ min: 1, max: 9 }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('reconnect' as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('stall' as const) }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('drain' as const) }) },
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), fc.integer({ min: 1, max: 30 }), (steps, kept) => {
      const { hub, commit, connect, elsewhere, load } = setUp({ floor: (revision) => Math.max(0, revision - kept) })
      const views = new Map<string, View>()
      const names = ['s1', 's2', 's3']
      let client = connect()
      client.subscriber.subscribe(names.map((name) => want(name)))
      for (const item of steps) {
        if (item.kind === 'put') commit(put(item.id, item.service, { port: item.port }))
        else if (item.kind === 'remove') commit(remove(item.id, item.service))
        else if (item.kind === 'policy')
          commit((tx) => tx.putPolicy('default', item.service, { timeout: item.value }, { cause: 'operator', by: 'x' }))
        else if (item.kind === 'elsewhere') {
          elsewhere(put(item.id, item.service, { port: item.port }))
          load()
        } else if (item.kind === 'stall') {
          client.sink.isStalled = true
          client.sink.unsentBytes = 100_000
        } else if (item.kind === 'drain') {
          client.sink.drain()
          client.subscriber.drained()
        } else {
          foldAll(views, client.sink.seen.splice(0))
          client.subscriber.close()
          client = connect()
          client.subscriber.subscribe(names.map((name) => want(name, views.get(`default/${name}`)?.cursor.revision)))
        }
      }
      client.sink.drain()
      client.subscriber.drained()
      foldAll(views, client.sink.seen.splice(0))
      for (const name of names) {
        const ours = hub.view('default', name)
        const theirs = views.get(`default/${name}`)
        assert.deepEqual([...(theirs?.nodes ?? [])].sort(), [...(ours?.nodes ?? [])].sort(), name)
        assert.deepEqual(theirs?.policy, ours?.policy)
        assert.equal(theirs?.cursor.revision, ours?.revision ?? 0)
      }
      hub.close()
    }),
    { numRuns: 300 },
  )
})
