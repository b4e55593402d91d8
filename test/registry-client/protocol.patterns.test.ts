import assert from 'node:assert/strict'
import { isIP } from 'node:net'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { isNamespace, isServiceName, PATTERNS } from '@holdfast/registry-client/protocol'

describe('patterns', () => {
  const host = new RegExp(PATTERNS.host)

  test('addresses and DNS names are hosts', () => {
    const good = [
      '127.0.0.1',
      '::1',
      '::',
      '2001:db8::1',
      'fe80::1:2:3:4',
      '1:2:3:4:5:6:7:8',
      '::ffff:10.0.0.1',
      'localhost',
      'a',
      'stock.internal',
      'stock.internal.',
      'my_service-1.x',
      'xn--bcher-kva.example',
      '1.a',
    ]
    for (const text of good) assert.ok(host.test(text), text)
  })

  test('everything that could end up elsewhere in a URL, a header or a file is not', () => {
    const bad = [
      '',
      ' ',
      'a b',
      'a/b',
      'a:80',
      '10.0.0.1:80',
      '[::1]',
      'a@b',
      'a?b',
      'a#b',
      '-a',
      'a-',
      'a..b',
      '.a',
      'a\n',
      'a\r\nb',
      'a\0',
      'ä',
      'a%2e',
      'http://a',
      ':80',
      'a,b',
      'x'.repeat(64),
      'a.-b',
      ':',
      '::1%eth0',
    ]
    for (const text of bad) assert.equal(host.test(text), false, JSON.stringify(text))
  })

  test('every address is a host', () => {
    fc.assert(
      fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), (address) =>
        assert.ok(isIP(address) === 0 || host.test(address), address),
      ),
    )
    fc.assert(
      fc.property(fc.domain(), (domain) =>
        assert.ok(domain.split('.').some((part) => part.length > 63) || host.test(domain), domain),
      ),
    )
  })

  test('service names and namespaces are safe as names of files and hosts', () => {
    for (const name of ['a', 'stock', 'a.b-c.d', '0', 'a'.repeat(128)]) assert.ok(isServiceName(name), name)
    for (const name of [
      '',
      '.',
      '..',
      'a..b',
      '.a',
      'a.',
      '-a',
      'a-',
      'A',
      'a/b',
      'a\\b',
      'a b',
      'a%',
      'a\n',
      'a'.repeat(129),
    ])
      assert.equal(isServiceName(name), false, JSON.stringify(name))
    for (const name of ['default', 'a', '0-9', 'a'.repeat(63)]) assert.ok(isNamespace(name))
    for (const name of ['', '.', '..', 'a.b', 'A', 'a/b', 'a'.repeat(64)]) assert.equal(isNamespace(name), false)
  })

  test('none takes long over what nearly matches', () => {
    // A hundred times what any limit lets through; were one exponential, this would not end within the age of the world.
    const pieces = ['a', '1', '-', '_', '.', ':', 'a.', '1.', 'a-', '::', '1:', '255.', 'f:1.']
    const startMs = performance.now()
    for (const pattern of Object.values(PATTERNS)) {
      const expression = new RegExp(pattern)
      for (const piece of pieces) for (const end of ['', '!', '\n']) expression.test(piece.repeat(2_500) + end)
    }
    const tookMs = performance.now() - startMs
    assert.ok(tookMs < 10_000, `${tookMs} ms`)
  })
})
