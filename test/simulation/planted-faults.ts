/**
 * Faults that other systems have had, each as the change of one place in a source file of the product. They are put
 * there while the file is loaded, by `plant.js`, and never stand in the product: what is looked for has to be there
 * exactly once, or nothing runs.
 */

import { readFileSync } from 'node:fs'

export interface PlantedFault {
  /** Where something like it was seen. */
  readonly seen: string
  /** From the top of the tree. */
  readonly file: string
  readonly find: string
  readonly replace: string
  /** Seeds within which the simulation finds it. */
  readonly within: number
}

export const PLANTED: Readonly<Record<string, PlantedFault>> = {
  'created-revision': {
    seen: "etcd3's watcher: it resumes after the revision in the header of the answer `created`, and not after the last event",
    file: 'registry-server/src/store/etcd/etcd-follower.ts',
    find: 'await connection.get(META, firstAnswerMs)\n',
    replace: 'return (await connection.get(META, firstAnswerMs)).revision\n',
    within: 100,
  },
  'empty-push': {
    seen: 'clients that take an empty answer of a registry that was started anew for the truth',
    file: 'registry-client/src/cache/gate.ts',
    find: 'if (missing.length > 0 || (next.cursor.revision === 0 && view.cursor.revision > 0)) {',
    replace: 'if (missing.length > 0 && next.nodes.size > 0) {',
    within: 50,
  },
  'file-not-subscribed': {
    seen: 'clients that serve what they have read from their disk, and never ask for more',
    file: 'registry-client/src/cache/followed-services.ts',
    find: 'this.#subscriptions.subscribe(key, namespace, service)',
    replace: 'if (entry.view === undefined) this.#subscriptions.subscribe(key, namespace, service)',
    within: 50,
  },
  'hearsay-believed': {
    seen: 'meshes in which one member that is wrong, or lies, is believed by all, for good',
    file: 'registry-client/src/cache/followed-services.ts',
    find: "this.#offer(entry, { view: heard, origin: 'registry', confirmed: session, isSettled: true })",
    replace: "this.#offer(entry, { view: heard, origin: 'registry', confirmed: session })",
    within: 200,
  },
  'stale-delete': {
    seen: 'registries in which the late deregistration of an instance removes the one that has taken its place',
    file: 'registry-server/src/registration.ts',
    find: `    if (fence.incarnation !== undefined && fence.incarnation !== incarnation) throw new StaleIncarnation(incarnation)
    if (fence.lease !== undefined && fence.lease !== held.lease) throw new StaleIncarnation(incarnation)
`,
    replace: '',
    within: 200,
  },
  'cursor-across-epochs': {
    seen: 'registries that take the cursor of a store that is gone for one of their own',
    file: 'registry-server/src/watch/subscriber.ts',
    find: 'const revision = cursor?.epoch === this.#epoch ? cursor.revision : undefined',
    replace: 'const revision = cursor?.revision',
    within: 200,
  },
}

/** A file's text with the fault in it. @throws Error when the place is not there exactly once */
export function plantedText(fault: PlantedFault, text: string): string {
  const parts = text.split(fault.find)
  if (parts.length !== 2)
    throw new Error(`${fault.file} has ${parts.length - 1} places of ${JSON.stringify(fault.find)}, expected 1`)
  return parts.join(fault.replace)
}

/** For those who start a process with the fault: the variable of its environment that `plant.js` reads. */
export function plantedEnvironment(name: string): Record<string, string> {
  const fault = PLANTED[name]
  if (fault === undefined) throw new Error(`no planted fault ${name}; known: ${Object.keys(PLANTED).join(', ')}`)
  const url = new URL(`../../${fault.file}`, import.meta.url)
  return {
    HOLDFAST_PLANTED: JSON.stringify({ url: url.href, source: plantedText(fault, readFileSync(url, 'utf8')) }),
  }
}
