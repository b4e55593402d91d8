import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Stats } from '../../sidecar-plugin/src/stats.ts'
import { exposeClient } from '../../sidecar-plugin/src/client-metrics.ts'
import { resolved, world } from '../support/client-world.ts'
import { snapshotOf } from '../support/sample-views.ts'

test('what the client counts is on the page, from one reading', async () => {
  const made = world()
  const client = await made.start()
  await resolved(made, client, 'a', 'b')
  await client.resolve('stock')
  await made.network.stream.event('snapshot', snapshotOf('wiped:3', ['c']), 'wiped:3')
  await made.clock.advance(5_000)
  const register = new Stats().registry
  let readings = 0
  exposeClient(register, () => {
    readings++
    return client.metrics()
  })
  const page = await register.metrics()
  assert.equal(readings, 1)
  for (const line of [
    'holdfast_client_reachable 1',
    'holdfast_client_connections_total 1',
    'holdfast_client_services 1',
    'holdfast_client_nodes 6',
    'holdfast_client_quarantined_services 1',
    'holdfast_client_quarantines_total 1',
    'holdfast_client_quarantines_released_total 0',
    'holdfast_client_views{source="memory"} 1',
    'holdfast_client_oldest_view_seconds{source="memory"} 5',
    'holdfast_client_hits_total{level="memory"} 1',
    'holdfast_client_misses_total{level="memory"} 1',
    'holdfast_client_hits_total{level="registry"} 1',
    'holdfast_client_resumes_total{with="nothing"} 0',
    'holdfast_client_evictions_total{bound="nodes"} 0',
    'holdfast_client_peer_requests_total{outcome="failed"} 0',
    'holdfast_client_file_writable 1',
    'holdfast_client_file_writes_total 2',
    'holdfast_client_file_corrupt_total 0',
  ])
    assert.ok(page.split('\n').includes(line), `${line} is not in\n${page}`)
  await new Promise((resolve) => setImmediate(resolve))
  await made.network.stream.cut()
  const later = await register.metrics()
  assert.match(later, /^holdfast_client_reachable 0$/m)
  assert.match(later, /^holdfast_client_quarantines_total 1$/m)
  await client.close()
})
