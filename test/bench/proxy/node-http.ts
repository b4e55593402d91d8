/** What one writes with Node alone: an http server and an agent that keeps connections. */

import { Agent, createServer, request } from 'node:http'

const [port, upstream] = process.argv.slice(2).map(Number)
const agent = new Agent({ keepAlive: true, maxFreeSockets: 128 })

createServer((incoming, outgoing) => {
  const { method, url, headers } = incoming
  const sent = request({ host: '127.0.0.1', port: upstream, method, path: url, headers, agent }, (answer) => {
    outgoing.writeHead(answer.statusCode!, answer.headers)
    answer.pipe(outgoing)
  })
  sent.on('error', () => outgoing.destroy())
  incoming.pipe(sent)
}).listen(port, '127.0.0.1', 4_096)
