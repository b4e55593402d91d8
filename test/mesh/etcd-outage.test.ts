/** What happens when etcd dies, whole or in part, and what it costs while it lives: rows of the README's table, on real processes. */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { startEtcd, startEtcdCluster, withoutEtcd } from '../support/etcd.ts'
import { startProxy } from '../support/tcp-proxy.ts'
import { eventually } from './mesh.ts'
import {
  canary,
  goneBesidesCanary,
  longEnough,
  ofOne,
  populate,
  Replica,
  settledOn,
  setUp,
  TTL_MS,
} from './replicas.ts'

const skip = await withoutEtcd()

test(
  'a replica is cut from etcd: it serves what it knows and says so, refuses writes, and loses its registrants to others',
  { skip },
  async (t) => {
    const etcd = await startEtcd(t)
    const proxy = await startProxy(t, { host: '127.0.0.1', port: etcd.clientPort })
    const { mesh, replicas: left } = await setUp(t, ofOne(etcd), 2)
    const cut = new Replica(mesh, 'registry-cut', `etcd://127.0.0.1:${proxy.port}`)
    await cut.start()
    const { watchers } = await populate(t, [cut, ...left])
    proxy.cut()
    await eventually(
      () => cut.ask('GET', '/readyz'),
      ({ status, body }) => status === 503 && body.code === 'store_unavailable',
      'not ready',
    )
    const read = await cut.ask('GET', '/v1/services/service-0')
    assert.equal(read.status, 200)
    assert.ok(Number(read.headers.get('holdfast-age')) >= 1, String(read.headers.get('holdfast-age')))
    const write = await cut.ask('PUT', '/v1/services/service-0/nodes/new', { host: '10.0.0.1', port: 1 })
    assert.equal(write.status, 503)
    assert.equal(write.body.code, 'store_unavailable')
    assert.ok(Number(write.headers.get('retry-after')) >= 1)
    await settledOn(etcd, left)
    await canary(left[0]!, 'meanwhile', '1h')
    const [, ...following] = watchers
    await longEnough(left[0]!, following)
    assert.deepEqual(goneBesidesCanary(following), [])

    proxy.restore()
    await watchers[0]!.until(({ nodes }) => nodes.has('meanwhile'))
    await eventually(
      () => cut.ask('GET', '/readyz'),
      ({ status }) => status === 200,
      'ready again',
    )
    assert.equal((await cut.ask('GET', '/v1/services/service-0')).headers.get('holdfast-age'), '0')
    assert.deepEqual(goneBesidesCanary(watchers), [])
  },
)

test('all of etcd is killed and comes back: reads go on, nobody expires, writes work again', { skip }, async (t) => {
  const etcd = await startEtcd(t)
  const { replicas } = await setUp(t, ofOne(etcd))
  const { people, watchers } = await populate(t, replicas)
  await etcd.kill()
  for (const replica of replicas)
    await eventually(
      () => replica.ask('GET', '/readyz'),
      ({ status }) => status === 503,
      'the loss noticed',
    )
  for (const replica of replicas) assert.equal((await replica.ask('GET', '/v1/services/service-0')).status, 200)
  // Longer than the leases live, by the replica that says for how long it has known nothing new.
  await eventually(
    () => replicas[0]!.ask('GET', '/v1/services'),
    ({ headers }) => Number(headers.get('holdfast-age')) * 1000 > TTL_MS * 3,
    'an outage longer than the leases',
  )
  await etcd.start()
  for (const replica of replicas)
    await eventually(
      () => replica.ask('GET', '/readyz'),
      ({ status }) => status === 200,
      'ready again',
    )
  await longEnough(replicas[0]!, watchers)
  assert.deepEqual(goneBesidesCanary(watchers), [])
  for (const { registration } of people) assert.equal(registration.state, 'registered')
})

test("etcd's leader is killed, another one frozen: writes pause and nothing is lost", { skip }, async (t) => {
  const cluster = await startEtcdCluster(t)
  const { replicas } = await setUp(t, `etcd://${cluster.endpoints.join()}`)
  const { watchers } = await populate(t, replicas)
  const acknowledged: string[] = []
  let stopped = false
  let longestMs = 0
  const writer = async (replica: Replica, name: string) => {
    for (let count = 0; !stopped; count++) {
      const id = `${name}-${count}`
      const startMs = performance.now()
      const { status } = await replica.ask('PUT', `/v1/services/written/nodes/${id}`, { host: '10.0.0.1', port: 1 })
      if (status === 201) acknowledged.push(id)
      else assert.equal(status, 503)
      longestMs = Math.max(longestMs, performance.now() - startMs)
    }
  }
  const writing = Promise.all(replicas.map((replica, index) => writer(replica, `w${index}`)))
  const leader = await cluster.leader()
  await leader.kill()
  const before = acknowledged.length
  const next = await cluster.leader()
  await eventually(
    () => Promise.resolve(acknowledged.length),
    (count) => count > before + 100,
    'writes after the loss of the leader',
  )
  t.diagnostic(`the longest write while the leader was replaced: ${Math.round(longestMs)} ms`)
  await leader.start()
  longestMs = 0
  next.freeze()
  const frozenAt = acknowledged.length
  await eventually(
    () => Promise.resolve(acknowledged.length),
    (count) => count > frozenAt + 100,
    'writes while the next leader is frozen',
  )
  t.diagnostic(`the longest write while a frozen leader was replaced: ${Math.round(longestMs)} ms`)
  next.thaw()
  stopped = true
  await writing
  for (const watcher of watchers) {
    await watcher.until(({ nodes }) => acknowledged.every((id) => nodes.has(id)))
    assert.deepEqual(goneBesidesCanary([watcher]), [])
  }
})

test('the cost of heartbeats to etcd does not grow with the registrants', { skip }, async (t) => {
  const etcd = await startEtcd(t)
  const { replicas } = await setUp(t, ofOne(etcd), 2)
  const leases: { id: string; replica: Replica }[] = []
  const grant = async (count: number) => {
    for (let done = 0; done < count; done += 100)
      await Promise.all(
        Array.from({ length: Math.min(100, count - done) }, async (_, index) => {
          const replica = replicas[index % 2]!
          const { body } = await replica.ask('POST', '/v1/leases', { ttl: '1h', owner: 'registrant' })
          leases.push({ id: body.id as string, replica })
        }),
      )
  }
  const renewAll = async (): Promise<void> => {
    for (let at = 0; at < leases.length; at += 100)
      await Promise.all(
        leases.slice(at, at + 100).map(async ({ id, replica }) => {
          const { status } = await replica.ask('POST', `/v1/leases/${id}/renew`)
          assert.equal(status, 200)
        }),
      )
  }
  const writes = async () => {
    const metrics = await etcd.gateway.metrics()
    return metrics.sum('etcd_mvcc_put_total') + metrics.sum('etcd_mvcc_delete_total')
  }
  await grant(10_000)
  const revision = await etcd.gateway.revision()
  const before = await writes()
  await renewAll()
  await renewAll()
  assert.equal((await writes()) - before, 0)
  assert.equal(await etcd.gateway.revision(), revision)
  const perSecond = async () => {
    const method = { grpc_method: 'LeaseKeepAlive' }
    const started = (await etcd.gateway.metrics()).sum('grpc_server_msg_received_total', method)
    await eventually(
      async () => (await etcd.gateway.metrics()).sum('grpc_server_msg_received_total', method),
      (sum) => sum >= started + 4,
      'keepalives of the replicas',
    )
  }
  // They come from the two replicas alone, one every two seconds each.
  const startMs = performance.now()
  await perSecond()
  t.diagnostic(`4 keepalives in ${Math.round(performance.now() - startMs)} ms, 10,000 registrants on 2 replicas`)
})
