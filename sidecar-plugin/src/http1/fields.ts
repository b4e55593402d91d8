/** The fields of a message, in one pass over one latin1 string (RFC 9112, section 5; RFC 9110, section 5). */

import { Malformed } from './malformed.ts'

/** tchar of RFC 9110, section 5.6.2. */
export const TOKEN = new Uint8Array(256)
for (const char of "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
  TOKEN[char.charCodeAt(0)] = 1
/** What a field's value may hold: visible characters, obs-text, space and tab. */
export const VALUE = new Uint8Array(256)
for (let code = 0x20; code < 256; code++) VALUE[code] = code === 0x7f ? 0 : 1
VALUE[0x09] = 1
const CONTROL_PREFIX = 'x-holdfast-'
const NONE: readonly string[] = Object.freeze([])

const CR = 0x0d
const LF = 0x0a
const SPACE = 0x20
const TAB = 0x09
const COLON = 0x3a

/** What was found in the fields of one message. */
export interface Seen {
  /** All but those of the connection and of the sidecars. */
  readonly fields: string[]
  control: string[] | readonly []
  hosts: number
  host: string | undefined
  lengths: number
  length: number
  codings: number
  coding: string
  expect: string | undefined
  close: boolean
  keep: boolean
  keepAlive: number | undefined
  upgrades: string | undefined
  namesUpgrade: boolean
  announcesTrailers: boolean
  takesTrailers: boolean
  requestId: string | undefined
  /** Lower-case names that `Connection` lists beside `close`, `keep-alive` and `upgrade`. */
  named: string[] | undefined
}

/**
 * Reads fields up to the empty line, which ends the text.
 * @throws Malformed
 */
export function parseFields(text: string, start: number, maxFields: number): Seen {
  const fields: string[] = []
  const seen: Seen = {
    fields,
    control: NONE as readonly [],
    hosts: 0,
    host: undefined,
    lengths: 0,
    length: 0,
    codings: 0,
    coding: '',
    expect: undefined,
    close: false,
    keep: false,
    keepAlive: undefined,
    upgrades: undefined,
    namesUpgrade: false,
    announcesTrailers: false,
    takesTrailers: false,
    requestId: undefined,
    named: undefined,
  }
  let count = 0
  let at = start
  for (;;) {
    const first = text.charCodeAt(at)
    if (first === CR) {
      if (text.charCodeAt(at + 1) !== LF || at + 2 !== text.length) throw new Malformed('line_end', 'a bare CR')
      return seen
    }
    if (++count > maxFields) throw new Malformed('too_many_fields', `more than ${maxFields} fields`)
    if (first === SPACE || first === TAB)
      throw new Malformed('folded_field', 'white space before a field, or one folded over two lines')
    if (first === LF) throw new Malformed('line_end', 'a line that ends in LF alone')
    const nameAt = at
    while (TOKEN[text.charCodeAt(at)] === 1) at++
    const nameEnd = at
    if (text.charCodeAt(at) !== COLON || nameEnd === nameAt)
      throw new Malformed('field_name', 'a field name with a character that it cannot hold, or without a colon')
    at++
    for (let code = text.charCodeAt(at); code === SPACE || code === TAB; code = text.charCodeAt(++at));
    const valueAt = at
    while (VALUE[text.charCodeAt(at)] === 1) at++
    if (text.charCodeAt(at) !== CR || text.charCodeAt(at + 1) !== LF) {
      const isLine = text.charCodeAt(at) === CR || text.charCodeAt(at) === LF
      throw isLine
        ? new Malformed('line_end', 'a bare CR or LF')
        : new Malformed('field_value', 'a control character in a value')
    }
    let valueEnd = at
    for (; valueEnd > valueAt; valueEnd--) {
      const code = text.charCodeAt(valueEnd - 1)
      if (code !== SPACE && code !== TAB) break
    }
    const name = text.slice(nameAt, nameEnd)
    const value = text.slice(valueAt, valueEnd)
    if (note(seen, name, value)) fields.push(name, value)
    at += 2
  }
}

/**
 * Takes note of what decides about the message and its connection. Only names of these lengths are looked at.
 * @returns whether the field concerns both ends (RFC 9110, section 7.6.1)
 */
function note(seen: Seen, name: string, value: string): boolean {
  switch (name.length) {
    case 2:
      if (!isNamed(name, 'te')) return true
      if (/(?:^|,)[ \t]*trailers[ \t]*(?:,|;|$)/i.test(value)) seen.takesTrailers = true
      return false
    case 4:
      if (isNamed(name, 'host')) {
        seen.hosts++
        seen.host = value
      }
      return true
    case 6:
      if (isNamed(name, 'expect')) seen.expect = seen.expect === undefined ? value : `${seen.expect}, ${value}`
      return true
    case 7:
      if (isNamed(name, 'trailer')) seen.announcesTrailers = true
      if (!isNamed(name, 'upgrade')) return true
      seen.upgrades = seen.upgrades === undefined ? value : `${seen.upgrades}, ${value}`
      return false
    case 10:
      if (isNamed(name, 'connection')) {
        noteConnection(seen, value)
        return false
      }
      if (!isNamed(name, 'keep-alive')) break
      noteKeepAlive(seen, value)
      return false
    case 12:
      if (isNamed(name, 'x-request-id')) seen.requestId ??= value
      break
    case 14:
      if (isNamed(name, 'content-length')) {
        seen.lengths++
        seen.length = lengthOf(value)
      }
      break
    case 16:
      if (isNamed(name, 'proxy-connection')) return false
      break
    case 17:
      if (isNamed(name, 'transfer-encoding')) {
        seen.codings++
        seen.coding = seen.codings === 1 ? value : `${seen.coding},${value}`
        return false
      }
      break
    case 18:
      if (isNamed(name, 'proxy-authenticate')) return false
      break
    case 19:
      if (isNamed(name, 'proxy-authorization')) return false
  }
  if (name.length <= CONTROL_PREFIX.length || (name.charCodeAt(0) | 0x20) !== 0x78) return true
  const lower = name.toLowerCase()
  if (!lower.startsWith(CONTROL_PREFIX)) return true
  const { control } = seen
  const key = lower.slice(CONTROL_PREFIX.length)
  if (control.length === 0) seen.control = [key, value]
  else (control as string[]).push(key, value)
  return false
}

/** Without what the connection's own fields name, and what means nothing in this message. */
export function endToEnd(
  { fields, named, announcesTrailers }: Seen,
  hasTrailers: boolean,
  except: string,
): readonly string[] {
  const dropsTrailer = announcesTrailers && !hasTrailers
  if (named === undefined && !dropsTrailer && except === '') return fields
  const kept: string[] = []
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i]!.toLowerCase()
    if (named?.includes(name) || name === except || (dropsTrailer && name === 'trailer')) continue
    kept.push(fields[i]!, fields[i + 1]!)
  }
  return kept
}

function noteKeepAlive(seen: Seen, value: string): void {
  const seconds = /(?:^|,)\s*timeout\s*=\s*(\d{1,6})\s*(?:,|$)/i.exec(value)?.[1]
  if (seconds !== undefined) seen.keepAlive = Number(seconds)
}

function isNamed(name: string, lower: string): boolean {
  return name === lower || name.toLowerCase() === lower
}

function noteConnection(seen: Seen, value: string): void {
  // Most say one of these, and nothing else.
  if (value === 'keep-alive' || value === 'Keep-Alive') {
    seen.keep = true
    return
  }
  for (const part of value.split(',')) {
    const token = part.trim().toLowerCase()
    if (token === '') continue
    if (token === 'close') seen.close = true
    else if (token === 'keep-alive') seen.keep = true
    else if (token === 'upgrade') seen.namesUpgrade = true
    // Whoever drops them on the way frames or routes the message anew.
    else if (token === 'host' || token === 'content-length' || token === 'transfer-encoding')
      throw new Malformed('connection', `Connection names ${token}`)
    else (seen.named ??= []).push(token)
  }
}

/** Digits alone (RFC 9110, section 8.6): no sign, no list, no number that a double cannot hold. */
function lengthOf(value: string): number {
  const { length } = value
  if (length === 0 || length > 15) throw new Malformed('content_length', 'a Content-Length that is no length')
  let number = 0
  for (let at = 0; at < length; at++) {
    const digit = value.charCodeAt(at) - 0x30
    if (!(digit >= 0 && digit <= 9)) throw new Malformed('content_length', 'a Content-Length that is no length')
    number = number * 10 + digit
  }
  return number
}
