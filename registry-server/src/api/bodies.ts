/** How the bytes of a body become a document: what is stored is what was sent, or nothing is. */

import type { FastifyInstance, FastifyRequest } from 'fastify'
import { invalid } from './problems.ts'

const CHARSET = /;\s*charset\s*=\s*"?([^";\s]*)/i

/** @throws Refusal for a body that is compressed, or not in UTF-8 */
export function checkCoding({ headers }: FastifyRequest): void {
  const coding = headers['content-encoding']
  if (coding !== undefined && coding.toLowerCase() !== 'identity')
    throw invalid('header.content-encoding', 'must be identity: send the body as it is', 'unsupported_media_type')
  const [, charset] = CHARSET.exec(headers['content-type'] ?? '') ?? []
  if (charset !== undefined && !/^utf-?8$/i.test(charset))
    throw invalid('header.content-type', 'must have the charset utf-8, or none', 'unsupported_media_type')
}

/** JSON only; a body that is empty is none, as clients send the content type with every request. */
export function parseBodies(app: FastifyInstance): void {
  app.removeAllContentTypeParsers()
  const parse = app.getDefaultJsonParser('error', 'error')
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    try {
      const text = decodeBody(body as Buffer)
      if (text === '') done(null, undefined)
      else
        void parse(request, text, (error, value) => {
          if (error) done(reasonOf(text, error))
          else done(null, value)
        })
    } catch (error) {
      done(error as Error)
    }
  })
}

/** The parser also refuses names that change what JavaScript objects are, and calls that bad JSON as well. */
function reasonOf(text: string, error: Error): Error {
  let document: unknown
  try {
    document = JSON.parse(text)
  } catch {
    return error
  }
  const waiting: { value: unknown; path: string }[] = [{ value: document, path: '' }]
  for (let item = waiting.pop(); item !== undefined; item = waiting.pop()) {
    if (typeof item.value !== 'object' || item.value === null) continue
    for (const [key, value] of Object.entries(item.value)) {
      const path = `${item.path}.${key.slice(0, 64)}`
      if (key === '__proto__' || (key === 'prototype' && item.path.endsWith('.constructor')))
        return invalid(path.slice(1, 200), `${key} is not accepted as a name here`)
      waiting.push({ value, path })
    }
  }
  return error
}

/** @throws Refusal for bytes that are not UTF-8, of which a lenient reader makes other characters */
export function decodeBody(body: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(body)
  } catch {
    throw invalid('body', 'is not UTF-8')
  }
}
