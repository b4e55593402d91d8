import { ProtocolError, record } from './reading.ts'

/** A policy as stored and carried: a JSON object whose meaning is `policy.ts`'s business. */
export type PolicyDocument = Readonly<Record<string, unknown>>

export function policyOf(input: unknown, path: string): PolicyDocument {
  return deepFreeze(record(input, path), path, MAX_DEPTH)
}

/** Far deeper than any policy; what a stranger nests deeper would exhaust the stack of whoever walks it. */
const MAX_DEPTH = 64

function deepFreeze<T extends object>(value: T, path: string, depth: number): T {
  if (depth === 0) throw new ProtocolError(path, `nested deeper than ${MAX_DEPTH}`)
  for (const item of Object.values(value))
    if (typeof item === 'object' && item !== null) deepFreeze(item as object, path, depth - 1)
  return Object.freeze(value)
}
