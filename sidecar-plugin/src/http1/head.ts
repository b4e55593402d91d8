/**
 * The heads of messages: one pass over one latin1 string, by RFC 9112 as a proxy must read it. Case, order and
 * duplicates of fields stay as they came.
 *
 * What is looked up for framing is noted on the way, by the length of a field's name: no name is lower-cased that
 * cannot be one of those.
 */

import { Malformed } from './malformed.ts'

/** How the content of a message is delimited. */
export type Framing = 'none' | 'length' | 'chunked' | 'until_close'

export interface MessageHead {
  /** 0 for HTTP/1.0. A higher minor version than 1 is read as 1, as RFC 9110, section 2.5, has it. */
  readonly minor: number
  /** Flat, `[name, value, …]`. */
  readonly fields: string[]
  readonly framing: Framing
  /** With framing `length`; else 0. */
  readonly length: number
  /** Whether another message may follow on the connection, as far as this one says. */
  readonly persistent: boolean
  /** The protocols of `Upgrade`, where `Connection` names it. */
  readonly upgrade: string | undefined
  /** Lower-case names that `Connection` lists beside `close`, `keep-alive` and `upgrade`. */
  readonly connectionNames: readonly string[]
}

export interface RequestHead extends MessageHead {
  readonly method: string
  readonly target: string
  /** Of its one `Host`; undefined only in HTTP/1.0. */
  readonly host: string | undefined
  readonly expectsContinue: boolean
}

export interface ResponseHead extends MessageHead {
  readonly status: number
  readonly statusText: string
  /** Seconds that a server says it keeps an idle connection, by `Keep-Alive: timeout=`. */
  readonly keepAliveSeconds: number | undefined
}

/** tchar of RFC 9110, section 5.6.2. */
const TOKEN = new Uint8Array(256)
for (const char of "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
  TOKEN[char.charCodeAt(0)] = 1
/** What a field's value may hold: visible characters, obs-text, space and tab. */
const VALUE = new Uint8Array(256)
for (let code = 0x20; code < 256; code++) VALUE[code] = code === 0x7f ? 0 : 1
VALUE[0x09] = 1

const CR = 0x0d
const LF = 0x0a
const SPACE = 0x20
const TAB = 0x09
const COLON = 0x3a

/**
 * Reads a request's head.
 * @param text latin1, from the first character of the request line to the empty line, which is part of it
 * @param maxFields more are refused
 * @throws Malformed
 */
export function parseRequestHead(text: string, maxFields: number): RequestHead {
  let at = 0
  while (TOKEN[text.charCodeAt(at)] === 1) at++
  if (at === 0 || text.charCodeAt(at) !== SPACE) throw new Malformed('request_line', 'no method')
  const method = text.slice(0, at)
  const targetAt = ++at
  for (let code = text.charCodeAt(at); code > SPACE && code < 0x7f; code = text.charCodeAt(++at));
  if (text.charCodeAt(at) !== SPACE)
    throw new Malformed(isLineEnd(text, at) ? 'request_line' : 'target', 'a character that a target cannot hold')
  if (at === targetAt) throw new Malformed('request_line', 'no target')
  const target = text.slice(targetAt, at)
  const minor = versionAt(text, ++at, 'request_line')
  at += 8
  if (text.charCodeAt(at) !== CR || text.charCodeAt(at + 1) !== LF)
    throw new Malformed(text.charCodeAt(at) === LF ? 'line_end' : 'request_line', 'more than three parts')
  const seen = parseFields(text, at + 2, maxFields)

  if (seen.hosts > 1) throw new Malformed('host', 'more than one Host')
  if (seen.hosts === 0 && minor > 0) throw new Malformed('host', 'no Host')
  const { framing, length } = framingOf(seen, minor, 'none')
  const isExpecting = seen.expect !== undefined && minor > 0
  if (isExpecting && seen.expect!.toLowerCase() !== '100-continue')
    throw new Malformed('expectation', 'an expectation other than 100-continue')
  return {
    method,
    target,
    minor,
    fields: seen.fields,
    framing,
    length,
    persistent: isPersistent(seen, minor),
    upgrade: upgradeOf(seen, minor),
    connectionNames: seen.named,
    host: seen.host,
    expectsContinue: isExpecting,
  }
}

/**
 * Reads the head of an answer.
 * @param method of the request: the answer to `HEAD` has no content whatever its fields say
 * @throws Malformed
 */
export function parseResponseHead(text: string, maxFields: number, method: string): ResponseHead {
  const minor = versionAt(text, 0, 'status_line')
  let status = 0
  if (text.charCodeAt(8) !== SPACE) throw new Malformed('status_line', 'no status')
  for (let at = 9; at < 12; at++) {
    const digit = text.charCodeAt(at) - 0x30
    if (!(digit >= 0 && digit <= 9)) throw new Malformed('status_line', 'no status')
    status = status * 10 + digit
  }
  if (status < 100 || status > 599) throw new Malformed('status_line', `a status of ${status}`)
  let at = 12
  let statusText = ''
  // The space before an absent reason is often left out.
  if (text.charCodeAt(at) === SPACE) {
    const start = ++at
    while (VALUE[text.charCodeAt(at)] === 1) at++
    statusText = text.slice(start, at)
  }
  if (text.charCodeAt(at) !== CR || text.charCodeAt(at + 1) !== LF)
    throw new Malformed(text.charCodeAt(at) === LF ? 'line_end' : 'status_line', 'a reason that cannot be one')
  const seen = parseFields(text, at + 2, maxFields)

  const isTunnel = method === 'CONNECT' && status >= 200 && status < 300
  const isEmpty = status < 200 || status === 204 || status === 304 || method === 'HEAD' || isTunnel
  // Checked where they mean nothing, too: a server that contradicts itself is not to be trusted with what follows.
  const { framing, length } = framingOf(seen, minor, 'until_close')
  return {
    status,
    statusText,
    minor,
    fields: seen.fields,
    framing: isEmpty ? 'none' : framing,
    length: isEmpty ? 0 : length,
    persistent: isPersistent(seen, minor) && (isEmpty || framing !== 'until_close'),
    upgrade: upgradeOf(seen, minor),
    connectionNames: seen.named,
    keepAliveSeconds: seen.keepAlive,
  }
}

/** Fields after the last chunk (RFC 9112, section 7.1.2), as a flat list. @throws Malformed */
export function parseTrailers(text: string, maxFields: number): string[] {
  const { fields, lengths, codings, hosts } = parseFields(text, 0, maxFields)
  // Whoever merges them into the head would frame the message anew.
  if (lengths > 0 || codings > 0 || hosts > 0) throw new Malformed('trailer', 'a trailer that belongs into the head')
  return fields
}

interface Seen {
  readonly fields: string[]
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
  named: string[]
}

function parseFields(text: string, start: number, maxFields: number): Seen {
  const fields: string[] = []
  const seen: Seen = {
    fields,
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
    named: [],
  }
  let at = start
  for (;;) {
    const first = text.charCodeAt(at)
    if (first === CR) {
      if (text.charCodeAt(at + 1) !== LF || at + 2 !== text.length) throw new Malformed('line_end', 'a bare CR')
      return seen
    }
    if (fields.length >= maxFields * 2) throw new Malformed('too_many_fields', `more than ${maxFields} fields`)
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
    fields.push(name, value)
    note(seen, name, value)
    at += 2
  }
}

/** Only names of these lengths are looked at. */
function note(seen: Seen, name: string, value: string): void {
  switch (name.length) {
    case 4:
      if (isNamed(name, 'host')) {
        seen.hosts++
        seen.host = value
      }
      return
    case 6:
      if (isNamed(name, 'expect')) seen.expect = value
      return
    case 7:
      if (isNamed(name, 'upgrade')) seen.upgrades = seen.upgrades === undefined ? value : `${seen.upgrades}, ${value}`
      return
    case 10:
      if (isNamed(name, 'connection')) noteConnection(seen, value)
      else if (isNamed(name, 'keep-alive')) {
        const seconds = /(?:^|,)\s*timeout\s*=\s*(\d{1,6})\s*(?:,|$)/i.exec(value)?.[1]
        if (seconds !== undefined) seen.keepAlive = Number(seconds)
      }
      return
    case 14:
      if (isNamed(name, 'content-length')) {
        seen.lengths++
        seen.length = lengthOf(value)
      }
      return
    case 17:
      if (isNamed(name, 'transfer-encoding')) {
        seen.codings++
        seen.coding = seen.coding === '' ? value : `${seen.coding},${value}`
      }
  }
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
    else seen.named.push(token)
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

/** RFC 9112, section 6.3. */
function framingOf(seen: Seen, minor: number, otherwise: Framing): { framing: Framing; length: number } {
  if (seen.lengths > 1) throw new Malformed('content_length', 'more than one Content-Length')
  if (seen.codings > 0) {
    if (seen.lengths > 0) throw new Malformed('length_and_coding', 'Content-Length beside Transfer-Encoding')
    if (minor === 0) throw new Malformed('transfer_encoding', 'Transfer-Encoding in HTTP/1.0')
    const codings = seen.coding.split(',').map((coding) => coding.trim().toLowerCase())
    if (codings.at(-1) !== 'chunked')
      throw new Malformed('transfer_encoding', 'a Transfer-Encoding that does not end in chunked')
    if (codings.length > 1) {
      if (codings.slice(0, -1).some((coding) => coding === 'chunked' || coding === ''))
        throw new Malformed('transfer_encoding', 'a Transfer-Encoding that is none')
      throw new Malformed('unknown_coding', 'a Transfer-Encoding other than chunked')
    }
    return { framing: 'chunked', length: 0 }
  }
  if (seen.lengths > 0) return { framing: seen.length > 0 ? 'length' : 'none', length: seen.length }
  return { framing: otherwise, length: 0 }
}

function isPersistent({ close, keep }: Seen, minor: number): boolean {
  return !close && (minor > 0 || keep)
}

function upgradeOf({ upgrades, namesUpgrade }: Seen, minor: number): string | undefined {
  return namesUpgrade && minor > 0 ? upgrades : undefined
}

/** @returns the minor version of `HTTP/1.x` at that place */
function versionAt(text: string, at: number, kind: 'request_line' | 'status_line'): number {
  // The usual ones by comparison: a regular expression costs more than the rest of the line.
  if (text.startsWith('HTTP/1.1', at)) return 1
  if (text.startsWith('HTTP/1.0', at)) return 0
  const match = /^HTTP\/(\d)\.(\d)$/.exec(text.slice(at, at + 8))
  if (match === null) throw new Malformed(kind, 'no version')
  if (match[1] !== '1') throw new Malformed('version', `HTTP/${match[1]}.${match[2]}`)
  return 1
}

function isLineEnd(text: string, at: number): boolean {
  const code = text.charCodeAt(at)
  return code === CR || code === LF
}
