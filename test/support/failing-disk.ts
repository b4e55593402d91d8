import path from 'node:path'
import type { Clock } from '@holdfast/registry-client/clock'
import type { Changed, Disk, FileContent, FileStat } from '../../registry-client/src/disk.ts'

/** What a name stands for; two names may stand for the same. */
export interface StoredFile {
  content: string
  modifiedMs: number
  changedMs?: number
  trusted?: boolean
}

export type DiskOperation = keyof Disk

/** A disk in memory that fails, hangs and crashes where a test says so. Several caches may share one. */
export class FailingDisk implements Disk {
  readonly files = new Map<string, StoredFile>()
  readonly done: { readonly operation: DiskOperation; readonly file: string }[] = []
  readonly #clock: Clock
  readonly #watchers = new Map<Changed, string>()
  /** The error that an operation is to end with; undefined lets it be. */
  fail: (operation: DiskOperation, file: string, to?: string) => string | undefined = () => undefined
  /** What an operation waits for before it is done. */
  hold: (operation: DiskOperation, file: string, to?: string) => Promise<void> | undefined = () => undefined

  constructor(clock: Clock) {
    this.#clock = clock
  }

  count(operation: DiskOperation): number {
    return this.done.filter((item) => item.operation === operation).length
  }

  /** Writes as another process or an operator does, with the event that follows. */
  write(file: string, content: string): void {
    this.files.set(file, { content, modifiedMs: this.#clock.wall(), changedMs: this.#clock.wall() })
    this.announce(file)
  }

  announce(file: string): void {
    for (const [changed, directory] of this.#watchers) if (path.dirname(file) === directory) changed(file, 'rename')
  }

  get watchers(): number {
    return this.#watchers.size
  }

  async read(file: string): Promise<FileContent | undefined> {
    await this.#enter('read', file)
    const stored = this.files.get(file)
    return stored && { ...statOf(stored), text: stored.content }
  }

  async startsWith(file: string, head: string): Promise<boolean> {
    await this.#enter('startsWith', file)
    return this.files.get(file)?.content.startsWith(head) ?? false
  }

  async stat(file: string): Promise<FileStat | undefined> {
    await this.#enter('stat', file)
    const stored = this.files.get(file)
    return stored && statOf(stored)
  }

  async list(directory: string): Promise<string[]> {
    await this.#enter('list', directory)
    const below = [...this.files.keys()].map((file) => path.relative(directory, file))
    return [...new Set(below.filter((file) => !file.startsWith('..')).map((file) => file.split(path.sep)[0]!))]
  }

  async makeDirectory(directory: string): Promise<void> {
    await this.#enter('makeDirectory', directory)
  }

  async create(file: string, content: string, modifiedMs: number): Promise<void> {
    await this.#enter('create', file)
    if (this.files.has(file)) throw codeError('EEXIST')
    this.files.set(file, { content, modifiedMs, changedMs: this.#clock.wall() })
  }

  async sync(file: string): Promise<void> {
    await this.#enter('sync', file)
  }

  async link(file: string, name: string): Promise<void> {
    await this.#enter('link', file, name)
    const stored = this.#stored(file)
    if (this.files.has(name)) throw codeError('EEXIST')
    this.files.set(name, stored)
  }

  async rename(from: string, to: string): Promise<void> {
    await this.#enter('rename', from, to)
    const stored = this.#stored(from)
    // As the system call does: of two names of one file neither goes.
    if (this.files.get(to) === stored) return
    this.files.delete(from)
    this.files.set(to, stored)
  }

  async remove(file: string): Promise<boolean> {
    await this.#enter('remove', file)
    return this.files.delete(file)
  }

  async touch(file: string, modifiedMs: number, head: string): Promise<boolean> {
    await this.#enter('touch', file)
    const stored = this.files.get(file)
    if (stored?.content.startsWith(head) !== true) return false
    stored.modifiedMs = modifiedMs
    stored.changedMs = this.#clock.wall()
    return true
  }

  async watch(directory: string, changed: Changed): Promise<() => Promise<void>> {
    await this.#enter('watch', directory)
    this.#watchers.set(changed, directory)
    return async () => void this.#watchers.delete(changed)
  }

  #stored(file: string): StoredFile {
    const stored = this.files.get(file)
    if (stored === undefined) throw codeError('ENOENT')
    return stored
  }

  async #enter(operation: DiskOperation, file: string, to?: string): Promise<void> {
    await this.hold(operation, file, to)
    const code = this.fail(operation, file, to)
    if (code !== undefined) throw codeError(code)
    this.done.push({ operation, file })
  }
}

function statOf({ content, modifiedMs, changedMs = modifiedMs, trusted = true }: StoredFile): FileStat {
  return { modifiedMs, changedMs, bytes: Buffer.byteLength(content), mode: 0o600, trusted }
}

function codeError(code: string): Error {
  return Object.assign(new Error(`${code}: as the test says`), { code })
}
