import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { Agent, request } from 'node:http'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { seededRandom } from '../support/seeded-random.ts'
import { caller, temporaryDirectory } from './support.ts'

const PROGRAM = fileURLToPath(new URL('../../registry-server/bin/holdfast-registry.js', import.meta.url))

async function start(directory: string) {
  const child = spawn(process.execPath, [PROGRAM, '--port', '0', '--data-dir', directory, '--log-level', 'error'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string]
  const url = /http:\/\/[^ ]+/.exec(line)![0]
  return { child, url, call: caller(url) }
}

/** Resolves with the status, or undefined when the connection broke. */
function put(
  agent: Agent,
  url: string,
  path: string,
  body: object,
): Promise<{ status: number; revision: number } | undefined> {
  return new Promise((resolve) => {
    const outgoing = request(url + path, { method: 'PUT', agent, headers: { 'content-type': 'application/json' } })
    outgoing.on('error', () => resolve(undefined))
    outgoing.on('response', (response) => {
      response.on('error', () => resolve(undefined))
      response.resume()
      const revision = Number(String(response.headers['holdfast-cursor']).split(':')[1])
      response.on('end', () => resolve({ status: response.statusCode!, revision }))
    })
    outgoing.end(JSON.stringify(body))
  })
}

test('every acknowledged write is there after kill -9 at any moment, and revisions go on from there', async (context) => {
  const seed = 7
  const random = seededRandom(seed)
  const directory = await temporaryDirectory(context)
  const acknowledged = new Map<string, number>()
  let highest = 0
  let epoch: string | undefined
  for (let round = 0; round < 4; round++) {
    const { child, url, call } = await start(directory)
    const { body } = await call('GET', '/v1/status')
    epoch ??= body.epoch
    assert.equal(body.epoch, epoch)
    assert.ok(body.revision >= highest, `revision ${body.revision} after ${highest} was acknowledged`)
    const listed = await call('GET', '/v1/services/stock')
    const held = new Map<string, number>(
      listed.status === 404 ? [] : listed.body.nodes.map(({ id, port }) => [id, port]),
    )
    for (const [id, port] of acknowledged)
      // A write whose answer was cut off may have happened, so a node may also be newer than what was acknowledged.
      assert.ok((held.get(id) ?? 0) >= port, `seed ${seed}, round ${round}: ${id} has ${held.get(id)}, not ${port}`)

    const agent = new Agent({ keepAlive: true, maxSockets: 16 })
    const killAfter = 20 + Math.floor(random() * 300)
    let answers = 0
    let dead = false
    const closed = once(child, 'close')
    const writer = async (name: number) => {
      for (let count = 0; !dead; count++) {
        const id = `n${name}-${count % 20}`
        const port = (acknowledged.get(id) ?? 0) + 1
        const answer = await put(agent, url, `/v1/services/stock/nodes/${id}`, { host: '10.0.0.1', port })
        if (answer === undefined) return
        assert.ok(answer.status === 200 || answer.status === 201, String(answer.status))
        acknowledged.set(id, port)
        highest = Math.max(highest, answer.revision)
        if (++answers === killAfter) {
          dead = true
          child.kill('SIGKILL')
        }
      }
    }
    await Promise.all(Array.from({ length: 16 }, (_, index) => writer(index)))
    await closed
    agent.destroy()
    assert.ok(acknowledged.size > 0)
  }
})

test('SIGTERM answers what was begun, and what was answered is there', async (context) => {
  const directory = await temporaryDirectory(context)
  const first = await start(directory)
  const agent = new Agent({ keepAlive: true })
  const answers = await Promise.all(
    Array.from({ length: 50 }, (_, index) =>
      put(agent, first.url, `/v1/services/stock/nodes/n${index}`, { host: 'h', port: index + 1 }).then((answer) => {
        if (index === 10) first.child.kill('SIGTERM')
        return answer && answer.status < 300 ? 1 : 0
      }),
    ),
  )
  const [code] = (await once(first.child, 'close')) as [number]
  assert.equal(code, 0)
  agent.destroy()
  const second = await start(directory)
  const { body } = await second.call('GET', '/v1/services/stock')
  assert.ok(body.nodes.length >= answers.filter(Boolean).length)
  second.child.kill('SIGTERM')
  await once(second.child, 'close')
})
