import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { SidecarError } from '../../../sidecar-plugin/src/errors.ts'
import { Fields } from '../../../sidecar-plugin/src/fields.ts'
import type { Content, Sink } from '../../../sidecar-plugin/src/layer.ts'
import { PrefixedContent, type Beginning } from '../../../sidecar-plugin/src/tcp/prefixed-content.ts'

const PREFIX = 'ab\n'

/** Content whose pieces are given one after another, in memory that is used again at once. */
class Source implements Content {
  readonly length = undefined
  readonly repeatable = false
  sink!: Sink
  resumed = 0
  pour(sink: Sink): void {
    this.sink = sink
  }
  resume(): void {
    this.resumed++
  }
  cancel(): void {}

  give(text: string): boolean {
    const piece = Buffer.from(text, 'latin1')
    const goesOn = this.sink.write(piece)
    if (goesOn) piece.fill(0)
    return goesOn
  }
}

class Heard implements Sink {
  text = ''
  ended = false
  error: SidecarError | undefined
  write(piece: Buffer): boolean {
    this.text += piece.toString('latin1')
    return true
  }
  end(): void {
    this.ended = true
  }
  fail(error: SidecarError): void {
    this.error = error
  }
}

function read(pieces: readonly string[], takenAfter: number) {
  const source = new Source()
  const told: [Beginning, number][] = []
  const content = new PrefixedContent(source, Buffer.from(PREFIX), (...how) => told.push(how) > 0)
  const heard = new Heard()
  if (takenAfter > 0) content.look()
  else content.pour(heard)
  let isTaken = takenAfter === 0
  for (const [i, piece] of pieces.entries()) {
    // What is on its way comes nevertheless.
    const goesOn = source.give(piece)
    assert.equal(goesOn, isTaken || told.length === 0)
    if (!isTaken && i + 1 === takenAfter) {
      content.pour(heard)
      isTaken = true
    }
  }
  source.sink.end(Fields.NONE)
  if (!isTaken) content.pour(heard)
  return { heard, told }
}

test('what was expected is left out, and all else is passed on, whatever the pieces', () => {
  const text = fc.oneof(
    fc.string({ unit: fc.constantFrom('a', 'b', '\n', 'c'), maxLength: 8 }),
    fc.string({ unit: fc.constantFrom('a', 'b', '\n', 'c'), maxLength: 8 }).map((rest) => PREFIX + rest),
  )
  fc.assert(
    fc.property(text, fc.array(fc.nat(8)), fc.nat(6), (bytes, cuts, takenAfter) => {
      const places = [...new Set([0, ...cuts.map((at) => Math.min(at, bytes.length)), bytes.length])].sort(
        (a, b) => a - b,
      )
      const pieces = places.slice(1).map((end, i) => bytes.slice(places[i], end))
      const { heard, told } = read(pieces, takenAfter)
      const isExpected = bytes.startsWith(PREFIX)
      assert.equal(heard.text, isExpected ? bytes.slice(PREFIX.length) : bytes)
      assert(heard.ended)
      const beginning = isExpected ? 'expected' : PREFIX.startsWith(bytes) ? 'ended' : 'other'
      let matched = 0
      while (matched < PREFIX.length && bytes[matched] === PREFIX[matched]) matched++
      assert.deepEqual(told, [[beginning, matched]])
    }),
    { numRuns: 3_000, seed: 3 },
  )
})

test('what is refused is passed on to nobody', () => {
  for (const bytes of ['ac', 'ab\nc']) {
    const source = new Source()
    const heard = new Heard()
    new PrefixedContent(source, Buffer.from(PREFIX), () => false).pour(heard)
    source.give(bytes)
    source.give('more')
    assert.equal(heard.text, '')
  }
})

test('what fails before it is known says nothing of how it began, and fails whoever takes it', () => {
  const source = new Source()
  const told: unknown[] = []
  const content = new PrefixedContent(source, Buffer.from(PREFIX), (...how) => told.push(how) > 0)
  content.look()
  assert(source.give('a'))
  source.sink.fail(new SidecarError('upstream_reset', 'broken'))
  const heard = new Heard()
  content.pour(heard)
  assert.deepEqual([told, heard.text, heard.error?.reason], [[], '', 'upstream_reset'])
})
