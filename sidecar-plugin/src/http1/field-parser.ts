/** The fields of a message, in one pass over one latin1 string (RFC 9112, section 5; RFC 9110, section 5). */

import { Fields, TOKEN, VALUE } from '../fields.ts'
import { Malformed } from './malformed.ts'

const CONTROL_PREFIX = 'x-holdfast-'
const NONE: readonly string[] = Object.freeze([])

/** More than a connection has options; each is looked for among all fields. */
const CONNECTION_OPTIONS_MAX = 64

const CR = 0x0d
const LF = 0x0a
const SPACE = 0x20
const TAB = 0x09
const COLON = 0x3a

/** What was found in the fields of one message. */
export interface Seen {
  /** All but those of the connection and of the sidecars. */
  lines: string
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
  const seen: Seen = {
    lines: '',
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
  /** Where the lines begin that are taken over as they are. */
  let from = start
  let at = start
  for (;;) {
    const first = text.charCodeAt(at)
    if (first === CR) {
      if (text.charCodeAt(at + 1) !== LF || at + 2 !== text.length) throw new Malformed('line_end', 'a bare CR')
      seen.lines += text.slice(from, at)
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
    const isKept = note(seen, text, nameAt, nameEnd, valueAt, valueEnd)
    at += 2
    // White space may be written in more than one way; what is passed on has one.
    if (isKept && valueAt === nameEnd + 2 && text.charCodeAt(nameEnd + 1) === SPACE && valueEnd === at - 2) continue
    seen.lines += text.slice(from, nameAt)
    from = at
    if (isKept) seen.lines += `${text.slice(nameAt, nameEnd)}: ${text.slice(valueAt, valueEnd)}\r\n`
  }
}

/**
 * Takes note of what decides about the message and its connection. Only names of these lengths are looked at.
 * @returns whether the field concerns both ends (RFC 9110, section 7.6.1)
 */
function note(seen: Seen, text: string, nameAt: number, nameEnd: number, valueAt: number, valueEnd: number): boolean {
  switch (nameEnd - nameAt) {
    case 2:
      if (!isAt(text, nameAt, 'te')) return true
      if (/(?:^|,)[ \t]*trailers[ \t]*(?:,|;|$)/i.test(text.slice(valueAt, valueEnd))) seen.takesTrailers = true
      return false
    case 4:
      if (isAt(text, nameAt, 'host')) {
        seen.hosts++
        seen.host = text.slice(valueAt, valueEnd)
      }
      return true
    case 6:
      if (isAt(text, nameAt, 'expect')) seen.expect = joined(seen.expect, text.slice(valueAt, valueEnd))
      return true
    case 7:
      if (isAt(text, nameAt, 'trailer')) seen.announcesTrailers = true
      if (!isAt(text, nameAt, 'upgrade')) return true
      seen.upgrades = joined(seen.upgrades, text.slice(valueAt, valueEnd))
      return false
    case 10:
      if (isAt(text, nameAt, 'connection')) {
        noteConnection(seen, text.slice(valueAt, valueEnd))
        return false
      }
      if (!isAt(text, nameAt, 'keep-alive')) return true
      noteKeepAlive(seen, text.slice(valueAt, valueEnd))
      return false
    case 12:
      if (isAt(text, nameAt, 'x-request-id')) seen.requestId ??= text.slice(valueAt, valueEnd)
      break
    case 14:
      if (isAt(text, nameAt, 'content-length')) {
        seen.lengths++
        seen.length = lengthOf(text.slice(valueAt, valueEnd))
      }
      break
    case 16:
      if (isAt(text, nameAt, 'proxy-connection')) return false
      break
    case 17:
      if (isAt(text, nameAt, 'transfer-encoding')) {
        const value = text.slice(valueAt, valueEnd)
        seen.codings++
        seen.coding = seen.codings === 1 ? value : `${seen.coding},${value}`
        return false
      }
      break
    case 18:
      if (isAt(text, nameAt, 'proxy-authenticate')) return false
      break
    case 19:
      if (isAt(text, nameAt, 'proxy-authorization')) return false
  }
  if (nameEnd - nameAt <= CONTROL_PREFIX.length || !isAt(text, nameAt, CONTROL_PREFIX)) return true
  const key = text.slice(nameAt + CONTROL_PREFIX.length, nameEnd).toLowerCase()
  const value = text.slice(valueAt, valueEnd)
  if (seen.control.length === 0) seen.control = [key, value]
  else (seen.control as string[]).push(key, value)
  return false
}

/** Whether a name stands there, whatever its case. Of the characters of a token only letters differ in that bit. */
function isAt(text: string, at: number, lower: string): boolean {
  for (let i = 0; i < lower.length; i++) if ((text.charCodeAt(at + i) | 0x20) !== lower.charCodeAt(i)) return false
  return true
}

function joined(before: string | undefined, value: string): string {
  return before === undefined ? value : `${before}, ${value}`
}

/** Without what the connection's own fields name, and what means nothing in this message. */
export function endToEnd(seen: Seen, hasTrailers: boolean, except: string): Fields {
  const length = seen.lengths > 0 ? seen.length : undefined
  const fields = seen.lines === '' ? Fields.NONE : Fields.fromLines(seen.lines, length)
  const dropped = [...(seen.named ?? NONE)]
  if (seen.announcesTrailers && !hasTrailers) dropped.push('trailer')
  if (except !== '') dropped.push(except)
  return dropped.length === 0 ? fields : fields.without(dropped)
}

function noteKeepAlive(seen: Seen, value: string): void {
  const seconds = /(?:^|,)\s*timeout\s*=\s*(\d{1,6})\s*(?:,|$)/i.exec(value)?.[1]
  if (seconds !== undefined) seen.keepAlive = Number(seconds)
}

function noteConnection(seen: Seen, value: string): void {
  // Most say one of these, and nothing else.
  if (value === 'keep-alive' || value === 'Keep-Alive') {
    seen.keep = true
    return
  }
  const parts = value.split(',', CONNECTION_OPTIONS_MAX + 1)
  if (parts.length + (seen.named?.length ?? 0) > CONNECTION_OPTIONS_MAX)
    throw new Malformed('connection', `Connection names more than ${CONNECTION_OPTIONS_MAX} options`)
  for (const part of parts) {
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
