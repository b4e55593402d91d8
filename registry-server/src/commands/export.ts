/** `holdfast-registry export`: all state as text. */

import { existsSync, realpathSync, statSync } from 'node:fs'
import { open, rename, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { leaf, SettingsError } from '@holdfast/registry-client/settings'
import * as z from 'zod'
import type { PortableRecord, StorePicture } from '../store/archive.ts'
import { encodeExport } from '../store/portable.ts'
import { formatFinding, Problems, Unsound, Verification } from '../store/verification.ts'
import { version } from '../version.ts'
import { commandSettings, counted, Progress, type CommandContext } from './command.ts'

export const exportSettings = commandSettings({
  file: leaf(z.string().min(1), {
    flag: 'file',
    value: 'FILE',
    doc: 'where to write it, readable by this user alone; - is standard output',
  }).default('-'),
})

export const EXPORT_USAGE =
  'Usage: holdfast-registry export [OPTIONS]\n\n' +
  'Writes all state as of one moment, one JSON document a line, also while the registry runs. Whoever reads it can end\n' +
  'every lease. The last line says that it is whole: import refuses it without, and after any other change.'

/** @throws StoreRefused, Unsound, Interrupted */
export async function exportStore(
  { file, logLevel }: z.output<typeof exportSettings>,
  context: CommandContext,
): Promise<number> {
  const { archive, clock, identifier, terminal } = context
  const progress = new Progress(context, logLevel)
  const picture = await archive.read()
  const header = {
    epoch: picture.epoch,
    revision: picture.revision,
    time: new Date(clock.wall()).toISOString(),
    version,
  }
  let count = 0
  const text = encodeExport(
    header,
    soundRecords(picture, () => progress.at('exported', ++count)),
  )
  if (file === '-') for await (const chunk of text) await terminal.write(chunk)
  else await replaceFile(file, identifier(), text)
  progress.end(
    `exported ${counted(count, 'record')} at revision ${picture.revision}${file === '-' ? '' : ` to ${file}`}`,
  )
  return 0
}

/**
 * What cannot be imported again is no copy, and that must be known when it is made.
 * @throws Unsound after the last record
 */
async function* soundRecords(picture: StorePicture, onRecord: () => void): AsyncGenerator<PortableRecord> {
  const problems = new Problems()
  const verification = new Verification(picture.revision, (finding) => problems.add(formatFinding(finding)))
  for await (const stored of picture.records) {
    if ('problem' in stored) {
      verification.addUnreadable(stored.key, stored.problem)
      continue
    }
    const record = verification.add(stored.key, stored.value)
    if (record === undefined) continue
    onRecord()
    yield record
  }
  for (const { key, problem } of picture.problems) verification.addUnreadable(key, problem)
  verification.finish()
  if (problems.count > 0) throw new Unsound('the store has problems, and the export was given up', problems)
}

/** Under a name of its own, synced, then renamed: whoever reads the file finds the old content or the new. */
async function replaceFile(file: string, unique: string, text: AsyncIterable<string>): Promise<void> {
  const target = existsSync(file) ? realpathSync(file) : file
  // A rename would put a file in the place of a device or a pipe.
  if (existsSync(target) && !statSync(target).isFile())
    throw new SettingsError([{ path: 'file', message: `${file} is there and is no file` }])
  const temporary = join(dirname(target), `.${basename(target)}.${unique}.tmp`)
  const handle = await open(temporary, 'wx', 0o600)
  try {
    try {
      await writeFile(handle, text)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, target)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  // Windows does not sync directories; there a rename is as durable as it gets.
  if (process.platform === 'win32') return
  const directory = await open(dirname(target), 'r')
  await directory.sync().finally(() => directory.close())
}
