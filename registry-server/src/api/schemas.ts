/** The JSON Schemas of the HTTP API: they validate what comes in, and are the OpenAPI document. */

import { LIMITS, NODE_STATUSES, PATTERNS, PROTOCOLS, REMOVAL_CAUSES } from '@holdfast/registry-client/protocol'
import { CHANGE_KINDS } from '../store/store.ts'

type Schema = Readonly<Record<string, unknown>>

export const MAX_PAGE = 1_000
export const DEFAULT_PAGE = 100

const object = (properties: Record<string, Schema>, required: readonly string[], extra: Schema = {}): Schema => ({
  type: 'object',
  additionalProperties: false,
  required,
  properties,
  ...extra,
})
const text = (pattern: string, maxLength: number, extra: Schema = {}): Schema => ({
  type: 'string',
  minLength: 1,
  maxLength,
  pattern,
  ...extra,
})

const duration: Schema = {
  type: 'string',
  pattern: PATTERNS.duration,
  description: 'A number with its unit: 250ms, 15s, 10m.',
  examples: ['15s'],
}
const cursor: Schema = { type: 'string', pattern: PATTERNS.cursor, description: 'epoch:revision' }
const service = text(PATTERNS.service, LIMITS.nameChars, { examples: ['stock'] })
const namespace = text(PATTERNS.namespace, LIMITS.namespaceChars)
const nodeId = text(PATTERNS.nodeId, LIMITS.nodeIdChars, { examples: ['stock-1'] })
const leaseId = text('^[A-Za-z0-9_-]+$', 64)
const status: Schema = { type: 'string', enum: NODE_STATUSES }
const weight: Schema = { type: 'integer', minimum: 0, maximum: LIMITS.weight }
const incarnation: Schema = { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER }
const revision: Schema = { type: 'integer', minimum: 0 }
const time: Schema = { type: 'string', format: 'date-time' }
const labels: Schema = {
  type: 'object',
  maxProperties: LIMITS.labels,
  propertyNames: { type: 'string', maxLength: LIMITS.labelKeyChars, pattern: PATTERNS.labelKey },
  additionalProperties: { type: 'string', maxLength: LIMITS.labelValueChars, pattern: PATTERNS.text },
}

const nodeFields = {
  host: text(PATTERNS.host, LIMITS.hostChars, { description: 'An IP address or a DNS name.', examples: ['10.0.0.7'] }),
  port: { type: 'integer', minimum: 1, maximum: 65_535, examples: [8080] },
  protocol: { type: 'string', enum: PROTOCOLS, description: 'Default http.' },
  weight: { ...weight, description: 'Default 100; 0 takes no traffic.' },
  zone: text(PATTERNS.zone, LIMITS.namespaceChars),
  labels,
  status: { ...status, description: 'Default up.' },
  lease: { ...leaseId, description: 'The lease that the node lives under. Not together with ttl.' },
  ttl: { ...duration, description: 'Gives the node a lease of its own, renewed by sending this again: 2s to 1h.' },
  incarnation: {
    ...incarnation,
    description: 'Grows with each new life of the node. Default: the stored one, else 1.',
  },
}

const override = object({ status, weight }, [])

const serviceNodeFields = {
  id: nodeId,
  host: nodeFields.host,
  port: nodeFields.port,
  protocol: { type: 'string', enum: PROTOCOLS },
  weight,
  zone: nodeFields.zone,
  labels,
  status,
  incarnation,
  leased: { type: 'boolean' },
  registered: object({ status, weight }, ['status', 'weight']),
  override,
}
const serviceNodeRequired = [
  'id',
  'host',
  'port',
  'protocol',
  'weight',
  'labels',
  'status',
  'incarnation',
  'leased',
  'registered',
]
const serviceNode = object(serviceNodeFields, serviceNodeRequired)

const removal = object({ id: nodeId, cause: { type: 'string', enum: REMOVAL_CAUSES }, time, revision, incarnation }, [
  'id',
  'cause',
  'time',
  'revision',
])
const policyDocument: Schema = { type: 'object', additionalProperties: true }

const next: Schema = { type: 'string', description: 'The `page` that follows; absent on the last.' }

export const bodies = {
  lease: object(
    {
      ttl: { ...duration, description: '2s to 1h.' },
      owner: text(PATTERNS.text, LIMITS.ownerChars, { examples: ['sidecar on host-7'] }),
    },
    ['ttl', 'owner'],
  ),
  node: object(nodeFields, ['host', 'port']),
  nodes: {
    type: 'array',
    minItems: 1,
    maxItems: LIMITS.batchNodes,
    items: object({ service, id: nodeId, ...nodeFields }, ['service', 'id', 'host', 'port']),
  },
  override: object(
    {
      override: {
        type: ['object', 'null'],
        additionalProperties: false,
        properties: {
          status: { type: ['string', 'null'], enum: [...NODE_STATUSES, null] },
          weight: { type: ['integer', 'null'], minimum: 0, maximum: LIMITS.weight },
        },
        description: 'Fields left out stay; null clears.',
      },
    },
    ['override'],
  ),
  policy: policyDocument,
}

export const params = {
  lease: object({ lease: { type: 'string', minLength: 1, maxLength: 256 } }, ['lease']),
  service: object({ service }, ['service']),
  node: object({ service, id: nodeId }, ['service', 'id']),
}

const namespaceQuery = { namespace: { ...namespace, description: 'Default: default.' } }
const anyNamespace = text('^(\\*|[a-z0-9-]+)$', LIMITS.namespaceChars, {
  description: 'Default: default; * is all.',
})
const pageQuery = {
  limit: { type: 'integer', minimum: 1, maximum: MAX_PAGE, description: `Default ${DEFAULT_PAGE}.` },
  page: { type: 'string', maxLength: 1024, description: 'What `next` of the page before says.' },
}

export const queries = {
  none: object({}, []),
  namespace: object(namespaceQuery, []),
  removal: object({ ...namespaceQuery, incarnation, lease: leaseId }, []),
  services: object(
    {
      namespace: anyNamespace,
      prefix: { type: 'string', maxLength: LIMITS.nameChars, pattern: '^[a-z0-9.-]*$' },
      ...pageQuery,
    },
    [],
  ),
  overrides: object({ namespace: anyNamespace, ...pageQuery }, []),
  view: object(
    {
      ...namespaceQuery,
      status,
      zone: nodeFields.zone,
      after: { type: 'string', maxLength: 96, description: 'The revision, or the cursor, of the view that is known.' },
      wait: { ...duration, description: 'With `after`: waits so long for a newer view, at most 5m.' },
    },
    [],
    {
      patternProperties: { '^label\\.[A-Za-z0-9]': { type: 'string', maxLength: LIMITS.labelValueChars } },
    },
  ),
  history: object({ ...namespaceQuery, ...pageQuery }, []),
  page: object(pageQuery, []),
  watch: object(
    {
      service: {
        type: 'array',
        minItems: 1,
        maxItems: LIMITS.subscribeServices,
        items: text('^(\\*|[a-z0-9][a-z0-9.-]*)$', LIMITS.nameChars),
        description: 'May be repeated; * is all of the namespace.',
      },
      namespace: text('^(\\*|[a-z0-9-]+)$', LIMITS.namespaceChars, {
        description: 'Default: default; * is all, with service=*.',
      }),
      cursor: { type: 'string', maxLength: 96, description: 'What is known; the header Last-Event-ID wins.' },
    },
    [],
  ),
}

const viewFields = {
  namespace,
  service,
  cursor,
  nodes: { type: 'array', items: serviceNode },
  policy: { type: ['object', 'null'], additionalProperties: true },
  emptied: removal,
}

const counts = object({ up: revision, draining: revision, down: revision }, ['up', 'draining', 'down'])

export const answers = {
  lease: object({ id: leaseId, ttl: duration }, ['id', 'ttl']),
  node: serviceNode,
  registeredNode: object({ ...serviceNodeFields, lease: leaseId }, serviceNodeRequired),
  registeredNodes: object(
    {
      cursor,
      created: revision,
      nodes: {
        type: 'array',
        items: object({ service, id: nodeId, incarnation, lease: leaseId }, ['service', 'id', 'incarnation']),
      },
    },
    ['cursor', 'created', 'nodes'],
  ),
  view: object(viewFields, ['namespace', 'service', 'cursor', 'nodes', 'policy']),
  services: object(
    {
      services: {
        type: 'array',
        items: object({ namespace, service, cursor, nodes: counts, policy: { type: 'boolean' } }, [
          'namespace',
          'service',
          'cursor',
          'nodes',
          'policy',
        ]),
      },
      next,
    },
    ['services'],
  ),
  overrides: object(
    {
      overrides: {
        type: 'array',
        items: object(
          {
            namespace,
            service,
            id: nodeId,
            override,
            present: { type: 'boolean', description: 'Whether the node is there now.' },
          },
          ['namespace', 'service', 'id', 'override', 'present'],
        ),
      },
      next,
    },
    ['overrides'],
  ),
  policy: policyDocument,
  history: object(
    {
      entries: {
        type: 'array',
        items: object(
          {
            revision,
            time,
            cause: { type: 'string', enum: ['registered', ...REMOVAL_CAUSES] },
            by: { type: 'string' },
            kind: { type: 'string', enum: CHANGE_KINDS },
            id: nodeId,
          },
          ['revision', 'time', 'cause', 'by', 'kind'],
        ),
      },
      next,
    },
    ['entries'],
  ),
  subscribers: object(
    {
      subscribers: {
        type: 'array',
        items: object(
          {
            id: revision,
            remote: { type: 'string' },
            transport: { type: 'string', enum: ['sse', 'websocket'] },
            since: time,
            services: {
              type: 'array',
              description: 'The first hundred.',
              items: object({ namespace: { type: 'string' }, service: { type: 'string' } }, ['namespace', 'service']),
            },
            serviceCount: revision,
            sent: { ...revision, description: 'Everything up to this revision has been sent.' },
            acked: { type: ['integer', 'null'], description: 'Everything up to this revision has arrived.' },
            lag: { ...revision, description: 'Revisions from `acked` to the newest change of its services.' },
          },
          ['id', 'remote', 'transport', 'since', 'services', 'serviceCount', 'sent', 'acked', 'lag'],
        ),
      },
      next,
    },
    ['subscribers'],
  ),
  status: object(
    {
      version: { type: 'string' },
      epoch: { type: 'string' },
      revision,
      uptimeSeconds: { type: 'number' },
      services: revision,
      nodes: revision,
      overrides: { ...revision, description: 'Also of nodes that are not there; GET /v1/overrides lists them.' },
      leases: object(
        {
          active: revision,
          counted: { ...revision, description: 'Those whose time is counted by this replica.' },
          expired: revision,
          pauses: { ...revision, description: 'Times that all leases were given their full ttl again.' },
          held: { ...revision, description: 'Leases that ran out and are kept for a while.' },
          holds: {
            ...object({ partition: revision, silence: revision, store: revision }, ['partition', 'silence', 'store']),
            description: 'Decisions to keep leases, by reason.',
          },
        },
        ['active', 'counted', 'expired', 'pauses', 'held', 'holds'],
      ),
      subscribers: object(
        {
          sse: revision,
          websocket: revision,
          snapshotsSent: revision,
          resumes: {
            ...object({ nothing: revision, change: revision, snapshot: revision }, ['nothing', 'change', 'snapshot']),
            description: 'Services that clients came back to with a cursor, by what they were sent.',
          },
        },
        ['sse', 'websocket', 'snapshotsSent', 'resumes'],
      ),
      store: object(
        {
          kind: { type: 'string' },
          location: { type: 'string' },
          commits: revision,
          failures: revision,
          pending: { ...revision, description: 'Transactions that wait.' },
          ageSeconds: { type: 'number', description: 'For how long the state may have been overtaken.' },
          lost: { type: ['string', 'null'], description: 'Why nothing can be written now.' },
          setAside: {
            ...object(
              {
                count: revision,
                first: {
                  type: 'array',
                  items: object({ key: { type: 'string' }, reason: { type: 'string' } }, ['key', 'reason']),
                },
              },
              ['count', 'first'],
            ),
            description: 'Records that cannot be read, and are left out; the first hundred.',
          },
          replica: { type: ['string', 'null'], description: 'This one, where several share the store.' },
          replicas: {
            type: 'array',
            items: object({ id: { type: 'string' }, name: { type: 'string' }, since: { type: 'string' } }, [
              'id',
              'name',
              'since',
            ]),
          },
        },
        ['kind', 'location', 'commits', 'failures', 'pending', 'ageSeconds', 'lost', 'setAside', 'replica', 'replicas'],
      ),
      memoryBytes: object({ rss: revision, heapUsed: revision }, ['rss', 'heapUsed']),
    },
    [
      'version',
      'epoch',
      'revision',
      'uptimeSeconds',
      'services',
      'nodes',
      'overrides',
      'leases',
      'subscribers',
      'store',
      'memoryBytes',
    ],
  ),
  health: object({ status: { type: 'string' } }, ['status']),
}

const problem = object(
  {
    type: { type: 'string' },
    title: { type: 'string' },
    status: { type: 'integer' },
    code: { type: 'string' },
    detail: { type: 'string' },
    errors: {
      type: 'array',
      items: object({ path: { type: 'string' }, message: { type: 'string' } }, ['path', 'message']),
    },
    incarnation: { ...incarnation, description: 'With stale_incarnation: the one that the registry holds.' },
  },
  ['type', 'title', 'status', 'code'],
)

/** Of every answer, once the registry has loaded. */
const headers: Readonly<Record<string, Schema>> = {
  'holdfast-cursor': { ...cursor, description: 'The newest place of the store.' },
  'holdfast-age': { type: 'integer', minimum: 0, description: 'Seconds for which the state may have been overtaken.' },
}
const etag: Schema = { type: 'string', description: 'The cursor of what was read, in quotes; for `If-None-Match`.' }

/** An answer of another type than JSON. */
export const content = (description: string, type: string, schema: Schema): Schema => ({
  description,
  headers,
  content: { [type]: { schema } },
})
export const json = (description: string, schema: Schema): Schema => content(description, 'application/json', schema)
export const empty = (description: string): Schema => ({ description, headers, type: 'null' })
/** What a read answers: it, or that the client has it. */
export const reads = (description: string, schema: Schema): Readonly<Record<number, Schema>> => ({
  200: { ...json(description, schema), headers: { ...headers, etag } },
  304: { ...empty('Not modified'), headers: { ...headers, etag } },
})
const refusal = (description: string, more: Readonly<Record<string, Schema>>): Schema => ({
  ...content(description, 'application/problem+json', problem),
  headers: {
    ...headers,
    'retry-after': { type: 'integer', minimum: 0, description: 'Seconds to wait; with 429 and 503.' },
    ...more,
  },
})
export const problems: Schema = {
  '4xx': refusal('Refused', { allow: { type: 'string', description: 'The methods of this path; with 405.' } }),
  '5xx': refusal('Not possible now', {}),
}
