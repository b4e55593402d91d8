/**
 * The fields of HTTP/2 (RFC 9113, section 8), to the flat lists of an exchange and back. nghttp2 has looked at the most
 * of them; what is looked at again here is what another wire would take for something else.
 */

import type { OutgoingHttpHeaders } from 'node:http2'
import { FieldError, Fields, TOKEN, VALUE } from '../fields.ts'
import { isHost, isTarget } from '../http1/head.ts'
import { Malformed } from '../http1/malformed.ts'
import { isGrpc } from './grpc.ts'

const CONTROL_PREFIX = 'x-holdfast-'

export interface FieldLimits {
  readonly headBytes: number
  readonly headFields: number
}

/** A request as it arrived, without its content. */
export interface RequestFields {
  readonly method: string
  readonly target: string
  readonly host: string | undefined
  /** `host` is first, as those have to see it who speak HTTP/1.1. */
  readonly fields: Fields
  /** `x-holdfast-*`, by what follows the prefix, flat. */
  readonly control: readonly string[]
  /** Of `content-length`. */
  readonly length: number | undefined
  readonly takesTrailers: boolean
  readonly requestId: string | undefined
  readonly upgrade: undefined
  readonly isGrpc: boolean
}

/** An answer as it arrived, without its content. */
export interface ResponseFields {
  readonly status: number
  readonly statusText: undefined
  readonly fields: Fields
  readonly control: readonly string[]
  readonly length: number | undefined
  readonly upgrade: undefined
}

/**
 * Reads a request's fields.
 * @param raw flat, as they came
 * @param hasContent whether anything may follow
 * @throws Malformed
 */
export function readRequest(raw: readonly string[], limits: FieldLimits, hasContent: boolean): RequestFields {
  checkSize(raw, limits)
  const pseudo = pseudoFields(raw)
  const method = pseudo.get(':method')
  const authority = pseudo.get(':authority')
  const isConnect = method === 'CONNECT'
  if (method === undefined || !isToken(method)) throw new Malformed('request_line', 'no :method')
  if (isConnect && (pseudo.has(':path') || pseudo.has(':scheme')))
    throw new Malformed('target', 'CONNECT with a path or a scheme')
  const target = isConnect ? (authority ?? '') : (pseudo.get(':path') ?? '')
  const scheme = pseudo.get(':scheme')?.toLowerCase()
  if (!isConnect && scheme !== 'http' && scheme !== 'https')
    throw new Malformed('target', 'a :scheme other than http and https')
  if (!isVisible(target) || !isTarget(method, target) || (!isConnect && !/^(?:\/|\*$)/.test(target)))
    throw new Malformed('target', 'a :path that is none')

  const fields: string[] = []
  const control: string[] = []
  let host = authority
  let cookieAt = -1
  let length: number | undefined
  let takesTrailers = false
  let requestId: string | undefined
  let contentType: string | undefined
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i]!
    const value = raw[i + 1]!
    if (name.startsWith(':')) continue
    check(name, value)
    switch (name) {
      case 'host':
        // Who decides by the one and who by the other must not come to different ends (section 8.3.1).
        if (host !== undefined && host.toLowerCase() !== value.toLowerCase())
          throw new Malformed('host', 'a host other than the :authority')
        host = value
        continue
      case 'te':
        if (value.trim().toLowerCase() !== 'trailers') throw new Malformed('connection', 'a te other than trailers')
        takesTrailers = true
        continue
      case 'cookie':
        // Sent in crumbs so that they are compressed well; one field for everybody else (section 8.2.3).
        if (cookieAt >= 0) {
          fields[cookieAt] += `; ${value}`
          continue
        }
        cookieAt = fields.length + 1
        break
      case 'content-length':
        if (length !== undefined || !/^\d{1,15}$/.test(value))
          throw new Malformed('content_length', 'a content-length that is none')
        length = Number(value)
        if ((!hasContent || isConnect) && length > 0)
          throw new Malformed('content_length', 'a content-length without content')
        break
      case 'expect':
        if (value.toLowerCase() !== '100-continue')
          throw new Malformed('expectation', 'an expectation other than 100-continue')
        if (!hasContent) continue
        break
      case 'trailer':
        if (!hasContent) continue
        break
      case 'proxy-authenticate':
      case 'proxy-authorization':
      case 'http2-settings':
        continue
      case 'x-request-id':
        requestId ??= value
        break
      case 'content-type':
        contentType ??= value
    }
    if (name.startsWith(CONTROL_PREFIX)) control.push(name.slice(CONTROL_PREFIX.length), value)
    else fields.push(name, value)
  }
  if (host === undefined) throw new Malformed('host', 'neither :authority nor host')
  if (!isHost(host)) throw new Malformed('host', 'an :authority that names no host')
  return {
    method,
    target,
    host,
    fields: Fields.of(['host', host, ...fields]),
    control,
    length,
    takesTrailers,
    requestId,
    upgrade: undefined,
    isGrpc: isGrpc(contentType),
  }
}

/**
 * Reads an answer's fields.
 * @throws Malformed
 */
export function readResponse(raw: readonly string[], limits: FieldLimits): ResponseFields {
  checkSize(raw, limits)
  const status = Number(pseudoFields(raw).get(':status'))
  if (!(status >= 100 && status <= 599) || status === 101) throw new Malformed('status_line', `a status of ${status}`)
  const fields: string[] = []
  const control: string[] = []
  let length: number | undefined
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i]!
    const value = raw[i + 1]!
    if (name.startsWith(':')) continue
    check(name, value)
    if (name === 'content-length') {
      if (length !== undefined || !/^\d{1,15}$/.test(value))
        throw new Malformed('content_length', 'a content-length that is none')
      length = Number(value)
      // Where nothing may follow, it would promise something.
      if (status < 200 || status === 204) continue
    }
    if (name.startsWith(CONTROL_PREFIX)) control.push(name.slice(CONTROL_PREFIX.length), value)
    else if (name !== 'proxy-authenticate' && name !== 'proxy-authorization') fields.push(name, value)
  }
  return { status, statusText: undefined, fields: Fields.of(fields), control, length, upgrade: undefined }
}

/** Trailers as they arrived, without what belongs into a head: whoever merged them would frame the message anew. */
export function readTrailers(raw: readonly string[]): Fields {
  const trailers: string[] = []
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i]!
    const value = raw[i + 1]!
    if (name.startsWith(':') || name.startsWith(CONTROL_PREFIX) || NOT_IN_TRAILERS.has(name)) continue
    if (isToken(name) && isValue(value)) trailers.push(name, value)
  }
  return Fields.of(trailers)
}

/** No fields, for {@link addFields}: without those that objects inherit, since `constructor` is a name like any other. */
export function noFields(): OutgoingHttpHeaders {
  return Object.create(null) as OutgoingHttpHeaders
}

/**
 * Fields as node:http2 takes them: names in lower case, those of one connection left out.
 * @param headers to add to; {@link noFields} to begin with
 * @param fields flat
 * @param except names in lower case that are left out, too
 * @throws FieldError
 */
export function addFields(
  headers: OutgoingHttpHeaders,
  fields: readonly string[],
  except: readonly string[] = [],
): OutgoingHttpHeaders {
  for (let i = 0; i < fields.length; i += 2) {
    const name = fields[i]!.toLowerCase()
    const value = fields[i + 1]!
    if (!isToken(name) || !isValue(value)) throw new FieldError(name)
    if (OF_CONNECTION.has(name) || except.includes(name)) continue
    const before = headers[name]
    if (before === undefined) headers[name] = value
    // Of these node:http2 writes one alone. A list in one line says the same (RFC 9110, section 5.3).
    else if (SINGLE.has(name)) headers[name] = `${String(before)}, ${value}`
    else if (Array.isArray(before)) before.push(value)
    else headers[name] = [String(before), value]
  }
  return headers
}

/** The first value of a field that {@link addFields} has added. */
export function firstOf(headers: OutgoingHttpHeaders, name: string): string | undefined {
  const value = headers[name]
  return value === undefined ? undefined : String(Array.isArray(value) ? value[0] : value)
}

/** Section 8.2.2. */
const OF_CONNECTION: ReadonlySet<string> = new Set([
  'connection',
  'http2-settings',
  'keep-alive',
  'proxy-connection',
  'te',
  'transfer-encoding',
  'upgrade',
])

const NOT_IN_TRAILERS: ReadonlySet<string> = new Set([...OF_CONNECTION, 'content-length', 'host', 'trailer'])

const SINGLE: ReadonlySet<string> = new Set(
  (
    'access-control-allow-credentials access-control-max-age access-control-request-method age authorization ' +
    'content-encoding content-language content-length content-location content-md5 content-range content-type date ' +
    'dnt etag expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified ' +
    'location max-forwards proxy-authorization range referer retry-after tk upgrade-insecure-requests user-agent ' +
    'x-content-type-options'
  ).split(' '),
)

/**
 * Section 10.5.1, with sizes as section 6.5.2 has them. The library holds only those to it who have acknowledged the
 * limit.
 */
function checkSize(raw: readonly string[], { headBytes, headFields }: FieldLimits): void {
  let fields = 0
  let bytes = 0
  for (let i = 0; i < raw.length; i += 2) {
    if (!raw[i]!.startsWith(':')) fields++
    bytes += raw[i]!.length + raw[i + 1]!.length + 32
  }
  if (fields > headFields) throw new Malformed('too_many_fields', `more than ${headFields} fields`)
  if (bytes > headBytes) throw new Malformed('head_too_large', `a head of more than ${headBytes} bytes`)
}

/** Section 8.3: each once, known, and before all others. */
function pseudoFields(raw: readonly string[]): ReadonlyMap<string, string> {
  const found = new Map<string, string>()
  let isBefore = true
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i]!
    if (!name.startsWith(':')) {
      isBefore = false
      continue
    }
    if (!isBefore || found.has(name)) throw new Malformed('field_name', `a ${name.slice(0, 100)} out of place`)
    found.set(name, raw[i + 1]!)
  }
  return found
}

function check(name: string, value: string): void {
  if (!isToken(name) || name !== name.toLowerCase())
    throw new Malformed('field_name', 'a field name with a character that it cannot hold')
  if (!isValue(value)) throw new Malformed('field_value', 'a control character in a value')
  if (OF_CONNECTION.has(name) && name !== 'te' && name !== 'http2-settings')
    throw new Malformed('connection', `${name} in HTTP/2`)
}

function isToken(text: string): boolean {
  if (text.length === 0) return false
  for (let at = 0; at < text.length; at++) if (TOKEN[text.charCodeAt(at)] !== 1) return false
  return true
}

function isValue(text: string): boolean {
  for (let at = 0; at < text.length; at++) if (VALUE[text.charCodeAt(at)] !== 1) return false
  return true
}

function isVisible(text: string): boolean {
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at)
    if (code <= 0x20 || code >= 0x7f) return false
  }
  return true
}
