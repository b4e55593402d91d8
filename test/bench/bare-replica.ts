/**
 * A replica with nothing in it, `ENDPOINT KEY`: what is sent to it is put to etcd, what etcd's watch tells is passed to
 * every WebSocket. So much takes the way itself, through two processes more than etcd3 alone.
 */

import { createServer } from 'node:http'
import { Etcd3 } from 'etcd3'
import { WebSocketServer } from 'ws'

const [endpoint, key = ''] = process.argv.slice(2)
const client = new Etcd3({ hosts: `http://${endpoint}` })
const server = createServer((request, response) => {
  const parts: Buffer[] = []
  request.on('data', (part: Buffer) => parts.push(part))
  request.on('end', () => {
    void client
      .put(key)
      .value(Buffer.concat(parts))
      .then(() => response.writeHead(200, { 'content-length': 0 }).end())
  })
})
const webSockets = new WebSocketServer({ server, perMessageDeflate: false })
webSockets.on('connection', (socket) => socket.send('snapshot'))
const watcher = await client.watch().key(key).create()
watcher.on('put', () => {
  for (const socket of webSockets.clients) socket.send('change')
})
server.listen(0, '127.0.0.1', () =>
  console.log(`ready: http://127.0.0.1:${(server.address() as { port: number }).port}`),
)
process.once('SIGTERM', () => process.exit(0))
