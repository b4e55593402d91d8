import path from 'node:path'
import type { Clock } from '@holdfast/registry-client/clock'
import type { Disk, FileStat } from '../../registry-client/src/disk.ts'

interface StoredFile {
  content: string
  modifiedMs: number
}

export type DiskOperation =
  'read' | 'stat' | 'list' | 'makeDirectory' | 'replace' | 'rename' | 'remove' | 'touch' | 'watch'

/** A disk in memory that fails, hangs and crashes where a test says so. Several caches may share one. */
export class FailingDisk implements Disk {
  readonly files = new Map<string, StoredFile>()
  readonly done: { readonly operation: DiskOperation; readonly file: string }[] = []
  readonly #clock: Clock
  readonly #watchers = new Set<(file: string) => void>()
  /** The error that an operation is to end with; undefined lets it be. */
  fail: (operation: DiskOperation, file: string) => string | undefined = () => undefined
  /** What an operation waits for before it is done. */
  hold: (operation: DiskOperation, file: string) => Promise<void> | undefined = () => undefined

  constructor(clock: Clock) {
    this.#clock = clock
  }

  count(operation: DiskOperation): number {
    return this.done.filter((item) => item.operation === operation).length
  }

  /** Writes as another process or an operator does, with the event that follows. */
  write(file: string, content: string): void {
    this.files.set(file, { content, modifiedMs: this.#clock.wall() })
    this.announce(file)
  }

  announce(file: string): void {
    for (const changed of this.#watchers) changed(file)
  }

  get watchers(): number {
    return this.#watchers.size
  }

  async read(file: string): Promise<string | undefined> {
    await this.#enter('read', file)
    return this.files.get(file)?.content
  }

  async stat(file: string): Promise<FileStat | undefined> {
    await this.#enter('stat', file)
    const stored = this.files.get(file)
    return stored && { modifiedMs: stored.modifiedMs, bytes: stored.content.length }
  }

  async list(directory: string): Promise<string[]> {
    await this.#enter('list', directory)
    return [...this.files.keys()].filter((file) => path.dirname(file) === directory).map((file) => path.basename(file))
  }

  async makeDirectory(directory: string): Promise<void> {
    await this.#enter('makeDirectory', directory)
  }

  async replace(file: string, content: string): Promise<void> {
    await this.#enter('replace', file)
    this.files.set(file, { content, modifiedMs: this.#clock.wall() })
  }

  async rename(from: string, to: string): Promise<void> {
    await this.#enter('rename', from)
    const stored = this.files.get(from)
    if (stored === undefined) throw codeError('ENOENT')
    this.files.delete(from)
    this.files.set(to, stored)
  }

  async remove(file: string): Promise<void> {
    await this.#enter('remove', file)
    this.files.delete(file)
  }

  async touch(file: string, modifiedMs: number): Promise<void> {
    await this.#enter('touch', file)
    const stored = this.files.get(file)
    if (stored === undefined) throw codeError('ENOENT')
    stored.modifiedMs = modifiedMs
  }

  async watch(directory: string, changed: (file: string) => void): Promise<() => Promise<void>> {
    await this.#enter('watch', directory)
    this.#watchers.add(changed)
    return async () => void this.#watchers.delete(changed)
  }

  async #enter(operation: DiskOperation, file: string): Promise<void> {
    await this.hold(operation, file)
    const code = this.fail(operation, file)
    if (code !== undefined) throw codeError(code)
    this.done.push({ operation, file })
  }
}

function codeError(code: string): Error {
  return Object.assign(new Error(`${code}: as the test says`), { code })
}
