// A ledger: an ordinary service of HTTP/2 in clear text, as those of gRPC are.
import http2 from 'node:http2'

const server = http2.createServer()
const sessions = new Set()

server.on('session', (session) => {
  sessions.add(session)
  session.on('error', () => {})
  session.once('close', () => sessions.delete(session))
})
server.on('stream', (stream, headers) => {
  let posted = ''
  stream.on('error', () => {})
  stream.setEncoding('utf8').on('data', (chunk) => (posted += chunk))
  stream.on('end', () => {
    if (stream.destroyed) return
    stream.respond({ ':status': 200, 'content-type': 'application/json' })
    stream.end(JSON.stringify({ entry: headers[':path'], posted, servedBy: `ledger ${process.pid}` }) + '\n')
  })
})
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => {
  console.log(`ledger ready: http://127.0.0.1:${server.address().port}`)
})
for (const signal of ['SIGTERM', 'SIGINT'])
  process.once(signal, () => {
    server.close(() => process.exit(0))
    for (const session of sessions) session.close()
    setTimeout(() => process.exit(0), 2000).unref()
  })
