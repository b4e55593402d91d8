import { mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import * as z from 'zod'
import { localSpecDocument, localSpecOf, localSpecSchema, serviceName, type LocalSpec } from './local-spec.ts'
import type { Log } from '@holdfast/registry-client/log'

const schema = z.strictObject({
  version: z.literal(1),
  registrations: z.array(localSpecSchema),
  ports: z.record(serviceName, z.int().min(1).max(65_535)).default({}),
})

/** What is kept of the services behind a sidecar. */
export interface SavedServices {
  /** Those that were registered by a request. */
  readonly registrations: readonly LocalSpec[]
  /** Ports of entrances by service, of all that have one of their own. */
  readonly ports: ReadonlyMap<string, number>
}

const NOTHING: SavedServices = { registrations: [], ports: new Map() }

/**
 * What was registered through the admin API, on disk, so that a sidecar that starts again still knows its services
 * without being told. Readable by a person. Replaced as a whole: a crash at any instant leaves the old or the new one.
 */
export class RegistrationFile {
  readonly #path: string
  readonly #log: Log
  #last: Promise<void> = Promise.resolve()
  #failing = false

  constructor(path: string, log: Log) {
    this.#path = path
    this.#log = log
  }

  /** What was saved last. A file that cannot be read is set aside, and nothing is known then. */
  async load(): Promise<SavedServices> {
    let content: string
    try {
      content = await readFile(this.#path, 'utf8')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        this.#log.warn({ file: this.#path, reason: String(error) }, 'the saved registrations cannot be read')
      return NOTHING
    }
    try {
      const { registrations, ports } = schema.parse(JSON.parse(content))
      return { registrations: registrations.map(localSpecOf), ports: new Map(Object.entries(ports)) }
    } catch (error) {
      const aside = `${this.#path}.corrupt`
      this.#log.warn({ file: this.#path, aside, reason: String(error) }, 'the saved registrations are set aside')
      await rename(this.#path, aside).catch(() => {})
      return NOTHING
    }
  }

  /**
   * Saves the whole set; several at once are written in order. Never rejects: a disk that fails must not stop a
   * registration, but costs it the next restart, and is said once.
   */
  save({ registrations, ports }: SavedServices): Promise<void> {
    const document = {
      version: 1,
      registrations: registrations.map(localSpecDocument),
      ...(ports.size > 0 && { ports: Object.fromEntries(ports) }),
    }
    const content = `${JSON.stringify(document, undefined, 2)}\n`
    this.#last = this.#last
      .then(() => this.#replace(content))
      .then(
        () => {
          this.#failing = false
        },
        (error: unknown) => {
          if (!this.#failing) this.#log.warn({ file: this.#path, reason: String(error) }, 'registrations are not saved')
          this.#failing = true
        },
      )
    return this.#last
  }

  async #replace(content: string): Promise<void> {
    const directory = dirname(this.#path)
    // One process owns an inbound port, so one name cannot meet another writer; what a crash left is written over.
    const temporary = `${this.#path}.tmp`
    await mkdir(directory, { recursive: true, mode: 0o700 })
    const file = await open(temporary, 'w', 0o600)
    try {
      await file.writeFile(content)
      await file.sync()
    } finally {
      await file.close()
    }
    try {
      await rename(temporary, this.#path)
    } catch (error) {
      await rm(temporary, { force: true })
      throw error
    }
    // The new name is on disk only once its directory is.
    const parent = await open(directory, 'r')
    await parent.sync().catch(() => {})
    await parent.close()
  }
}
