/** What a replica has for a connection to etcd: the calls of EtcdConnection, over the simulated network. */

import type { Clock } from '@holdfast/registry-client/clock'
import {
  EtcdFailure,
  type Answer,
  type EtcdConnection,
  type KeyValue,
  type Operation,
  type RangeAnswer,
  type RangeRequest,
  type TransactionAnswer,
  type TransactionRequest,
  type WatchHandlers,
} from '../../registry-server/src/store/etcd/etcd-connection.ts'
import type { EtcdReply } from './etcd-members.ts'
import type { EtcdTwin } from './etcd-twin.ts'
import type { SimProcess } from './process.ts'
import type { End, Network } from './sim-network.ts'

/** Those of EtcdConnection. */
const CALL_TIMEOUT_MS = 3_000
const READ_TIMEOUT_MS = 15_000
const WRITE_TIMEOUT_MS = 2_500

export class SimEtcdConnection implements Pick<EtcdConnection, keyof EtcdConnection> {
  readonly endpoint: string
  readonly #clock: Clock
  readonly #end: End
  readonly #calls = new Map<number, { resolve: (value: unknown) => void; reject: (failure: EtcdFailure) => void }>()
  #watch: { readonly id: number; readonly handlers: WatchHandlers } | undefined
  #lastId = 0
  #ended: EtcdFailure | undefined

  constructor(network: Network, process: SimProcess, endpoint: string) {
    this.endpoint = endpoint
    this.#clock = process
    this.#end = network.connect(process, endpoint, 'etcd', {
      message: (reply) => this.#receive(reply as EtcdReply),
      closed: (reason) => this.#fail(new EtcdFailure('unreachable', reason)),
    })
  }

  async get(key: string, timeoutMs = CALL_TIMEOUT_MS): Promise<Answer & { readonly item: KeyValue | undefined }> {
    const { revision, items } = await this.#call(timeoutMs, (twin) => twin.get(key))
    return { revision, item: items[0] }
  }

  range(request: RangeRequest): Promise<RangeAnswer> {
    return this.#call(READ_TIMEOUT_MS, (twin) => twin.range(request))
  }

  readTogether(operations: readonly Operation[]): Promise<Pick<TransactionAnswer, 'revision' | 'found'>> {
    return this.#call(READ_TIMEOUT_MS, (twin) => {
      const { revision, found } = twin.transact({ compare: [], success: operations, failure: [] })
      return { revision, found }
    })
  }

  put(key: string, value: Buffer, lease?: string): Promise<Answer> {
    return this.#call(WRITE_TIMEOUT_MS, (twin) => ({ revision: twin.put(key, value, lease) }))
  }

  transact(request: TransactionRequest): Promise<TransactionAnswer> {
    return this.#call(WRITE_TIMEOUT_MS, (twin) => twin.transact(request))
  }

  async watch(prefix: string, revision: number, handlers: WatchHandlers): Promise<void> {
    const id = this.#lastId + 1
    this.#watch = { id, handlers }
    await this.#ask<void>(CALL_TIMEOUT_MS, { watch: { prefix, revision } })
  }

  grantLease(ttlSeconds: number): Promise<string> {
    return this.#call(CALL_TIMEOUT_MS, (twin) => twin.grantLease(ttlSeconds))
  }

  renewLease(id: string): Promise<boolean> {
    return this.#call(CALL_TIMEOUT_MS, (twin) => twin.renewLease(id))
  }

  revokeLease(id: string): Promise<void> {
    return this.#call(CALL_TIMEOUT_MS, (twin) => twin.revokeLease(id))
  }

  close(): void {
    if (this.#ended) return
    this.#watch = undefined
    this.#end.close()
    this.#fail(new EtcdFailure('unreachable', 'the connection is closed'))
  }

  #call<T>(timeoutMs: number, call: (twin: EtcdTwin) => T): Promise<T> {
    return this.#ask<T>(timeoutMs, { call })
  }

  #ask<T>(timeoutMs: number, question: object): Promise<T> {
    if (this.#ended) return Promise.reject(this.#ended)
    return new Promise<T>((resolve, reject) => {
      const id = ++this.#lastId
      const end = () => {
        cancel()
        this.#calls.delete(id)
      }
      const cancel = this.#clock.after(timeoutMs, () => {
        end()
        reject(new EtcdFailure('unreachable', `no answer in ${timeoutMs} ms`))
      })
      this.#calls.set(id, {
        resolve: (value) => (end(), resolve(value as T)),
        reject: (failure) => (end(), reject(failure)),
      })
      this.#end.send({ id, ...question })
    })
  }

  #receive(reply: EtcdReply): void {
    const call = this.#calls.get(reply.id)
    if ('events' in reply) this.#watch?.handlers.events(reply.events)
    else if ('value' in reply) call?.resolve(reply.value)
    else {
      const failure = new EtcdFailure(reply.failure.kind, reply.failure.reason)
      call?.reject(failure)
      if (reply.id === this.#watch?.id) this.#endWatch(failure)
    }
  }

  #endWatch(failure: EtcdFailure): void {
    const watch = this.#watch
    this.#watch = undefined
    watch?.handlers.failed(failure)
  }

  #fail(failure: EtcdFailure): void {
    if (this.#ended) return
    this.#ended = failure
    for (const { reject } of [...this.#calls.values()]) reject(failure)
    this.#endWatch(failure)
  }
}
