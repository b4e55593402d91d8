/**
 * `npm test`: runs every test file, or those whose path contains one of the arguments, each in a process of its own.
 * Ends with one line, `N passed, N failed, N skipped`. With `CI=true` a skip fails: there everything can run.
 */

import { readdirSync } from 'node:fs'
import path from 'node:path'
import { run } from 'node:test'
import { spec as SpecReporter } from 'node:test/reporters'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('./', import.meta.url))
/** Longer than the longest file takes on a slow machine; what exceeds it hangs. */
const FILE_TIMEOUT_MS = 300_000

const wanted = process.argv.slice(2)
const files = readdirSync(ROOT, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.ts'))
  .map((file) => path.join(ROOT, file))
  .filter((file) => wanted.length === 0 || wanted.some((part) => file.includes(part)))
  .sort()

if (files.length === 0) {
  console.error(`no test file matches ${wanted.join(', ')}`)
  process.exit(2)
}

const counts = { passed: 0, failed: 0, skipped: 0 }
const failures: string[] = []
const tests = run({ files, concurrency: 2, timeout: FILE_TIMEOUT_MS })
tests.on('test:pass', (test) => {
  if (test.details.type === 'suite') return
  counts[test.skip === undefined && test.todo === undefined ? 'passed' : 'skipped']++
})
// Why a whole file failed; node:test does not tell whose it is, and the reporter prints it far above.
tests.on('test:diagnostic', ({ message }) => {
  if (message.startsWith('Error: ')) failures.push(message)
})
tests.on('test:fail', (test) => {
  // A suite fails because a test in it did, which is counted; one that fails on its own does so with its own error.
  const cause = test.details.error as { failureType?: string } | undefined
  if (test.details.type === 'suite' && cause?.failureType === 'subtestsFailed') return
  counts.failed++
  failures.push(`${path.relative(ROOT, test.file ?? '')}: ${test.name}`)
})

tests.pipe(new SpecReporter()).pipe(process.stdout, { end: false })
tests.once('end', () => {
  // The reporter still writes its own summary; the closing line stands alone after it.
  setImmediate(() => {
    for (const failure of failures) console.log(`failed: ${failure}`)
    console.log(`\n${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`)
    const isIncomplete = process.env.CI === 'true' && counts.skipped > 0
    process.exitCode = counts.failed > 0 || isIncomplete || counts.passed === 0 ? 1 : 0
  })
})
