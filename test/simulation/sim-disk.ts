/**
 * The disk of a simulated host, shared by its processes. As on a real one, content is safe once it was synced, and a
 * name once its directory was; what is not is there for every process, and lost or torn when the host loses power.
 */

import path from 'node:path'
import type { Random } from '@holdfast/registry-client/clock'
import type { Disk, FileContent, FileStat } from '../../registry-client/src/disk.ts'
import type { Host, SimProcess } from './process.ts'

interface Inode {
  content: string
  /** Undefined: nothing of it. */
  synced: string | undefined
  modifiedMs: number
  changedMs: number
}

export type DiskStep =
  'read' | 'stat' | 'list' | 'makeDirectory' | 'write' | 'sync' | 'link' | 'rename' | 'remove' | 'touch'

/** How the disk fails for a while. */
export interface DiskFault {
  readonly steps: readonly DiskStep[]
  readonly code: string
}

/** The next readings of views fail, or take long, and then the disk is well again. */
export interface BadReads {
  readonly reads: number
  /** Undefined: they succeed. */
  readonly code: string | undefined
  readonly lateMs: number
}

/** A file that holds a view. */
const VIEW = /^\/cache\/[^/]+\/[^/]+(?<!\.override)\.json$/
/** One that a process reads at its start: it, or the generation before it. */
const READ_AT_START = /(?<!\.override)\.json(?:\.previous)?$/

interface Watcher {
  readonly process: SimProcess
  readonly directory: string
  readonly changed: (file: string) => void
}

/** A change of names that a loss of power may take back. */
interface NameChange {
  readonly directory: string
  readonly file: string
  readonly inode: Inode | undefined
}

export class HostDisk {
  readonly host: Host
  readonly #random: Random
  #files = new Map<string, Inode>()
  #durable = new Map<string, Inode>()
  #journal: NameChange[] = []
  #watchers = new Set<Watcher>()
  readonly faults = new Set<DiskFault>()
  #badReads: { left: number; readonly code: string | undefined; readonly lateMs: number }[] = []
  /** Latencies are multiplied by it. */
  slowness = 1
  /** Called with each file whose name and content are safe now. */
  saved: (file: string, content: string) => void = () => {}
  /** Called with each file that takes the place of another. */
  replaced: (file: string, before: string, after: string) => void = () => {}

  constructor(host: Host, random: Random) {
    this.host = host
    this.#random = random
  }

  /** What each file holds. */
  get files(): ReadonlyMap<string, { readonly content: string }> {
    return this.#files
  }

  /** The disk as one process sees it. */
  of(process: SimProcess): Disk {
    return new ProcessDisk(this, process, this.#random)
  }

  /** Writes as an operator does with an editor, whole and synced. */
  edit(file: string, content: string | undefined, wallMs: number): void {
    const inode =
      content === undefined ? undefined : { content, synced: content, modifiedMs: wallMs, changedMs: wallMs }
    this.name(file, inode)
    this.syncDirectory(path.dirname(file))
    this.announce(file)
  }

  /** What was not synced is lost, torn, or there by chance. */
  losePower(): void {
    const random = this.#random
    // A journal keeps the order of changes: some beginning of it is there.
    for (const { file, inode } of this.#journal.slice(0, Math.floor(random() * (this.#journal.length + 1))))
      if (inode) this.#durable.set(file, inode)
      else this.#durable.delete(file)
    this.#journal = []
    this.#watchers.clear()
    for (const inode of this.#durable.values()) {
      if (inode.content === inode.synced) continue
      const chance = random()
      if (chance < 0.3) inode.content = inode.synced ?? ''
      else if (chance < 0.6) inode.content = inode.content.slice(0, Math.floor(random() * inode.content.length))
      else if (chance < 0.8) {
        const from = Math.floor(random() * inode.content.length)
        inode.content = inode.content.slice(0, from) + '\0'.repeat(inode.content.length - from)
      }
      inode.synced = inode.content
    }
    this.#files = new Map(this.#durable)
  }

  inode(file: string): Inode | undefined {
    return this.#files.get(file)
  }

  contentOf(file: string): FileContent | undefined {
    const inode = this.#files.get(file)
    if (inode === undefined) return undefined
    const { content, modifiedMs, changedMs } = inode
    return { text: content, modifiedMs, changedMs, bytes: content.length, mode: 0o600, trusted: true }
  }

  list(directory: string): string[] {
    return [...this.#files.keys()].filter((file) => path.dirname(file) === directory).map((file) => path.basename(file))
  }

  /** Another disk, in another machine of the same name. */
  renew(): void {
    this.#files = new Map()
    this.#durable = new Map()
    this.#journal = []
    this.#watchers.clear()
  }

  spoil({ reads, code, lateMs }: BadReads): void {
    this.#badReads.push({ left: reads, code, lateMs })
  }

  /** What happens to a reading that begins now. */
  spoiled(file: string): Omit<BadReads, 'reads'> | undefined {
    const [bad] = this.#badReads
    if (bad === undefined || !READ_AT_START.test(file) || !this.#files.has(file)) return undefined
    if (--bad.left === 0) this.#badReads.shift()
    return bad
  }

  /** No reading goes wrong any more. */
  mend(): void {
    this.#badReads = []
  }

  name(file: string, inode: Inode | undefined): void {
    const before = this.#files.get(file)
    if (inode && before && before !== inode && VIEW.test(file)) this.replaced(file, before.content, inode.content)
    if (inode) this.#files.set(file, inode)
    else this.#files.delete(file)
    this.#journal.push({ directory: path.dirname(file), file, inode })
  }

  syncDirectory(directory: string): void {
    this.#journal = this.#journal.filter((change) => {
      if (change.directory !== directory) return true
      if (change.inode) this.#durable.set(change.file, change.inode)
      else this.#durable.delete(change.file)
      if (change.inode?.synced !== undefined) this.saved(change.file, change.inode.synced)
      return false
    })
  }

  watch(watcher: Watcher): () => void {
    this.#watchers.add(watcher)
    watcher.process.onEnd(() => this.#watchers.delete(watcher))
    return () => this.#watchers.delete(watcher)
  }

  /** Tells watchers of a change: usually once and soon; sometimes twice, late, or not at all. */
  announce(file: string): void {
    if (file.endsWith('.tmp')) return
    for (const { process, directory, changed } of this.#watchers) {
      if (!file.startsWith(`${directory}/`)) continue
      const chance = this.#random()
      if (chance < 0.05) continue
      const delayMs = chance < 0.1 ? this.#random() * 3_000 : 5 + this.#random() * 100
      process.deliver(delayMs, 'file event', () => changed(file))
      if (chance > 0.95) process.deliver(delayMs + this.#random() * 50, 'file event', () => changed(file))
    }
  }

  /** @throws what a fault says */
  check(step: DiskStep): void {
    for (const { steps, code } of this.faults)
      if (steps.includes(step)) throw Object.assign(new Error(`${code}: ${step}`), { code })
  }

  latencyMs(): number {
    const random = this.#random
    return (0.02 + random() * 0.2 + (random() < 0.01 ? random() * 50 : 0)) * this.slowness
  }
}

/** What makes the name of a file that is being written unlike any other, and a trace unlike the next. */
const UNIQUE = /\.\d+\.[0-9a-f]+(?=\.tmp$)/

class ProcessDisk implements Disk {
  readonly #disk: HostDisk
  readonly #process: SimProcess
  readonly #random: Random

  constructor(disk: HostDisk, process: SimProcess, random: Random) {
    this.#disk = disk
    this.#process = process
    this.#random = random
  }

  read(file: string): Promise<FileContent | undefined> {
    const bad = this.#disk.spoiled(file)
    return this.#step(
      'read',
      file,
      () => {
        if (bad?.code !== undefined) throw coded(bad.code, file)
        return this.#disk.contentOf(file)
      },
      bad?.lateMs,
    )
  }

  startsWith(file: string, head: string): Promise<boolean> {
    return this.#step('read', file, () => this.#disk.inode(file)?.content.startsWith(head) === true)
  }

  stat(file: string): Promise<FileStat | undefined> {
    return this.#step('stat', file, () => this.#disk.contentOf(file))
  }

  list(directory: string): Promise<string[]> {
    return this.#step('list', directory, () => this.#disk.list(directory))
  }

  makeDirectory(directory: string): Promise<void> {
    return this.#step('makeDirectory', directory, () => {})
  }

  async create(file: string, content: string, modifiedMs: number): Promise<void> {
    const disk = this.#disk
    const inode: Inode = { content: '', synced: undefined, modifiedMs, changedMs: this.#process.wall() }
    await this.#step('write', file, () => {
      if (disk.inode(file)) throw coded('EEXIST', file)
      disk.name(file, inode)
    })
    try {
      await this.#step('write', file, () => (inode.content = content.slice(0, this.#random() * content.length)))
      await this.#step('write', file, () => (inode.content = content))
    } catch (error) {
      await this.#step('remove', file, () => disk.name(file, undefined)).catch(() => {})
      throw error
    }
    disk.announce(file)
  }

  sync(target: string): Promise<void> {
    return this.#step('sync', target, () => {
      const inode = this.#disk.inode(target)
      if (inode) inode.synced = inode.content
      else this.#disk.syncDirectory(target)
    })
  }

  link(file: string, name: string): Promise<void> {
    return this.#step('link', file, () => {
      const inode = this.#disk.inode(file)
      if (inode === undefined) throw coded('ENOENT', file)
      if (this.#disk.inode(name)) throw coded('EEXIST', name)
      this.#disk.name(name, inode)
      this.#disk.announce(name)
    })
  }

  rename(from: string, to: string): Promise<void> {
    return this.#step('rename', from, () => {
      const inode = this.#disk.inode(from)
      if (inode === undefined) throw coded('ENOENT', from)
      inode.changedMs = this.#process.wall()
      this.#disk.name(to, inode)
      this.#disk.name(from, undefined)
      this.#disk.announce(from)
      this.#disk.announce(to)
    })
  }

  remove(file: string): Promise<boolean> {
    return this.#step('remove', file, () => {
      if (this.#disk.inode(file) === undefined) return false
      this.#disk.name(file, undefined)
      this.#disk.announce(file)
      return true
    })
  }

  touch(file: string, modifiedMs: number, head: string): Promise<boolean> {
    return this.#step('touch', file, () => {
      const inode = this.#disk.inode(file)
      if (inode?.content.startsWith(head) !== true) return false
      inode.modifiedMs = modifiedMs
      inode.changedMs = this.#process.wall()
      this.#disk.announce(file)
      return true
    })
  }

  async watch(directory: string, changed: (file: string) => void): Promise<() => Promise<void>> {
    await this.#step('list', directory, () => {})
    const close = this.#disk.watch({ process: this.#process, directory, changed })
    return async () => close()
  }

  #step<T>(step: DiskStep, file: string, run: () => T, lateMs = 0): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#process.deliver(this.#disk.latencyMs() + lateMs, `disk ${step} ${file.replace(UNIQUE, '')}`, () => {
        try {
          this.#disk.check(step)
          resolve(run())
        } catch (error) {
          reject(error)
        }
      })
    })
  }
}

/** The disk as it is at this moment, without time and faults: for those who look at it from outside. */
export class InstantDisk implements Disk {
  readonly #disk: HostDisk

  constructor(disk: HostDisk) {
    this.#disk = disk
  }

  async read(file: string): Promise<FileContent | undefined> {
    return this.#disk.contentOf(file)
  }

  async startsWith(file: string, head: string): Promise<boolean> {
    return this.#disk.inode(file)?.content.startsWith(head) === true
  }

  async stat(file: string): Promise<FileStat | undefined> {
    return this.#disk.contentOf(file)
  }

  async list(directory: string): Promise<string[]> {
    return this.#disk.list(directory)
  }

  // Who only looks changes nothing.
  async makeDirectory(): Promise<void> {}
  async create(): Promise<void> {}
  async sync(): Promise<void> {}
  async link(): Promise<void> {}
  async rename(): Promise<void> {}
  async remove(): Promise<boolean> {
    return false
  }
  async touch(): Promise<boolean> {
    return false
  }
  async watch(): Promise<() => Promise<void>> {
    return async () => {}
  }
}

function coded(code: string, reason: string): Error {
  return Object.assign(new Error(`${code}: ${reason}`), { code })
}
