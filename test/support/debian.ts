/** Programs of the machine that tests and benchmarks use. As root on Debian they are installed when they are missing. */

import { execFile } from 'node:child_process'
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'

const runProgram = promisify(execFile)

/**
 * Run by one process of the machine at a time. A failure is remembered for ten minutes: without a network each test
 * file would wait for it anew.
 */
const INSTALL = `
set -e
program=$1 package=$2 service=$3 lock=$4
if command -v "$program" >/dev/null; then exit 0; fi
failed="$lock.failed"
if [ -n "$(find "$failed" -mmin -10 2>/dev/null)" ]; then exit 1; fi
touch "$failed"
export DEBIAN_FRONTEND=noninteractive
# Some packages start a service of their own, on its usual port; the machine's policy, if it has one, stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\\nexit 101\\n' >"$policy"
  chmod 755 "$policy"
fi
get() {
  apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@"
}
get install --no-install-recommends "$package" || { get update && get install --no-install-recommends "$package"; }
service "$service" stop || true
update-rc.d "$service" disable || true
rm -f "$failed"
`

/** Where a program is; undefined when it is missing. */
export async function findProgram(name: string): Promise<string | undefined> {
  const usual = ['/usr/sbin', '/usr/bin', '/usr/local/bin']
  for (const directory of [...(process.env.PATH ?? '').split(path.delimiter), ...usual]) {
    const file = path.join(directory, name)
    const isThere = await access(file, constants.X_OK).then(
      () => directory !== '',
      () => false,
    )
    if (isThere) return file
  }
  return undefined
}

/**
 * The same, after an attempt to install it.
 * @param service that the package may start, and that is stopped then
 */
export async function findOrInstall(name: string, debianPackage: string, service: string): Promise<string | undefined> {
  const found = await findProgram(name)
  if (found !== undefined || process.getuid?.() !== 0) return found
  const [flock, aptGet] = await Promise.all([findProgram('flock'), findProgram('apt-get')])
  if (flock === undefined || aptGet === undefined) return undefined
  const lock = `/run/holdfast-install-${debianPackage}`
  const args = ['-w', '280', lock, 'sh', '-c', INSTALL, 'sh', name, debianPackage, service, lock]
  await runProgram(flock, args, { maxBuffer: 16 << 20 }).catch(() => {})
  return findProgram(name)
}
