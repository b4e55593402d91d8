/** What went wrong with etcd: for the program, what may help; for its operator, which setting it is about. */

import { EtcdAuthenticationFailedError, EtcdPermissionDeniedError } from 'etcd3'

/**
 * - `unreachable`: nobody knows whether it happened; another member may do better
 * - `denied`: user, password or permission
 * - `too_large`, `no_space`: it did not happen, and will not on another member either
 * - `compacted`: etcd no longer has the revision that was asked for
 */
export type EtcdFailureKind = 'unreachable' | 'denied' | 'too_large' | 'no_space' | 'compacted'

export class EtcdFailure extends Error {
  readonly kind: EtcdFailureKind
  /** This member fails for as long as the settings are what they are. */
  readonly isLasting: boolean
  constructor(kind: EtcdFailureKind, reason: string, cause?: unknown, isLasting = kind === 'denied') {
    super(reason, { cause })
    this.name = 'EtcdFailure'
    this.kind = kind
    this.isLasting = isLasting
  }
}

/** What of the settings a failure may be about. */
export interface Asked {
  readonly prefix: string
  readonly access: {
    readonly tls: boolean
    readonly user?: string | undefined
    readonly ca?: unknown
    readonly certificate?: unknown
  }
}

/** Any error of etcd's client, in words without its ornaments, and without anything secret. */
export function failureOf(error: unknown, asked: Asked): EtcdFailure {
  if (error instanceof EtcdFailure) return error
  const text = error instanceof Error ? error.message : String(error)
  const lost = /^.*No connection established\. Last error: (.*?)(?: \(\d{4}-[^)]*Z\))?\. Resolution note:/s.exec(text)
  if (lost) return connectionFailure(lost[1]!.trim(), asked, error)
  // etcd3 puts the name of the error before it, gRPC the number and name of its code, and etcd its own name.
  const reason = text
    .replace(/^\w*Error: /, '')
    .replace(/^\d+ [A-Z_]+: /, '')
    .replace(/^etcdserver: /, '')
  if (/^Name resolution failed/.test(reason)) return new EtcdFailure('unreachable', 'its name is not known', error)
  const denial = denialOf(reason, asked, error)
  return denial ? new EtcdFailure('denied', denial, error) : new EtcdFailure(kindOf(reason), reason, error)
}

/** Of a refusal that names no error. */
export function kindOf(reason: string): EtcdFailureKind {
  if (/permission denied|user name is empty/i.test(reason)) return 'denied'
  if (/request is too large|too many operations|larger than max/i.test(reason)) return 'too_large'
  if (/space exceeded|no space/i.test(reason)) return 'no_space'
  if (/compacted/i.test(reason)) return 'compacted'
  return 'unreachable'
}

/** A token that has run out is no denial: the next connection has a new one. */
function denialOf(reason: string, { access: { user }, prefix }: Asked, error: unknown): string | undefined {
  if (error instanceof EtcdAuthenticationFailedError || /authentication failed/.test(reason))
    return 'user or password is wrong; --etcd-user and --etcd-password-file name them'
  if (/user name is empty/.test(reason)) return 'it wants a user; --etcd-user and --etcd-password-file name one'
  if (/authentication is not enabled/.test(reason)) return 'it has no users, and --etcd-user names one'
  if (!(error instanceof EtcdPermissionDeniedError) && !/permission denied/i.test(reason)) return undefined
  const who = user === undefined ? 'whom the client certificate stands for' : `of --etcd-user, ${user},`
  return `the user ${who} may not read and write all that begins with ${prefix}, as --etcd-prefix says`
}

const SYSTEM_ERRORS: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'connection refused',
  ECONNRESET: 'connection reset',
  EPIPE: 'connection reset',
  ENOTFOUND: 'its name is not known',
  EHOSTUNREACH: 'no way to its host',
  ENETUNREACH: 'no way to its network',
  ETIMEDOUT: 'no answer',
}

/** What ends a connection before the first call. It waits for what only others can mend, such as their certificate. */
function connectionFailure(text: string, { access }: Asked, cause: unknown): EtcdFailure {
  const failure = (reason: string, isLasting = false) => new EtcdFailure('unreachable', reason, cause, isLasting)
  const detail = text.replace(/^Error: /, '')
  const [, alert] = /\balert ([a-z ]+)/.exec(detail) ?? []
  if (alert !== undefined && /certificate|unknown ca|access denied/.test(alert))
    return failure(
      access.certificate === undefined
        ? `it wants a client certificate (TLS: ${alert}); --etcd-cert and --etcd-key name one`
        : `it does not take the certificate of --etcd-cert (TLS: ${alert})`,
      true,
    )
  if (/certificate (has expired|is not yet valid)/.test(detail)) return failure(`its ${detail}`)
  if (/altnames/.test(detail)) return failure(`its certificate is not for the name in --store: ${detail}`, true)
  if (/certificate/.test(detail))
    return failure(
      access.ca === undefined
        ? `its certificate is from no authority that is known here (${detail}); --etcd-ca names another`
        : `its certificate is not from the authority of --etcd-ca (${detail})`,
      true,
    )
  if (/wrong version number|packet length too long/.test(detail))
    return failure('it speaks no TLS; then --store begins with etcd://, without --etcd-ca and --etcd-cert', true)
  const [, system] = /\b(E[A-Z]{3,})\b/.exec(detail) ?? []
  const isReset = system === 'ECONNRESET' || /disconnected before secure TLS|^Socket closed/.test(detail)
  if (access.tls && isReset)
    return failure('it ended the TLS handshake; where it speaks no TLS, --store begins with etcd://')
  if (!access.tls && (isReset || /^Failed to connect/.test(detail)))
    return failure('it closed the connection at once; where it wants TLS, --store begins with etcds://')
  return failure((system !== undefined && SYSTEM_ERRORS[system]) || detail)
}
