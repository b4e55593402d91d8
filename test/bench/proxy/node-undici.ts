/** Node's http server with undici behind it: what this sidecar was before it had an engine of its own, without layers. */

import { createServer } from 'node:http'
import { Pool } from 'undici'

const [port, upstream] = process.argv.slice(2).map(Number)
const pool = new Pool(`http://127.0.0.1:${upstream}`, { connections: 1_024, pipelining: 1 })

createServer((incoming, outgoing) => {
  const hasBody =
    incoming.headers['content-length'] !== undefined || incoming.headers['transfer-encoding'] !== undefined
  const headers = incoming.rawHeaders.filter((_, i, all) => !/^connection$/i.test(all[i - (i % 2)]!))
  pool.dispatch(
    { method: incoming.method!, path: incoming.url!, headers, body: hasBody ? incoming : null },
    {
      onRequestStart() {},
      onResponseStart(controller, status) {
        const raw = (controller.rawHeaders as Buffer[]).map((part) => part.toString('latin1'))
        outgoing.writeHead(status, raw)
        outgoing.on('drain', () => controller.resume())
      },
      onResponseData(controller, chunk) {
        if (!outgoing.write(chunk)) controller.pause()
      },
      onResponseEnd: () => void outgoing.end(),
      onResponseError: () => void outgoing.destroy(),
    },
  )
}).listen(port, '127.0.0.1', 4_096)
