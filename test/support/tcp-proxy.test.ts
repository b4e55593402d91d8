/** The proxy of the tests does what they rely on. */

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { test, type TestContext } from 'node:test'
import { startProxy, type TcpProxy } from './tcp-proxy.ts'

const MEGABYTE = 1024 * 1024

interface Target {
  readonly proxy: TcpProxy
  readonly dial: () => Socket
  /** The other end of the connection that reaches the target next. */
  readonly accept: () => Promise<Socket>
  readonly accepted: () => number
}

/** A target that does nothing by itself, and a proxy before it. */
async function startTarget(context: TestContext): Promise<Target> {
  const sockets = new Set<Socket>()
  const keep = (socket: Socket): Socket => {
    sockets.add(socket)
    // An end that a test does not look at is none of its failures.
    return socket.on('error', () => {})
  }
  let accepted = 0
  const target = createServer({ allowHalfOpen: true }, (socket) => {
    accepted++
    keep(socket)
  })
  target.listen(0, '127.0.0.1')
  await once(target, 'listening')
  context.after(() => {
    for (const socket of sockets) socket.destroy()
    target.close()
  })
  const proxy = await startProxy(context, { host: '127.0.0.1', port: (target.address() as AddressInfo).port })
  return {
    proxy,
    dial: () => keep(connect({ host: '127.0.0.1', port: proxy.port, allowHalfOpen: true })),
    accept: async () => ((await once(target, 'connection')) as [Socket])[0],
    accepted: () => accepted,
  }
}

/** Both ends of a connection through the proxy. */
async function startPair(context: TestContext): Promise<Target & { client: Socket; server: Socket }> {
  const target = await startTarget(context)
  const accepted = target.accept()
  const client = target.dial()
  return { ...target, client, server: await accepted }
}

/** The next bytes, so many. */
async function read(socket: Socket, bytes: number): Promise<Buffer> {
  for (;;) {
    const chunk = socket.read(bytes) as Buffer | null
    if (chunk !== null) return chunk
    await once(socket, 'readable')
  }
}

async function readAll(socket: Socket): Promise<Buffer> {
  const chunks: Buffer[] = []
  socket.on('data', (chunk: Buffer) => chunks.push(chunk))
  await once(socket, 'end')
  return Buffer.concat(chunks)
}

/** The code of the error that ends it. */
async function breakOf(socket: Socket): Promise<string | undefined> {
  socket.resume()
  const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException]
  return error.code
}

/** Bytes in which every four differ from those before, so that none can be lost, doubled or moved unseen. */
function patterned(bytes: number, seed: number): Buffer {
  const numbers = new Uint32Array(bytes / 4).map((_, index) => Math.imul(index + seed, 2_654_435_761))
  return Buffer.from(numbers.buffer)
}

const hash = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

test('bytes pass unchanged both ways, and one who does not read makes the other wait', async (context) => {
  const { proxy, client, server } = await startPair(context)
  // More than the buffers of the machine take on the way.
  const up = patterned(32 * MEGABYTE, 1)
  const down = patterned(4 * MEGABYTE, 2)
  client.end(up)
  await proxy.waitForHeld('up', 200_000)
  assert.ok(proxy.waitingBytes.up < MEGABYTE)
  assert.ok(client.writableLength > 0)
  server.end(down)
  const [gotUp, gotDown] = await Promise.all([readAll(server), readAll(client)])
  assert.equal(hash(gotUp), hash(up))
  assert.equal(hash(gotDown), hash(down))
  assert.deepEqual(proxy.bytes, { up: up.length, down: down.length })
  await proxy.waitForNone()
})

test('an end of one side leaves the other side open', async (context) => {
  const { proxy, client, server } = await startPair(context)
  client.end('question')
  assert.equal(String(await readAll(server)), 'question')
  server.write('first ')
  assert.equal(String(await read(client, 6)), 'first ')
  assert.equal(proxy.connections, 1)
  server.end('second')
  assert.equal(String(await readAll(client)), 'second')
  await proxy.waitForNone()
})

test('a reset of one side reaches the other', async (context) => {
  const { proxy, client, server } = await startPair(context)
  const broken = breakOf(server)
  client.resetAndDestroy()
  assert.equal(await broken, 'ECONNRESET')
  await proxy.waitForNone()
})

test('a cut resets both ends and every connection after it, until it is restored', async (context) => {
  const { proxy, client, server, dial, accept, accepted } = await startPair(context)
  const broken = [client, server].map(breakOf)
  proxy.cut()
  assert.deepEqual(await Promise.all(broken), ['ECONNRESET', 'ECONNRESET'])
  assert.equal(proxy.connections, 0)
  assert.equal(await breakOf(dial()), 'ECONNRESET')
  assert.equal(accepted(), 1)
  proxy.restore()
  const next = accept()
  dial().write('again')
  assert.equal(String(await read(await next, 5)), 'again')
  assert.equal(proxy.accepted, 2)
})

test('what is held arrives after the release, in order', async (context) => {
  const { proxy, client, server, dial, accept, accepted } = await startPair(context)
  proxy.hold()
  const up = patterned(2 * MEGABYTE, 3)
  for (let start = 0; start < up.length; start += 100_000) client.write(up.subarray(start, start + 100_000))
  client.end()
  server.write('an answer')
  await Promise.all([proxy.waitForHeld('up', 200_000), proxy.waitForHeld('down', 9)])
  assert.ok(proxy.waitingBytes.up < MEGABYTE)
  assert.deepEqual(proxy.bytes, { up: 0, down: 0 })

  // One that connects meanwhile is let in, and the target does not hear of it.
  const accepting = proxy.waitForConnection()
  const late = dial()
  late.write('late')
  await accepting
  await once(late, 'connect')
  assert.equal(accepted(), 1)

  const behind = accept()
  proxy.release('up')
  assert.equal(hash(await readAll(server)), hash(up))
  assert.equal(String(await read(await behind, 4)), 'late')
  assert.equal(proxy.bytes.down, 0)
  proxy.release('down')
  assert.equal(String(await read(client, 9)), 'an answer')
})

test('of a held answer that is dropped the client sees a reset only', async (context) => {
  const { proxy, client, server, dial, accept } = await startPair(context)
  proxy.hold('down')
  client.write('do it')
  assert.equal(String(await read(server, 5)), 'do it')
  server.write('done')
  await proxy.waitForHeld('down', 4)
  const broken = [client, server].map(breakOf)
  proxy.dropHeld()
  assert.deepEqual(await Promise.all(broken), ['ECONNRESET', 'ECONNRESET'])
  assert.equal(client.bytesRead, 0)
  const next = accept()
  const again = dial()
  ;(await next).write('welcome')
  assert.equal(String(await read(again, 7)), 'welcome')
})

test('that one side is gone is held as its bytes are', async (context) => {
  const { proxy, client, server } = await startPair(context)
  client.write('a')
  assert.equal(String(await read(server, 1)), 'a')
  proxy.hold()
  client.resetAndDestroy()
  await once(client, 'close')
  let isSeen = false
  const broken = breakOf(server).finally(() => (isSeen = true))
  // The proxy answers a second connection after it has read the first one's reset.
  const accepting = proxy.waitForConnection()
  connect(proxy.port, '127.0.0.1').on('error', () => {})
  await accepting
  assert.equal(isSeen, false)
  assert.equal(proxy.connections, 2)
  proxy.release()
  assert.equal(await broken, 'ECONNRESET')
})

test('a delay keeps the order', async (context) => {
  const { proxy, client, server } = await startPair(context)
  proxy.delay(60, 'up')
  const startMs = performance.now()
  client.write('one ')
  client.end('two')
  assert.equal(String(await readAll(server)), 'one two')
  assert.ok(performance.now() - startMs >= 59)
  server.end('at once')
  assert.equal(String(await readAll(client)), 'at once')
  await proxy.waitForNone()
})

test('a client of a target that is not there is reset', async (context) => {
  const target = createServer().listen(0, '127.0.0.1')
  await once(target, 'listening')
  const { port } = target.address() as AddressInfo
  target.close()
  await once(target, 'close')
  const proxy = await startProxy(context, { host: '127.0.0.1', port })
  assert.equal(await breakOf(connect(proxy.port, '127.0.0.1')), 'ECONNRESET')
  await proxy.waitForNone()
})
