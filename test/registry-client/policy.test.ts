import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Ajv2020 } from 'ajv/dist/2020.js'
import { parse } from 'yaml'
import { parsePolicy, PolicyError, policySchema } from '@holdfast/registry-client/policy'

const EXAMPLE = `
timeout: 2s                      # of the whole exchange; default 15s
loadBalancing:
  strategy: peak_ewma            # round_robin | random | least_request | peak_ewma (default) | ring_hash | maglev
  hashOn: { header: x-user-id }  # or cookie, query, source address; for the two hash strategies
  zoneAware: true                # prefer the own zone while it has enough healthy nodes
  slowStart: 30s
  panicThreshold: 50%            # below it, ejected and unhealthy nodes are used again
routes:                          # first match wins; the last may match all
  - match: { path: { prefix: /v2/ }, headers: { x-beta: { exact: "1" } }, methods: [GET] }
    to: [ { labels: { version: v2 }, weight: 10 }, { labels: { version: v1 }, weight: 90 } ]
    rewrite: { prefix: / }
    timeout: 500ms
    mirror: { labels: { version: v3 }, percent: 5 }
    fault: { delay: { fixed: 200ms, percent: 1 }, abort: { status: 503, percent: 0.1 } }
retry:
  attempts: 2                    # beyond the first
  on: [connect_failure, reset_before_request, 502, 503, 504]
  perTryTimeout: 250ms
  budget: { ratio: 20%, minPerSecond: 10 }
  backoff: { base: 25ms, max: 250ms }   # full jitter
  idempotentOnly: true           # never lifted for bodies already sent
circuitBreaker:                  # per service and caller
  maxConnections: 1024
  maxPending: 1024
  maxRequests: 1024
  errorRate: { over: 10s, threshold: 50%, minRequests: 20, openFor: 5s }   # then half-open, one probe at a time
outlierDetection:                # per node
  consecutiveFailures: 5
  baseEjection: 30s
  maxEjected: 10%
rateLimit:                       # at the inbound sidecar, before the service
  - { requests: 100, per: 1s, burst: 50, key: { header: x-tenant } }
concurrency: { max: 200, queue: 50, maxWait: 100ms }   # flow control at the inbound sidecar
fallback:                        # degradation, when no node can answer
  - { on: [no_nodes, circuit_open, deadline], respond: { status: 200, headers: { content-type: application/json }, body: "[]" } }
  - { on: [5xx], service: stock-readonly }
authorization:
  - { allow: { callers: [shop, console], methods: [GET], paths: [/items/*] } }
`

function errorsOf(document: unknown): string[] {
  try {
    parsePolicy(document)
  } catch (error) {
    assert.ok(error instanceof PolicyError, String(error))
    assert.equal(error.code, 'bad_policy')
    return error.errors.map(({ path, message }) => `${path}: ${message}`)
  }
  return assert.fail('it was accepted')
}

test('a document with every section is read', () => {
  assert.deepEqual(parsePolicy(parse(EXAMPLE)), { timeoutMs: 2_000, strategy: 'peak_ewma', retryAttempts: 2 })
})

test('an empty document gives the defaults', () => {
  const policy = parsePolicy({})
  assert.deepEqual(policy, { timeoutMs: undefined, strategy: undefined, retryAttempts: undefined })
  assert.ok(Object.isFrozen(policy))
})

describe('a mistake is told with its path', () => {
  for (const [yaml, expected] of [
    ['timeout: 2', 'timeout: must be a string, got 2'],
    ['timeout: 2 s', 'timeout: must be a duration above zero with its unit, such as 250ms or 15s'],
    ['timeout: 0s', 'timeout: must be a duration above zero with its unit, such as 250ms or 15s'],
    ['timeuot: 2s', 'timeuot: unknown key; did you mean timeout?'],
    [
      'loadBalancing: { strategy: fastest }',
      'loadBalancing.strategy: must be one of round_robin, random, least_request, peak_ewma, ring_hash, maglev, got fastest',
    ],
    ['loadBalancing: { panicThreshold: 101% }', 'loadBalancing.panicThreshold: must be a percentage such as 20%'],
    ['loadBalancing: { zoneAwar: true }', 'loadBalancing.zoneAwar: unknown key; did you mean zoneAware?'],
    ['loadBalancing: { hashOn: { source: port } }', 'loadBalancing.hashOn.source: must be one of address, got port'],
    ['routes: [{ to: [] }]', /^routes\.0\.to: /],
    ['routes: [{ to: [{ labels: { v: 1 } }] }]', 'routes.0.to.0.labels.v: must be a string, got 1'],
    ['routes: [{}, { fault: { abort: { status: 99 } } }]', /^routes\.1\.fault\.abort\.status: /],
    ['routes: [{ match: { methods: [get] } }]', 'routes.0.match.methods.0: must be a method in capitals'],
    ['routes: [{ match: { headers: { "x y": { exact: a } } } }]', /^routes\.0\.match\.headers\.x y: /],
    ['retry: { attempts: 11 }', /^retry\.attempts: /],
    ['retry: { on: [501] }', /^retry\.on\.0: must be one of .*502, 503, 504/],
    ['retry: { budget: { ratio: lots } }', 'retry.budget.ratio: must be a percentage such as 20%'],
    ['circuitBreaker: { errorRate: { over: soon } }', /^circuitBreaker\.errorRate\.over: must be a duration/],
    ['outlierDetection: { consecutiveFailures: 0 }', /^outlierDetection\.consecutiveFailures: /],
    ['rateLimit: [{ requests: 5 }]', 'rateLimit.0.per: is required (string)'],
    ['rateLimit: { requests: 5, per: 1s }', 'rateLimit: must be an array, got {"requests":5,"per":"1s"}'],
    ['concurrency: { max: 1.5 }', /^concurrency\.max: /],
    ['fallback: [{ on: [] }]', /^fallback\.0\.on: /],
    ['fallback: [{ on: [6xx] }]', /^fallback\.0\.on\.0: must be one of no_nodes, .*, got 6xx/],
    ['authorization: [{ deny: {} }]', 'authorization.0.allow: is required (object)'],
    ['[]', '(document): must be an object, got []'],
    ['~', '(document): must be an object, got null'],
  ] as const)
    test(yaml, () => {
      const [first] = errorsOf(parse(yaml))
      if (typeof expected === 'string') assert.equal(first, expected)
      else assert.match(first!, expected)
    })
})

test('all mistakes are told at once', () => {
  const document: unknown = parse('timeout: 2\nretry: { attempts: many, colour: blue }\nconcurrency: { max: 0 }')
  assert.deepEqual(
    errorsOf(document).map((error) => error.split(': ')[0]),
    ['timeout', 'retry.attempts', 'retry.colour', 'concurrency.max'],
  )
})

test('nesting without end and aliases in circles are only mistakes', () => {
  const deep = JSON.parse(`${'['.repeat(200_000)}${']'.repeat(200_000)}`) as unknown
  assert.deepEqual(errorsOf({ timeout: deep }), ['timeout: must be a string, got an array'])
  assert.deepEqual(errorsOf(parse('timeout: &a { b: *a }')), ['timeout: must be a string, got an object'])
})

test('the JSON Schema for editors agrees about what is valid', () => {
  const validate = new Ajv2020({ strict: false }).compile(policySchema)
  assert.equal(validate(parse(EXAMPLE)), true, JSON.stringify(validate.errors))
  for (const bad of [
    { timeout: 2 },
    { timeuot: '2s' },
    { retry: { attempts: 11 } },
    { rateLimit: [{ requests: 5 }] },
  ]) {
    assert.equal(validate(bad), false, JSON.stringify(bad))
    assert.throws(() => parsePolicy(bad), PolicyError)
  }
})
