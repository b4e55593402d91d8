import assert from 'node:assert/strict'
import { test } from 'node:test'
import { loadConfig } from '../../sidecar-plugin/src/config.ts'
import { explain, shownConfig } from '../../sidecar-plugin/src/inspection.ts'
import { FakeClient } from './fakes.ts'

test('an explanation names who can be chosen, and of each other node why not', () => {
  const client = new FakeClient()
  client.set('stock', [{ id: 'a' }, { id: 'b', status: 'draining' }, { id: 'c' }])
  const shown = explain({
    service: 'stock',
    namespace: 'default',
    path: '/items',
    known: client.peek('stock')!,
    calls: [{ id: 'c', pending: 0, failures: 3, ejectedForMs: 1_999.5 }],
    timeoutMs: 15_000,
    retries: 2,
  }) as { candidates: string[]; nodes: { id: string; why?: string }[]; path: string }
  assert.deepEqual(shown.candidates, ['a'])
  assert.equal(shown.path, '/items')
  assert.equal(shown.nodes[1]!.why, 'its status is draining')
  assert.match(shown.nodes[2]!.why!, /left out for another 2s/)
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
