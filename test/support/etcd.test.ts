/** The etcd of the tests does what they rely on. */

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import https from 'node:https'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'
import {
  makeCertificates,
  Metrics,
  startEtcd,
  startEtcdCluster,
  withoutEtcd,
  withoutEtcdAndOpenssl,
  type Cleanup,
} from './etcd.ts'

const HERE = fileURLToPath(new URL('./', import.meta.url))
const skip = await withoutEtcd()
const skipTls = await withoutEtcdAndOpenssl()
/** So that an election takes no second. */
const timing = { heartbeatMs: 20, electionMs: 200 }

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** A context that the test ends itself, or that its own end does. */
function innerContext(context: TestContext): Cleanup & { end: () => Promise<void> } {
  const hooks: (() => unknown)[] = []
  const end = async () => {
    for (const hook of hooks.splice(0)) await hook()
  }
  context.after(end)
  return { after: (hook) => void hooks.push(hook), end }
}

test('a put is read back after a kill and a start on the same data', { skip }, async (context) => {
  const etcd = await startEtcd(context)
  const { gateway } = etcd
  await gateway.put('/a/1', 'one')
  await gateway.put('/a/2', 'zwei \u{1F331}')
  await gateway.put('/b', 'three')
  const { pid, endpoint } = etcd
  const revision = await gateway.revision()
  await etcd.kill()
  assert.equal(etcd.isRunning, false)
  assert.equal(isAlive(pid), false)
  assert.equal(await gateway.isHealthy(), false)
  await etcd.start()
  assert.equal(etcd.endpoint, endpoint)
  assert.notEqual(etcd.pid, pid)
  assert.equal(await gateway.revision(), revision)
  assert.equal(await gateway.get('/a/2'), 'zwei \u{1F331}')
  assert.deepEqual(await gateway.keys('/a/'), ['/a/1', '/a/2'])
  assert.deepEqual(await gateway.keys(), ['/a/1', '/a/2', '/b'])
})

test('a member is looked into and changed beside the product', { skip }, async (context) => {
  const { gateway } = await startEtcd(context, { timing, flags: ['--max-txn-ops=2'] })
  const lease = await gateway.grantLease(60)
  await gateway.put('/a/1', 'one', lease)
  await gateway.put('/a/1', 'two', lease)
  await gateway.put('/b', '')
  assert.deepEqual(await gateway.entries(), [
    { key: '/a/1', value: 'two', createRevision: 2, modRevision: 3, version: 2, lease },
    { key: '/b', value: '', createRevision: 4, modRevision: 4, version: 1, lease: '0' },
  ])
  assert.deepEqual(await gateway.leases(), [lease])
  await gateway.revokeLease(lease)
  assert.deepEqual(await gateway.leases(), [])
  assert.equal(await gateway.get('/a/1'), undefined)
  assert.equal(await gateway.get('/b'), '')
  assert.equal(await gateway.delete('/b'), true)
  assert.equal(await gateway.delete('/b'), false)
  for (const key of ['/c/1', '/c/2', '/c']) await gateway.put(key, 'x')
  assert.equal(await gateway.deletePrefix('/c/'), 2)
  const revision = await gateway.revision()
  await gateway.compact(revision)
  const past = gateway.call('/v3/kv/range', { key: 'L2M=', revision: revision - 1 })
  await assert.rejects(past, /required revision has been compacted/)
  const put = { requestPut: { key: 'YQ==', value: 'YQ==' } }
  await assert.rejects(gateway.call('/v3/kv/txn', { success: [put, put, put] }), /too many operations/)
  const metrics = await gateway.metrics()
  const labels = { grpc_method: 'Put', grpc_service: 'etcdserverpb.KV' }
  assert.equal(metrics.sum('grpc_server_msg_received_total', labels), 6)
  assert.equal(metrics.sum('grpc_server_handled_total', { ...labels, grpc_code: 'OK' }), 6)
  assert.equal(metrics.sum('no_such_counter'), 0)
})

test('samples are told apart by their labels, and added up', () => {
  const metrics = new Metrics('# TYPE a counter\na{x="1",y="\\"\\\\\\n{}"} 2\na{x="2"} 3.5e+1\nb 4\nab{x="1"} 100\n')
  assert.equal(metrics.sum('a'), 37)
  assert.equal(metrics.sum('a', { x: '1' }), 2)
  assert.equal(metrics.sum('a', { y: '"\\\n{}' }), 2)
  assert.equal(metrics.sum('a', { x: '1', y: '' }), 0)
  assert.equal(metrics.sum('b'), 4)
})

test('a full database does not keep a member from being started again', { skip }, async (context) => {
  const etcd = await startEtcd(context, { timing, flags: ['--quota-backend-bytes=100000'] })
  const fill = async () => {
    for (;;) await etcd.gateway.put('a', 'x'.repeat(50_000))
  }
  await assert.rejects(fill(), /database space exceeded/)
  await etcd.stop()
  await etcd.start()
  await assert.rejects(etcd.gateway.put('a', 'b'), /database space exceeded/)
})

test('with auth, etcd refuses strangers and the gateway is let in, also after a restart', { skip }, async (context) => {
  const etcd = await startEtcd(context, { timing })
  const { gateway } = etcd
  await gateway.enableAuth('keeper', 'its secret')
  await gateway.put('a', 'b')
  const stranger = await fetch(`http://${etcd.endpoint}/v3/kv/range`, { method: 'POST', body: '{"key":"YQ=="}' })
  assert.match(await stranger.text(), /user name is empty/)
  // The token of before is of an older revision of the users.
  await gateway.addUser('guest', 'its own', '/guest/')
  assert.equal(await gateway.get('a'), 'b')
  await etcd.kill()
  await etcd.start()
  assert.equal(await gateway.get('a'), 'b')
  await gateway.disableAuth()
  assert.equal(await gateway.get('a'), 'b')
})

test('over TLS only a client with a certificate is served, where asked', { skip: skipTls }, async (context) => {
  const certificates = await makeCertificates(context)
  const etcd = await startEtcd(context, { timing, certificates, clientCertAuth: true })
  await etcd.gateway.put('a', 'b')
  await etcd.gateway.enableAuth()
  assert.equal(await etcd.gateway.get('a'), 'b')
  assert.equal((await etcd.gateway.metrics()).sum('etcd_server_has_leader'), 1)
  const ca = readFileSync(certificates.caFile)
  const ask = (port: number) => once(https.get({ host: '127.0.0.1', port, path: '/health', ca }), 'response')
  await assert.rejects(ask(etcd.clientPort), /certificate/)
  const open = await startEtcd(context, { timing, certificates })
  const [response] = (await ask(open.clientPort)) as [IncomingMessage]
  assert.equal(response.resume().statusCode, 200)
})

test(
  'three members elect another leader when theirs is killed, frozen, or asked to stop',
  { skip },
  async (context) => {
    const cluster = await startEtcdCluster(context, 3, { timing })
    const first = await cluster.leader()
    await first.gateway.put('a', '1')
    await first.kill()
    const second = await cluster.leader()
    assert.notEqual(second, first)
    await second.gateway.put('a', '2')
    await first.start()
    second.freeze()
    assert.equal(second.isRunning, true)
    const third = await cluster.leader()
    assert.notEqual(third, second)
    await third.gateway.put('a', '3')
    assert.ok(!(await cluster.followers()).includes(second))
    second.thaw()
    await second.untilHealthy()
    assert.equal(await second.gateway.get('a'), '3')
    await third.stop()
    assert.notEqual(await cluster.leader(), third)
    await third.start()
    assert.equal((await cluster.followers()).length, 2)
  },
)

test('a lone member is not healthy, and all are after all were killed', { skip }, async (context) => {
  const cluster = await startEtcdCluster(context, 3, { timing })
  const [lone] = cluster.members
  await lone!.gateway.put('a', 'b')
  await cluster.killAll()
  await lone!.start({ wait: false })
  assert.equal(await lone!.gateway.isHealthy(), false)
  await cluster.startAll()
  await lone!.untilHealthy()
  for (const member of cluster.members) assert.equal(await member.gateway.get('a'), 'b')
})

test('nothing is left of a cluster, whatever state its members are in', { skip }, async (context) => {
  const inner = innerContext(context)
  const cluster = await startEtcdCluster(inner, 3, { timing })
  const pids = cluster.members.map((member) => member.pid)
  const directories = cluster.members.map((member) => member.dataDir)
  assert.ok(directories.every(existsSync))
  cluster.members[0]!.freeze()
  await cluster.members[1]!.kill()
  await inner.end()
  assert.deepEqual(pids.filter(isAlive), [])
  assert.deepEqual(directories.filter(existsSync), [])
})

test('a member that does not come up says why', { skip }, async (context) => {
  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  context.after(() => taken.close())
  const url = `http://127.0.0.1:${(taken.address() as AddressInfo).port}`
  const failed = startEtcd(context, { flags: [`--listen-client-urls=${url}`] })
  await assert.rejects(failed, /ended before it was healthy[^]*address already in use/)
})

// Elsewhere there is nothing to end a process with its parent.
const skipElsewhere = skip || (process.platform !== 'linux' && 'needs Linux')

test('etcd ends with a test process that is killed', { skip: skipElsewhere }, async (context) => {
  const script = `
    import { startEtcd } from ${JSON.stringify(new URL('./etcd.ts', import.meta.url).href)}
    const { clientPort, dataDir } = await startEtcd({ after() {} }, ${JSON.stringify({ timing })})
    console.log(JSON.stringify({ clientPort, dataDir }))
    setInterval(() => {}, 60_000)`
  const args = ['--import', 'tsx', '--input-type=module', '--eval', script]
  const owner = spawn(process.execPath, args, { cwd: HERE, stdio: ['ignore', 'pipe', 'inherit'] })
  context.after(() => owner.kill('SIGKILL'))
  const [line] = (await once(owner.stdout, 'data')) as [Buffer]
  const { clientPort, dataDir } = JSON.parse(String(line)) as { clientPort: number; dataDir: string }
  context.after(() => rm(path.dirname(path.dirname(dataDir)), { recursive: true, force: true }))
  const connection = connect(clientPort, '127.0.0.1')
  await once(connection, 'connect')
  owner.kill('SIGKILL')
  await endOf(connection)
  // Its connections may be gone a moment before its port is.
  let next = connect(clientPort, '127.0.0.1')
  while ((await endOf(next)) !== 'ECONNREFUSED') next = connect(clientPort, '127.0.0.1')
})

/** The code of the error that ends a connection, if it is one. */
function endOf(connection: Socket): Promise<string | undefined> {
  return new Promise((resolve) => {
    connection.resume().once('error', (error: NodeJS.ErrnoException) => resolve(error.code))
    connection.once('close', () => resolve(undefined))
  })
}
