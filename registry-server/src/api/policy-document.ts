/** Policy documents as they arrive: bounded before anyone walks through them. */

import { parseDocument } from 'yaml'
import { LIMITS } from '@holdfast/registry-client/protocol'
import { invalid, Refusal } from './problems.ts'

/** Deeper than any policy, and far from where a recursive reader runs out of stack. */
const MAX_DEPTH = 32

/** @throws Refusal when it is not YAML that could have been JSON */
export function parseYamlBody(body: string): unknown {
  let value: unknown
  try {
    // At a lower level than this the parser says nothing of the documents that it leaves out.
    const document = parseDocument(body, { strict: true, uniqueKeys: true, logLevel: 'error' })
    const [error] = document.errors
    if (error?.code === 'MULTIPLE_DOCS')
      throw invalid('body', 'has several documents, separated by ---: a policy is one')
    if (error) throw error
    // Aliases are copied out, so a small body may stand for a huge document; what comes out is bounded too.
    value = document.toJS({ maxAliasCount: 100 })
    checkDocument(value)
  } catch (error) {
    if (error instanceof Refusal) throw error
    const [reason] = error instanceof Error ? error.message.split('\n') : []
    throw invalid('body', `is not YAML: ${(reason ?? '').slice(0, 200)}`)
  }
  const json = JSON.stringify(value)
  if (json === undefined) throw invalid('body', 'is required')
  if (json.length > LIMITS.bodyBytes) throw new Refusal('body_too_large', { detail: 'the document is over 1 MiB' })
  return JSON.parse(json)
}

/** @throws Refusal when a document is nested too deeply, or has a key that would change what objects are */
export function checkDocument(document: unknown): void {
  const waiting: { value: unknown; depth: number; path: string }[] = [{ value: document, depth: 0, path: '' }]
  for (let item = waiting.pop(); item !== undefined; item = waiting.pop()) {
    if (typeof item.value !== 'object' || item.value === null) continue
    if (item.depth > MAX_DEPTH) throw invalid(item.path.slice(1, 200), `is nested more than ${MAX_DEPTH} deep`)
    for (const [key, value] of Object.entries(item.value)) {
      if (key === '__proto__')
        throw invalid(`${item.path}.${key}`.slice(1, 200), `${key} is not accepted as a name here`)
      waiting.push({ value, depth: item.depth + 1, path: `${item.path}.${key.slice(0, 64)}` })
    }
  }
}
