/** Records as the embedded store keeps them: values prove themselves by a checksum over key and value. */

import { crc32 } from 'node:zlib'
import { DamagedRecord } from '../records.ts'
import type { StateCounts } from '../store-state.ts'

/** Raised by any change that an older version would misread. */
export const FORMAT = 1

export const META_KEY = 'meta'

/** Written with every commit: what the rest of the database must agree with. */
export interface Meta {
  readonly format: number
  readonly epoch: string
  readonly revision: number
  readonly counts: StateCounts
}

const CHECKSUM_BYTES = 4

/** Writes of one commit; a value that is undefined is a removal. */
export type EncodedWrites = readonly (readonly [key: string, value: Buffer | undefined])[]

/** All values of a commit in one piece of memory: a buffer of its own costs more than what is in it. */
export function encodeValues(values: Iterable<readonly [key: string, value: unknown]>): EncodedWrites {
  const texts: (readonly [key: string, json: string | undefined, bytes: number])[] = []
  let total = 0
  for (const [key, value] of values) {
    const json = value === undefined ? undefined : JSON.stringify(value)
    const bytes = json === undefined ? 0 : CHECKSUM_BYTES + Buffer.byteLength(json)
    total += bytes
    texts.push([key, json, bytes])
  }
  const memory = Buffer.allocUnsafeSlow(total)
  let at = 0
  return texts.map(([key, json, bytes]) => {
    if (json === undefined) return [key, undefined]
    const value = memory.subarray(at, (at += bytes))
    value.write(json, CHECKSUM_BYTES)
    value.writeUInt32LE(crc32(value.subarray(CHECKSUM_BYTES), crc32(key)))
    return [key, value]
  })
}

/** @throws DamagedRecord */
export function decodeValue(key: string, buffer: Buffer): unknown {
  if (buffer.length <= CHECKSUM_BYTES) throw new DamagedRecord(key, 'too short')
  const body = buffer.subarray(CHECKSUM_BYTES)
  if (crc32(body, crc32(key)) !== buffer.readUInt32LE()) throw new DamagedRecord(key, 'the checksum does not match')
  return JSON.parse(body.toString())
}
