/**
 * A view as the text of a file: one JSON document that a person can read, one node a line, with a checksum over all
 * that follows it.
 *
 * The checksum is over the text, which is far cheaper to check than the values in it. A person's editor may reflow the
 * file nevertheless: a text that does not match is written out anew from its values, and compared then.
 */

import { hash } from 'node:crypto'
import { decodeView, encodeView, type View } from '../protocol.ts'

/** Grows with each change that an older version could not read. Version 1 was never released. */
export const SCHEMA = 2

const OPENING = `{"schema":${SCHEMA},"checksum":"`
const MIDDLE = '","view":'
/** `sha256-` and 43 characters. */
const CHECKSUM_CHARS = 50
/** The first characters of a file, which no file of another content has. */
export const HEAD_CHARS = OPENING.length + CHECKSUM_CHARS + MIDDLE.length

/** The `origin` of a view that a peer said. */
const HEARSAY = 'peer'

export interface ViewText {
  readonly text: string
  readonly head: string
}

/** @param isHearsay whether a peer said it: a line more then, which stays until the registry has said it itself */
export function renderView(view: View, isHearsay = false): ViewText {
  const document = encodeView(view) as unknown as Record<string, unknown>
  const body = bodyOf(isHearsay ? { origin: HEARSAY, ...document } : document)
  const head = `${OPENING}${checksumOf(body)}${MIDDLE}`
  return { head, text: `${head}${body}}\n` }
}

/** Written by another version of this library, which may still need it. */
export class OtherSchemaError extends Error {
  readonly code = 'schema'
  constructor(schema: number) {
    super(`schema ${schema} is another version's; this one reads ${SCHEMA}`)
  }
}

/** Not what {@link renderView} wrote. */
export class CorruptFileError extends Error {
  readonly code = 'corrupt'
}

/** @throws OtherSchemaError, CorruptFileError */
export function parseView(text: string, namespace: string, service: string): { view: View; isHearsay: boolean } {
  let view: View
  let isHearsay: boolean
  try {
    const document = isWhole(text) ? bodyIn(text) : reflowed(text)
    view = decodeView(document)
    isHearsay = (document as { origin?: unknown }).origin === HEARSAY
  } catch (error) {
    if (error instanceof OtherSchemaError) throw error
    throw new CorruptFileError((error as Error).message)
  }
  if (view.namespace !== namespace || view.service !== service)
    throw new CorruptFileError(`it holds ${view.namespace}/${view.service}`)
  return { view, isHearsay }
}

function isWhole(text: string): boolean {
  if (!text.startsWith(OPENING) || !text.startsWith(MIDDLE, HEAD_CHARS - MIDDLE.length) || !text.endsWith('}\n'))
    return false
  return text.slice(OPENING.length, OPENING.length + CHECKSUM_CHARS) === checksumOf(text.slice(HEAD_CHARS, -2))
}

function bodyIn(text: string): unknown {
  return JSON.parse(text.slice(HEAD_CHARS, -2))
}

function reflowed(text: string): unknown {
  const document = JSON.parse(text) as { schema?: unknown; checksum?: unknown; view?: unknown } | null
  if (typeof document?.schema === 'number' && document.schema !== SCHEMA) throw new OtherSchemaError(document.schema)
  if (document?.schema !== SCHEMA) throw new Error('no schema')
  if (document.checksum !== checksumOf(bodyOf(Object(document.view) as Record<string, unknown>)))
    throw new Error('the checksum does not match')
  return document.view
}

/** The fields one a line, and the nodes one a line; the same text for the same values, whatever it was read from. */
function bodyOf(document: Record<string, unknown>): string {
  const fields = Object.entries(document).map(([name, value]) => {
    const isLong = Array.isArray(value) && value.length > 0
    const written = isLong ? `[\n${value.map((item) => JSON.stringify(item)).join(',\n')}\n]` : JSON.stringify(value)
    return `${JSON.stringify(name)}:${written}`
  })
  return `{\n${fields.join(',\n')}\n}`
}

function checksumOf(body: string): string {
  return `sha256-${hash('sha256', body, 'base64url')}`
}
