/** `npm start`: a whole mesh on this machine, with lines to paste. Ctrl-C stops all of it. */

import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import * as z from 'zod'
import { helpText, leaf, loadSettings, SettingsError, toggle } from '@holdfast/registry-client/settings'
import { eventually, Mesh } from './mesh.ts'

const settings = z.strictObject({
  dir: leaf(z.string(), {
    flag: 'dir',
    value: 'DIR',
    doc: 'keep the data here; without it a temporary directory, deleted at the end',
  }).optional(),
  freePorts: leaf(toggle(), { flag: 'free-ports', doc: 'take free ports instead of 7400 and 7500 to 7512' }).default(
    false,
  ),
})
const USAGE =
  'Usage: npm start -- [OPTIONS]\n\nStarts a registry, two sample services, and a sidecar before each of them.'

function parse() {
  try {
    const loaded = loadSettings(settings, { argv: process.argv.slice(2), env: process.env })
    if (loaded.asked === undefined) return loaded.settings
    console.log(helpText(USAGE, settings))
    process.exit(0)
  } catch (error) {
    if (!(error instanceof SettingsError)) throw error
    console.error(`${error.message}\nnpm start -- --help lists the options`)
    process.exit(2)
  }
}

/** The port itself where it is free, else 0, so that a busy port does not keep the mesh from starting. */
function freeOr0(port: number): Promise<number> {
  return new Promise((resolve) => {
    const probe = createServer()
    probe.once('error', () => resolve(0))
    probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(port)))
  })
}

const { dir, freePorts } = parse()
const directory = dir === undefined ? mkdtempSync(path.join(tmpdir(), 'holdfast-')) : path.resolve(dir)
const mesh = new Mesh({ directory })
const port = (wanted: number) => (freePorts ? Promise.resolve(0) : freeOr0(wanted))

let stopping = false
async function stop(code: number): Promise<never> {
  if (stopping) {
    // A second Ctrl-C: now.
    mesh.kill()
    process.exit(code)
  }
  stopping = true
  await mesh.stop()
  if (dir === undefined) rmSync(directory, { recursive: true, force: true })
  process.exit(code)
}
process.on('SIGINT', () => {
  console.log('\nstopping …')
  void stop(0)
})
process.on('SIGTERM', () => void stop(0))

try {
  console.log('starting a registry, two services and their sidecars …')
  await mesh.startRegistry(await port(7400))
  const [shop, stock] = await Promise.all([
    mesh.addHost('shop', 'shop', { admin: await port(7500), outbound: await port(7501), inbound: await port(7502) }),
    mesh.addHost('stock', 'stock', { admin: await port(7510), outbound: await port(7511), inbound: await port(7512) }),
  ])
  await Promise.all([shop.register(), stock.register()])
  const order = `http://127.0.0.1:${shop.ports.app}/orders/1`
  await eventually(
    // Not kept open: the shop would wait for it when it is to stop.
    () => fetch(order, { headers: { connection: 'close' } }),
    (answer) => answer.ok || stopping,
    'the first order',
  )

  const at = (url: string) => `http://127.0.0.1:${url}`
  console.log(`
ready: registry ${mesh.registryUrl} (pid ${mesh.registry.pid}), sidecars of shop and stock, data and logs in ${directory}

  # call the stock as any program would: by the port of the sidecar on its host
  curl -H 'Host: stock' ${at(`${shop.ports.outbound}/items/1`)}
  http_proxy=${at(String(shop.ports.outbound))} curl http://stock/items/1

  # an order: the shop calls the stock through both sidecars
  curl ${at(`${shop.ports.app}/orders/1`)}

  # what the registry knows, its API, and changes as they happen
  curl ${mesh.registryUrl}/v1/services
  curl -N '${mesh.registryUrl}/v1/watch?service=stock'
  npx holdfast nodes stock --registry ${mesh.registryUrl}
  open ${mesh.registryUrl}/docs

  # what the shop's sidecar knows, and how it fares
  curl ${at(`${shop.ports.admin}/v1/views`)}
  curl ${at(`${shop.ports.admin}/v1/stats`)}

  # kill the registry, and call again: nothing fails
  kill -9 ${mesh.registry.pid}
  curl ${at(`${shop.ports.app}/orders/2`)}

Ctrl-C stops everything.`)
  for (const program of mesh.programs)
    void program.exited.then((code) => {
      if (stopping) return
      console.log(`${program.name} ended (${code ?? program.process.signalCode})`)
    })
} catch (error) {
  // Whoever stopped it while it was starting wants no account of what did not start.
  if (!stopping) {
    console.error(error instanceof Error ? error.message : error)
    await stop(1)
  }
}
