/** How a value that was given is repeated in an error's text. */

const MAX_CHARS = 60
const SCHEME = /^[a-z][a-z\d+.-]*:\/\//i

/** Short, on one line, without what may be a password. Never throws, whatever it is. */
export function show(input: unknown): string {
  const text = masked(typeof input === 'string' ? input : input === undefined ? 'nothing' : json(input))
  const line = text.slice(0, MAX_CHARS + 1).replaceAll(/[\p{Cc}]/gu, '?')
  return line.length > MAX_CHARS ? `${line.slice(0, MAX_CHARS - 3)}...` : line
}

/** Whatever stands before the last @ may be a password, in whatever was meant to be a URL: a password may hold anything. */
function masked(text: string): string {
  const at = text.lastIndexOf('@')
  if (at < 0) return text
  const scheme = SCHEME.exec(text)?.[0] ?? ''
  return `${scheme.length <= at ? scheme : ''}***${text.slice(at)}`
}

/** What cannot be written as JSON (aliases of YAML make circles, strangers nest without end) is named by its type. */
function json(input: unknown): string {
  try {
    return typeof input === 'number' ? String(input) : (JSON.stringify(input) ?? typeof input)
  } catch {
    return Array.isArray(input) ? 'an array' : typeof input === 'object' ? 'an object' : `a ${typeof input}`
  }
}
