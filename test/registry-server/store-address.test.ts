import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { loadSettings, SettingsError } from '@holdfast/registry-client/settings'
import { settings } from '../../registry-server/src/config.ts'
import { parseStoreAddress } from '../../registry-server/src/store/store-address.ts'

test('the embedded store, and one or more members of an etcd', () => {
  assert.deepEqual(parseStoreAddress('embedded'), { kind: 'embedded' })
  const etcd = (tls: boolean, ...endpoints: string[]) => ({ kind: 'etcd', endpoints, tls })
  for (const [text, address] of [
    ['etcd://a', etcd(false, 'a:2379')],
    ['etcd://a/', etcd(false, 'a:2379')],
    ['etcds://a.example.org:1,b_2:65535', etcd(true, 'a.example.org:1', 'b_2:65535')],
    ['etcd://127.0.0.1:02379,[::1],[fe80::1]:7', etcd(false, '127.0.0.1:2379', '[::1]:2379', '[fe80::1]:7')],
  ] as const)
    assert.deepEqual(parseStoreAddress(text), address, text)
})

test('whatever else is said is answered with what it should be', () => {
  for (const [text, why] of [
    ['', /^must be embedded or etcd:/],
    ['etcd', /^must be embedded or etcd:.+, got "etcd"$/],
    ['Embedded', /^must be embedded/],
    ['http://a:2379', /got "http:\/\/a:2379"$/],
    ['etcd:/a', /^must be embedded/],
    ['etcd://', /got the member ""$/],
    ['etcd://a,', /got the member ""$/],
    ['etcd://a, b', /got the member " b"$/],
    ['etcd://a:0', /got the member "a:0"$/],
    ['etcd://a:65536', /got the member "a:65536"$/],
    ['etcd://a:-1', /got the member "a:-1"$/],
    ['etcd://::1', /got the member "::1"$/],
    ['etcd://[::g]', /got the member/],
    ['etcd://256.1.1.1', /got the member/],
    ['etcd://a:1,b:1,a:01', /^names a:1 twice$/],
    ['etcd://a/holdfast/', /--etcd-prefix names the keys$/],
    ['etcd://a?x=1', /--etcd-prefix/],
    ['etcd://a\n', /^must be/],
  ] as const) {
    const answer = parseStoreAddress(text)
    assert.ok(typeof answer === 'string', text)
    assert.match(answer, why)
  }
})

const parts = fc.constantFrom(
  'etcd',
  'etcds',
  '://',
  ':',
  '/',
  ',',
  '@',
  '[',
  ']',
  '::1',
  '2379',
  'a',
  '%40',
  '?',
  ' ',
  '\n',
)
const texts = fc.oneof(
  fc.string({ unit: 'binary' }),
  fc.array(parts).map((list) => list.join('')),
)

test('any text is an address or an answer, and an address says the same when it is written again', () => {
  fc.assert(
    fc.property(texts, (text) => {
      const address = parseStoreAddress(text)
      if (typeof address === 'string' || address.kind === 'embedded') return
      assert.ok(address.endpoints.length > 0)
      assert.deepEqual(parseStoreAddress(`etcd${address.tls ? 's' : ''}://${address.endpoints.join()}`), address)
    }),
    { numRuns: 2_000 },
  )
})

test('what stands before an @ is never repeated', () => {
  const SECRET = 'Tr0ub4dor'
  fc.assert(
    fc.property(texts, texts, texts, (before, between, after) => {
      const text = `${before}${SECRET}${between}@${after}`
      const answer = parseStoreAddress(text)
      assert.ok(typeof answer === 'string')
      assert.doesNotMatch(answer, new RegExp(SECRET))
      // No value of a flag holds a zero byte.
      assert.doesNotMatch(problemsOf({ argv: [`--store=${text.replaceAll('\0', '')}`] }).join(), new RegExp(SECRET))
    }),
  )
})

/** Of a configuration that cannot be used, each as a person reads it. */
function problemsOf({ argv = [], file }: { argv?: readonly string[]; file?: string }): string[] {
  try {
    const config = file === undefined ? [] : ['--config', 'registry.yaml']
    loadSettings(settings, { argv: [...config, ...argv], env: {}, readFile: () => file! })
  } catch (error) {
    assert.ok(error instanceof SettingsError)
    return error.problems.map(({ path, message }) => `${path}: ${message}`)
  }
  return []
}

test('all problems of the way to etcd are told at once, beside all others', () => {
  const problems = problemsOf({
    argv: [
      ...['--store', 'etcd://a:b:c', '--store-timeout', '3', '--etcd-prefix', 'holdfast', '--port', 'x'],
      ...['--etcd-user', 'me', '--etcd-cert', 'client.pem'],
    ],
    file: 'etcd: { maxRequest: 1KiB, colour: red }',
  })
  for (const problem of [
    /^port: /,
    /^store: must be embedded or etcd:.+, got the member "a:b:c" \(from --store\)$/,
    /^storeTimeout: must be a duration/,
    /^etcd\.prefix: must be printable ASCII that begins and ends with a slash/,
    /^etcd\.maxRequest: must be at least 64KiB$/,
    /^etcd\.colour: unknown key/,
    /^etcd\.passwordFile: is needed with a user/,
    /^etcd\.key: is needed with a certificate/,
  ])
    assert.equal(problems.filter((text) => problem.test(text)).length, 1, `${problem}\n${problems.join('\n')}`)
  assert.equal(problems.length, 8, problems.join('\n'))
})

test('what belongs together comes together', () => {
  const on = ['--store', 'etcd://a']
  for (const [argv, problem] of [
    [['--etcd-user', 'me'], 'etcd.passwordFile'],
    [['--etcd-password-file', 'secret'], 'etcd.user'],
    [['--etcd-cert', 'client.pem'], 'etcd.key'],
    [['--etcd-key', 'client.key'], 'etcd.cert'],
    [['--etcd-prefix', '/a'], 'etcd.prefix'],
    [['--etcd-prefix', 'a/'], 'etcd.prefix'],
    [['--etcd-prefix', '/é/'], 'etcd.prefix'],
    [['--etcd-prefix', '/a b/'], 'etcd.prefix'],
    [['--etcd-prefix', `/${'a'.repeat(127)}/`], 'etcd.prefix'],
  ] as const) {
    const problems = problemsOf({ argv: [...on, ...argv] })
    assert.equal(problems.length, 1, problems.join('\n'))
    assert.ok(problems[0]!.startsWith(`${problem}: `), problems[0])
  }
  for (const argv of [
    ['--etcd-user', 'me', '--etcd-password-file', 'secret'],
    ['--etcd-cert', 'client.pem', '--etcd-key', 'client.key'],
    ['--etcd-prefix', '/'],
    ['--etcd-prefix', '/a/b-c_d/~/'],
  ])
    assert.deepEqual(problemsOf({ argv: [...on, ...argv] }), [])
  const both = problemsOf({ argv: on, file: 'etcd: { user: me, password: a, passwordFile: b }' })
  assert.match(both.join(), /^etcd\.password: stands beside etcd\.passwordFile/)
})

test('a password is repeated in no message, whatever it looks like', () => {
  for (const password of ['12345678', '[hunter2]', '{ hunter2: 1 }', 'true', '""'])
    assert.match(
      problemsOf({ argv: ['--store', 'etcd://a'], file: `etcd: { user: me, password: ${password} }` }).join(),
      /^etcd\.password: must be text; in quotes, where it could be a number$/,
    )
})

test('the way to etcd without a store on etcd is a problem: the registry would begin with an empty store', () => {
  for (const [argv, path] of [
    [['--store-timeout', '2s'], 'storeTimeout'],
    [['--etcd-prefix', '/a/'], 'etcd.prefix'],
    [['--etcd-ca', 'ca.pem'], 'etcd.ca'],
    [['--etcd-ca', 'ca.pem', '--store', 'embedded'], 'etcd.ca'],
  ] as const)
    assert.match(problemsOf({ argv }).join('\n'), new RegExp(`^${path}: is for etcd, and --store is embedded`))
  assert.deepEqual(problemsOf({ argv: ['--etcd-prefix', '/holdfast/'] }), [])
})
