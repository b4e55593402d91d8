import assert from 'node:assert/strict'
import { availableParallelism } from 'node:os'
import { describe, test } from 'node:test'
import { SettingsError } from '@holdfast/registry-client/settings'
import { loadConfig, sidecarHelp } from '../../sidecar-plugin/src/config.ts'

function load(argv: string[] = [], options: { env?: Record<string, string>; file?: string } = {}) {
  const { file } = options
  return loadConfig({
    argv: file === undefined ? argv : [...argv, '--config', 'sidecar.yaml'],
    env: { HOME: '/home/x', ...options.env },
    ...(file !== undefined && { readFile: () => file }),
  }).config
}

function problemsOf(run: () => unknown): Record<string, string> {
  try {
    run()
  } catch (error) {
    assert(error instanceof SettingsError)
    return Object.fromEntries(error.problems.map(({ path, message }) => [path, message]))
  }
  throw new Error('nothing was refused')
}

test('without anything said it stands on loopback, with the documented ports', () => {
  const config = load()
  assert.deepEqual(config.listeners, {
    admin: { host: '127.0.0.1', port: 7500 },
    outbound: { host: '127.0.0.1', port: 7501 },
    inbound: { host: '127.0.0.1', port: 7502 },
    peers: undefined,
    tcp: [],
  })
  assert.deepEqual(config.tcp, { idle: 3_600_000, connect: 10_000, connections: 10_000 })
  assert.deepEqual(config.peers, [])
  assert.deepEqual(config.registry, ['http://127.0.0.1:7400'])
  assert.deepEqual(config.drain, { settle: 1_000, idle: 5_000, timeout: 30_000 })
  assert.deepEqual([config.accessLog, config.accessLogSample], ['off', 1])
  assert.equal(config.namespace, 'default')
})

test('workers are as many as are asked for, or as there are cores', () => {
  assert.equal(load().workers, 1)
  assert.equal(load(['--workers', '4']).workers, 4)
  assert.equal(load(['--workers', 'auto']).workers, Math.min(availableParallelism(), 64))
  assert.equal(load([], { file: 'workers: auto' }).workers, Math.min(availableParallelism(), 64))
  for (const wrong of ['0', '65', 'many', '1.5', '0x10', '-1'])
    assert.match(problemsOf(() => load([`--workers=${wrong}`])).workers!, /^must be 1\.\.64 or auto, got .*--workers/)
  assert.match(problemsOf(() => load([], { file: 'workers: true' })).workers!, /^must be 1\.\.64 or auto, got true/)
})

test('the sample of the access log is a part of the whole', () => {
  assert.deepEqual(
    ['0', '0.01', '.5', '1', '1.0'].map((text) => load(['--access-log-sample', text]).accessLogSample),
    [0, 0.01, 0.5, 1, 1],
  )
  assert.equal(load([], { file: 'accessLogSample: 0.25' }).accessLogSample, 0.25)
  for (const wrong of ['1.1', '-0.1', '10%', 'half', '1e-2'])
    assert.match(
      problemsOf(() => load([`--access-log-sample=${wrong}`])).accessLogSample!,
      /^must be a number from 0 to 1, got .*--access-log-sample/,
    )
})

test('flags win over the environment, that over the file, that over the defaults', () => {
  const file = 'listeners: { outbound: { port: 1 }, inbound: { port: 1 }, admin: { port: 1 } }'
  const config = load(['--outbound-port', '3'], {
    file,
    env: { HOLDFAST_OUTBOUND_PORT: '2', HOLDFAST_INBOUND_PORT: '2' },
  })
  assert.deepEqual(
    [config.listeners.outbound.port, config.listeners.inbound.port, config.listeners.admin.port],
    [3, 2, 1],
  )
})

test('peers are answered where a port is named, on the inbound side’s address or one of their own', () => {
  assert.deepEqual(load(['--peer-port', '7503']).listeners.peers, { host: '127.0.0.1', port: 7503 })
  assert.deepEqual(load(['--peer-port', '0', '--host', '10.0.0.1']).listeners.peers, { host: '10.0.0.1', port: 0 })
  const file = 'listeners: { peers: { host: 10.0.0.2, port: 7503 } }'
  assert.deepEqual(load([], { file }).listeners.peers, { host: '10.0.0.2', port: 7503 })
  assert.match(problemsOf(() => load(['--peer-port', '70000']))['listeners.peers.port']!, /must be 1..65535/)
})

test('peers are URLs, few, and named with their place when they are not', () => {
  assert.deepEqual(load(['--peers', 'http://a:7503/,https://b:7503']).peers, ['http://a:7503', 'https://b:7503'])
  const problems = problemsOf(() => load([], { file: 'peers: [http://a:1, 10.0.0.1, http://b/?x=1]' }))
  assert.deepEqual(Object.keys(problems), ['peers.1', 'peers.2'])
  assert.match(problems['peers.1']!, /must be a URL such as/)
  const many = Array.from({ length: 17 }, (_, index) => `http://peer-${index}:7503`)
  assert.match(problemsOf(() => load(['--peers', many.join(',')])).peers!, /^at most 16/)
})

test('a port of TCP names its service, in the namespace of this sidecar unless it says another', () => {
  const argv = ['--tcp', '15432=orders-db,127.0.0.2:3306=mysql.shop,[::1]:0=a.b.c,db.local:1=x', '--namespace', 'home']
  assert.deepEqual(load(argv).listeners.tcp, [
    { host: '127.0.0.1', port: 15_432, service: 'orders-db', namespace: 'home' },
    { host: '127.0.0.2', port: 3306, service: 'mysql', namespace: 'shop' },
    { host: '::1', port: 0, service: 'a.b', namespace: 'c' },
    { host: 'db.local', port: 1, service: 'x', namespace: 'home' },
  ])
  const file = 'listeners: { tcp: ["15432=orders-db"] }\ntcp: { idle: 5m, connect: 3s, connections: 7 }'
  assert.equal(load([], { file }).listeners.tcp[0]!.port, 15_432)
  assert.deepEqual(load([], { file }).tcp, { idle: 300_000, connect: 3_000, connections: 7 })
})

test('a port of TCP that is none, or is there twice, is refused with its place', () => {
  for (const wrong of [
    'x',
    '1',
    '=a',
    '70000=a',
    '1=A_B',
    '1=a:2',
    ':1=a',
    'a b:1=c',
    '::1:2=c',
    '[10]:1=c',
    '1=a b',
    '1=.a',
  ])
    assert.match(
      problemsOf(() => load([], { file: JSON.stringify({ listeners: { tcp: ['1=a', wrong] } }) }))['listeners.tcp.1']!,
      /^must be \[HOST:\]PORT=SERVICE/,
      wrong,
    )
  assert.deepEqual(
    problemsOf(() => load(['--tcp', '1=a,127.0.0.1:1=b'])),
    {
      'listeners.tcp.1': 'a second listener on 127.0.0.1:1',
    },
  )
  const many = Array.from({ length: 1_001 }, (_, index) => `${index + 1}=a`)
  assert.match(problemsOf(() => load(['--tcp', many.join(',')]))['listeners.tcp']!, /^at most 1000/)
})

test('an inbound port is for services of TCP only', () => {
  const services = (over: string) => `services: [{ service: db, port: 5432, ${over} }]`
  assert.equal(load([], { file: services('protocol: tcp, inboundPort: 17432') }).services[0]!.inboundPort, 17_432)
  assert.match(
    problemsOf(() => load([], { file: services('inboundPort: 17432') }))['services.0.inboundPort']!,
    /protocol tcp only/,
  )
})

test('what is cached stands in the user’s cache directory, elsewhere, or nowhere, as told', () => {
  assert.equal(load([], { env: { XDG_CACHE_HOME: '/xdg' } }).cacheDir, '/xdg/holdfast')
  assert.match(load().cacheDir!, /\/\.cache\/holdfast$/)
  assert.equal(load(['--cache-dir', '/var/cache/h']).cacheDir, '/var/cache/h')
  assert.equal(load(['--no-file-cache']).cacheDir, undefined)
})

test('others are told the inbound address unless another is to be advertised', () => {
  assert.equal(load(['--host', '10.0.0.1']).advertise, '10.0.0.1')
  assert.equal(load(['--host', '0.0.0.0', '--advertise', 'node-1.example']).advertise, 'node-1.example')
  assert.match(problemsOf(() => load(['--host', '0.0.0.0'])).advertise!, /is required/)
})

test('services of the file have their health checks in milliseconds, with defaults', () => {
  const file = `
services:
  - service: stock
    port: 8080
    labels: { version: v2 }
    healthCheck: { type: http, path: /healthz, interval: 250ms }
  - { service: prices, port: 8081 }
`
  const [stock, prices] = load([], { file }).services
  assert.deepEqual(stock!.healthCheck, {
    type: 'http',
    path: '/healthz',
    intervalMs: 250,
    timeoutMs: 1_000,
    unhealthyAfter: 3,
    healthyAfter: 1,
  })
  assert.equal(prices!.healthCheck.type, 'tcp')
})

describe('what cannot be used is refused', () => {
  test('all of it at once, each with its path', () => {
    const file = `
listeners: { outbound: { port: 0x10000 }, inbnd: {} }
drain: { settle: 5 }
services:
  - { service: Stock, port: 0, healthCheck: { type: icmp, interval: 2 } }
`
    const problems = problemsOf(() => load(['--admin-port', '0x10', '--zone', 'Z', '--nonsense'], { file }))
    assert.deepEqual(Object.keys(problems).sort(), [
      '--nonsense',
      'drain.settle',
      'listeners.admin.port',
      'listeners.inbnd',
      'listeners.outbound.port',
      'services.0.healthCheck.interval',
      'services.0.healthCheck.type',
      'services.0.port',
      'services.0.service',
      'zone',
    ])
    assert.equal(problems['listeners.admin.port'], 'must be 1..65535, got 0x10 (from --admin-port)')
    assert.match(problems['listeners.inbnd']!, /did you mean inbound/)
  })

  test('an admin API that the network could reach', () => {
    const problems = problemsOf(() => load([], { file: 'listeners: { admin: { host: 0.0.0.0 } }' }))
    assert.match(problems['listeners.admin.host']!, /loopback/)
  })

  test('two services of one name', () => {
    const file = 'services: [{ service: a, port: 1 }, { service: a, port: 2 }]'
    assert.match(problemsOf(() => load([], { file }))['services.1.service']!, /second service a/)
  })

  test('two services of one name beside everything else that is wrong', () => {
    const file = 'services: [{ service: a, port: 1 }, 7, { service: a, port: 0 }, { service: a, port: 2 }]'
    const problems = problemsOf(() => load(['--zone', 'Z'], { file }))
    assert.deepEqual(Object.keys(problems).sort(), [
      'services.1',
      'services.2.port',
      'services.2.service',
      'services.3.service',
      'zone',
    ])
  })
})

test('the help names every flag that scripts rely on', () => {
  for (const flag of [
    '--registry',
    '--cache-dir',
    '--admin-port',
    '--outbound-port',
    '--inbound-port',
    '--config',
    '--log-level',
    '--version',
  ])
    assert(sidecarHelp().includes(flag), flag)
})
