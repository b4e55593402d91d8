import assert from 'node:assert/strict'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, test, type TestContext } from 'node:test'
import { inspect } from 'node:util'
import { connect, RefusedError } from '@holdfast/registry-client'
import { run } from '../../registry-client/src/cli/cli.ts'
import { maskUrl, reasonOf, systemNetwork } from '../../registry-client/src/network.ts'
import { show } from '../../registry-client/src/shown.ts'
import { failure, resolved, world } from '../support/client-world.ts'
import { freePort } from '../support/free-port.ts'
import { answer, problem } from '../support/scripted-network.ts'

const SECRET = 'hunter2'

/** Everything in a value, however deep. */
const all = (value: unknown) => inspect(value, { depth: Infinity, maxArrayLength: null, maxStringLength: null })

/** What is said on the client's channels until the test ends. */
function heard(t: TestContext): unknown[] {
  const messages: unknown[] = []
  const listen = (message: unknown) => void messages.push(message)
  for (const name of ['resolve', 'view', 'connection', 'file']) {
    subscribe(`holdfast:${name}`, listen)
    t.after(() => unsubscribe(`holdfast:${name}`, listen))
  }
  return messages
}

test('of a URL the password is masked, and a name that stands alone, wherever in a text it is', () => {
  const cases = [
    ['http://host:7400', 'http://host:7400'],
    ['http://user:hunter2@host:7400/base', 'http://user:***@host:7400/base'],
    ['HTTPS://user:hunter2@host', 'HTTPS://user:***@host'],
    ['wss://user:hunter2@host', 'wss://user:***@host'],
    ['http://:hunter2@host', 'http://***@host'],
    ['http://hunter2@host', 'http://***@host'],
    ['http://user:hun:ter2@host', 'http://user:***@host'],
    ['http://user:p@hunter2@host', 'http://user:***@host'],
    ['no answer of http://a:hunter2@b, http://c:hunter2@d', 'no answer of http://a:***@b, http://c:***@d'],
    ['http://host/a:b@c', 'http://host/a:b@c'],
    ['http://host?a=b:c@d', 'http://host?a=b:c@d'],
    ['http://a:1,http://u:hunter2@b', 'http://a:1,http://u:***@b'],
  ] as const
  for (const [url, shown] of cases) assert.equal(maskUrl(url), shown)
  assert.equal(reasonOf(new Error('x', { cause: new Error('no http://a:hunter2@b') })), 'no http://a:***@b')
  assert.equal(reasonOf('no http://a:hunter2@b'), 'no http://a:***@b')
})

test('a client shows the password of no endpoint, but asks with it', async (t) => {
  const messages = heard(t)
  const made = world()
  const endpoints = [`http://user:${SECRET}@one:7400`, `http://user:${SECRET}@two:7400`]
  const client = await made.start({ endpoints })
  t.after(() => client.close())
  const first = made.network.stream
  assert.ok(first.url.startsWith(`http://user:${SECRET}@`), first.url)
  const shown: unknown[] = [client.status()]
  await first.accept()
  await resolved(made, client, 'a')
  await first.cut(`cannot ask http://user:${SECRET}@one:7400`)
  shown.push(client.status(), client.metrics())
  const failing = failure(client.resolve('other', { deadline: 100 }))
  await made.clock.advance(100)
  shown.push(await failing)
  made.network.respond = ({ url }) =>
    url.includes('one') ? Promise.reject(new Error(`no way to ${url}`)) : problem(503, 'unavailable')
  const registration = await Promise.all([client.register({ service: 'shop', port: 80 }), made.clock.advance(5_000)])
  made.network.respond = ({ method }) => (method === 'PUT' ? problem(400, 'bad') : answer(201, { id: 'l1' }))
  const refused = client.register({ service: 'shop', port: 81 }).catch((error: unknown) => error)
  await made.clock.advance(10_000)
  shown.push(registration, await refused)
  assert.ok(shown.at(-1) instanceof RefusedError)
  assert.ok(made.network.calls.every(({ url }) => url.startsWith(`http://user:${SECRET}@`)))
  await Promise.all([client.close(), made.clock.advance(10_000)])
  shown.push(await client.resolve('stock').catch((error: unknown) => error))
  for (const item of [...shown, ...messages, ...made.log.lines]) assert.ok(!all(item).includes(SECRET), all(item))
  for (const item of [shown[0], messages, made.log.lines])
    assert.match(all(item), /http:\/\/user:\*\*\*@(one|two):7400/)
})

test('nor does one whose registry is really not there', async (t) => {
  const messages = heard(t)
  const made = world()
  const endpoints = [`http://user:${SECRET}@127.0.0.1:${await freePort()}`]
  const { log } = made
  const client = await connect({ endpoints, log })
  t.after(() => client.close())
  const error = await failure(client.resolve('stock', { deadline: 300 }))
  const registering = await client.register({ service: 'shop', port: 80 })
  for (const item of [error, registering, client.status(), ...messages, ...log.lines])
    assert.ok(!all(item).includes(SECRET), all(item))
  assert.match(error.message, /user:\*\*\*@127\.0\.0\.1/)
  assert.ok(log.lines.length > 0)
})

test('an endpoint that cannot be one is refused without its password', async () => {
  for (const url of [
    `http://u:${SECRET}@host?x`,
    `htp://u:${SECRET}@host`,
    `http:u:${SECRET}@host`,
    `u:${SECRET}@host`,
  ])
    for (const options of [{ endpoints: [url] }, { endpoints: ['http://registry'], peers: [url] }])
      await assert.rejects(connect(options), (error: Error) => {
        assert.ok(error instanceof TypeError)
        assert.ok(!all(error).includes(SECRET), error.message)
        return true
      })
})

describe('of a URL whose password holds what has to be escaped there, no part is shown', () => {
  const NOT_ESCAPED = [
    '/',
    ' ',
    '"',
    "'/",
    '#',
    '?',
    '\\',
    '/@',
    '://',
    '@/',
    '\n/',
    'http://',
    '<',
    `/${'x'.repeat(5_000)}/`,
  ]
  for (const sign of NOT_ESCAPED)
    // With figures before the sign, what precedes it passes for a port.
    for (const url of [`http://user:top${sign}hunter2@127.0.0.1:1`, `http://user:12${sign}hunter2@127.0.0.1:1/base`])
      test(JSON.stringify(url.slice(0, 50)), async () => {
        const secret = /top|12[^7]|hunter|xxx/
        for (const options of [{ endpoints: [url] }, { endpoints: ['http://registry'], peers: [url] }])
          await assert.rejects(connect(options), (error: Error) => {
            assert.ok(error instanceof TypeError)
            assert.match(error.message, /http:\/\/\*\*\*@127\.0\.0\.1:1/)
            assert.doesNotMatch(all(error.message), secret)
            return true
          })
        // Some of these signs are escaped here for whoever forgot to.
        for (const command of [
          ['status', '--registry'],
          ['drill', '--sidecar'],
        ]) {
          let said = ''
          const say = (text: string) => void (said += text)
          const { signal } = new AbortController()
          const code = await run([...command, url], {}, signal, { out: say, error: say, columns: undefined })
          assert.ok(code > 0)
          assert.match(said, /\*\*\*@127\.0\.0\.1:1/)
          assert.doesNotMatch(said, secret)
        }
      })

  test('and none of what holds such a URL', () => {
    for (const input of [
      { registry: 'http://user:my://secret@host' },
      ['user:my secret@host'],
      { 'http://user:secret@host': 'x' },
      'a secret@b http://user:secret@host',
      'x:://secret@host',
    ]) {
      assert.doesNotMatch(show(input), /user|secret/)
      assert.match(show(input), /@host/)
    }
  })
})

test('the command line shows no password of a registry that does not answer', async () => {
  const registry = `http://user:${SECRET}@127.0.0.1:${await freePort()}`
  for (const command of [['services'], ['nodes', 'stock'], ['status'], ['watch', 'stock', '--timeout', '200ms']]) {
    const said: string[] = []
    const say = (text: string) => void said.push(text)
    const stop = new AbortController()
    const running = run([...command, '--registry', registry], {}, stop.signal, {
      out: say,
      error: (text) => {
        say(text)
        stop.abort()
      },
      columns: undefined,
    })
    await running
    assert.match(said.join('\n'), /user:\*\*\*@127\.0\.0\.1/, command.join(' '))
    assert.ok(!said.join('\n').includes(SECRET), said.join('\n'))
  }
})

test('nor of one whose URL cannot be used', async () => {
  for (const url of [`http://user:${SECRET}@host/?query`, `user:${SECRET}@host`, `x:user:${SECRET}@host`]) {
    let said = ''
    const say = (text: string) => void (said += text)
    const { signal } = new AbortController()
    assert.equal(await run(['status', '--registry', url], {}, signal, { out: say, error: say, columns: undefined }), 2)
    assert.match(said, /\*\*\*@host/)
    assert.ok(!said.includes(SECRET), said)
  }
})

test('the wire gets the password, as the registry wants it', async (t) => {
  const asked: (string | undefined)[] = []
  const server = createServer((request, response) => {
    asked.push(request.headers.authorization)
    response.end('{}')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => server.close())
  const { port } = server.address() as AddressInfo
  const { signal } = new AbortController()
  await systemNetwork.request({ method: 'GET', url: `http://user:${SECRET}@127.0.0.1:${port}/v1/status`, signal })
  assert.deepEqual(asked, [`Basic ${Buffer.from(`user:${SECRET}`).toString('base64')}`])
  server.closeAllConnections()
})
