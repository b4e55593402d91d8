import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { caller, configOf, temporaryDirectory } from './support.ts'

const PROGRAM = fileURLToPath(new URL('../../registry-server/bin/holdfast-registry.js', import.meta.url))

function start(args: readonly string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [PROGRAM, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  const said = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk: Buffer) => (said.stdout += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (said.stderr += chunk.toString()))
  const ended = once(child, 'close').then(([code]) => ({ code: code as number | null, ...said }))
  return { child, said, ended }
}

async function ready(child: ReturnType<typeof start>['child']): Promise<string> {
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string]
  return line
}

test('one line on standard output says that it is ready, and where; the log is JSON on standard error', async (context) => {
  const directory = await temporaryDirectory(context)
  const { child, said, ended } = start(['--port', '0', '--data-dir', directory])
  const line = await ready(child)
  const match = /^holdfast-registry ready: (http:\/\/127\.0\.0\.1:\d+) \(store embedded, (.+), revision 0\)$/.exec(line)
  assert.ok(match, line)
  assert.equal(match[2], path.join(directory, 'store'))
  assert.equal((await caller(match[1]!)('GET', '/readyz')).status, 200)
  child.kill('SIGTERM')
  const { code, stdout } = await ended
  assert.equal(code, 0)
  assert.equal(stdout, `${line}\n`)
  for (const entry of said.stderr.trim().split('\n')) assert.doesNotThrow(() => JSON.parse(entry) as unknown, entry)
})

test('flags win over the environment, that over the file', async (context) => {
  const directory = await temporaryDirectory(context)
  const file = path.join(directory, 'registry.yaml')
  writeFileSync(file, `port: 1\nlogLevel: fatal\ndataDir: ${directory}/from-file\nleases: { max: 7 }\n`)
  const { child, said } = start(['--config', file, '--port', '0'], { HOLDFAST_DATA_DIR: `${directory}/from-env` })
  assert.match(await ready(child), /from-env/)
  assert.equal(said.stderr, '')
  child.kill('SIGINT')
  await once(child, 'close')
})

test('--new-epoch gives a store another identity, once', async (context) => {
  const directory = await temporaryDirectory(context)
  const epochs: string[] = []
  for (const flags of [[], ['--new-epoch'], []]) {
    const { child } = start(['--port', '0', '--data-dir', directory, ...flags])
    const [url] = /http:\/\/[^ ]+/.exec(await ready(child))!
    epochs.push((await caller(url)('GET', '/v1/status')).body.epoch)
    child.kill('SIGTERM')
    await once(child, 'close')
  }
  const [first, second, third] = epochs
  assert.notEqual(second, first)
  assert.equal(third, second)
})

test('every problem of the configuration is named at once, and the status is 2', async (context) => {
  const directory = await temporaryDirectory(context)
  const file = path.join(directory, 'registry.yaml')
  writeFileSync(file, 'history: { revisions: 5 }\nwatch: { maxBuffer: 1000, stall: 60 }\ncolour: red\n')
  const { code, stdout, stderr } = await start([
    '--config',
    file,
    '--port',
    '0x10',
    '--store',
    'etcd://me:secret@a',
    '--prot',
    '1',
  ]).ended
  assert.equal(code, 2)
  assert.equal(stdout, '')
  for (const what of [
    /history\.revisions: must be 10000\.\.1000000, got 5/,
    /watch\.maxBuffer: must be a size with its unit/,
    /watch\.stall: must be a duration with its unit/,
    /colour: unknown key/,
    /port: must be 1\.\.65535, got 0x10/,
    /store: must not hold a user or a password/,
    /--prot: unknown option; did you mean --port/,
  ])
    assert.match(stderr, what)
})

test('a host that is none is a problem of the configuration, one that nobody knows a message', async (context) => {
  const directory = await temporaryDirectory(context)
  for (const host of ['a b', '[::1]', 'a/b', 'x'.repeat(254)]) {
    const { code, stderr } = await start(['--port', '0', '--data-dir', directory, '--host', host]).ended
    assert.equal(code, 2, host)
    assert.match(stderr, /\nhost: must be an IP address or a DNS name, got /)
  }
  const unknown = await start(['--port', '0', '--data-dir', directory, '--host', 'no-such-host.invalid']).ended
  assert.equal(unknown.code, 1)
  assert.match(unknown.stderr, /no-such-host\.invalid/)
  assert.doesNotMatch(unknown.stderr, /\n {4}at /)
  for (const host of ['::', '0.0.0.0', '::1', '127.0.0.1', 'localhost', 'registry.example.org'])
    assert.equal(configOf(directory, { host }).host, host)
})

test('a data directory where nothing can be made ends the program with a message', async () => {
  for (const directory of ['/proc/holdfast/data', '/proc/self', '/dev/null']) {
    const { code, stdout, stderr } = await start(['--port', '0', '--data-dir', directory]).ended
    assert.deepEqual([code, stdout], [1, ''], directory)
    const message = stderr.split('\n').find((line) => line.startsWith('holdfast-registry: '))
    assert.ok(message?.includes(directory), stderr)
    assert.doesNotMatch(stderr, /\/proc\/self\/fd|\n {4}at /)
  }
})

test('--help and --version answer without starting anything', async () => {
  const help = await start(['--help']).ended
  assert.equal(help.code, 0)
  for (const flag of [
    '--host',
    '--port',
    '--data-dir',
    '--store',
    '--new-epoch',
    '--log-level',
    '--config',
    '--version',
  ])
    assert.ok(help.stdout.includes(flag), flag)
  const asked = await start(['--version']).ended
  assert.match(asked.stdout, /^\d+\.\d+\.\d+\n$/)
})

test('a command has its own help and refuses what it does not know; the file of the registry serves it too', async (context) => {
  const directory = await temporaryDirectory(context)
  const help = await start(['--help']).ended
  for (const command of ['export', 'import', 'check']) {
    assert.match(help.stdout, new RegExp(`^  ${command} `, 'm'))
    const own = await start([command, '--help']).ended
    assert.equal(own.code, 0)
    assert.match(own.stdout, new RegExp(`^Usage: holdfast-registry ${command} \\[OPTIONS\\]`))
    assert.doesNotMatch(own.stdout, /--port/)
  }
  const unknown = await start(['exprot']).ended
  assert.equal(unknown.code, 2)
  assert.match(unknown.stderr, /exprot: unknown command; did you mean export\?/)
  const wrong = await start(['check', '--port', '1', 'extra', '--log-level', 'loud']).ended
  assert.equal(wrong.code, 2)
  for (const what of [/--port: unknown option/, /extra: unexpected argument/, /logLevel: must be one of/])
    assert.match(wrong.stderr, what)
  const file = path.join(directory, 'registry.yaml')
  writeFileSync(file, `port: 1\nleases: { max: 7 }\ndataDir: ${directory}/from-file\n`)
  const { code, stderr } = await start(['check', '--config', file]).ended
  assert.equal(code, 1)
  assert.match(stderr, /there is no store in .+\/from-file\/store: is --data-dir right\?/)
})

test('a port that is taken, and a directory that cannot be, are named in one line, with status 1', async (context) => {
  const directory = await temporaryDirectory(context)
  const first = start(['--port', '0', '--data-dir', path.join(directory, 'a')])
  const port = /:(\d+) /.exec(await ready(first.child))![1]!
  const second = await start(['--port', port, '--data-dir', path.join(directory, 'b')]).ended
  assert.equal(second.code, 1)
  assert.match(second.stderr, /EADDRINUSE/)
  assert.doesNotMatch(second.stderr, /\n {4}at /)
  writeFileSync(path.join(directory, 'file'), '')
  const third = await start(['--port', '0', '--data-dir', path.join(directory, 'file', 'x'), '--log-level', 'silent'])
    .ended
  assert.equal(third.code, 1)
  assert.match(third.stderr, /^holdfast-registry: cannot create the data directory .+\n$/)
  first.child.kill('SIGKILL')
  await once(first.child, 'close')
})

test('a second signal ends a stop that waits', async (context) => {
  const directory = await temporaryDirectory(context)
  const { child, said, ended } = start(['--port', '0', '--data-dir', directory, '--log-level', 'info'])
  const url = new URL(/http:\/\/[^ ]+/.exec(await ready(child))![0])
  // A stream whose client does not end its side holds the stop up until its time is over.
  const socket = connect({ port: Number(url.port), host: url.hostname, allowHalfOpen: true })
  socket.on('error', () => {})
  socket.write('GET /v1/watch?service=stock HTTP/1.1\r\nhost: x\r\n\r\n')
  await once(socket, 'data')
  child.kill('SIGTERM')
  while (!said.stderr.includes('stopping')) await once(child.stderr, 'data')
  child.kill('SIGTERM')
  assert.equal((await ended).code, 1)
  socket.destroy()
})
