/** What may be said of a local service: in the configuration, to the admin API, and in the file of registrations. */

import { isServiceName, LIMITS, PATTERNS, PROTOCOLS, type Protocol } from '@holdfast/registry-client/protocol'
import { formatDuration } from '@holdfast/registry-client/clock'
import { duration } from '@holdfast/registry-client/settings'
import * as z from 'zod'
import type { HealthCheck } from './health-check.ts'

/** A local service as it shall be registered. */
export interface LocalSpec {
  readonly service: string
  /** Where the service really listens, on this host. */
  readonly port: number
  readonly id?: string
  readonly protocol?: Protocol
  /** Of `tcp`: where the sidecar listens for it; undefined for the port it had before, or a free one. */
  readonly inboundPort?: number
  readonly weight?: number
  readonly zone?: string
  readonly labels?: Readonly<Record<string, string>>
  readonly healthCheck: HealthCheck
}

const healthCheck = z.strictObject({
  type: z.enum(['http', 'tcp', 'none']).default('tcp'),
  path: z
    .string()
    .max(2048)
    .regex(/^\/[\x21-\x7e]*$/, 'must be a path that begins with /')
    .default('/'),
  // Shorter loads the service for nothing; longer keeps callers going to one that has stopped.
  interval: duration({ min: '10ms', max: '1h' }).prefault('2s'),
  timeout: duration({ min: '1ms', max: '1h' }).prefault('1s'),
  // One failure is a hiccup; with three and an interval of two seconds a stopped service is out after six.
  unhealthyAfter: z.int().min(1).max(100).default(3),
  healthyAfter: z.int().min(1).max(100).default(1),
})

const text = (pattern: string, maxChars: number, what: string) =>
  z.string().max(maxChars, `must have at most ${maxChars} characters`).regex(new RegExp(pattern), `must be ${what}`)

const port = () => z.int('must be a port, 1..65535').min(1, 'must be 1..65535').max(65_535, 'must be 1..65535')

const body = {
  port: port(),
  id: text(PATTERNS.nodeId, LIMITS.nodeIdChars, 'a node id: letters, digits, . _ : -').optional(),
  protocol: z.enum(PROTOCOLS).optional(),
  inboundPort: port().optional(),
  weight: z.int().min(0).max(LIMITS.weight).optional(),
  zone: text(PATTERNS.zone, LIMITS.namespaceChars, 'lower-case letters, digits and -').optional(),
  labels: z
    .record(
      text(PATTERNS.labelKey, LIMITS.labelKeyChars, 'a label key'),
      text(PATTERNS.text, LIMITS.labelValueChars, 'without control characters'),
    )
    .refine((labels) => Object.keys(labels).length <= LIMITS.labels, `must have at most ${LIMITS.labels} entries`)
    .optional(),
  healthCheck: healthCheck.prefault({}),
}

function ownPortOfTcp({ value, issues }: z.core.ParsePayload<{ protocol?: Protocol; inboundPort?: number }>): void {
  if (value.inboundPort !== undefined && value.protocol !== 'tcp')
    issues.push({
      code: 'custom',
      input: value.inboundPort,
      path: ['inboundPort'],
      message: 'is of protocol tcp only: the others share the inbound port of the sidecar',
    })
}

/** The body of `PUT /v1/registrations/{service}`. */
export const localBodySchema = z.strictObject(body).check(ownPortOfTcp)

export const serviceName = z
  .string()
  .refine(isServiceName, 'must be a service name: lower-case letters, digits, . and -, at most 128')

/** An entry of `services` in the configuration and in the file of registrations. */
export const localSpecSchema = z.strictObject({ ...body, service: serviceName }).check(ownPortOfTcp)

/** What the schema has read, with units in names. */
export function localSpecOf(read: z.output<typeof localSpecSchema>): LocalSpec {
  const { interval, timeout, ...check } = read.healthCheck
  return { ...read, healthCheck: { ...check, intervalMs: interval, timeoutMs: timeout } }
}

/** The written form of a spec: what {@link localSpecSchema} reads. */
export function localSpecDocument(spec: LocalSpec): object {
  const { intervalMs, timeoutMs, ...check } = spec.healthCheck
  return {
    ...spec,
    healthCheck: { ...check, interval: formatDuration(intervalMs), timeout: formatDuration(timeoutMs) },
  }
}
