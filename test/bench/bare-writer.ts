/** Holds connections and, when asked, writes the same bytes to each of them in a loop: what a fan-out costs at least. */

import { createServer, type Socket } from 'node:net'

const [bytes = '0'] = process.argv.slice(2)
const payload = Buffer.alloc(Number(bytes), 'x')
const sockets = new Set<Socket>()
const server = createServer((socket) => {
  sockets.add(socket)
  socket.on('close', () => sockets.delete(socket))
  socket.on('error', () => sockets.delete(socket))
  // One byte asks for the fan-out; a subscriber sends nothing.
  socket.on('data', () => {
    sockets.delete(socket)
    for (const each of sockets) each.write(payload)
    socket.write('!')
  })
})
server.listen(0, '127.0.0.1', () =>
  console.log(`ready: http://127.0.0.1:${(server.address() as { port: number }).port}`),
)
process.once('SIGTERM', () => process.exit(0))
