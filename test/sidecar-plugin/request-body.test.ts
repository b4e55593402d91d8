import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { PulledBody } from '../../sidecar-plugin/src/request-body.ts'
import { settle } from '../support/manual-clock.ts'

function begin() {
  const source = new Readable({ read() {} })
  const seen = { starts: 0, bytes: 0 }
  const body = new PulledBody(
    source,
    () => seen.starts++,
    (bytes) => (seen.bytes += bytes),
  )
  return { source, body, seen }
}

async function textOf(stream: Readable): Promise<string> {
  let text = ''
  for await (const chunk of stream) text += String(chunk)
  return text
}

test('nothing is taken from the caller before somebody reads', async () => {
  const { source, body, seen } = begin()
  body.stream()
  source.push('abc')
  await settle()
  assert.deepEqual(seen, { starts: 0, bytes: 0 })
  assert.equal(source.readableLength, 3)
})

test('a second attempt gets the whole body, what was read already and what comes', async () => {
  const { source, body, seen } = begin()
  const first = body.stream()
  first.resume()
  source.push('abc')
  await settle()
  first.destroy()
  assert.equal(body.repeatable, true)
  assert.equal(source.destroyed, false)
  const second = textOf(body.stream())
  source.push('def')
  source.push(null)
  assert.equal(await second, 'abcdef')
  assert.deepEqual(seen, { starts: 1, bytes: 6 }, 'counted once, and continued once')
})

test('a body that was read to its end can be sent again', async () => {
  const { source, body } = begin()
  source.push('abc')
  source.push(null)
  assert.equal(await textOf(body.stream()), 'abc')
  assert.equal(await textOf(body.stream()), 'abc')
})

test('a body of which too much was read to be kept cannot', async () => {
  const { source, body } = begin()
  body.stream().resume()
  source.push(Buffer.alloc(65_536))
  await settle()
  assert.equal(body.repeatable, true)
  source.push('x')
  await settle()
  assert.equal(body.repeatable, false)
})

test('a slow reader holds the caller back', async () => {
  const { source, body } = begin()
  body.stream().read()
  for (let i = 0; i < 4; i++) source.push(Buffer.alloc(65_536))
  await settle()
  assert.equal(source.isPaused(), true)
  assert(source.readableLength > 0)
})

test('a caller that breaks off fails the stream, and a stream that nobody reads any more fails nothing', async () => {
  const { source, body } = begin()
  const stream = body.stream()
  const reading = textOf(stream)
  source.push('abc')
  await settle()
  source.destroy()
  await assert.rejects(reading, /broke off/)
  body.stream().read()
  await settle()
})
