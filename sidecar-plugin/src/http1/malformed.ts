/** Why a message is none, by kind: counted, and said to whoever sent it. */

export type MalformedKind =
  | 'request_line'
  | 'status_line'
  | 'version'
  | 'target'
  | 'field_name'
  | 'field_value'
  | 'folded_field'
  | 'line_end'
  | 'host'
  | 'content_length'
  | 'transfer_encoding'
  | 'unknown_coding'
  | 'length_and_coding'
  | 'connection'
  | 'expectation'
  | 'chunk'
  | 'trailer'
  | 'too_many_fields'
  | 'head_too_large'
  | 'head_too_slow'
  | 'frames'
  | 'resets'
  | 'controls'

/**
 * A message that is not HTTP/1.1 as a proxy must read it. Nothing of it is repaired: what one reader of a chain frames
 * differently from the next is how requests are smuggled. The connection it came on cannot be used any more.
 */
export class Malformed extends Error {
  readonly kind: MalformedKind

  constructor(kind: MalformedKind, detail: string) {
    super(detail)
    this.name = 'Malformed'
    this.kind = kind
  }
}
