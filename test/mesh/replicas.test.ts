/** What happens when registries that share an etcd die, and those who register with them: rows of the README's table, on real processes. */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { startEtcd, withoutEtcd } from '../support/etcd.ts'
import { eventually } from './mesh.ts'
import {
  goneBesidesCanary,
  longEnough,
  ofOne,
  populate,
  REGISTRANTS,
  settledOn,
  setUp,
  TTL_MS,
  Watcher,
} from './replicas.ts'

const skip = await withoutEtcd()

test(
  'a replica is killed: its registrants move to the others, and no subscriber hears of a node gone',
  { skip },
  async (t) => {
    const etcd = await startEtcd(t)
    const { replicas } = await setUp(t, ofOne(etcd))
    const { watchers } = await populate(t, replicas)
    const [lost, ...left] = replicas
    const startMs = performance.now()
    await lost!.program.stop('SIGKILL')
    await settledOn(etcd, left)
    t.diagnostic(`all leases with another replica after ${Math.round(performance.now() - startMs)} ms`)
    const [, ...still] = watchers
    await longEnough(left[0]!, still)
    assert.deepEqual(goneBesidesCanary(still), [])
    for (const watcher of still) assert.equal(watcher.nodes.size, REGISTRANTS)

    // And back, under its old address: nothing happens either.
    await lost!.start()
    const again = await new Watcher(lost!).open()
    await again.until(({ nodes }) => nodes.size === REGISTRANTS)
    again.close()
  },
)

test('replicas are restarted one after the other: no subscriber hears of a node gone', { skip }, async (t) => {
  const etcd = await startEtcd(t)
  const { replicas } = await setUp(t, ofOne(etcd))
  const { people } = await populate(t, replicas)
  for (const replica of replicas) {
    const others = replicas.filter((other) => other !== replica)
    const watchers = await Promise.all(others.map((other) => new Watcher(other).open()))
    assert.equal(await replica.program.stop('SIGTERM'), 0)
    await settledOn(etcd, others)
    await replica.start()
    await longEnough(others[0]!, watchers)
    assert.deepEqual(goneBesidesCanary(watchers), [])
    for (const watcher of watchers) watcher.close()
  }
  for (const { registration } of people) assert.equal(registration.state, 'registered')
})

test(
  'a replica is frozen for longer than its own lease in etcd: the others take over, and it takes nobody down when it thaws',
  { skip },
  async (t) => {
    const etcd = await startEtcd(t)
    const { replicas } = await setUp(t, ofOne(etcd))
    const { watchers } = await populate(t, replicas)
    const [frozen, ...left] = replicas
    const id = await frozen!.id()
    frozen!.program.process.kill('SIGSTOP')
    t.after(() => frozen!.program.process.kill('SIGCONT'))
    await eventually(
      () => etcd.gateway.keys('/holdfast/feed/replica/'),
      (keys) => !keys.some((key) => key.endsWith(id)),
      'the frozen replica given up',
    )
    await settledOn(etcd, left)
    frozen!.program.process.kill('SIGCONT')
    await eventually(
      () => etcd.gateway.keys('/holdfast/feed/replica/'),
      (keys) => keys.some((key) => key.endsWith(id)),
      'the thawed replica back',
    )
    await longEnough(left[0]!, watchers)
    assert.deepEqual(goneBesidesCanary(watchers), [])
  },
)

test(
  'a registrant dies: its nodes are gone everywhere, with the cause; also when its replica dies with it',
  { skip },
  async (t) => {
    const etcd = await startEtcd(t)
    const { replicas } = await setUp(t, ofOne(etcd))
    const { watchers } = await populate(t, replicas)
    const [holder, other] = replicas
    const register = (id: string) =>
      holder!.ask('PUT', `/v1/services/mortal/nodes/${id}`, { host: '10.1.1.1', port: 1, ttl: `${TTL_MS}ms` })
    let startMs = performance.now()
    await register('alone')
    await Promise.all(
      watchers.map((watcher) => watcher.until(({ removed }) => removed.some(({ id }) => id === 'alone'))),
    )
    const gone = watchers.flatMap(({ removed }) => removed.filter(({ id }) => id === 'alone'))
    assert.deepEqual(new Set(gone.map(({ cause }) => cause)), new Set(['lease_expired']))
    t.diagnostic(`ttl ${TTL_MS} ms, gone after ${Math.round(Math.max(...gone.map(({ atMs }) => atMs)) - startMs)} ms`)

    startMs = performance.now()
    await register('together')
    await holder!.program.stop('SIGKILL')
    const [, second] = watchers
    await second!.until(({ removed }) => removed.some(({ id }) => id === 'together'))
    t.diagnostic(`with its replica: gone after ${Math.round(performance.now() - startMs)} ms`)
    assert.equal((await other!.ask('GET', '/v1/services/mortal')).body.nodes instanceof Array, true)
  },
)
