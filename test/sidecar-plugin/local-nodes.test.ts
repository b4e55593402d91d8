import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LocalNodes, type LocalNode } from '../../sidecar-plugin/src/local/local-nodes.ts'
import { ManualClock, settle } from '../support/manual-clock.ts'

const STOCK: LocalNode = { service: 'stock', id: 'n', port: 8080, protocol: 'http' }

function start() {
  const clock = new ManualClock()
  const nodes = new LocalNodes({ namespace: 'default', clock })
  nodes.set(STOCK)
  return { clock, nodes, end: nodes.find('stock', 'default')!.begin() }
}

test('what is under way is counted by service, also when the service moves meanwhile', () => {
  const { nodes, end } = start()
  nodes.set({ ...STOCK, port: 9090 })
  assert.equal(nodes.find('stock', 'default')!.destination.port, 9090)
  assert.deepEqual(nodes.inFlight, { stock: 1 })
  end()
  assert.deepEqual(nodes.inFlight, { stock: 0 })
})

test('who waits for the end of what is under way waits for all of it', async () => {
  const { clock, nodes, end } = start()
  const other = nodes.find('stock', 'default')!.begin()
  let isIdle = false
  const waiting = nodes.idle('stock', 30_000).then(() => (isIdle = true))
  end()
  await settle()
  assert.equal(isIdle, false)
  other()
  await waiting
  assert.equal(clock.pending, 0)
})

test('nobody waits for ever for a request that never ends, nor at all for a service that is not there', async () => {
  const { clock, nodes } = start()
  const waiting = nodes.idle('stock', 30_000)
  await clock.advance(30_000)
  await waiting
  await nodes.idle('other', 30_000)
})
