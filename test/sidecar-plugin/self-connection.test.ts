/** A connection that meets itself, in a network of its own where the system has but one port to give. */

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { connect } from 'node:net'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { systemClock } from '@holdfast/registry-client/clock'
import { Transport } from '../../sidecar-plugin/src/http1/transport.ts'
import { createProbe } from '../../sidecar-plugin/src/local/health-check.ts'

const execute = promisify(execFile)
const PORT = 40_000
const INSIDE = 'HOLDFAST_TEST_INSIDE'

const target = { host: '127.0.0.1', port: PORT }

/** How connecting to a port ends on which nobody listens. */
const attempts = {
  // As the system has it.
  'met itself': () =>
    new Promise<string>((resolve) => {
      const socket = connect(target)
      socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code!))
      socket.on('connect', () => resolve('met itself'))
    }),
  // By the wire.
  ECONNREFUSED: () =>
    new Promise<string>((resolve) => {
      const closed = (cause: NodeJS.ErrnoException | undefined) => resolve(cause?.code ?? 'closed')
      const owner = { received: () => true, ended: () => {}, drained: () => {}, closed }
      Transport.connect(target.host, target.port, owner, () => resolve('connected'))
    }),
  // By a health check.
  refused: async () => {
    const times = { intervalMs: 1_000, timeoutMs: 5_000, unhealthyAfter: 1, healthyAfter: 1 }
    const probe = createProbe({ type: 'tcp', path: '/', ...times }, { ...target, protocol: 'tcp' }, systemClock)
    return (await probe(new AbortController().signal)).verdict
  },
}

const inside = process.env[INSIDE]
if (inside !== undefined) {
  console.log(await attempts[inside as keyof typeof attempts]())
  process.exit(0)
}

test('a connection that meets itself counts as refused', async (t) => {
  const canUnshare = await execute('unshare', ['--net', 'true']).then(
    () => true,
    () => false,
  )
  if (!canUnshare) return t.skip('needs root, and unshare of util-linux')
  const set = `ip link set lo up && echo ${PORT} ${PORT} > /proc/sys/net/ipv4/ip_local_port_range`
  const script = `${set} && exec '${process.execPath}' --import tsx '${import.meta.filename}'`
  for (const expected of Object.keys(attempts)) {
    const env = { ...process.env, [INSIDE]: expected }
    const { stdout } = await execute('unshare', ['--net', 'sh', '-c', script], { env })
    assert.equal(stdout.trim(), expected)
  }
})
