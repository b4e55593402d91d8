import assert from 'node:assert/strict'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { test } from 'node:test'
import type { ConnectionMessage, FileMessage, ResolveMessage, ViewMessage } from '@holdfast/registry-client'
import { failure, resolved, world, worldWithFile } from '../support/client-world.ts'
import { changeOf, idsOf, snapshotOf } from '../support/sample-views.ts'

/** What is said on a channel until `stop`. */
function heard<T>(name: string) {
  const messages: T[] = []
  const listen = (message: unknown) => void messages.push(message as T)
  subscribe(name, listen)
  return { messages, stop: () => unsubscribe(name, listen) }
}

test('each call of resolve is told with its answer or its error, and how long it took', async () => {
  const channel = heard<ResolveMessage>('holdfast:resolve')
  const made = world()
  const client = await made.start()
  const answer = await resolved(made, client, 'a')
  await made.network.stream.cut()
  const failing = failure(client.resolve('other', { namespace: 'blue', deadline: 250 }))
  await made.clock.advance(250)
  await failing
  channel.stop()
  await client.resolve('stock')
  assert.deepEqual(
    channel.messages.map(({ namespace, service, durationMs, code }) => [namespace, service, durationMs, code]),
    [
      ['default', 'stock', 0, undefined],
      ['blue', 'other', 250, 'unresolved'],
    ],
  )
  assert.equal(channel.messages[0]?.resolved, answer)
  await client.close()
})

test('each view that is offered to memory is told with what became of it', async () => {
  const made = await worldWithFile('a')
  const channel = heard<ViewMessage>('holdfast:view')
  const client = await made.start()
  await made.network.stream.accept()
  await client.resolve('stock')
  await made.network.stream.event('change', changeOf('e:5', 'e:6', ['b']), 'e:6')
  await made.network.stream.event('snapshot', snapshotOf('e:4', ['old']), 'e:6')
  await made.network.stream.event('snapshot', snapshotOf('e:7'), 'e:7')
  channel.stop()
  assert.deepEqual(
    channel.messages.map(({ origin, verdict, offered, served }) => [origin, verdict, idsOf(offered), idsOf(served)]),
    [
      ['file', 'accepted', ['a'], ['a']],
      ['registry', 'accepted', ['a', 'b'], ['a', 'b']],
      ['registry', 'older', ['old'], ['a', 'b']],
      ['registry', 'unproven', [], ['a', 'b']],
    ],
  )
  await client.close()
})

test('the connection is told when it opens and when it is lost, and why', async () => {
  const channel = heard<ConnectionMessage>('holdfast:connection')
  const made = world()
  const client = await made.start()
  await made.network.stream.accept()
  await made.network.stream.cut('connection reset')
  channel.stop()
  const endpoint = 'http://registry:7400'
  assert.deepEqual(channel.messages, [
    { reachable: true, endpoint, reason: undefined },
    { reachable: false, endpoint, reason: 'connection reset' },
  ])
  await client.close()
})

test('each reading of a file is told with what was in it', async () => {
  const made = await worldWithFile('a')
  await made.clock.advance(5_000)
  const channel = heard<FileMessage>('holdfast:file')
  const client = await made.start()
  await client.resolve('stock')
  const failing = failure(client.resolve('never', { deadline: 1 }))
  await made.clock.advance(1)
  await failing
  channel.stop()
  assert.deepEqual(
    channel.messages.map(({ service, view, ageMs, overridden }) => [service, view && idsOf(view), ageMs, overridden]),
    [
      ['stock', ['a'], 5_000, false],
      ['never', undefined, undefined, false],
    ],
  )
  await client.close()
})
