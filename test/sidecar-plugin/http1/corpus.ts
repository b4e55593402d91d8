/**
 * Requests as clients and attackers send them, each with what a proxy must make of it. `fault` is how the codec refuses
 * it; without one, `targets` are the requests that must be seen, in order.
 */

import type { MalformedKind } from '../../../sidecar-plugin/src/http1/malformed.ts'

export interface Case {
  readonly name: string
  /** Where the standard says so. */
  readonly rule: string
  readonly bytes: string
  readonly fault?: MalformedKind
  /** Of the requests that are seen, before the fault if there is one. */
  readonly targets?: readonly string[]
  /** Of the first request, decoded. */
  readonly content?: string
}

const HIDDEN = 'GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n'

function get(fields = '', line = 'GET / HTTP/1.1', host = 'Host: a\r\n'): string {
  return `${line}\r\n${host}${fields}\r\n`
}

function post(fields: string, content = '', line = 'POST / HTTP/1.1'): string {
  return `${line}\r\nHost: a\r\n${fields}\r\n${content}`
}

const chunked = (content: string, fields = 'Transfer-Encoding: chunked\r\n') => post(fields, content)

/** What every reader of a chain must take. */
export const VALID: readonly Case[] = [
  { name: 'a plain GET', rule: '9112/3', bytes: get(), targets: ['/'] },
  {
    name: 'a GET with fields',
    rule: '9112/5',
    bytes: get('Accept: */*\r\nX-A: \tb  \r\nx-a:c\r\nX-Empty:\r\n'),
    targets: ['/'],
  },
  { name: 'obs-text in a value', rule: '9110/5.5', bytes: get('X-A: caf\xe9\r\n'), targets: ['/'] },
  {
    name: 'a field name of every tchar',
    rule: '9110/5.6.2',
    bytes: get("!#$%&'*+-.^_`|~09azAZ: b\r\n"),
    targets: ['/'],
  },
  { name: 'a method of its own', rule: '9110/9.1', bytes: get('', 'M-SEARCH / HTTP/1.1'), targets: ['/'] },
  {
    name: 'two requests glued together',
    rule: '9112/9.3.2',
    bytes: get('', 'GET /1 HTTP/1.1') + get('', 'GET /2 HTTP/1.1'),
    targets: ['/1', '/2'],
  },
  { name: 'empty lines before a request', rule: '9112/2.2', bytes: `\r\n\r\n${get()}`, targets: ['/'] },
  {
    name: 'content of a length',
    rule: '9112/6.2',
    bytes: post('Content-Length: 5\r\n', 'hello'),
    targets: ['/'],
    content: 'hello',
  },
  {
    name: 'a length of nought',
    rule: '9112/6.2',
    bytes: post('Content-Length: 0\r\n') + get('', 'GET /2 HTTP/1.1'),
    targets: ['/', '/2'],
  },
  {
    name: 'a length with zeros before it',
    rule: '9110/8.6',
    bytes: post('Content-Length: 005\r\n', 'hello'),
    targets: ['/'],
    content: 'hello',
  },
  {
    name: 'a GET with content',
    rule: '9110/9.3.1',
    bytes: post('Content-Length: 3\r\n', 'abc', 'GET / HTTP/1.1') + get('', 'GET /2 HTTP/1.1'),
    targets: ['/', '/2'],
    content: 'abc',
  },
  {
    name: 'content in chunks',
    rule: '9112/7.1',
    bytes: chunked('5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n') + get('', 'GET /2 HTTP/1.1'),
    targets: ['/', '/2'],
    content: 'hello0123456789',
  },
  {
    name: 'chunks with extensions',
    rule: '9112/7.1.1',
    bytes: chunked('5;a=b;c="d e"\r\nhello\r\n0;x\r\n\r\n'),
    targets: ['/'],
    content: 'hello',
  },
  {
    name: 'a chunk size with spaces after it',
    rule: '9110/5.6.3',
    bytes: chunked('5 ;a\r\nhello\r\n0  \r\n\r\n'),
    targets: ['/'],
    content: 'hello',
  },
  {
    name: 'chunks and trailers',
    rule: '9112/7.1.2',
    bytes: chunked('5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n') + get('', 'GET /2 HTTP/1.1'),
    targets: ['/', '/2'],
    content: 'hello',
  },
  {
    name: 'a coding in mixed case',
    rule: '9112/7',
    bytes: chunked('1\r\na\r\n0\r\n\r\n', 'transfer-encoding: ChunKed\r\n'),
    targets: ['/'],
    content: 'a',
  },
  { name: 'an absolute URL', rule: '9112/3.2.2', bytes: get('', 'GET http://a/b HTTP/1.1'), targets: ['http://a/b'] },
  { name: 'an asterisk', rule: '9112/3.2.4', bytes: get('', 'OPTIONS * HTTP/1.1'), targets: ['*'] },
  { name: 'HTTP/1.0 without Host', rule: '9112/3.2', bytes: 'GET / HTTP/1.0\r\n\r\n', targets: ['/'] },
  { name: 'a higher minor version', rule: '9110/2.5', bytes: get('', 'GET / HTTP/1.7'), targets: ['/'] },
  {
    name: 'a Connection that names a field',
    rule: '9110/7.6.1',
    bytes: get('Connection: X-A, close\r\nX-A: 1\r\n'),
    targets: ['/'],
  },
  {
    name: 'an expectation',
    rule: '9110/10.1.1',
    bytes: post('Expect: 100-Continue\r\nContent-Length: 1\r\n', 'a'),
    targets: ['/'],
    content: 'a',
  },
  {
    name: 'names with an underscore beside those that count',
    rule: '9110/5.1',
    bytes: post('Content-Length: 1\r\nContent_Length: 9\r\nTransfer_Encoding: chunked\r\n', 'a'),
    targets: ['/'],
    content: 'a',
  },
  { name: 'an empty Host', rule: '9112/3.2', bytes: get('', 'GET / HTTP/1.1', 'Host:\r\n'), targets: ['/'] },
  {
    name: 'a Host with an IPv6 address',
    rule: '9110/7.2',
    bytes: get('', 'GET / HTTP/1.1', 'Host: [::1]:80\r\n'),
    targets: ['/'],
  },
]

/** What is not HTTP/1.1, or not as every reader of a chain would read it. */
export const MALFORMED: readonly Case[] = [
  { name: 'no request at all', rule: '9112/3', bytes: 'hello\r\n\r\n', fault: 'request_line' },
  { name: 'HTTP/0.9', rule: '9112/3', bytes: 'GET /\r\n\r\n', fault: 'request_line' },
  {
    name: 'a TLS hello',
    rule: '9112/3',
    bytes: '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n',
    fault: 'request_line',
  },
  { name: 'a space before the method', rule: '9112/3', bytes: get('', ' GET / HTTP/1.1'), fault: 'request_line' },
  { name: 'two spaces after the method', rule: '9112/3', bytes: get('', 'GET  / HTTP/1.1'), fault: 'request_line' },
  { name: 'a tab after the method', rule: '9112/3', bytes: get('', 'GET\t/ HTTP/1.1'), fault: 'request_line' },
  { name: 'a space in the target', rule: '9112/3.2', bytes: get('', 'GET /a b HTTP/1.1'), fault: 'request_line' },
  { name: 'a space after the version', rule: '9112/3', bytes: get('', 'GET / HTTP/1.1 '), fault: 'request_line' },
  { name: 'a method that is no token', rule: '9110/9.1', bytes: get('', 'G(T / HTTP/1.1'), fault: 'request_line' },
  {
    name: 'a control character in the target',
    rule: '9112/3.2',
    bytes: get('', 'GET /\x01 HTTP/1.1'),
    fault: 'target',
  },
  { name: 'obs-text in the target', rule: '9112/3.2', bytes: get('', 'GET /\xe9 HTTP/1.1'), fault: 'target' },
  { name: 'a target in no form', rule: '9112/3.2', bytes: get('', 'GET a HTTP/1.1'), fault: 'target' },
  { name: 'an asterisk of a GET', rule: '9112/3.2.4', bytes: get('', 'GET * HTTP/1.1'), fault: 'target' },
  { name: 'a target with a fragment', rule: '9112/3.2', bytes: get('', 'GET /a#b HTTP/1.1'), fault: 'target' },
  { name: 'a CONNECT to a path', rule: '9112/3.2.3', bytes: get('', 'CONNECT /a HTTP/1.1'), fault: 'target' },
  { name: 'half a preface of HTTP/2', rule: '9113/3.4', bytes: 'PRI * HTTP/2.0\r\n\r\nMS\r\n\r\n', fault: 'version' },
  { name: 'HTTP/2 in a request line', rule: '9110/2.5', bytes: get('', 'GET / HTTP/2.0'), fault: 'version' },
  { name: 'a version in lower case', rule: '9112/2.3', bytes: get('', 'GET / http/1.1'), fault: 'request_line' },
  { name: 'a version of more digits', rule: '9112/2.3', bytes: get('', 'GET / HTTP/1.10'), fault: 'request_line' },
  { name: 'another protocol', rule: '9112/2.3', bytes: get('', 'GET / ICY/1.1'), fault: 'request_line' },
  { name: 'no Host', rule: '9112/3.2', bytes: get('', 'GET / HTTP/1.1', ''), fault: 'host' },
  { name: 'two Hosts', rule: '9112/3.2', bytes: get('', 'GET / HTTP/1.1', 'Host: a\r\nhost: b\r\n'), fault: 'host' },
  {
    name: 'the same Host twice',
    rule: '9112/3.2',
    bytes: get('', 'GET / HTTP/1.1', 'Host: a\r\nHost: a\r\n'),
    fault: 'host',
  },
  { name: 'a Host with a path', rule: '9112/3.2', bytes: get('', 'GET / HTTP/1.1', 'Host: a/b\r\n'), fault: 'host' },
  { name: 'a Host with a user', rule: '9112/3.2', bytes: get('', 'GET / HTTP/1.1', 'Host: b@a\r\n'), fault: 'host' },
  { name: 'a Host of two words', rule: '9112/3.2', bytes: get('', 'GET / HTTP/1.1', 'Host: a b\r\n'), fault: 'host' },
  {
    name: 'a space before the colon',
    rule: '9112/5.1',
    bytes: get('', 'GET / HTTP/1.1', 'Host : a\r\n'),
    fault: 'field_name',
  },
  {
    name: 'a space before the colon of a coding',
    rule: '9112/5.1',
    bytes: chunked(`0\r\n\r\n${HIDDEN}`, 'Transfer-Encoding : chunked\r\nContent-Length: 38\r\n'),
    fault: 'field_name',
  },
  { name: 'a tab before the colon', rule: '9112/5.1', bytes: get('X-A\t: b\r\n'), fault: 'field_name' },
  { name: 'a name without a colon', rule: '9112/5', bytes: get('X-A\r\n'), fault: 'field_name' },
  { name: 'a field without a name', rule: '9112/5', bytes: get(': b\r\n'), fault: 'field_name' },
  { name: 'a null in a name', rule: '9112/5', bytes: get('X\x00A: b\r\n'), fault: 'field_name' },
  { name: 'a null in a value', rule: '9110/5.5', bytes: get('X-A: a\x00b\r\n'), fault: 'field_value' },
  { name: 'a control character in a value', rule: '9110/5.5', bytes: get('X-A: a\x01b\r\n'), fault: 'field_value' },
  { name: 'a delete character in a value', rule: '9110/5.5', bytes: get('X-A: a\x7f\r\n'), fault: 'field_value' },
  {
    name: 'a vertical tab before a coding',
    rule: '9110/5.5',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: \x0bchunked\r\n'),
    fault: 'field_value',
  },
  {
    name: 'white space before the first field',
    rule: '9112/2.2',
    bytes: 'GET / HTTP/1.1\r\n Host: a\r\n\r\n',
    fault: 'folded_field',
  },
  { name: 'a folded field', rule: '9112/5.2', bytes: get('X-A: one\r\n two\r\n'), fault: 'folded_field' },
  {
    name: 'a folded coding',
    rule: '9112/5.2',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding:\r\n chunked\r\n'),
    fault: 'folded_field',
  },
  { name: 'a bare LF after a field', rule: '9112/2.2', bytes: get('X-A: b\nX-B: c\r\n'), fault: 'line_end' },
  {
    name: 'a bare LF after the request line',
    rule: '9112/2.2',
    bytes: 'GET / HTTP/1.1\nHost: a\r\n\r\n',
    fault: 'line_end',
  },
  { name: 'line ends of LF alone', rule: '9112/2.2', bytes: 'GET / HTTP/1.1\nHost: a\n\n', fault: 'line_end' },
  {
    name: 'an LF alone as the empty line',
    rule: '9112/2.2',
    bytes: 'GET / HTTP/1.1\r\nHost: a\r\n\n',
    fault: 'line_end',
  },
  { name: 'a bare CR in a value', rule: '9112/2.2', bytes: get('X-A: b\rX-B: c\r\n'), fault: 'line_end' },
  { name: 'two CR before an LF', rule: '9112/2.2', bytes: get('X-A: b\r\r\n'), fault: 'line_end' },
  {
    name: 'a bare CR as the empty line',
    rule: '9112/2.2',
    bytes: 'GET / HTTP/1.1\r\nHost: a\r\n\rX\r\n\r\n',
    fault: 'line_end',
  },

  {
    name: 'CL.TE: a length beside a coding',
    rule: '9112/6.3',
    bytes: post(`Content-Length: ${HIDDEN.length + 5}\r\nTransfer-Encoding: chunked\r\n`, `0\r\n\r\n${HIDDEN}`),
    fault: 'length_and_coding',
  },
  {
    name: 'TE.CL: a coding beside a length',
    rule: '9112/6.3',
    bytes: post('Transfer-Encoding: chunked\r\nContent-Length: 4\r\n', `5c\r\n${HIDDEN}\r\n0\r\n\r\n`),
    fault: 'length_and_coding',
  },
  {
    name: 'TE.TE: a second coding that is none',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: chunked twice',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: chunked twice in one line',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: chunked, chunked\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: a coding in quotes',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: "chunked"\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: a coding with letters before it',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: xchunked\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: a coding with a parameter',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: chunked;a=b\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: an empty coding',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding:\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: identity',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: identity\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: a comma after it',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: chunked,\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'TE.TE: a comma before it',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: ,chunked\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'a coding that does not end in chunked',
    rule: '9112/6.3',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: chunked, gzip\r\n'),
    fault: 'transfer_encoding',
  },
  {
    name: 'a coding that nobody knows',
    rule: '9112/6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: gzip, chunked\r\n'),
    fault: 'unknown_coding',
  },
  {
    name: 'a coding in HTTP/1.0',
    rule: '9112/6.1',
    bytes: post('Transfer-Encoding: chunked\r\n', '0\r\n\r\n', 'POST / HTTP/1.0'),
    fault: 'transfer_encoding',
  },
  {
    name: 'lengths that differ',
    rule: '9110/8.6',
    bytes: post('Content-Length: 3\r\nContent-Length: 4\r\n', 'abcd'),
    fault: 'content_length',
  },
  {
    name: 'the same length twice',
    rule: '9110/8.6',
    bytes: post('Content-Length: 3\r\nContent-Length: 3\r\n', 'abc'),
    fault: 'content_length',
  },
  {
    name: 'a list of lengths',
    rule: '9110/8.6',
    bytes: post('Content-Length: 3, 3\r\n', 'abc'),
    fault: 'content_length',
  },
  {
    name: 'a length with a plus',
    rule: '9110/8.6',
    bytes: post('Content-Length: +3\r\n', 'abc'),
    fault: 'content_length',
  },
  {
    name: 'a length with a minus',
    rule: '9110/8.6',
    bytes: post('Content-Length: -3\r\n', 'abc'),
    fault: 'content_length',
  },
  {
    name: 'a length in hexadecimal',
    rule: '9110/8.6',
    bytes: post('Content-Length: 0x3\r\n', 'abc'),
    fault: 'content_length',
  },
  {
    name: 'a length with a fraction',
    rule: '9110/8.6',
    bytes: post('Content-Length: 3.0\r\n', 'abc'),
    fault: 'content_length',
  },
  {
    name: 'a length with a space in it',
    rule: '9110/8.6',
    bytes: post('Content-Length: 3 4\r\n', 'abc'),
    fault: 'content_length',
  },
  { name: 'an empty length', rule: '9110/8.6', bytes: post('Content-Length:\r\n', 'abc'), fault: 'content_length' },
  {
    name: 'a length beyond all numbers',
    rule: '9110/8.6',
    bytes: post('Content-Length: 99999999999999999999\r\n', 'abc'),
    fault: 'content_length',
  },
  {
    name: 'a length that wraps at 64 bits',
    rule: '9110/8.6',
    bytes: post('Content-Length: 18446744073709551619\r\n', 'abc'),
    fault: 'content_length',
  },

  {
    name: 'a chunk size that is no number',
    rule: '9112/7.1',
    bytes: chunked('xyz\r\nabc\r\n0\r\n\r\n'),
    fault: 'chunk',
  },
  { name: 'a chunk size with 0x', rule: '9112/7.1', bytes: chunked('0x5\r\nhello\r\n0\r\n\r\n'), fault: 'chunk' },
  { name: 'a chunk size with a sign', rule: '9112/7.1', bytes: chunked('+5\r\nhello\r\n0\r\n\r\n'), fault: 'chunk' },
  { name: 'a negative chunk size', rule: '9112/7.1', bytes: chunked('-5\r\nhello\r\n0\r\n\r\n'), fault: 'chunk' },
  {
    name: 'a chunk size with an underscore',
    rule: '9112/7.1',
    bytes: chunked('0_5\r\nhello\r\n0\r\n\r\n'),
    fault: 'chunk',
  },
  { name: 'an empty chunk size', rule: '9112/7.1', bytes: chunked('\r\nhello\r\n0\r\n\r\n'), fault: 'chunk' },
  { name: 'a space before a chunk size', rule: '9112/7.1', bytes: chunked(' 5\r\nhello\r\n0\r\n\r\n'), fault: 'chunk' },
  { name: 'a chunk size of two words', rule: '9112/7.1', bytes: chunked('5 6\r\nhello\r\n0\r\n\r\n'), fault: 'chunk' },
  {
    name: 'a chunk size that overflows',
    rule: '9112/7.1',
    bytes: chunked('10000000000000005\r\nhello\r\n0\r\n\r\n'),
    fault: 'chunk',
  },
  { name: 'a chunk size with a bare LF', rule: '9112/7.1', bytes: chunked('5\nhello\r\n0\r\n\r\n'), fault: 'chunk' },
  { name: 'a chunk size with a bare CR', rule: '9112/7.1', bytes: chunked('5\rXhello\r\n0\r\n\r\n'), fault: 'chunk' },
  {
    name: 'an extension with a bare LF',
    rule: '9112/7.1.1',
    bytes: chunked('5;a\nhello\r\n0\r\n\r\n'),
    fault: 'chunk',
  },
  {
    name: 'a null in an extension',
    rule: '9112/7.1.1',
    bytes: chunked('5;a\x00b\r\nhello\r\n0\r\n\r\n'),
    fault: 'chunk',
  },
  {
    name: 'extensions without end',
    rule: '9112/7.1.1',
    bytes: chunked(`5;${'a'.repeat(20_000)}\r\nhello\r\n0\r\n\r\n`),
    fault: 'chunk',
  },
  {
    name: 'a chunk that is longer than its size',
    rule: '9112/7.1',
    bytes: chunked('5\r\nhello!\r\n0\r\n\r\n'),
    fault: 'chunk',
  },
  {
    name: 'a chunk that is shorter than its size',
    rule: '9112/7.1',
    bytes: chunked('5\r\nhel\r\n0\r\n\r\n'),
    fault: 'chunk',
  },
  { name: 'a chunk that ends in a bare LF', rule: '9112/7.1', bytes: chunked('5\r\nhello\n0\r\n\r\n'), fault: 'chunk' },
  { name: 'a trailer with a bare LF', rule: '9112/7.1.2', bytes: chunked('0\r\nX: a\n\r\n'), fault: 'trailer' },
  {
    name: 'a trailer that frames',
    rule: '9110/6.5.1',
    bytes: chunked('0\r\nContent-Length: 5\r\n\r\n'),
    fault: 'trailer',
  },
  {
    name: 'a trailer that codes',
    rule: '9110/6.5.1',
    bytes: chunked('0\r\nTransfer-Encoding: chunked\r\n\r\n'),
    fault: 'trailer',
  },
  { name: 'a trailer that names a host', rule: '9110/6.5.1', bytes: chunked('0\r\nHost: b\r\n\r\n'), fault: 'trailer' },
  {
    name: 'a trailer with a space before its colon',
    rule: '9112/7.1.2',
    bytes: chunked('0\r\nX : a\r\n\r\n'),
    fault: 'field_name',
  },
  {
    name: 'trailers without end',
    rule: '9112/7.1.2',
    bytes: chunked(`0\r\n${`X: ${'a'.repeat(1_000)}\r\n`.repeat(20)}\r\n`),
    fault: 'trailer',
  },

  {
    name: 'a Connection that names Host',
    rule: '9110/7.6.1',
    bytes: get('Connection: close, hOst\r\n'),
    fault: 'connection',
  },
  {
    name: 'a Connection that names Content-Length',
    rule: '9110/7.6.1',
    bytes: post('Content-Length: 3\r\nConnection: content-length\r\n', 'abc'),
    fault: 'connection',
  },
  {
    name: 'a Connection that names Transfer-Encoding',
    rule: '9110/7.6.1',
    bytes: chunked('0\r\n\r\n', 'Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n'),
    fault: 'connection',
  },
  {
    name: 'an expectation that nobody knows',
    rule: '9110/10.1.1',
    bytes: post('Expect: miracles\r\nContent-Length: 1\r\n', 'a'),
    fault: 'expectation',
  },
  { name: 'too many fields', rule: '9110/5.4', bytes: get('X: a\r\n'.repeat(120)), fault: 'too_many_fields' },
  {
    name: 'a head that is too large',
    rule: '9110/5.4',
    bytes: get(`X: ${'a'.repeat(70_000)}\r\n`),
    fault: 'head_too_large',
  },
  {
    name: 'CL.0: what follows a request without a length is a request of its own',
    rule: '9112/6.3',
    bytes: post('', HIDDEN),
    targets: ['/', '/hidden'],
  },
  {
    name: 'junk after a request',
    rule: '9112/6.3',
    bytes: `${post('Content-Length: 3\r\n', 'abc')}junk\r\n\r\n`,
    fault: 'request_line',
    targets: ['/'],
  },
  {
    name: 'junk after the last chunk',
    rule: '9112/7.1',
    bytes: `${chunked('0\r\n\r\n')}junk\r\n\r\n`,
    fault: 'request_line',
    targets: ['/'],
  },
]

export const CORPUS: readonly Case[] = [...VALID, ...MALFORMED]
