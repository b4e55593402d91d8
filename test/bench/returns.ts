/** A thousand clients that come back to a registry: with the cursor of what they hold, and with nothing. */

import { connect as open } from 'node:net'
import { KeptConnection, request } from './http-load.ts'
import { cpuOf, startRegistry } from './servers.ts'
import { print, ratio } from './table.ts'

const CLIENTS = 1_000
const SERVICES = 20
const NODES = 10
/** Handshakes under way: a kernel's queue of them is short. */
const AT_ONCE = 100

interface Return {
  readonly bytes: number
  readonly snapshots: number
}

export async function returns(): Promise<void> {
  const server = await startRegistry()
  const names = Array.from({ length: SERVICES }, (_, index) => `service-${index}`)
  const connection = await KeptConnection.open(server.port)
  for (const [at, service] of names.entries())
    for (let node = 0; node < NODES; node++) {
      const status = await connection.ask(
        request('PUT', `/v1/services/${service}/nodes/n${node}`, { host: `10.0.${at}.${node}`, port: 8080 }),
      )
      if (!status.startsWith('2')) throw new Error(`the registry answered ${status}`)
    }
  connection.close()
  const answer = await fetch(`http://127.0.0.1:${server.port}/v1/services/${names.at(-1)}`)
  const cursor = answer.headers.get('holdfast-cursor') ?? ((await answer.json()) as { cursor: string }).cursor
  const rows: (string | number)[][] = []
  let against = NaN
  for (const [name, cursorOf] of [
    ['with a current cursor', () => cursor],
    ['with nothing', () => undefined],
  ] as const) {
    const services = names.map((service) => ({ namespace: 'default', service, cursor: cursorOf() }))
    const startMs = performance.now()
    const startSeconds = cpuOf(server.pid)
    const made: Return[] = []
    const sockets: { destroy(): void }[] = []
    const next = async () => {
      while (sockets.length < CLIENTS)
        made.push(await come(server.port, JSON.stringify({ type: 'subscribe', services }), sockets))
    }
    await Promise.all(Array.from({ length: AT_ONCE }, next))
    const ms = performance.now() - startMs
    const cpuMs = (cpuOf(server.pid) - startSeconds) * 1000
    const bytes = made.reduce((sum, item) => sum + item.bytes, 0) / CLIENTS
    if (Number.isNaN(against)) against = bytes
    const snapshots = made.reduce((sum, item) => sum + item.snapshots, 0)
    rows.push([name, bytes, ratio(bytes, against), snapshots, ms, cpuMs])
    for (const socket of sockets) socket.destroy()
  }
  await server.stop()
  print(
    `${CLIENTS.toLocaleString('en')} clients come back, each to ${SERVICES} services × ${NODES} nodes`,
    [
      '',
      'bytes to each, handshake included',
      '',
      'snapshots',
      'ms until all are confirmed',
      'ms of CPU in the registry',
    ],
    rows,
  )
}

/** Until the registry has said that it has sent everything up to some place. */
function come(port: number, message: string, sockets: { destroy(): void }[]): Promise<Return> {
  return new Promise((resolve, reject) => {
    const socket = open({ port, host: '127.0.0.1' })
    sockets.push(socket)
    socket.on('error', reject)
    socket.write(
      'GET /v1/watch HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n' +
        'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n',
    )
    let isSent = false
    let text = ''
    socket.on('data', (chunk) => {
      text += chunk.toString('latin1')
      if (!isSent && text.includes('\r\n\r\n')) {
        isSent = true
        socket.write(frameOf(message))
        // What it said before is not about what is asked now.
        text = text.slice(text.indexOf('\r\n\r\n'))
      }
      const snapshots = text.match(/"event":"snapshot"/g)?.length ?? 0
      if (isSent && /"id":"[^"]+","event":"(ping|snapshot)"/.test(text)) resolve({ bytes: socket.bytesRead, snapshots })
    })
  })
}

/** A masked text frame, as clients send; the mask is zero. RFC 6455, section 5.2. */
function frameOf(text: string): Buffer {
  const payload = Buffer.from(text)
  const head = Buffer.from([0x81, 0xfe, payload.length >> 8, payload.length & 255, 0, 0, 0, 0])
  return Buffer.concat([head, payload])
}
