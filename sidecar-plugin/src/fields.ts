/**
 * The fields of a message, as text: most travel from one connection to the next without anybody looking at one, and then
 * cost no more than a copy of their lines.
 */

/** tchar of RFC 9110, section 5.6.2. */
export const TOKEN = new Uint8Array(256)
for (const char of "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
  TOKEN[char.charCodeAt(0)] = 1
/** What a field's value may hold: visible characters, obs-text, space and tab. */
export const VALUE = new Uint8Array(256)
for (let code = 0x20; code < 256; code++) VALUE[code] = code === 0x7f ? 0 : 1
VALUE[0x09] = 1

/** A field that would be read as something else than what was meant. */
export class FieldError extends Error {
  constructor(name: string) {
    super(`a field that cannot be written: ${JSON.stringify(name.slice(0, 100))}`)
    this.name = 'FieldError'
  }
}

/** Immutable; case, order and duplicates stay as they came. What it holds can be written as it is. */
export class Fields {
  static readonly NONE = new Fields('', undefined)

  /** `name: value` and the end of a line, for each. */
  readonly lines: string
  /** What `Content-Length` says, if it is there. */
  readonly contentLength: number | undefined
  #list: readonly string[] | undefined

  private constructor(lines: string, contentLength: number | undefined) {
    this.lines = lines
    this.contentLength = contentLength
  }

  /** @param lines that a parser has looked at: nothing is checked */
  static fromLines(lines: string, contentLength: number | undefined): Fields {
    return new Fields(lines, contentLength)
  }

  /**
   * @param list flat, `[name, value, …]`
   * @throws FieldError
   */
  static of(list: readonly string[]): Fields {
    let contentLength: number | undefined
    for (let i = 0; i < list.length; i += 2)
      if (list[i]!.toLowerCase() === 'content-length') contentLength = Number(list[i + 1])
    return new Fields(linesOf(list), contentLength)
  }

  /** Flat, `[name, value, …]`. */
  get list(): readonly string[] {
    return (this.#list ??= Object.freeze(parse(this.lines)))
  }

  /** The first value of a field. @param lower its name in lower case */
  get(lower: string): string | undefined {
    const { list } = this
    for (let i = 0; i < list.length; i += 2) if (list[i]!.toLowerCase() === lower) return list[i + 1]
    return undefined
  }

  /** @param lower a name in lower case */
  has(lower: string): boolean {
    let pattern = PATTERNS.get(lower)
    if (pattern === undefined) PATTERNS.set(lower, (pattern = new RegExp(`^${lower}:`, 'im')))
    return pattern.test(this.lines)
  }

  /** Every value of a field. @param lower its name in lower case */
  getAll(lower: string): string[] {
    const { list } = this
    return list.filter((_, i) => i % 2 === 1 && list[i - 1]!.toLowerCase() === lower)
  }

  /** With one more, at the end; not for `Content-Length`. @throws FieldError */
  with(name: string, value: string): Fields {
    return new Fields(this.lines + lineOf(name, value), this.contentLength)
  }

  /** Without those of some names. @param lower in lower case */
  without(lower: readonly string[]): Fields {
    const { list } = this
    const kept: string[] = []
    for (let i = 0; i < list.length; i += 2)
      if (!lower.includes(list[i]!.toLowerCase())) kept.push(list[i]!, list[i + 1]!)
    return kept.length === list.length ? this : Fields.of(kept)
  }
}

/** As many as the sidecar has names of its own. */
const PATTERNS = new Map<string, RegExp>()

/** @throws FieldError */
export function lineOf(name: string, value: string): string {
  if (name.length === 0 || !consistsOf(TOKEN, name) || !consistsOf(VALUE, value)) throw new FieldError(name)
  return `${name}: ${value}\r\n`
}

/** @param list flat, `[name, value, …]`. @throws FieldError */
export function linesOf(list: readonly string[]): string {
  let lines = ''
  for (let i = 0; i < list.length; i += 2) lines += lineOf(list[i]!, list[i + 1]!)
  return lines
}

export function isValue(text: string): boolean {
  return consistsOf(VALUE, text)
}

function consistsOf(table: Uint8Array, text: string): boolean {
  for (let at = 0; at < text.length; at++) if (table[text.charCodeAt(at)] !== 1) return false
  return true
}

function parse(lines: string): string[] {
  const list: string[] = []
  for (let at = 0; at < lines.length;) {
    const colon = lines.indexOf(':', at)
    const end = lines.indexOf('\r\n', colon)
    list.push(lines.slice(at, colon), lines.slice(colon + 2, end))
    at = end + 2
  }
  return list
}
