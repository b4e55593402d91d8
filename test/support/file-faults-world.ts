import fs from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach } from 'node:test'
import { connect, type RegistryClient } from '@holdfast/registry-client'
import { systemClock, type Clock } from '@holdfast/registry-client/clock'
import { systemDisk, type Disk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { MemoryLog } from './memory-log.ts'
import { viewOf } from './sample-views.ts'
import { ScriptedNetwork } from './scripted-network.ts'

/** A directory with two generations of `stock`: `e:5` with the node `a`, and before it `e:4` with the node `old`. */
export interface Place {
  readonly directory: string
  readonly file: string
}

export async function place(): Promise<Place> {
  const directory = await fs.mkdtemp(path.join(tmpdir(), 'holdfast-faults-'))
  for (const view of [viewOf('e:4', ['old']), viewOf('e:5', ['a'])]) {
    const cache = new FileCache({ directory, disk: systemDisk, clock: systemClock, log: new MemoryLog() })
    cache.save(view)
    await cache.close()
  }
  return { directory, file: path.join(directory, 'default', 'stock.json') }
}

/** What a process would read that starts now, and reads only. */
export async function revisionIn(directory: string): Promise<number | undefined> {
  const cache = new FileCache({ directory, disk: systemDisk, clock: systemClock, log: new MemoryLog() })
  await cache.close()
  return (await cache.load('default', 'stock'))?.view.cursor.revision
}

/** Closed after each test, so that one that fails does not go on for ever. */
const clients: RegistryClient[] = []
afterEach(() => Promise.all(clients.splice(0).map((client) => client.close())))

export async function start(directory: string, more: { disk?: Disk; clock?: Clock } = {}) {
  const network = new ScriptedNetwork()
  const log = new MemoryLog()
  const client = await connect({ endpoints: ['http://registry:7400'], cacheDir: directory, network, log, ...more })
  clients.push(client)
  return { network, log, client }
}
