/** Services and their sidecars are restarted in turn, twenty times each, while others call them over HTTP/1.1 and HTTP/2. */

import assert from 'node:assert/strict'
import { connect } from 'node:http2'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { freePort } from '../support/free-port.ts'
import { add, Load, noCounts } from './load.ts'
import { eventually, Mesh, type Host, type Program } from './mesh.ts'

const ROUNDS = 10
/** In each round the services of two restart, and the sidecars of two others; one is left. */
const NODES = 5
const AT_ONCE = 2
const WORKERS = 4

/** Calls one after another on one connection, as many at a time as there are workers; every third posts. */
class Http2Load {
  readonly failures: string[] = []
  sent = 0
  readonly #session
  #posting = true
  #running = true
  #posts = new Set<Promise<void>>()
  readonly #workers: readonly Promise<void>[]

  constructor(port: number, workers: number) {
    this.#session = connect(`http://127.0.0.1:${port}`)
    this.#session.on('error', (error: Error) => this.failures.push(`the connection to the sidecar: ${error.message}`))
    this.#workers = Array.from({ length: workers }, () => this.#work())
  }

  /** Switched off, it returns when the last post under way has ended. */
  async post(on: boolean): Promise<void> {
    this.#posting = on
    if (!on) await Promise.all(this.#posts)
  }

  async stop(): Promise<void> {
    this.#running = false
    await Promise.all(this.#workers)
    this.#session.close()
  }

  async #work(): Promise<void> {
    while (this.#running && !this.#session.destroyed) {
      const isPost = this.#posting && ++this.sent % 3 === 0
      if (!isPost) this.sent++
      const calling = this.#call(isPost)
      if (isPost) this.#posts.add(calling)
      await calling
      this.#posts.delete(calling)
    }
  }

  #call(isPost: boolean): Promise<void> {
    return new Promise((resolve) => {
      const method = isPost ? 'POST' : 'GET'
      const stream = this.#session.request({ ':method': method, ':path': '/entries/1', ':authority': 'ledger' })
      let status = 0
      let text = ''
      stream.on('response', (head) => (status = head[':status'] ?? 0))
      stream.setEncoding('utf8').on('data', (piece: string) => (text += piece))
      stream.on('error', (error: Error) => (text = error.message))
      stream.on('close', () => {
        const isWhole = status === 200 && text.includes(isPost ? '"posted":"2 more"' : '"posted":""')
        if (!isWhole) this.failures.push(`${method}: ${status} ${text.slice(0, 300)}`)
        resolve()
      })
      stream.end(isPost ? '2 more' : undefined)
    })
  }
}

/** A host with two services behind one sidecar: `stock` over HTTP/1.1, `ledger` over HTTP/2. */
interface Node {
  readonly host: Host
  ledger: Program
}

test(`no call fails while services and sidecars restart, ${ROUNDS * AT_ONCE} times each`, async (t) => {
  const directory = mkdtempSync(path.join(tmpdir(), 'holdfast-test-'))
  const mesh = new Mesh({ directory })
  t.after(async () => {
    await mesh.stop('SIGKILL')
    rmSync(directory, { recursive: true, force: true })
  })
  await mesh.startRegistry()
  const startLedger = (name: string, port: number) =>
    mesh.start(name, 'test/mesh/apps/node/ledger.js', { args: [], env: { PORT: String(port) } })
  const registerLedger = ({ host, ledger }: Node) =>
    host.admin('PUT', '/v1/registrations/ledger', {
      port: ledger.port('ready'),
      protocol: 'h2',
      healthCheck: { type: 'http' },
    })
  const startNode = async (name: string): Promise<Node> => {
    const port = await freePort()
    const [host, ledger] = await Promise.all([mesh.addHost('stock', name), startLedger(`${name}-ledger`, port)])
    const node = { host, ledger }
    await Promise.all([host.register(), registerLedger(node)])
    return node
  }
  const [shop, nodes] = await Promise.all([
    mesh.addHost('shop'),
    Promise.all(Array.from({ length: NODES }, (_, i) => startNode(`node-${i}`))),
  ])

  const isUp = async (node: Node) => {
    for (const service of ['stock', 'ledger']) {
      const answer = await fetch(`${mesh.registryUrl}/v1/services/${service}?status=up`)
      const { nodes: known = [] } = (await answer.json()) as { nodes?: { port: number }[] }
      if (!known.some(({ port }) => port === node.host.ports.inbound)) return false
    }
    return true
  }
  const allUp = async () => (await Promise.all(nodes.map(isUp))).every(Boolean)
  await eventually(allUp, Boolean, 'all nodes')

  const load = new Load(
    () => `http://127.0.0.1:${shop.ports.app}/orders/1`,
    () => undefined,
  )
  t.after(() => load.close())
  await eventually(
    () => fetch(`http://127.0.0.1:${shop.ports.app}/orders/1`),
    (answer) => answer.ok,
    'the first order',
  )
  load.run(WORKERS)
  const http2 = new Http2Load(shop.ports.outbound, WORKERS)
  const post = (on: boolean) => Promise.all([load.post(on), http2.post(on)])

  const restartApps = async (node: Node, isAnnounced: boolean) => {
    const { host } = node
    const restart = async (service: string, stop: () => Promise<unknown>, start: () => Promise<unknown>) => {
      if (isAnnounced) await host.admin('DELETE', `/v1/registrations/${service}`)
      await stop()
      await start()
    }
    const port = node.ledger.port('ready')
    await Promise.all([
      restart(
        'stock',
        () => host.app.stop(),
        () => host.startApp(),
      ),
      restart(
        'ledger',
        () => node.ledger.stop(),
        async () => (node.ledger = await startLedger(`${host.name}-ledger`, port)),
      ),
    ])
    if (isAnnounced) await Promise.all([host.register(), registerLedger(node)])
  }
  const restartSidecar = async ({ host }: Node) => {
    assert.equal(await host.sidecar.stop(), 0)
    await host.startSidecar()
  }

  let counts = noCounts()
  for (let round = 0; round < ROUNDS; round++) {
    // Who stops a service without a word may lose what cannot be sent twice, so nothing is posted meanwhile.
    const isAnnounced = round % 2 === 0
    await post(isAnnounced)
    const turn = Array.from({ length: 2 * AT_ONCE }, (_, i) => nodes[(round * AT_ONCE + i) % NODES]!)
    await Promise.all([
      ...turn.slice(0, AT_ONCE).map((node) => restartApps(node, isAnnounced)),
      ...turn.slice(AT_ONCE).map(restartSidecar),
    ])
    await eventually(allUp, Boolean, 'all nodes again')
    const { sent, failed, failures } = load.counts
    counts = add(counts, load.take())
    assert.deepEqual([...failures, ...http2.failures], [], `round ${round}`)
    assert(sent > 0 && failed === 0)
  }
  await Promise.all([load.pause(), http2.stop()])
  counts = add(counts, load.take())
  assert.deepEqual([...counts.failures, ...http2.failures], [])
  t.diagnostic(
    `${counts.sent} calls over HTTP/1.1, ${http2.sent} over HTTP/2, longest ${Math.round(counts.longestMs)} ms`,
  )
})
