/** The packages as they are published, to be measured in place of the sources: what Node 20 needs to run those is not theirs. */

import { mkdtempSync, rmSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from '../../build.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))

let directory: Promise<string> | undefined

/** Built once, where they find what is installed for the tree. @returns their directory, which goes with the process */
export function builtPackages(): Promise<string> {
  return (directory ??= make())
}

async function make(): Promise<string> {
  const made = mkdtempSync(path.join(ROOT, 'node_modules/.holdfast-bench-'))
  process.once('exit', () => rmSync(made, { recursive: true, force: true }))
  await build(made)
  return made
}
