/** A sidecar of several processes, as people start it. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { Agent, request, type IncomingMessage, type ServerResponse } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { freePort } from '../support/free-port.ts'
import { RawCaller, startService } from './fakes.ts'
import { NO_REGISTRY, ready, run } from './program.ts'
import { eventually } from './wire.ts'

const GET = 'GET / HTTP/1.1\r\nHost: stock\r\n\r\n'

interface Worker {
  readonly worker: number
  readonly pid: number
  readonly state: string
  readonly restarts: number
  readonly connections: number
}

interface Stats {
  readonly requests: { readonly inbound: number; readonly outbound: number }
  readonly workers: readonly Worker[]
}

async function call(
  port: number,
  options: { path?: string; method?: string; host?: string; body?: object; agent?: Agent } = {},
): Promise<{ status: number; text: string }> {
  const { path = '/', method = 'GET', host = 'stock', body, agent } = options
  const outgoing = request({ port, host: '127.0.0.1', path, method, agent: agent ?? false, headers: { host } })
  outgoing.end(body && JSON.stringify(body))
  const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response) text += String(chunk)
  return { status: response.statusCode!, text }
}

/** @param options `services`: ports by name, that it knows from its start; a request waits for the registry, which is down */
async function start(
  t: TestContext,
  argv: string[] = [],
  options: Parameters<typeof ready>[2] & { services?: Readonly<Record<string, number>> } = {},
) {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'sidecar.yaml')
  const services = Object.entries(options.services ?? {}).map(([service, port]) => ({ service, port }))
  await writeFile(file, JSON.stringify({ services }))
  const program = await ready(t, ['--workers', '2', '--config', file, ...argv], options)
  const { admin, inbound } = program.ports
  const ask = async <T>(path: string, method = 'GET', body?: object) => {
    const { text } = await call(admin, { path, method, host: 'localhost', ...(body && { body }) })
    return (text ? JSON.parse(text) : undefined) as T
  }
  const stats = () => ask<Stats>('/v1/stats')
  const put = (service: string, port: number, more: object = {}) =>
    ask(`/v1/registrations/${service}`, 'PUT', { port, ...more })
  const metric = async (pattern: RegExp) => {
    const { text } = await call(admin, { path: '/metrics', host: 'localhost' })
    return [...text.matchAll(new RegExp(`^${pattern.source} (\\S+)$`, 'gm'))].reduce((sum, [, n]) => sum + Number(n), 0)
  }
  /** One by one, so that it is in turn whose connection each is. */
  const hold = async (count: number) => {
    const callers: RawCaller[] = []
    for (let i = 0; i < count; i++) {
      const caller = new RawCaller(inbound)
      t.after(() => caller.socket.destroy())
      await caller.send(GET).until(/\r\n\r\nhere$/)
      callers.push(caller)
    }
    return callers
  }
  return { ...program, stats, ask, put, metric, hold }
}

async function service(t: TestContext, handler?: (incoming: IncomingMessage, outgoing: ServerResponse) => void) {
  const started = await startService(handler ?? ((_incoming, outgoing) => void outgoing.end('here')))
  t.after(() => started.stop())
  return started
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

/** Calls, each on a connection of its own, several at a time, until it is stopped. */
function load(port: number) {
  const failures: { readonly message: string; readonly begunMs: number }[] = []
  let sent = 0
  let isRunning = true
  const loops = Array.from({ length: 8 }, async () => {
    while (isRunning) {
      const begunMs = performance.now()
      sent++
      try {
        const { status } = await call(port)
        if (status !== 200) failures.push({ message: String(status), begunMs })
      } catch (error) {
        failures.push({ message: (error as Error).message, begunMs })
      }
    }
  })
  return {
    failures,
    get sent() {
      return sent
    },
    async stop() {
      isRunning = false
      await Promise.all(loops)
    },
  }
}

test('connections go to all workers in turn, at ports that all share, and what they count is summed', async (t) => {
  const stock = await service(t)
  const { stats, hold, metric, ask } = await start(t, [], { services: { stock: stock.port } })
  await hold(10)
  const { workers, requests } = await stats()
  assert.equal(requests.inbound, 10)
  assert.deepEqual(
    workers.map(({ worker, state, restarts }) => ({ worker, state, restarts })),
    [1, 2].map((worker) => ({ worker, state: 'listening', restarts: 0 })),
  )
  assert.equal(workers[0]!.connections + workers[1]!.connections, 10)
  for (const { connections } of workers) assert(connections >= 3, `${connections} of 10 connections`)
  assert.equal(await metric(/holdfast_sidecar_requests_total\{.*service="stock.default".*\}/), 10)
  assert.equal(await metric(/holdfast_sidecar_connections_open\{direction="inbound"\}/), 10)
  assert.equal(await metric(/holdfast_sidecar_request_duration_seconds_count\{direction="inbound"\}/), 10)
  assert.equal(await metric(/holdfast_sidecar_workers_listening/), 2)
  assert.equal(await metric(/holdfast_sidecar_local_services/), 1)
  const { registrations } = await ask<{ registrations: object[] }>('/v1/registrations')
  assert.equal(registrations.length, 1)
})

test('a service of TCP has one entrance at all workers, which goes with it', async (t) => {
  const echo = await service(t)
  const { put, ask, stats } = await start(t)
  const { port } = (await put('db', echo.port, { protocol: 'tcp' })) as { port: number }
  const callers = Array.from({ length: 4 }, () => new RawCaller(port).send('GET / HTTP/1.1\r\nHost: a\r\n\r\n'))
  for (const caller of callers) await caller.until(/here$/)
  assert.deepEqual(
    (await stats()).workers.map(({ connections }) => connections),
    [2, 2],
  )
  for (const caller of callers) caller.socket.end()
  await Promise.all(callers.map(({ closed }) => closed))
  await ask('/v1/registrations/db', 'DELETE')
  let late
  do {
    late = new RawCaller(port)
    await late.closed
  } while (!String(late.error).includes('ECONNREFUSED'))
})

test('of a killed worker only what was on it is lost; it comes back and knows everything', async (t) => {
  const stock = await service(t)
  const { put, stats, hold, metric, ports, heard } = await start(t, [], { services: { stock: stock.port } })
  const callers = await hold(2)
  const counted = await metric(/holdfast_sidecar_requests_total\{.*\}/)
  const running = load(ports.inbound)
  const [victim, other] = (await stats()).workers
  process.kill(victim!.pid, 'SIGKILL')
  const killedMs = performance.now()
  await Promise.race(callers.map(({ closed }) => closed))
  const left = callers.filter(({ socket }) => !socket.destroyed)
  assert.equal(left.length, 1, 'one of the two connections')
  left[0]!.text = ''
  await left[0]!.send(GET).until(/here$/)

  let workers = (await stats()).workers
  while (workers[0]!.state !== 'listening' || workers[0]!.restarts === 0) workers = (await stats()).workers
  assert.equal(workers[0]!.restarts, 1)
  assert.notEqual(workers[0]!.pid, victim!.pid)
  assert.equal(workers[1]!.pid, other!.pid)
  await put('late', stock.port)
  await running.stop()
  t.diagnostic(`${running.sent} calls, ${running.failures.length} lost with the worker`)
  assert.deepEqual(
    running.failures.filter(({ begunMs }) => begunMs > killedMs),
    [],
  )
  // Half of these are the new one's.
  for (const host of ['stock', 'late']) {
    const answers = await Promise.all(Array.from({ length: 10 }, () => call(ports.inbound, { host })))
    assert(answers.every(({ status }) => status === 200))
  }
  assert((await metric(/holdfast_sidecar_requests_total\{.*\}/)) >= counted, 'what was counted stays counted')
  assert.equal(await metric(/holdfast_sidecar_worker_restarts_total/), 1)
  assert.match(heard.error, /"worker":1.*a worker has ended and is started again/)
})

test('connections that come while every worker is gone wait for the next one', async (t) => {
  const stock = await service(t)
  const { stats, ports } = await start(t, [], { services: { stock: stock.port } })
  for (const { pid } of (await stats()).workers) process.kill(pid, 'SIGKILL')
  const answers = await Promise.all(Array.from({ length: 10 }, () => call(ports.inbound)))
  assert(answers.every(({ status }) => status === 200))
})

test('a sidecar that is killed leaves no worker behind, and what is under way is finished beside the next one', async (t) => {
  let release = () => {}
  const released = new Promise<void>((resolve) => (release = resolve))
  let isAsked = false
  const stock = await service(t, (incoming, outgoing) => {
    if (incoming.url !== '/slow') return void outgoing.end('here')
    isAsked = true
    void released.then(() => outgoing.end('late'))
  })
  const ports = { admin: await freePort(), outbound: await freePort(), inbound: await freePort() }
  const services = { stock: stock.port }
  const first = await start(t, [], { ports, services })
  const { workers } = await first.stats()
  const agent = new Agent({ keepAlive: true })
  t.after(() => agent.destroy())
  const slow = call(ports.inbound, { path: '/slow', agent })
  await eventually('it is under way', () => isAsked)
  first.child.kill('SIGKILL')
  await once(first.child, 'exit')

  await start(t, [], { ports, services })
  assert.equal((await call(ports.inbound)).status, 200)
  release()
  assert.deepEqual(await slow, { status: 200, text: 'late' })
  agent.destroy()
  await eventually('no worker is left', () => !workers.some(({ pid }) => isAlive(pid)))
})

test('a drain under load fails no call, whoever of the process group gets the signal', async (t) => {
  let release = () => {}
  const released = new Promise<void>((resolve) => (release = resolve))
  let asked = 0
  const stock = await service(t, (_incoming, outgoing) => {
    asked++
    void released.then(() => outgoing.end('late'))
  })
  const services = { stock: stock.port }
  const { stats, child, ended, ports, heard } = await start(t, [], { ownGroup: true, services })
  const { workers } = await stats()
  const calls = Array.from({ length: 20 }, () => call(ports.inbound))
  await eventually('all are under way', () => asked === 20)
  process.kill(-child.pid!, 'SIGTERM')
  await eventually('it drains', () => heard.error.includes('draining'))
  release()
  for (const answer of await Promise.all(calls)) assert.deepEqual(answer, { status: 200, text: 'late' })
  assert.equal(await ended, 0)
  await eventually('no worker is left', () => !workers.some(({ pid }) => isAlive(pid)))
})

test('a second signal ends the workers, too', async (t) => {
  const { stats, child, ended, heard } = await start(t, ['--drain-settle', '10m'], { ownGroup: true })
  const { workers } = await stats()
  process.kill(-child.pid!, 'SIGTERM')
  await eventually('it drains', () => heard.error.includes('draining'))
  process.kill(-child.pid!, 'SIGTERM')
  assert.equal(await ended, 1)
  await eventually('no worker is left', () => !workers.some(({ pid }) => isAlive(pid)))
})

test('a sidecar that is asked to stop while its workers hang at their start ends at once', async (t) => {
  // Stops each worker as it starts, before it can hear of anything.
  const hang = `if (process.argv[1].includes('worker')) process.kill(process.pid, 'SIGSTOP')`
  const env = { NODE_OPTIONS: `--import data:text/javascript,${encodeURIComponent(hang)}` }
  const ports = ['--admin-port', String(await freePort()), '--outbound-port', '0', '--inbound-port', '0']
  const { child, ended } = run(t, [...NO_REGISTRY, ...ports, '--no-file-cache', '--workers', '2'], { env })
  const healthz = () => call(Number(ports[1]), { path: '/healthz', host: 'localhost' }).catch(() => undefined)
  while ((await healthz())?.status !== 200);
  child.kill('SIGTERM')
  assert.equal(await ended, 0)
})

test('an address that is taken is said once, and ends all with 1', async (t) => {
  const other = await service(t)
  const ports = ['--admin-port', '0', '--outbound-port', '0', '--inbound-port', String(other.port)]
  const { heard, ended } = run(t, [...NO_REGISTRY, ...ports, '--no-file-cache', '--workers', '2'])
  assert.equal(await ended, 1)
  assert.equal(heard.error.match(/EADDRINUSE/g)?.length, 1)
})

const LONG = `/${'x'.repeat(2_000)}`

for (const [where, file] of Object.entries({ 'a file': 'access.log', 'a pipe': '-' }))
  test(`lines of the access log never mix in ${where}`, async (t) => {
    const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
    t.after(() => rm(directory, { recursive: true, force: true }))
    const log = file === '-' ? file : join(directory, file)
    const stock = await service(t)
    const services = { stock: stock.port }
    const { ports, heard, child, ended } = await start(t, ['--access-log', log], { services })
    const count = 600
    for (let sent = 0; sent < count; sent += 50)
      await Promise.all(Array.from({ length: 50 }, () => call(ports.inbound, { path: LONG })))
    child.kill('SIGTERM')
    assert.equal(await ended, 0)
    const text = file === '-' ? heard.out : await readFile(log, 'utf8')
    const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('holdfast-sidecar ready'))
    assert.equal(lines.length, count)
    for (const line of lines) assert.equal((JSON.parse(line) as { path: string }).path, LONG)
  })

test('a log that was moved away is opened again by every worker', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-'))
  t.after(() => rm(directory, { recursive: true, force: true }))
  const file = join(directory, 'access.log')
  const { child, ports } = await start(t, ['--access-log', file])
  const lines = async (name: string) => (await readFile(name, 'utf8').catch(() => '')).split('\n').filter(Boolean)
  await Promise.all(Array.from({ length: 10 }, () => call(ports.inbound, { path: '/one' })))
  while ((await lines(file)).length < 10);
  await rename(file, `${file}.1`)
  child.kill('SIGHUP')
  // Those that are between the signal and the new file go to the old one.
  while ((await lines(file)).length === 0) await call(ports.inbound, { path: '/two' })
  const before = (await lines(`${file}.1`)).length
  await Promise.all(Array.from({ length: 10 }, () => call(ports.inbound, { path: '/three' })))
  while ((await lines(file)).filter((line) => line.includes('/three')).length < 10);
  assert.equal((await lines(`${file}.1`)).length, before)
})
