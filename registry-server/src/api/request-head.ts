/** What a request's head must be for its meaning to be beyond doubt, the same for requests and handshakes. */

import type { IncomingMessage } from 'node:http'
import { invalid } from './problems.ts'

/** @throws Refusal for a target that is no URL, however a router may have read it */
export function targetOf({ url = '/' }: IncomingMessage): URL {
  if (!URL.canParse(url, 'http://registry')) throw invalid('target', 'is not a path or URL')
  return new URL(url, 'http://registry')
}

/** @throws Refusal when there is no host field, or more than one: whoever stands in between may have read the other */
export function checkHost({ rawHeaders, headers, httpVersion }: IncomingMessage): void {
  if (headers.host === undefined) {
    if (httpVersion === '1.1') throw invalid('header.host', 'is required')
    return
  }
  let count = 0
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at]!
    if (name.length === 4 && name.toLowerCase() === 'host') count++
  }
  if (count > 1) throw invalid('header.host', 'must be given once')
}
