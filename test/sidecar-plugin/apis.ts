/** The sidecar's own APIs on real sockets, listened for as the control plane listens. */

import type { TestContext } from 'node:test'
import { systemClock, type Clock } from '@holdfast/registry-client/clock'
import type { Listening } from '../../sidecar-plugin/src/api/router.ts'
import { Listener } from '../../sidecar-plugin/src/listener.ts'
import { seededRandom } from '../support/seeded-random.ts'

/** Close it with the listener's `close`. */
export async function listenFor(listening: Listening, clock: Clock = systemClock) {
  const listener = new Listener({ ...listening, clock, random: seededRandom(1) })
  return { listener, port: await listener.listen('127.0.0.1', 0) }
}

/** Closed with the test. */
export async function serveApi(t: TestContext, listening: Listening, clock?: Clock) {
  const { listener, port } = await listenFor(listening, clock)
  t.after(() => listener.close())
  return { listener, port }
}
