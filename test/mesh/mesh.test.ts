import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { eventually, Mesh } from './mesh.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))

function meshFor(t: TestContext, options: { sidecarArgs?: readonly string[] } = {}): Mesh {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'))
  const mesh = new Mesh({ directory, ...options })
  t.after(async () => {
    await mesh.stop('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  })
  return mesh
}

async function order(host: { ports: { app: number } }, id = '1') {
  const answer = await fetch(`http://127.0.0.1:${host.ports.app}/orders/${id}`)
  const body = (await answer.json()) as { item?: { left: number; view: string }; error?: string }
  return { status: answer.status, ...body }
}

test('two unmodified services call each other while the registry is dead and their sidecars restart', async (t) => {
  const mesh = meshFor(t)
  await mesh.startRegistry()
  const shop = await mesh.addHost('shop')
  const stock = await mesh.addHost('stock')
  await Promise.all([shop.register(), stock.register()])
  await eventually(
    () => order(shop),
    ({ status }) => status === 200,
    'the first order',
  )
  assert.match((await order(shop)).item!.view, /^memory;/)

  await mesh.registry.stop('SIGKILL')
  assert.equal((await order(shop)).status, 200)

  await shop.sidecar.stop('SIGKILL')
  await shop.startSidecar()
  const fromFile = await order(shop)
  assert.equal(fromFile.status, 200)
  assert.match(fromFile.item!.view, /^file; age=\d+$/)

  // The called side too: what it was told by a request it knows again, although nobody can acknowledge it.
  await stock.sidecar.stop('SIGTERM')
  await stock.startSidecar()
  assert.equal((await order(shop)).status, 200)

  await mesh.startRegistry()
  await eventually(
    () => order(shop),
    ({ item }) => item?.view.startsWith('memory;') === true,
    'a confirmed view',
  )
  const nodes = (await (await fetch(`${mesh.registryUrl}/v1/services/stock`)).json()) as { nodes: unknown[] }
  assert.equal(nodes.nodes.length, 1)
})

test('a node that dies is routed around at once, and gone when its lease has run out', async (t) => {
  const mesh = meshFor(t)
  await mesh.startRegistry()
  const [shop, first, second] = await Promise.all([
    mesh.addHost('shop'),
    mesh.addHost('stock', 'stock-1'),
    mesh.addHost('stock', 'stock-2'),
  ])
  await Promise.all([shop.register(), first.register(), second.register()])
  const known = async () => {
    const answer = await fetch(`${mesh.registryUrl}/v1/services/stock`)
    return ((await answer.json()) as { nodes?: unknown[] }).nodes?.length
  }
  await eventually(known, (count) => count === 2, 'both nodes')
  await eventually(
    () => order(shop),
    ({ status }) => status === 200,
    'the first order',
  )
  await Promise.all([first.sidecar.stop('SIGKILL'), first.app.stop('SIGKILL')])
  for (let call = 0; call < 50; call++) assert.deepEqual([call, (await order(shop)).status], [call, 200])
  await eventually(known, (count) => count === 1, 'the end of the lease')
  const history = (await (await fetch(`${mesh.registryUrl}/v1/services/stock/history`)).json()) as object
  assert.match(JSON.stringify(history), /"lease_expired"/)
})

test('a service whose program ends leaves the registry, and returns with it', async (t) => {
  const mesh = meshFor(t)
  await mesh.startRegistry()
  const stock = await mesh.addHost('stock')
  await stock.admin('PUT', '/v1/registrations/stock', {
    port: stock.ports.app,
    healthCheck: { type: 'http', path: '/health', interval: '100ms', timeout: '1s' },
  })
  const count = async () => {
    const answer = await fetch(`${mesh.registryUrl}/v1/services/stock?status=up`)
    return ((await answer.json()) as { nodes?: unknown[] }).nodes?.length
  }
  await eventually(count, (nodes) => nodes === 1, 'the node')
  await stock.app.stop('SIGKILL')
  await eventually(count, (nodes) => nodes === 0, 'its leaving')
  await stock.startApp()
  await eventually(count, (nodes) => nodes === 1, 'its return')
})

test('npm start prints a mesh that answers, and Ctrl-C stops all of it', async () => {
  const script = path.join(ROOT, 'test/mesh/start.ts')
  const child = spawn(process.execPath, ['--import', 'tsx', script, '--free-ports'], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const lines: string[] = []
  for await (const line of createInterface({ input: child.stdout })) {
    lines.push(line)
    if (line.startsWith('Ctrl-C')) break
  }
  const text = lines.join('\n')
  const host = /curl -H 'Host: stock' (\S+)/.exec(text)![1]!
  const registry = /ready: registry (\S+) \(pid (\d+)\)/.exec(text)!
  const orders = /curl (\S+\/orders\/1)/.exec(text)![1]!
  assert.equal((await fetch(orders)).status, 200)
  assert.equal((await fetch(`${registry[1]}/v1/services`)).status, 200)
  assert.match(host, /\/items\/1$/)
  child.kill('SIGINT')
  assert.equal((await once(child, 'exit'))[0], 0)
  await assert.rejects(fetch(`${registry[1]}/v1/services`))
  await assert.rejects(fetch(orders))
})
