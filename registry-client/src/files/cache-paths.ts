/** What the files of a cache directory are called, and whose each of them is. */

import { randomBytes } from 'node:crypto'
import path from 'node:path'
import { TEMPORARY } from '../disk.ts'
import { isNamespace, isServiceName } from '../protocol.ts'
import { SCHEMA } from './view-text.ts'

export const PREVIOUS = '.previous'
export const CORRUPT = '.corrupt'
/** Where a version keeps its view while another version's file has the name that belongs to both. */
export const OWN_SCHEMA = `.schema-${SCHEMA}`
const OVERRIDE = '.override'

/**
 * The file of a service's view. A service may be called `a.override`, and its view must not land on the override file
 * of `a`: `%` is in no name.
 * @throws TypeError for names that cannot be names, which might lead out of the directory
 */
export function viewPath(directory: string, namespace: string, service: string): string {
  const name = service.endsWith(OVERRIDE) ? `${service.slice(0, -OVERRIDE.length)}%2Eoverride` : service
  return pathOf(directory, namespace, service, `${name}.json`)
}

/** The file by which an operator overrules the registry. */
export function overridePath(directory: string, namespace: string, service: string): string {
  return pathOf(directory, namespace, service, `${service}${OVERRIDE}.json`)
}

function pathOf(directory: string, namespace: string, service: string, name: string): string {
  if (!isNamespace(namespace)) throw new TypeError(`not a namespace: ${JSON.stringify(namespace).slice(0, 80)}`)
  if (!isServiceName(service)) throw new TypeError(`not a service name: ${JSON.stringify(service).slice(0, 80)}`)
  return path.join(directory, namespace, name)
}

/** A name for a file that is being written, beside the one that it is to become, unlike that of any other process. */
export function temporaryPath(file: string): string {
  const unique = `${process.pid}.${randomBytes(6).toString('hex')}`
  return path.join(path.dirname(file), `.${path.basename(file)}.${unique}${TEMPORARY}`)
}

export type FileKind = 'view' | 'previous' | 'corrupt' | 'override' | 'temporary'

export interface CacheFile {
  readonly kind: FileKind
  readonly service: string
}

const NAME = /^([a-z0-9][a-z0-9.-]*?)(%2Eoverride)?(\.override)?\.json(\.schema-\d{1,9})?(\.previous|\.corrupt)?$/

/** What a file of a namespace's directory is by its name; undefined for what is not ours. */
export function classify(name: string): CacheFile | undefined {
  if (name.startsWith('.') && name.endsWith(TEMPORARY)) return { kind: 'temporary', service: '' }
  const match = NAME.exec(name)
  if (match === null) return undefined
  const [, stem, escaped, override, , generation] = match
  const service = escaped ? `${stem}${OVERRIDE}` : stem!
  if (!isServiceName(service) || (override && (escaped || generation))) return undefined
  if (override) return { kind: 'override', service }
  return { kind: generation === PREVIOUS ? 'previous' : generation === CORRUPT ? 'corrupt' : 'view', service }
}

/** The service that a path below the cache directory belongs to, if it is a view's or an override's. */
export function serviceOf(
  directory: string,
  file: string,
): { namespace: string; service: string; kind: 'view' | 'override' } | undefined {
  const [namespace, name, ...rest] = path.relative(directory, file).split(path.sep)
  if (namespace === undefined || name === undefined || rest.length > 0 || !isNamespace(namespace)) return undefined
  const found = classify(name)
  if (found?.kind !== 'view' && found?.kind !== 'override') return undefined
  return { namespace, service: found.service, kind: found.kind }
}
