/** The program `holdfast-registry`. */

import { pino } from 'pino'
import { helpText, loadSettings, SettingsError } from '@holdfast/registry-client/settings'
import { settings } from './config.ts'
import { createRegistry } from './server.ts'
import { StoreRefused } from './store/store.ts'
import { version } from './version.ts'

const USAGE = 'holdfast-registry: keeps which nodes a service has, and tells everyone who watches.'

export async function main(): Promise<void> {
  try {
    await run()
  } catch (error) {
    process.stderr.write(`holdfast-registry: ${describe(error)}\n`)
    process.exit(error instanceof SettingsError ? 2 : 1)
  }
}

async function run(): Promise<void> {
  const { settings: config, asked } = loadSettings(settings, { argv: process.argv.slice(2), env: process.env })
  if (asked) {
    process.stdout.write(asked === 'version' ? `${version}\n` : helpText(USAGE, settings))
    return
  }
  const log = pino({ level: config.logLevel, name: 'holdfast-registry' }, pino.destination({ fd: 2, sync: true }))
  const registry = await createRegistry({
    config,
    log,
    onListening: (url) => log.info({ url }, 'listening; loading the state'),
  })
  let isStopping = false
  const stop = (signal: NodeJS.Signals) => {
    if (isStopping) process.exit(1)
    isStopping = true
    log.info({ signal }, 'stopping')
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
  // Last: whoever waits for this line may stop us the moment it reads it.
  const { store, hub } = registry.parts
  const { kind, location } = store.status()
  const { revision } = hub.cursor
  process.stdout.write(`holdfast-registry ready: ${registry.url} (store ${kind}, ${location}, revision ${revision})\n`)
}

/** What an operator can act on; a stack only for what nobody foresaw. */
function describe(error: unknown): string {
  if (error instanceof SettingsError) return `the configuration cannot be used:\n${error.message}`
  if (error instanceof StoreRefused) return error.message
  if (!(error instanceof Error)) return String(error)
  // What the system refuses says by itself what was tried: a port that is taken, a name that nobody knows.
  if ((error as NodeJS.ErrnoException).syscall !== undefined) return error.message
  return error.stack ?? error.message
}
