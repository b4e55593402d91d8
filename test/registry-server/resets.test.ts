/** A connection that is reset at the wrong moment ends nothing but itself. */

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { HANDED_OVER, sendAndReset } from '../support/resets.ts'
import { startRegistry } from './support.ts'

for (const [what, bytes] of Object.entries(HANDED_OVER))
  test(`${what} that is reset leaves the next one served`, { timeout: 30_000 }, async (t) => {
    const { url } = await startRegistry(t)
    await sendAndReset(Number(new URL(url).port), bytes)
    const next = await fetch(`${url}/healthz`)
    assert.equal(next.status, 200)
  })
