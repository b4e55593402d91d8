/**
 * What programs hand over, checked before anything is begun with it. Each error is a TypeError that names the option and
 * what was given.
 */

import { parseDuration } from './clock.ts'
import { decodeNode, isNamespace, isServiceName, ProtocolError } from './protocol.ts'
import type { NodeRegistration } from './node-registration.ts'
import { show } from './shown.ts'

/** @throws TypeError for what has no properties to read */
export function checkObject(input: unknown, name: string): void {
  if (typeof input !== 'object' || input === null) throw new TypeError(`${name}: must be an object, got ${show(input)}`)
}

export function checkList(input: unknown, most: number, name: string): void {
  if (!Array.isArray(input)) throw new TypeError(`${name}: must be a list, got ${show(input)}`)
  if (input.length > most) throw new TypeError(`${name}: at most ${most}, got ${input.length}`)
}

/** @throws TypeError that names the first method that is missing */
export function checkMethods<T extends object>(input: T, methods: readonly (keyof T & string)[], name: string): void {
  // A logger may be a function with methods.
  if (typeof input !== 'function') checkObject(input, name)
  for (const method of methods)
    if (typeof input[method] !== 'function')
      throw new TypeError(`${name}: its ${method} must be a function, got ${show(input[method])}`)
}

export function checkSignal(input: AbortSignal | undefined): void {
  if (input === undefined) return
  checkMethods(input, ['addEventListener', 'removeEventListener'], 'signal')
  if (typeof input.aborted !== 'boolean') throw new TypeError(`signal: must be an AbortSignal, got ${show(input)}`)
}

export function checkNamespace(input: unknown, name = 'namespace'): void {
  if (typeof input !== 'string' || !isNamespace(input))
    throw new TypeError(`${name}: not a namespace, of lower-case letters, digits and -: ${show(input)}`)
}

export function checkService(input: unknown): void {
  if (typeof input !== 'string' || !isServiceName(input)) throw new TypeError(`not a service name: ${show(input)}`)
}

/** @throws TypeError for what is neither a duration with its unit nor a number of milliseconds */
export function millisecondsOf(input: string | number | undefined, name: string): number | undefined {
  if (input === undefined) return undefined
  const ms = typeof input === 'number' ? input : parseDuration(input)
  if (ms === undefined || !(ms >= 0))
    throw new TypeError(`${name}: must be a duration with its unit, such as 250ms, 15s or 10m, got ${show(input)}`)
  return ms
}

/** @throws TypeError for what is no whole number of at least `min` */
export function checkInteger(input: unknown, min: number, name: string): void {
  if (!Number.isSafeInteger(input) || (input as number) < min)
    throw new TypeError(`${name}: must be an integer of at least ${min}, got ${show(input)}`)
}

const REGISTRATION = ['id', 'host', 'port', 'protocol', 'weight', 'zone', 'labels', 'status'] as const
/** For the fields that may be left out; the registry has defaults of its own. */
const COMPLETE = { id: 'x', host: '127.0.0.1', weight: 100, status: 'up' }

/**
 * A node as it is to be registered: a copy, of what is known of it and given.
 * @throws TypeError that names the field
 */
export function registrationOf(input: NodeRegistration): NodeRegistration {
  checkObject(input, 'node')
  const { service, namespace } = input
  checkService(service)
  if (namespace !== undefined) checkNamespace(namespace)
  const given = REGISTRATION.map((field) => [field, input[field]] as const).filter(([, value]) => value !== undefined)
  try {
    const node = decodeNode({ ...COMPLETE, ...Object.fromEntries(given) })
    const checked = Object.fromEntries(given.map(([field]) => [field, node[field]]))
    return { service, port: node.port, ...(namespace !== undefined && { namespace }), ...checked }
  } catch (error) {
    if (error instanceof ProtocolError) throw new TypeError(error.message, { cause: error })
    throw error
  }
}
