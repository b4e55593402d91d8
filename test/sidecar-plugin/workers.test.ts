import assert from 'node:assert/strict'
import { describe, test, type TestContext } from 'node:test'
import { Registry } from 'prom-client'
import type { Rehearsal } from '@holdfast/registry-client'
import { loadConfig } from '../../sidecar-plugin/src/config.ts'
import type { ShownView, Traffic } from '../../sidecar-plugin/src/planes.ts'
import { HandedAcceptors } from '../../sidecar-plugin/src/workers/handed-acceptors.ts'
import {
  bestView,
  NO_TRAFFIC,
  sumTraffic,
  uniteViews,
  worstRehearsals,
} from '../../sidecar-plugin/src/workers/merging.ts'
import { isFromWorker, isToWorker, type Beginning, type ToWorker } from '../../sidecar-plugin/src/workers/messages.ts'
import { WorkerPool } from '../../sidecar-plugin/src/workers/worker-pool.ts'
import type {
  RawConnection,
  WorkerProcess,
  WorkerProcessEvents,
} from '../../sidecar-plugin/src/workers/worker-process.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { quietLog, RawCaller } from './fakes.ts'
import { eventually } from './wire.ts'

/** A process that answers what the test wants it to. */
class FakeProcess implements WorkerProcess {
  readonly pid: number
  readonly heard: ToWorker[] = []
  readonly connections: (RawConnection | undefined)[] = []
  /** What it answers, by question; of what is not here nothing in particular. */
  answers: Partial<Record<string, unknown>>
  /** Whether it takes connections, and answers. */
  isStuck = false
  /** Whether connections do not get to it, as of one without descriptors. */
  isShort = false
  isGone = false
  readonly #events: WorkerProcessEvents

  constructor(pid: number, events: WorkerProcessEvents, answers: FakeProcess['answers']) {
    this.pid = pid
    this.#events = events
    this.answers = answers
  }

  send(message: ToWorker, connection?: RawConnection): void {
    this.heard.push(message)
    if (message.kind === 'connection') this.connections.push(connection)
    if (!this.isStuck) queueMicrotask(() => this.#react(message))
  }

  kill(): void {
    this.end('killed by SIGKILL')
  }

  end(reason: string): void {
    if (this.isGone) return
    this.isGone = true
    queueMicrotask(() => this.#events.ended(reason))
  }

  say(message: unknown): void {
    this.#events.message(message)
  }

  /** What it was asked, without `begin`. */
  get asked(): string[] {
    return this.heard.flatMap((message) => (message.kind === 'ask' ? [message.question] : []))
  }

  get beginning(): Beginning {
    const [first] = this.heard
    assert(first?.kind === 'ask' && first.question === 'begin')
    return first.args[0] as Beginning
  }

  #react(message: ToWorker): void {
    if (this.isGone) return
    if (message.kind === 'connection') return this.isShort ? undefined : this.say({ kind: 'took' })
    if (message.kind !== 'ask') return
    const value = this.answers[message.question]
    if (value instanceof Error) this.say({ kind: 'failure', id: message.id, message: value.message, code: undefined })
    else this.say({ kind: 'answer', id: message.id, value })
  }
}

const NODE = { service: 'stock', id: 'n', port: 8080, protocol: 'http' } as const

function create(t: TestContext, answers: FakeProcess['answers'] = {}) {
  const clock = new ManualClock()
  const processes: FakeProcess[] = []
  const counts = { metrics: [], traffic: NO_TRAFFIC }
  const common = { inFlight: {}, counts, views: [], rehearse: [], ...answers }
  const pool = new WorkerPool({
    config: loadConfig({ argv: ['--workers', '2'], env: { HOME: '/h' } }).config,
    log: quietLog,
    clock,
    random: seededRandom(1),
    registry: new Registry(),
    fork: (events) => {
      const process = new FakeProcess(processes.length + 1, events, { report: { connections: 0 }, ...common })
      processes.push(process)
      return process
    },
  })
  t.after(() => pool.cut())
  return { clock, processes, pool, common }
}

async function start(t: TestContext, answers: FakeProcess['answers'] = {}) {
  const created = create(t, answers)
  await created.pool.start()
  return created
}

async function connect(t: TestContext, port: number): Promise<RawCaller> {
  const caller = new RawCaller(port)
  t.after(() => caller.socket.destroy())
  await eventually('it is connected', () => !caller.socket.connecting)
  return caller
}

describe('workers', () => {
  test('begin with all that they have to know, and are told what changes', async (t) => {
    const { pool, processes } = create(t)
    await pool.set(NODE)
    assert.equal(processes.length, 0, 'nothing runs before the start')
    await pool.start()
    assert.deepEqual(
      processes.map(({ beginning }) => [beginning.worker, beginning.nodes]),
      [1, 2].map((worker) => [worker, [NODE]]),
    )
    await pool.forget('stock')
    for (const { asked } of processes) assert.deepEqual(asked, ['begin', 'forget'])
  })

  test('that do not begin end the start, with the reason', async (t) => {
    const { pool, processes } = create(t, { begin: new Error('no room') })
    await assert.rejects(pool.start(), /no room/)
    await settle()
    assert.equal(processes.length, 2, 'none is started again')
  })

  test('that end are started again, later each time, and know what changed meanwhile', async (t) => {
    const { pool, processes, clock } = await start(t)
    processes[0]!.end('killed by SIGKILL')
    await settle()
    assert.deepEqual(
      (await pool.workers()).map(({ state, pid, lastError }) => [state, pid, lastError]),
      [
        ['waiting', undefined, 'killed by SIGKILL'],
        ['listening', 2, undefined],
      ],
    )
    await pool.set(NODE)
    await clock.advance(500)
    await settle()
    assert.deepEqual(processes[2]!.beginning.nodes, [NODE])
    const [first] = await pool.workers()
    assert.deepEqual([first!.state, first!.pid, first!.restarts], ['listening', 3, 1])
  })

  test('that do not start any more, several times in a row, end the sidecar', async (t) => {
    const { pool, processes, clock, common } = await start(t)
    let failed: Error | undefined
    void pool.failed.then((error) => (failed = error))
    Object.assign(common, { begin: new Error('no room') })
    processes[0]!.end('killed by SIGKILL')
    for (let i = 0; i < 10; i++) {
      await clock.advance(10_000)
      await settle()
      assert(failed !== undefined || processes.length < 7, 'not one more than five')
    }
    assert.match(String(failed), /worker 1 does not start: no room/)
    assert.equal(processes.length, 7)
  })

  test('that hang are left out of every answer, and killed', async (t) => {
    const { pool, processes, clock } = await start(t, { inFlight: { stock: 2 } })
    processes[0]!.isStuck = true
    const asked = pool.inFlight()
    await clock.advance(2_000)
    assert.deepEqual(await asked, { stock: 2 })
    const reported = pool.workers()
    await clock.advance(2_000)
    assert.deepEqual(
      (await reported).map(({ state }) => state),
      ['silent', 'listening'],
    )
    for (let passedMs = 0; passedMs < 20_000; passedMs += 1_000) await clock.advance(1_000)
    assert(processes[0]!.isGone)
    assert(!processes[1]!.isGone)
    assert.deepEqual(
      (await pool.workers()).map(({ state }) => state),
      ['listening', 'listening'],
      'the next one is not silent for what the first was',
    )
  })

  test('that do not take a change in time are killed before it is confirmed', async (t) => {
    const { pool, processes, clock } = await start(t)
    processes[0]!.isStuck = true
    let isKnown = false
    const set = pool.set(NODE).then(() => (isKnown = true))
    await clock.advance(9_999)
    assert.equal(isKnown, false)
    await clock.advance(1)
    await set
    assert(processes[0]!.isGone)
  })

  test('that read nothing are killed before what waits for them grows', async (t) => {
    const { pool, processes } = await start(t)
    processes[0]!.isStuck = true
    for (let i = 0; i < 1_000; i++) void pool.inFlight()
    await settle()
    assert(processes[0]!.isGone)
    assert(processes[0]!.heard.length < 300, `${processes[0]!.heard.length} messages`)
  })

  test('that say what nobody understands are not listened to', async (t) => {
    const { pool, processes } = await start(t)
    for (const message of [undefined, 'x', {}, { kind: 'took' }, { kind: 'answer', id: 99 }, { kind: 'leave' }])
      processes[0]!.say(message)
    assert.deepEqual(await pool.inFlight(), {})
  })

  test('are told to finish what they have and are not started again then', async (t) => {
    const { pool, processes, clock } = await start(t)
    processes[1]!.isStuck = true
    const finished = pool.finish({ idleMs: 0, timeoutMs: 30_000 })
    await settle()
    for (const { asked } of processes) assert.equal(asked.at(-1), 'finish')
    processes[1]!.end('killed by SIGKILL')
    await finished
    await clock.advance(60_000)
    assert.equal(processes.length, 2)
  })
})

describe('a connection', () => {
  async function open(t: TestContext) {
    const created = create(t)
    const port = await created.pool.open({ id: 'inbound', direction: 'inbound', host: '127.0.0.1', port: 0 })
    return { ...created, port }
  }

  const counts = (processes: readonly FakeProcess[]) => processes.map(({ connections }) => connections.length)

  test('waits until there is a worker, and goes to each in turn', async (t) => {
    const { pool, processes, port } = await open(t)
    for (let i = 0; i < 2; i++) await connect(t, port)
    await pool.start()
    await eventually('all are passed', () => counts(processes).join() === '1,1')
    for (let i = 0; i < 4; i++) await connect(t, port)
    await eventually('all are passed', () => counts(processes).join() === '3,3')
    for (const { beginning } of processes) assert.equal(beginning.openings[0]!.port, port)
  })

  test('goes to another worker when the first has not taken its last, or dies before it takes this one', async (t) => {
    const { pool, processes, port } = await open(t)
    await pool.start()
    processes[0]!.isStuck = true
    for (let i = 0; i < 4; i++) await connect(t, port)
    await eventually('all are passed', () => counts(processes).join() === '1,3')
    const [stuck] = processes[0]!.connections
    processes[0]!.end('killed by SIGKILL')
    await settle()
    assert.deepEqual(counts(processes), [1, 4])
    assert.equal(processes[1]!.connections.at(-1), stuck)
  })

  test('that is lost on its way goes to another worker, and the first has its turn again a while later', async (t) => {
    const { pool, processes, port, clock } = await open(t)
    await pool.start()
    processes[0]!.isShort = true
    await connect(t, port)
    await eventually('it is passed', () => counts(processes).join() === '1,0')
    await clock.advance(500)
    assert.deepEqual(counts(processes), [1, 1])
    assert.equal(processes[1]!.connections[0], processes[0]!.connections[0])
    assert.match(await pool.metrics(), /^holdfast_sidecar_connections_returned_total 1$/m)
    for (let i = 0; i < 2; i++) await connect(t, port)
    await eventually('they are passed', () => counts(processes).join() === '1,3')
    processes[0]!.isShort = false
    await clock.advance(1_000)
    for (let i = 0; i < 4; i++) await connect(t, port)
    await eventually('they are passed', () => counts(processes).join() === '3,5')
    await clock.advance(60_000)
    assert.deepEqual(counts(processes), [3, 5], 'nothing that was taken is given to another')
    assert(processes.every(({ isGone }) => !isGone))
  })

  test('that no worker gets waits until one does', async (t) => {
    const { pool, processes, port, clock } = await open(t)
    await pool.start()
    for (const process of processes) process.isShort = true
    await connect(t, port)
    await eventually('it is passed', () => counts(processes).join() === '1,0')
    for (let passedMs = 0; passedMs < 30_000; passedMs += 500) await clock.advance(500)
    for (const count of counts(processes)) assert(count > 5 && count < 25, `${count} times`)
    for (const process of processes) process.isShort = false
    for (let passedMs = 0; passedMs < 2_000; passedMs += 500) await clock.advance(500)
    assert.match(await pool.metrics(), /^holdfast_sidecar_connections_waiting 0$/m)
  })

  test('that a worker neither takes nor gives back is another’s some seconds later, when the first is killed', async (t) => {
    const { pool, processes, port, clock } = await open(t)
    await pool.start()
    processes[0]!.isStuck = true
    await connect(t, port)
    await eventually('it is passed', () => counts(processes).join() === '1,0')
    await clock.advance(4_000)
    assert(!processes[0]!.isGone)
    assert.deepEqual(counts(processes), [1, 0])
    await clock.advance(499)
    assert(!processes[0]!.isGone)
    await clock.advance(1)
    assert(processes[0]!.isGone)
    assert.deepEqual(counts(processes), [1, 1])
    const [first] = await pool.workers()
    assert.match(first!.lastError!, /does not take the connection/)
  })

  test('comes until all workers have left, and each hears when none follows', async (t) => {
    const { pool, processes, port } = await open(t)
    await pool.start()
    const left = (process: FakeProcess) => process.heard.some(({ kind }) => kind === 'left')
    processes[0]!.say({ kind: 'leave', opening: 'inbound' })
    assert(left(processes[0]!))
    await connect(t, port)
    await eventually('it is passed', () => counts(processes).join() === '0,1')
    processes[1]!.say({ kind: 'leave', opening: 'inbound' })
    const late = new RawCaller(port)
    await late.closed
    assert.match(String(late.error), /ECONNREFUSED/)
  })

  test('of a worker is taken until the sidecar says that none follows, or is gone', async () => {
    const told: string[] = []
    const acceptors = new HandedAcceptors((opening) => told.push(opening))
    const [inbound, outbound] = ['inbound', 'outbound'].map((id) => acceptors.of(id)(() => {}))
    assert.equal(await inbound!.listen('127.0.0.1', 7502), 7502)
    await outbound!.listen('127.0.0.1', 7501)
    let isClosed = false
    const closed = inbound!.close().then(() => (isClosed = true))
    await settle()
    assert.equal(isClosed, false)
    acceptors.left('inbound')
    await closed
    const closing = outbound!.close()
    acceptors.leftAlone()
    await closing
    await outbound!.close()
    assert.deepEqual(told, ['inbound', 'outbound'])
  })
})

describe('what several say', () => {
  test('is summed where it counts', () => {
    const tcp = {
      ...({ direction: 'inbound', service: 'db', namespace: 'default', host: '127.0.0.1', port: 1 } as const),
      ...{ opened: 2, open: 1, bytesIn: 3, bytesOut: 4, failed: { caller_gone: 1 } },
    } as const
    const one: Traffic = {
      ...NO_TRAFFIC,
      requests: { outbound: 1, inbound: 2 },
      failed: { outbound: { deadline: 1 }, inbound: {} },
      retries: 3,
      connections: { outbound: { open: 1, refused: 0 }, inbound: { open: 0, refused: 2 } },
      tcp: [tcp],
    }
    const sum = sumTraffic([one, { ...one, failed: { outbound: { no_nodes: 1 }, inbound: {} } }])
    assert.deepEqual(sum.requests, { outbound: 2, inbound: 4 })
    assert.deepEqual(sum.failed.outbound, { deadline: 1, no_nodes: 1 })
    assert.equal(sum.retries, 6)
    assert.deepEqual(sum.connections, { outbound: { open: 2, refused: 0 }, inbound: { open: 0, refused: 4 } })
    const doubled = { opened: 4, open: 2, bytesIn: 6, bytesOut: 8, failed: { caller_gone: 2 } }
    assert.deepEqual(sum.tcp, [{ ...tcp, ...doubled }])
  })

  test('of views is the highest cursor, and of two histories the one that was confirmed last', () => {
    const view = (cursor: string, age: number, service = 'stock'): ShownView => ({
      ...{ namespace: 'default', service, cursor, age },
    })
    const [old, young] = [view('e:9', 0), view('e:10', 500)]
    assert.equal(bestView(old, young), young)
    assert.equal(bestView(young, old), young)
    assert.equal(bestView(undefined, old), old)
    const other = view('f:1', 100)
    assert.equal(bestView(young, other), other)
    assert.deepEqual(uniteViews([old, view('e:1', 0, 'other'), young]), [young, view('e:1', 0, 'other')])
  })

  test('of a rehearsal is the worst, also of a service that only one of them knows', async (t) => {
    const rehearsal = (service: string, level?: 'memory' | 'file'): Rehearsal => {
      const none = { resolves: false }
      const levels = { memory: none, file: none, peer: none }
      return { namespace: 'default', service, resolves: level !== undefined, ...(level && { level }), levels }
    }
    const [memory, file, nowhere] = [rehearsal('a', 'memory'), rehearsal('a', 'file'), rehearsal('a')]
    assert.deepEqual(worstRehearsals([memory, file]), [file])
    assert.deepEqual(worstRehearsals([nowhere, memory]), [nowhere])
    const { pool, processes } = await start(t)
    processes[0]!.answers.rehearse = [memory]
    // Asked for all it knows nothing; asked for this one it would have to read a file.
    Object.defineProperty(processes[1]!.answers, 'rehearse', {
      get: () => (processes[1]!.asked.filter((question) => question === 'rehearse').length > 1 ? [file] : []),
    })
    assert.deepEqual(await pool.rehearse(undefined, new AbortController().signal), [file])
  })

  test('is counted stays counted when one ends, and gauges go with it', async (t) => {
    const metrics = [
      { name: 'calls_total', help: 'h', type: 'counter', aggregator: 'sum', values: [{ value: 5, labels: {} }] },
      { name: 'open', help: 'h', type: 'gauge', aggregator: 'sum', values: [{ value: 2, labels: {} }] },
      { name: 'reachable', help: 'h', type: 'gauge', aggregator: 'min', values: [{ value: 1, labels: {} }] },
    ]
    const tcp = {
      ...({ direction: 'inbound', service: 'db', namespace: 'default', host: '127.0.0.1', port: 1 } as const),
      ...{ opened: 2, open: 1, bytesIn: 3, bytesOut: 4, failed: {} },
    }
    const traffic: Traffic = {
      ...NO_TRAFFIC,
      requests: { outbound: 5, inbound: 0 },
      inFlight: { outbound: 2, inbound: 0 },
      connections: { outbound: { open: 2, refused: 1 }, inbound: { open: 0, refused: 0 } },
      tcp: [tcp],
    }
    const { pool, processes, clock } = await start(t, { counts: { metrics, traffic } })
    const summed = async () => {
      const { requests, inFlight, connections, tcp } = await pool.traffic()
      const { open, refused } = connections.outbound
      return [requests.outbound, refused, inFlight.outbound, open, tcp[0]!.opened, tcp[0]!.open]
    }
    const shown = async (name: string) => Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(await pool.metrics())?.[1])
    assert.equal(await shown('calls_total'), 10)
    assert.equal(await shown('open'), 4)
    assert.equal(await shown('reachable'), 1)
    assert.deepEqual(await summed(), [10, 2, 4, 4, 4, 2])
    for (let round = 0; round < 3; round++) {
      processes[0]!.end('killed by SIGKILL')
      processes.shift()
      await settle()
      assert.equal(await shown('open'), 2)
      assert.equal(await shown('calls_total'), 10 + 5 * round)
      assert.deepEqual(await summed(), [10 + 5 * round, 2 + round, 2, 2, 4 + 2 * round, 1])
      await clock.advance(10_000)
      await settle()
      assert.equal(await shown('calls_total'), 15 + 5 * round)
    }
    assert.equal(await shown('holdfast_sidecar_worker_restarts_total'), 3)
    processes[0]!.isStuck = true
    const late = shown('calls_total')
    await clock.advance(2_000)
    assert.equal(await late, 25, 'of one that does not answer, what it said last')
  })
})

test('a message is known by its shape', () => {
  assert(isToWorker({ kind: 'ask', id: 1, question: 'views', args: [] }))
  assert(isFromWorker({ kind: 'failure', id: 1, message: 'm', code: undefined }))
  for (const message of [null, 1, {}, { kind: 'toString' }, { kind: 'ask', id: '1', question: 'views', args: [] }])
    assert(!isToWorker(message) && !isFromWorker(message))
})
