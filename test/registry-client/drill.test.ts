import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { after, before, describe, test } from 'node:test'
import { run } from '../../registry-client/src/cli/cli.ts'
import type { DrillRow } from '../../registry-client/src/cli/drill.ts'

const yes = (age: number, usable: number, nodes: number) => ({ resolves: true, age, usable, nodes })
const no = (reason: string) => ({ resolves: false, reason })

const SERVICES: Record<string, object> = {
  stock: {
    resolves: true,
    level: 'memory',
    levels: { memory: yes(2_400, 3, 5), file: yes(12_000, 3, 5), peer: no('no peer knows it') },
  },
  shop: {
    resolves: true,
    level: 'file',
    levels: { memory: no('not in memory'), file: yes(90_000, 1, 1), peer: no('no peer knows it') },
  },
  down: {
    resolves: true,
    level: 'memory',
    levels: { memory: yes(2_400, 0, 5), file: yes(12_000, 2, 5), peer: yes(12_000, 3, 5) },
  },
  empty: {
    resolves: true,
    level: 'memory',
    levels: { memory: yes(2_400, 0, 0), file: yes(2_400, 0, 0), peer: no('no nodes, and no removal of the last') },
  },
  overruled: {
    resolves: true,
    level: 'memory',
    levels: {
      memory: { ...yes(0, 0, 1), overridden: true },
      file: no('no file that can be read'),
      peer: yes(12_000, 3, 5),
    },
  },
  lost: {
    resolves: false,
    levels: { memory: no('not in memory'), file: no('no file that can be read'), peer: no('no peers are configured') },
  },
}

async function listen(
  answer: (url: URL) => { status: number; body: string },
): Promise<{ server: Server; url: string }> {
  const server = createServer((request, response) => {
    const { status, body } = answer(new URL(request.url!, 'http://sidecar'))
    response.writeHead(status, { 'content-type': 'application/json' }).end(body)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

async function drill(...words: string[]) {
  const out: string[] = []
  const error: string[] = []
  const streams = {
    out: (text: string) => out.push(text),
    error: (text: string) => error.push(text),
    columns: undefined,
  }
  const code = await run(['drill', ...words], {}, new AbortController().signal, streams)
  return { code, out: out.join('\n'), error: error.join('\n') }
}

describe('holdfast drill', () => {
  let sidecar: { server: Server; url: string }
  let stranger: { server: Server; url: string }
  const asked: URL[] = []
  before(async () => {
    sidecar = await listen((url) => {
      asked.push(url)
      const names = url.searchParams.get('service')?.split(',') ?? ['stock', 'shop']
      const services = names.map((service) => ({
        service,
        namespace: url.searchParams.get('namespace'),
        ...SERVICES[service],
      }))
      return { status: 200, body: JSON.stringify({ services }) }
    })
    stranger = await listen((url) =>
      url.pathname === '/html/v1/rehearsal'
        ? { status: 200, body: '<html>' }
        : { status: 404, body: JSON.stringify({ title: 'There is nothing here' }) },
    )
  })
  after(() => {
    for (const { server } of [sidecar, stranger]) {
      server.close()
      server.closeAllConnections()
    }
  })

  test('tells of each service from which level it would resolve, how old, and to how many nodes', async () => {
    const { code, out, error } = await drill('--sidecar', sidecar.url, '--service', 'stock,shop', '--namespace', 'blue')
    assert.equal(code, 0, error)
    assert.equal(asked.at(-1)?.search, '?service=stock%2Cshop&namespace=blue')
    const lines = out.split('\n').map((line) => line.split(/ {2,}/))
    assert.deepEqual(lines[0], ['SIDECAR', 'NAMESPACE', 'SERVICE', 'RESOLVES', 'MEMORY', 'FILE', 'PEER', 'REASON'])
    assert.deepEqual(lines[1]?.slice(1), ['blue', 'stock', 'from memory', '3/5 2s', '3/5 12s', '-'])
    assert.deepEqual(lines[2]?.slice(1), ['blue', 'shop', 'from file', '-', '1/1 90s', '-'])
  })

  test('without services asks for all that the sidecar knows', async () => {
    assert.equal((await drill('--sidecar', sidecar.url)).code, 0)
    assert.equal(asked.at(-1)?.search, '?namespace=default')
  })

  test('exits 1 when one would not resolve, and says why', async () => {
    const { code, out } = await drill('--sidecar', sidecar.url, '--service', 'stock,lost')
    assert.equal(code, 1)
    assert.match(out, /lost +NO +- +- +- +not in memory; no file that can be read; no peers are configured/)
  })

  test('with a level exits 1 when one would not resolve from that', async () => {
    for (const [level, code] of [
      ['memory', 1],
      ['file', 0],
      ['peer', 1],
    ] as const)
      assert.equal(
        (await drill('--sidecar', sidecar.url, '--service', 'stock,shop', '--level', level)).code,
        code,
        level,
      )
    const { out } = await drill('--sidecar', sidecar.url, '--service', 'shop', '--level', 'memory')
    assert.match(out, /shop +NO +- +1\/1 90s +- +not in memory$/m)
  })

  test('a level that would answer with too few nodes fails, whatever those know that would not be asked', async () => {
    const drilled = (...words: string[]) => drill('--sidecar', sidecar.url, '--service', ...words)
    for (const words of [['down'], ['down', '--level', 'memory']]) {
      const { code, out } = await drilled(...words)
      assert.equal(code, 1)
      assert.match(out, /down +NO .* 0 of 5 nodes usable, 1 wanted$/m)
      assert.doesNotMatch(out, /2 of 5|3 of 5/)
    }
    for (const [level, usable] of [
      ['file', 2],
      ['peer', 3],
    ] as const) {
      const enough = await drilled('down', '--level', level, '--min-usable', String(usable))
      assert.deepEqual([enough.code, enough.out.includes(`from ${level}`)], [0, true])
      const wanting = await drilled('down', '--level', level, '--min-usable', '4')
      assert.equal(wanting.code, 1)
      assert.match(wanting.out, new RegExp(` ${usable} of 5 nodes usable, 4 wanted$`, 'm'))
    }
    // Nothing is in memory: the file is what would answer.
    const short = await drilled('shop', '--min-usable', '2')
    assert.equal(short.code, 1)
    assert.match(short.out, /shop +NO .* 1 of 1 nodes usable, 2 wanted$/m)
  })

  test("says where it is an operator's file that leaves too few", async () => {
    const { code, out } = await drill('--sidecar', sidecar.url, '--service', 'overruled')
    assert.equal(code, 1)
    assert.match(out, /overruled +NO +0\/1 0ms +- .* 0 of 1 nodes usable by an operator's override file, 1 wanted$/m)
  })

  test('a service without nodes passes only where that is allowed, and never without proof', async () => {
    const drilled = (...words: string[]) => drill('--sidecar', sidecar.url, '--service', 'empty', ...words)
    assert.equal((await drilled()).code, 1)
    assert.equal((await drilled('--min-usable', '0')).code, 0)
    const unproven = await drilled('--min-usable', '0', '--level', 'peer')
    assert.equal(unproven.code, 1)
    assert.match(unproven.out, /no nodes, and no removal of the last$/m)
  })

  test('a sidecar that knows no service fails the drill, and so does one that leaves out what it was asked for', async () => {
    const forgetful = await listen((url) => ({
      status: 200,
      body: JSON.stringify({
        services: url.searchParams.has('service')
          ? [{ service: 'stock', namespace: 'default', ...SERVICES.stock }]
          : [],
      }),
    }))
    const none = await drill('--sidecar', forgetful.url)
    assert.equal(none.code, 1)
    assert.equal(none.error, `${forgetful.url}: knows no services: name those you need with --service`)
    const some = await drill('--sidecar', forgetful.url, '--service', 'stock,shop,lost')
    assert.deepEqual([some.code, some.error], [1, `${forgetful.url}: did not answer for shop, lost`])
    forgetful.server.close()
    forgetful.server.closeAllConnections()
  })

  describe('takes no answer that is none', () => {
    const level = no('')
    const levels = { memory: yes(0, 1, 1), file: level, peer: level }
    const stock = { service: 'stock', namespace: 'default', levels }
    const wrong: Record<string, [answer: unknown, complaint: string]> = {
      'of another namespace': [[{ ...stock, namespace: 'blue' }], ' of what was asked: it tells of blue/stock'],
      'of another service': [[stock, { ...stock, service: 'shop' }], ' of what was asked: it tells of default/shop'],
      'of a service twice': [[stock, stock], ': it tells of default/stock twice'],
      'whose name is none': [[{ ...stock, service: 's\u001b[2J' }], ': services.0.service: not a service name'],
      'whose peers are a number': [
        [{ ...stock, levels: { ...levels, peer: { ...level, unanswered: 5 } } }],
        ': services.0.levels.peer.unanswered: must be an array, got 5',
      ],
      'that counts below zero': [
        [{ ...stock, levels: { ...levels, memory: yes(0, -1, 1) } }],
        ': services.0.levels.memory.usable: ',
      ],
      'that counts more than there are': [
        [{ ...stock, levels: { ...levels, memory: yes(0, 2, 1) } }],
        ': services.0.levels.memory.usable: more than there are nodes',
      ],
      'of no age': [
        [{ ...stock, levels: { ...levels, memory: { ...yes(0, 1, 1), age: 'y' } } }],
        ': services.0.levels.memory.age: must be a number, got y',
      ],
      'that lacks a level': [[{ ...stock, levels: { memory: level, file: level } }], ': services.0.levels.peer'],
      'that is no list': [{}, ': services: must be an array'],
    }
    for (const [what, [services, complaint]] of Object.entries(wrong))
      test(`${what}, and says where`, async (t) => {
        const liar = await listen(() => ({ status: 200, body: JSON.stringify({ services }) }))
        t.after(() => {
          liar.server.close()
          liar.server.closeAllConnections()
        })
        const { code, error, out } = await drill('--sidecar', liar.url, '--service', 'stock')
        assert.deepEqual([code, out], [1, 'no services'])
        assert.ok(error.startsWith(`${liar.url}: the answer is no rehearsal${complaint}`), error)
      })

    test('and writes nothing to the terminal that commands it', async (t) => {
      const commands = '\u001b]0;x\u0007\u202e'
      const liar = await listen(({ pathname }) =>
        pathname.startsWith('/refuses')
          ? { status: 500, body: JSON.stringify({ title: commands }) }
          : {
              status: 200,
              body: JSON.stringify({
                services: [{ ...stock, levels: { memory: no(commands), file: level, peer: level } }],
              }),
            },
      )
      t.after(() => {
        liar.server.close()
        liar.server.closeAllConnections()
      })
      const { code, out, error } = await drill('--sidecar', `${liar.url},${liar.url}/refuses`, '--service', 'stock')
      assert.equal(code, 1)
      assert.match(out, /\?\]0;x\?\?/)
      assert.match(error, /answered 500: \?\]0;x\?\?$/)
    })
  })

  test('is JSON for programs', async () => {
    const { code, out } = await drill('--sidecar', sidecar.url, '--service', 'stock,lost', '--json')
    assert.equal(code, 1)
    const rows = JSON.parse(out) as DrillRow[]
    assert.deepEqual(
      rows.map(({ sidecar: url, service, passes, level }) => [url, service, passes, level]),
      [
        [sidecar.url, 'stock', true, 'memory'],
        [sidecar.url, 'lost', false, undefined],
      ],
    )
    assert.deepEqual(rows[0]?.levels?.file, yes(12_000, 3, 5))
  })

  test('a sidecar that cannot be asked fails the drill, by its name, and the others are told of', async () => {
    const nowhere = await listen(() => ({ status: 200, body: '' }))
    nowhere.server.close()
    await once(nowhere.server, 'close')
    const { code, out, error } = await drill('--sidecar', `${sidecar.url},${nowhere.url}`, '--service', 'stock')
    assert.equal(code, 1)
    assert.match(out, /stock +from memory/)
    assert.equal(error.startsWith(`${nowhere.url}: cannot be asked: `), true, error)
    for (const [url, reason] of [
      [stranger.url, 'answered 404: There is nothing here'],
      [`${stranger.url}/html`, "the answer is no rehearsal; is this a sidecar's admin API?"],
    ] as const) {
      const answer = await drill('--sidecar', url)
      assert.deepEqual([answer.code, answer.error], [1, `${url}: ${reason}`])
    }
  })

  test('arguments that cannot be used exit 2', async () => {
    for (const [words, complaint] of [
      [['stock'], /usage: holdfast drill/],
      [['--service', 'No'], /service\.0: must be a service name/],
      [['--sidecar', '127.0.0.1:7500'], /sidecar\.0: must be a URL/],
      [['--level', 'disk'], /level: .*memory/],
      [['--min-usable', '-1'], /minUsable: must be 0/],
    ] as const) {
      const { code, error } = await drill(...words)
      assert.equal(code, 2, error)
      assert.match(error, complaint)
    }
  })
})
