/** Never empty without proof, from the store to the client: a real registry, real sockets, and causes from its store. */

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { connect, silentLog, type RegistryClient, type Resolved } from '@holdfast/registry-client'
import { createRegistry, settings, type Registry } from '@holdfast/registry-server'
import { MemoryLog } from '../support/memory-log.ts'

interface Store {
  readonly registry: Registry
  readonly put: (id: string) => Promise<string>
  readonly remove: (id: string) => Promise<string>
}

class World {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'holdfast-proof-'))
  readonly log = new MemoryLog()
  readonly #registries: Registry[] = []
  readonly #clients: RegistryClient[] = []
  #port = 0

  constructor(t: TestContext) {
    t.after(async () => {
      for (const client of this.#clients) await client.close()
      for (const registry of this.#registries) await registry.close()
      rmSync(this.directory, { recursive: true, force: true })
    })
  }

  /** A registry on a store of its own; the next on the same port. */
  async registry(store: string): Promise<Store> {
    const config = settings.parse({ port: this.#port, dataDir: path.join(this.directory, store) })
    const registry = await createRegistry({ config, log: silentLog })
    this.#registries.push(registry)
    this.#port = Number(new URL(registry.url).port)
    const write = async (method: string, id: string, body?: object) => {
      const answer = await fetch(`${registry.url}/v1/services/stock/nodes/${id}`, {
        method,
        ...(body && { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
      })
      assert.ok(answer.ok, `${method} ${id}: ${answer.status}`)
      return answer.headers.get('holdfast-cursor')!
    }
    return {
      registry,
      put: (id) => write('PUT', id, { host: '10.0.0.1', port: 8080 }),
      remove: (id) => write('DELETE', id),
    }
  }

  async client(): Promise<RegistryClient> {
    const client = await connect({ endpoints: [`http://127.0.0.1:${this.#port}`], log: this.log })
    this.#clients.push(client)
    return client
  }
}

const idsOf = ({ nodes }: Resolved) => nodes.map(({ id }) => id).sort()

/** The first view for which `test` holds. */
async function seen(client: RegistryClient, test: (view: Resolved) => boolean): Promise<Resolved> {
  for await (const view of client.watch('stock')) if (test(view)) return view
  throw new Error('the watch ended')
}

test('each removal with its cause empties a service; the loss of the store does not, and returning proves', async (t) => {
  const world = new World(t)
  const old = await world.registry('old')
  await old.put('a')
  await old.put('b')
  const client = await world.client()
  assert.deepEqual(idsOf(await client.resolve('stock')), ['a', 'b'])

  await old.registry.close()
  const wiped = await world.registry('wiped')
  await wiped.put('new')
  const kept = await seen(client, ({ view }) => view.nodes.has('new'))
  assert.deepEqual(idsOf(kept), ['a', 'b', 'new'])
  const [quarantined] = client.status().quarantined
  assert.deepEqual(
    [quarantined?.service, quarantined?.reason, quarantined?.kept, quarantined?.nodes],
    ['stock', 'incomplete', 2, ['a', 'b']],
  )
  assert.ok(world.log.of('warn', 'leaves out nodes without a cause').length > 0)

  // One returns; the other did too, and was removed then, with a cause.
  await wiped.put('a')
  await wiped.put('b')
  await wiped.remove('b')
  const released = await seen(client, ({ view }) => !view.nodes.has('b'))
  assert.deepEqual(idsOf(released), ['a', 'new'])
  assert.deepEqual(client.status().quarantined, [])
  assert.equal(world.log.of('info', 'quarantine released').length, 1)

  await wiped.remove('a')
  await wiped.remove('new')
  const empty = await seen(client, ({ nodes }) => nodes.length === 0)
  assert.deepEqual([empty.view.emptied?.id, empty.view.emptied?.cause], ['new', 'operator'])
  assert.deepEqual(client.metrics().quarantines, client.metrics().released)
})

test('a store that never heard of a service says nothing of it, however often it is asked', async (t) => {
  const world = new World(t)
  const old = await world.registry('old')
  await old.put('a')
  const client = await world.client()
  await client.resolve('stock')
  for (const store of ['first', 'second']) {
    const lost = client.metrics().connection.opened
    await old.registry.close()
    const { registry } = await world.registry(store)
    for await (const view of client.watch('stock')) {
      if (client.metrics().connection.opened > lost && client.status().quarantined.length > 0) break
      assert.deepEqual(idsOf(view), ['a'])
    }
    assert.deepEqual(idsOf(await client.resolve('stock')), ['a'])
    assert.equal(client.status().quarantined[0]?.reason, 'unknown')
    await registry.close()
  }
})

test('what one process has written another reads: the cursor of a write is enough', async (t) => {
  const world = new World(t)
  const { put, remove } = await world.registry('store')
  await put('a')
  const client = await world.client()
  await client.resolve('stock')
  for (let i = 0; i < 50; i++) {
    const added = await put('b')
    assert.deepEqual(idsOf(await client.resolve('stock', { minRevision: added })), ['a', 'b'])
    const removed = await remove('b')
    const answer = await client.resolve('stock', { minRevision: removed })
    assert.deepEqual(idsOf(answer), ['a'])
    assert.ok(answer.asOf.revision >= Number(removed.split(':')[1]))
  }
  // Of a service whose last change is long ago, a write to another one: asked for, not waited for until the next ping.
  const other = await fetch(`${client.status().connection.endpoint}/v1/services/other/nodes/x`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ host: '10.0.0.1', port: 1 }),
  })
  const written = other.headers.get('holdfast-cursor')
  const answer = await client.resolve('stock', { minRevision: written!, deadline: '3s' })
  assert.deepEqual(idsOf(answer), ['a'])
  const behind = client.resolve('stock', { minRevision: answer.asOf.revision + 1_000, deadline: 100 })
  await assert.rejects(behind, { code: 'behind' })
})
