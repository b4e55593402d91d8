import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { CORPUS, MALFORMED, VALID } from './corpus.ts'
import { cut, MAX_HEAD_BYTES, readRequests, readResponses } from './messages.ts'

const RUNS = { numRuns: 2_000, seed: 11 }

const token = fc.stringMatching(/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}$/)
const value = fc.stringMatching(/^(?:[\x21-\x7e\xa0-\xff](?:[\t\x20-\x7e\xa0-\xff]{0,20}[\x21-\x7e\xa0-\xff])?)?$/)
const field = fc
  .tuple(token, value)
  .filter(([name]) => !/^(x-holdfast-.+|connection|te|trailer|upgrade|expect|host|keep-alive)$/i.test(name))
  .filter(([name]) => !/^(content-length|transfer-encoding|proxy-.*)$/i.test(name))
const content = fc.string({ unit: 'binary-ascii', maxLength: 300 })
const places = fc.array(fc.nat(2_000), { maxLength: 12 })

interface Sent {
  readonly method: string
  readonly target: string
  readonly fields: readonly (readonly [string, string])[]
  readonly pieces: readonly string[]
  readonly isChunked: boolean
}

const sent: fc.Arbitrary<Sent> = fc.record({
  method: token.filter((method) => method !== 'CONNECT'),
  target: fc.stringMatching(/^\/[!"$-~]{0,20}$/),
  fields: fc.array(field, { maxLength: 8 }),
  pieces: fc.array(content, { maxLength: 5 }),
  isChunked: fc.boolean(),
})

function bytesOf({ method, target, fields, pieces, isChunked }: Sent): string {
  const lines = fields.map(([name, text]) => `${name}: ${text}\r\n`).join('')
  const head = `${method} ${target} HTTP/1.1\r\nHost: a\r\n${lines}`
  const whole = pieces.join('')
  if (!isChunked) return `${head}Content-Length: ${whole.length}\r\n\r\n${whole}`
  const chunks = pieces.filter((piece) => piece !== '').map((piece) => `${piece.length.toString(16)}\r\n${piece}\r\n`)
  return `${head}Transfer-Encoding: chunked\r\n\r\n${chunks.join('')}0\r\n\r\n`
}

test('what was sent is what is read, whatever the pieces in which it arrives', () => {
  fc.assert(
    fc.property(fc.array(sent, { minLength: 1, maxLength: 4 }), places, (requests, cuts) => {
      const { messages, fault } = readRequests(cut(requests.map(bytesOf).join(''), cuts))
      assert.equal(fault, undefined)
      assert.deepEqual(
        messages.map(({ head, content: read, whole }) => ({ method: head.method, target: head.target, read, whole })),
        requests.map(({ method, target, pieces }) => ({ method, target, read: pieces.join(''), whole: true })),
      )
      for (const [i, { head }] of messages.entries()) {
        const names = requests[i]!.fields.flat()
        assert.deepEqual(head.fields.list.slice(2, 2 + names.length), names)
      }
    }),
    RUNS,
  )
})

const rough = fc
  .array(
    fc.oneof(
      { weight: 3, arbitrary: fc.constantFrom(...CORPUS.map((item) => item.bytes.slice(0, 2_000))) },
      { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 60 }) },
      {
        weight: 1,
        arbitrary: fc.constantFrom('\r\n', '\n', '\r', '\r\n\r\n', ' ', ':', '0\r\n\r\n', 'HTTP/1.1', '\x00'),
      },
    ),
    { minLength: 1, maxLength: 4 },
  )
  .map((parts) => Buffer.from(parts.join(''), 'latin1').toString('latin1'))

/** Bytes that are exchanged, left out, doubled or put in. */
const mutation = fc.record({
  at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
  take: fc.nat(3),
  put: fc.oneof(
    fc.constantFrom('', '\r', '\n', '\r\n', ' ', '\t', ':', '\x00', ',', '0', 'x'),
    fc.string({ maxLength: 3 }),
  ),
})

const mutated = fc.tuple(rough, fc.array(mutation, { maxLength: 4 })).map(([bytes, mutations]) =>
  mutations.reduce((text, { at, take, put }) => {
    const place = Math.floor(at * text.length)
    return text.slice(0, place) + put + text.slice(place + take)
  }, bytes),
)

function shown({ messages, fault }: ReturnType<typeof readRequests> | ReturnType<typeof readResponses>) {
  return { messages, fault }
}

test('no bytes do anything but be read or refused, and the pieces make no difference', () => {
  fc.assert(
    fc.property(mutated, places, (bytes, cuts) => {
      const whole = readRequests([bytes])
      assert(whole.held <= MAX_HEAD_BYTES)
      const pieces = readRequests(cut(bytes, cuts))
      assert.deepEqual(
        pieces.messages.map((message) => message.head.target),
        whole.messages.map((message) => message.head.target),
      )
      // A head with two faults is refused for the one that arrives first.
      assert.equal(pieces.fault === undefined, whole.fault === undefined)
      if (whole.fault === undefined) assert.deepEqual(shown(pieces), shown(whole))
      readResponses(cut(bytes, cuts))
    }),
    { ...RUNS, numRuns: 4_000 },
  )
})

test('no answer does either', () => {
  const line = fc.constantFrom('HTTP/1.1 200 OK\r\n', 'HTTP/1.0 204\r\n', 'HTTP/1.1 101 Go\r\n', 'HTTP/1.1 500 \r\n')
  fc.assert(
    fc.property(line, mutated, places, (status, bytes, cuts) => {
      const text = status + bytes.slice(bytes.indexOf('\n') + 1)
      const whole = readResponses([text])
      const pieces = readResponses(cut(text, cuts))
      assert.equal(pieces.fault === undefined, whole.fault === undefined)
      if (whole.fault === undefined) assert.deepEqual(shown(pieces), shown(whole))
    }),
    RUNS,
  )
})

test('a malformed request is refused after any valid one, and never becomes part of it', () => {
  fc.assert(
    fc.property(fc.constantFrom(...VALID), fc.constantFrom(...MALFORMED), places, (valid, malformed, cuts) => {
      const { messages, fault } = readRequests(cut(valid.bytes + malformed.bytes, cuts))
      const expected = [...valid.targets!, ...(malformed.targets ?? [])]
      assert.deepEqual(
        messages.filter((message) => message.whole).map((message) => message.head.target),
        expected,
      )
      assert.equal(fault, malformed.fault)
    }),
    { ...RUNS, numRuns: 1_000 },
  )
})
