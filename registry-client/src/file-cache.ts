/**
 * The second level: `{cacheDir}/{namespace}/{service}.json`, shared by any number of processes without locks, readable
 * by a person. Each file is written as a whole or not at all, carries a checksum, and keeps its previous generation
 * beside it; the higher cursor wins. A file is also a resume token: whoever starts from it asks only for what changed.
 *
 * When a view was last confirmed by the registry is the file's modification time, so that an unchanged view stays
 * fresh without being written again.
 */

import { createHash } from 'node:crypto'
import path from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { Clock } from './clock.ts'
import { TEMPORARY, type Disk } from './disk.ts'
import type { Log } from './log.ts'
import { decodeView, encodeView, isAfter, type Cursor, type View } from './protocol.ts'

const SCHEMA = 1
/** A service that changes without pause is written at this interval; what is lost in a crash is asked for again. */
const WRITE_INTERVAL_MS = 500
/** An unchanged view's file is dated anew this often: the precision of its age after a restart. */
const CONFIRM_INTERVAL_MS = 30_000
/** Disk threads are few, and other work of the process needs them too. */
const CONCURRENT_WRITES = 2
const LEFTOVER_MS = 60_000
/** File events are hints: what they missed is found by looking. */
const OVERRIDE_POLL_MS = 5_000

/** A view read from disk. */
export interface Loaded {
  readonly view: View
  /** Milliseconds since the registry last confirmed it, by the machine's clock; never negative. */
  readonly ageMs: number
}

export interface FileCacheEvents {
  /** A file of this service holds something that another process wrote. */
  changed(namespace: string, service: string): void
}

export interface FileCacheOptions {
  readonly directory: string
  readonly disk: Disk
  readonly clock: Clock
  readonly log: Log
}

export interface FileCacheStatus {
  readonly directory: string
  readonly writable: boolean
  readonly written: number
  readonly failed: number
  readonly corrupt: number
}

interface Slot {
  next: View | undefined
  /** What the file is known to hold. */
  saved: Cursor | undefined
  running: boolean
  forgotten: boolean
  readyMs: number
  datedMs: number
}

export class FileCache {
  readonly #options: FileCacheOptions
  readonly #slots = new Map<string, Slot>()
  readonly #queue: (() => Promise<void>)[] = []
  readonly #idle: (() => void)[] = []
  readonly #timers = new Set<() => void>()
  readonly #overrides = new Map<string, string>()
  /** What was reported of an override file that cannot be read, so that each fault is reported once. */
  readonly #complaints = new Map<string, string>()
  #running = 0
  #closing = false
  #writable = true
  #written = 0
  #failed = 0
  #corrupt = 0
  #watching: Promise<(() => Promise<void>) | undefined> = Promise.resolve(undefined)
  #cancelPoll: () => void = () => {}

  constructor(options: FileCacheOptions) {
    this.#options = options
  }

  status(): FileCacheStatus {
    return {
      directory: this.#options.directory,
      writable: this.#writable,
      written: this.#written,
      failed: this.#failed,
      corrupt: this.#corrupt,
    }
  }

  /** Prepares the directory and follows what others write there. A directory that cannot be used is reported once. */
  async open(events: FileCacheEvents): Promise<void> {
    const { directory, disk } = this.#options
    try {
      await disk.makeDirectory(directory)
      // Not waited for: looking at ten thousand files takes long, and nothing depends on hints.
      const watching = disk.watch(directory, (file) => {
        const target = this.#targetOf(file)
        if (target && !this.#closing) events.changed(target.namespace, target.service)
      })
      this.#watching = watching.catch((error: unknown) => {
        this.#options.log.warn({ directory, reason: (error as Error).message }, 'cache directory cannot be watched')
        return undefined
      })
    } catch (error) {
      this.#unwritable(error)
    }
    this.#poll(events)
  }

  /**
   * The newest readable generation of a service's file; undefined when there is none. A file that cannot be read is set
   * aside under `.corrupt`, so that it is seen once and does not come back.
   */
  async load(namespace: string, service: string): Promise<Loaded | undefined> {
    const file = this.#fileOf(namespace, service)
    const slot = this.#slot(`${namespace}/${service}`)
    slot.forgotten = false
    const current = await this.#read(file, namespace, service)
    const previous = await this.#read(previousOf(file), namespace, service)
    if (current && previous) return isAfter(previous.view.cursor, current.view.cursor) ? previous : current
    return current ?? previous
  }

  /**
   * What the operator's override file makes of a service; undefined while there is none. A malformed one is ignored with
   * a warning, and what was in force stays.
   * @param base supplies the policy where the file has none
   */
  async override(namespace: string, service: string, base: View | undefined, before: View | undefined) {
    const { disk, log } = this.#options
    const file = this.#overrideOf(namespace, service)
    const key = `${namespace}/${service}`
    let text: string | undefined
    try {
      text = await disk.read(file)
      if (text === undefined) {
        this.#complaints.delete(key)
        if (this.#overrides.delete(key)) log.warn({ file }, 'override file is gone: the registry has the word again')
        return undefined
      }
      const view = readOverride(text, namespace, service, base)
      const isSame = this.#overrides.get(key) === text
      if (!isSame) log.warn({ file, nodes: view.nodes.size }, 'override file in force')
      this.#overrides.set(key, text)
      this.#complaints.delete(key)
      // Looked at again and again: what has not changed must not look new to those who watch.
      if (isSame && before && isDeepStrictEqual(before, view)) return before
      return view
    } catch (error) {
      const reason = (error as Error).message
      const complaint = text ?? reason
      if (this.#complaints.get(key) !== complaint) log.error({ file, reason }, 'override file cannot be read: ignored')
      this.#complaints.set(key, complaint)
      return before
    }
  }

  /** Saves a view soon, off everyone's path; of several in a short time only the last is written. */
  save(view: View): void {
    if (this.#closing) return
    const key = `${view.namespace}/${view.service}`
    const slot = this.#slot(key)
    slot.next = view
    slot.forgotten = false
    if (!slot.running) this.#schedule(slot)
  }

  /** The registry confirmed that a saved view is still current. */
  confirm(view: View): void {
    const slot = this.#slot(`${view.namespace}/${view.service}`)
    const nowMs = this.#options.clock.now()
    if (this.#closing || slot.next || slot.running || nowMs - slot.datedMs < CONFIRM_INTERVAL_MS) return
    slot.datedMs = nowMs
    // Only a file that holds this very view may be dated anew: an old one after a failed write, or none, is written.
    if (slot.saved === undefined || !sameCursor(slot.saved, view.cursor)) return this.save(view)
    const { disk, clock } = this.#options
    const file = this.#fileOf(view.namespace, view.service)
    // Gone, or not to be written any more: find out by writing it.
    void disk.touch(file, clock.wall()).catch(() => (slot.saved = undefined))
  }

  /** Forgets what it knows of a service that is no longer held in memory; its file stays. */
  forget(namespace: string, service: string): void {
    const key = `${namespace}/${service}`
    this.#overrides.delete(key)
    this.#complaints.delete(key)
    const slot = this.#slots.get(key)
    if (slot?.next || slot?.running) slot.forgotten = true
    else this.#slots.delete(key)
  }

  /** Writes what still waits, then stops. */
  async close(): Promise<void> {
    this.#cancelPoll()
    for (const cancel of this.#timers) cancel()
    this.#timers.clear()
    this.#closing = true
    for (const slot of this.#slots.values())
      if (slot.next && !slot.running) {
        slot.running = true
        this.#queue.push(() => this.#write(slot))
      }
    this.#pump()
    if (this.#running > 0) await new Promise<void>((resolve) => this.#idle.push(resolve))
    const stopWatching = await this.#watching
    await stopWatching?.()
  }

  #slot(key: string): Slot {
    let slot = this.#slots.get(key)
    if (slot === undefined)
      this.#slots.set(
        key,
        (slot = {
          next: undefined,
          saved: undefined,
          running: false,
          forgotten: false,
          readyMs: -Infinity,
          datedMs: -Infinity,
        }),
      )
    return slot
  }

  #schedule(slot: Slot): void {
    slot.running = true
    const start = () => {
      this.#queue.push(() => this.#write(slot))
      this.#pump()
    }
    const waitMs = slot.readyMs - this.#options.clock.now()
    if (waitMs <= 0) return start()
    const cancel = this.#options.clock.after(waitMs, () => {
      this.#timers.delete(undo)
      start()
    })
    const undo = () => {
      cancel()
      slot.running = false
    }
    this.#timers.add(undo)
  }

  #pump(): void {
    while (this.#running < CONCURRENT_WRITES && this.#queue.length > 0) {
      this.#running++
      void this.#queue.shift()!().finally(() => {
        this.#running--
        this.#pump()
      })
    }
    if (this.#running === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }

  async #write(slot: Slot): Promise<void> {
    const view = slot.next!
    slot.next = undefined
    const { disk, clock, log } = this.#options
    const file = this.#fileOf(view.namespace, view.service)
    try {
      const onDisk = await this.#read(file, view.namespace, view.service)
      const isNewer = onDisk && isAfter(onDisk.view.cursor, view.cursor)
      const isSame = onDisk && sameCursor(onDisk.view.cursor, view.cursor)
      if (!isNewer && !isSame) {
        await disk.makeDirectory(path.dirname(file))
        await this.#cleanUp(path.dirname(file))
        if (onDisk) await disk.rename(file, previousOf(file)).catch(ignoreAbsent)
        await disk.replace(file, render(view))
        this.#written++
      } else if (isSame) await disk.touch(file, clock.wall())
      slot.saved = isNewer ? undefined : view.cursor
      if (!this.#writable) log.info({ directory: this.#options.directory }, 'cache directory is writable again')
      this.#writable = true
    } catch (error) {
      slot.saved = undefined
      this.#failed++
      this.#unwritable(error)
    }
    slot.datedMs = clock.now()
    slot.readyMs = clock.now() + WRITE_INTERVAL_MS
    slot.running = false
    if (slot.next && this.#closing) {
      slot.running = true
      this.#queue.push(() => this.#write(slot))
    } else if (slot.next) this.#schedule(slot)
    else if (slot.forgotten) this.#slots.delete(`${view.namespace}/${view.service}`)
  }

  async #read(file: string, namespace: string, service: string): Promise<Loaded | undefined> {
    const { disk, clock, log } = this.#options
    let text: string | undefined
    try {
      text = await disk.read(file)
      if (text === undefined) return undefined
      const view = parse(text, namespace, service)
      const stat = await disk.stat(file)
      return { view, ageMs: Math.max(0, clock.wall() - (stat?.modifiedMs ?? 0)) }
    } catch (error) {
      const reason = (error as Error).message
      this.#corrupt++
      log.error({ file, reason }, 'cache file cannot be read: ignored')
      // Only what was read and found wrong is set aside; one that could not be read may be whole.
      // Another version's file is left to it, so that two versions can run side by side.
      if (text !== undefined && !(error instanceof OtherSchemaError))
        await disk.rename(file, `${file}.corrupt`).catch(() => {})
      return undefined
    }
  }

  #cleaned = new Set<string>()

  /** Removes what crashed writers left, once per directory and process. */
  async #cleanUp(directory: string): Promise<void> {
    if (this.#cleaned.has(directory)) return
    this.#cleaned.add(directory)
    const { disk, clock } = this.#options
    for (const name of await disk.list(directory)) {
      if (!name.startsWith('.') || !name.endsWith(TEMPORARY)) continue
      const file = path.join(directory, name)
      const stat = await disk.stat(file)
      if (stat && clock.wall() - stat.modifiedMs > LEFTOVER_MS) await disk.remove(file).catch(() => {})
    }
  }

  #poll(events: FileCacheEvents): void {
    this.#cancelPoll = this.#options.clock.after(OVERRIDE_POLL_MS, () => {
      void this.#lookForOverrides(events).finally(() => {
        if (!this.#closing) this.#poll(events)
      })
    })
  }

  async #lookForOverrides(events: FileCacheEvents): Promise<void> {
    const { directory, disk } = this.#options
    const found = new Set(this.#overrides.keys())
    for (const namespace of new Set([...this.#slots.keys()].map((key) => key.split('/')[0]!))) {
      const names = await disk.list(path.join(directory, namespace)).catch(() => [])
      for (const name of names) {
        const target = name.endsWith('.override.json') && this.#targetOf(path.join(directory, namespace, name))
        if (target) found.add(`${target.namespace}/${target.service}`)
      }
    }
    for (const key of found) {
      const [namespace, service] = key.split('/') as [string, string]
      events.changed(namespace, service)
    }
  }

  #unwritable(error: unknown): void {
    if (!this.#writable) return
    this.#writable = false
    const { directory, log } = this.#options
    log.warn({ directory, reason: (error as Error).message }, 'cache directory cannot be written: going on in memory')
  }

  #fileOf(namespace: string, service: string): string {
    // A service may be called `a.override`; its view must not land on the override file of `a`. `%` is in no name.
    const name = service.endsWith('.override') ? `${service.slice(0, -'.override'.length)}%2Eoverride` : service
    return path.join(this.#options.directory, namespace, `${name}.json`)
  }

  #overrideOf(namespace: string, service: string): string {
    return path.join(this.#options.directory, namespace, `${service}.override.json`)
  }

  #targetOf(file: string): { namespace: string; service: string } | undefined {
    const [namespace, name, ...rest] = path.relative(this.#options.directory, file).split(path.sep)
    const match = /^([^.].*?)(\.override)?\.json$/.exec(name ?? '')
    if (!namespace || !match || rest.length > 0) return undefined
    return { namespace, service: match[1]!.replace('%2E', '.') }
  }
}

class OtherSchemaError extends Error {
  constructor(schema: number) {
    super(`schema ${schema} is another version's; this one reads ${SCHEMA}`)
  }
}

/** The content of a view's file. */
function render(view: View): string {
  const document = encodeView(view)
  return `${JSON.stringify({ schema: SCHEMA, checksum: checksumOf(document), view: document }, undefined, 1)}\n`
}

function parse(text: string, namespace: string, service: string): View {
  const document = JSON.parse(text) as { schema?: unknown; checksum?: unknown; view?: unknown } | null
  if (typeof document?.schema === 'number' && document.schema !== SCHEMA) throw new OtherSchemaError(document.schema)
  if (document?.schema !== SCHEMA) throw new Error('no schema')
  if (document.checksum !== checksumOf(document.view)) throw new Error('the checksum does not match')
  const view = decodeView(document.view)
  if (view.namespace !== namespace || view.service !== service)
    throw new Error(`it holds ${view.namespace}/${view.service}`)
  return view
}

/** Over the value, not the text, so that a person's editor may reflow the file. */
function checksumOf(document: unknown): string {
  return `sha256-${createHash('sha256')
    .update(JSON.stringify([SCHEMA, document]) ?? '')
    .digest('base64url')}`
}

const OVERRIDE_NODE = ['id', 'host', 'port', 'protocol', 'weight', 'zone', 'labels', 'status'] as const

function refuseUnknown(document: unknown, known: readonly string[], path: string): void {
  for (const key of Object.keys(Object(document) as object))
    if (!known.includes(key)) throw new Error(`${path}${key}: unknown field; known: ${known.join(', ')}`)
}

function readOverride(text: string, namespace: string, service: string, base: View | undefined): View {
  const document = JSON.parse(text) as { nodes?: unknown; policy?: unknown } | null
  if (!Array.isArray(document?.nodes)) throw new Error('nodes: must be an array')
  // Written by hand, in an outage: a typo must not pass for an order.
  refuseUnknown(document, ['nodes', 'policy'], '')
  for (const [index, node] of document.nodes.entries()) refuseUnknown(node, OVERRIDE_NODE, `nodes.${index}.`)
  const defaults = { protocol: 'http', weight: 100, status: 'up', incarnation: 0 }
  const nodes = (document.nodes as ({ host?: unknown; port?: unknown } | null)[]).map((item) => {
    const id = `${String(item?.host)}:${String(item?.port)}`
      .replaceAll(/[^A-Za-z0-9._:-]/g, '-')
      .replace(/^[^A-Za-z0-9]+/, '')
    return { id, ...defaults, ...item }
  })
  const view = decodeView({ namespace, service, cursor: 'override:0', nodes, policy: document.policy }, 'override')
  return Object.freeze({
    ...view,
    cursor: base?.cursor ?? view.cursor,
    policy: document.policy === undefined ? base?.policy : view.policy,
  })
}

function previousOf(file: string): string {
  return `${file}.previous`
}

function sameCursor(a: Cursor, b: Cursor): boolean {
  return a.epoch === b.epoch && a.revision === b.revision
}

function ignoreAbsent(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT') throw error
}
