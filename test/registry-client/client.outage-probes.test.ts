import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { RegistryClient } from '@holdfast/registry-client'
import { world, worldWithFile, type World } from '../support/client-world.ts'
import { nodeOf, snapshotOf } from '../support/sample-views.ts'

const IDS = ['n0', 'n1', 'n2', 'n3', 'n4']

/** Knows a service whose nodes have a host each. */
async function started(made: World, options: Parameters<World['start']>[0]): Promise<RegistryClient> {
  const client = await made.start(options)
  const { stream } = made.network
  await stream.accept()
  const resolving = client.resolve('stock')
  await made.clock.advance(0)
  const nodes = IDS.map((id) => nodeOf(id, { host: id }))
  await stream.event('snapshot', snapshotOf('e:5', nodes), 'e:5')
  await resolving
  return client
}

function picked(client: RegistryClient): Set<string> {
  return new Set(
    Array.from({ length: 50 }, () => {
      const pick = client.pick('stock')
      pick.done('ignored')
      return pick.node.id
    }),
  )
}

test('a node that dies while the registry is away is left out, and probes end when it is back', async () => {
  const made = world()
  const { network, clock } = made
  network.listens = (address) => address !== 'n2:8080'
  const client = await started(made, { outageProbes: true })
  await network.stream.event('ping', {}, 'e:6')
  await clock.advance(2_000)
  assert.deepEqual(network.probes, [])
  await network.stream.cut()
  await clock.advance(120_000)
  assert.deepEqual([...picked(client)].sort(), ['n0', 'n1', 'n3', 'n4'])
  assert.equal(client.status().outageProbes?.nodes, 5)
  await network.stream.accept()
  const { length } = network.probes
  await network.stream.event('ping', {}, 'e:6')
  await clock.advance(5_000)
  assert.equal(network.probes.length, length)
  assert.equal(client.status().outageProbes?.nodes, 0)
  await client.close()
  assert.equal(clock.pending, 0)
})

test('a process that starts while the registry is dead probes what its files tell, of services that are asked for', async () => {
  const made = await worldWithFile('a', 'b')
  const { network, clock } = made
  network.listens = () => true
  const client = await made.start({ outageProbes: true })
  await clock.advance(60_000)
  assert.deepEqual(network.probes, [])
  await client.resolve('stock')
  await clock.advance(60_000)
  assert.ok(network.probes.length > 3)
  // Nobody asks for it any more.
  await clock.advance(600_000)
  const { length } = network.probes
  await clock.advance(600_000)
  assert.equal(network.probes.length, length)
  await client.close()
  assert.equal(clock.pending, 0)
})

test('nothing is probed unless it is asked for', async () => {
  const made = world()
  const client = await started(made, {})
  await made.network.stream.cut()
  await made.clock.advance(120_000)
  assert.deepEqual(made.network.probes, [])
  assert.equal(client.status().outageProbes, undefined)
  await client.close()
})
