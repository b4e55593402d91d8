/**
 * What a request costs on its way through a proxy: our sidecar with all its layers beside HAProxy, nginx, and what one
 * writes with Node's own http. Each has one core to itself while it is measured; the service behind and the load share
 * another.
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
import { median, print } from './table.ts'

const REQUESTS: readonly Request[] = [
  { name: 'GET, small answer', method: 'GET', path: '/small', content: '' },
  { name: 'POST of 4 KiB', method: 'POST', path: '/small', content: 'x'.repeat(4_096) },
  { name: 'answer of 1 MiB', method: 'GET', path: '/large', content: '' },
]
const CONNECTIONS = 32
/** Of each measurement. */
const SECONDS = Number(process.env.HOLDFAST_BENCH_SECONDS ?? 2)
const ROUNDS = 7
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

interface Cost {
  /** CPU time of a request, in microseconds. */
  readonly us: number
  readonly againstFirst: number
  readonly perSecond: number
}

/**
 * In turns, because a machine that is shared is faster now and slower then: what is compared is measured one right after
 * the other, and of several such comparisons the one in the middle counts.
 */
async function costsOf(proxies: readonly Proxy[], request: Request): Promise<Cost[]> {
  for (const { port } of proxies) await saturate(port, request, CONNECTIONS, WARM_UP_SECONDS)
  const rounds: { us: number; perSecond: number }[][] = []
  while (rounds.length < ROUNDS) {
    const round = []
    for (const { name, pids, port } of proxies) {
      const before = cpuOfAll(pids)
      const { answers, seconds, errors } = await saturate(port, request, CONNECTIONS, SECONDS)
      if (errors !== undefined) console.error(`${name}, ${request.name}: ${errors}`)
      round.push({ us: ((cpuOfAll(pids) - before) / answers) * 1e6, perSecond: answers / seconds })
    }
    rounds.push(round)
  }
  return proxies.map((_, at) => ({
    us: median(rounds.map((round) => round[at]!.us)),
    againstFirst: median(rounds.map((round) => round[at]!.us / round[0]!.us)),
    perSecond: median(rounds.map((round) => round[at]!.perSecond)),
  }))
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

  const running: Proxy[] = []
  for (const [, start] of starts) running.push(await start())
  for (const request of REQUESTS) {
    const costs = await costsOf(running, request)
    const rows: (string | number)[][] = []
    for (const [at, { name, port }] of running.entries()) {
      const { us, againstFirst, perSecond } = costs[at]!
      const late = await steady(port, request, perSecond / 2, SECONDS)
      rows.push([name, us, `${againstFirst.toFixed(2)}×`, perSecond, late.perSecond, late.p50, late.p99, late.p999])
    }
    print(
      `${request.name}: ${CONNECTIONS} connections; then half of the rate, or what the load can send on time, and the ms to each answer`,
      ['', 'CPU µs a request', 'against the first', 'requests/s', 'then', 'p50', 'p99', 'p99.9'],
      rows,
    )
  }
  for (const program of running) await program.stop()

  const memory: (string | number)[][] = []
  for (const [name, start] of starts) {
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
  print('resident memory', ['', 'MiB at 100 connections, idle for 10 s', 'at 5,000', 'KiB for each'], memory)
  await node.close()
  await client.close()
  await Promise.all([service.stop(), registry.stop(), others.stop()])
}
