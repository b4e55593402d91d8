import { randomInt } from 'node:crypto'
import { createServer } from 'node:net'

/**
 * Ports that the system gives to nobody by itself, as it does those above to whoever connects or asks for any: what was
 * free a moment ago, or is about to be listened on again, would be taken by somebody else now and then.
 */
const LOWEST = 20_000
const END = 32_768

/** A port of loopback on which nobody listens. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(LOWEST, END)
    if (await isFree(port)) return port
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createServer()
    probe.once('error', () => resolve(false))
    probe.listen(port, '127.0.0.1', () => probe.close(() => resolve(true)))
  })
}
