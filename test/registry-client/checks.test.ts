import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { NodeRegistration } from '@holdfast/registry-client'
import { failure, resolved, world } from '../support/client-world.ts'
import { settle } from '../support/manual-clock.ts'

/** Whatever type it claims to have. */
const odd = (value: unknown) => value as never

const REFUSED: readonly (readonly [name: string, value: unknown, message: RegExp])[] = [
  ['endpoints', undefined, /^endpoints: must be a list, got nothing$/],
  ['endpoints', 'http://one', /^endpoints: must be a list, got http:\/\/one$/],
  ['endpoints', [], /^endpoints: at least one is needed$/],
  ['endpoints', [5], /^endpoints: not an http URL: 5$/],
  ['endpoints', ['http://one '], /^endpoints: not an http URL: http:\/\/one $/],
  ['endpoints', ['http://one/ '], /^endpoints: not an http URL/],
  ['endpoints', ['http://o\\ne'], /^endpoints: not an http URL/],
  ['endpoints', ['ftp://one'], /^endpoints: not an http URL/],
  ['peers', 'http://one', /^peers: must be a list, got http:\/\/one$/],
  ['peers', null, /^peers: must be a list, got null$/],
  ['cacheDir', null, /^cacheDir: .*got null$/],
  ['cacheDir', 5, /^cacheDir: .*got 5$/],
  ['cacheDir', '', /^cacheDir: must be a path/],
  ['cacheDir', 'a\0b', /^cacheDir: .*got a\?b$/],
  ['cacheDir', new URL('file:///cache'), /^cacheDir: .*got "file:\/\/\/cache"$/],
  ['namespace', ['a'], /^namespace: .*: \["a"\]$/],
  ['namespace', null, /^namespace: .*: null$/],
  ['zone', 'Z', /^zone: .*: Z$/],
  ['zone', ['a'], /^zone: /],
  ['leaseTtlMs', NaN, /^leaseTtlMs: must be 2000\.\.3600000, got NaN$/],
  ['leaseTtlMs', '15000', /^leaseTtlMs: .*got 15000$/],
  ['maxNodes', -1, /^maxNodes: must be an integer of at least 1, got -1$/],
  ['maxNodes', 1e308, /^maxNodes: .*got 1e\+308$/],
  ['maxServices', NaN, /^maxServices: .*got NaN$/],
  ['maxServices', [7], /^maxServices: .*got \[7\]$/],
  ['maxCacheBytes', -5, /^maxCacheBytes: must be an integer of at least 1048576, got -5$/],
  ['idleAfter', null, /^idleAfter: .*got null$/],
  ['idleAfter', NaN, /^idleAfter: .*got NaN$/],
  ['idleAfter', [5], /^idleAfter: .*got \[5\]$/],
  ['outageProbes', 'yes', /^outageProbes: must be true or false, got yes$/],
  ['log', {}, /^log: its debug must be a function, got nothing$/],
  ['log', 5, /^log: must be an object, got 5$/],
  ['clock', { now: () => 0 }, /^clock: its wall must be a function, got nothing$/],
  ['random', 0.5, /^random: must be a function, got 0\.5$/],
  ['network', null, /^network: must be an object, got null$/],
  ['disk', { read() {} }, /^disk: its startsWith must be a function/],
]

describe('connect refuses by name, before anything is opened', () => {
  for (const [name, value, message] of REFUSED)
    test(`${name}: ${message.source}`, async () => {
      const made = world()
      await assert.rejects(made.start({ [name]: value }), { name: 'TypeError', message })
      assert.equal(made.network.streams.length + made.disk.done.length + made.clock.pending, 0)
    })

  test('options that are none', async () => {
    const { connect } = await import('@holdfast/registry-client')
    for (const value of [undefined, null, 5, 'http://one'])
      await assert.rejects(connect(odd(value)), { name: 'TypeError', message: /^options: must be an object, got / })
  })
})

const NAMES = [undefined, null, 5, ['a'], { length: 3 }, '', 'Stock', 'a/b', '__proto__', 'x'.repeat(1e6), Symbol('a')]

describe('calls refuse by name, and leave nothing behind', () => {
  test('names of services and namespaces', async (t) => {
    const made = world()
    const client = await made.start()
    t.after(() => client.close())
    await resolved(made, client, 'a')
    await made.clock.advance(1_000)
    const [pending, sent] = [made.clock.pending, made.network.stream.sent.length]
    const calls: ((service: string, options?: object) => unknown)[] = [
      (service, options) => client.resolve(service, options),
      (service, options) => client.watch(service, options),
      (service, options) => client.pick(service, options),
      (service, options) => client.peek(service, options),
      (service, options) => client.lookup(service, options),
      (service, options) => client.nodeReports(service, options),
      (service, options) => client.rehearse([{ service, ...options }]),
      (service, options) => client.register({ service, port: 80, ...options }),
    ]
    for (const call of calls) {
      const attempt = async (service: unknown, options?: object) => call(odd(service), options)
      for (const name of NAMES) {
        await assert.rejects(attempt(name), { name: 'TypeError', message: /^not a service name: / })
        if (name !== undefined)
          await assert.rejects(attempt('stock', { namespace: name }), {
            name: 'TypeError',
            message: /^namespace: not a namespace/,
          })
      }
    }
    for (const call of calls.slice(0, 6))
      for (const options of [null, 5, 'x'])
        await assert.rejects(async () => call('other', odd(options)), {
          name: 'TypeError',
          message: /^options: must be an object/,
        })
    await settle()
    assert.deepEqual([made.clock.pending, made.network.stream.sent.length], [pending, sent])
    assert.deepEqual([client.status().services, client.status().registrations], [1, 0])
  })

  test('a signal that is none leaves nobody waiting', async (t) => {
    const made = world()
    const client = await made.start()
    t.after(() => client.close())
    const message = /^signal: /
    for (const signal of [5, null, {}, new EventTarget(), 'abort'].map(odd)) {
      await assert.rejects(client.resolve('stock', { signal }), { name: 'TypeError', message })
      await assert.rejects(client.rehearse([], { signal }), { name: 'TypeError', message })
      assert.throws(() => client.watch('stock', { signal }), { name: 'TypeError', message })
    }
    assert.equal(client.status().services, 0)
  })

  test('limits of a call', async (t) => {
    const made = world()
    const client = await made.start()
    t.after(() => client.close())
    for (const name of ['deadline', 'maxStale'])
      for (const value of [null, '', true, NaN, -1, '5', 'soon', [5], {}, Symbol('a'), 5n])
        await assert.rejects(client.resolve('stock', { [name]: value }), {
          name: 'TypeError',
          message: new RegExp(`^${name}: must be a duration`),
        })
    for (const minRevision of [null, NaN, -1, 1.5, 'x', {}, ['e:5'], Symbol('a'), true].map(odd))
      await assert.rejects(client.resolve('stock', { minRevision }), { name: 'TypeError', message: /^minRevision: / })
    await assert.rejects(client.rehearse(odd('stock')), { name: 'TypeError', message: /^services: must be a list/ })
    await assert.rejects(client.rehearse(odd([null])), {
      name: 'TypeError',
      message: /^services\.0: must be an object/,
    })
    assert.equal(client.status().services, 0)
    await resolved(made, client, 'a')
    for (const not of [['a'], { has: () => true, size: Infinity }, 5].map(odd))
      assert.throws(() => client.pick('stock', { not }), { name: 'TypeError', message: /^not: must be a Set/ })
  })

  test('a node that cannot be one, by the field', async (t) => {
    const made = world()
    const client = await made.start()
    t.after(() => client.close())
    const refused: [object, RegExp][] = [
      [{ port: 0 }, /^node\.port: /],
      [{ port: '80' }, /^node\.port: /],
      [{ port: undefined }, /^node\.port: /],
      [{ host: 'a b' }, /^node\.host: /],
      [{ id: '' }, /^node\.id: /],
      [{ weight: NaN }, /^node\.weight: /],
      [{ labels: { a: 5n } }, /^node\.labels\.a: /],
      [{ labels: [] }, /^node\.labels: /],
      [{ protocol: 'ftp' }, /^node\.protocol: /],
      [{ status: 'gone' }, /^node\.status: /],
      [{ zone: null }, /^node\.zone: /],
    ]
    for (const [fields, message] of refused) {
      const node = { service: 'shop', port: 80, ...fields } as NodeRegistration
      await assert.rejects(client.register(node), { name: 'TypeError', message })
    }
    for (const node of [undefined, null, 5])
      await assert.rejects(client.register(odd(node)), { name: 'TypeError', message: /^node: must be an object/ })
    assert.deepEqual([client.status().registrations, made.network.calls.length], [0, 0])
    const registering = client.register({ service: 'shop', port: 80 })
    await made.clock.advance(3_000)
    const registration = await registering
    await assert.rejects(registration.update({ weight: -1 }), { name: 'TypeError', message: /^node\.weight: / })
    await assert.rejects(registration.update(odd(null)), { name: 'TypeError', message: /^change: must be an object/ })
  })

  test('after all of it the client answers as ever', async () => {
    const made = world()
    const client = await made.start()
    await client.resolve(odd(5)).catch(() => {})
    assert.equal((await resolved(made, client, 'a')).nodes.length, 1)
    await client.close()
    assert.equal((await failure(client.resolve('stock'))).code, 'closed')
  })
})
