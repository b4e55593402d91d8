import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect as connectHttp2, type IncomingHttpHeaders } from 'node:http2'
import { describe, test, type TestContext } from 'node:test'
import * as grpc from '@grpc/grpc-js'
import { SidecarError, REASONS, type Reason } from '../../../sidecar-plugin/src/errors.ts'
import { GRPC_STATUS, grpcReply, isGrpc, parseGrpcTimeout } from '../../../sidecar-plugin/src/http2/grpc.ts'
import { eventually } from '../wire.ts'
import { metric, startPair, startSidecar } from './sidecars.ts'

const bytes = (value: Buffer) => value
const method = (name: string, requestStream: boolean, responseStream: boolean) => ({
  path: `/stock.Stock/${name}`,
  requestStream,
  responseStream,
  requestSerialize: bytes,
  requestDeserialize: bytes,
  responseSerialize: bytes,
  responseDeserialize: bytes,
})
const STOCK = {
  unary: method('unary', false, false),
  collect: method('collect', true, false),
  watch: method('watch', false, true),
  chat: method('chat', true, true),
}

interface Seen {
  cancelled: number
  metadata: grpc.Metadata[]
}

/** A service that echoes, in every way that gRPC knows. */
async function startService(t: TestContext) {
  const seen: Seen = { cancelled: 0, metadata: [] }
  const server = new grpc.Server({ 'grpc.max_receive_message_length': -1 })
  server.addService(STOCK, {
    unary(call: grpc.ServerUnaryCall<Buffer, Buffer>, done: grpc.sendUnaryData<Buffer>) {
      seen.metadata.push(call.metadata)
      call.on('cancelled', () => seen.cancelled++)
      const text = call.request.toString('latin1', 0, 10)
      if (text === 'hang') return
      if (text === 'fail') {
        const trailers = new grpc.Metadata()
        trailers.set('x-detail', 'sold out')
        done({ code: grpc.status.FAILED_PRECONDITION, details: 'böse: 100 %', metadata: trailers })
        return
      }
      const trailers = new grpc.Metadata()
      trailers.set('x-after', 'yes')
      done(null, call.request, trailers)
    },
    collect(call: grpc.ServerReadableStream<Buffer, Buffer>, done: grpc.sendUnaryData<Buffer>) {
      const all: Buffer[] = []
      call.on('data', (piece: Buffer) => all.push(piece))
      call.on('end', () => done(null, Buffer.concat(all)))
    },
    watch(call: grpc.ServerWritableStream<Buffer, Buffer>) {
      call.on('cancelled', () => seen.cancelled++)
      const count = Number(call.request.toString())
      for (let i = 0; i < count; i++) call.write(Buffer.from(String(i)))
      if (count < 1_000) call.end()
    },
    chat(call: grpc.ServerDuplexStream<Buffer, Buffer>) {
      call.on('data', (piece: Buffer) => void call.write(Buffer.from(piece.toString().toUpperCase())))
      call.on('end', () => call.end())
    },
  })
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  )
  t.after(() => server.forceShutdown())
  return { port, seen, server }
}

type Done = (error: grpc.ServiceError | null, value?: Buffer) => void
interface StockClient extends grpc.Client {
  unary(request: Buffer, metadata: grpc.Metadata, options: grpc.CallOptions, done: Done): grpc.ClientUnaryCall
  collect(done: Done): grpc.ClientWritableStream<Buffer>
  watch(request: Buffer): grpc.ClientReadableStream<Buffer>
  chat(): grpc.ClientDuplexStream<Buffer, Buffer>
}

function startClient(t: TestContext, port: number, authority = 'stock'): StockClient {
  const Client = grpc.makeClientConstructor(STOCK, 'Stock')
  const client = new Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
    'grpc.default_authority': authority,
    'grpc.max_receive_message_length': -1,
    'grpc.enable_retries': 0,
  }) as unknown as StockClient
  t.after(() => client.close())
  return client
}

function unary(
  client: StockClient,
  text: string | Buffer,
  options: grpc.CallOptions = {},
  metadata = new grpc.Metadata(),
) {
  return new Promise<{
    error: grpc.ServiceError | null
    value: Buffer | undefined
    trailers: grpc.Metadata | undefined
  }>((resolve) => {
    let trailers: grpc.Metadata | undefined
    const call = client.unary(Buffer.from(text as string), metadata, options, (error, value) =>
      // The status comes after the value.
      setImmediate(() => resolve({ error, value, trailers })),
    )
    call.on('status', (status) => (trailers = status.metadata))
  })
}

async function start(t: TestContext) {
  const service = await startService(t)
  const pair = await startPair(t, { port: service.port, protocol: 'grpc' })
  return { ...service, ...pair, client: startClient(t, pair.ours.ports.outbound), views: pair.client }
}

describe('gRPC through both sidecars', () => {
  test('a unary call, with metadata and trailers', async (t) => {
    const { client, seen, ours, theirs } = await start(t)
    const metadata = new grpc.Metadata()
    metadata.add('x-one', 'a')
    metadata.add('x-one', 'b')
    metadata.add('x-two-bin', Buffer.from([0, 255, 10, 13]))
    const { error, value, trailers } = await unary(client, 'hello', {}, metadata)
    assert.equal(error, null)
    assert.equal(value?.toString(), 'hello')
    assert.deepEqual(trailers?.get('x-after'), ['yes'])
    assert.deepEqual(seen.metadata[0]!.get('x-one'), ['a, b'])
    assert.deepEqual(seen.metadata[0]!.get('x-two-bin'), [Buffer.from([0, 255, 10, 13])])
    assert.equal(seen.metadata[0]!.get('x-holdfast-service').length, 0)
    for (const [sidecar, direction] of [
      [ours, 'outbound'],
      [theirs, 'inbound'],
    ] as const)
      assert.equal(
        await metric(
          sidecar,
          `holdfast_sidecar_grpc_calls_total{direction="${direction}",service="stock.default",status="0"}`,
        ),
        1,
      )
  })

  test('the service’s own failure, with its message and trailers', async (t) => {
    const { client, ours } = await start(t)
    const { error, trailers } = await unary(client, 'fail')
    assert.equal(error?.code, grpc.status.FAILED_PRECONDITION)
    assert.equal(error.details, 'böse: 100 %')
    assert.deepEqual(trailers?.get('x-detail'), ['sold out'])
    const line = 'holdfast_sidecar_grpc_calls_total{direction="outbound",service="stock.default",status="9"}'
    assert.equal(await metric(ours, line), 1)
  })

  test('messages of a megabyte and more', async (t) => {
    const { client } = await start(t)
    const large = Buffer.alloc(5_000_000, 'abcdefghij')
    const { error, value } = await unary(client, large)
    assert.equal(error, null)
    assert.ok(value?.equals(large))
  })

  test('a stream of requests', async (t) => {
    const { client } = await start(t)
    const answered = new Promise<Buffer | undefined>((resolve, reject) => {
      const call = client.collect((error, value) => (error ? reject(error) : resolve(value)))
      for (let i = 0; i < 500; i++) call.write(Buffer.from(`${i},`))
      call.end()
    })
    assert.equal((await answered)?.toString(), Array.from({ length: 500 }, (_, i) => `${i},`).join(''))
  })

  test('a stream of answers', async (t) => {
    const { client } = await start(t)
    const heard: string[] = []
    for await (const piece of client.watch(Buffer.from('500'))) heard.push(String(piece))
    assert.deepEqual(
      heard,
      Array.from({ length: 500 }, (_, i) => String(i)),
    )
  })

  test('both at once, each message answered before the next is sent', async (t) => {
    const { client } = await start(t)
    const call = client.chat()
    for (const word of ['one', 'two', 'three']) {
      const answered = once(call, 'data') as Promise<[Buffer]>
      call.write(Buffer.from(word))
      assert.equal((await answered)[0].toString(), word.toUpperCase())
    }
    const ended = once(call, 'end')
    call.resume()
    call.end()
    await ended
  })

  test('more calls at once than one connection takes streams', async (t) => {
    const { client, theirs } = await start(t)
    const results = await Promise.all(Array.from({ length: 300 }, (_, i) => unary(client, `call ${i}`)))
    assert.deepEqual(
      results.map(({ value }) => value?.toString()),
      Array.from({ length: 300 }, (_, i) => `call ${i}`),
    )
    assert.equal(await metric(theirs, 'holdfast_sidecar_requests_in_flight{direction="inbound"}'), 0)
  })

  test('a call that its caller cancels is cancelled at the service', async (t) => {
    const { client, seen } = await start(t)
    const call = client.watch(Buffer.from('1000'))
    call.on('error', () => {})
    await once(call, 'data')
    call.cancel()
    await eventually('the service hears of it', () => seen.cancelled === 1)
  })

  test('a deadline ends the call here and at the service, as a deadline', async (t) => {
    const { client, seen } = await start(t)
    const { error } = await unary(client, 'hang', { deadline: Date.now() + 300 })
    assert.equal(error?.code, grpc.status.DEADLINE_EXCEEDED)
    await eventually('the service hears of it', () => seen.cancelled === 1)
  })
})

/** A call in bare HTTP/2, whose client keeps no time of its own. */
async function call(t: TestContext, port: number, headers: Record<string, string>) {
  const session = connectHttp2(`http://127.0.0.1:${port}`)
  t.after(() => session.destroy())
  const stream = session.request({
    ':method': 'POST',
    ':path': '/stock.Stock/unary',
    ':authority': 'stock',
    'content-type': 'application/grpc',
    te: 'trailers',
    ...headers,
  })
  stream.end(Buffer.concat([Buffer.from([0, 0, 0, 0, 4]), Buffer.from('hang')]))
  let trailers: IncomingHttpHeaders | undefined
  stream.on('trailers', (fields: IncomingHttpHeaders) => (trailers = fields))
  const [head] = (await once(stream, 'response')) as unknown as [IncomingHttpHeaders]
  stream.resume()
  if (!stream.closed) await once(stream, 'close')
  return { head, trailers }
}

describe('the sidecar’s own answers to gRPC', () => {
  test('are fields alone: HTTP 200, grpc-status by the reason, grpc-message', async (t) => {
    const { ours } = await start(t)
    const { head, trailers } = await call(t, ours.ports.outbound, { ':authority': 'nobody' })
    assert.equal(head[':status'], 200)
    assert.equal(head['content-type'], 'application/grpc')
    assert.equal(head['grpc-status'], '14')
    assert.equal(head['x-holdfast-reason'], 'unknown_service')
    assert.equal(head['grpc-message'], 'unknown_service: nobody in default: unknown')
    assert.equal(trailers, undefined)
  })

  test('are understood by a client of gRPC', async (t) => {
    const { ours } = await start(t)
    const { error } = await unary(startClient(t, ours.ports.outbound, 'nobody'), 'hello')
    assert.equal(error?.code, grpc.status.UNAVAILABLE)
    assert.match(error.details, /^unknown_service: /)
  })

  test('grpc-timeout counts as a deadline that the caller states', async (t) => {
    const { ours, seen } = await start(t)
    const { head } = await call(t, ours.ports.outbound, { 'grpc-timeout': '200m' })
    assert.equal(head['grpc-status'], '4')
    assert.equal(head['x-holdfast-reason'], 'deadline')
    await eventually('the service hears of it', () => seen.cancelled === 1)
  })

  test('a node that refuses counts as failed, and another one is asked', async (t) => {
    const { client, views, ours, theirs } = await start(t)
    views.set('stock', [
      { id: 'dead', port: 1, protocol: 'grpc' },
      { id: 'n', port: theirs.ports.inbound, protocol: 'grpc' },
    ])
    for (let i = 0; i < 4; i++) assert.equal((await unary(client, 'hello')).error, null)
    assert.ok(views.outcomes.includes('dead failed'))
    assert.ok((await metric(ours, 'holdfast_sidecar_retries_total{reason="upstream_connect"}')) > 0)
  })

  test('a peer’s word that the service never saw the call is proof, though its status is 200', async (t) => {
    const { client, views, theirs, ours } = await start(t)
    const { sidecar: stranger } = await startSidecar(t)
    views.set('stock', [
      { id: 'stranger', port: stranger.ports.inbound, protocol: 'grpc' },
      { id: 'n', port: theirs.ports.inbound, protocol: 'grpc' },
    ])
    for (let i = 0; i < 4; i++) assert.equal((await unary(client, 'hello')).error, null)
    assert.ok(views.outcomes.includes('stranger failed'))
    assert.ok((await metric(ours, 'holdfast_sidecar_retries_total{reason="not_here"}')) > 0)
  })

  test('a call that breaks after its answer began ends with a status, not with a reset', async (t) => {
    const { client, server } = await start(t)
    const watched = client.watch(Buffer.from('1000'))
    await once(watched, 'data')
    const failed = once(watched, 'error') as Promise<[grpc.ServiceError]>
    watched.resume()
    server.forceShutdown()
    const [error] = await failed
    assert.equal(error.code, grpc.status.UNAVAILABLE)
    assert.match(error.details, /^upstream_reset: /)
  })
})

describe('words of gRPC', () => {
  test('every reason has a status other than OK', () => {
    for (const reason of Object.keys(REASONS) as Reason[]) {
      const status = GRPC_STATUS[reason]
      assert.ok(Number.isInteger(status) && status >= 1 && status <= 16, reason)
    }
  })

  test('grpc-message is percent-encoded', () => {
    const { headers } = grpcReply(new SidecarError('deadline', '50 % ü\r\nnext'))
    assert.equal(headers.get('grpc-message'), 'deadline: 50 %25 %C3%BC%0D%0Anext')
  })

  test('grpc-timeout: up to eight digits and a unit', () => {
    const read = ['1H', '2M', '3S', '40m', '5000u', '6000000n', '99999999m'].map(parseGrpcTimeout)
    assert.deepEqual(read, [3_600_000, 120_000, 3_000, 40, 5, 6, 99_999_999])
    for (const none of [undefined, '', '1', 'm', '123456789m', '-1m', '1.5S', '1s', ' 1m', '1m '])
      assert.equal(parseGrpcTimeout(none), undefined, none)
  })

  test('application/grpc alone or with a format, and nothing else', () => {
    for (const is of ['application/grpc', 'application/grpc+proto', 'Application/GRPC; a=b']) assert.ok(isGrpc(is))
    for (const not of [undefined, 'application/grpc-web', 'application/grpcx', 'text/application/grpc', ''])
      assert.ok(!isGrpc(not), not)
  })
})

test('a service of gRPC is registered once it says that it serves', async (t) => {
  const server = new grpc.Server()
  let serving = 2
  let asked = 0
  server.addService(
    { check: { ...method('check', false, false), path: '/grpc.health.v1.Health/Check' } },
    {
      check: (_call: grpc.ServerUnaryCall<Buffer, Buffer>, done: grpc.sendUnaryData<Buffer>) => {
        asked++
        done(null, Buffer.from([8, serving]))
      },
    },
  )
  const port = await new Promise<number>((resolve) =>
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (_error, bound) => resolve(bound)),
  )
  t.after(() => server.forceShutdown())
  const healthCheck = { type: 'http', interval: '10ms' }
  const { client } = await startSidecar(t, { services: [{ service: 'stock', port, protocol: 'grpc', healthCheck }] })
  await eventually('it is asked', () => asked > 2)
  assert.equal(client.registered.length, 0)
  serving = 1
  await eventually('it is registered', () => client.registered.length === 1)
  assert.deepEqual(
    client.registered.map(({ protocol }) => protocol),
    ['grpc'],
  )
})
