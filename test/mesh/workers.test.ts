/** Sidecars of two workers each, with a registry and without. */

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { add, Load, noCounts } from './load.ts'
import { eventually, Mesh, type Host } from './mesh.ts'

const ROUNDS = 4
const NODES = 3

interface Worker {
  readonly pid: number
  readonly state: string
  readonly restarts: number
  readonly client?: { readonly sources: { readonly file: { readonly services: number } } }
}

async function workersOf(host: Host): Promise<readonly Worker[]> {
  return ((await host.admin('GET', '/v1/stats')) as { workers: readonly Worker[] }).workers
}

function haveRestarted(workers: readonly Worker[], times: number): boolean {
  return (
    workers.every(({ state }) => state === 'listening') &&
    workers.reduce((sum, { restarts }) => sum + restarts, 0) === times
  )
}

/** One call on a connection of its own, so that the workers take turns. */
async function call(port: number, host: string, target: string): Promise<number> {
  const outgoing = request({ port, host: '127.0.0.1', agent: false, path: target, headers: { host } })
  outgoing.end()
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  response.resume()
  await once(response, 'end')
  return response.statusCode!
}

async function statuses(port: number, host: string, target: string): Promise<number[]> {
  return [...new Set(await Promise.all(Array.from({ length: 20 }, () => call(port, host, target))))]
}

test('a mesh whose sidecars have two workers each', { timeout: 280_000 }, async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'))
  const mesh = new Mesh({ directory, sidecarArgs: ['--workers', '2'] })
  t.after(async () => {
    await mesh.stop('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  })
  await mesh.startRegistry()
  const [shop, nodes] = await Promise.all([
    mesh.addHost('shop', 'shop', {}, ['--peer-port', '0']),
    Promise.all(Array.from({ length: NODES }, (_, i) => mesh.addHost('stock', `stock-${i}`))),
  ])
  await Promise.all(nodes.map((node) => node.register()))
  const isUp = async (node: Host) => {
    const answer = await fetch(`${mesh.registryUrl}/v1/services/stock?status=up`)
    const { nodes: known = [] } = (await answer.json()) as { nodes?: { port: number }[] }
    return known.some(({ port }) => port === node.ports.inbound)
  }
  const allUp = () => eventually(async () => (await Promise.all(nodes.map(isUp))).every(Boolean), Boolean, 'all nodes')
  await allUp()

  await t.test('has each change at every worker before it is confirmed', async () => {
    const [node] = nodes
    for (let round = 0; round < 5; round++) {
      await node!.admin('PUT', '/v1/registrations/copy', { port: node!.ports.app })
      assert.deepEqual(await statuses(node!.ports.inbound, 'copy', '/items/1'), [200])
      await node!.admin('DELETE', '/v1/registrations/copy')
      assert.deepEqual(await statuses(node!.ports.inbound, 'copy', '/items/1'), [421])
    }
  })

  await t.test('shows one view of what its workers know, and rehearses the worst of it', async () => {
    assert.deepEqual(await statuses(shop.ports.outbound, 'stock', '/items/1'), [200])
    const { views } = (await shop.admin('GET', '/v1/views')) as { views: { service: string; nodes: object[] }[] }
    assert.deepEqual(
      views.filter(({ service }) => service === 'stock').map((view) => view.nodes.length),
      [NODES],
    )
    const { services } = (await shop.admin('GET', '/v1/rehearsal?service=stock')) as { services: { level: string }[] }
    assert.deepEqual(
      services.map(({ level }) => level),
      ['memory'],
    )
    const explained = (await shop.admin('GET', '/v1/explain?service=stock')) as { candidates: string[] }
    assert.equal(explained.candidates.length, NODES)
    const view = (await shop.admin('GET', '/v1/views/stock')) as { source: string }
    assert.equal(view.source, 'memory')
    const answer = await fetch(`http://127.0.0.1:${shop.sidecar.port('peers')}/v1/views/stock`)
    const { nodes: told } = (await answer.json()) as { nodes: object[] }
    assert.equal(told.length, NODES)
  })

  await t.test('loses no call while its sidecars restart', async (t) => {
    const load = new Load(
      () => `http://127.0.0.1:${shop.ports.app}/orders/1`,
      () => undefined,
    )
    t.after(() => load.close())
    await eventually(
      () => fetch(`http://127.0.0.1:${shop.ports.app}/orders/1`),
      (answer) => answer.ok,
      'the first order',
    )
    load.run(4)
    let counts = noCounts()
    for (let round = 0; round < ROUNDS; round++) {
      const node = nodes[round % NODES]!
      assert.equal(await node.sidecar.stop(), 0)
      await node.startSidecar()
      await allUp()
      counts = add(counts, load.take())
    }
    await load.pause()
    counts = add(counts, load.take())
    assert.deepEqual(counts.failures, [])
    t.diagnostic(`${counts.sent} calls, longest ${Math.round(counts.longestMs)} ms`)
  })

  await t.test('goes on at another node when a worker is killed with calls on it', async (t) => {
    const load = new Load(
      () => `http://127.0.0.1:${shop.ports.app}/orders/1`,
      () => undefined,
    )
    t.after(() => load.close())
    await load.post(false)
    load.run(4)
    for (let round = 0; round < ROUNDS; round++) {
      const node = nodes[round % NODES]!
      const workers = await workersOf(node)
      const before = workers.reduce((sum, { restarts }) => sum + restarts, 0)
      process.kill(workers[round % 2]!.pid, 'SIGKILL')
      await eventually(
        () => workersOf(node),
        (now) => haveRestarted(now, before + 1),
        'the worker is back',
      )
    }
    await load.pause()
    const counts = load.take()
    assert.deepEqual(counts.failures, [])
    t.diagnostic(`${counts.sent} calls, longest ${Math.round(counts.longestMs)} ms`)
  })

  await t.test('resolves from file at a worker that comes while the registry is down', async () => {
    await mesh.registry.stop('SIGKILL')
    const before = await workersOf(shop)
    process.kill(before[0]!.pid, 'SIGKILL')
    await eventually(
      () => workersOf(shop),
      (now) => haveRestarted(now, 1),
      'the worker is back',
    )
    assert.deepEqual(await statuses(shop.ports.outbound, 'stock', '/items/1'), [200])
    const after = await workersOf(shop)
    assert.equal(after[0]!.client!.sources.file.services, 1)
    assert.notEqual(after[0]!.pid, before[0]!.pid)
    assert.equal(after[1]!.pid, before[1]!.pid)
  })
})
