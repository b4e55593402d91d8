import { readFileSync } from 'node:fs'
import { pino } from 'pino'
import { SettingsError } from '@holdfast/registry-client/settings'
import { loadConfig, sidecarHelp } from './config.ts'
import { createSidecar } from './sidecar.ts'

/** `holdfast-sidecar`. Exits 0 after a drain, 2 for a configuration that cannot be used, 1 for everything else. */
export async function main(): Promise<void> {
  let loaded
  try {
    loaded = loadConfig({ argv: process.argv.slice(2), env: process.env })
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
  // A peer's bytes never end the process; a bug in our own code is said, and a supervisor may start afresh.
  process.on('unhandledRejection', (error) => log.error({ err: error }, 'a promise was left alone'))
  try {
    const sidecar = await createSidecar({ config, log })
    const { admin, outbound, inbound } = sidecar.addresses
    process.stdout.write(`holdfast-sidecar ready: admin ${admin}, outbound ${outbound}, inbound ${inbound}\n`)
    await askedToStop(sidecar.drainAsked, () => sidecar.reopenLogs())
    await sidecar.drain()
    process.exit(0)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === 'EADDRINUSE' || code === 'EACCES' || code === 'EADDRNOTAVAIL') process.stderr.write(`${message}\n`)
    else log.fatal({ err: error }, 'the sidecar failed')
    process.exit(1)
  }
}

/** Waits for a signal or the admin API. Of those who have no patience for a drain, a second signal ends it. */
function askedToStop(drainAsked: Promise<void>, reopen: () => void): Promise<void> {
  return new Promise((resolve) => {
    let isAsked = false
    const stop = () => {
      if (isAsked) process.exit(1)
      isAsked = true
      resolve()
    }
    process.on('SIGTERM', stop)
    process.on('SIGINT', stop)
    process.on('SIGHUP', reopen)
    void drainAsked.then(resolve)
  })
}

function versionOf(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8')
  return (JSON.parse(text) as { version: string }).version
}
