/**
 * What operators say instead of the registry, in files of their own: `{service}.override.json`, with `nodes` and,
 * if they like, a `policy` as the registry takes it. One that cannot be used is ignored, and what was in force stays.
 */

import path from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { classify, overridePath } from './cache-paths.ts'
import type { Disk, FileStat } from '../disk.ts'
import type { Log } from '../log.ts'
import { decodeView, encodeView, type PolicyDocument, type View } from '../protocol.ts'
import { UntrustedFileError } from './view-files.ts'

export interface OverrideFilesOptions {
  readonly directory: string
  readonly disk: Disk
  readonly log: Log
}

interface Seen {
  /** Of the file as it was read last; undefined when that failed, so that it is tried again. */
  stamp: string | undefined
  /** The text in force. */
  text: string | undefined
  /** What was reported, so that each fault is reported once. */
  complaint: string | undefined
}

export class OverrideFiles {
  readonly #options: OverrideFilesOptions
  /** By namespace, then service: those that have a file. */
  readonly #seen = new Map<string, Map<string, Seen>>()
  /** Of each namespace's directory, as it was at the last two looks. */
  readonly #looks = new Map<string, [string, string]>()
  /** Versions of files that were refused. */
  malformed = 0

  constructor(options: OverrideFilesOptions) {
    this.#options = options
  }

  /** Files in force now. */
  get inForce(): number {
    let count = 0
    for (const services of this.#seen.values())
      for (const { text } of services.values()) if (text !== undefined) count++
    return count
  }

  /**
   * What a service's file makes of it; undefined while there is none.
   * @param base supplies the policy where the file has none, and the cursor
   * @param before what was in force, and stays when the file cannot be read
   */
  async read(
    namespace: string,
    service: string,
    base: View | undefined,
    before: View | undefined,
  ): Promise<View | undefined> {
    const { directory, disk, log } = this.#options
    const file = overridePath(directory, namespace, service)
    let text: string | undefined
    try {
      // Through links, since a file that a configuration system has mounted is one.
      const content = await disk.read(file, true)
      if (content === undefined) {
        if (this.#seen.get(namespace)?.get(service)?.text !== undefined)
          log.warn({ file }, 'override file is gone: the registry has the word again')
        this.forget(namespace, service)
        return undefined
      }
      if (!content.trusted) throw new UntrustedFileError()
      text = content.text
      const seen = this.#note(namespace, service)
      seen.stamp = stampOf(content)
      const view = await readOverride(text, namespace, service, base)
      const isSame = seen.text === text
      if (!isSame) log.warn({ file, nodes: view.nodes.size }, 'override file in force')
      seen.text = text
      seen.complaint = undefined
      // Looked at again and again: what has not changed must not look new to those who watch.
      return isSame && before && isDeepStrictEqual(encodeView(before), encodeView(view)) ? before : view
    } catch (error) {
      const reason = (error as Error).message
      const seen = this.#note(namespace, service)
      const complaint = text ?? reason
      if (text === undefined) seen.stamp = undefined
      if (seen.complaint !== complaint) {
        this.malformed++
        log.error({ file, reason, inForce: before !== undefined }, 'override file cannot be read: ignored')
      }
      seen.complaint = complaint
      return before
    }
  }

  /** What a process that starts now would make of it: a file that cannot be used is none. Counts and reports nothing. */
  async peek(namespace: string, service: string, base: View | undefined): Promise<View | undefined> {
    try {
      const content = await this.#options.disk.read(this.#pathOf(namespace, service), true)
      return content?.trusted ? await readOverride(content.text, namespace, service, base) : undefined
    } catch {
      return undefined
    }
  }

  forget(namespace: string, service: string): void {
    const services = this.#seen.get(namespace)
    services?.delete(service)
    if (services?.size === 0) this.#seen.delete(namespace)
  }

  /**
   * Services whose file is not what was read of it, as found by looking. Costs one listing for each namespace in which
   * names have come or gone, and one `stat` for each override.
   * @param namespaces those with a directory; of the others only what was read before is looked at
   * @param isFollowed whether anyone wants to know of a service
   */
  async changed(
    namespaces: Iterable<string>,
    isFollowed: (namespace: string, service: string) => boolean,
  ): Promise<{ namespace: string; service: string }[]> {
    const found: { namespace: string; service: string }[] = []
    const present = new Set(namespaces)
    for (const namespace of this.#looks.keys()) if (!present.has(namespace)) this.#looks.delete(namespace)
    for (const namespace of new Set([...present, ...this.#seen.keys()])) {
      const services = new Set(this.#seen.get(namespace)?.keys())
      for (const service of present.has(namespace) ? await this.#listed(namespace) : [])
        if (isFollowed(namespace, service)) services.add(service)
      for (const service of services) {
        const stat = await this.#options.disk.stat(this.#pathOf(namespace, service), true).catch(() => undefined)
        const stamp = this.#seen.get(namespace)?.get(service)?.stamp
        if (stat === undefined || stamp !== stampOf(stat)) found.push({ namespace, service })
      }
    }
    return found
  }

  /** Services with an override file, unless the directory is as it was. */
  async #listed(namespace: string): Promise<string[]> {
    const { directory, disk } = this.#options
    const folder = path.join(directory, namespace)
    try {
      const stat = await disk.stat(folder)
      const look = stat ? stampOf(stat) : 'absent'
      const [last, before] = this.#looks.get(namespace) ?? []
      this.#looks.set(namespace, [look, last ?? ''])
      // Twice the same: a name that came within one tick of the directory's date is seen by the second look.
      if (stat && look === last && look === before) return []
      return (await disk.list(folder)).flatMap((name) => {
        const file = classify(name)
        return file?.kind === 'override' ? [file.service] : []
      })
    } catch {
      this.#looks.delete(namespace)
      return []
    }
  }

  #pathOf(namespace: string, service: string): string {
    return overridePath(this.#options.directory, namespace, service)
  }

  #note(namespace: string, service: string): Seen {
    const services = this.#seen.get(namespace) ?? new Map<string, Seen>()
    this.#seen.set(namespace, services)
    const seen = services.get(service) ?? { stamp: undefined, text: undefined, complaint: undefined }
    services.set(service, seen)
    return seen
  }
}

function stampOf({ modifiedMs, changedMs, bytes }: FileStat): string {
  return `${modifiedMs}/${changedMs}/${bytes}`
}

const NODE_FIELDS = ['id', 'host', 'port', 'protocol', 'weight', 'zone', 'labels', 'status'] as const

function refuseUnknown(document: unknown, known: readonly string[], at: string): void {
  for (const key of Object.keys(Object(document) as object))
    if (!known.includes(key)) throw new Error(`${at}${key}: unknown field; known: ${known.join(', ')}`)
}

async function readOverride(text: string, namespace: string, service: string, base: View | undefined): Promise<View> {
  const document = JSON.parse(text) as { nodes?: unknown; policy?: unknown } | null
  if (!Array.isArray(document?.nodes)) throw new Error('nodes: must be an array')
  // Written by hand, in an outage: a typo must not pass for an order.
  refuseUnknown(document, ['nodes', 'policy'], '')
  for (const [index, node] of document.nodes.entries()) refuseUnknown(node, NODE_FIELDS, `nodes.${index}.`)
  const defaults = { protocol: 'http', weight: 100, status: 'up', incarnation: 0 }
  const nodes = (document.nodes as ({ host?: unknown; port?: unknown } | null)[]).map((item) => {
    const id = `${String(item?.host)}:${String(item?.port)}`
      .replaceAll(/[^A-Za-z0-9._:-]/g, '-')
      .replace(/^[^A-Za-z0-9]+/, '')
    return { id, ...defaults, ...item }
  })
  const view = decodeView({ namespace, service, cursor: 'override:0', nodes, policy: document.policy }, 'override')
  if (view.policy !== undefined) await checkPolicy(view.policy)
  return Object.freeze({
    ...view,
    cursor: base?.cursor ?? view.cursor,
    policy: document.policy === undefined ? base?.policy : view.policy,
  })
}

/** @throws Error with every problem and its path */
async function checkPolicy(policy: PolicyDocument): Promise<void> {
  // With the first policy of an operator, since a process that only starts should not wait for its schema.
  const { parsePolicy, PolicyError } = await import('../policy.ts')
  try {
    parsePolicy(policy)
  } catch (error) {
    if (!(error instanceof PolicyError)) throw error
    throw new Error(error.errors.map(({ path, message }) => `policy.${path}: ${message}`).join('; '), { cause: error })
  }
}
