/** Callers that reset their connections. */

import { once } from 'node:events'
import { connect } from 'node:net'

/** Sends bytes and resets the connection before anyone can answer, some times one after the other. */
export async function sendAndReset(port: number, bytes: string, times = 10): Promise<void> {
  for (let i = 0; i < times; i++) {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    socket.on('error', () => {})
    await once(socket, 'connect')
    socket.write(bytes, 'latin1')
    const closed = once(socket, 'close')
    socket.resetAndDestroy()
    await closed
  }
}

/** Each of them makes a server of Node's hand over the socket, or refuse it below HTTP. */
export const HANDED_OVER: Readonly<Record<string, string>> = {
  'a tunnel': 'CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n',
  'a tunnel behind a request': 'GET / HTTP/1.1\r\nhost: x\r\n\r\nCONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n',
  'a tunnel with bytes behind it': `CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n${'x'.repeat(100_000)}`,
  'an upgrade': `GET /v1/watch HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: ${'A'.repeat(22)}==\r\n\r\n`,
  'an upgrade that is refused': 'GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n',
  'another upgrade': 'GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n',
  'an upgrade behind a request':
    'GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/watch HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n',
  'a stream': 'GET /v1/watch?service=stock HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n',
  garbage: '\u0000\u00ffgarbage\r\n\r\n',
  'garbage behind a request': 'GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n\u0000\u00ffgarbage\r\n\r\n',
  'a head that is too large': `GET / HTTP/1.1\r\nhost: x\r\nx: ${'x'.repeat(100_000)}\r\n\r\n`,
  'half a head': 'GET / HTTP/1.1\r\nho',
  'half a body': 'PUT /v1/registrations/stock HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc',
  'an expectation': 'PUT / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n',
}
