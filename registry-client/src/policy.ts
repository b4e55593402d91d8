/**
 * The governance rules of one service: schema and types. Of ours it imports only how durations and problems are written.
 *
 * A registry checks a policy before it stores it; a sidecar reads it once when it changes. Durations are milliseconds
 * and percentages fractions of one after reading; both are strings with units in the document.
 */

import * as z from 'zod'
import { parseDuration } from './clock.ts'
import { problemsOf } from './settings.ts'

/** The parts of a policy that this version's sidecars execute. The rest is checked, stored and carried. */
export interface Policy {
  /** Of the whole exchange, in milliseconds. */
  readonly timeoutMs: number | undefined
  readonly strategy: Strategy | undefined
  readonly retryAttempts: number | undefined
}

export const STRATEGIES = ['round_robin', 'random', 'least_request', 'peak_ewma', 'ring_hash', 'maglev'] as const
export type Strategy = (typeof STRATEGIES)[number]

/** Never zero: a timeout of nothing fails every call, and is written by those who mean that there is none. */
const duration = z
  .string()
  .regex(
    /^(?=.*[1-9])\d{1,9}(\.\d{1,6})?(ms|s|m|h|d)$/,
    'must be a duration above zero with its unit, such as 250ms or 15s',
  )
const percentage = z.union(
  [
    z.string().regex(/^(100(\.0+)?|\d{1,2}(\.\d{1,6})?)%$/, 'must be a percentage such as 20%'),
    z.number().min(0).max(100),
  ],
  'must be a percentage such as 20%',
)
const labels = z.record(z.string().max(63), z.string().max(256))
const headerName = z.string().regex(/^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$/, 'must be a header name')
const text = z.string().max(1024)
const stringMatch = z.union([
  z.strictObject({ exact: text }),
  z.strictObject({ prefix: text }),
  z.strictObject({ suffix: text }),
  z.strictObject({ present: z.boolean() }),
])
const target = z.strictObject({ labels, weight: z.int().min(0).max(1000).optional() })
const hashOn = z.union([
  z.strictObject({ header: headerName }),
  z.strictObject({ cookie: text }),
  z.strictObject({ query: text }),
  z.strictObject({ source: z.literal('address') }),
])
const status = z.int().min(200).max(599)
const methods = z
  .array(z.string().regex(/^[A-Z]{1,32}$/, 'must be a method in capitals'))
  .min(1)
  .max(32)

const schema = z.strictObject({
  timeout: duration.optional(),
  loadBalancing: z
    .strictObject({
      strategy: z.enum(STRATEGIES).optional(),
      hashOn: hashOn.optional(),
      zoneAware: z.boolean().optional(),
      slowStart: duration.optional(),
      panicThreshold: percentage.optional(),
    })
    .optional(),
  routes: z
    .array(
      z.strictObject({
        match: z
          .strictObject({
            host: stringMatch.optional(),
            path: z
              .union([
                z.strictObject({ exact: text }),
                z.strictObject({ prefix: text }),
                z.strictObject({ suffix: text }),
              ])
              .optional(),
            headers: z.record(headerName, stringMatch).optional(),
            query: z.record(text, stringMatch).optional(),
            methods: methods.optional(),
            percent: percentage.optional(),
          })
          .optional(),
        to: z.array(target).min(1).max(64).optional(),
        redirect: z
          .strictObject({ location: text, status: z.literal([301, 302, 303, 307, 308]).optional() })
          .optional(),
        rewrite: z.strictObject({ prefix: text.optional(), host: text.optional() }).optional(),
        headers: z
          .strictObject({ set: z.record(headerName, text).optional(), remove: z.array(headerName).optional() })
          .optional(),
        timeout: duration.optional(),
        mirror: z.strictObject({ labels, percent: percentage.optional() }).optional(),
        fault: z
          .strictObject({
            delay: z.strictObject({ fixed: duration, percent: percentage.optional() }).optional(),
            abort: z.strictObject({ status, percent: percentage.optional() }).optional(),
          })
          .optional(),
      }),
    )
    .max(256)
    .optional(),
  retry: z
    .strictObject({
      attempts: z.int().min(0).max(10).optional(),
      on: z.array(z.literal(['connect_failure', 'reset_before_request', '5xx', 502, 503, 504, 429])).optional(),
      perTryTimeout: duration.optional(),
      budget: z.strictObject({ ratio: percentage.optional(), minPerSecond: z.int().min(0).optional() }).optional(),
      backoff: z.strictObject({ base: duration.optional(), max: duration.optional() }).optional(),
      idempotentOnly: z.boolean().optional(),
    })
    .optional(),
  circuitBreaker: z
    .strictObject({
      maxConnections: z.int().min(1).optional(),
      maxPending: z.int().min(0).optional(),
      maxRequests: z.int().min(1).optional(),
      errorRate: z
        .strictObject({
          over: duration.optional(),
          threshold: percentage.optional(),
          minRequests: z.int().min(1).optional(),
          openFor: duration.optional(),
        })
        .optional(),
      shadow: z.boolean().optional(),
    })
    .optional(),
  outlierDetection: z
    .strictObject({
      consecutiveFailures: z.int().min(1).optional(),
      baseEjection: duration.optional(),
      maxEjected: percentage.optional(),
    })
    .optional(),
  rateLimit: z
    .array(
      z.strictObject({
        requests: z.int().min(1),
        per: duration,
        burst: z.int().min(1).optional(),
        key: hashOn.optional(),
        shadow: z.boolean().optional(),
      }),
    )
    .max(64)
    .optional(),
  concurrency: z
    .strictObject({
      max: z.int().min(1).optional(),
      adaptive: z.boolean().optional(),
      queue: z.int().min(0).optional(),
      maxWait: duration.optional(),
    })
    .optional(),
  fallback: z
    .array(
      z.strictObject({
        on: z
          .array(
            z.enum([
              'no_nodes',
              'circuit_open',
              'deadline',
              'rate_limited',
              'upstream_connect',
              'upstream_reset',
              '5xx',
            ]),
          )
          .min(1),
        respond: z
          .strictObject({
            status,
            headers: z.record(headerName, text).optional(),
            body: z.string().max(65_536).optional(),
          })
          .optional(),
        service: text.optional(),
      }),
    )
    .max(16)
    .optional(),
  authorization: z
    .array(
      z.strictObject({
        allow: z.strictObject({
          callers: z.array(text).optional(),
          methods: methods.optional(),
          paths: z.array(text).optional(),
        }),
        shadow: z.boolean().optional(),
      }),
    )
    .max(256)
    .optional(),
})

/** A policy that cannot be used: every problem with its path. */
export class PolicyError extends Error {
  readonly code = 'bad_policy'
  readonly errors: readonly { readonly path: string; readonly message: string }[]
  constructor(errors: readonly { path: string; message: string }[]) {
    super(errors.map((error) => `${error.path}: ${error.message}`).join('\n'))
    this.name = 'PolicyError'
    this.errors = errors
  }
}

/** The JSON Schema of a policy document, for editors. */
export const policySchema: object = z.toJSONSchema(schema, { target: 'draft-2020-12' })

/**
 * Checks a policy document as parsed from JSON or YAML, and reads what this version executes.
 * @throws PolicyError with every problem
 */
export function parsePolicy(document: unknown): Policy {
  const result = schema.safeParse(document, { reportInput: true })
  if (!result.success) throw new PolicyError(problemsOf(result.error, schema))
  const { timeout, loadBalancing, retry } = result.data
  return Object.freeze({
    timeoutMs: parseDuration(timeout),
    strategy: loadBalancing?.strategy,
    retryAttempts: retry?.attempts,
  })
}
