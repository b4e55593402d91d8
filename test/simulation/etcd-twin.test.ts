import { storeContract } from '../store.contract.ts'
import type { EtcdConnection } from '../../registry-server/src/store/etcd/etcd-connection.ts'
import { EtcdStore } from '../../registry-server/src/store/etcd/etcd-store.ts'
import { seededRandom } from '../support/seeded-random.ts'
import { silent } from '../registry-server/support.ts'
import { SimEtcdConnection } from './etcd-client.ts'
import { EtcdMembers } from './etcd-members.ts'
import { EtcdTwin } from './etcd-twin.ts'
import { Host, SimProcess } from './process.ts'
import { Scheduler } from './scheduler.ts'
import { Network } from './sim-network.ts'

storeContract('etcd twin', async () => {
  const scheduler = new Scheduler()
  const random = seededRandom(1)
  const network = new Network(scheduler, () => random)
  let members: EtcdMembers | undefined = undefined
  const twin = new EtcdTwin({ nowMs: () => scheduler.nowMs, committed: () => members?.committed() })
  members = new EtcdMembers({ scheduler, network, random, twin, members: 3 })
  const { endpoints } = members
  let serial = 0
  const open = () => {
    const process = new SimProcess(`r${++serial}`, new Host('r1'), scheduler)
    return EtcdStore.open({
      endpoints,
      access: { tls: false },
      prefix: '/holdfast/',
      maxRequestBytes: 1_572_864,
      timeoutMs: 30_000,
      newEpoch: false,
      name: 'test',
      identifier: () => `id${++serial}`,
      clock: process,
      random,
      log: silent,
      historyRevisions: 10_000,
      historyChanges: 1_000_000,
      connect: (endpoint) => new SimEtcdConnection(network, process, endpoint) as unknown as EtcdConnection,
    })
  }
  // Time runs as fast as it can, for as long as the test lasts.
  const running = scheduler.runUntil(Infinity)
  let store = await open()
  return {
    store,
    async reopen() {
      await store.close()
      return (store = await open())
    },
    async dispose() {
      await store.close()
      scheduler.stop()
      await running
    },
  }
})
