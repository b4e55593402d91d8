/** The settings of the operator's command line. */

import * as z from 'zod'
import { commonSettings, duration, httpUrl, integer, leaf, listOf, toggle } from '../settings.ts'
import { isNamespace, isServiceName, LIMITS, NODE_STATUSES } from '../protocol.ts'
import { REHEARSED } from '../cache/rehearsal.ts'

export const cliSettings = z.strictObject({
  registry: leaf(listOf(httpUrl()), {
    flag: 'registry',
    value: 'URL[,URL]',
    doc: 'registries that hold the same state',
  }).prefault(['http://127.0.0.1:7400']),
  namespace: leaf(z.string().refine(isNamespace, { error: 'must be a namespace: lower-case letters, digits and -' }), {
    flag: 'namespace',
    value: 'NAME',
    doc: 'of the services named',
  }).default('default'),
  json: leaf(toggle(), {
    flag: 'json',
    doc: 'JSON for programs instead of tables; one line per event with watch',
  }).default(false),
  timeout: leaf(duration({ min: '1ms' }), {
    flag: 'timeout',
    value: 'DURATION',
    doc: 'for an answer of the registry',
  }).prefault('10s'),
  status: leaf(z.enum(NODE_STATUSES), {
    flag: 'status',
    value: 'STATUS',
    doc: `override: ${NODE_STATUSES.join(', ')}; nodes: only those`,
  }).optional(),
  weight: leaf(integer(0, LIMITS.weight), {
    flag: 'weight',
    value: '0..1000',
    doc: 'override: the weight; 0 takes no traffic',
  }).optional(),
  clear: leaf(toggle(), { flag: 'clear', doc: 'override: take back what an operator said' }).default(false),
  file: leaf(z.string(), {
    flag: 'file',
    value: 'FILE',
    doc: 'policy apply: YAML or JSON; - reads standard input',
  }).optional(),
  sidecar: leaf(listOf(httpUrl()), {
    flag: 'sidecar',
    value: 'URL[,URL]',
    doc: 'drill: admin APIs of sidecars',
  }).prefault(['http://127.0.0.1:7500']),
  service: leaf(listOf(z.string().refine(isServiceName, { error: 'must be a service name' })), {
    flag: 'service',
    value: 'NAME[,NAME]',
    doc: 'drill: these services (default: all that a sidecar knows)',
  }).optional(),
  level: leaf(z.enum(REHEARSED), {
    flag: 'level',
    value: 'LEVEL',
    doc: 'drill: from memory (as it runs), file (after a restart) or peer (on a new host), instead of from any of them',
  }).optional(),
  minUsable: leaf(integer(0, 1_000_000), {
    flag: 'min-usable',
    value: 'N',
    doc: 'drill: nodes that must take traffic; 0 lets a service pass that is known to have none',
  }).default(1),
  ...commonSettings,
})

export type CliSettings = z.output<typeof cliSettings>
