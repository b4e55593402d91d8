/**
 * Where another reader makes something else of the corpus than this engine, and why that is right. Nearly everywhere it
 * is the other one that repairs what it should refuse.
 */

export interface Difference {
  readonly other: 'node' | 'haproxy' | 'nginx'
  /** Who lets fewer requests through. */
  readonly stricter: 'ours' | 'theirs'
  readonly reason: string
  /** Of the corpus, by name. */
  readonly cases: readonly string[]
  /** Of messages that were changed at random. */
  readonly shape?: RegExp
}

export const DIFFERENCES: readonly Difference[] = [
  {
    other: 'node',
    stricter: 'theirs',
    reason: 'White space before an extension is to be understood (RFC 9110, section 5.6.3); it frames nothing anew.',
    cases: ['a chunk size with spaces after it'],
    shape: /\r\n[0-9a-f]+[ \t]+(?:;|\r\n)/i,
  },
  {
    other: 'node',
    stricter: 'theirs',
    reason: 'Extensions are skipped up to the end of their line and never passed on: what is in them frames nothing.',
    cases: [],
    shape: /\r\n[0-9a-f]+;[^\r\n]*\r\n/i,
  },
  {
    other: 'node',
    stricter: 'theirs',
    reason: 'A tab after a value is white space as good as any (RFC 9110, section 5.6.3); it is not passed on.',
    cases: [],
    shape: /\r\nContent-Length:[^\r]*\t\r\n/i,
  },
  {
    other: 'node',
    stricter: 'theirs',
    reason: 'A higher minor version is read as the highest one knows (RFC 9110, section 2.5).',
    cases: ['a higher minor version'],
    shape: / HTTP\/1\.[2-9]\r\n/,
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'Node passes a fragment to the application; no form of a target has one (RFC 9112, section 3.2).',
    cases: ['a target with a fragment'],
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'Node still speaks HTTP/0.9, which has no head, and takes HTTP/2 for it in a request line.',
    cases: ['HTTP/0.9', 'HTTP/2 in a request line'],
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'A request line has one space between its parts (RFC 9112, section 3), and one of four targets.',
    cases: ['two spaces after the method', 'an asterisk of a GET'],
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'Node leaves it to the application whom a request is for; a proxy routes by it (RFC 9112, section 3.2).',
    cases: ['two Hosts', 'the same Host twice', 'a Host with a path', 'a Host with a user', 'a Host of two words'],
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'Node decodes codings that it does not know as if they were not there; a reader behind may not.',
    cases: ['TE.TE: an empty coding', 'TE.TE: a comma before it', 'a coding that nobody knows', 'a coding in HTTP/1.0'],
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'Node merges no trailers, but whoever does would send the request elsewhere (RFC 9110, section 6.5.1).',
    cases: ['a trailer that names a host'],
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'Node is no proxy, and strips nothing that a Connection names (RFC 9110, section 7.6.1).',
    cases: [
      'a Connection that names Host',
      'a Connection that names Content-Length',
      'a Connection that names Transfer-Encoding',
    ],
  },
  {
    other: 'node',
    stricter: 'ours',
    reason: 'Node cuts a list of fields that is too long instead of refusing it.',
    cases: ['too many fields'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy ends lines with an LF alone, and passes them on repaired; the readers before it may not.',
    cases: [
      'a bare LF after a field',
      'a bare LF after the request line',
      'line ends of LF alone',
      'an LF alone as the empty line',
      'a chunk size with a bare LF',
      'an extension with a bare LF',
      'a chunk that ends in a bare LF',
      'a trailer with a bare LF',
    ],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy takes a tab for a space, and unfolds a field (RFC 9112, section 5.2, lets it choose).',
    cases: ['a tab after the method', 'a folded field', 'a folded coding'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason:
      'HAProxy drops the length beside a coding and goes on, as RFC 9112, section 6.3, allows; refusing is safer.',
    cases: ['CL.TE: a length beside a coding'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy makes one length of several that are equal, as RFC 9110, section 8.6, allows; refusing is safer.',
    cases: ['the same length twice', 'a list of lengths'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy skips extensions without a look at them.',
    cases: ['a null in an extension'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy forgives spaces, forms of targets and versions that are none, and passes them on repaired.',
    cases: ['two spaces after the method', 'an asterisk of a GET', 'HTTP/2 in a request line'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy takes what a Host says as it is; here it names a service, and a name that is none is nobody’s.',
    cases: ['the same Host twice', 'a Host with a path', 'a Host with a user', 'a Host of two words'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy drops the coding of HTTP/1.0 and closes; RFC 9112, section 6.1, calls its framing faulty.',
    cases: ['a coding in HTTP/1.0'],
  },
  {
    other: 'haproxy',
    stricter: 'ours',
    reason: 'HAProxy passes such trailers on, and such fields; whoever drops or merges them frames or routes anew.',
    cases: [
      'a trailer that names a host',
      'a Connection that names Host',
      'a Connection that names Content-Length',
      'a Connection that names Transfer-Encoding',
    ],
  },
  {
    other: 'nginx',
    stricter: 'theirs',
    reason: 'nginx has nothing to do for a server as a whole; a proxy passes that on (RFC 9110, section 9.3.7).',
    cases: ['an asterisk'],
  },
  {
    other: 'nginx',
    stricter: 'theirs',
    reason: 'nginx takes an empty Host for none; it is what a target without an authority has (RFC 9110, section 7.2).',
    cases: ['an empty Host'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx cuts a fragment off; no form of a target has one (RFC 9112, section 3.2).',
    cases: ['a target with a fragment'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx still speaks HTTP/0.9, which has no head, and makes a request of HTTP/1.1 of it.',
    cases: ['HTTP/0.9'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx ends lines with an LF alone, and passes them on repaired; the readers before it may not.',
    cases: [
      'a bare LF after a field',
      'a bare LF after the request line',
      'line ends of LF alone',
      'an LF alone as the empty line',
      'two CR before an LF',
      'a chunk size with a bare LF',
      'an extension with a bare LF',
      'a chunk that ends in a bare LF',
      'a trailer with a bare LF',
    ],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx forgives spaces in a request line and more digits in a version, and makes its own line of them.',
    cases: ['two spaces after the method', 'a space after the version', 'a version of more digits'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx drops fields that it cannot read; whoever repairs them instead frames or routes by them.',
    cases: ['a name without a colon'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx skips what stands behind a chunk’s size without a look at it, and however much it is.',
    cases: ['a chunk size of two words', 'a null in an extension', 'extensions without end'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx skips trailers without a look at them; here they are passed on, and so are read as fields are.',
    cases: [
      'a trailer that frames',
      'a trailer that codes',
      'a trailer that names a host',
      'a trailer with a space before its colon',
      'trailers without end',
    ],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx passes fields of its own making on and no Connection; it need not look at what one names.',
    cases: [
      'a Connection that names Host',
      'a Connection that names Content-Length',
      'a Connection that names Transfer-Encoding',
    ],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx takes what a Host says; here it names a service, and a name that is none is nobody’s.',
    cases: ['a Host with a user'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx passes an expectation on that it does not know; RFC 9110, section 10.1.1, allows to refuse it.',
    cases: ['an expectation that nobody knows'],
  },
  {
    other: 'nginx',
    stricter: 'ours',
    reason: 'nginx bounds the bytes of a head, and not the number of its fields.',
    cases: ['too many fields'],
  },
]
