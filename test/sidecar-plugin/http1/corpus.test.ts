import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { CORPUS, VALID } from './corpus.ts'
import { cut, readRequests, type Reading } from './messages.ts'

/** Everything that can be told of a reading, and a fault only by its kind. */
function shown({ messages, fault }: Reading<unknown>) {
  return { messages: messages.map(({ head, content, trailers, whole }) => ({ head, content, trailers, whole })), fault }
}

for (const { name, rule, bytes, fault, targets, content } of CORPUS)
  describe(`RFC ${rule}: ${name}`, () => {
    test(fault === undefined ? 'is read' : `is refused as ${fault}`, () => {
      const reading = readRequests([bytes])
      assert.equal(reading.fault, fault)
      const seen = reading.messages.filter((message) => message.whole).map((message) => message.head.target)
      assert.deepEqual(seen, targets ?? [])
      if (content !== undefined) assert.equal(reading.messages[0]!.content, content)
    })

    test('is read the same wherever its bytes are cut', () => {
      const whole = shown(readRequests([bytes]))
      for (let at = 1; at < Math.min(bytes.length, 400); at++)
        assert.deepEqual(shown(readRequests(cut(bytes, [at]))), whole, `cut at ${at}`)
      if (bytes.length < 1_000) assert.deepEqual(shown(readRequests([...bytes])), whole, 'byte by byte')
    })
  })

test('requests glued together in any order are read as each alone', () => {
  for (const first of VALID)
    for (const second of VALID) {
      const alone = [first, second].flatMap((item) => shown(readRequests([item.bytes])).messages)
      const { messages, fault } = shown(readRequests([first.bytes + second.bytes]))
      assert.equal(fault, undefined)
      assert.deepEqual(messages, alone, `${first.name}, then ${second.name}`)
    }
})
