import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { describe, test } from 'node:test'
import { systemNetwork } from '../../registry-client/src/network.ts'

/** A URL at which nobody listens any more. */
async function nowhere(): Promise<string> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return `http://127.0.0.1:${port}/v1/watch`
}

describe('the system network', () => {
  test('tells of a URL that cannot be one by the close of the stream', async () => {
    const reason = await new Promise<string>((resolve) => {
      const stream = systemNetwork.open('http://[nowhere/v1/watch', { open() {}, message() {}, close: resolve })
      stream.send('nothing')
    })
    assert.match(reason, /Invalid URL/)
  })

  test('a stream that is closed before it began to open does not open', async () => {
    const seen: string[] = []
    await new Promise<void>((resolve) => {
      const stream = systemNetwork.open('http://127.0.0.1:1/v1/watch', {
        open: () => seen.push('open'),
        message() {},
        close: (reason) => {
          seen.push(reason)
          resolve()
        },
      })
      stream.close()
    })
    assert.deepEqual(seen, ['closed'])
  })

  test('tells of a refused connection by the innermost reason', async () => {
    const { signal } = new AbortController()
    await assert.rejects(systemNetwork.request({ method: 'GET', url: await nowhere(), signal }), /ECONNREFUSED/)
    const url = await nowhere()
    const reason = await new Promise<string>((close) => {
      systemNetwork.open(url, { open() {}, message() {}, close })
    })
    assert.match(reason, /ECONNREFUSED/)
  })

  test('closed while it connects it only says so', async () => {
    const opened: string[] = []
    const reason = await new Promise<string>((close) => {
      systemNetwork
        .open('http://127.0.0.1:7400/v1/watch', { open: () => opened.push('open'), message() {}, close })
        .close()
    })
    assert.ok(reason.length > 0)
    assert.deepEqual(opened, [])
  })
})
