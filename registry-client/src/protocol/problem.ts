/** The `code` of a problem document: stable, for programs. */
export type ProblemCode =
  | 'invalid_request'
  | 'bad_cursor'
  | 'not_found'
  | 'service_not_found'
  | 'node_not_found'
  | 'policy_not_found'
  | 'lease_not_found'
  | 'stale_incarnation'
  | 'method_not_allowed'
  | 'not_acceptable'
  | 'request_timeout'
  | 'body_too_large'
  | 'unsupported_media_type'
  | 'expectation_failed'
  | 'header_too_large'
  | 'too_many_requests'
  | 'store_unavailable'
  | 'not_ready'
  | 'internal_error'

/** RFC 9457, as every error of the registry is answered. */
export interface Problem {
  readonly type: string
  readonly title: string
  readonly status: number
  readonly code: ProblemCode
  readonly detail?: string
  /** Each offending field with its path. */
  readonly errors?: readonly { readonly path: string; readonly message: string }[]
  /** With `stale_incarnation`: the incarnation that the registry holds. */
  readonly incarnation?: number
}
