/**
 * The same bytes to this engine, to Node's own parser, to HAProxy and to nginx, each before the same service: what one makes of
 * them and another does not is how requests are smuggled. Each difference stands in a table, with its reason.
 */

import assert from 'node:assert/strict'
import { METHODS } from 'node:http'
import { before, after, describe, test } from 'node:test'
import { systemClock } from '@holdfast/registry-client/clock'
import { seededRandom } from '../../support/seeded-random.ts'
import { RawCaller, startService } from '../fakes.ts'
import { startWire } from '../wire.ts'
import { CORPUS } from './corpus.ts'
import { DIFFERENCES } from './differences.ts'
import { startHaproxy, startNginx, type StartProxy } from './proxies.ts'

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

const PROXIES: Readonly<Record<string, StartProxy>> = { haproxy: startHaproxy, nginx: startNginx }

interface Reader {
  readonly name: string
  /** @param answers that are expected at least */
  read(bytes: string, answers: number): Promise<Reached>
}

describe('the same bytes', () => {
  const readers: Reader[] = []
  const stops: (() => unknown)[] = []

  before(async () => {
    for (const name of ['ours', 'node', ...Object.keys(PROXIES)]) {
      const echo = await startEcho()
      stops.push(() => echo.stop())
      let { port } = echo
      if (name === 'ours') {
        const wire = await startWire(() => {}, { service: echo, listener: { headMs: 400, lingerMs: 200 } })
        stops.push(() => wire.stop())
        port = wire.port
      } else if (PROXIES[name]) {
        const proxy = await PROXIES[name](echo.port)
        if (proxy === undefined) continue
        stops.push(() => proxy.stop())
        port = proxy.port
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

  for (const proxy of Object.keys(PROXIES))
    test(`are sent to ${proxy}, too`, async (t) => {
      if (readers.every(({ name }) => name !== proxy)) t.skip(`needs ${proxy}: apt install ${proxy}`)
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
