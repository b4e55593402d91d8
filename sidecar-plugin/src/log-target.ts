import * as fs from 'node:fs'
import { dirname } from 'node:path'
import { promisify } from 'node:util'

/** Where lines are appended to. No write waits for a reader. */
export interface LogTarget {
  /** Whether what several processes write is only kept apart in small pieces. */
  readonly isPipe: boolean
  /**
   * @returns how many bytes were taken, which may be fewer than given
   * @throws the system's error; `EAGAIN` when a reader has to make room first
   */
  write(bytes: Buffer): Promise<number>
  close(): Promise<void>
}

const open = promisify(fs.open)
const close = promisify(fs.close)
const stat = promisify(fs.fstat)
const write = promisify(fs.write)
const makeOne = promisify(fs.mkdir)

const STANDARD_OUTPUT = 1

/** A thread that waits for a reader could not be ended, nor could the process. */
const FLAGS = fs.constants.O_WRONLY | fs.constants.O_APPEND | fs.constants.O_NONBLOCK

/**
 * Opens what stands at a path, or makes a file there, and directories for it.
 * @param destination a path, or `-` for standard output
 * @throws the system's error; `ENXIO` when nobody reads the pipe
 */
export async function openLogTarget(destination: string): Promise<LogTarget> {
  if (destination !== '-') {
    await makeDirectory(dirname(destination))
    return targetOf(await open(destination, FLAGS | fs.constants.O_CREAT, 0o666), true)
  }
  const about = await stat(STANDARD_OUTPUT)
  // Opened anew it does not wait for a reader, whatever those do who share it. A file would get a place to write of its own.
  if (about.isFIFO() || about.isCharacterDevice())
    try {
      return await targetOf(await open(`/proc/self/fd/${STANDARD_OUTPUT}`, FLAGS), true)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENXIO') throw error
    }
  // Node makes one of a socket that does not wait as soon as somebody looks at it.
  void process.stdout
  return targetOf(STANDARD_OUTPUT, false)
}

async function targetOf(descriptor: number, isOurs: boolean): Promise<LogTarget> {
  const about = await stat(descriptor)
  return {
    isPipe: about.isFIFO() || about.isSocket(),
    write: async (bytes) => (await write(descriptor, bytes)).bytesWritten,
    close: () => (isOurs ? close(descriptor) : Promise.resolve()),
  }
}

/** Node's own way of making several at once never ends below `/proc`. */
async function makeDirectory(directory: string): Promise<void> {
  try {
    await makeOne(directory)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    // What else is there in its place, opening the file says.
    if (code === 'EEXIST' || code === 'EISDIR') return
    if (code !== 'ENOENT' || dirname(directory) === directory) throw error
    await makeDirectory(dirname(directory))
    await makeOne(directory).catch((again: NodeJS.ErrnoException) => {
      // Another process was first.
      if (again.code !== 'EEXIST') throw again
    })
  }
}
