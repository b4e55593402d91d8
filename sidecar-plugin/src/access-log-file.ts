import { stat } from 'node:fs/promises'
import { Backoff, sleep, type Clock, type Random } from '@holdfast/registry-client/clock'
import type { Log } from '@holdfast/registry-client/log'
import { SettingsError } from '@holdfast/registry-client/settings'
import { openLogTarget, type LogTarget } from './log-target.ts'

/** What waits for a slow disk, at most. Past it lines are dropped and counted: a log must not stop a request. */
const WAITING_BYTES = 4_194_304

/** Of one write. More than the readers of containers' output take at once comes out in parts. */
const WRITE_BYTES = 16_384

/** What goes into a pipe at once; what others write meanwhile may come between the parts of more (`PIPE_BUF`). */
const PIPE_BYTES = 4_096

/** How long a line waits at most for others to be written with. A write for each would cost as much as its request. */
const FLUSH_MS = 250

/** Until a full pipe is tried again. Longer makes a fast reader wait. */
const FULL_MS = 10

/** Until what failed is tried again. */
const RETRY = { baseMs: 200, capMs: 5_000 }

/** For what waits when the log is closed. */
const CLOSE_MS = 2_000

/** What does not pass while the program runs. */
const PERMANENT: ReadonlySet<string | undefined> = new Set([
  ...['EACCES', 'EISDIR', 'ELOOP', 'ENAMETOOLONG', 'ENOENT', 'ENOTDIR', 'EPERM', 'EROFS', 'ERR_INVALID_ARG_VALUE'],
])

/** Standard output's reader, once gone, does not come back. */
const GONE: ReadonlySet<string | undefined> = new Set(['EPIPE', 'ECONNRESET', 'ENXIO'])

export interface AccessLogFileOptions {
  /** A path, or `-` for standard output. */
  readonly destination: string
  /** Whether other processes write there, too. */
  readonly shared: boolean
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  /** Default: the system's. */
  readonly open?: (destination: string) => Promise<LogTarget>
}

/**
 * Writes an access log in the background, whole lines at a time, each within a quarter of a second. What fails is tried
 * again for as long as it takes; meanwhile up to 4 MiB of lines wait.
 */
export class AccessLogFile {
  readonly #options: AccessLogFileOptions
  readonly #retry: Backoff
  #target: LogTarget | undefined
  /** Oldest first. Each goes when all of it is written. */
  #lines: string[] = []
  #bytes = 0
  /** How much of the first line is written. */
  #begunBytes = 0
  #dropped = 0
  #writing: Promise<void> | undefined
  #cancelFlush: (() => void) | undefined
  #wake = new AbortController()
  #isStale = false
  #isFailing = false
  #isClosing = false
  #isOver = false

  constructor(options: AccessLogFileOptions) {
    this.#options = options
    this.#retry = new Backoff(options.random, RETRY)
    this.#flush()
  }

  /** Lines that were lost, because the disk or the pipe did not keep up, or failed, or is gone. */
  get dropped(): number {
    return this.#dropped
  }

  /** @param line with its end */
  write(line: string): void {
    const bytes = Buffer.byteLength(line)
    if (this.#isOver || this.#bytes + bytes > WAITING_BYTES) {
      this.#dropped++
      return
    }
    this.#lines.push(line)
    this.#bytes += bytes
    if (this.#isDue) this.#flush()
    else this.#flushLater()
  }

  /** Opens the file's name again, for those who have moved the old one away. */
  reopen(): void {
    if (this.#options.destination === '-') return
    this.#isStale = true
    this.#hurry()
  }

  /** Writes what waits, for two seconds at most. */
  async close(): Promise<void> {
    const { clock, log, destination } = this.#options
    this.#isClosing = true
    this.#hurry()
    const limit = new AbortController()
    await Promise.race([this.#writing, sleep(clock, CLOSE_MS, limit.signal)])
    limit.abort()
    if (this.#lines.length > 0) log.warn({ destination, lines: this.#lines.length }, 'lines of the access log are lost')
    this.#end()
  }

  /** Of one write, in bytes. */
  get #pieceBytes(): number {
    // A file takes what is appended at once, however much; a pipe takes more slowly then.
    return this.#options.shared && this.#target?.isPipe ? PIPE_BYTES : WRITE_BYTES
  }

  /** Whether there is something to do that cannot wait. */
  get #isDue(): boolean {
    if (this.#isOver) return false
    if (this.#isStale || this.#begunBytes > 0) return true
    return this.#bytes >= (this.#isClosing ? 1 : this.#pieceBytes / 2)
  }

  #flush(): void {
    this.#cancelFlush?.()
    this.#cancelFlush = undefined
    if (!this.#isOver) this.#writing ??= this.#writeAll()
  }

  #flushLater(): void {
    if (this.#writing || this.#isOver) return
    this.#cancelFlush ??= this.#options.clock.after(FLUSH_MS, () => this.#flush())
  }

  #hurry(): void {
    this.#wake.abort()
    this.#wake = new AbortController()
    this.#flush()
  }

  async #writeAll(): Promise<void> {
    do
      try {
        await this.#writePiece()
        this.#succeeded()
      } catch (error) {
        await this.#failed(error as NodeJS.ErrnoException)
      }
    while (this.#isDue || (this.#isFailing && !this.#isOver))
    this.#writing = undefined
    if (this.#lines.length > 0) this.#flushLater()
  }

  async #writePiece(): Promise<void> {
    if (this.#isStale) {
      this.#isStale = false
      await this.#letGo(this.#begunBytes > 0)
    }
    this.#target ??= await this.#opened()
    const piece = this.#piece()
    if (piece.length > 0) this.#wrote(await this.#target.write(piece))
  }

  async #opened(): Promise<LogTarget> {
    const { open = openLogTarget, destination } = this.#options
    const target = await open(destination)
    // Too late to be of use.
    if (this.#isOver) void target.close().catch(() => {})
    return target
  }

  #piece(): Buffer {
    let count = 0
    for (let bytes = 0; count < this.#lines.length; count++) {
      bytes += Buffer.byteLength(this.#lines[count]!)
      if (count > 0 && bytes > this.#pieceBytes) break
    }
    return Buffer.from(this.#lines.slice(0, count).join('')).subarray(this.#begunBytes)
  }

  #wrote(bytes: number): void {
    let left = this.#begunBytes + bytes
    let count = 0
    for (; count < this.#lines.length; count++) {
      const length = Buffer.byteLength(this.#lines[count]!)
      if (length > left) break
      left -= length
      this.#bytes -= length
    }
    this.#lines.splice(0, count)
    this.#begunBytes = left
  }

  #succeeded(): void {
    const { log, destination } = this.#options
    if (this.#isFailing) log.info({ destination, lost: this.#dropped }, 'the access log is written again')
    this.#isFailing = false
    this.#retry.reset()
  }

  async #failed({ code, message }: NodeJS.ErrnoException): Promise<void> {
    const { clock, log, destination, shared } = this.#options
    if (code === 'EAGAIN') return sleep(clock, FULL_MS)
    if (!this.#isFailing) log.warn({ destination, reason: message }, 'the access log cannot be written')
    this.#isFailing = true
    const { signal } = this.#wake
    // What failed for one may have ended within a line of another.
    await this.#letGo(this.#begunBytes > 0 || (shared && this.#target !== undefined))
    if (this.#isClosing || (destination === '-' && GONE.has(code))) return this.#end()
    await sleep(clock, this.#retry.next(), signal)
  }

  /** Begins anew, at the beginning of a line. @param isTorn whether what stands before it may have no end */
  async #letGo(isTorn: boolean): Promise<void> {
    const target = this.#target
    this.#target = undefined
    const [first] = this.#lines
    if (isTorn && first !== undefined && !first.startsWith('\n')) {
      this.#lines[0] = `\n${first}`
      this.#bytes++
    }
    this.#begunBytes = 0
    await target?.close().catch(() => {})
  }

  #end(): void {
    this.#isOver = true
    this.#cancelFlush?.()
    this.#dropped += this.#lines.length
    this.#lines = []
    this.#bytes = 0
    this.#begunBytes = 0
    void this.#target?.close().catch(() => {})
    this.#target = undefined
  }
}

/**
 * Looks whether an access log can be written at all.
 * @param destination as of {@link AccessLogFileOptions}
 * @throws SettingsError with the path and the reason
 */
export async function checkAccessLog(destination: string): Promise<void> {
  // Who reads it would take the end of a look for the end of the log.
  const about = await stat(destination).catch(() => undefined)
  if (about?.isFIFO()) return
  try {
    const target = await openLogTarget(destination)
    await target.close()
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (PERMANENT.has(code)) throw new SettingsError([{ path: 'accessLog', message: `cannot be opened: ${message}` }])
  }
}
