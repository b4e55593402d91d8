/** The file system as the file cache needs it, behind an interface that a test can make fail. */

import { randomBytes } from 'node:crypto'
import path from 'node:path'
import { watch as watchFiles } from 'chokidar'
import fs from 'fs-extra'

export interface FileStat {
  readonly modifiedMs: number
  readonly bytes: number
}

export interface Disk {
  /** Undefined when there is no such file. */
  read(file: string): Promise<string | undefined>
  stat(file: string): Promise<FileStat | undefined>
  /** Names of the plain files in a directory; none when it does not exist. */
  list(directory: string): Promise<string[]>
  /** Creates a directory for this user alone, with its parents. */
  makeDirectory(directory: string): Promise<void>
  /**
   * Writes a file as a whole: under a name of its own in the same directory, synced, renamed, the directory synced.
   * Whoever reads sees the old content or the new. What fails leaves no file behind.
   */
  replace(file: string, content: string): Promise<void>
  rename(from: string, to: string): Promise<void>
  remove(file: string): Promise<void>
  /** Dates a file. */
  touch(file: string, modifiedMs: number): Promise<void>
  /** Calls `changed` with each path that may have changed below a directory, until closed. Events are hints only. */
  watch(directory: string, changed: (file: string) => void): Promise<() => Promise<void>>
}

/** The ending of a file that is being written. What still has it after a minute was left by a crash. */
export const TEMPORARY = '.tmp'

export const systemDisk: Disk = {
  read: (file) => orAbsent(fs.readFile(file, 'utf8')),

  async stat(file) {
    const stat = await orAbsent(fs.stat(file))
    return stat && { modifiedMs: stat.mtimeMs, bytes: stat.size }
  },

  async list(directory) {
    const entries = await orAbsent(fs.readdir(directory, { withFileTypes: true }))
    return (entries ?? []).filter((entry) => entry.isFile()).map((entry) => entry.name)
  },

  async makeDirectory(directory) {
    await fs.mkdir(directory, { recursive: true, mode: 0o700 })
  },

  async replace(file, content) {
    const temporary = path.join(
      path.dirname(file),
      `.${path.basename(file)}.${process.pid}.${randomBytes(6).toString('hex')}${TEMPORARY}`,
    )
    const handle = await fs.promises.open(temporary, 'wx', 0o600)
    try {
      await handle.writeFile(content)
      await handle.sync()
      await handle.close()
      await fs.rename(temporary, file)
    } catch (error) {
      await handle.close().catch(() => {})
      await fs.rm(temporary, { force: true }).catch(() => {})
      throw error
    }
    // Without this a power cut could undo the rename although we reported the file as written.
    const directory = await fs.promises.open(path.dirname(file), 'r')
    await directory.sync().finally(() => directory.close())
  },

  rename: (from, to) => fs.rename(from, to),
  remove: (file) => fs.rm(file, { force: true }),
  touch: (file, modifiedMs) => fs.utimes(file, modifiedMs / 1000, modifiedMs / 1000),

  async watch(directory, changed) {
    const watcher = watchFiles(directory, {
      depth: 1,
      ignoreInitial: true,
      ignored: (file) => file.endsWith(TEMPORARY),
    })
    for (const event of ['add', 'change', 'unlink'] as const) watcher.on(event, changed)
    // A watcher out of inotify handles must not take the process down: the stat poll still sees changes.
    watcher.on('error', () => {})
    await new Promise<void>((resolve) => {
      watcher.once('ready', resolve)
      watcher.once('error', () => resolve())
    })
    return () => watcher.close()
  },
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
