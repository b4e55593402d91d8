/**
 * `holdfast drill`: asks running sidecars which services would resolve if the registry died now, from which level, and how
 * old. A gate for deployments.
 */

import { formatDuration, systemClock } from '../clock.ts'
import { maskUrl, reasonOf, type HttpAnswer, type Network } from '../network.ts'
import { REHEARSED, type LevelRehearsal, type RehearsedLevel, type Rehearsal } from '../cache/rehearsal.ts'
import { decodeRehearsal, refusalOf, type RehearsedService } from './drill-answer.ts'
import { table } from './table.ts'

export interface DrillOptions {
  /** Base URLs of sidecars' admin APIs. */
  readonly sidecars: readonly string[]
  /** Undefined: all that a sidecar knows. */
  readonly services: readonly string[] | undefined
  readonly namespace: string
  /** Undefined: whichever would answer, which is the first that knows the service. */
  readonly level: RehearsedLevel | undefined
  /** Nodes that must take traffic; 0 lets a service pass that is known to have none. */
  readonly minUsable: number
  readonly timeoutMs: number
  readonly network: Network
  readonly signal: AbortSignal
}

/** What one sidecar says of one service, or why it says nothing. */
export interface DrillRow {
  /** Its URL, without a password. */
  readonly sidecar: string
  readonly service?: string
  readonly namespace?: string
  readonly passes: boolean
  /** The level that would answer, with enough nodes or not; absent where none would. */
  readonly level?: RehearsedLevel
  readonly levels?: Rehearsal['levels']
  readonly error?: string
}

/** In the order of the sidecars, and of the services of each. */
export async function drill(options: DrillOptions): Promise<DrillRow[]> {
  const rows = await Promise.all(options.sidecars.map((sidecar) => askSidecar(sidecar, options)))
  return rows.flat()
}

async function askSidecar(url: string, options: DrillOptions): Promise<DrillRow[]> {
  const sidecar = maskUrl(url)
  const failed = (error: string): DrillRow[] => [{ sidecar, passes: false, error }]
  const { namespace, timeoutMs, network, signal } = options
  const services = options.services && [...new Set(options.services)]
  const query = new URLSearchParams({ ...(services && { service: services.join(',') }), namespace })
  const timeout = new AbortController()
  const cancel = systemClock.after(timeoutMs, () =>
    timeout.abort(new Error(`no answer in ${formatDuration(timeoutMs)}`)),
  )
  let answer: HttpAnswer
  try {
    answer = await network.request({
      method: 'GET',
      url: `${url}/v1/rehearsal?${query.toString()}`,
      signal: AbortSignal.any([signal, timeout.signal]),
    })
  } catch (error) {
    return failed(`cannot be asked: ${reasonOf(error)}`)
  } finally {
    cancel()
  }
  if (answer.status !== 200) return failed(refusalOf(answer.status, answer.body))
  try {
    const found = decodeRehearsal(answer.body, services, namespace)
    return found.length === 0 ? failed(KNOWS_NONE) : found.map((rehearsed) => rowOf(sidecar, rehearsed, options))
  } catch (error) {
    return failed((error as Error).message)
  }
}

/** A sidecar that was started a moment ago is no proof of anything. */
const KNOWS_NONE = 'knows no services: name those you need with --service'

function rowOf(sidecar: string, { namespace, service, levels }: RehearsedService, options: DrillOptions): DrillRow {
  // A level that is asked later answers only where those before it know nothing.
  const level = levelsOf(options.level).find((name) => levels[name].resolves)
  const passes = level !== undefined && levels[level].usable! >= options.minUsable
  return { sidecar, namespace, service, passes, ...(level && { level }), levels }
}

function levelsOf(level: RehearsedLevel | undefined): readonly RehearsedLevel[] {
  return level === undefined ? REHEARSED : [level]
}

/** What each sidecar could not answer at all stands in `errors`. */
export function drillReport(
  rows: readonly DrillRow[],
  { level, minUsable }: Pick<DrillOptions, 'level' | 'minUsable'>,
): { text: string; errors: string[] } {
  const errors = rows.flatMap(({ sidecar, error }) => (error === undefined ? [] : [`${sidecar}: ${error}`]))
  const shown = rows.filter(({ levels }) => levels !== undefined)
  const head = ['sidecar', 'namespace', 'service', 'resolves', ...REHEARSED, 'reason']
  const text =
    shown.length === 0
      ? 'no services'
      : table(
          head,
          shown.map((row) => [
            row.sidecar,
            row.namespace,
            row.service,
            row.passes ? `from ${row.level}` : 'NO',
            ...REHEARSED.map((name) => cell(row.levels![name])),
            row.passes
              ? ''
              : (row.level ? [row.level] : levelsOf(level))
                  .map((name) => shortfall(row.levels![name], minUsable))
                  .join('; '),
          ]),
        )
  return { text, errors }
}

/** `3/5 12s`: so many nodes of those known take traffic, and the view is so old. */
function cell({ resolves, usable, nodes, age }: LevelRehearsal): string {
  return resolves ? `${usable}/${nodes} ${formatDuration(Math.round((age ?? 0) / 1_000) * 1_000 || 0)}` : '-'
}

function shortfall(level: LevelRehearsal, minUsable: number): string {
  const { resolves, reason = '', usable, nodes, overridden, unanswered = [] } = level
  const by = overridden ? " by an operator's override file" : ''
  const why = resolves ? `${usable} of ${nodes} nodes usable${by}, ${minUsable} wanted` : reason
  return [why, ...unanswered].join('; ')
}
