/**
 * `npm run drill`: the outage drill, on real processes. Two services call each other through their sidecars without
 * pause while the registry is killed, sidecars are restarted, a node dies, and the registry comes back. Every call is
 * counted; one that fails makes the drill fail.
 *
 * A service whose own sidecar is down has no way out of its host, so its callers pause for as long as that restart
 * takes, as they would while a host is taken out of rotation; all others go on, and no call under way is spared.
 *
 * Every third call is a POST, which no proxy may send twice. While a process that is called gets killed there are none:
 * whether one that was under way has happened is then unknown, and to say so is the right answer.
 */

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import Table from 'cli-table3'
import * as z from 'zod'
import { helpText, integer, leaf, loadSettings, SettingsError, toggle } from '@holdfast/registry-client/settings'
import { add, Load, noCounts, type Counts } from './load.ts'
import { eventually, Mesh, type Host } from './mesh.ts'

const settings = z.strictObject({
  noFileCache: leaf(toggle(), {
    flag: 'no-file-cache',
    doc: 'run the sidecars without their files: the drill must fail',
  }).default(false),
  seconds: leaf(integer(1, 600), { flag: 'seconds', value: 'N', doc: 'of calls in each phase' }).default(3),
  workers: leaf(integer(1, 256), {
    flag: 'workers',
    value: 'N',
    doc: 'calls under way at a time for each host that calls',
  }).default(4),
  keep: leaf(toggle(), { flag: 'keep', doc: 'keep the logs and caches, and print where they are' }).default(false),
})

function parse() {
  try {
    const loaded = loadSettings(settings, { argv: process.argv.slice(2), env: process.env })
    if (loaded.asked === undefined) return loaded.settings
    console.log(helpText('Usage: npm run drill -- [OPTIONS]\n\nThe outage drill, on real processes.', settings))
    process.exit(0)
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error
    console.error(`${error.message}\nnpm run drill -- --help lists the options`)
    process.exit(2)
  }
}

const { noFileCache, seconds, workers, keep } = parse()
const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-drill-'))
const mesh = new Mesh({ directory, sidecarArgs: noFileCache ? ['--no-file-cache'] : [] })
const rows: [string, Counts][] = []
const loads = new Map<Host, Load>()

/** What the answer says of the view that served the call further down: the sample services pass it on. */
function viewOf(body: string): string | undefined {
  const answer = JSON.parse(body) as { item?: { view?: string }; price?: { view?: string } }
  return (answer.item?.view ?? answer.price?.view)?.split(';')[0]
}

function callers(host: Host): Load {
  let calls = 0
  const target = host.service === 'shop' ? 'orders' : 'offers'
  const load = new Load(() => `http://127.0.0.1:${host.ports.app}/${target}/${++calls}`, viewOf)
  loads.set(host, load)
  return load
}

function say(text: string): void {
  console.log(`${new Date().toISOString().slice(11, 19)}  ${text}`)
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

/** Runs a phase under load and counts its calls, those during `act` included. */
async function phase(name: string, act: () => Promise<unknown> = async () => {}): Promise<void> {
  say(name)
  const isKill = name.includes('SIGKILL') && !name.startsWith('registry')
  await Promise.all([...loads.values()].map((load) => load.post(!isKill)))
  await act()
  await wait(seconds * 1000)
  record(name)
}

function record(name: string): void {
  rows.push([name, [...loads.values()].map((load) => load.take()).reduce(add, noCounts())])
}

/** Restarts the sidecar through which a host's own calls go; the calls of this host pause meanwhile. */
async function restartSidecar(host: Host, signal: NodeJS.Signals): Promise<void> {
  const load = loads.get(host)
  await load?.pause()
  await host.sidecar.stop(signal)
  await host.startSidecar()
  load?.run(workers)
}

async function drill(): Promise<boolean> {
  say('starting: 1 registry, shop ×2, stock ×3, each behind a sidecar of its own')
  await mesh.startRegistry()
  const hosts = await Promise.all(
    ['shop-1', 'shop-2', 'stock-1', 'stock-2', 'stock-3'].map((name) => mesh.addHost(name.split('-')[0]!, name)),
  )
  const [shop1, shop2, stock1, stock2, stock3] = hosts as [Host, Host, Host, Host, Host]
  await Promise.all(hosts.map((host) => host.register()))
  await eventually(
    () => nodesOf('stock'),
    (nodes) => nodes.length === 3,
    'three nodes of stock',
  )
  await eventually(
    () => nodesOf('shop'),
    (nodes) => nodes.length === 2,
    'two nodes of shop',
  )
  for (const host of [shop1, shop2, stock1, stock2]) {
    // Until here a call may find a view that does not yet hold every node; from here on none may fail.
    await eventually(
      () => fetch(`http://127.0.0.1:${host.ports.app}/${host.service === 'shop' ? 'orders' : 'offers'}/0`),
      (answer) => answer.ok,
      `the first call of ${host.name}`,
    )
    callers(host).run(workers)
  }

  await phase('all is well')
  await phase('registry killed (SIGKILL)', () => mesh.registry.stop('SIGKILL'))
  await phase('sidecar of a caller restarted (SIGTERM)', () => restartSidecar(shop1, 'SIGTERM'))
  await phase('sidecar of a caller restarted (SIGKILL)', () => restartSidecar(shop2, 'SIGKILL'))
  await phase('sidecar of a called node restarted (SIGTERM)', () => restartSidecar(stock1, 'SIGTERM'))
  await phase('sidecar of a called node restarted (SIGKILL)', () => restartSidecar(stock2, 'SIGKILL'))
  await phase('a node dies: service and sidecar (SIGKILL)', () =>
    Promise.all([stock3.sidecar.stop('SIGKILL'), stock3.app.stop('SIGKILL')]),
  )
  let backMs = 0
  await phase('the registry returns', async () => {
    await mesh.startRegistry()
    backMs = performance.now()
  })
  const deadId = `127.0.0.1:${stock3.ports.inbound}`
  const alive = [shop1, shop2, stock1, stock2]
  const times: [string, number][] = []
  const timed = async (what: string, test: () => Promise<boolean>) => {
    await eventually(test, Boolean, what)
    times.push([what, (performance.now() - backMs) / 1000])
    say(`${what} after ${times.at(-1)![1].toFixed(1)} s`)
  }
  await timed('every sidecar is connected, every view confirmed', async () => {
    const views = await Promise.all(alive.map((host) => viewsOf(host)))
    return views.every((items) => items.length > 0 && items.every((view) => view.reachable && view.source === 'memory'))
  })
  await timed('every living node is registered again', async () => {
    const [stock, shop] = await Promise.all([nodesOf('stock'), nodesOf('shop')])
    return (
      [stock1, stock2].every((host) => stock.includes(idOf(host))) &&
      [shop1, shop2].every((host) => shop.includes(idOf(host)))
    )
  })
  await timed('the dead node is gone from every view', async () => {
    const views = await Promise.all([shop1, shop2].map((host) => viewsOf(host)))
    return views.every((items) => items.every((view) => !view.nodes.some((node) => node.id === deadId)))
  })
  record('until all have converged')
  await Promise.all([...loads.values()].map((load) => load.pause()))
  return print(times)
}

interface ViewAnswer {
  readonly service: string
  readonly source: string
  readonly reachable: boolean
  readonly nodes: readonly { readonly id: string }[]
}

const idOf = (host: Host) => `127.0.0.1:${host.ports.inbound}`

async function viewsOf(host: Host): Promise<readonly ViewAnswer[]> {
  return ((await host.admin('GET', '/v1/views')) as { views: ViewAnswer[] }).views
}

async function nodesOf(service: string): Promise<string[]> {
  const answer = await fetch(`${mesh.registryUrl}/v1/services/${service}`)
  if (answer.status === 404) return []
  return ((await answer.json()) as { nodes: { id: string }[] }).nodes.map((node) => node.id)
}

function print(times: readonly [string, number][]): boolean {
  const table = new Table({
    head: ['phase', 'calls', 'POST', 'failed', 'from memory', 'from file', 'waited for registry', 'longest ms'],
    colAligns: ['left', 'right', 'right', 'right', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [] },
  })
  const cells = (name: string, counts: Counts) => [
    name,
    ...[
      counts.sent,
      counts.posted,
      counts.failed,
      counts.memory,
      counts.file,
      counts.registry,
      Math.round(counts.longestMs),
    ],
  ]
  const total = rows.map(([, counts]) => counts).reduce(add, noCounts())
  for (const [name, counts] of rows) table.push(cells(name, counts))
  table.push(cells('total', total))
  console.log(`\n${table.toString()}`)
  for (const [what, took] of times) console.log(`${took.toFixed(1).padStart(6)} s after the registry was back: ${what}`)
  for (const failure of total.failures) console.log(`failed: ${failure}`)
  // A drill in which nothing was called, or nothing served from file, has shown nothing.
  const shown = rows.every(([, counts]) => counts.sent > 0) && total.file > 0
  const passed = total.failed === 0 && shown
  console.log(
    passed
      ? '\nno call failed'
      : `\nthe drill failed: ${total.failed} calls failed${shown ? '' : ', or none came from a file'}`,
  )
  return passed
}

let passed = false
try {
  passed = await drill()
} catch (error) {
  console.error(error instanceof Error ? error.message : error)
  await Promise.all([...loads.values()].map((load) => load.pause()))
  if (rows.length > 0) print([])
} finally {
  for (const load of loads.values()) load.close()
  await mesh.stop(passed ? 'SIGTERM' : 'SIGKILL')
  if (keep) console.log(`logs and caches: ${directory}`)
  else rmSync(directory, { recursive: true, force: true })
}
process.exit(passed ? 0 : 1)
