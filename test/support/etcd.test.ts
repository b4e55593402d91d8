/** The etcd of the tests does what they rely on. */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { startEtcd, withoutEtcd } from './etcd.ts'

const skip = await withoutEtcd()

test('a put is read back after a kill and a start on the same data', { skip }, async (context) => {
  const etcd = await startEtcd(context)
  await etcd.gateway.put('/a/1', 'one')
  await etcd.gateway.put('/a/2', 'zwei \u{1F331}')
  await etcd.gateway.put('/b', 'three')
  const { pid, endpoint } = etcd
  await etcd.kill()
  assert.equal(etcd.isRunning, false)
  assert.equal(await etcd.gateway.isHealthy(), false)
  await etcd.start()
  assert.equal(etcd.endpoint, endpoint)
  assert.notEqual(etcd.pid, pid)
  assert.equal(await etcd.gateway.get('/a/2'), 'zwei \u{1F331}')
  assert.deepEqual(await etcd.gateway.keys('/a/'), ['/a/1', '/a/2'])
  assert.deepEqual(await etcd.gateway.keys(), ['/a/1', '/a/2', '/b'])
})
