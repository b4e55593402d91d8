/**
 * One of many processes on one cache directory, for `file-cache.processes.test.ts`: follows services of a registry whose
 * revision is the time that has passed, some hears later than others, and reads what the others write. Says to its
 * parent what goes wrong; stops writing when told to, and says then what it knew last.
 */

import { sleep, systemClock } from '@holdfast/registry-client/clock'
import { systemDisk } from '../../registry-client/src/disk.ts'
import { FileCache } from '../../registry-client/src/files/file-cache.ts'
import { MemoryLog } from './memory-log.ts'
import { nodeOf, viewOf } from './sample-views.ts'

const [directory, startedMs, lagMs, services] = process.argv.slice(2) as [string, string, string, string]
const names = services.split(',')
const log = new MemoryLog()
const open = () => new FileCache({ directory, disk: systemDisk, clock: systemClock, log })
const say = (message: object) => process.send!(message)
const highest = new Map<string, number>()
let isWriting = true

process.on('message', (message) => {
  if (message === 'rest') isWriting = false
  else process.disconnect()
})

const cache = open()
await cache.open({
  changed: (namespace, service) =>
    void cache.load(namespace, service).then((loaded) => {
      const revision = loaded?.view.cursor.revision ?? 0
      // What another process knew is known here too from then on.
      if (revision > (highest.get(service) ?? 0)) highest.set(service, revision)
    }),
})
say({ ready: true })
while (isWriting) {
  for (const service of names) {
    const revision = Math.max(1, Math.floor(systemClock.wall() - Number(startedMs) - Number(lagMs)))
    if (revision <= (highest.get(service) ?? 0)) continue
    highest.set(service, revision)
    cache.save(viewOf(`e:${revision}`, [nodeOf('a', { labels: { at: `${revision}` } })], { service }))
  }
  // As a process that starts now would.
  const other = open()
  const service = names[Math.floor(Math.random() * names.length)]!
  const loaded = await other.load('default', service)
  const wrong = log.lines.filter(({ level }) => level === 'error' || level === 'warn')
  if (wrong.length > 0 || other.status().corrupt > 0) say({ wrong, status: other.status() })
  if (loaded && loaded.view.nodes.get('a')?.labels.at !== `${loaded.view.cursor.revision}`) say({ wrong: loaded.view })
  await sleep(systemClock, 10)
}
while (cache.status().waiting > 0) await sleep(systemClock, 10)
say({ highest: Object.fromEntries(highest) })
await new Promise((resolve) => process.once('disconnect', resolve))
await cache.close()
