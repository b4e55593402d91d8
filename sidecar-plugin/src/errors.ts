/**
 * Everything that a sidecar answers by itself, and why. An error is raised where it happens and turned into an answer
 * in one place, by the composer's stack.
 */

/** Who is to blame: the node or the service behind, the caller, or the sidecar itself. */
export type ErrorSource = 'upstream' | 'downstream' | 'internal'

/**
 * The reasons, each with its status and source. They are a promise to users: `x-holdfast-reason` carries them, logs
 * and metrics count by them.
 */
export const REASONS = {
  bad_request: { status: 400, source: 'downstream', title: 'The request cannot be understood' },
  request_timeout: { status: 408, source: 'downstream', title: 'The request did not arrive in time' },
  idle: { status: 408, source: 'downstream', title: 'Nothing was said for too long' },
  expectation: { status: 417, source: 'downstream', title: 'The expectation is unknown' },
  not_here: { status: 421, source: 'downstream', title: 'This sidecar does not front the service' },
  head_too_large: { status: 431, source: 'downstream', title: 'The request head is too large' },
  caller_gone: { status: 499, source: 'downstream', title: 'The caller has gone' },
  internal_error: { status: 500, source: 'internal', title: 'The sidecar failed' },
  not_supported: { status: 501, source: 'internal', title: 'The sidecar cannot do this' },
  upstream_connect: { status: 502, source: 'upstream', title: 'No connection to the node' },
  upstream_refused: { status: 502, source: 'upstream', title: 'The node refused the request unread' },
  upstream_reset: { status: 502, source: 'upstream', title: 'The node broke the connection' },
  upstream_protocol: { status: 502, source: 'upstream', title: 'The node answered something that is not HTTP' },
  no_nodes: { status: 503, source: 'upstream', title: 'No node can take the request' },
  unknown_service: { status: 503, source: 'downstream', title: 'The registry never heard of the service' },
  unresolved: { status: 503, source: 'internal', title: 'The service could not be resolved' },
  overloaded: { status: 503, source: 'internal', title: 'Too many requests wait for the node' },
  draining: { status: 503, source: 'internal', title: 'The sidecar is draining' },
  deadline: { status: 504, source: 'upstream', title: 'No answer in time' },
  version: { status: 505, source: 'downstream', title: 'The version of HTTP is not spoken here' },
  loop_detected: { status: 508, source: 'downstream', title: 'The request came back to a sidecar that had sent it' },
} as const satisfies Record<string, { status: number; source: ErrorSource; title: string }>

export type Reason = keyof typeof REASONS

/**
 * Answers of a peer sidecar that prove that its service never saw the request, so that it may be sent elsewhere
 * whatever its method.
 */
export const REFUSALS: ReadonlySet<string> = new Set<Reason>([
  'not_here',
  'upstream_connect',
  'upstream_refused',
  'overloaded',
  'draining',
])

/** A request that the sidecar itself ended. */
export class SidecarError extends Error {
  readonly reason: Reason
  readonly status: number
  readonly source: ErrorSource
  /** Whether a byte of the request may have reached the service. When not, sending it again is safe for every method. */
  readonly delivered: boolean

  /**
   * @param detail one sentence for the person who asks "why 503?"
   * @param options `delivered` defaults to false
   */
  constructor(reason: Reason, detail: string, options: { delivered?: boolean; cause?: unknown } = {}) {
    super(detail, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'SidecarError'
    this.reason = reason
    this.status = REASONS[reason].status
    this.source = REASONS[reason].source
    this.delivered = options.delivered ?? false
  }

  /** The reason, for those who switch on `code` as with every other error. */
  get code(): Reason {
    return this.reason
  }
}

/** Any failure as a {@link SidecarError}; what is none was a bug, and its text stays inside. */
export function asSidecarError(error: unknown): SidecarError {
  return error instanceof SidecarError
    ? error
    : new SidecarError('internal_error', 'see the log of the sidecar', { delivered: true, cause: error })
}
