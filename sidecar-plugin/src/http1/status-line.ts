import { STATUS_CODES } from 'node:http'
import { isValue } from '../fields.ts'

/**
 * The first line of an answer, with its end.
 * @param statusText what a layer made up may be anything; one that cannot be written is replaced by the usual one
 * @throws RangeError for a status that none can be
 */
export function statusLine(status: number, statusText: string | undefined): string {
  if (!(Number.isInteger(status) && status >= 100 && status <= 599)) throw new RangeError(`a status of ${status}`)
  // The most common one without a look at its text.
  if (status === 200 && (statusText === 'OK' || statusText === undefined)) return 'HTTP/1.1 200 OK\r\n'
  const text = statusText !== undefined && isValue(statusText) ? statusText : (STATUS_CODES[status] ?? '')
  return `HTTP/1.1 ${status} ${text}\r\n`
}
