/** Bytes from one socket to another, and nothing of them read: what a proxy in Node costs before it does anything. */

import { connect, createServer, type Socket } from 'node:net'

const [port, upstream] = process.argv.slice(2).map(Number)

createServer({ noDelay: true }, (caller) => {
  const service = connect({ port: upstream!, host: '127.0.0.1', noDelay: true })
  const pass = (from: Socket, to: Socket) => {
    from.on('data', (chunk) => {
      if (!to.write(chunk)) from.pause()
    })
    to.on('drain', () => from.resume())
    from.on('error', () => to.destroy())
    from.on('close', () => to.destroy())
  }
  pass(caller, service)
  pass(service, caller)
}).listen(port, '127.0.0.1', 4_096)
