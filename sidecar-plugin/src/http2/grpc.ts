/** What gRPC says in other words than HTTP does: a call's outcome, and how long its caller waits. */

import type { Reason, SidecarError } from '../errors.ts'
import { Fields } from '../fields.ts'
import type { Reply } from '../layer.ts'

const CANCELLED = 1
const DEADLINE_EXCEEDED = 4
const RESOURCE_EXHAUSTED = 8
const UNIMPLEMENTED = 12
const INTERNAL = 13
const UNAVAILABLE = 14

/**
 * The status of each reason. `UNAVAILABLE` invites clients to call again, so it stands where the next call may well be
 * served.
 */
export const GRPC_STATUS: Readonly<Record<Reason, number>> = {
  bad_request: INTERNAL,
  request_timeout: DEADLINE_EXCEEDED,
  expectation: INTERNAL,
  not_here: UNAVAILABLE,
  head_too_large: RESOURCE_EXHAUSTED,
  caller_gone: CANCELLED,
  internal_error: INTERNAL,
  not_supported: UNIMPLEMENTED,
  upstream_connect: UNAVAILABLE,
  upstream_refused: UNAVAILABLE,
  upstream_reset: UNAVAILABLE,
  upstream_protocol: INTERNAL,
  no_nodes: UNAVAILABLE,
  unknown_service: UNAVAILABLE,
  unresolved: UNAVAILABLE,
  overloaded: RESOURCE_EXHAUSTED,
  draining: UNAVAILABLE,
  deadline: DEADLINE_EXCEEDED,
  idle: UNAVAILABLE,
  version: INTERNAL,
  loop_detected: INTERNAL,
}

/** Whether a request with this `content-type` is a call of gRPC: `application/grpc`, alone or with a format. */
export function isGrpc(contentType: string | undefined): boolean {
  return contentType !== undefined && /^application\/grpc(?:[+;\s]|$)/i.test(contentType)
}

/** The answer to a failed call: fields alone, by which HTTP went well. */
export function grpcReply(error: SidecarError): Reply {
  return {
    status: 200,
    headers: Fields.of(['content-type', 'application/grpc', ...grpcTrailers(error).list]),
    body: undefined,
    reason: error.reason,
    own: true,
  }
}

/** What ends a call that failed after its answer had begun. */
export function grpcTrailers(error: SidecarError): Fields {
  return Fields.of([
    'grpc-status',
    String(GRPC_STATUS[error.reason]),
    'grpc-message',
    percentEncoded(`${error.reason}: ${error.message}`),
  ])
}

const UNIT_MS: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 }

/** Milliseconds of a `grpc-timeout`: up to eight digits and a unit. Undefined when it is none. */
export function parseGrpcTimeout(value: string | undefined): number | undefined {
  const match = value === undefined ? null : /^(\d{1,8})([HMSmun])$/.exec(value)
  return match === null ? undefined : Number(match[1]) * UNIT_MS[match[2]!]!
}

/** As `grpc-message` is written: everything in UTF-8 but visible ASCII other than `%`. */
function percentEncoded(text: string): string {
  let encoded = ''
  for (const byte of Buffer.from(text, 'utf8'))
    encoded +=
      byte >= 0x20 && byte < 0x7f && byte !== 0x25
        ? String.fromCharCode(byte)
        : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`
  return encoded
}
