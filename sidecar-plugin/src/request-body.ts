import { Readable } from 'node:stream'
import type { RequestBody } from './layer.ts'

/**
 * How much of a body is kept for another attempt, and held for a node that reads more slowly than its caller writes.
 * Smaller fails uploads whose node refuses them; larger costs that much for every request under way.
 */
export const KEPT_BYTES = 65_536

/**
 * A {@link RequestBody} over a stream that waits paused. Each stream handed out detaches without destroying the source,
 * because the source is the caller's connection, over which the answer still has to go.
 */
export class PulledBody implements RequestBody {
  readonly #source: Readable
  readonly #onStart: () => void
  readonly #onBytes: (bytes: number) => void
  #kept: Buffer[] | undefined = []
  #keptBytes = 0
  #started = false

  /**
   * @param onStart when somebody wants the first byte: the moment to tell a caller that expects it to continue
   * @param onBytes for each piece that arrives, with its length
   */
  constructor(source: Readable, onStart: () => void, onBytes: (bytes: number) => void) {
    this.#source = source
    this.#onStart = onStart
    this.#onBytes = onBytes
  }

  get repeatable(): boolean {
    return this.#kept !== undefined
  }

  stream(): Readable {
    const source = this.#source
    let attached = false
    const onData = (chunk: Buffer) => {
      this.#keep(chunk)
      this.#onBytes(chunk.length)
      if (!out.push(chunk)) source.pause()
    }
    const onEnd = () => {
      detach()
      out.push(null)
    }
    const onError = (error: Error) => out.destroy(error)
    const onClose = () => {
      if (!source.readableEnded) out.destroy(new Error('the caller broke off its body'))
    }
    const detach = () => {
      source.off('data', onData).off('end', onEnd).off('error', onError).off('close', onClose)
    }
    const attach = () => {
      attached = true
      if (!this.#started) this.#onStart()
      this.#started = true
      for (const chunk of this.#kept ?? []) out.push(chunk)
      if (source.readableEnded) return void out.push(null)
      if (source.destroyed) return onClose()
      source.on('data', onData).on('end', onEnd).on('error', onError).on('close', onClose)
    }
    const out = new Readable({
      highWaterMark: KEPT_BYTES,
      read: () => {
        if (!attached) attach()
        if (!source.readableEnded) source.resume()
      },
      destroy: (error, done) => {
        if (attached) {
          detach()
          source.pause()
        }
        done(error)
      },
    })
    // Whoever reads may have let go by the time the caller breaks off; that must end nothing but this stream.
    out.on('error', () => {})
    return out
  }

  #keep(chunk: Buffer): void {
    this.#keptBytes += chunk.length
    if (this.#keptBytes > KEPT_BYTES) this.#kept = undefined
    else this.#kept?.push(chunk)
  }
}
