import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { startService } from './fakes.ts'
import { ask, NO_REGISTRY, ready, run } from './program.ts'
import { eventually } from './wire.ts'

test('a configuration that cannot be used ends it with 2, and every problem on a line of its own', async (t) => {
  const { heard, ended } = run(t, ['--admin-port', '0x10', '--drain-settle', '5', '--registry', 'nowhere'])
  assert.equal(await ended, 2)
  assert.equal(heard.out, '')
  const paths = heard.error
    .trim()
    .split('\n')
    .map((line) => line.split(':')[0])
  assert.deepEqual(paths.sort(), ['drain.settle', 'listeners.admin.port', 'registry.0'])
})

test('it starts without a registry, says so in one line, and ends with 0 when asked to', async (t) => {
  const { child, heard, ended, ports } = await ready(t)
  const { admin } = ports
  assert.match(
    await ask(admin, 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'),
    /^HTTP\/1\.1 200 /,
  )
  child.kill('SIGTERM')
  assert.equal(await ended, 0)
  assert.equal(heard.out.trim().split('\n').length, 1)
})

test('a password in the URL of a registry or a peer is shown nowhere', async (t) => {
  const { child, heard, ended, ports } = await ready(t, [
    ...['--registry', 'http://user:hunter2@127.0.0.1:9', '--peers', 'http://other:hunter2@127.0.0.1:9'],
    ...['--log-level', 'debug'],
  ])
  const { admin, outbound } = ports
  const get = (path: string, host = 'localhost') =>
    `GET ${path} HTTP/1.1\r\nHost: ${host}\r\nx-holdfast-timeout: 1s\r\nConnection: close\r\n\r\n`
  const answers = [
    await ask(outbound, get('/', 'stock')),
    await ask(admin, get('/v1/config')),
    await ask(admin, get('/v1/stats')),
  ]
  const metrics = await ask(admin, get('/metrics'))
  await eventually('it logs where the registry should be', () => heard.error.includes('127.0.0.1:9'))
  child.kill('SIGTERM')
  await ended
  for (const text of [...answers, metrics, heard.out, heard.error]) assert.doesNotMatch(text, /hunter2/)
  for (const text of [...answers, heard.error]) assert.match(text, /user:\*\*\*@127/)
  for (const text of [...answers.slice(1), heard.error]) assert.match(text, /other:\*\*\*@127/)

  const refused = run(t, ['--registry', 'http://user:hun@ter2@host/?query'])
  assert.equal(await refused.ended, 2)
  assert.match(refused.heard.error, /^registry\.0: .*\*\*\*@host/)
  assert.doesNotMatch(refused.heard.error, /hun|ter2/)
})

test('a drain that somebody asks for by the admin API ends it with 0, too', async (t) => {
  const { ended, ports } = await ready(t)
  const answer = await ask(ports.admin, 'POST /v1/drain HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
  assert.match(answer, /^HTTP\/1\.1 202 /)
  assert.equal(await ended, 0)
})

test('a second signal ends a drain that takes its time', async (t) => {
  const { child, ended, heard } = await ready(t, ['--drain-settle', '10m'])
  child.kill('SIGTERM')
  await eventually('it drains', () => heard.error.includes('draining'))
  child.kill('SIGTERM')
  assert.equal(await ended, 1)
})

test('an address that is taken ends it with 1 and its name', async (t) => {
  const other = await startService(() => {})
  t.after(() => other.stop())
  const { heard, ended } = run(t, [
    ...NO_REGISTRY,
    '--admin-port',
    '0',
    '--outbound-port',
    '0',
    '--inbound-port',
    String(other.port),
    '--no-file-cache',
  ])
  assert.equal(await ended, 1)
  assert.match(heard.error, new RegExp(`EADDRINUSE.*:${other.port}`))
})

test('the access log that was moved away is opened again on SIGHUP', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'access.log')
  const { child, ports } = await ready(t, ['--access-log', file])
  const call = (path: string) => ask(ports.inbound, `GET ${path} HTTP/1.1\r\nHost: stock\r\nConnection: close\r\n\r\n`)
  const lines = async (name: string) => (await readFile(name, 'utf8').catch(() => '')).split('\n').filter(Boolean)
  await call('/one')
  while ((await lines(file)).length < 1);
  await rename(file, `${file}.1`)
  child.kill('SIGHUP')
  for (let i = 0; (await lines(file)).length < 1; i++) await call('/two')
  assert((await lines(file)).every((line) => line.includes('/two')))
  assert((await lines(`${file}.1`))[0]!.includes('/one'))
})

/** Writes lines, and is asked to end. */
async function endOf(
  t: TestContext,
  accessLog: string,
  afterStart?: (program: Awaited<ReturnType<typeof ready>>) => void,
) {
  const program = await ready(t, ['--access-log', accessLog])
  const { child, ports, heard, ended } = program
  afterStart?.(program)
  for (let i = 0; i < 3; i++) await ask(ports.inbound, 'GET / HTTP/1.1\r\nHost: stock\r\nConnection: close\r\n\r\n')
  child.kill('SIGTERM')
  assert.equal(await ended, 0)
  assert.match(heard.error, /drained/)
  return heard
}

test('an access log on a full disk, in a pipe that nobody reads or one whose reader has gone does not hinder its end', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const pipe = join(directory, 'pipe')
  spawnSync('mkfifo', [pipe])
  assert.match((await endOf(t, '/dev/full')).error, /ENOSPC.*the access log cannot be written/)
  assert.match((await endOf(t, pipe)).error, /ENXIO.*the access log cannot be written/)
  assert.match((await endOf(t, '-', ({ child }) => child.stdout!.destroy())).error, /EPIPE|ECONNRESET/)
})

test('an access log that can never be written is a setting that cannot be used', async (t) => {
  for (const workers of ['1', '2']) {
    const { heard, ended } = run(t, [...NO_REGISTRY, '--access-log', tmpdir(), '--workers', workers])
    assert.equal(await ended, 2)
    assert.equal(
      heard.error,
      `accessLog: cannot be opened: EISDIR: illegal operation on a directory, open '${tmpdir()}'\n`,
    )
  }
})

test('an error that nobody has caught ends it with 1 and its stack, without the source', async (t) => {
  const bug = `process.on('SIGUSR2', () => { throw new Error('a bug') }) // source`
  const env = { NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(bug)}` }
  const { child, heard, ended } = await ready(t, ['--log-level', 'silent'], { env })
  child.kill('SIGUSR2')
  assert.equal(await ended, 1)
  assert.match(heard.error, /^Error: a bug\n {4}at /)
  assert.doesNotMatch(heard.error, / source/)
})
