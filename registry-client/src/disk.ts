/** The file system as the file cache needs it, behind an interface that a test can make fail. */

import { constants, promises as fs, watch as watchFiles, type Stats } from 'node:fs'
import path from 'node:path'

export interface FileStat {
  /** When its content was last known to be true: the cache sets this date itself. */
  readonly modifiedMs: number
  /** When it was last written, dated or renamed, by the machine's clock at that time. Nobody can set this one. */
  readonly changedMs: number
  readonly bytes: number
  /** Permission bits, such as `0o600`. */
  readonly mode: number
  /** Whether it belongs to this process's user or to root, and not everyone may write it. */
  readonly trusted: boolean
}

/** What was read, and the state of the very file it was read from, whatever has taken its place since. */
export interface FileContent extends FileStat {
  readonly text: string
}

/**
 * Each operation is done as a whole or not at all, as seen by other processes; `create` as seen by others is no whole
 * until it has ended. What a power cut may undo is what was not followed by {@link Disk.sync}.
 */
export interface Disk {
  /**
   * A plain file's content; undefined when there is none. Neither waits nor reads where something else is in its place.
   * @param followLinks whether a symbolic link is read through; otherwise it is refused with `ELOOP`
   */
  read(file: string, followLinks?: boolean): Promise<FileContent | undefined>
  /** Whether a file exists and begins with `head`: what it is, without reading it all. */
  startsWith(file: string, head: string): Promise<boolean>
  /** Undefined when there is no such file; of a symbolic link itself, unless it is followed. */
  stat(file: string, followLinks?: boolean): Promise<FileStat | undefined>
  /** Names of all that is in a directory; none when it does not exist. */
  list(directory: string): Promise<string[]>
  /** Creates a directory for this user alone, with its parents. */
  makeDirectory(directory: string): Promise<void>
  /** Writes a file that does not exist yet, for this user alone, dated. What fails leaves no file behind. */
  create(file: string, content: string, modifiedMs: number): Promise<void>
  /** Makes a file's content, or a directory's names, outlast a power cut. */
  sync(path: string): Promise<void>
  /** Gives a file a second name, which must be free. Not every file system can. */
  link(file: string, name: string): Promise<void>
  /** Puts a file in the place of another, or of none. */
  rename(from: string, to: string): Promise<void>
  /** False when there was no such file. */
  remove(file: string): Promise<boolean>
  /** Dates a file, if it is the one that begins with `head`; false when it is not, or there is none. */
  touch(file: string, modifiedMs: number, head: string): Promise<boolean>
  /**
   * Calls `changed` with the paths of files in a directory that may have come or gone (`rename`), or have another content
   * or date (`change`), until closed; `ended` when nothing will be heard any more. Events are hints only.
   */
  watch(directory: string, changed: Changed, ended?: () => void): Promise<() => Promise<void>>
}

export type Changed = (file: string, event?: 'rename' | 'change') => void

/** The ending of a file that is being written. What still has it after a minute was left by a crash. */
export const TEMPORARY = '.tmp'
/** Far larger than a view of 10,000 nodes. What is larger was not written by us, and would only fill the memory. */
const MAX_BYTES = 256 * 1_048_576

const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants

/**
 * For what changes names: on Windows a rename fails while somebody looks at the file, and is tried again. Loaded with the
 * first of them, since a process that only starts should not wait for it.
 */
const extra = async () => (await import('fs-extra')).default

/** Absent on Windows, where a file's owner says nothing. */
const uid = process.getuid?.()

export const systemDisk: Disk = {
  async read(file, followLinks = false) {
    return withFile(file, followLinks, async (handle, stat) => ({ ...stat, text: await handle.readFile('utf8') }))
  },

  async startsWith(file, head) {
    return (await withFile(file, false, (handle) => begins(handle, head))) ?? false
  },

  async stat(file, followLinks = false) {
    const stat = await orAbsent(followLinks ? fs.stat(file) : fs.lstat(file))
    return stat && statOf(stat)
  },

  async list(directory) {
    return (await orAbsent(fs.readdir(directory))) ?? []
  },

  async makeDirectory(directory) {
    await fs.mkdir(directory, { recursive: true, mode: 0o700 })
  },

  async create(file, content, modifiedMs) {
    const handle = await fs.open(file, 'wx', 0o600)
    try {
      await handle.writeFile(content)
      await handle.utimes(modifiedMs / 1000, modifiedMs / 1000)
      await handle.close()
    } catch (error) {
      await handle.close().catch(() => {})
      await fs.rm(file, { force: true }).catch(() => {})
      throw error
    }
  },

  async sync(path) {
    const handle = await fs.open(path, O_RDONLY)
    await handle.sync().finally(() => handle.close())
  },

  link: (file, name) => fs.link(file, name),

  async rename(from, to) {
    await (await extra()).rename(from, to)
  },

  async remove(file) {
    const { unlink } = await extra()
    return (await orAbsent(unlink(file).then(() => true))) ?? false
  },

  async touch(file, modifiedMs, head) {
    const touched = await withFile(file, false, async (handle) => {
      if (!(await begins(handle, head))) return false
      await handle.utimes(modifiedMs / 1000, modifiedMs / 1000)
      return true
    })
    return touched ?? false
  },

  // eslint-disable-next-line @typescript-eslint/require-await -- what is thrown at once is to reject
  async watch(directory, changed, ended = () => {}) {
    const watcher = watchFiles(directory, { persistent: false }, (event, name) => {
      // Of the directory itself: it was deleted or moved, and nothing will be heard of what has its name by then.
      if (name === path.basename(directory)) ended()
      else if (name) changed(path.join(directory, name), event)
    })
    watcher.on('error', ended)
    return () => Promise.resolve(watcher.close())
  },
}

/** Without waiting for a writer, as opening a pipe would, and without following where somebody has put a link. */
async function withFile<T>(
  file: string,
  followLinks: boolean,
  use: (handle: fs.FileHandle, stat: FileStat) => Promise<T>,
): Promise<T | undefined> {
  const handle = await orAbsent(fs.open(file, O_RDONLY | O_NONBLOCK | (followLinks ? 0 : O_NOFOLLOW)))
  if (handle === undefined) return undefined
  try {
    const stat = await handle.stat()
    if (stat.isDirectory()) throw coded('EISDIR', 'a directory is in its place')
    if (!stat.isFile()) throw coded('EINVAL', 'not a plain file')
    if (stat.size > MAX_BYTES) throw coded('EFBIG', `${stat.size} bytes are more than ${MAX_BYTES}`)
    return await use(handle, statOf(stat))
  } finally {
    await handle.close()
  }
}

async function begins(handle: fs.FileHandle, head: string): Promise<boolean> {
  const expected = Buffer.from(head)
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(expected.length), 0, expected.length, 0)
  return bytesRead === expected.length && expected.equals(buffer)
}

function statOf(stat: Stats): FileStat {
  return {
    modifiedMs: stat.mtimeMs,
    changedMs: stat.ctimeMs,
    bytes: stat.size,
    mode: stat.mode & 0o777,
    trusted: uid === undefined || ((stat.uid === uid || stat.uid === 0) && (stat.mode & 0o002) === 0),
  }
}

function coded(code: string, reason: string): Error {
  return Object.assign(new Error(`${code}: ${reason}`), { code })
}

async function orAbsent<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined
    throw error
  }
}
