/**
 * For traces: what the client does, on channels of `node:diagnostics_channel`. Messages are built only while someone
 * listens. They are plain objects that nobody else holds; views in them are immutable.
 *
 * | channel                | message                                                                                |
 * |------------------------|----------------------------------------------------------------------------------------|
 * | `holdfast:resolve`     | {@link ResolveMessage}: a call of `resolve` ended                                      |
 * | `holdfast:view`        | {@link ViewMessage}: what became of a view that was offered to memory                  |
 * | `holdfast:connection`  | {@link ConnectionMessage}: the registry's stream opened or was lost                    |
 * | `holdfast:file`        | {@link FileMessage}: the files of a service were read                                  |
 */

import { channel } from 'node:diagnostics_channel'
import type { Origin } from './cache/entry.ts'
import type { Verdict } from './cache/gate.ts'
import type { ResolveCode, Resolved } from './cache/resolved.ts'
import type { View } from './protocol.ts'

export interface ResolveMessage {
  readonly namespace: string
  readonly service: string
  /** From the call to its end. */
  readonly durationMs: number
  /** Undefined when it failed. */
  readonly resolved: Resolved | undefined
  /** Undefined when it succeeded. */
  readonly code: ResolveCode | undefined
}

export interface ViewMessage {
  readonly namespace: string
  readonly service: string
  readonly origin: Origin
  readonly verdict: Verdict
  readonly offered: View
  readonly served: View | undefined
}

export interface ConnectionMessage {
  readonly reachable: boolean
  readonly endpoint: string
  /** Why it was lost. */
  readonly reason: string | undefined
}

export interface FileMessage {
  readonly namespace: string
  readonly service: string
  /** Undefined when there is none that can be read. */
  readonly view: View | undefined
  readonly ageMs: number | undefined
  readonly overridden: boolean
}

export const channels = {
  resolve: channel('holdfast:resolve'),
  view: channel('holdfast:view'),
  connection: channel('holdfast:connection'),
  file: channel('holdfast:file'),
} as const
