import { sleep, type Clock } from '@holdfast/registry-client/clock'

/** Nobody is on the way any more when nothing has arrived for so long. Longer makes every drain take longer. */
const QUIET_MS = 500

/**
 * Resolves when nothing has arrived for a while, after `limitMs` at the latest: the system resets connections that wait
 * to be accepted when their socket closes, and with them what is written already.
 * @param arrivedMs when something arrived last, in milliseconds of the clock
 */
export async function untilQuiet(
  clock: Clock,
  limitMs: number,
  arrivedMs: () => number,
  signal: AbortSignal,
): Promise<void> {
  const endMs = clock.now() + limitMs
  for (;;) {
    const waitMs = Math.min(arrivedMs() + QUIET_MS, endMs) - clock.now()
    if (waitMs <= 0 || signal.aborted) break
    await sleep(clock, waitMs, signal)
  }
  // Right after the system was asked for connections, the fewest wait to be accepted.
  await new Promise((resolve) => setImmediate(resolve))
}
