import { Fields } from '../fields.ts'
import { Whole, type Content, type Reply, type Sink } from '../layer.ts'

export function text(content: string, type: string, status = 200): Reply {
  const body = Whole.of(content)
  return { status, headers: Fields.of(['content-type', type, 'content-length', String(body.length)]), body }
}

export function json(document: object, status = 200): Reply {
  return text(JSON.stringify(document), 'application/json; charset=utf-8', status)
}

/** Content that is large and goes to many: all are sent the same memory. */
export class SharedContent implements Content {
  readonly repeatable = true
  readonly #bytes: Buffer

  /** @param bytes that do not change any more */
  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get length(): number {
    return this.#bytes.length
  }

  pour(sink: Sink): void {
    sink.write(this.#bytes)
    sink.end(Fields.NONE)
  }

  resume(): void {}

  cancel(): void {}
}
