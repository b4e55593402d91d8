/**
 * What a request costs on its way through a proxy: our sidecar with all its layers beside HAProxy, nginx, and what one
 * writes with Node's own http. Each runs alone on one core; the service behind and the load share another.
 */

import { connect } from '@holdfast/registry-client'
import { idle, saturate, steady, type Request } from './proxy/load.ts'
import {
  directory,
  startHaproxy,
  startNginx,
  startScript,
  startService,
  startSidecar,
  type Program,
} from './proxy/programs.ts'
import { cpuOf, memoryOf, startRegistry } from './servers.ts'
import { print, ratio } from './table.ts'

const REQUESTS: readonly Request[] = [
  { name: 'GET, small answer', method: 'GET', path: '/small', content: '' },
  { name: 'POST of 4 KiB', method: 'POST', path: '/small', content: 'x'.repeat(4_096) },
  { name: 'answer of 1 MiB', method: 'GET', path: '/large', content: '' },
]
const CONNECTIONS = 32
const SECONDS = Number(process.env.HOLDFAST_BENCH_SECONDS ?? 6)
const WARM_UP_SECONDS = 2
const REST_MS = 10_000

/** `HOLDFAST_BENCH_PROXIES=sidecar,haproxy` measures only those whose names begin so. */
const WANTED = process.env.HOLDFAST_BENCH_PROXIES?.split(',')

interface Proxy {
  readonly name: string
  /** Of everything that a request passes. */
  readonly pids: readonly number[]
  readonly port: number
  stop(): Promise<void>
}

type Start = () => Promise<Proxy>

const alone = (name: string, start: () => Promise<Program>): [string, Start] => [
  name,
  async () => {
    const program = await start()
    return { name, pids: [program.pid], port: program.port, stop: () => program.stop() }
  },
]

async function register(adminPort: number, port: number): Promise<void> {
  const answer = await fetch(`http://127.0.0.1:${adminPort}/v1/registrations/stock`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ port, healthCheck: { type: 'none' } }),
  })
  if (!answer.ok) throw new Error(`not registered: ${answer.status} ${await answer.text()}`)
}

function cpuOfAll(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + cpuOf(pid), 0)
}

/** Once what connecting has left behind is collected. */
async function memoryAtRest(pids: readonly number[]): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, REST_MS))
  return pids.reduce((sum, pid) => sum + memoryOf(pid).all, 0)
}

export async function proxy(): Promise<void> {
  const [service, registry, others] = await Promise.all([startService(), startRegistry(), startRegistry()])
  // One node without a sidecar before it, so that one sidecar can be measured alone.
  const client = await connect({ endpoints: [`http://127.0.0.1:${registry.port}`], cacheDir: undefined })
  const node = await client.register({ service: 'stock', id: 'one', host: '127.0.0.1', port: service.port })
  const sidecar = (name: string, ...args: string[]) => alone(name, () => startSidecar(registry.port, args))
  const starts = [
    alone('HAProxy', () => startHaproxy(service.port)),
    alone('nginx', () => startNginx(service.port)),
    sidecar('sidecar', '--access-log', 'off'),
    alone('sidecar, through tsx', () => startSidecar(registry.port, ['--access-log', 'off'], false)),
    sidecar('sidecar, access log', '--access-log', `${directory()}/access.log`),
    sidecar(
      'sidecar, one line in a hundred',
      '--access-log',
      `${directory()}/access.log`,
      '--access-log-sample',
      '0.01',
    ),
    [
      'sidecars, both in a row',
      async () => {
        const theirs = await startSidecar(others.port, ['--access-log', 'off'])
        await register(theirs.adminPort, service.port)
        const ours = await startSidecar(others.port, ['--access-log', 'off'])
        const stop = async () => {
          await ours.stop()
          await theirs.stop()
        }
        return { name: 'sidecars, both in a row', pids: [ours.pid, theirs.pid], port: ours.port, stop }
      },
    ] as [string, Start],
    alone('bytes through Node, unread', () => startScript('node-bytes.ts', service.port)),
    alone('undici behind Node’s http', () => startScript('node-undici.ts', service.port)),
    alone('Node’s http with an agent', () => startScript('node-http.ts', service.port)),
  ].filter(([name]) => WANTED === undefined || WANTED.some((part) => name.toLowerCase().startsWith(part)))

  const costs = new Map<string, (string | number)[][]>(REQUESTS.map((request) => [request.name, []]))
  const memory: (string | number)[][] = []
  const firstUs = new Map<string, number>()
  for (const [name, start] of starts) {
    const measured = await start()
    for (const request of REQUESTS) {
      await saturate(measured.port, request, CONNECTIONS, WARM_UP_SECONDS)
      const before = cpuOfAll(measured.pids)
      const { answers, seconds, errors } = await saturate(measured.port, request, CONNECTIONS, SECONDS)
      const us = ((cpuOfAll(measured.pids) - before) / answers) * 1e6
      if (errors !== undefined) console.error(`${name}, ${request.name}: ${errors}`)
      const perSecond = answers / seconds
      const late = await steady(measured.port, request, perSecond / 2, SECONDS)
      if (!firstUs.has(request.name)) firstUs.set(request.name, us)
      costs
        .get(request.name)!
        .push([
          name,
          us,
          ratio(us, firstUs.get(request.name)!),
          perSecond,
          late.perSecond,
          late.p50,
          late.p99,
          late.p999,
        ])
    }
    await measured.stop()

    const fresh = await start()
    const closeFew = await idle(fresh.port, REQUESTS[0]!, 100)
    const few = await memoryAtRest(fresh.pids)
    const closeMany = await idle(fresh.port, REQUESTS[0]!, 4_900)
    const many = await memoryAtRest(fresh.pids)
    memory.push([name, few / 2 ** 20, many / 2 ** 20, (many - few) / 4_900 / 1_024])
    closeFew()
    closeMany()
    await fresh.stop()
  }
  for (const [request, rows] of costs)
    print(
      `${request}: ${CONNECTIONS} connections; then half of the rate, or what the load can send on time, and the ms to each answer`,
      ['', 'CPU µs a request', 'against the first', 'requests/s', 'then', 'p50', 'p99', 'p99.9'],
      rows,
    )
  print('resident memory', ['', 'MiB at 100 connections, idle for 10 s', 'at 5,000', 'KiB for each'], memory)
  await node.close()
  await client.close()
  await Promise.all([service.stop(), registry.stop(), others.stop()])
}
