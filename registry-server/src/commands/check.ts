/** `holdfast-registry check`: whether a store is sound. */

import { leaf, toggle } from '@holdfast/registry-client/settings'
import type * as z from 'zod'
import { formatFinding, Verification, type Finding } from '../store/verification.ts'
import { commandSettings, counted, Progress, type CommandContext } from './command.ts'

export const checkSettings = commandSettings({
  json: leaf(toggle(), { flag: 'json', doc: 'one JSON document for programs instead of lines' }).default(false),
})

export const CHECK_USAGE =
  'Usage: holdfast-registry check [OPTIONS]\n\n' +
  'Reads the whole store as of one moment, also while the registry runs, and prints a line for each problem: the key of\n' +
  'the record and what is wrong with it.'

/**
 * @returns 0 for a sound store, else 1
 * @throws StoreRefused, Interrupted
 */
export async function checkStore(
  { json, logLevel }: z.output<typeof checkSettings>,
  context: CommandContext,
): Promise<number> {
  const { archive, terminal } = context
  const progress = new Progress(context, logLevel)
  const picture = await archive.read()
  const { epoch, revision } = picture
  const problems: Finding[] = []
  const verification = new Verification(revision, (finding) => problems.push(finding))
  let count = 0
  for await (const stored of picture.records) {
    progress.at('checked', ++count)
    if ('problem' in stored) verification.addUnreadable(stored.key, stored.problem)
    else verification.add(stored.key, stored.value)
  }
  for (const { key, problem } of picture.problems) verification.addUnreadable(key, problem)
  verification.finish()
  const isSound = problems.length === 0
  if (json) {
    const { kind, location } = archive
    const document = { store: kind, location, epoch, revision, records: count, sound: isSound, problems }
    await terminal.write(`${JSON.stringify(document, undefined, 2)}\n`)
  } else {
    const verdict = isSound ? 'sound' : counted(problems.length, 'problem')
    const lines = problems.map(formatFinding)
    lines.push(`checked ${counted(count, 'record')} at revision ${revision}: ${verdict}`)
    await terminal.write(`${lines.join('\n')}\n`)
  }
  return isSound ? 0 : 1
}
