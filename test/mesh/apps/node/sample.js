// The two sample services: ordinary programs that know nothing of Holdfast but the port to which they send their calls.
import http from 'node:http'

/**
 * Serves `routes`, a function from a path and the JSON that was posted to an object (or a promise of one), as JSON. A
 * call that fails further down is a 502 here, as in any service.
 */
export function serve(name, routes) {
  const server = http.createServer(async (request, response) => {
    try {
      let posted = ''
      for await (const chunk of request.setEncoding('utf8')) posted += chunk
      const answer = await routes(
        new URL(request.url, 'http://localhost').pathname,
        posted ? JSON.parse(posted) : undefined,
      )
      response.writeHead(answer ? 200 : 404, { 'content-type': 'application/json' })
      response.end(JSON.stringify(answer ?? { error: 'not found' }) + '\n')
    } catch (error) {
      response.writeHead(502, { 'content-type': 'application/json' })
      response.end(JSON.stringify({ error: error.message, reason: error.reason }) + '\n')
    }
  })
  server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => {
    console.log(`${name} ready: http://127.0.0.1:${server.address().port}`)
  })
  for (const signal of ['SIGTERM', 'SIGINT'])
    process.once(signal, () => {
      server.close(() => process.exit(0))
      server.closeIdleConnections()
      // A caller that keeps its connection open is not waited for for ever.
      setTimeout(() => process.exit(0), 2000).unref()
    })
}

const agent = new http.Agent({ keepAlive: true })

/** Calls another service: plain HTTP to the port on this host behind which everything else is. */
export function call(service, path, posted) {
  return new Promise((resolve, reject) => {
    const port = Number(process.env.OUTBOUND_PORT)
    const headers = { host: service, ...(posted && { 'content-type': 'application/json' }) }
    const request = http.request(
      { host: '127.0.0.1', port, path, agent, headers, method: posted ? 'POST' : 'GET' },
      (response) => {
        let body = ''
        response.setEncoding('utf8')
        response.on('data', (chunk) => (body += chunk))
        response.on('error', reject)
        response.on('end', () => {
          const reason = response.headers['x-holdfast-reason']
          if (response.statusCode === 200) resolve({ ...JSON.parse(body), view: response.headers['x-holdfast-view'] })
          else
            reject(Object.assign(new Error(`${service} answered ${response.statusCode}: ${body.trim()}`), { reason }))
        })
      },
    )
    request.on('error', reject)
    request.end(posted && JSON.stringify(posted))
  })
}
