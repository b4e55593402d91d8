/**
 * Reads one field of a message: returns what the contract allows, or throws a {@link ProtocolError} with the field's path.
 */

import { inWords } from './patterns.ts'

/** A message that breaks the contract. `path` is where, in dots, from the message's root. */
export class ProtocolError extends Error {
  readonly code = 'bad_message'
  readonly path: string
  constructor(path: string, reason: string) {
    super(`${path}: ${reason}`)
    this.name = 'ProtocolError'
    this.path = path
  }
}

export function record(input: unknown, path: string): Record<string, unknown> {
  if (typeof input !== 'object' || input === null || Array.isArray(input))
    throw new ProtocolError(path, `must be an object, got ${show(input)}`)
  return input as Record<string, unknown>
}

export function list(input: unknown, path: string): readonly unknown[] {
  if (!Array.isArray(input)) throw new ProtocolError(path, `must be an array, got ${show(input)}`)
  return input
}

export function integer(input: unknown, min: number, max: number, path: string): number {
  if (typeof input !== 'number' || !Number.isInteger(input) || input < min || input > max)
    throw new ProtocolError(path, `must be an integer from ${min} to ${max}, got ${show(input)}`)
  return input
}

export function oneOf<const T extends readonly string[]>(input: unknown, allowed: T, path: string): T[number] {
  if (typeof input !== 'string' || !allowed.includes(input))
    throw new ProtocolError(path, `must be one of ${allowed.join(', ')}, got ${show(input)}`)
  return input
}

const compiled = new Map<string, RegExp>()

export function matching(input: unknown, pattern: string, maxChars: number, path: string): string {
  let expression = compiled.get(pattern)
  if (expression === undefined) compiled.set(pattern, (expression = new RegExp(pattern)))
  if (typeof input !== 'string' || input.length > maxChars || !expression.test(input))
    throw new ProtocolError(path, `must be ${inWords(pattern)}, at most ${maxChars} characters, got ${show(input)}`)
  return input
}

export function only(doc: Record<string, unknown>, allowed: readonly string[], path: string): void {
  for (const key of Object.keys(doc))
    if (!allowed.includes(key)) throw new ProtocolError(path + key, `unknown field; known: ${allowed.join(', ')}`)
}

/** A value in an error's text: short, on one line, whatever was sent; what nests is named, not walked. */
export function show(input: unknown): string {
  if (Array.isArray(input)) return 'an array'
  if (input === undefined) return 'nothing'
  if (typeof input === 'object' && input !== null) return 'an object'
  const text = typeof input === 'bigint' ? `${input}` : (JSON.stringify(input) ?? typeof input)
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}
