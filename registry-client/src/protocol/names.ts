/** The names of services and of their namespaces. */

import { LIMITS } from './limits.ts'
import { PATTERNS } from './patterns.ts'
import { matching } from './reading.ts'

export const DEFAULT_NAMESPACE = 'default'

const SERVICE = new RegExp(PATTERNS.service)
const NAMESPACE = new RegExp(PATTERNS.namespace)

export function isServiceName(text: string): boolean {
  return text.length <= LIMITS.nameChars && SERVICE.test(text)
}

export function isNamespace(text: string): boolean {
  return text.length <= LIMITS.namespaceChars && NAMESPACE.test(text)
}

export function namespaceOf(input: unknown, path: string): string {
  return matching(input, PATTERNS.namespace, LIMITS.namespaceChars, path)
}

export function serviceOf(input: unknown, path: string): string {
  return matching(input, PATTERNS.service, LIMITS.nameChars, path)
}
