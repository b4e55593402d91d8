/**
 * Where things are in etcd, below the prefix:
 *
 *     meta                  which store this is, and its newest revision
 *     state/{record}        the state: one key a record, as on every engine
 *     feed/log/{revision}   what made it so: one entry a commit, for those who follow, and as history
 *     feed/replica/{id}     the replicas; each key goes when its process stops renewing it
 *     feed/heard/{id}       leases that were renewed at a replica which does not hold them
 *     feed/turn             the replica that asks to write next, having been too slow several times
 *     import                there while an import is under way, or was cut off
 *
 * Every commit compares `meta`, and so comes after exactly the one that its author had seen: revisions have no gaps,
 * and the entries of the log are one line, whoever wrote them. Those who follow need the feed alone.
 */

export const META = 'meta'
export const IMPORT = 'import'
export const STATE = 'state/'
export const FEED = 'feed/'
export const LOG = `${FEED}log/`
export const REPLICA = `${FEED}replica/`
export const HEARD = `${FEED}heard/`
export const TURN = `${FEED}turn`

/** A store on etcd, for people. */
export function locationOf(endpoints: readonly string[], tls: boolean, prefix: string): string {
  return `etcd${tls ? 's' : ''}://${endpoints.join()}/${prefix.replace(/^\//, '')}`
}

/** Raised by any change that an older version would misread. */
export const FORMAT = 1
const PROGRAM = 'holdfast-registry'

export interface Meta {
  readonly epoch: string
  readonly revision: number
}

export function encodeMeta({ epoch, revision }: Meta): Buffer {
  return Buffer.from(JSON.stringify({ program: PROGRAM, format: FORMAT, epoch, revision }))
}

/** @throws Error that says what it is instead */
export function decodeMeta(value: Buffer): Meta {
  let meta: { program?: unknown; format?: unknown; epoch?: unknown; revision?: unknown } | null
  try {
    meta = JSON.parse(value.toString()) as typeof meta
  } catch {
    throw new Error('it is not one of Holdfast')
  }
  if (typeof meta !== 'object' || meta?.program !== PROGRAM) throw new Error('it is not one of Holdfast')
  if (meta.format !== FORMAT) throw new Error(`it has format ${String(meta.format)}, and this version reads ${FORMAT}`)
  const { epoch, revision } = meta
  if (typeof epoch !== 'string' || !/^[A-Za-z0-9_-]{1,64}$/.test(epoch) || !Number.isSafeInteger(revision))
    throw new Error('it is damaged')
  return { epoch, revision: revision as number }
}

/** @param first the revision of the entry's first transaction; padded, so that keys are in the order of revisions */
export function logKey(first: number): string {
  return LOG + String(first).padStart(16, '0')
}
