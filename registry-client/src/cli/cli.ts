/** `holdfast`, the operator's command line: reads and changes the registry through its HTTP API. */

import { readFileSync } from 'node:fs'
import { parse as parseYaml } from 'yaml'
import { formatDuration, systemClock, systemRandom } from '../clock.ts'
import { cliSettings, type CliSettings } from './config.ts'
import { connect } from '../client.ts'
import { Connection } from '../registry/connection.ts'
import { drill, drillReport } from './drill.ts'
import { silentLog } from '../log.ts'
import { systemNetwork } from '../network.ts'
import { isServiceName, type Removal, type ServiceNode, type ViewDocument } from '../protocol.ts'
import { helpText, loadSettings, SettingsError, suggest } from '../settings.ts'
import { table } from './table.ts'
import packageJson from '../../package.json' with { type: 'json' }

const USAGE = 'Usage: holdfast COMMAND [OPTIONS]\n\nReads and changes a Holdfast registry.'
const COMMANDS = [
  ['services [PREFIX]', 'all services, with their nodes counted by status'],
  ['nodes SERVICE', 'the nodes of a service'],
  ['watch SERVICE', 'the nodes of a service, then each change as it happens'],
  ['override SERVICE NODE', 'set --status or --weight of a node over what it says itself, or --clear it'],
  ['policy get SERVICE', 'the policy of a service'],
  ['policy apply SERVICE --file F', 'check and store a policy'],
  ['policy delete SERVICE', 'back to the defaults'],
  ['status', 'the registry itself'],
  ['drill', 'which services would resolve if the registry died now, asked of --sidecar; exits 1 if one would not'],
] as const
const FOOTER =
  '\nExits 0 when done, 1 when the registry refused or did not answer, 2 for arguments that cannot be used.\n'

/** Arguments that cannot be used. */
class UsageError extends Error {}

export interface Streams {
  readonly out: (text: string) => void
  readonly error: (text: string) => void
  /** Columns of the terminal; undefined when it is not one. */
  readonly columns: number | undefined
}

interface Context {
  readonly settings: CliSettings
  readonly streams: Streams
  readonly signal: AbortSignal
  readonly call: (method: string, path: string, body?: unknown) => Promise<unknown>
}

/** Runs the program on the process's own arguments and streams. */
export async function main(): Promise<void> {
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())
  // `holdfast services | head -1` closes our standard output; that is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0)
    throw error
  })
  process.exitCode = await run(process.argv.slice(2), process.env, stop.signal, {
    out: (text) => void process.stdout.write(`${text}\n`),
    error: (text) => void process.stderr.write(`${text}\n`),
    columns: process.stdout.isTTY ? process.stdout.columns : undefined,
  })
}

/**
 * One command.
 * @returns the exit code: 0 done, 1 refused or not answered, 2 arguments that cannot be used
 */
export async function run(
  argv: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  signal: AbortSignal,
  streams: Streams,
): Promise<number> {
  try {
    const { settings, positionals, asked } = loadSettings(cliSettings, { argv, env }, { positionals: true })
    if (asked === 'version') streams.out(packageJson.version)
    else if (asked === 'help') streams.out(helpText(USAGE, cliSettings, COMMANDS, FOOTER))
    else return (await command(positionals, contextOf(settings, streams, signal))) ?? 0
    return 0
  } catch (error) {
    if (error instanceof SettingsError) streams.error(`${error.message}\nholdfast --help lists the options`)
    else if (error instanceof UsageError) streams.error(`${error.message}\nholdfast --help lists the commands`)
    else if (signal.aborted) return 0
    else streams.error(error instanceof Error ? error.message : String(error))
    return error instanceof SettingsError || error instanceof UsageError ? 2 : 1
  }
}

function contextOf(settings: CliSettings, streams: Streams, signal: AbortSignal): Context {
  const connection = new Connection(
    {
      endpoints: settings.registry,
      network: systemNetwork,
      clock: systemClock,
      // The first endpoint first: an operator who names one means it.
      random: () => 0,
      log: silentLog,
    },
    { event() {}, reachable() {}, held: () => ({}) },
  )
  const call = async (method: string, path: string, body?: unknown): Promise<unknown> => {
    const timeout = new AbortController()
    const cancel = systemClock.after(settings.timeout, () => timeout.abort())
    const answer = await connection
      .request(method, path, body, AbortSignal.any([signal, timeout.signal]))
      .finally(cancel)
    try {
      return answer.body === '' ? undefined : JSON.parse(answer.body)
    } catch {
      throw new Error(`${method} ${path}: the answer is not JSON; is this a registry?`)
    }
  }
  return { settings, streams, signal, call }
}

/** @returns the exit code of a command that has found something wanting */
async function command(words: readonly string[], context: Context): Promise<number | void> {
  const [name, ...rest] = words
  switch (name) {
    case 'services':
      return services(rest, context)
    case 'nodes':
      return nodes(rest, context)
    case 'watch':
      return watch(rest, context)
    case 'override':
      return override(rest, context)
    case 'policy':
      return policy(rest, context)
    case 'status':
      return status(rest, context)
    case 'drill':
      return drillSidecars(rest, context)
    case undefined:
      throw new UsageError('a command is needed')
    default: {
      const known = new Set(COMMANDS.map(([usage]) => usage.split(' ')[0]!))
      throw new UsageError(`unknown command ${name}${suggest(name, known)}`)
    }
  }
}

interface ServiceSummary {
  readonly service: string
  readonly nodes: Readonly<Record<string, number>>
  readonly cursor: string
}

async function services(words: readonly string[], { settings, streams, call }: Context): Promise<void> {
  const [prefix = ''] = upTo(words, 1, 'services [PREFIX]')
  const found: ServiceSummary[] = []
  for (let page: string | undefined; ;) {
    const query = new URLSearchParams({ namespace: settings.namespace, limit: '1000' })
    if (prefix) query.set('prefix', prefix)
    if (page !== undefined) query.set('page', page)
    const answer = (await call('GET', `/v1/services?${query.toString()}`)) as {
      services: ServiceSummary[]
      next?: string | null
    }
    found.push(...answer.services)
    if (answer.next == null) break
    page = answer.next
  }
  if (settings.json) return streams.out(JSON.stringify(found, undefined, 2))
  if (found.length === 0) return streams.out('no services')
  const rows = found.map(({ service, nodes, cursor }) => [service, nodes.up, nodes.draining, nodes.down, cursor])
  streams.out(table(['service', 'up', 'draining', 'down', 'cursor'], rows))
}

async function nodes(words: readonly string[], { settings, streams, call }: Context): Promise<void> {
  const service = serviceOf(upTo(words, 1, 'nodes SERVICE', 1)[0])
  const query = new URLSearchParams({ namespace: settings.namespace })
  if (settings.status) query.set('status', settings.status)
  const view = (await call('GET', `/v1/services/${service}?${query.toString()}`)) as ViewDocument
  if (settings.json) return streams.out(JSON.stringify(view, undefined, 2))
  streams.out(view.nodes.length === 0 ? `${service} has no nodes${reasonFor(view)}` : nodeTable(view.nodes))
}

async function watch(words: readonly string[], { settings, streams, signal }: Context): Promise<void> {
  const service = serviceOf(upTo(words, 1, 'watch SERVICE', 1)[0])
  const log = {
    ...silentLog,
    warn: (fields: { reason?: string; endpoint?: string }, message: string) =>
      streams.error(`${message}: ${fields.endpoint ?? ''} ${fields.reason ?? ''}`),
  }
  const client = await connect({
    endpoints: settings.registry,
    namespace: settings.namespace,
    random: systemRandom,
    log,
  })
  try {
    await client.resolve(service, { deadline: settings.timeout, signal }).catch((error: Error) => {
      if (!signal.aborted) streams.error(`waiting for ${error.message}`)
    })
    let before: ReadonlyMap<string, ServiceNode> | undefined
    for await (const { view } of client.watch(service, { signal })) {
      if (settings.json)
        streams.out(
          JSON.stringify({ cursor: `${view.cursor.epoch}:${view.cursor.revision}`, nodes: [...view.nodes.values()] }),
        )
      else if (before === undefined)
        streams.out(view.nodes.size === 0 ? `${service} has no nodes` : nodeTable([...view.nodes.values()]))
      else for (const line of differences(before, view.nodes)) streams.out(`${view.cursor.revision}  ${line}`)
      before = view.nodes
    }
  } finally {
    await client.close()
  }
}

async function override(words: readonly string[], { settings, streams, call }: Context): Promise<void> {
  const [name, node] = upTo(words, 2, 'override SERVICE NODE', 2)
  const service = serviceOf(name)
  const { status, weight, clear } = settings
  if (clear === (status !== undefined || weight !== undefined))
    throw new UsageError('override: give --status and --weight, or --clear')
  const path = `/v1/services/${service}/nodes/${encodeURIComponent(node!)}?namespace=${settings.namespace}`
  const answer = (await call('PATCH', path, { override: clear ? null : { status, weight } })) as ServiceNode | undefined
  // Of a node that is not there now nothing is left to show.
  if (answer === undefined) return settings.json ? undefined : streams.out(`the override of ${node} is cleared`)
  streams.out(settings.json ? JSON.stringify(answer, undefined, 2) : nodeTable([answer]))
}

async function policy(words: readonly string[], { settings, streams, call }: Context): Promise<void> {
  const [verb, name] = upTo(words, 2, 'policy get|apply|delete SERVICE', 2)
  const service = serviceOf(name)
  const path = `/v1/services/${service}/policy?namespace=${settings.namespace}`
  switch (verb) {
    case 'get': {
      streams.out(JSON.stringify(await call('GET', path), undefined, 2))
      return
    }
    case 'apply': {
      if (settings.file === undefined) throw new UsageError('policy apply: --file is needed')
      const answer = await call('PUT', path, readPolicyFile(settings.file))
      streams.out(settings.json ? JSON.stringify(answer, undefined, 2) : `policy of ${service} is stored`)
      return
    }
    case 'delete': {
      await call('DELETE', path)
      if (!settings.json) streams.out(`policy of ${service} is deleted`)
      return
    }
    default:
      throw new UsageError(`policy: ${verb} is none of get, apply, delete`)
  }
}

async function status(words: readonly string[], { settings, streams, call }: Context): Promise<void> {
  upTo(words, 0, 'status')
  const answer = (await call('GET', '/v1/status')) as Record<string, unknown>
  if (settings.json) return streams.out(JSON.stringify(answer, undefined, 2))
  streams.out(table(['', ''], flatten(answer)))
}

async function drillSidecars(words: readonly string[], { settings, streams, signal }: Context): Promise<number> {
  upTo(words, 0, 'drill --service NAME[,NAME] --sidecar URL[,URL]')
  const { sidecar: sidecars, service: services, namespace, level, minUsable, timeout: timeoutMs, json } = settings
  const rows = await drill({
    sidecars,
    services,
    namespace,
    level,
    minUsable,
    timeoutMs,
    network: systemNetwork,
    signal,
  })
  const { text, errors } = drillReport(rows, { level, minUsable })
  streams.out(json ? JSON.stringify(rows, undefined, 2) : text)
  for (const error of errors) streams.error(error)
  return rows.every(({ passes }) => passes) ? 0 : 1
}

function readPolicyFile(file: string): unknown {
  try {
    return parseYaml(readFileSync(file === '-' ? 0 : file, 'utf8'))
  } catch (error) {
    throw new UsageError(`${file}: ${(error as Error).message.split('\n')[0]}`)
  }
}

function upTo(words: readonly string[], most: number, usage: string, least = 0): readonly string[] {
  if (words.length > most || words.length < least) throw new UsageError(`usage: holdfast ${usage}`)
  return words
}

function serviceOf(name: string | undefined): string {
  if (name === undefined || !isServiceName(name))
    throw new UsageError(`not a service name: ${name}; lower-case letters, digits, . and -`)
  return name
}

function reasonFor(view: ViewDocument): string {
  const { emptied } = view as { emptied?: Removal }
  return emptied ? `; the last, ${emptied.id}, went by ${emptied.cause} at ${emptied.time}` : ''
}

function nodeTable(nodes: readonly ServiceNode[]): string {
  const rows = nodes.map((node) => [
    node.id,
    `${node.host.includes(':') ? `[${node.host}]` : node.host}:${node.port}`,
    node.protocol,
    overridden(node, 'status'),
    overridden(node, 'weight'),
    node.zone ?? '',
    Object.entries(node.labels)
      .map(([key, value]) => `${key}=${value}`)
      .join(' '),
    node.leased ? 'lease' : 'static',
  ])
  return table(['node', 'address', 'protocol', 'status', 'weight', 'zone', 'labels', 'life'], rows)
}

/** What is in force, and what the node says where an operator said otherwise. */
function overridden(node: ServiceNode, field: 'status' | 'weight'): string {
  return node.override?.[field] === undefined ? String(node[field]) : `${node[field]} (was ${node.registered[field]})`
}

function* differences(before: ReadonlyMap<string, ServiceNode>, after: ReadonlyMap<string, ServiceNode>) {
  for (const id of before.keys()) if (!after.has(id)) yield `- ${id}`
  for (const node of after.values()) {
    const old = before.get(node.id)
    if (old === undefined) yield `+ ${node.id} ${node.host}:${node.port} ${node.status} weight ${node.weight}`
    else if (JSON.stringify(old) !== JSON.stringify(node))
      yield `~ ${node.id} ${node.host}:${node.port} ${overridden(node, 'status')} weight ${overridden(node, 'weight')}`
  }
}

function flatten(document: Record<string, unknown>, prefix = ''): [string, string][] {
  return Object.entries(document).flatMap(([key, value]): [string, string][] => {
    if (typeof value === 'object' && value !== null && !Array.isArray(value))
      return flatten(value as Record<string, unknown>, `${prefix}${key}.`)
    const isDuration = key.endsWith('Ms') && typeof value === 'number'
    const text = isDuration
      ? formatDuration(Math.round(value))
      : typeof value === 'string'
        ? value
        : JSON.stringify(value)
    return [[prefix + (isDuration ? key.slice(0, -2) : key), text]]
  })
}
