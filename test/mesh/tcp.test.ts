/** A caller, a sidecar, a sidecar, and a service that speaks a protocol of its own, as real processes. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test, type TestContext } from 'node:test'
import { freePort } from '../support/free-port.ts'
import { eventually, Mesh } from './mesh.ts'

const GREETING = '5.7.44-log ready\n'

/** A service that speaks first, answers each line with its name, and is told apart by it. */
async function startDatabase(t: TestContext, name: string) {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.write(GREETING)
    socket.on('data', (query) => socket.write(`${name}:${query.toString()}`))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => server.close())
  return (server.address() as AddressInfo).port
}

/** One connection with one question. */
async function ask(port: number, question: string): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  socket.setEncoding('utf8')
  let text = ''
  try {
    socket.on('data', (piece: string) => {
      text += piece
      if (text === GREETING) socket.write(`${question}\n`)
      if (text.endsWith(`:${question}\n`)) socket.end()
    })
    await once(socket, 'end')
  } finally {
    socket.destroy()
  }
  return text.slice(GREETING.length)
}

test('a service of TCP is reached through both sidecars while the registry is dead and the sidecars restart', async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'))
  const mesh = new Mesh({ directory })
  t.after(async () => {
    await mesh.stop('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  })
  await mesh.startRegistry()
  const local = await freePort()
  const log = path.join(directory, 'access.log')
  const [caller, first, second] = await Promise.all([
    mesh.addHost('shop', 'caller', {}, ['--tcp', `${local}=orders-db`, '--access-log', log]),
    mesh.addHost('stock', 'first'),
    mesh.addHost('stock', 'second'),
  ])
  assert.match(caller.sidecar.ready, new RegExp(`tcp 127\\.0\\.0\\.1:${local}=orders-db\\.default`))
  for (const host of [first, second]) {
    const port = await startDatabase(t, host.name)
    await host.admin('PUT', '/v1/registrations/orders-db', { port, protocol: 'tcp' })
  }
  const answers = new Set<string>()
  await eventually(
    async () => answers.add(await ask(local, 'who')),
    (seen) => seen.has('first:who\n') && seen.has('second:who\n'),
    'answers of both nodes',
  )

  await mesh.registry.stop('SIGKILL')
  // Without the registry, by what the sidecars know; and after the caller's sidecar has come back, from its file.
  assert.match(await ask(local, 'dead?'), /^(first|second):dead\?/)
  await caller.sidecar.stop('SIGTERM')
  await caller.startSidecar()
  assert.match(await ask(local, 'file?'), /^(first|second):file\?/)

  // The called one comes back on the port that everybody knows.
  await first.sidecar.stop('SIGKILL')
  for (let i = 0; i < 4; i++) assert.equal(await ask(local, 'one?'), 'second:one?\n')
  await first.startSidecar()
  await second.sidecar.stop('SIGKILL')
  assert.equal(await ask(local, 'other?'), 'first:other?\n')

  // Nobody is left: a regular end, with the reason where an operator looks for it.
  await first.sidecar.stop('SIGKILL')
  const lost = connect(local, '127.0.0.1')
  lost.resume()
  await once(lost, 'end')
  await caller.sidecar.stop('SIGTERM')
  const lines = readFileSync(log, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { protocol: string; service: string; reason?: string; source: string })
  assert(lines.every(({ protocol, service }) => protocol === 'tcp' && service === 'orders-db'))
  assert.equal(lines.at(-1)!.reason, 'upstream_connect')
  assert(lines.some(({ source, reason }) => source === 'file' && reason === undefined))
})
