/** How a value that was given is repeated in an error's text. */

const MAX_CHARS = 60
/** More is not looked at: what is behind it is not shown. */
const MAX_READ_CHARS = 4_096
/** Whatever stands before an @ may be a password, in whatever was meant to be a URL. */
const CREDENTIALS = /[^\s/"']*@/g

/** Short, on one line, without what may be a password. Never throws, whatever it is. */
export function show(input: unknown): string {
  const text = typeof input === 'string' ? input : input === undefined ? 'nothing' : json(input)
  const line = text
    .slice(0, MAX_READ_CHARS)
    .replaceAll(CREDENTIALS, '***@')
    .replaceAll(/[\p{Cc}]/gu, '?')
  return line.length > MAX_CHARS ? `${line.slice(0, MAX_CHARS - 3)}...` : line
}

/** What cannot be written as JSON (aliases of YAML make circles, strangers nest without end) is named by its type. */
function json(input: unknown): string {
  try {
    return typeof input === 'number' ? String(input) : (JSON.stringify(input) ?? typeof input)
  } catch {
    return Array.isArray(input) ? 'an array' : typeof input === 'object' ? 'an object' : `a ${typeof input}`
  }
}
