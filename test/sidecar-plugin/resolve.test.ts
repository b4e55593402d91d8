import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ResolveError } from '@holdfast/registry-client'
import { SidecarError } from '../../sidecar-plugin/src/errors.ts'
import { resolve } from '../../sidecar-plugin/src/layers/resolve.ts'
import { exchangeFor, FakeClient, replyOf } from './fakes.ts'

test('the first request of a service subscribes to it even when memory knows it; later ones only read memory', async () => {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }])
  client.source = 'file'
  const service = resolve({ resolver: client, limitMs: 1000 })(async () => replyOf())
  for (let i = 0; i < 3; i++) await service(exchangeFor().exchange)
  assert.deepEqual(client.subscribed, ['stock'])
})

test('a view that memory has dropped meanwhile is resolved again', async () => {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }])
  const service = resolve({ resolver: client, limitMs: 1000 })(async () => replyOf())
  await service(exchangeFor().exchange)
  const view = client.table.get('stock')!
  client.table.delete('stock')
  await assert.rejects(service(exchangeFor().exchange), { reason: 'unknown_service' })
  client.table.set('stock', view)
  await service(exchangeFor().exchange)
})

test('the exchange says where its view came from', async () => {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }])
  client.source = 'file'
  const { exchange } = exchangeFor()
  await resolve({ resolver: client, limitMs: 1000 })(async () => replyOf())(exchange)
  assert.equal(exchange.known?.source, 'file')
})

test('a failure is not remembered: the next request asks again', async () => {
  const client = new FakeClient()
  const service = resolve({ resolver: client, limitMs: 1000 })(async () => replyOf())
  await assert.rejects(service(exchangeFor().exchange), { reason: 'unknown_service', status: 503 })
  client.set('stock', [{ id: 'a' }])
  assert.equal((await service(exchangeFor().exchange)).status, 200)
})

test('the wait for a first answer ends with the caller’s timeout, and says what was tried', async () => {
  const deadlines: unknown[] = []
  const resolver = {
    peek: () => undefined,
    resolve: (_service: string, options: { deadline: number }) => {
      deadlines.push(options.deadline)
      return Promise.reject(new ResolveError('unresolved', 'stock', [{ level: 'file', outcome: 'nothing readable' }]))
    },
  }
  const service = resolve({ resolver, limitMs: 15_000 })(async () => replyOf())
  await assert.rejects(
    service(exchangeFor({ control: new Map([['timeout', '250ms']]) }).exchange),
    (error: unknown) => {
      assert(error instanceof SidecarError)
      assert.equal(error.reason, 'unresolved')
      assert.match(error.message, /file: nothing readable/)
      return true
    },
  )
  await assert.rejects(service(exchangeFor().exchange))
  assert.deepEqual(deadlines, [250, 15_000])
})

test('a caller that goes while it waits is not taken for an unresolved service', async () => {
  const { exchange } = exchangeFor()
  const resolver = {
    peek: () => undefined,
    resolve: () => {
      exchange.abort(new SidecarError('caller_gone', 'gone'))
      return Promise.reject(new ResolveError('unresolved', 'stock', []))
    },
  }
  await assert.rejects(resolve({ resolver, limitMs: 1 })(async () => replyOf())(exchange), { reason: 'caller_gone' })
})
