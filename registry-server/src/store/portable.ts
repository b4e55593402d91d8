/**
 * A store as text, to be kept or carried to another place or engine: one JSON document a line.
 *
 *     {"holdfast":"export","format":1,"epoch":…,"revision":…,"time":…,"version":…}
 *     {"key":"node/default/stock/a","value":{…}}
 *     …
 *     {"end":true,"records":1,"sha256":…}
 *
 * The sum is over all bytes before the last line. What has no such line was cut off, and is worth nothing.
 */

import { isUtf8 } from 'node:buffer'
import { createHash } from 'node:crypto'
import * as z from 'zod'
import { problemsOf } from '@holdfast/registry-client/settings'
import { PATTERNS } from '@holdfast/registry-client/protocol'
import type { PortableRecord, StoreIdentity } from './archive.ts'
import { formatFinding, Problems, Unsound, Verification } from './verification.ts'

/** Raised by any change that an older version would misread. */
export const EXPORT_FORMAT = 1

/** The longest line is the end of leases with very many nodes, in history: some 100 bytes each. */
const MAX_LINE_BYTES = 64 * 1_048_576
/** Written in one piece. */
const CHUNK_CHARS = 65_536

export interface ExportHeader extends StoreIdentity {
  /** ISO 8601. */
  readonly time: string
  /** Of the program that wrote it. */
  readonly version: string
}

/** Everything in pieces of many lines. What ends early, because `records` throws, has no last line. */
export async function* encodeExport(
  { epoch, revision, time, version }: ExportHeader,
  records: AsyncIterable<PortableRecord>,
): AsyncGenerator<string> {
  const sum = createHash('sha256')
  const line = (document: object) => `${JSON.stringify(document)}\n`
  let chunk = line({ holdfast: 'export', format: EXPORT_FORMAT, epoch, revision, time, version })
  let count = 0
  for await (const { key, value } of records) {
    count++
    chunk += line({ key, value })
    if (chunk.length < CHUNK_CHARS) continue
    sum.update(chunk)
    yield chunk
    chunk = ''
  }
  sum.update(chunk)
  yield chunk + line({ end: true, records: count, sha256: sum.digest('hex') })
}

export interface ReadExport {
  readonly header: ExportHeader
  /** Sound. */
  readonly records: readonly PortableRecord[]
}

/**
 * Reads an export back and checks all of it.
 * @param onRecord called with how many records there are so far
 * @throws Unsound
 */
export async function readExport(
  chunks: AsyncIterable<Buffer>,
  onRecord: (count: number) => void = () => {},
): Promise<ReadExport> {
  const problems = new Problems()
  const reader = new ExportReader(problems, onRecord)
  for await (const line of linesOf(chunks)) if (!reader.take(line)) break
  const read = reader.finish()
  if (problems.count > 0 || read === undefined)
    throw new Unsound('the export cannot be imported, and nothing was changed', problems)
  return read
}

/** Bytes without the line break. */
interface Line {
  readonly bytes: Buffer
  /** Whether the line came to its end, and if not, why. */
  readonly ended: 'whole' | 'cut' | 'too long'
}

async function* linesOf(chunks: AsyncIterable<Buffer>): AsyncGenerator<Line> {
  let pending: Buffer[] = []
  let size = 0
  for await (const chunk of chunks) {
    for (let start = 0; start < chunk.length;) {
      const end = chunk.indexOf(0x0a, start)
      const piece = chunk.subarray(start, end < 0 ? chunk.length : end)
      size += piece.length
      if (size > MAX_LINE_BYTES) {
        yield { bytes: Buffer.alloc(0), ended: 'too long' }
        return
      }
      pending.push(piece)
      if (end < 0) break
      yield { bytes: pending.length === 1 ? piece : Buffer.concat(pending), ended: 'whole' }
      pending = []
      size = 0
      start = end + 1
    }
  }
  if (size > 0) yield { bytes: Buffer.concat(pending), ended: 'cut' }
}

const header = z.object({
  holdfast: z.literal('export'),
  epoch: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'must be an epoch'),
  revision: z.int().min(0),
  time: z.string().max(64).regex(new RegExp(PATTERNS.text), 'must be a time'),
  version: z.string().max(64).regex(new RegExp(PATTERNS.text), 'must be a version'),
})
const footer = z.strictObject({ end: z.literal(true), records: z.int(), sha256: z.string() })

class ExportReader {
  readonly #problems: Problems
  readonly #onRecord: (count: number) => void
  readonly #sum = createHash('sha256')
  readonly #records: PortableRecord[] = []
  #line = 0
  #lines = 0
  #header: ExportHeader | undefined
  #verification: Verification | undefined
  /** `broken`: what was read cannot be judged as a whole. */
  #end: 'to come' | 'whole' | 'broken' = 'to come'

  constructor(problems: Problems, onRecord: (count: number) => void) {
    this.#problems = problems
    this.#onRecord = onRecord
  }

  /** @returns whether it makes sense to go on */
  take({ bytes, ended }: Line): boolean {
    this.#line++
    if (this.#end !== 'to come') return this.#stop('there is more after the last line')
    if (ended === 'too long') return this.#stop(`is longer than ${MAX_LINE_BYTES} bytes`)
    if (ended === 'cut') return this.#stop('ends in the middle: the file was cut off')
    const document = this.#parse(bytes)
    if (this.#header === undefined) {
      this.#sum.update(bytes).update('\n')
      return this.#takeHeader(document)
    }
    if (typeof document === 'object' && document !== null && Object.hasOwn(document, 'end')) this.#takeFooter(document)
    else {
      this.#sum.update(bytes).update('\n')
      this.#takeRecord(document)
    }
    return true
  }

  /** @returns undefined without a header */
  finish(): ReadExport | undefined {
    if (this.#end === 'to come') {
      this.#line++
      this.#stop(this.#header ? 'the last line is missing: the file was cut off' : 'there is nothing')
    }
    // With lines missing or changed, records that miss one another say nothing new.
    if (this.#end === 'whole') this.#verification?.finish()
    return this.#header && { header: this.#header, records: this.#records }
  }

  #takeHeader(document: unknown): boolean {
    const { holdfast, format } = (document ?? {}) as { holdfast?: unknown; format?: unknown }
    if (holdfast !== 'export') return this.#stop('is not the beginning of an export of holdfast-registry')
    if (format !== EXPORT_FORMAT) return this.#stop(`has another format than this version reads, ${EXPORT_FORMAT}`)
    const read = this.#check(header, document)
    if (read === undefined) {
      this.#end = 'broken'
      return false
    }
    const { epoch, revision, time, version } = read
    this.#header = { epoch, revision, time, version }
    this.#verification = new Verification(revision, (finding) => this.#problems.add(formatFinding(finding)))
    return true
  }

  #takeRecord(document: unknown): void {
    this.#lines++
    if (document === undefined) return
    const { key, value, ...rest } = (document ?? {}) as { key?: unknown; value?: unknown }
    if (typeof key !== 'string' || value === undefined || Object.keys(rest).length > 0)
      return this.#refuse('must be {"key":…,"value":…} and nothing else')
    const record = this.#verification!.add(key, value, this.#line)
    if (record === undefined) return
    this.#records.push(record)
    this.#onRecord(this.#records.length)
  }

  #takeFooter(document: unknown): void {
    this.#end = 'broken'
    const end = this.#check(footer, document)
    if (end === undefined) return
    if (end.sha256 !== this.#sum.digest('hex')) this.#refuse('the checksum is another: the file was changed')
    else if (end.records !== this.#lines) this.#refuse(`says ${end.records} records, there are ${this.#lines}`)
    else this.#end = 'whole'
  }

  /** @returns undefined when it is no JSON, which was then reported */
  #parse(bytes: Buffer): unknown {
    if (!isUtf8(bytes)) return void this.#refuse('is not UTF-8')
    try {
      return JSON.parse(bytes.toString()) as unknown
    } catch {
      return void this.#refuse('is not JSON')
    }
  }

  #check<T extends z.ZodType>(schema: T, document: unknown): z.output<T> | undefined {
    const result = schema.safeParse(document, { reportInput: true })
    if (result.success) return result.data
    for (const { path, message } of problemsOf(result.error, schema)) this.#refuse(`${path}: ${message}`)
    return undefined
  }

  /** What comes after cannot be told. */
  #stop(reason: string): false {
    this.#end = 'broken'
    this.#refuse(reason)
    return false
  }

  #refuse(reason: string): void {
    this.#problems.add(`line ${this.#line}: ${reason}`)
  }
}
