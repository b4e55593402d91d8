/**
 * The same bytes to this engine, to Node's own parser and to HAProxy, each before the same service: what one makes of
 * them and another does not is how requests are smuggled. Each difference stands in a table, with its reason.
 */

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { METHODS } from 'node:http'
import { connect, createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { before, after, describe, test } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { findOrInstall } from '../../support/debian.ts'
import { seededRandom } from '../../support/seeded-random.ts'
import { RawCaller, startService } from '../fakes.ts'
import { startWire } from '../wire.ts'
import { CORPUS } from './corpus.ts'
import { DIFFERENCES } from './differences.ts'

/** Nobody needs longer to say all that he will say. */
const PATIENCE_MS = 10_000

/** What reached the service: method, target and content of each request that was whole. */
type Reached = readonly string[]

/** A service that notes what reaches it. */
async function startEcho() {
  const reached: string[] = []
  const service = await startService((incoming, outgoing) => {
    let content = ''
    incoming.setEncoding('latin1')
    incoming.on('data', (chunk: string) => (content += chunk))
    incoming.on('end', () => {
      // By which authority a target was found is another matter.
      reached.push(`${incoming.method} ${incoming.url!.replace(/^http:\/\/[^/]*/, '')} ${content}`)
      outgoing.end('ok')
    })
    incoming.on('error', () => {})
  })
  service.server.on('connect', (_incoming, socket) => socket.destroy())
  return { ...service, take: () => reached.splice(0) }
}

/**
 * Sends bytes, and waits until the other side has said all.
 * @param answers to wait for before the end is said: HAProxy may take it for that of what it has not begun yet
 */
async function send(port: number, bytes: string, answers: number): Promise<void> {
  const caller = new RawCaller(port, { allowHalfOpen: true })
  const cancel = systemClock.after(PATIENCE_MS, () => caller.socket.destroy())
  caller.socket.write(bytes, 'latin1')
  await caller.until(new RegExp(`(?:ok[^]*){${answers}}`)).catch(() => {})
  caller.socket.end()
  await caller.closed
  cancel()
}

async function startHaproxy(upstream: number) {
  const program = await findOrInstall('haproxy', 'haproxy', 'haproxy')
  if (program === undefined) return undefined
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as AddressInfo
  probe.close()
  await once(probe, 'close')
  const directory = await mkdtemp(path.join(tmpdir(), 'holdfast-haproxy-'))
  await writeFile(
    path.join(directory, 'haproxy.cfg'),
    `
defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
  timeout http-keep-alive 2s
frontend in
  bind 127.0.0.1:${port}
  default_backend out
backend out
  http-reuse never
  server one 127.0.0.1:${upstream}
`,
  )
  const child = spawn(program, ['-db', '-f', path.join(directory, 'haproxy.cfg')], { stdio: 'ignore' })
  for (let isThere = false; !isThere;) {
    const socket = connect(port, '127.0.0.1')
    isThere = await new Promise<boolean>((resolve) =>
      socket.once('connect', () => resolve(true)).once('error', () => setImmediate(() => resolve(false))),
    )
    socket.destroy()
  }
  return {
    port,
    stop: async () => {
      child.kill()
      await once(child, 'exit')
      await rm(directory, { recursive: true, force: true })
    },
  }
}

interface Reader {
  readonly name: 'ours' | 'node' | 'haproxy'
  /** @param answers that are expected at least */
  read(bytes: string, answers: number): Promise<Reached>
}

describe('the same bytes', () => {
  const readers: Reader[] = []
  const stops: (() => unknown)[] = []

  before(async () => {
    for (const name of ['ours', 'node', 'haproxy'] as const) {
      const echo = await startEcho()
      stops.push(() => echo.stop())
      let { port } = echo
      if (name === 'ours') {
        const wire = await startWire(() => {}, { service: echo, listener: { headMs: 400, lingerMs: 200 } })
        stops.push(() => wire.stop())
        port = wire.port
      } else if (name === 'haproxy') {
        const haproxy = await startHaproxy(echo.port)
        if (haproxy === undefined) continue
        stops.push(() => haproxy.stop())
        port = haproxy.port
      }
      readers.push({
        name,
        read: async (bytes, answers) => {
          await send(port, bytes, answers)
          return echo.take()
        },
      })
    }
  })
  after(async () => {
    for (const stop of stops.reverse()) await stop()
  })

  test('are sent to HAProxy, too', async (t) => {
    if (readers.every((reader) => reader.name !== 'haproxy')) t.skip('needs haproxy: apt install haproxy')
  })

  for (const { name, bytes, targets = [] } of CORPUS)
    test(`${name}: are the same requests to all, but for what is known`, async () => {
      const [ours, ...others] = await Promise.all(readers.map((reader) => reader.read(bytes, targets.length)))
      const unexplained = others.flatMap((theirs, i) => {
        const other = readers[i + 1]!.name
        const known = DIFFERENCES.find((item) => item.other === other && item.cases.includes(name))
        const isAsKnown = known
          ? known.stricter === 'ours'
            ? isMore(theirs, ours!)
            : isMore(ours!, theirs)
          : equal(ours!, theirs)
        return isAsKnown ? [] : [{ other, theirs, ours, known }]
      })
      assert.deepEqual(unexplained, [])
    })

  test('with a few of them changed never become more requests here than elsewhere', async (t) => {
    const random = seededRandom(5)
    const changes = ['', '\r', '\n', '\r\n', ' ', '\t', ':', '\x00', ',', '0', 'x', ';']
    let changed = 0
    for (let i = 0; i < 300; i++) {
      const { bytes } = CORPUS[Math.floor(random() * CORPUS.length)]!
      if (bytes.length > 1_000) continue
      const at = Math.floor(random() * bytes.length)
      const put = changes[Math.floor(random() * changes.length)]!
      const text = bytes.slice(0, at) + put + bytes.slice(at + Math.floor(random() * 2))
      // Node knows some methods only, and what is one is a question of taste.
      if (!METHODS.includes(/^(?:\r\n)*([^ ]*)/.exec(text)![1]!)) continue
      changed++
      const [ours, node] = await Promise.all(readers.slice(0, 2).map((reader) => reader.read(text, 0)))
      if (!isPrefix(ours!, node!)) {
        const reason = DIFFERENCES.find(
          (item) => item.other === 'node' && item.stricter === 'theirs' && item.shape?.test(text),
        )
        assert(reason, `${JSON.stringify(text)}: ours ${JSON.stringify(ours)}, Node ${JSON.stringify(node)}`)
      }
    }
    t.diagnostic(`${changed} messages`)
  })
})

function equal(a: Reached, b: Reached): boolean {
  return a.length === b.length && isPrefix(a, b)
}

function isMore(a: Reached, b: Reached): boolean {
  return a.length > b.length && isPrefix(b, a)
}

function isPrefix(a: Reached, b: Reached): boolean {
  return a.every((item, i) => item === b[i])
}
