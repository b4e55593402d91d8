/** The program on etcd: what it does, and what its operator sees, when etcd is not there, or not as it should be. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import http from 'node:http'
import { connect } from 'node:net'
import { after, describe, test, type TestContext } from 'node:test'
import { createRegistry } from '../../../registry-server/src/server.ts'
import type { Store } from '../../../registry-server/src/store/store.ts'
import { startEtcd, withoutEtcd, type Member } from '../../support/etcd.ts'
import { configOf, silent, someNode, temporaryDirectory, type Answer, type TestRegistry } from '../support.ts'
import { eventually, lastWords, Program } from './program.ts'
import { freshPrefix, openStore } from './support.ts'

const skip = await withoutEtcd()
/** Nobody listens there. */
const NOWHERE = 'etcd://127.0.0.1:1,127.0.0.1:2'

/** For tests that leave etcd as it is; each has a prefix of its own. */
const member = (skip ? undefined : await startEtcd({ after })) as Member

type Call = TestRegistry['call']

describe('without etcd', { concurrency: 2, skip }, () => {
  test('it listens, says every few seconds for whom it waits and why, and is ready when etcd is', async (context) => {
    const member = await startEtcd(context)
    await member.kill()
    const program = new Program(context, ['--store', `etcd://${member.endpoint}`])
    const call = await program.listening()
    const first = await program.logged(({ msg }) => msg === 'waiting for etcd')
    assert.deepEqual(first.reasons, { [member.endpoint]: 'connection refused' })
    assert.equal((await call('GET', '/healthz')).status, 200)
    assert.equal((await call('GET', '/metrics')).status, 200)
    for (const [method, target] of [
      ['GET', '/readyz'],
      ['GET', '/v1/status'],
      ['GET', '/v1/services/stock'],
      ['GET', '/v1/watch?service=stock'],
      ['POST', '/v1/leases'],
    ] as const) {
      const { status, body, headers } = await call(method, target)
      assert.deepEqual([status, body.code], [503, 'not_ready'], target)
      assert.match(headers.get('retry-after')!, /^\d+$/)
    }
    const second = await program.logged(({ msg, time }) => msg === first.msg && time > first.time)
    assert.ok(second.time - first.time <= 5_500, String(second.time - first.time))
    await member.start()
    await program.ready()
    assert.equal((await call('GET', '/readyz')).status, 200)
    assert.equal((await call('PUT', '/v1/services/stock/nodes/a', someNode)).status, 201)
    const { code, stderr } = await program.stop()
    assert.equal(code, 0)
    assert.doesNotMatch(stderr, /\n\s+at |cut off/)
  })

  test('--store-timeout ends it with one sentence', async (context) => {
    const { code, ...said } = await new Program(context, ['--store', NOWHERE, '--store-timeout', '1s']).ended
    assert.equal(code, 1)
    assert.match(
      lastWords({ code, ...said }),
      /^etcd:\/\/127\.0\.0\.1:1,127\.0\.0\.1:2\/holdfast\/ could not be used within 1s, as --store-timeout says: 127\.0\.0\.1:\d: connection refused$/,
    )
  })

  test('a signal ends the waiting at once, whoever is connected', async (context) => {
    const program = new Program(context, ['--store', NOWHERE])
    const { url } = await program.logged((line) => line.url !== undefined)
    const socket = connect(Number(new URL(url!).port), '127.0.0.1')
    socket.on('error', () => {})
    socket.write('PUT /v1/services/stock/nodes/a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n')
    const waits = await program.logged(({ msg }) => msg === 'waiting for etcd')
    assert.deepEqual(Object.values(waits.reasons!), ['connection refused'])
    const startMs = performance.now()
    const { code, stdout, stderr } = await program.stop()
    assert.ok(performance.now() - startMs < 2_000)
    assert.deepEqual([code, stdout], [0, ''])
    assert.match(stderr, /"msg":"stopping"\}\n$/)
    socket.destroy()
  })

  test('the same of any store that is being loaded, which is closed should it open after all', async (context) => {
    let open: (store: Store) => void = () => {}
    const opening = new Promise<Store>((resolve) => (open = resolve))
    const stop = new AbortController()
    let url = ''
    const made = createRegistry({
      config: configOf(await temporaryDirectory(context)),
      log: silent,
      signal: stop.signal,
      openStore() {
        setImmediate(() => stop.abort())
        return opening
      },
      onListening: (at) => (url = at),
    })
    await assert.rejects(made, { name: 'AbortError' })
    await assert.rejects(fetch(url))
    await new Promise<void>((resolve) => open({ close: async () => resolve() } as Store))
  })
})

describe('what is in etcd already', { concurrency: 2, skip }, () => {
  test('keys of another program, and a store of another version, are left as they are', async (context) => {
    for (const [key, value, words] of [
      ['config', 'x', /^etcd:\/\/[^/]+\/holdfast-\d+\/ holds "config" but no store of Holdfast: it belongs to another/],
      ['meta', 'x', /^etcd:\/\/[^/]+\/holdfast-\d+\/meta cannot be used: it is not one of Holdfast$/],
      [
        'meta',
        '{"program":"holdfast-registry","format":99,"epoch":"a","revision":7}',
        /^etcd:\/\/[^/]+\/holdfast-\d+\/meta cannot be used: it has format 99, and this version reads \d+$/,
      ],
    ] as const) {
      const prefix = freshPrefix()
      await member.gateway.put(prefix + key, value)
      const before = await member.gateway.entries(prefix)
      const program = new Program(context, ['--store', `etcd://${member.endpoint}`, '--etcd-prefix', prefix])
      const ended = await program.ended
      assert.equal(ended.code, 1)
      assert.match(lastWords(ended), words)
      assert.deepEqual(await member.gateway.entries(prefix), before)
    }
  })

  test('registries with other prefixes, one within another too', async (context) => {
    const outer = freshPrefix()
    const stores: Store[] = []
    context.after(() => Promise.all(stores.map((store) => store.close())))
    for (const prefix of [outer, `${outer}b/`, freshPrefix()])
      stores.push(await openStore({ endpoints: [member.endpoint], prefix }))
    assert.equal(new Set(stores.map(({ epoch }) => epoch)).size, 3)
    for (const [index, store] of stores.entries())
      await store.transact((tx) => tx.putLease({ id: `lease-${index}`, ttlMs: 1_000, owner: 'me' }))
    for (const [index, store] of stores.entries()) {
      await store.sync()
      const found = await store.read((state) => [state.leaseCount(), state.lease(`lease-${index}`)?.owner])
      assert.deepEqual(found, [1, 'me'])
      assert.equal(store.replicas.list().length, 1)
      assert.deepEqual(store.status().setAside, [])
    }
    // The outer one again, now that there is another within.
    const again = await openStore({ endpoints: [member.endpoint], prefix: outer })
    stores.push(again)
    assert.deepEqual([again.epoch, again.status().setAside], [stores[0]!.epoch, []])
  })

  test('replicas that find nothing and start together make one store', async (context) => {
    const prefix = freshPrefix()
    const open = () => openStore({ endpoints: [member.endpoint], prefix })
    const stores = await Promise.all([open(), open(), open(), open(), open()])
    context.after(() => Promise.all(stores.map((store) => store.close())))
    assert.equal(new Set(stores.map(({ epoch }) => epoch)).size, 1)
  })

  test('records that cannot be read are left out, named once, and healed by whoever registers again', async (context) => {
    const prefix = freshPrefix()
    const args = ['--store', `etcd://${member.endpoint}`, '--etcd-prefix', prefix]
    const first = new Program(context, args)
    const writing = await first.ready()
    for (const id of ['a', 'b']) await writing('PUT', `/v1/services/stock/nodes/${id}`, someNode)
    assert.equal((await first.stop()).code, 0)
    const node = (await member.gateway.keys(`${prefix}state/`)).find((key) => key.endsWith('/a'))!
    await member.gateway.put(node, '{"half":')
    await member.gateway.put(`${prefix}state/colour/red`, '{}')
    const program = new Program(context, args)
    const call = await program.ready()
    const asideOf = async () => statusOf(await call('GET', '/v1/status')).setAside
    const named = [node, `${prefix}state/colour/red`].map((key) => key.slice(prefix.length)).sort()
    const aside = await asideOf()
    assert.equal(aside.count, 2)
    assert.deepEqual(aside.first.map(({ key }) => key).sort(), named)
    assert.match((await call('GET', '/metrics')).text, /^holdfast_store_set_aside 2$/m)
    const nodes = async () => (await call('GET', '/v1/services/stock')).body.nodes.map(({ id }) => id).sort()
    assert.deepEqual(await nodes(), ['b'])
    assert.equal((await call('PUT', '/v1/services/stock/nodes/a', someNode)).status, 201)
    assert.deepEqual(await nodes(), ['a', 'b'])
    assert.deepEqual(
      (await asideOf()).first.map(({ key }) => key),
      ['state/colour/red'],
    )
    await program.stop()
    const said = program.log.filter(({ msg }) => msg.includes('set aside')).map(({ key }) => key)
    assert.deepEqual(said.sort(), named)
  })
})

describe('etcd is lost while it runs', { concurrency: 2, skip }, () => {
  test('it answers from what it knows and says how old that is, refuses what it cannot keep, and recovers', async (context) => {
    const member = await startEtcd(context)
    const program = new Program(context, ['--store', `etcd://${member.endpoint}`])
    const call = await program.ready()
    const lease = (await call('POST', '/v1/leases', { ttl: '6s', owner: 'me' })).body.id
    assert.equal((await call('PUT', '/v1/services/stock/nodes/a', { ...someNode, lease })).status, 201)
    const stream = await openStream(context, program)
    assert.match(await stream.next('snapshot'), /"id":"a"/)
    assert.equal((await call('GET', '/v1/services/stock')).headers.get('holdfast-age'), '0')

    await member.kill()
    const [first, ms] = await timed(call('PUT', '/v1/services/stock/nodes/b', someNode))
    assertUnavailable(first)
    const [second, soon] = await timed(call('PUT', '/v1/services/stock/nodes/b', someNode))
    assertUnavailable(second)
    context.diagnostic(`refused after ${Math.round(ms)} ms, then after ${Math.round(soon)} ms`)
    assertUnavailable(await call('GET', '/readyz'))
    const ages: number[] = []
    // Until others may have taken its leases over; the lease's own time would have run out by then.
    await eventually(async () => {
      const view = await call('GET', '/v1/services/stock')
      assert.deepEqual([view.status, view.body.nodes.map(({ id }) => id)], [200, ['a']])
      ages.push(Number(view.headers.get('holdfast-age')))
      return (await call('POST', `/v1/leases/${lease}/renew`)).status === 503
    })
    assertUnavailable(await call('POST', `/v1/leases/${lease}/renew`))
    assert.ok(ages[0]! >= 2 && ages.at(-1)! > ages[0]!, ages.join())
    const store = statusOf(await call('GET', '/v1/status'))
    assert.equal(store.lost, `${member.endpoint}: connection refused`)
    assert.ok(store.ageSeconds >= ages.at(-1)!)
    const metrics = (await call('GET', '/metrics')).text
    assert.match(metrics, /^holdfast_store_lost 1$/m)
    assert.ok(Number(/^holdfast_store_age_seconds (.+)$/m.exec(metrics)![1]) >= ages.at(-1)!)
    assert.equal((await call('GET', '/healthz')).status, 200)

    await member.start()
    await eventually(async () => (await call('GET', '/readyz')).status === 200)
    assert.equal((await call('PUT', '/v1/services/stock/nodes/b', someNode)).status, 201)
    assert.match(await stream.next('change'), /"id":"b"/)
    assert.equal((await call('POST', `/v1/leases/${lease}/renew`)).status, 200)
    const view = await call('GET', '/v1/services/stock')
    assert.deepEqual(
      view.body.nodes.map(({ id }) => id),
      ['a', 'b'],
    )
    assert.equal(view.headers.get('holdfast-age'), '0')
    const healed = (await call('GET', '/metrics')).text
    for (const line of ['holdfast_store_lost 0', 'holdfast_store_age_seconds 0', 'holdfast_leases_expired_total 0'])
      assert.ok(healed.includes(`${line}\n`), line)
    assert.equal((await program.stop()).code, 0)
  })

  test('replicas are listed, and one that stops is gone from the list at once', async (context) => {
    const member = await startEtcd(context)
    const programs = [1, 2].map(() => new Program(context, ['--store', `etcd://${member.endpoint}`]))
    const [one, two] = (await Promise.all(programs.map((program) => program.ready()))) as [Call, Call]
    const replicas = async (call: Call) => statusOf(await call('GET', '/v1/status')).replicas
    await eventually(async () => (await replicas(one)).length === 2)
    await eventually(async () => (await replicas(two)).length === 2)
    const { replica } = statusOf(await one('GET', '/v1/status'))
    for (const { name, since } of await replicas(two)) {
      assert.match(name, / http:\/\/127\.0\.0\.1:\d+$/)
      assert.ok(Math.abs(Date.parse(since) - Date.now()) < 60_000)
    }
    assert.match((await one('GET', '/metrics')).text, /^holdfast_store_replicas 2$/m)
    assert.equal((await programs[1]!.stop()).code, 0)
    const [, ms] = await timed(eventually(async () => (await replicas(one)).length === 1))
    context.diagnostic(`gone from the others' list after ${Math.round(ms)} ms`)
    assert.equal((await replicas(one))[0]!.id, replica)

    await openStream(context, programs[0]!)
    await member.kill()
    await programs[0]!.logged(({ msg }) => msg === 'etcd lost; trying again')
    const [ended, stopMs] = await timed(programs[0]!.stop())
    assert.equal(ended.code, 0)
    context.diagnostic(`stopped without etcd after ${Math.round(stopMs)} ms`)
  })

  test('it ends in time while etcd hangs, and takes its name away while etcd answers', async (context) => {
    const member = await startEtcd(context)
    const start = () => new Program(context, ['--store', `etcd://${member.endpoint}`])
    const first = start()
    await first.ready()
    assert.equal((await member.gateway.keys('/holdfast/feed/replica/')).length, 1)
    assert.equal((await first.stop()).code, 0)
    assert.deepEqual(await member.gateway.keys('/holdfast/feed/replica/'), [])
    const second = start()
    const call = await second.ready()
    await openStream(context, second)
    member.freeze()
    // One is under way, and one waits for it.
    const writes = ['a', 'b'].map((id) => call('PUT', `/v1/services/stock/nodes/${id}`, someNode))
    await eventually(async () => statusOf(await call('GET', '/v1/status')).pending > 0)
    const [ended, ms] = await timed(second.stop())
    assert.equal(ended.code, 0)
    context.diagnostic(`stopped while etcd hung after ${Math.round(ms)} ms`)
    for (const write of writes) assertUnavailable(await write)
  })
})

interface StoreDocument {
  readonly pending: number
  readonly lost: string | null
  readonly ageSeconds: number
  readonly setAside: { readonly count: number; readonly first: readonly { readonly key: string }[] }
  readonly replica: string
  readonly replicas: readonly { readonly id: string; readonly name: string; readonly since: string }[]
}

function statusOf({ status, body }: Answer): StoreDocument {
  assert.equal(status, 200)
  return body.store as unknown as StoreDocument
}

function assertUnavailable({ status, body, headers }: Answer): void {
  assert.deepEqual([status, body.code], [503, 'store_unavailable'])
  assert.match(headers.get('retry-after')!, /^\d+$/)
}

async function timed<T>(promise: Promise<T>): Promise<[T, number]> {
  const startMs = performance.now()
  return [await promise, performance.now() - startMs]
}

/** A watch stream, which has to stay open, and the data of its next event of a kind. */
async function openStream(context: TestContext, program: Program) {
  const { url } = await program.logged((line) => line.url !== undefined)
  const request = http.get(`${url}/v1/watch?service=stock`)
  context.after(() => void request.destroy())
  const [response] = (await once(request, 'response')) as [http.IncomingMessage]
  assert.equal(response.statusCode, 200)
  response.setEncoding('utf8')
  let text = ''
  let hasEnded = false
  response.on('data', (chunk: string) => (text += chunk))
  response.on('close', () => (hasEnded = true))
  // A stop ends it.
  request.on('error', () => {})
  response.on('error', () => {})
  return {
    async next(event: string): Promise<string> {
      const found = () => new RegExp(`event: ${event}\n(?:.+\n)*?data: (.+)\n`).exec(text)?.[1]
      while (found() === undefined && !hasEnded) await once(response, 'data')
      assert.ok(!hasEnded)
      return found()!
    },
  }
}
