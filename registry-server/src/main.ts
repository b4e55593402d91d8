/** The program `holdfast-registry`. */

import { randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { systemClock } from '@holdfast/registry-client/clock'
import { helpText, loadSettings, SettingsError, suggest } from '@holdfast/registry-client/settings'
import type * as z from 'zod'
import { CHECK_USAGE, checkSettings, checkStore } from './commands/check.ts'
import { Interrupted, type CommandContext, type Terminal } from './commands/command.ts'
import { EXPORT_USAGE, exportSettings, exportStore } from './commands/export.ts'
import { IMPORT_USAGE, importSettings, importStore } from './commands/import.ts'
import { settings } from './config.ts'
import { createRegistry, type Registry } from './server.ts'
import { openArchive } from './store/open-store.ts'
import { StoreRefused } from './store/store.ts'
import { Unsound } from './store/verification.ts'
import { version } from './version.ts'

const USAGE =
  'Usage: holdfast-registry [COMMAND] [OPTIONS]\n\n' +
  'holdfast-registry: keeps which nodes a service has, and tells everyone who watches. Without a command it serves.'
const COMMANDS = [
  ['export', 'writes all state as text, also while the registry runs'],
  ['import', 'makes a store of what export wrote'],
  ['check', 'says whether a store is sound, also while the registry runs'],
] as const
const FOOTER = '\nholdfast-registry COMMAND --help lists the options of a command.\n'
const COMMAND_FOOTER = '\nExits 0 when done, 1 when there was a problem, 2 for settings that cannot be used.\n'

export async function main(): Promise<void> {
  // Standard error is for operators: what a dependency of ours should not call any more tells them nothing.
  process.noDeprecation = true
  try {
    await run(process.argv.slice(2))
  } catch (error) {
    process.stderr.write(`holdfast-registry: ${describe(error)}\n`)
    process.exit(error instanceof SettingsError ? 2 : 1)
  }
}

async function run(argv: readonly string[]): Promise<void> {
  const [name, ...rest] = argv
  switch (name) {
    case 'export':
      return runCommand(rest, EXPORT_USAGE, exportSettings, exportStore)
    case 'import':
      return runCommand(rest, IMPORT_USAGE, importSettings, importStore)
    case 'check':
      return runCommand(rest, CHECK_USAGE, checkSettings, checkStore)
  }
  if (name === undefined || name.startsWith('-')) return serve(argv)
  const known = COMMANDS.map(([command]) => command)
  throw new SettingsError([{ path: name, message: `unknown command${suggest(name, known)}` }])
}

/** What says where the state is, the same for the registry and its commands. */
type Place = Pick<z.output<typeof settings>, 'store' | 'dataDir' | 'etcd'>

async function runCommand<T extends z.ZodObject<z.ZodRawShape>>(
  argv: readonly string[],
  usage: string,
  schema: T,
  command: (settings: z.output<T> & Place, context: CommandContext) => Promise<number>,
): Promise<void> {
  const { settings: config, asked } = loadSettings(schema, { argv, env: process.env })
  if (asked) {
    process.stdout.write(asked === 'version' ? `${version}\n` : helpText(usage, schema, [], COMMAND_FOOTER))
    return
  }
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stop.abort())
  const place = config as z.output<T> & Place
  process.exitCode = await command(place, {
    archive: await openArchive(place, { identifier, clock: systemClock }),
    terminal: processTerminal(),
    clock: systemClock,
    identifier,
    signal: stop.signal,
  })
}

function identifier(): string {
  return randomBytes(16).toString('base64url')
}

function processTerminal(): Terminal {
  // Whoever writes is told, by the write.
  process.stdout.on('error', () => {})
  return {
    input: () => process.stdin,
    write: (text) =>
      new Promise((resolve, reject) => process.stdout.write(text, (error) => (error ? reject(error) : resolve()))),
    say: (line) => void process.stderr.write(`${line}\n`),
    isWatched: process.stderr.isTTY,
  }
}

async function serve(argv: readonly string[]): Promise<void> {
  const { settings: config, asked } = loadSettings(settings, { argv, env: process.env })
  if (asked) {
    process.stdout.write(asked === 'version' ? `${version}\n` : helpText(USAGE, settings, COMMANDS, FOOTER))
    return
  }
  const log = pino({ level: config.logLevel, name: 'holdfast-registry' }, pino.destination({ fd: 2, sync: true }))
  const loading = new AbortController()
  let registry: Registry | undefined
  let isStopping = false
  const stop = (signal: NodeJS.Signals) => {
    if (isStopping) process.exit(1)
    isStopping = true
    log.info({ signal }, 'stopping')
    if (registry === undefined) return loading.abort()
    registry.close().then(
      () => process.exit(0),
      (error: unknown) => {
        log.error({ error: String(error) }, 'the stop failed')
        process.exit(1)
      },
    )
  }
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  try {
    registry = await createRegistry({
      config,
      log,
      signal: loading.signal,
      onListening: (url) => log.info({ url }, 'listening; loading the state'),
    })
  } catch (error) {
    if (!loading.signal.aborted) throw error
    process.exit(0)
  }
  // Last: whoever waits for this line may stop us the moment it reads it.
  const { store, hub } = registry.parts
  const { kind, location } = store.status()
  const { revision } = hub.cursor
  process.stdout.write(`holdfast-registry ready: ${registry.url} (store ${kind}, ${location}, revision ${revision})\n`)
}

/** What an operator can act on; a stack only for what nobody foresaw. */
function describe(error: unknown): string {
  if (error instanceof SettingsError) return `the configuration cannot be used:\n${error.message}`
  if (error instanceof StoreRefused || error instanceof Unsound || error instanceof Interrupted) return error.message
  if (!(error instanceof Error)) return String(error)
  // What the system refuses says by itself what was tried: a port that is taken, a name that nobody knows.
  if ((error as NodeJS.ErrnoException).syscall !== undefined) return error.message
  return error.stack ?? error.message
}
