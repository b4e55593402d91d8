/** The registry's registration route with nothing behind it: what Fastify itself costs. */

import fastify from 'fastify'

const app = fastify()
app.put('/v1/services/:service/nodes/:id', (_request, reply) => reply.code(201).send({ ok: true }))
app.put('/v1/nodes', { bodyLimit: 1_048_576 }, (_request, reply) => reply.code(200).send({ ok: true }))
console.log(`ready: ${await app.listen({ host: '127.0.0.1', port: 0 })}`)
process.once('SIGTERM', () => void app.close().then(() => process.exit(0)))
