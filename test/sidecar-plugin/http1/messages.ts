/** The codec alone, without sockets: messages out of bytes that arrive in pieces. */

import { ContentReader } from '../../../sidecar-plugin/src/http1/content-reader.ts'
import { HeadReader } from '../../../sidecar-plugin/src/http1/head-reader.ts'
import {
  parseRequestHead,
  parseResponseHead,
  type RequestHead,
  type ResponseHead,
} from '../../../sidecar-plugin/src/http1/head.ts'
import { Malformed, type MalformedKind } from '../../../sidecar-plugin/src/http1/malformed.ts'

export const MAX_HEAD_BYTES = 8_192
export const MAX_FIELDS = 50

export interface Message<Head> {
  readonly head: Head
  content: string
  trailers: readonly string[]
  /** Whether its end was seen. */
  whole: boolean
}

export interface Reading<Head> {
  readonly messages: Message<Head>[]
  /** Why nothing after them was read. */
  fault: MalformedKind | undefined
  /** Bytes of text that a head without an end holds. */
  held: number
}

export function readRequests(pieces: readonly (string | Buffer)[]): Reading<RequestHead> {
  return read(pieces, new HeadReader('request', MAX_HEAD_BYTES), (text) => parseRequestHead(text, MAX_FIELDS))
}

/** @param method of the requests that are answered */
export function readResponses(pieces: readonly (string | Buffer)[], method = 'GET'): Reading<ResponseHead> {
  return read(pieces, new HeadReader('response', MAX_HEAD_BYTES), (text) => parseResponseHead(text, MAX_FIELDS, method))
}

function read<Head extends RequestHead | ResponseHead>(
  pieces: readonly (string | Buffer)[],
  heads: HeadReader,
  parse: (text: string) => Head,
): Reading<Head> {
  const reading: Reading<Head> = { messages: [], fault: undefined, held: 0 }
  let content: ContentReader | undefined
  try {
    for (const piece of pieces) {
      const bytes = Buffer.from(piece as string, 'latin1')
      for (let at = 0; at < bytes.length;) {
        if (content === undefined) {
          at = heads.push(bytes, at, bytes.length)
          if (at < 0) break
          const head = parse(heads.take())
          content = new ContentReader(head.framing, head.length)
          reading.messages.push({ head, content: '', trailers: [], whole: false })
        } else {
          const message = reading.messages.at(-1)!
          at = content.push(bytes, at, bytes.length, (from, to) => {
            message.content += bytes.toString('latin1', from, to)
          })
        }
        if (content.done) {
          reading.messages.at(-1)!.whole = true
          reading.messages.at(-1)!.trailers = content.trailers.list
          content = undefined
        }
      }
    }
  } catch (error) {
    if (!(error instanceof Malformed)) throw error
    reading.fault = error.kind
  }
  reading.held = heads.hasBegun ? heads.take().length : 0
  return reading
}

/** The same bytes, cut at the given places. */
export function cut(bytes: string, places: readonly number[]): string[] {
  const sorted = [...new Set(places)].filter((place) => place > 0 && place < bytes.length).sort((a, b) => a - b)
  return [0, ...sorted].map((place, i) => bytes.slice(place, sorted[i] ?? bytes.length))
}
