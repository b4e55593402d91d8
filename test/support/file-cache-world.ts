import assert from 'node:assert/strict'
import { encodeView, type View } from '@holdfast/registry-client/protocol'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { FailingDisk } from './failing-disk.ts'
import { ManualClock } from './manual-clock.ts'
import { MemoryLog } from './memory-log.ts'
import { nodeOf, viewOf } from './sample-views.ts'

export const RICH = viewOf(
  'epoch-1:42',
  [
    nodeOf('a', { zone: 'z1', labels: { version: 'v2', '1': 'ein Ümlaut ✓' } }),
    nodeOf('b', { host: '::1', status: 'down', override: { status: 'down' }, registered: { status: 'up', weight: 7 } }),
  ],
  { policy: { timeout: '2s', routes: [{ to: [{ labels: { version: 'v2' } }] }] } },
)

export function inMemory() {
  const clock = new ManualClock()
  const disk = new FailingDisk(clock)
  const log = new MemoryLog()
  const cache = (directory = '/cache') => new FileCache({ directory, disk, clock, log })
  const load = async () => (await cache().load('default', 'stock'))?.view
  return { clock, disk, log, cache, load, file: '/cache/default/stock.json' }
}

export async function saved(view: View, cache: FileCache): Promise<void> {
  cache.save(view)
  await cache.close()
}

export function assertSameView(actual: View | undefined, expected: View): void {
  assert.ok(actual)
  assert.deepEqual(encodeView(actual), encodeView(expected))
}
