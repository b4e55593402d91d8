import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Fields } from '../../sidecar-plugin/src/fields.ts'

const LIST = ['Host', 'a', 'X-One', '1', 'x-one', '', 'Content-Length', '5']

test('fields are what they were made of, as a list and as lines', () => {
  const fields = Fields.of(LIST)
  assert.equal(fields.lines, 'Host: a\r\nX-One: 1\r\nx-one: \r\nContent-Length: 5\r\n')
  assert.deepEqual(Fields.fromLines(fields.lines, 5).list, LIST)
  assert.equal(fields.contentLength, 5)
})

test('they are found whatever their case', () => {
  const fields = Fields.of(LIST)
  assert.deepEqual([fields.get('x-one'), fields.getAll('x-one'), fields.get('x-two')], ['1', ['1', ''], undefined])
  assert.deepEqual([fields.has('x-one'), fields.has('one'), fields.has('x-on')], [true, false, false])
})

test('a change is another list', () => {
  const fields = Fields.of(LIST)
  assert.deepEqual(fields.with('X-Two', '2').list, [...LIST, 'X-Two', '2'])
  assert.deepEqual(fields.without(['x-one', 'content-length']).list, ['Host', 'a'])
  assert.equal(fields.without(['content-length']).contentLength, undefined)
  assert.equal(fields.without(['x-two']), fields)
  assert.deepEqual(fields.list, LIST)
})

describe('what would be read as something else is refused', () => {
  for (const [name, value] of [
    ['x', 'a\r\nb: c'],
    ['x', 'a\u0001'],
    ['x', 'a\u0100'],
    ['x y', 'a'],
    ['x:', 'a'],
    ['', 'a'],
  ] as const)
    test(JSON.stringify([name, value]), () => {
      assert.throws(() => Fields.of([name, value]), { name: 'FieldError' })
      assert.throws(() => Fields.NONE.with(name, value), { name: 'FieldError' })
    })
})
