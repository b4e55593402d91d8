/** Heads as they are written. */

import { STATUS_CODES } from 'node:http'
import { TOKEN, VALUE } from './fields.ts'

/** A head that would be read as something else than what was meant. */
export class UnwritableError extends Error {
  constructor(detail: string) {
    super(detail)
    this.name = 'UnwritableError'
  }
}

/**
 * Lines of fields. Every value is looked at: some come from policies and layers, and one line end in them would be a
 * message of its own.
 * @param fields flat, `[name, value, …]`
 * @param except names in lower case whose fields are left out
 * @throws UnwritableError
 */
export function fieldLines(fields: readonly string[], except: readonly string[] = NONE): string {
  let text = ''
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i]!
    const value = fields[i + 1]!
    if (!isWritten(name, value)) throw new UnwritableError(`a field that cannot be passed on: ${name.slice(0, 100)}`)
    if (except.length > 0 && isOneOf(name, except)) continue
    text += `${name}: ${value}\r\n`
  }
  return text
}

/** @throws UnwritableError */
export function statusLine(status: number, statusText: string | undefined): string {
  // What a layer made up may be anything; the status says the same.
  const text = statusText !== undefined && isValue(statusText) ? statusText : (STATUS_CODES[status] ?? '')
  if (!(status >= 100 && status <= 599)) throw new UnwritableError(`a status of ${status}`)
  return `HTTP/1.1 ${status} ${text}\r\n`
}

/** The first value of a field. @param lower its name in lower case */
export function fieldOf(fields: readonly string[], lower: string): string | undefined {
  for (let i = 0; i < fields.length; i += 2) if (isNamed(fields[i]!, lower)) return fields[i + 1]
  return undefined
}

const NONE: readonly string[] = Object.freeze([])

function isOneOf(name: string, lower: readonly string[]): boolean {
  for (let i = 0; i < lower.length; i++) if (isNamed(name, lower[i]!)) return true
  return false
}

function isNamed(name: string, lower: string): boolean {
  return name.length === lower.length && (name === lower || name.toLowerCase() === lower)
}

function isWritten(name: string, value: string): boolean {
  if (name.length === 0) return false
  for (let at = 0; at < name.length; at++) if (TOKEN[name.charCodeAt(at)] !== 1) return false
  return isValue(value)
}

function isValue(value: string): boolean {
  for (let at = 0; at < value.length; at++) if (VALUE[value.charCodeAt(at)] !== 1) return false
  return true
}
