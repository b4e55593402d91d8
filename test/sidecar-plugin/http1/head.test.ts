import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { MalformedKind } from '../../../sidecar-plugin/src/http1/malformed.ts'
import { cut, MAX_HEAD_BYTES, readRequests, readResponses } from './messages.ts'

function request(fields: string, line = 'GET / HTTP/1.1') {
  const { messages, fault } = readRequests([`${line}\r\n${fields}\r\n`])
  assert.equal(fault, undefined)
  return messages[0]!.head
}

function response(fields: string, line = 'HTTP/1.1 200 OK', method = 'GET') {
  const { messages, fault } = readResponses([`${line}\r\n${fields}\r\n`], method)
  assert.equal(fault, undefined)
  return messages[0]!.head
}

describe('RFC 9110/5.3: fields', () => {
  test('keep their case, their order and their duplicates', () => {
    assert.deepEqual(request('Host: stock\r\nX-Case: One\r\nx-case:two\r\nCOOKIE: a=b\r\n').fields.list, [
      ...['Host', 'stock', 'X-Case', 'One', 'x-case', 'two', 'COOKIE', 'a=b'],
    ])
  })

  test('lose the white space around their values, and nothing within (RFC 9110/5.5)', () => {
    assert.deepEqual(request('Host: a\r\nX: \t a  b\t \r\nY:\r\nZ: \r\n').fields.list, [
      ...['Host', 'a', 'X', 'a  b', 'Y', '', 'Z', ''],
    ])
  })
})

describe('RFC 9110/7.6.1: what concerns one connection only stays behind', () => {
  test('with all that any Connection line names', () => {
    const head = request(
      'Host: stock\r\nConnection: X-One, keep-alive\r\nX-One: 1\r\nconnection: x-two\r\nX-Two: 2\r\nX-Three: 3\r\n',
    )
    assert.deepEqual(head.fields.list, ['Host', 'stock', 'X-Three', '3'])
  })

  test('and so do the fields that are known to', () => {
    const head = request(
      'Host: a\r\nKeep-Alive: timeout=5\r\nTE: trailers, deflate;q=0.5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\n' +
        'Proxy-Authorization: x\r\nProxy-Authenticate: x\r\nTransfer-Encoding: chunked\r\nX: 1\r\n',
    )
    assert.deepEqual(head.fields.list, ['Host', 'a', 'X', '1'])
    assert.equal(head.takesTrailers, true)
    assert.equal(head.upgrade, undefined, 'Connection does not name it')
  })

  test('RFC 9110/6.6.2: trailers are announced only where they can come', () => {
    assert.deepEqual(request('Host: a\r\nTrailer: x\r\n').fields.list, ['Host', 'a'])
    const head = request('Host: a\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n', 'POST / HTTP/1.1')
    assert.deepEqual(head.fields.list, ['Host', 'a', 'Trailer', 'x'])
  })

  test('RFC 9110/10.1.1: an expectation goes on where content follows it, and nowhere else', () => {
    const expecting = request('Host: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n', 'POST / HTTP/1.1')
    assert.deepEqual([expecting.fields.list.includes('Expect'), expecting.expectsContinue], [true, true])
    const empty = request('Host: a\r\nExpect: 100-continue\r\n')
    assert.deepEqual([empty.fields.list.includes('Expect'), empty.expectsContinue], [false, false])
    const old = request('Expect: 100-continue\r\nContent-Length: 1\r\n', 'POST / HTTP/1.0')
    assert.deepEqual([old.fields.list.includes('Expect'), old.expectsContinue], [false, false])
  })
})

test('what sidecars say to each other is kept apart', () => {
  const head = request('Host: a\r\nX-Holdfast-Service: a.default\r\nx-holdfast-deadline: 12\r\nx-holdfast-: b\r\n')
  assert.deepEqual(head.control, ['service', 'a.default', 'deadline', '12'])
  assert.deepEqual(head.fields.list, ['Host', 'a', 'x-holdfast-', 'b'])
})

describe('RFC 9112/9.3: whether another message follows', () => {
  const cases: [line: string, fields: string, persistent: boolean][] = [
    ['GET / HTTP/1.1', '', true],
    ['GET / HTTP/1.1', 'Connection: close\r\n', false],
    ['GET / HTTP/1.1', 'Connection: keep-alive, CLOSE\r\n', false],
    ['GET / HTTP/1.0', '', false],
    ['GET / HTTP/1.0', 'Connection: Keep-Alive\r\n', true],
    ['GET / HTTP/1.0', 'Connection: keep-alive, close\r\n', false],
  ]
  for (const [line, fields, persistent] of cases)
    test(`${line} ${JSON.stringify(fields)}`, () =>
      assert.equal(request(`Host: a\r\n${fields}`, line).persistent, persistent))
})

test('RFC 9110/7.8: a change of protocol is asked for where Connection names it, and not in HTTP/1.0', () => {
  const fields = 'Host: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nUpgrade: x/1\r\n'
  assert.equal(request(fields).upgrade, 'websocket, x/1')
  assert.equal(request(fields, 'GET / HTTP/1.0').upgrade, undefined)
})

describe('RFC 9112/6.3: the content of an answer', () => {
  const cases: [what: string, line: string, fields: string, method: string, framing: string, persistent: boolean][] = [
    ['has its length', 'HTTP/1.1 200 OK', 'Content-Length: 5\r\n', 'GET', 'length', true],
    ['has its chunks', 'HTTP/1.1 200 OK', 'Transfer-Encoding: chunked\r\n', 'GET', 'chunked', true],
    ['ends with the connection', 'HTTP/1.1 200 OK', '', 'GET', 'until_close', false],
    ['is none of length nought', 'HTTP/1.1 200 OK', 'Content-Length: 0\r\n', 'GET', 'none', true],
    ['is none of HEAD', 'HTTP/1.1 200 OK', 'Content-Length: 5\r\n', 'HEAD', 'none', true],
    ['is none of HEAD in chunks', 'HTTP/1.1 200 OK', 'Transfer-Encoding: chunked\r\n', 'HEAD', 'none', true],
    ['is none of HEAD without a length', 'HTTP/1.1 200 OK', '', 'HEAD', 'none', true],
    ['is none of 204', 'HTTP/1.1 204 No Content', 'Content-Length: 5\r\n', 'GET', 'none', true],
    ['is none of 304', 'HTTP/1.1 304 Not Modified', 'Content-Length: 5\r\n', 'GET', 'none', true],
    ['is none of 1xx', 'HTTP/1.1 103 Early Hints', '', 'GET', 'none', true],
    ['is none of a tunnel', 'HTTP/1.1 200 OK', 'Content-Length: 5\r\n', 'CONNECT', 'none', true],
    ['is that of a refused tunnel', 'HTTP/1.1 403 No', 'Content-Length: 5\r\n', 'CONNECT', 'length', true],
  ]
  for (const [what, line, fields, method, framing, persistent] of cases)
    test(`${what}: ${line} ${JSON.stringify(fields)} to ${method}`, () => {
      const head = response(fields, line, method)
      assert.deepEqual([head.framing, head.persistent], [framing, persistent])
    })

  test('keeps its length in the answer to HEAD and in 304, and loses it in 204 (RFC 9110/8.6)', () => {
    const length = ['Content-Length', '5']
    assert.deepEqual(response('Content-Length: 5\r\n', 'HTTP/1.1 200 OK', 'HEAD').fields.list, length)
    assert.deepEqual(response('Content-Length: 5\r\n', 'HTTP/1.1 304 Not Modified').fields.list, length)
    assert.deepEqual(response('Content-Length: 5\r\n', 'HTTP/1.1 204 No Content').fields.list, [])
  })
})

describe('RFC 9112/4: a status line', () => {
  test('may lack the reason, and the space before it', () => {
    for (const line of ['HTTP/1.1 200 ', 'HTTP/1.1 200']) assert.equal(response('', line).statusText, '')
    assert.equal(response('', 'HTTP/1.1 200 Quite fine\xe9').statusText, 'Quite fine\xe9')
  })

  const refused: [bytes: string, kind: MalformedKind][] = [
    ['SSH-2.0-OpenSSH_9.2\r\n', 'status_line'],
    ['HTTP/1.1 20 OK\r\n\r\n', 'status_line'],
    ['HTTP/1.1 2000 OK\r\n\r\n', 'status_line'],
    ['HTTP/1.1 099 OK\r\n\r\n', 'status_line'],
    ['HTTP/1.1 600 OK\r\n\r\n', 'status_line'],
    ['HTTP/1.1  200 OK\r\n\r\n', 'status_line'],
    ['HTTP/1.1 200 O\x00K\r\n\r\n', 'status_line'],
    ['HTTP/2.0 200 OK\r\n\r\n', 'version'],
    ['ICY 200 OK\r\n\r\n', 'status_line'],
    ['\r\nHTTP/1.1 200 OK\r\n\r\n', 'status_line'],
    ['HTTP/1.1 200 OK\nA: b\r\n\r\n', 'line_end'],
    ['HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n', 'length_and_coding'],
    ['HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n', 'content_length'],
    ['HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n', 'transfer_encoding'],
    ['HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', 'transfer_encoding'],
    ['HTTP/1.1 304 Not Modified\r\nContent-Length: 1, 2\r\n\r\n', 'content_length'],
    [`HTTP/1.1 200 OK\r\nX: ${'a'.repeat(MAX_HEAD_BYTES)}`, 'head_too_large'],
  ]
  for (const [bytes, kind] of refused)
    test(`${JSON.stringify(bytes.slice(0, 70))} is refused as ${kind}, wherever it is cut`, () => {
      for (let at = 1; at < Math.min(bytes.length, 100); at++) assert.equal(readResponses(cut(bytes, [at])).fault, kind)
    })
})

test('a server’s word on how long it keeps an idle connection is heard', () => {
  assert.equal(response('Keep-Alive: max=5, timeout=7\r\n').keepAliveSeconds, 7)
  assert.equal(response('Keep-Alive: timeout=x\r\n').keepAliveSeconds, undefined)
})

test('who speaks another language is told before the time for a head is over', () => {
  for (const [beginning, kind] of [
    ['GET / HTTP/1.1\nHost', 'line_end'],
    ['hello\r\n', 'request_line'],
    ['GET / HTTP/2.0\r\n', 'version'],
    ['GET / HTTP/1.1\r\nA: b\nC', 'line_end'],
  ] as const)
    assert.equal(readRequests([beginning]).fault, kind)
  assert.equal(readResponses(['220 mail']).fault, 'status_line')
})
