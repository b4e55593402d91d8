/**
 * What a sidecar and its workers say to each other. Both are of one program and of one version, so that shapes are only
 * looked at: whatever else comes by the channel, a loader's word for instance, is not meant for either.
 */

import type { SidecarConfig } from '../config.ts'
import type { LocalNode } from '../local/local-nodes.ts'
import type { ProcessDataPlane } from '../data-plane.ts'
import type { Opening, Traffic } from '../planes.ts'
import type { MetricObject } from 'prom-client'

/** All that a worker has to know before it serves. */
export interface Beginning {
  readonly config: SidecarConfig
  readonly worker: number
  /** With the ports that they have got. */
  readonly openings: readonly Opening[]
  readonly nodes: readonly LocalNode[]
  /** Whether the sidecar leaves already. */
  readonly isRetired: boolean
}

/** All that a worker has counted, at one moment. */
export interface Counts {
  readonly metrics: readonly MetricObject[]
  readonly traffic: Traffic
}

/** What is asked of a worker: mostly what its data plane answers. */
export interface WorkerApi extends Pick<
  ProcessDataPlane,
  'shut' | 'set' | 'forget' | 'idle' | 'finish' | 'close' | 'inFlight' | 'views' | 'view' | 'peerView' | 'explain'
> {
  begin(beginning: Beginning): Promise<void>
  open(opening: Opening): Promise<number>
  retire(): Promise<void>
  reopenLogs(): Promise<void>
  rehearse(names: Parameters<ProcessDataPlane['rehearse']>[0]): ReturnType<ProcessDataPlane['rehearse']>
  counts(): Promise<Counts>
  /** @param whole with the client library's status, which walks over every service */
  report(whole: boolean): Promise<{ readonly connections: number; readonly client?: object }>
}

export type Question = keyof WorkerApi

export type ToWorker =
  | { readonly kind: 'ask'; readonly id: number; readonly question: Question; readonly args: readonly unknown[] }
  /** With the connection itself. */
  | { readonly kind: 'connection'; readonly opening: string }
  /** No connection of the opening follows. */
  | { readonly kind: 'left'; readonly opening: string }

export type FromWorker =
  | { readonly kind: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'failure'; readonly id: number; readonly message: string; readonly code: string | undefined }
  /** The connection is the worker's; nothing of it has been read yet. */
  | { readonly kind: 'took' }
  /** Wants no more connections of the opening. */
  | { readonly kind: 'leave'; readonly opening: string }

type Shape = Readonly<Record<string, 'string' | 'number' | 'object' | 'any'>>

const TO_WORKER: Readonly<Record<ToWorker['kind'], Shape>> = {
  ask: { id: 'number', question: 'string', args: 'object' },
  connection: { opening: 'string' },
  left: { opening: 'string' },
}

const FROM_WORKER: Readonly<Record<FromWorker['kind'], Shape>> = {
  answer: { id: 'number', value: 'any' },
  failure: { id: 'number', message: 'string', code: 'any' },
  took: {},
  leave: { opening: 'string' },
}

export function isToWorker(message: unknown): message is ToWorker {
  return isShaped(message, TO_WORKER)
}

export function isFromWorker(message: unknown): message is FromWorker {
  return isShaped(message, FROM_WORKER)
}

function isShaped(message: unknown, shapes: Readonly<Record<string, Shape>>): boolean {
  if (typeof message !== 'object' || message === null) return false
  const { kind } = message as { kind?: unknown }
  if (typeof kind !== 'string' || !Object.hasOwn(shapes, kind)) return false
  return Object.entries(shapes[kind]!).every(
    ([name, type]) => type === 'any' || typeof (message as Record<string, unknown>)[name] === type,
  )
}
