import { pino } from 'pino'
import type { Log } from '@holdfast/registry-client/log'

/** What waits for a slow disk, at most. Past it lines are dropped and counted: a log must not stop a request. */
const QUEUE_BYTES = 4_194_304

export interface AccessLogFile {
  write(line: string): void
  /** Lines that were lost because the disk or the pipe did not keep up, or failed. */
  readonly dropped: number
  /** Opens the file's name again, for those who have moved the old one away. */
  reopen(): void
  close(): Promise<void>
}

/** Of one write. More than the readers of containers' output take at once comes out in parts. */
const WRITE_BYTES = 16_384

/** What goes into a pipe at once; what others write meanwhile may come between the parts of more (`PIPE_BUF`). */
const PIPE_BYTES = 4_096

/** How long a line waits at most for others to be written with. A write for each would cost as much as its request. */
const FLUSH_MS = 250

/**
 * Opens an access log that writes in the background, whole lines at a time, each within a quarter of a second.
 * @param destination a file, or `-` for standard output
 * @param options `shared`: other processes write there, too
 */
export function openAccessLog(destination: string, log: Log, options: { shared: boolean }): AccessLogFile {
  // A file takes what is appended at once, however much; a pipe takes more slowly then.
  const writeBytes = options.shared && destination === '-' ? PIPE_BYTES : WRITE_BYTES
  const stream = pino.destination({
    dest: destination === '-' ? 1 : destination,
    sync: false,
    mkdir: true,
    maxLength: QUEUE_BYTES,
    maxWrite: writeBytes,
    minLength: writeBytes / 2,
    periodicFlush: FLUSH_MS,
  })
  let dropped = 0
  let isFailing = false
  stream.on('drop', () => dropped++)
  stream.on('error', (error: Error) => {
    dropped++
    if (!isFailing) log.warn({ destination, reason: error.message }, 'the access log cannot be written')
    isFailing = true
  })
  stream.on('ready', () => (isFailing = false))
  return {
    write: (line) => void stream.write(line),
    get dropped() {
      return dropped
    },
    reopen() {
      if (destination !== '-') stream.reopen()
    },
    close: () =>
      new Promise((resolve) => {
        const end = () => resolve()
        stream.once('close', end)
        stream.once('error', end)
        stream.end()
      }),
  }
}
