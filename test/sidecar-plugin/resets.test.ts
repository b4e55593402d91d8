/** A connection that is reset at the wrong moment ends nothing but itself, on any port of the sidecar. */

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { describe, test, type TestContext } from 'node:test'
import { adminApi, type AdminSubject } from '../../sidecar-plugin/src/api/admin.ts'
import { PeerApi } from '../../sidecar-plugin/src/api/peers.ts'
import { ManualClock } from '../support/manual-clock.ts'
import { HANDED_OVER, sendAndReset } from '../support/resets.ts'
import { serveApi } from './apis.ts'
import { quietLog, RawCaller } from './fakes.ts'
import { startWire } from './wire.ts'

const PORTS: Record<string, (t: TestContext) => Promise<number>> = {
  'for peers': async (t) => {
    const view = () => Promise.resolve({ document: {}, nodes: 1 })
    const peers = new PeerApi({ clock: new ManualClock(), log: quietLog, namespace: 'home', view })
    return (await serveApi(t, peers.listening)).port
  },
  'of the admin API': async (t) => {
    const subject: Partial<AdminSubject> = { views: async () => [] }
    return (await serveApi(t, adminApi(subject as AdminSubject, 'home', quietLog))).port
  },
  'for calls': async (t) => {
    const wire = await startWire((_request, response) => response.end('served'))
    t.after(() => wire.stop())
    return wire.port
  },
}

for (const [which, start] of Object.entries(PORTS))
  describe(`on the port ${which}`, { timeout: 30_000 }, () => {
    for (const [what, bytes] of Object.entries(HANDED_OVER))
      test(`${what} that is reset leaves the next one served`, async (t) => {
        const port = await start(t)
        await sendAndReset(port, bytes)
        const next = new RawCaller(port).send(
          `GET /v1/views/stock HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\nconnection: close\r\n\r\n`,
        )
        await once(next.socket, 'end')
        assert.match(next.text, /^HTTP\/1\.1 \d{3} /)
      })
  })
