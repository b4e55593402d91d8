/** What a client of HTTP/2 sends before anything else (RFC 9113, section 3.4). */
export const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'latin1')

/**
 * Looks whether a connection goes on to begin as HTTP/2 does.
 * @param matched how much of the preface has arrived so far
 * @param length of what has arrived now
 * @returns how much of it has arrived with that, or -1 when this is something else
 */
export function matchPreface(matched: number, bytes: Uint8Array, length: number): number {
  let at = matched
  for (let i = 0; i < length && at < PREFACE.length; i++, at++) if (bytes[i] !== PREFACE[at]) return -1
  return at
}
