import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { RefusedError, UnreachableError } from '@holdfast/registry-client'
import { settle } from '../support/manual-clock.ts'
import { answer, problem, silence } from '../support/scripted-network.ts'
import { world } from '../support/connection-world.ts'

describe('a request', () => {
  const endpoints = ['http://one:1', 'http://two:2', 'http://three:3']

  test('carries its body as JSON, and returns the answer', async () => {
    const { connection, network, clock } = world()
    network.respond = () => answer(201, { id: 'L1' })
    const { status, body } = await connection.request('POST', '/v1/leases', { ttl: '15s' })
    assert.equal(status, 201)
    assert.equal(body, '{"id":"L1"}')
    const [call] = network.calls
    assert.deepEqual([call!.method, call!.url, call!.json], ['POST', 'http://one:1/v1/leases', { ttl: '15s' }])
    assert.deepEqual(call!.headers, { 'content-type': 'application/json' })
    assert.equal(clock.pending, 0)
  })

  test('goes to the next endpoint when one cannot be reached or says 503', async () => {
    const { connection, network, clock } = world({ endpoints })
    network.respond = ({ url }) => {
      if (url.startsWith('http://one')) throw new Error('connect ECONNREFUSED')
      return url.startsWith('http://two') ? problem(503, 'not_ready') : answer(200, 'here')
    }
    assert.equal((await connection.request('GET', '/v1/status')).body, '"here"')
    assert.equal(network.calls.length, 3)
    assert.equal(clock.pending, 0)
  })

  test('begins where the last one was answered, so that a frozen registry is waited for once', async () => {
    const { connection, network, clock } = world({ endpoints })
    network.respond = ({ url }) => (url.startsWith('http://one') ? silence() : answer(200))
    const first = connection.request('POST', '/v1/leases/L1/renew')
    await clock.advance(5_000)
    await first
    await connection.request('POST', '/v1/leases/L1/renew')
    assert.deepEqual(
      network.calls.map(({ url }) => new URL(url).host),
      ['one:1', 'two:2', 'two:2'],
    )
    // A stream that opens says again who is there.
    network.respond = () => answer(200)
    connection.open()
    await network.stream.accept()
    await connection.request('GET', '/v1/status')
    assert.equal(new URL(network.calls.at(-1)!.url).host, 'one:1')
    connection.close()
  })

  test('names each endpoint with its reason when none answered', async () => {
    const { connection, network } = world({ endpoints })
    network.respond = ({ url }) => {
      if (url.startsWith('http://one')) throw new Error('connect ECONNREFUSED')
      return url.startsWith('http://two') ? problem(503, 'store_unavailable') : answer(503)
    }
    await assert.rejects(connection.request('GET', '/v1/status'), (error) => {
      assert.ok(error instanceof UnreachableError)
      assert.equal(error.code, 'registry_unreachable')
      assert.deepEqual(error.tried, [
        'http://one:1: connect ECONNREFUSED',
        'http://two:2: store_unavailable',
        'http://three:3: 503',
      ])
      return true
    })
  })

  test('that is refused says why, and is not repeated elsewhere', async () => {
    const { connection, network } = world({ endpoints })
    network.respond = () =>
      problem(400, 'invalid_request', { errors: [{ path: 'weight', message: 'must be 0..1000' }] })
    await assert.rejects(connection.request('PUT', '/v1/x', {}), (error) => {
      assert.ok(error instanceof RefusedError)
      assert.equal(error.status, 400)
      assert.equal(error.code, 'invalid_request')
      assert.equal(error.problem?.errors?.[0]?.path, 'weight')
      assert.equal(error.message, 'PUT /v1/x: 400 invalid_request weight: must be 0..1000')
      return true
    })
    assert.equal(network.calls.length, 1)
  })

  test('that is refused without a problem document is refused all the same', async () => {
    for (const body of ['<html>', 'null', '17', '"no"']) {
      const { connection, network } = world()
      network.respond = () => ({ status: 404, header: () => undefined, body })
      await assert.rejects(connection.request('GET', '/v1/x'), (error) => {
        assert.ok(error instanceof RefusedError, `${body}: ${String(error)}`)
        assert.equal(error.status, 404)
        assert.equal(error.code, 'refused')
        return true
      })
    }
  })

  test('gives each endpoint 5 s', async () => {
    const { connection, network, clock } = world({ endpoints: endpoints.slice(0, 2) })
    network.respond = ({ url }) => (url.startsWith('http://one') ? silence() : answer(200))
    const asking = connection.request('GET', '/v1/status')
    await clock.advance(4_999)
    assert.equal(network.calls.length, 1)
    await clock.advance(1)
    assert.equal((await asking).status, 200)
  })

  test('ends early with its signal', async () => {
    const { connection, network, clock } = world({ endpoints })
    network.respond = silence
    const stop = new AbortController()
    const asking = connection.request('GET', '/v1/status', undefined, stop.signal)
    await settle()
    stop.abort(new Error('enough'))
    await assert.rejects(asking, (error) => {
      assert.ok(error instanceof UnreachableError)
      assert.deepEqual(error.tried, ['http://one:1: enough', 'the deadline passed'])
      return true
    })
    assert.equal(network.calls.length, 1)
    assert.equal(clock.pending, 0)
  })

  test('under way is ended by the close of the connection', async () => {
    const { connection, network, clock } = world({ endpoints })
    network.respond = silence
    const asking = connection.request('GET', '/v1/status')
    await settle()
    connection.close()
    await assert.rejects(asking, /the client is closed/)
    await assert.rejects(connection.request('GET', '/v1/status'), /the client is closed/)
    assert.equal(network.calls.length, 1)
    assert.equal(clock.pending, 0)
  })
})
