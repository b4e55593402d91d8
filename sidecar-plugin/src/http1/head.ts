/**
 * The heads of messages: one pass over one latin1 string, by RFC 9112 as a proxy must read it. Case, order and
 * duplicates of fields stay as they came.
 *
 * What is looked up for framing is noted on the way, by the length of a field's name: no name is lower-cased that
 * cannot be one of those.
 */

import { TOKEN, VALUE, type Fields } from '../fields.ts'
import { endToEnd, parseFields, type Seen } from './field-parser.ts'
import { Malformed } from './malformed.ts'

/** How the content of a message is delimited. */
export type Framing = 'none' | 'length' | 'chunked' | 'until_close'

export interface MessageHead {
  /** 0 for HTTP/1.0. A higher minor version than 1 is read as 1, as RFC 9110, section 2.5, has it. */
  readonly minor: number
  /**
   * The fields that concern both ends. `Content-Length` is among them, where it frames the message; so is `Trailer`,
   * where there may be trailers.
   */
  readonly fields: Fields
  /** `x-holdfast-*`, by what follows the prefix in lower case, flat. Only sidecars may say it. */
  readonly control: readonly string[]
  readonly framing: Framing
  /** With framing `length`; else 0. */
  readonly length: number
  /** Whether another message may follow on the connection, as far as this one says. */
  readonly persistent: boolean
  /** The protocols of `Upgrade`, where `Connection` names it. */
  readonly upgrade: string | undefined
}

export interface RequestHead extends MessageHead {
  readonly method: string
  readonly target: string
  /** Of its one `Host`; undefined only in HTTP/1.0. */
  readonly host: string | undefined
  readonly expectsContinue: boolean
  /** Whether `TE` says that trailers are wanted. */
  readonly takesTrailers: boolean
  /** The first `x-request-id`. */
  readonly requestId: string | undefined
}

export interface ResponseHead extends MessageHead {
  readonly status: number
  readonly statusText: string
  /** Seconds that a server says it keeps an idle connection, by `Keep-Alive: timeout=`. */
  readonly keepAliveSeconds: number | undefined
}

/** What `Host` may hold (RFC 3986, section 3.2.2), with a port. */
const HOST = new Uint8Array(256)
for (const char of "-._~!$&'()*+,;=%:[]0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
  HOST[char.charCodeAt(0)] = 1

const CR = 0x0d
const LF = 0x0a
const SPACE = 0x20

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
  if (!isTarget(method, target)) throw new Malformed('target', 'a target in none of the four forms')
  const seen = parseFields(text, at + 2, maxFields)

  if (seen.hosts > 1) throw new Malformed('host', 'more than one Host')
  if (seen.hosts === 0 && minor > 0) throw new Malformed('host', 'no Host')
  if (seen.host !== undefined && !isHost(seen.host)) throw new Malformed('host', 'a Host that names none')
  const framing = framingOf(seen, minor, 'none')
  const isExpecting = seen.expect !== undefined && minor > 0
  if (isExpecting && seen.expect!.toLowerCase() !== '100-continue')
    throw new Malformed('expectation', 'an expectation other than 100-continue')
  return {
    method,
    target,
    minor,
    fields: endToEnd(
      seen,
      framing === 'chunked',
      seen.expect !== undefined && (minor === 0 || framing === 'none') ? 'expect' : '',
    ),
    control: seen.control,
    framing,
    length: framing === 'length' ? seen.length : 0,
    persistent: isPersistent(seen, minor),
    upgrade: upgradeOf(seen, minor),
    host: seen.host,
    expectsContinue: isExpecting && framing !== 'none',
    takesTrailers: seen.takesTrailers,
    requestId: seen.requestId,
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
  const said = framingOf(seen, minor, 'until_close')
  const framing = isEmpty ? 'none' : said
  return {
    status,
    statusText,
    minor,
    // Where nothing may follow, a length would promise something (RFC 9110, section 8.6).
    fields: endToEnd(seen, said === 'chunked', status < 200 || status === 204 || isTunnel ? 'content-length' : ''),
    control: seen.control,
    framing,
    length: framing === 'length' ? seen.length : 0,
    persistent: isPersistent(seen, minor) && framing !== 'until_close',
    upgrade: upgradeOf(seen, minor),
    keepAliveSeconds: seen.keepAlive,
  }
}

/** Fields after the last chunk (RFC 9112, section 7.1.2). @throws Malformed */
export function parseTrailers(text: string, maxFields: number): Fields {
  const seen = parseFields(text, 0, maxFields)
  // Whoever merges them into the head would frame the message anew.
  if (seen.lengths > 0 || seen.codings > 0 || seen.hosts > 0)
    throw new Malformed('trailer', 'a trailer that belongs into the head')
  return endToEnd(seen, false, '')
}

/**
 * What can be said of a head of which only the beginning has arrived: who speaks another language is told at once, not
 * when the time for a head is over.
 * @param text latin1, without the empty line
 * @throws Malformed
 */
export function checkBeginning(text: string, of: 'request' | 'response'): void {
  const line = text.indexOf('\n')
  if (of === 'request' && text !== '\r' && !beginsWithMethod(text)) throw new Malformed('request_line', 'no method')
  if (line < 0) {
    if (of === 'response' && !'HTTP/'.startsWith(text.slice(0, 5))) throw new Malformed('status_line', 'no version')
    return
  }
  if (text.charCodeAt(line - 1) !== CR || /[^\r]\n/.test(text))
    throw new Malformed('line_end', 'a line that ends in LF alone')
  if (of === 'response') versionAt(text, 0, 'status_line')
  else {
    const version = text.lastIndexOf(' ', line)
    if (version < 0) throw new Malformed('request_line', 'no version')
    versionAt(text.slice(0, line - 1), version + 1, 'request_line')
  }
}

/** As far as it has arrived: TLS, for one, is none from its first byte on. */
function beginsWithMethod(text: string): boolean {
  let at = 0
  while (TOKEN[text.charCodeAt(at)] === 1) at++
  return at === text.length || (at > 0 && text.charCodeAt(at) === SPACE)
}

/** RFC 9112, section 6.3. */
function framingOf(seen: Seen, minor: number, otherwise: Framing): Framing {
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
    return 'chunked'
  }
  if (seen.lengths > 0) return seen.length > 0 ? 'length' : 'none'
  return otherwise
}

/** RFC 9112, section 3.2: the origin, absolute, authority and asterisk form; none has a fragment. */
export function isTarget(method: string, target: string): boolean {
  if (target.includes('#')) return false
  if (method === 'CONNECT') return /^(?:\[[0-9a-f:.]+\]|[^/?#@:[\]]+):\d{1,5}$/i.test(target)
  if (target.charCodeAt(0) === 0x2f) return true
  if (target === '*') return method === 'OPTIONS'
  return /^[a-z][a-z0-9+.-]*:\/\/[^/?#]/i.test(target)
}

/** Whether a `Host` may hold this. */
export function isHost(value: string): boolean {
  for (let at = 0; at < value.length; at++) if (HOST[value.charCodeAt(at)] !== 1) return false
  return true
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
