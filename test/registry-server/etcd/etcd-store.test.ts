import { after } from 'node:test'
import { storeContract } from '../../store.contract.ts'
import { startEtcd, startEtcdCluster, withoutEtcd } from '../../support/etcd.ts'
import { freshPrefix, openStore } from './support.ts'

const missing = await withoutEtcd()
if (!missing) {
  const member = await startEtcd({ after })
  onEtcd('etcd', [member.endpoint])
  const cluster = await startEtcdCluster({ after })
  onEtcd('etcd, three members', cluster.endpoints)
}

function onEtcd(name: string, endpoints: readonly string[]): void {
  storeContract(name, async () => {
    const prefix = freshPrefix()
    let store = await openStore({ endpoints, prefix })
    return {
      store,
      async reopen() {
        await store.close()
        return (store = await openStore({ endpoints, prefix }))
      },
      dispose: () => store.close(),
    }
  })
}
