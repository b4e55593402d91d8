/** Every error as a problem document (RFC 9457): the one place where an error becomes a status. */

import { inWords, type Problem, type ProblemCode } from '@holdfast/registry-client/protocol'
import { PolicyError } from '@holdfast/registry-client/policy'
import { LeaseNotFound, TooManyLeases } from '../lease-rules.ts'
import { StaleIncarnation, TooManyOverrides } from '../registration.ts'
import { StoreUnavailable, TransactionTooLarge } from '../store/store.ts'

const TITLES: Record<ProblemCode, readonly [status: number, title: string]> = {
  invalid_request: [400, 'The request cannot be understood'],
  bad_cursor: [400, 'The cursor cannot be read'],
  not_found: [404, 'There is no such resource'],
  service_not_found: [404, 'The registry never heard of this service'],
  node_not_found: [404, 'The service has no such node'],
  policy_not_found: [404, 'The service has no policy'],
  lease_not_found: [404, 'The lease has ended'],
  stale_incarnation: [409, 'A newer instance holds this node'],
  method_not_allowed: [405, 'The resource does not know this method'],
  not_acceptable: [406, 'The resource has no such representation'],
  request_timeout: [408, 'The request took too long to arrive'],
  body_too_large: [413, 'The body is larger than accepted'],
  unsupported_media_type: [415, 'The body is of a kind that is not accepted here'],
  expectation_failed: [417, 'The expectation cannot be met'],
  header_too_large: [431, 'The head is larger than accepted'],
  too_many_requests: [429, 'A limit is reached'],
  store_unavailable: [503, 'The store cannot write now'],
  not_ready: [503, 'The registry is not ready'],
  internal_error: [500, 'The registry failed'],
}

/** What of a request a problem is about, where nobody said it more exactly. A limit or a failure is about no part of it. */
const PLACES: Partial<Record<ProblemCode, string>> = {
  invalid_request: 'request',
  bad_cursor: 'cursor',
  not_found: 'path',
  service_not_found: 'service',
  node_not_found: 'id',
  policy_not_found: 'service',
  lease_not_found: 'lease',
  stale_incarnation: 'incarnation',
  method_not_allowed: 'method',
  not_acceptable: 'header.accept',
  request_timeout: 'head',
  body_too_large: 'body',
  unsupported_media_type: 'header.content-type',
  expectation_failed: 'header.expect',
  header_too_large: 'head',
}

/** Of one answer. A client that waits a little spares a registry that is coming up. */
const RETRY_AFTER_S = '1'

type FieldErrors = NonNullable<Problem['errors']>

export interface RefusalDetails {
  readonly detail?: string
  readonly errors?: FieldErrors
  readonly incarnation?: number
  readonly headers?: Readonly<Record<string, string>>
}

/** A request that is refused at the edge. */
export class Refusal extends Error {
  readonly code: ProblemCode
  readonly details: RefusalDetails
  constructor(code: ProblemCode, details: RefusalDetails = {}) {
    super(details.detail ?? TITLES[code][1])
    this.name = 'Refusal'
    this.code = code
    this.details = details
  }
}

/** One offending field. */
export function invalid(path: string, message: string, code: ProblemCode = 'invalid_request'): Refusal {
  return new Refusal(code, { errors: [{ path, message }] })
}

export interface ProblemAnswer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly problem: Problem
}

export function problemAnswer({ code, details }: Refusal): ProblemAnswer {
  const [status, title] = TITLES[code]
  const { headers = {}, ...members } = details
  const place = PLACES[code]
  const errors =
    members.errors ?? (place === undefined ? undefined : [{ path: place, message: members.detail ?? title }])
  const retry: Record<string, string> = status === 503 || status === 429 ? { 'retry-after': RETRY_AFTER_S } : {}
  return {
    status,
    headers: { ...retry, ...headers },
    problem: { type: `urn:holdfast:problem:${code}`, title, status, code, ...members, ...(errors && { errors }) },
  }
}

/** What an ajv error looks like in Fastify. */
interface ValidationIssue {
  readonly keyword: string
  readonly instancePath: string
  readonly message?: string
  readonly params: Readonly<Record<string, unknown>>
}

interface FastifyLikeError extends Error {
  readonly code?: string
  readonly statusCode?: number
  readonly validation?: readonly ValidationIssue[]
  readonly validationContext?: string
}

/** Of a body with ten thousand faulty items nobody reads more. */
const MAX_ERRORS = 20

const BY_STATUS: Readonly<Record<number, ProblemCode>> = {
  400: 'invalid_request',
  404: 'not_found',
  405: 'method_not_allowed',
  406: 'not_acceptable',
  408: 'request_timeout',
  413: 'body_too_large',
  415: 'unsupported_media_type',
  417: 'expectation_failed',
  429: 'too_many_requests',
  431: 'header_too_large',
  503: 'not_ready',
}

const FASTIFY_PLACES: Readonly<Record<string, string>> = {
  FST_ERR_BAD_URL: 'path',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'header.content-length',
}

/** Any error as a refusal. What nobody expected is `internal_error`, without a word about its inside. */
export function refusalOf(error: unknown): Refusal {
  if (error instanceof Refusal) return error
  if (error instanceof StaleIncarnation)
    return new Refusal('stale_incarnation', { detail: error.message, incarnation: error.incarnation })
  if (
    error instanceof LeaseNotFound ||
    error instanceof TooManyLeases ||
    error instanceof TooManyOverrides ||
    error instanceof StoreUnavailable ||
    error instanceof TransactionTooLarge
  )
    return new Refusal(error.code, { detail: error.message })
  if (error instanceof PolicyError) {
    // The empty key is a key too, but no path that anyone could read.
    const errors = error.errors.slice(0, MAX_ERRORS).map(({ path, message }) => ({ path: path || 'body', message }))
    return new Refusal('invalid_request', { errors })
  }
  const { code, statusCode, validation, validationContext, message } = error as FastifyLikeError
  if (validation) return new Refusal('invalid_request', { errors: fieldErrors(validation, validationContext) })
  if (code === 'FST_ERR_CTP_EMPTY_JSON_BODY') return invalid('body', 'is required')
  if (code === 'FST_ERR_CTP_INVALID_JSON_BODY' || (error instanceof SyntaxError && statusCode === 400))
    return invalid('body', 'is not JSON')
  const known = statusCode === undefined ? undefined : BY_STATUS[statusCode]
  const place = FASTIFY_PLACES[code ?? '']
  if (known) return new Refusal(known, { detail: message, ...(place && { errors: [{ path: place, message }] }) })
  return new Refusal('internal_error')
}

function fieldErrors(issues: readonly ValidationIssue[], context = 'body'): FieldErrors {
  const errors: { path: string; message: string }[] = []
  for (const issue of issues) {
    // A branch of a choice adds nothing to the choice's own message.
    if (issue.keyword === 'if') continue
    const parts = issue.instancePath.split('/').slice(1).map(unescapePointer)
    const { additionalProperty, missingProperty, propertyName } = issue.params
    let message = issue.message ?? 'is not valid'
    if (typeof additionalProperty === 'string') {
      parts.push(additionalProperty)
      message = context === 'querystring' ? 'unknown parameter' : 'unknown field'
    } else if (typeof missingProperty === 'string') {
      parts.push(missingProperty)
      message = 'is required'
    } else if (typeof propertyName === 'string') parts.push(propertyName)
    else if (typeof issue.params.pattern === 'string') message = `must be ${inWords(issue.params.pattern)}`
    else if (Array.isArray(issue.params.allowedValues))
      message = `must be one of ${issue.params.allowedValues.join(', ')}`
    const path = parts.map((part) => part.slice(0, 128)).join('.')
    errors.push({ path: path || (context === 'querystring' ? 'query' : context), message })
    if (errors.length === MAX_ERRORS) break
  }
  return errors
}

function unescapePointer(part: string): string {
  return part.replaceAll('~1', '/').replaceAll('~0', '~')
}

/** A whole answer for a connection that no route serves: a head that cannot be read, a refused handshake. */
export function rawAnswer(refusal: Refusal, extra: Readonly<Record<string, string>> = {}): Buffer {
  const { status, headers, problem } = problemAnswer(refusal)
  const body = JSON.stringify(problem)
  const fields = {
    'content-type': 'application/problem+json; charset=utf-8',
    'content-length': String(Buffer.byteLength(body)),
    connection: 'close',
    ...headers,
    ...extra,
  }
  const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.from(`HTTP/1.1 ${status} ${problem.title}\r\n${lines.join('')}\r\n${body}`)
}
