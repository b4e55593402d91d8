/**
 * One event of the watch streams as bytes. The same buffers go to every subscriber: an event is written out once for
 * each transport, however many there are.
 */

import { encodeFrame, type Frame, type PingData } from '@holdfast/registry-client/protocol'

export type Transport = 'sse' | 'websocket'

/** Below it a copy per id is cheaper than a second write to each socket. */
const JOIN_BYTES = 16_384

export class StreamEvent {
  readonly event: 'snapshot' | 'change' | 'ping'
  /** Of the service's change that it carries; the place of the stream for a ping. */
  readonly revision: number
  /** Until it is written out. */
  #content: Frame | PingData | undefined
  #data: Buffer | undefined
  #sse: Written | undefined
  #websocket: Written | undefined

  private constructor(event: StreamEvent['event'], revision: number, content: Frame | PingData) {
    this.event = event
    this.revision = revision
    this.#content = content
  }

  static ofFrame(frame: Frame): StreamEvent {
    const { revision } = frame.kind === 'snapshot' ? frame.view.cursor : frame.cursor
    const event = new StreamEvent(frame.kind, revision, frame)
    // Now, not when the first subscriber needs it: a snapshot's nodes may change in between.
    event.#write()
    return event
  }

  static ping(revision: number, data: PingData): StreamEvent {
    return new StreamEvent('ping', revision, data)
  }

  /** Of the data alone. */
  get bytes(): number {
    return this.#write().length
  }

  /**
   * What to write to a socket, in order and without anything in between.
   * @param id the cursor that the event carries, if it is to carry one
   */
  encode(transport: Transport, id: string | undefined): readonly Buffer[] {
    const written = transport === 'sse' ? (this.#sse ??= this.#toSse()) : (this.#websocket ??= this.#toWebSocket())
    if (written.id === id && written.parts) return written.parts
    const prefix = transport === 'sse' ? ssePrefix(id) : webSocketPrefix(id, written.body.length)
    const parts = written.body.length > JOIN_BYTES ? [prefix, written.body] : [Buffer.concat([prefix, written.body])]
    written.id = id
    written.parts = parts
    return parts
  }

  #write(): Buffer {
    if (this.#data === undefined) {
      const content = this.#content!
      this.#data = Buffer.from(JSON.stringify('kind' in content ? encodeFrame(content) : content))
      this.#content = undefined
    }
    return this.#data
  }

  #toSse(): Written {
    const body = [Buffer.from(`event: ${this.event}\ndata: `), this.#write(), Buffer.from('\n\n')]
    return { body: Buffer.concat(body), id: undefined, parts: undefined }
  }

  #toWebSocket(): Written {
    const body = [Buffer.from(`"event":"${this.event}","data":`), this.#write(), Buffer.from('}')]
    return { body: Buffer.concat(body), id: undefined, parts: undefined }
  }
}

/** The part that is the same whatever the id, and the whole for the id asked for last. */
interface Written {
  readonly body: Buffer
  id: string | undefined
  parts: readonly Buffer[] | undefined
}

function ssePrefix(id: string | undefined): Buffer {
  return id === undefined ? Buffer.alloc(0) : Buffer.from(`id: ${id}\n`)
}

/** The header of one unmasked, unfragmented text frame (RFC 6455, section 5.2), and the start of its JSON. */
function webSocketPrefix(id: string | undefined, bodyBytes: number): Buffer {
  const start = id === undefined ? '{' : `{"id":"${id}",`
  const length = start.length + bodyBytes
  const headerBytes = length < 126 ? 2 : length < 65_536 ? 4 : 10
  const prefix = Buffer.alloc(headerBytes + start.length)
  prefix[0] = 0x81
  if (headerBytes === 2) prefix[1] = length
  else if (headerBytes === 4) {
    prefix[1] = 126
    prefix.writeUInt16BE(length, 2)
  } else {
    prefix[1] = 127
    prefix.writeBigUInt64BE(BigInt(length), 2)
  }
  prefix.write(start, headerBytes, 'latin1')
  return prefix
}
