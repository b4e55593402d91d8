import { readFileSync } from 'node:fs'
import { pino } from 'pino'
import { SettingsError } from '@holdfast/registry-client/settings'
import { checkAccessLog } from './access-log-file.ts'
import { loadConfig, sidecarHelp } from './config.ts'
import { createSidecar } from './sidecar.ts'
import { formatTcpBinding } from './tcp/tcp-binding.ts'
import { endOnUncaught } from './uncaught.ts'

/** `holdfast-sidecar`. Exits 0 after a drain, 2 for a configuration that cannot be used, 1 for everything else. */
export async function main(): Promise<void> {
  endOnUncaught()
  let loaded
  try {
    loaded = loadConfig({ argv: process.argv.slice(2), env: process.env })
    const { accessLog } = loaded.config
    if (!loaded.asked && accessLog !== 'off') await checkAccessLog(accessLog)
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exit(2)
  }
  const { config, asked } = loaded
  if (asked) {
    process.stdout.write(asked === 'help' ? sidecarHelp() : `${versionOf()}\n`)
    return
  }
  // Standard output is for the ready line, and for the access log of those who want it there.
  const log = pino({ name: 'holdfast-sidecar', level: config.logLevel }, pino.destination({ dest: 2, sync: true }))
  // A promise that nobody waits for broke: a bug, but one whose request is over. The others go on.
  process.on('unhandledRejection', (error) => log.error({ err: error }, 'a promise was left alone'))
  // Before anybody can know that it is ready: a signal that finds no handler kills.
  const askedToStop = new Promise<void>(stopOnSignal)
  try {
    const sidecar = await Promise.race([createSidecar({ config, log }), askedToStop])
    // Nothing is registered yet, nor served: there is nothing to drain.
    if (sidecar === undefined) process.exit(0)
    process.on('SIGHUP', () => sidecar.reopenLogs())
    const listening = Object.entries(sidecar.addresses).map(([side, address]) => `${side} ${address}`)
    listening.push(...sidecar.tcp.map((binding) => `tcp ${formatTcpBinding(binding)}`))
    // Whoever has read enough has gone.
    process.stdout.on('error', () => {})
    process.stdout.write(`holdfast-sidecar ready: ${listening.join(', ')}\n`)
    const error = await Promise.race([askedToStop, sidecar.drainAsked, sidecar.failed])
    await sidecar.drain()
    if (error) throw error
    process.exit(0)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'EADDRINUSE' || code === 'EACCES' || code === 'EADDRNOTAVAIL') process.stderr.write(`${message}\n`)
    else log.fatal({ err: error }, 'the sidecar failed')
    process.exit(1)
  }
}

/** The first signal asks for a drain; of those who have no patience for one, a second ends it. */
function stopOnSignal(stop: () => void): void {
  let isAsked = false
  const signalled = () => {
    if (isAsked) process.exit(1)
    isAsked = true
    stop()
  }
  process.on('SIGTERM', signalled)
  process.on('SIGINT', signalled)
}

function versionOf(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8')
  return (JSON.parse(text) as { version: string }).version
}
