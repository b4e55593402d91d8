/**
 * Finds a small part of a plan that still fails: leaves out ever smaller pieces of it for as long as it does.
 *
 * Source: A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 2002 (ddmin).
 */

/**
 * @param fails whether a part of the items fails as the whole does
 * @param tries at most so many parts are tried
 */
export async function shrink<T>(
  items: readonly T[],
  fails: (part: readonly T[]) => Promise<boolean>,
  tries = 150,
): Promise<readonly T[]> {
  let kept = items
  let pieces = 2
  let tried = 0
  while (kept.length > 0 && tried < tries) {
    const size = Math.ceil(kept.length / pieces)
    let smaller: readonly T[] | undefined
    for (let at = 0; at < kept.length && smaller === undefined && tried < tries; at += size) {
      const rest = [...kept.slice(0, at), ...kept.slice(at + size)]
      tried++
      if (await fails(rest)) smaller = rest
    }
    if (smaller) {
      kept = smaller
      pieces = Math.max(2, pieces - 1)
    } else if (size === 1) break
    else pieces = Math.min(kept.length, pieces * 2)
  }
  return kept
}
