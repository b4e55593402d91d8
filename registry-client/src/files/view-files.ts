/**
 * One view's file among many processes: what is in it, and how it is replaced, without locks.
 *
 * Why no sequence of processes, crashes and faults leaves a service without a file that loads:
 *
 * - A file's content never changes. It is written under a name of its own, synced, and renamed into its place, so that
 *   whoever reads sees one writer's whole view or another's.
 * - The name is never free once it was taken: the previous generation is a second link to the present one, made before
 *   it is replaced, not a renaming of it. Nothing is moved out of its place, corrupt files included, since what was read
 *   there may not be what is there now; a good one comes in the place of a bad one.
 * - The previous generation is only read where the present one cannot be.
 *
 * Why the higher cursor wins: a writer looks what is there, gives way to what is newer, and looks again right before its
 * renaming. Between this last look and the renaming another process may still put a newer view there, and lose it. That
 * process mends it: the file cache remembers what it wrote or read last, looks again within 5 s or when told of the
 * change, and writes it again. A cursor that went back in a file thus goes forward again as long as anyone lives who
 * knows better. Between epochs, which cannot be compared, the last word stands.
 *
 * When a view was last confirmed by the registry is the file's modification time, so that an unchanged view stays fresh
 * without being written again; set on an open file whose content was looked at, never on whatever has the name by then.
 */

import path from 'node:path'
import { PREVIOUS, temporaryPath } from './cache-paths.ts'
import type { Clock } from '../clock.ts'
import type { Disk, FileContent } from '../disk.ts'
import { codeOf } from './fault-log.ts'
import { isAfter, isSameCursor, type View } from '../protocol.ts'
import { HEAD_CHARS, OtherSchemaError, parseView, renderView } from './view-text.ts'

/** What clocks of hosts that share a directory, and small corrections of one clock, may be apart. */
const CLOCK_TOLERANCE_MS = 10_000
/** A date that is closer than this to the one wanted is let be: of eight processes on one directory one does the work. */
const DATE_PRECISION_MS = 15_000
/** The earliest date of a file. */
const LEAST_DATE_MS = 1_000
/** Another version's file that was not dated for so long belongs to nobody any more. */
const OTHER_SCHEMA_MS = 86_400_000

/** A view, and when it was known to be current, in the clock's milliseconds. */
export interface Held {
  readonly view: View
  readonly heardMs: number
  /** Whether a peer said it, and not the registry. */
  readonly isHearsay: boolean
}

/** A view in a file. */
export interface Good extends Held {
  readonly kind: 'good'
  /** How the file begins, as no other does. */
  readonly head: string
}

/** A file that cannot be used. What of it was read, if it could be. */
export interface Bad {
  readonly kind: 'bad'
  readonly error: unknown
  readonly content: FileContent | undefined
  /** Whether another version of this library uses it. */
  readonly ownedByOther: boolean
}

/** What a name on disk stands for. */
export type Found = Good | Bad | { readonly kind: 'absent' }

export interface ViewFilesOptions {
  readonly disk: Disk
  readonly clock: Clock
  /** What was written, in bytes; negative for what went. */
  readonly account: (bytes: number) => void
  /** A previous generation that could not be kept. */
  readonly unkept: (error: unknown) => void
}

export class ViewFiles {
  readonly #disk: Disk
  readonly #clock: Clock
  readonly #account: ViewFilesOptions['account']
  readonly #unkept: ViewFilesOptions['unkept']

  constructor(options: ViewFilesOptions) {
    this.#disk = options.disk
    this.#clock = options.clock
    this.#account = options.account
    this.#unkept = options.unkept
  }

  /** Never rejects. */
  async read(file: string, namespace: string, service: string): Promise<Found> {
    let content: FileContent | undefined
    try {
      content = await this.#disk.read(file)
      if (content === undefined) return { kind: 'absent' }
      if (!content.trusted) throw new UntrustedFileError()
      const { view, isHearsay } = parseView(content.text, namespace, service)
      return { kind: 'good', view, isHearsay, head: headOf(content), heardMs: this.#heardMs(content.modifiedMs) }
    } catch (error) {
      const silentMs = Math.abs(this.#clock.wall() - (content?.modifiedMs ?? 0))
      return {
        kind: 'bad',
        error,
        content,
        ownedByOther: error instanceof OtherSchemaError && silentMs < OTHER_SCHEMA_MS,
      }
    }
  }

  /** Whether a file is the one that was written or read before. */
  isStill(file: string, good: Good): Promise<boolean> {
    return this.#disk.startsWith(file, good.head)
  }

  /** Puts a view in the place of what was found there. Undefined if something else is there by now: that is left alone. */
  async replace(file: string, found: Found, { view, heardMs, isHearsay }: Held): Promise<Good | undefined> {
    const disk = this.#disk
    const directory = path.dirname(file)
    const temporary = temporaryPath(file)
    const { text, head } = renderView(view, isHearsay)
    const modifiedMs = this.#dateOf(heardMs)
    try {
      await disk.create(temporary, text, modifiedMs).catch(async (error: unknown) => {
        if (codeOf(error) !== 'ENOENT') throw error
        await disk.makeDirectory(directory)
        await disk.create(temporary, text, modifiedMs)
      })
      await disk.sync(temporary)
      if (found.kind === 'good') await this.keep(file, file + PREVIOUS)
      if (!(await this.#isUnchanged(file, found))) {
        await disk.remove(temporary)
        return undefined
      }
      await disk.rename(temporary, file)
    } catch (error) {
      await disk.remove(temporary).catch(() => {})
      throw error
    }
    this.#account(Buffer.byteLength(text))
    if (found.kind === 'bad') this.#account(-(found.content?.bytes ?? 0))
    // Without this a power cut could undo the renaming although we reported the file as written.
    await disk.sync(directory)
    return { kind: 'good', view, heardMs, isHearsay, head }
  }

  /** Dates a view's file by when the view was confirmed; false if it is not this view's file any more. */
  async date(file: string, good: Good): Promise<boolean> {
    const modifiedMs = this.#dateOf(good.heardMs)
    const stat = await this.#disk.stat(file)
    if (stat && stat.modifiedMs > modifiedMs - DATE_PRECISION_MS && !this.#isAhead(stat.modifiedMs)) return true
    return this.#disk.touch(file, modifiedMs, good.head)
  }

  /** Removes a file if it is still what was read there. */
  async remove(file: string, good: Good): Promise<void> {
    const stat = await this.#disk.stat(file)
    if (stat === undefined || !(await this.isStill(file, good))) return
    if (await this.#disk.remove(file)) this.#account(-stat.bytes)
  }

  /** Shows those who look for files that nobody follows that this one is followed; its date stays what it was. */
  async mark(file: string, good: Good): Promise<void> {
    const stat = await this.#disk.stat(file)
    if (stat) await this.#disk.touch(file, stat.modifiedMs, good.head)
  }

  /** Gives a file a second name, in the place of what had it. A help for bad times: that it fails is no error. */
  async keep(file: string, name: string): Promise<void> {
    const temporary = temporaryPath(name)
    try {
      const before = await this.#disk.stat(name)
      await this.#disk.link(file, temporary)
      await this.#disk.rename(temporary, name)
      if (before) this.#account(-before.bytes)
      // Renaming one of two names of one file to the other leaves both.
      await this.#disk.remove(temporary)
    } catch (error) {
      this.#unkept(error)
      await this.#disk.remove(temporary).catch(() => {})
    }
  }

  async #isUnchanged(file: string, found: Found): Promise<boolean> {
    if (found.kind === 'good') return this.isStill(file, found)
    if (found.kind === 'absent') return (await this.#disk.stat(file)) === undefined
    // What could not be read cannot be compared.
    return found.content === undefined || this.#disk.startsWith(file, headOf(found.content))
  }

  #heardMs(modifiedMs: number): number {
    const wallMs = this.#clock.wall()
    const ageMs = this.#isAhead(modifiedMs) ? wallMs : Math.max(0, wallMs - modifiedMs)
    return this.#clock.now() - ageMs
  }

  #isAhead(modifiedMs: number): boolean {
    return modifiedMs > this.#clock.wall() + CLOCK_TOLERANCE_MS
  }

  #dateOf(heardMs: number): number {
    // Node takes a date before 1970 for now, and at 1970 a file says of itself that its age is not known.
    return Math.max(LEAST_DATE_MS, this.#clock.wall() - (this.#clock.now() - heardMs))
  }
}

/**
 * Whether one of two views says more: what the registry said before what a peer did, then the later place, then the one
 * that keeps more nodes of an earlier history.
 */
export function supersedes(one: Held, other: Held): boolean {
  if (one.isHearsay !== other.isHearsay) return other.isHearsay
  const [a, b] = [one.view.cursor, other.view.cursor]
  if (!isSameCursor(a, b)) return isAfter(a, b)
  return keptIn(one) > keptIn(other)
}

/** How many nodes of an earlier history a view has beside its own. */
export function keptIn({ view }: Pick<Held, 'view'>): number {
  return view.kept?.ids.length ?? 0
}

export function isSame(one: Pick<Held, 'view' | 'isHearsay'>, other: Pick<Held, 'view' | 'isHearsay'>): boolean {
  const [a, b] = [one.view.cursor, other.view.cursor]
  if (!isSameCursor(a, b) || one.isHearsay !== other.isHearsay) return false
  // Of one place of the history only fewer and fewer nodes are kept beside it.
  return keptIn(one) === keptIn(other)
}

/** What no later try will read either: a link, a directory, a pipe, a giant, a file of somebody who does not let us. */
const LASTING: ReadonlySet<string> = new Set([
  'ELOOP',
  'EISDIR',
  'EINVAL',
  'ENXIO',
  'EFBIG',
  'EACCES',
  'EPERM',
  'ENOTDIR',
])

/** Whether a file could not be read, and perhaps will be later. */
export function isPassing(found: Found): found is Bad {
  return found.kind === 'bad' && found.content === undefined && !LASTING.has(codeOf(found.error))
}

/** Such a file may say whatever another user likes. */
export class UntrustedFileError extends Error {
  readonly code = 'untrusted'
  constructor() {
    super('it belongs to another user, or everyone may write it')
  }
}

function headOf({ text }: FileContent): string {
  return text.slice(0, HEAD_CHARS)
}
