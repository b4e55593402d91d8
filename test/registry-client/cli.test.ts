import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { connect, silentLog } from '@holdfast/registry-client'
import { createRegistry, settings, type Registry } from '@holdfast/registry-server'
import { run } from '../../registry-client/src/cli/cli.ts'

interface Ran {
  readonly code: number
  readonly out: string
  readonly error: string
}

interface Options {
  readonly signal?: AbortSignal
  readonly env?: Record<string, string>
  readonly onOut?: (text: string) => void
}

async function holdfast(words: readonly string[], options: Options = {}): Promise<Ran> {
  const out: string[] = []
  const error: string[] = []
  const streams = {
    out: (text: string) => {
      out.push(text)
      options.onOut?.(text)
    },
    error: (text: string) => void error.push(text),
    columns: undefined,
  }
  const code = await run(words, options.env ?? {}, options.signal ?? new AbortController().signal, streams)
  return { code, out: out.join('\n'), error: error.join('\n') }
}

describe('against a registry', () => {
  let directory: string
  let registry: Registry
  const on = (...words: string[]) => holdfast([...words, '--registry', registry.url])

  const put = async (service: string, id: string, body: object) => {
    const answer = await fetch(`${registry.url}/v1/services/${service}/nodes/${encodeURIComponent(id)}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    })
    assert.ok(answer.ok, await answer.text())
  }

  before(async () => {
    directory = await mkdtemp(path.join(tmpdir(), 'holdfast-cli-'))
    const config = settings.parse({ port: 0, dataDir: path.join(directory, 'data') })
    registry = await createRegistry({ config, log: silentLog })
    await put('stock', 'stock-1', { host: '10.0.0.1', port: 8080, labels: { version: 'v1' }, zone: 'z1' })
    await put('stock', 'stock-2', { host: '2001:db8::1', port: 8081, status: 'draining' })
    await put('shop', 'shop-1', { host: '10.0.0.3', port: 9090, protocol: 'grpc' })
  })
  after(async () => {
    await registry.close()
    await rm(directory, { recursive: true, force: true })
  })

  test('services are a table, or JSON for programs', async () => {
    const { code, out, error } = await on('services')
    assert.equal(code, 0, error)
    const lines = out.split('\n')
    assert.match(lines[0]!, /^SERVICE +UP +DRAINING +DOWN +CURSOR$/)
    assert.match(lines[1]!, /^shop +1 +0 +0 +\S+:\d+$/)
    assert.match(lines[2]!, /^stock +1 +1 +0 +\S+:\d+$/)
    const json = JSON.parse((await on('services', 'st', '--json')).out) as { service: string }[]
    assert.deepEqual(
      json.map(({ service }) => service),
      ['stock'],
    )
    assert.equal((await on('services', 'zzz')).out, 'no services')
  })

  test('nodes are a table with addresses that can be pasted', async () => {
    const { code, out } = await on('nodes', 'stock')
    assert.equal(code, 0)
    const lines = out.split('\n')
    assert.match(lines[0]!, /^NODE +ADDRESS +PROTOCOL +STATUS +WEIGHT +ZONE +LABELS +LIFE$/)
    assert.match(lines[1]!, /^stock-1 +10\.0\.0\.1:8080 +http +up +100 +z1 +version=v1 +static$/)
    assert.match(lines[2]!, /^stock-2 +\[2001:db8::1\]:8081 +http +draining +100 +static$/)
    const draining = await on('nodes', 'stock', '--status', 'draining', '--json')
    assert.deepEqual(
      (JSON.parse(draining.out) as { nodes: { id: string }[] }).nodes.map(({ id }) => id),
      ['stock-2'],
    )
  })

  test('a service that is not there exits 1 and says so', async () => {
    const { code, out, error } = await on('nodes', 'nothing')
    assert.equal(code, 1)
    assert.equal(out, '')
    assert.match(error, /404 service_not_found/)
  })

  test('an override is set, shown and cleared', async () => {
    const set = await on('override', 'shop', 'shop-1', '--status', 'down', '--weight', '7')
    assert.equal(set.code, 0, set.error)
    assert.match(set.out, /down \(was up\) +7 \(was 100\)/)
    assert.match((await on('nodes', 'shop')).out, /down \(was up\)/)
    const cleared = await on('override', 'shop', 'shop-1', '--clear', '--json')
    assert.equal((JSON.parse(cleared.out) as { status: string }).status, 'up')
    assert.equal((await on('override', 'shop', 'gone', '--clear')).code, 1)
  })

  test('a policy is applied from YAML, read and deleted', async () => {
    const file = path.join(directory, 'policy.yaml')
    await writeFile(file, 'timeout: 2s\nretry: { attempts: 3 }\n')
    const applied = await on('policy', 'apply', 'stock', '--file', file)
    assert.equal(applied.code, 0, applied.error)
    assert.equal(applied.out, 'policy of stock is stored')
    assert.match((await on('policy', 'get', 'stock')).out, /"timeout": "2s"/)
    assert.equal((await on('policy', 'delete', 'stock')).out, 'policy of stock is deleted')
    const missing = await on('policy', 'get', 'stock')
    assert.equal(missing.code, 1)
    assert.match(missing.error, /policy_not_found/)
  })

  test('a policy that the registry refuses names the fields', async () => {
    const file = path.join(directory, 'bad.yaml')
    await writeFile(file, 'timeout: 2\n')
    const { code, error } = await on('policy', 'apply', 'stock', '--file', file)
    assert.equal(code, 1)
    assert.match(error, /timeout: must be a string, got 2/)
  })

  test('watch shows the nodes, then each change, until it is stopped', async () => {
    await put('cart', 'cart-1', { host: '10.0.0.4', port: 1 })
    const stop = new AbortController()
    const steps = [
      () => put('cart', 'cart-2', { host: '10.0.0.5', port: 2 }),
      () => put('cart', 'cart-1', { host: '10.0.0.4', port: 1, weight: 5 }),
      () => fetch(`${registry.url}/v1/services/cart/nodes/cart-1`, { method: 'DELETE' }),
    ]
    const { code, out } = await holdfast(['watch', 'cart', '--registry', registry.url], {
      signal: stop.signal,
      onOut: () => {
        const step = steps.shift()
        if (step) void step()
        else stop.abort()
      },
    })
    assert.equal(code, 0)
    const changes = out.split('\n').slice(2)
    assert.match(out, /cart-1 +10\.0\.0\.4:1/)
    assert.match(changes[0]!, /^\d+ {2}\+ cart-2 10\.0\.0\.5:2 up weight 100$/)
    assert.match(changes[1]!, /^\d+ {2}~ cart-1 10\.0\.0\.4:1 up weight 5$/)
    assert.match(changes[2]!, /^\d+ {2}- cart-1$/)
  })

  test('watch --json is one line per event', async () => {
    const stop = new AbortController()
    const { out } = await holdfast(['watch', 'stock', '--json', '--registry', registry.url], {
      signal: stop.signal,
      onOut: () => stop.abort(),
    })
    const event = JSON.parse(out) as { cursor: string; nodes: { id: string }[] }
    assert.match(event.cursor, /^\S+:\d+$/)
    assert.deepEqual(
      event.nodes.map(({ id }) => id),
      ['stock-1', 'stock-2'],
    )
  })

  test('status is a table, or JSON', async () => {
    const { code, out } = await on('status')
    assert.equal(code, 0)
    assert.ok(
      out.split('\n').every((line) => /^\S+ +\S/.test(line)),
      out,
    )
    assert.equal(typeof JSON.parse((await on('status', '--json')).out), 'object')
  })

  test('the registry may be named by the environment', async () => {
    const { code, out } = await holdfast(['services', 'shop'], { env: { HOLDFAST_REGISTRY: registry.url } })
    assert.equal(code, 0)
    assert.match(out, /shop/)
  })

  test('a second registry answers when the first is gone', async () => {
    const { code, out } = await holdfast(['services', '--registry', `${await nowhere()},${registry.url}`])
    assert.equal(code, 0)
    assert.match(out, /stock/)
  })

  test('the client library follows it: registered by one, resolved and picked by another', async () => {
    const one = await connect({ endpoints: [registry.url] })
    const two = await connect({ endpoints: [registry.url], cacheDir: path.join(directory, 'cache') })
    const registration = await one.register({ service: 'news', port: 4000 })
    assert.equal(registration.state, 'registered')
    assert.equal((await two.resolve('news')).nodes[0]!.leased, true)
    assert.equal(two.pick('news').node.port, 4000)
    const gone = (async () => {
      for await (const { nodes, view } of two.watch('news')) if (nodes.length === 0) return view.emptied?.cause
      return undefined
    })()
    await one.close()
    assert.equal(await gone, 'deregistered')
    await two.close()
  })
})

describe('arguments', () => {
  for (const [words, expected] of [
    [['nodse'], /unknown command nodse; did you mean nodes\?/],
    [[], /a command is needed/],
    [['nodes'], /usage: holdfast nodes SERVICE/],
    [['nodes', 'a', 'b'], /usage: holdfast nodes SERVICE/],
    [['nodes', 'Not_One'], /not a service name: Not_One/],
    [['override', 'stock', 'n'], /give --status and --weight, or --clear/],
    [['override', 'stock', 'n', '--clear', '--weight', '1'], /give --status and --weight, or --clear/],
    [['override', 'stock', 'n', '--weight', '1001'], /weight: must be 0\.\.1000, got 1001/],
    [['policy', 'put', 'stock'], /policy: put is none of get, apply, delete/],
    [['policy', 'apply', 'stock'], /--file is needed/],
    [['policy', 'apply', 'stock', '--file', '/nowhere/x.yaml'], /ENOENT/],
    [['services', '--registri', 'x'], /unknown option; did you mean --registry\?/],
    [['services', '--timeout', '10'], /timeout: must be a duration with its unit/],
    [['services', '--namespace', 'Not One'], /namespace: must be a namespace/],
  ] as const)
    test(`${words.join(' ') || 'none'} exits 2 with a reason and nothing on standard output`, async () => {
      const { code, out, error } = await holdfast(words)
      assert.equal(code, 2)
      assert.equal(out, '')
      assert.match(error, expected)
      assert.match(error, /holdfast --help lists/)
    })

  test('help and version go to standard output', async () => {
    const help = await holdfast(['--help'])
    assert.equal(help.code, 0)
    assert.match(help.out, /^Usage: holdfast COMMAND/)
    for (const word of ['services', 'nodes', 'watch', 'override', 'policy apply', 'status', '--registry', '--json'])
      assert.ok(help.out.includes(word), word)
    const version = await holdfast(['--version'])
    assert.equal(version.code, 0)
    assert.match(version.out, /^\d+\.\d+\.\d+$/)
  })

  test('the program runs as it is installed', async () => {
    const program = fileURLToPath(new URL('../../registry-client/bin/holdfast.js', import.meta.url))
    const ran = await new Promise<{ code: number; stderr: string }>((resolve) => {
      execFile(process.execPath, [program, 'nodse'], (error, _stdout, stderr) =>
        resolve({ code: Number(error?.code ?? 0), stderr }),
      )
    })
    assert.equal(ran.code, 2, ran.stderr)
    assert.match(ran.stderr, /did you mean nodes\?/)
  })
})

describe('a registry that does not do its part', () => {
  let server: Server
  let url: string
  let body = ''

  before(async () => {
    server = createServer((_request, response) => {
      if (body !== '') response.end(body)
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  })
  after(() => {
    server.closeAllConnections()
    server.close()
  })

  test('that is down exits 1 and names the address with its reason', async () => {
    const gone = await nowhere()
    const { code, error } = await holdfast(['services', '--registry', gone])
    assert.equal(code, 1)
    assert.match(error, new RegExp(`^no registry answered: ${gone}: .*ECONNREFUSED`))
  })

  test('that does not answer exits 1 after the time given', async () => {
    body = ''
    const { code, error } = await holdfast(['services', '--registry', url, '--timeout', '50ms'])
    assert.equal(code, 1)
    assert.match(error, /the deadline passed/)
  })

  test('that answers something else exits 1', async () => {
    body = '<html>welcome</html>'
    const { code, out, error } = await holdfast(['services', '--registry', url])
    assert.equal(code, 1)
    assert.equal(out, '')
    assert.match(error, /is this a registry\?/)
  })

  test('interrupted, it exits 0', async () => {
    body = ''
    const stop = new AbortController()
    server.once('request', () => stop.abort())
    assert.equal((await holdfast(['services', '--registry', url], { signal: stop.signal })).code, 0)
  })
})

/** A URL at which nobody listens any more. */
async function nowhere(): Promise<string> {
  const gone = createServer().listen(0, '127.0.0.1')
  await once(gone, 'listening')
  const { port } = gone.address() as AddressInfo
  gone.close()
  await once(gone, 'close')
  return `http://127.0.0.1:${port}`
}
