/** `holdfast-registry import`: what export wrote becomes a store. */

import { createReadStream } from 'node:fs'
import { addAbortSignal } from 'node:stream'
import { leaf, toggle } from '@holdfast/registry-client/settings'
import * as z from 'zod'
import type { PortableRecord } from '../store/archive.ts'
import { readExport } from '../store/portable.ts'
import { commandSettings, counted, Interrupted, Progress, type CommandContext } from './command.ts'

export const importSettings = commandSettings({
  file: leaf(z.string().min(1), {
    flag: 'file',
    value: 'FILE',
    doc: 'what export wrote; - is standard input',
  }).default('-'),
  newEpoch: leaf(toggle(), {
    flag: 'new-epoch',
    doc: 'gives the copy an identity of its own: for one beside the original, or an export that clients are ahead of',
  }).default(false),
})

export const IMPORT_USAGE =
  'Usage: holdfast-registry import [OPTIONS]\n\n' +
  'Makes a store of what export wrote, where none is yet. All of it is checked before anything is made. Identity and\n' +
  'revision stay: clients that followed the original go on with the copy as if nothing had happened.'

/** @throws StoreRefused, Unsound, Interrupted */
export async function importStore(
  { file, newEpoch, logLevel }: z.output<typeof importSettings>,
  context: CommandContext,
): Promise<number> {
  const { archive, identifier, signal, terminal } = context
  const progress = new Progress(context, logLevel)
  // First: nobody shall wait for a long file only to hear this.
  await archive.refuseUnlessEmpty()
  const input = file === '-' ? terminal.input() : createReadStream(file)
  const { header, records } = await readExport(addAbortSignal(signal, input), (count) =>
    progress.at('read', count),
  ).catch((error: unknown) => {
    throw signal.aborted ? new Interrupted() : error
  })
  const epoch = newEpoch ? identifier() : header.epoch
  await archive.create({ epoch, revision: header.revision }, told(records, progress))
  progress.end(
    `imported ${counted(records.length, 'record')} at revision ${header.revision} into ${archive.location}, ` +
      `${newEpoch ? 'with the new epoch' : 'of epoch'} ${epoch}`,
  )
  return 0
}

function* told(records: readonly PortableRecord[], progress: Progress): Iterable<PortableRecord> {
  let count = 0
  for (const record of records) {
    yield record
    progress.at('written', ++count)
  }
}
