/**
 * How one sidecar learns from another that the service behind it is there, before anything of a caller has been passed.
 * A connection alone proves nothing: it stands as soon as the other sidecar listens.
 *
 * Who connects to an entrance says a line first; what is behind that line is the caller's. The entrance answers with a
 * word once its own connection to the service stands, and ends the connection otherwise. Only sidecars say the line:
 * whoever does not is passed on as he is, and hears nothing but the service. Where the service has spoken before the
 * line was there, that is answer enough.
 *
 * Which nodes are entrances stands in their labels: others would take the line for a caller's.
 */

import { LIMITS } from '@holdfast/registry-client/protocol'
import type { Destination } from '../layer.ts'

/** The first byte is one with which no text begins. */
const BEGINNING = '\xf5holdfast tcp 1 '

/** So much of a line is enough to know one. */
export const GREETING_BYTES = BEGINNING.length

export const WELCOME = Buffer.from('\xf5ok\n', 'latin1')

const LABEL = 'holdfast/greeting'
const LABEL_VALUE = '1'

/** @param name of the service that is wanted, with its namespace: an address may be another's by now */
export function greetingOf(name: string): Buffer {
  return Buffer.from(`${BEGINNING}${name}\n`, 'latin1')
}

export function takesGreeting({ labels }: Destination): boolean {
  return labels?.[LABEL] === LABEL_VALUE
}

/** The labels of a node that takes greetings. One that has as many as there may be takes none. */
export function withGreeting(labels: Readonly<Record<string, string>> = {}): Readonly<Record<string, string>> {
  return Object.keys(labels).length < LIMITS.labels ? { ...labels, [LABEL]: LABEL_VALUE } : labels
}
