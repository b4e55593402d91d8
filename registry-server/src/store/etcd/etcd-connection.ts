/** The only etcd: one connection to one member. Which member, and what to do when it is lost, others decide. */

import { noop } from 'cockatiel'
import {
  Etcd3,
  type ICompare,
  type IKeyValue,
  type IOptions,
  type IRequestOp,
  type ITxnResponse,
  type IWatchResponse,
} from 'etcd3'
import { formatDuration, type Clock } from '@holdfast/registry-client/clock'
import { EtcdFailure, failureOf, kindOf, type Asked } from './etcd-failure.ts'

export { EtcdFailure, type EtcdFailureKind } from './etcd-failure.ts'

/** A member that answers takes milliseconds; one that has to elect a leader first, about a second. */
const CALL_TIMEOUT_MS = 3_000
/** Answers that may be many megabytes. */
const READ_TIMEOUT_MS = 15_000
/** Large transactions on a slow disk. With a short question to another member it is less than writers wait for. */
const WRITE_TIMEOUT_MS = 2_500
/** Finds a dead path below a stream that looks alive. etcd refuses clients that ping more often than every 5 s. */
const KEEPALIVE = { 'grpc.keepalive_time_ms': 10_000, 'grpc.keepalive_timeout_ms': 5_000 }

export interface EtcdAccess {
  readonly user?: string | undefined
  readonly password?: string | undefined
  /** PEM. Without it, and with TLS, the authorities that Node.js knows. */
  readonly ca?: Buffer | undefined
  readonly certificate?: Buffer | undefined
  readonly key?: Buffer | undefined
  readonly tls: boolean
}

/** Keys are without the prefix. `revision` is etcd's, of the key's last change. */
export interface KeyValue {
  readonly key: string
  readonly value: Buffer
  readonly revision: number
}

export interface FeedEvent {
  readonly key: string
  /** Undefined: the key is gone. */
  readonly value: Buffer | undefined
  readonly revision: number
}

/** `revision` is etcd's at the time of the answer. */
export interface Answer {
  readonly revision: number
}

export interface RangeAnswer extends Answer {
  readonly items: readonly KeyValue[]
  readonly more: boolean
}

export interface RangeRequest {
  /** Begins with. */
  readonly prefix: string
  /** Begin after this key instead of at the first. */
  readonly after?: string | undefined
  readonly limit?: number
  /** As of this revision of etcd, if it still has it. */
  readonly at?: number
  readonly keysOnly?: boolean
}

export type Operation =
  | { readonly put: string; readonly value: Buffer; readonly lease?: string }
  | { readonly remove: string }
  /** From the first to the second, without it. */
  | { readonly removeRange: readonly [string, string] }
  | { readonly range: RangeRequest }
  | { readonly get: string }

export interface TransactionRequest {
  /** That a key was last changed at a revision of etcd; 0 that it is not there. */
  readonly compare: readonly { readonly key: string; readonly revision: number }[]
  readonly success: readonly Operation[]
  readonly failure: readonly Operation[]
}

export interface TransactionAnswer extends Answer {
  readonly succeeded: boolean
  /** What each `get` and `range` of the branch that ran found, in order. */
  readonly found: readonly RangeAnswer[]
}

export interface WatchHandlers {
  /** All changes of one revision come in one call. */
  events(events: readonly FeedEvent[]): void
  /** Called once; nothing follows. */
  failed(failure: EtcdFailure): void
}

export interface EtcdConnectionOptions {
  /** `host:port`. */
  readonly endpoint: string
  readonly access: EtcdAccess
  readonly prefix: string
  readonly clock: Clock
}

/** Operations of one list of a transaction that etcd takes: its default, `--max-txn-ops`. */
const MAX_LIST = 128
/** Of one transaction, by nested lists: see {@link nest}. */
export const MAX_OPERATIONS = (MAX_LIST / 2) ** 2

let connections = 0

export class EtcdConnection {
  readonly endpoint: string
  readonly #client: Etcd3
  readonly #prefix: string
  readonly #asked: Asked
  readonly #clock: Clock
  #closed = false
  #cancelWatch: () => void = () => {}
  /** Calls under way, each by how to end it. */
  readonly #calls = new Set<(failure: EtcdFailure) => void>()

  constructor({ endpoint, access, prefix, clock }: EtcdConnectionOptions) {
    this.endpoint = endpoint
    this.#prefix = prefix
    this.#asked = { access, prefix }
    this.#clock = clock
    const options: IOptions = {
      hosts: `${access.tls ? 'https' : 'http'}://${endpoint}`,
      // Trying again is decided above, where it is known what a lost answer may mean.
      faultHandling: { host: () => noop, global: noop },
      grpcOptions: {
        ...KEEPALIVE,
        'grpc.max_receive_message_length': -1,
        'grpc.enable_retries': 0,
        // gRPC shares what has the same options. One that comes after a connection that hangs would hang with it.
        'holdfast.connection': ++connections,
      },
      ...(access.user !== undefined && { auth: { username: access.user, password: access.password ?? '' } }),
      ...((access.ca ?? access.certificate) && {
        credentials: {
          // Without one gRPC takes those that Node.js knows; etcd3's types do not know.
          rootCertificate: access.ca as Buffer,
          ...(access.key && { privateKey: access.key }),
          ...(access.certificate && { certChain: access.certificate }),
        },
      }),
    }
    try {
      this.#client = new Etcd3(options)
    } catch (error) {
      throw new EtcdFailure('denied', `certificates that cannot be used: ${(error as Error).message}`, error)
    }
  }

  async get(key: string, timeoutMs = CALL_TIMEOUT_MS): Promise<Answer & { readonly item: KeyValue | undefined }> {
    const answer = await this.#call(timeoutMs, () => this.#client.kv.range({ key: this.#bytes(key) }))
    return { revision: Number(answer.header.revision), item: answer.kvs[0] && this.#item(answer.kvs[0]) }
  }

  async range(request: RangeRequest): Promise<RangeAnswer> {
    const answer = await this.#call(READ_TIMEOUT_MS, () => this.#client.kv.range(this.#range(request)))
    return this.#found(answer)
  }

  /** What each of these finds, all as of one revision. */
  async readTogether(operations: readonly Operation[]): Promise<Pick<TransactionAnswer, 'revision' | 'found'>> {
    const answer = await this.#call(READ_TIMEOUT_MS, () =>
      this.#client.kv.txn({ compare: [], success: operations.map((item) => this.#operation(item)), failure: [] }),
    )
    return { revision: Number(answer.header.revision), found: this.#allFound(answer) }
  }

  async put(key: string, value: Buffer, lease?: string): Promise<Answer> {
    const answer = await this.#call(WRITE_TIMEOUT_MS, () =>
      this.#client.kv.put({ key: this.#bytes(key), value, ...(lease !== undefined && { lease }) }),
    )
    return { revision: Number(answer.header.revision) }
  }

  async transact({ compare, success, failure }: TransactionRequest): Promise<TransactionAnswer> {
    const compared: ICompare[] = compare.map(({ key, revision }) => ({
      key: this.#bytes(key),
      target: 'Mod',
      result: 'Equal',
      mod_revision: revision,
    }))
    const answer = await this.#call(WRITE_TIMEOUT_MS, () =>
      this.#client.kv.txn({
        compare: compared,
        success: nest(success.map((item) => this.#operation(item))),
        failure: failure.map((item) => this.#operation(item)),
      }),
    )
    return { revision: Number(answer.header.revision), succeeded: answer.succeeded, found: this.#allFound(answer) }
  }

  /** Resolves once etcd has accepted; it then tells of every change from `revision` on. */
  async watch(prefix: string, revision: number, handlers: WatchHandlers): Promise<void> {
    const stream = await this.#call(CALL_TIMEOUT_MS, () => this.#client.watchClient.watch())
    await this.#call(
      CALL_TIMEOUT_MS,
      () =>
        new Promise<void>((resolve, reject) => {
          let failed = false
          let gathered: FeedEvent[] = []
          const fail = (failure: EtcdFailure) => {
            if (failed) return
            failed = true
            stream.cancel()
            reject(failure)
            if (!this.#closed) handlers.failed(failure)
          }
          this.#cancelWatch = () => {
            failed = true
            stream.cancel()
          }
          stream.on('data', (answer: IWatchResponse) => {
            if (failed) return
            if (answer.canceled) {
              const isCompacted = Number(answer.compact_revision) > 0
              const reason = isCompacted
                ? `etcd has compacted what was to be watched, up to ${answer.compact_revision}`
                : answer.cancel_reason || 'etcd ended the watch'
              return fail(new EtcdFailure(isCompacted ? 'compacted' : kindOf(reason), reason))
            }
            if (answer.created) return resolve()
            for (const { type, kv } of answer.events) {
              const { key, value, revision: changed } = this.#item(kv)
              gathered.push({
                key,
                value: String(type) === 'Delete' || String(type) === 'DELETE' ? undefined : value,
                revision: changed,
              })
            }
            if (answer.fragment || gathered.length === 0) return
            const events = gathered
            gathered = []
            handlers.events(events)
          })
          stream.on('error', (error: Error) => fail(failureOf(error, this.#asked)))
          stream.on('end', () => fail(new EtcdFailure('unreachable', 'the watch ended')))
          stream.write({
            create_request: {
              key: this.#bytes(prefix),
              range_end: afterPrefix(this.#bytes(prefix)),
              start_revision: revision,
            },
          })
        }),
    )
  }

  /** @returns the id of a new lease */
  async grantLease(ttlSeconds: number): Promise<string> {
    const answer = await this.#call(CALL_TIMEOUT_MS, () => this.#client.leaseClient.leaseGrant({ TTL: ttlSeconds }))
    return answer.ID
  }

  /** @returns false when the lease has ended */
  async renewLease(id: string): Promise<boolean> {
    return this.#call(CALL_TIMEOUT_MS, async () => {
      // A stream for each, where one would do: a stream that has died unnoticed cannot hold up the next renewal.
      const stream = await this.#client.leaseClient.leaseKeepAlive()
      try {
        return await new Promise<boolean>((resolve, reject) => {
          stream.on('data', (answer: { TTL: string }) => resolve(Number(answer.TTL) > 0))
          stream.on('error', reject)
          stream.on('end', () => reject(new Error('the stream ended')))
          stream.write({ ID: id })
        })
      } finally {
        stream.end()
      }
    })
  }

  async revokeLease(id: string): Promise<void> {
    await this.#call(CALL_TIMEOUT_MS, () => this.#client.leaseClient.leaseRevoke({ ID: id }))
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#cancelWatch()
    this.#client.close()
    for (const end of this.#calls) end(new EtcdFailure('unreachable', 'the connection is closed'))
  }

  /**
   * Our own clock limits every call: one to a member that is frozen would stay without an answer for ever.
   * @throws EtcdFailure
   */
  #call<T>(timeoutMs: number, run: () => Promise<T>): Promise<T> {
    if (this.#closed) return Promise.reject(new EtcdFailure('unreachable', 'the connection is closed'))
    return new Promise((resolve, reject) => {
      const end = (failure: EtcdFailure) => {
        cancel()
        this.#calls.delete(end)
        reject(failure)
      }
      const cancel = this.#clock.after(timeoutMs, () =>
        end(new EtcdFailure('unreachable', `no answer in ${formatDuration(timeoutMs)}`)),
      )
      this.#calls.add(end)
      // What it throws before its first wait counts as its failure too.
      const running = (async () => run())()
      running.then(
        (value) => {
          cancel()
          this.#calls.delete(end)
          resolve(value)
        },
        (error: unknown) => end(failureOf(error, this.#asked)),
      )
    })
  }

  #bytes(key: string): Buffer {
    return Buffer.from(this.#prefix + key)
  }

  #item(kv: IKeyValue): KeyValue {
    return { key: kv.key.toString().slice(this.#prefix.length), value: kv.value, revision: Number(kv.mod_revision) }
  }

  #range({ prefix, after, limit, at, keysOnly }: RangeRequest) {
    const start = this.#bytes(prefix)
    return {
      key: after === undefined ? start : Buffer.concat([this.#bytes(after), Buffer.of(0)]),
      range_end: afterPrefix(start),
      ...(limit !== undefined && { limit }),
      ...(at !== undefined && { revision: at }),
      ...(keysOnly === true && { keys_only: true }),
    }
  }

  #operation(operation: Operation): IRequestOp {
    if ('put' in operation) {
      const { put, value, lease } = operation
      return { request_put: { key: this.#bytes(put), value, ...(lease !== undefined && { lease }) } }
    }
    if ('remove' in operation) return { request_delete_range: { key: this.#bytes(operation.remove) } }
    if ('removeRange' in operation) {
      const [from, to] = operation.removeRange
      return { request_delete_range: { key: this.#bytes(from), range_end: this.#bytes(to) } }
    }
    if ('get' in operation) return { request_range: { key: this.#bytes(operation.get) } }
    return { request_range: this.#range(operation.range) }
  }

  #found(answer: { header: { revision: string } | null; kvs: IKeyValue[]; more: boolean }): RangeAnswer {
    return {
      revision: Number(answer.header?.revision ?? 0),
      items: answer.kvs.map((kv) => this.#item(kv)),
      more: answer.more,
    }
  }

  #allFound({ responses }: ITxnResponse): readonly RangeAnswer[] {
    return responses.flatMap((item) => (item.response_range ? [this.#found(item.response_range)] : []))
  }
}

/** The first key after all that begin with a prefix. */
function afterPrefix(prefix: Buffer): Buffer {
  const end = Buffer.from(prefix)
  // Prefixes are ASCII, so the last byte can always be raised.
  end[end.length - 1]! += 1
  return end
}

/**
 * One transaction of more operations than a list takes. etcd lets lists nest, and counts a list's own operations
 * against those of the lists in it (`checkTxnRequest` in its `server/etcdserver/api/v3rpc/key.go`).
 */
function nest(operations: IRequestOp[]): IRequestOp[] {
  if (operations.length <= MAX_LIST) return operations
  for (let lists = 2; lists < MAX_LIST; lists++) {
    const size = MAX_LIST - lists
    if (lists * size < operations.length) continue
    return Array.from({ length: Math.ceil(operations.length / size) }, (_, index) => ({
      request_txn: { success: operations.slice(index * size, (index + 1) * size) },
    }))
  }
  throw new EtcdFailure('too_large', `${operations.length} operations`)
}
