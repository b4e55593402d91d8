/** Pure rules about the fields of a message, on flat lists `[name, value, …]` (RFC 9110 §7.6, RFC 9112). */

/** Fields of one connection, that no proxy passes on, whether or not a `Connection` names them. */
const HOP_BY_HOP: ReadonlySet<string> = new Set([
  'connection',
  'proxy-connection',
  'keep-alive',
  'te',
  // Trailers themselves stay behind, too: a field that announces them would announce nothing.
  'trailer',
  'transfer-encoding',
  'upgrade',
  'proxy-authenticate',
  'proxy-authorization',
])

export const CONTROL_PREFIX = 'x-holdfast-'

/** The first value of a field. `name` in lower case. */
export function valueOf(headers: readonly string[], name: string): string | undefined {
  for (let i = 0; i < headers.length; i += 2) if (headers[i]!.toLowerCase() === name) return headers[i + 1]
  return undefined
}

/** Every value of a field. `name` in lower case. */
export function valuesOf(headers: readonly string[], name: string): string[] {
  const values: string[] = []
  for (let i = 0; i < headers.length; i += 2) if (headers[i]!.toLowerCase() === name) values.push(headers[i + 1]!)
  return values
}

/** The fields that `Connection` lines name, in lower case. */
export function connectionNames(headers: readonly string[]): Set<string> {
  const names = new Set<string>()
  for (const value of valuesOf(headers, 'connection'))
    for (const name of value.split(',')) if (name.trim() !== '') names.add(name.trim().toLowerCase())
  return names
}

/**
 * What may be passed on: neither fields of the connection, nor those it names, nor our own `x-holdfast-*`, which only
 * a sidecar may say.
 */
export function endToEnd(headers: readonly string[]): string[] {
  const named = connectionNames(headers)
  const kept: string[] = []
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i]!.toLowerCase()
    if (HOP_BY_HOP.has(name) || named.has(name) || name.startsWith(CONTROL_PREFIX)) continue
    kept.push(headers[i]!, headers[i + 1]!)
  }
  return kept
}

/** The `x-holdfast-*` fields by what follows the prefix; of several the first counts. */
export function controlFields(headers: readonly string[]): Map<string, string> {
  const fields = new Map<string, string>()
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i]!.toLowerCase()
    if (!name.startsWith(CONTROL_PREFIX)) continue
    const key = name.slice(CONTROL_PREFIX.length)
    if (!fields.has(key)) fields.set(key, headers[i + 1]!)
  }
  return fields
}

/** Without the fields of one name. `name` in lower case. */
export function without(headers: readonly string[], name: string): string[] {
  const kept: string[] = []
  for (let i = 0; i < headers.length; i += 2)
    if (headers[i]!.toLowerCase() !== name) kept.push(headers[i]!, headers[i + 1]!)
  return kept
}

/**
 * Why a head is ambiguous or wrong; undefined when it is neither. What one reader of a chain frames differently from
 * the next is how requests are smuggled, so nothing here is repaired.
 */
export function faultOf(headers: readonly string[], httpVersion: string): string | undefined {
  const hosts = valuesOf(headers, 'host').length
  if (hosts > 1) return 'more than one Host'
  if (hosts === 0 && httpVersion !== '1.0') return 'no Host'
  const framing = framingFaultOf(headers)
  if (framing !== undefined) return framing
  if (httpVersion === '1.0' && valueOf(headers, 'transfer-encoding') !== undefined)
    return 'Transfer-Encoding in HTTP/1.0'
  const named = connectionNames(headers)
  if (named.has('host') || named.has('content-length')) return 'Connection names Host or Content-Length'
  return undefined
}

/** Why it is not clear where a message ends; undefined when it is. */
export function framingFaultOf(headers: readonly string[]): string | undefined {
  let lengths = 0
  let coded = false
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i]!.toLowerCase()
    if (name === 'content-length') lengths++
    else if (name === 'transfer-encoding') coded = true
  }
  if (lengths > 1) return 'more than one Content-Length'
  return coded && lengths > 0 ? 'Content-Length beside Transfer-Encoding' : undefined
}
