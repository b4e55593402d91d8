import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { NodeReport, Resolved } from '@holdfast/registry-client'
import { decodeView } from '@holdfast/registry-client/protocol'
import { loadConfig } from '../../sidecar-plugin/src/config.ts'
import { explain, shownConfig, shownKnown, shownView } from '../../sidecar-plugin/src/inspection.ts'
import { FakeClient, viewOf } from './fakes.ts'

function explained(known: Resolved, calls: readonly NodeReport[]) {
  return explain({
    service: 'stock',
    namespace: 'default',
    method: 'GET',
    path: '/items',
    headers: { 'x-user': 'me' },
    known,
    calls,
    timeoutMs: 15_000,
    retries: 2,
    strategy: 'round_robin',
  }) as {
    candidates: string[]
    nodes: { id: string; candidate: boolean; why: string; share: number }[]
    path: string
    headers: object
    strategy: string
  }
}
const failing = (id: string): NodeReport => ({ id, pending: 0, failures: 3, ejectedForMs: 1_999.5 })

test('an explanation names who can be chosen and how often, and of each other node why not', () => {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }, { id: 'b', status: 'draining' }, { id: 'c' }, { id: 'd' }])
  const known = client.peek('stock')!
  const nodes = known.nodes.map((node) => (node.id === 'd' ? { ...node, weight: 300 } : node))
  const shown = explained({ ...known, nodes }, [failing('c')])
  assert.deepEqual(shown.candidates, ['a', 'd'])
  assert.deepEqual([shown.path, shown.headers, shown.strategy], ['/items', { 'x-user': 'me' }, 'round_robin'])
  assert.deepEqual(
    shown.nodes.map(({ share }) => share),
    [0.25, 0, 0, 0.75],
  )
  assert.deepEqual(
    shown.nodes.map(({ why }) => why),
    ['it is up', 'its status is draining', 'calls to it failed: it is left out, for another 2s', 'it is up'],
  )
})

test('an explanation keeps failing nodes as candidates when there are no others, as the selector does', () => {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }, { id: 'b', status: 'down' }])
  const shown = explained(client.peek('stock')!, [failing('a')])
  assert.deepEqual(shown.candidates, ['a'])
  assert.match(shown.nodes[0]!.why, /none is left without failures/)
  assert.equal(shown.nodes[0]!.share, 1)
})

test('the effective configuration reads like its file, durations with their units', () => {
  const { config } = loadConfig({
    argv: ['--config', 'x', '--registry', 'http://user:hunter2@host:7400'],
    env: {},
    readFile: () => 'services: [{ service: stock, port: 80, healthCheck: { interval: 1500ms } }]',
  })
  const shown = shownConfig(config) as { drain: object; services: { healthCheck: { interval: string } }[] }
  assert.doesNotMatch(JSON.stringify(shown), /hunter2/)
  assert.match(JSON.stringify(shown), /http:\/\/user:\*\*\*@host:7400/)
  assert.deepEqual(shown.drain, { settle: '1s', idle: '5s', timeout: '30s' })
  assert.equal(shown.services[0]!.healthCheck.interval, '1500ms')
})

test('a view is shown as it travels, and what else is served beside it, where a peer does not read', () => {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }, { id: 'b' }])
  const served = client.peek('stock')!
  const known = { view: served.view, age: 1_234.5, source: 'file' as const }
  const plain = shownKnown(known, served, false)
  assert.deepEqual([plain.age, plain.source, plain.reachable, plain.serving], [1_235, 'file', false, undefined])
  assert.deepEqual(decodeView(plain).nodes.size, 2)
  const forced = { ...served, view: viewOf('stock', [{ id: 'forced' }]), overridden: true }
  const shown = shownKnown(known, forced, true) as object as { serving: { why: string; nodes: { id: string }[] } }
  assert.deepEqual([shown.serving.why, shown.serving.nodes.map(({ id }) => id)], ['override', ['forced']])
  assert.deepEqual([...decodeView(shown).nodes.keys()], ['a', 'b'])
  const kept = shownKnown(known, { ...forced, overridden: false }, true) as object as typeof shown
  assert.equal(kept.serving.why, 'quarantine')
  assert.equal(shownView(forced).overridden, true)
})

test('passwords of peers are masked like those of registries', () => {
  const { config } = loadConfig({ argv: ['--peers', 'http://me:secret@peer:7503'], env: { HOME: '/h' } })
  assert.deepEqual((shownConfig(config) as { peers: string[] }).peers, ['http://me:***@peer:7503'])
})
