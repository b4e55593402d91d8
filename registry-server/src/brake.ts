/**
 * Whether leases that ran out may end, or are held for a while. Pure: a picture in, decisions out.
 *
 * Registrants die one by one, or with their host. When leases of several hosts fall silent in the same moment, one
 * common cause is likelier than as many deaths, and the nodes behind it are most likely well. So the question is not
 * how many leases are silent, but whether those that fell silent together are of more than two hosts.
 */

/** So many hosts do not die in the same moment by chance. */
export const HOSTS = 3
/** How much later than usual a renewal may be: it may have been on its way through another replica. */
const LATE_MS = 1_000
/** How long a lease that ran out waits for others to prove silent, or alive. */
const WAIT_MS = 1_000
/** What one gap between renewals weighs against those before. */
const WEIGHT = 1 / 4
/** A gap below this share of the ttl is no rhythm: registering counts as a renewal too, and comes in bursts. */
const SHORTEST = 1 / 10
const UNKNOWN = 1 / 3
/** No lease lives longer without a renewal, so that nothing can fall due later that was silent before. */
const LONGEST_TTL_MS = 3_600_000
const HOSTS_SHOWN = 10

/** What is known of the renewals of one lease. */
export interface Voice {
  readonly ttlMs: number
  readonly heardMs: number
  /** Its usual time between renewals, by {@link learn}. */
  readonly intervalMs: number
  readonly deadlineMs: number
}

/** When something happened, as exactly as it is known. */
export interface Span {
  readonly fromMs: number
  readonly toMs: number
}

/** Some are still heard; or nobody is, and then our own network is the likeliest cause. */
export type HoldReason = 'partition' | 'silence'

/** A decision to keep leases that fell silent together. */
export interface Hold {
  readonly reason: HoldReason
  /** When they fell silent. What else fell silent then belongs to it. */
  readonly span: Span
  readonly untilMs: number
  /** Those that were silent when it was decided. */
  readonly leases: number
  /** How many hosts they were on, and the first of them. */
  readonly hostCount: number
  readonly hosts: readonly string[]
}

export interface Picture<V extends Voice> {
  readonly nowMs: number
  /** Leases that ran out. */
  readonly due: readonly V[]
  /** All for which {@link isQuiet} holds. */
  readonly quiet: readonly V[]
  readonly hostOf: (voice: V) => string
  /** When any lease was heard last. */
  readonly heardMs: number
  /** Earlier decisions, also those whose time is over, until {@link isForgotten}; the oldest first. */
  readonly holds: Iterable<Hold>
  readonly holdMs: number
}

export interface Decisions<V extends Voice> {
  readonly end: readonly V[]
  /** To be asked about again soon. */
  readonly wait: readonly V[]
  readonly hold: readonly { readonly voice: V; readonly hold: Hold }[]
  /** Decided now. */
  readonly begun: readonly Hold[]
}

export function unknownInterval(ttlMs: number): number {
  return ttlMs * UNKNOWN
}

/** The usual interval of a lease after one more gap. One beyond the ttl says something of an outage, not of the lease. */
export function learn(intervalMs: number, gapMs: number, ttlMs: number): number {
  if (isBurst(gapMs, ttlMs) || gapMs > ttlMs) return intervalMs
  return intervalMs + (gapMs - intervalMs) * WEIGHT
}

/** Whether a renewal came so soon after another that the two count as one. */
export function isBurst(gapMs: number, ttlMs: number): boolean {
  return gapMs < ttlMs * SHORTEST
}

/** Two renewals of a lease have not come. */
function isSilent(voice: Voice, nowMs: number): boolean {
  return nowMs - voice.heardMs > silentAfterMs(voice)
}

/** Silent, or will be within the time that one which ran out may wait. */
export function isQuiet(voice: Voice, nowMs: number): boolean {
  return nowMs - voice.heardMs > Math.max(voice.intervalMs, silentAfterMs(voice) - WAIT_MS)
}

function silentAfterMs({ intervalMs, ttlMs }: Voice): number {
  const afterTwoMs = 2 * intervalMs + LATE_MS
  // A slow renewer, or one with a short ttl, would have run out by then, one after the other.
  return afterTwoMs <= ttlMs ? afterTwoMs : Math.min(ttlMs, Math.max(1.5 * intervalMs, (2 / 3) * ttlMs))
}

/** Between the last renewal and the one that did not come. */
function fallOf({ heardMs, intervalMs }: Voice): Span {
  return { fromMs: heardMs, toMs: heardMs + intervalMs + Math.min(LATE_MS, intervalMs) }
}

function overlap(a: Span, b: Span): boolean {
  return a.fromMs <= b.toMs && b.fromMs <= a.toMs
}

/** Whether nothing can fall due any more that belongs to a hold. */
export function isForgotten({ untilMs, span }: Hold, nowMs: number): boolean {
  return nowMs > untilMs && nowMs > span.toMs + LONGEST_TTL_MS
}

/** The decision on leases of the same moment, if there is one: the oldest, so that a late one gets no later end. */
export function holdOf(voice: Voice, holds: Iterable<Hold>): Hold | undefined {
  const fall = fallOf(voice)
  for (const hold of holds) if (overlap(hold.span, fall)) return hold
  return undefined
}

export function decide<V extends Voice>(picture: Picture<V>): Decisions<V> {
  const { nowMs, due, quiet, hostOf, heardMs, holdMs } = picture
  const end: V[] = []
  const wait: V[] = []
  const hold: { voice: V; hold: Hold }[] = []
  const begun: Hold[] = []
  const holds = [...picture.holds]
  const silent = quiet.filter((voice) => isSilent(voice, nowMs))
  const silentFalls = new Falls(silent, hostOf)
  const quietFalls = new Falls(quiet, hostOf)
  for (const voice of due) {
    let found = holdOf(voice, holds)
    const span = fallOf(voice)
    if (found === undefined && silentFalls.areOfManyHosts(span)) {
      const group = silent.filter((other) => overlap(span, fallOf(other)))
      const hosts = new Set(group.map(hostOf))
      found = {
        reason: heardMs <= span.toMs ? 'silence' : 'partition',
        span,
        untilMs: nowMs + holdMs,
        leases: group.length,
        hostCount: hosts.size,
        hosts: [...hosts].slice(0, HOSTS_SHOWN),
      }
      holds.push(found)
      begun.push(found)
    }
    if (found) {
      if (found.untilMs > nowMs) hold.push({ voice, hold: found })
      else end.push(voice)
    } else if (nowMs < voice.deadlineMs + WAIT_MS && quietFalls.areOfManyHosts(span)) wait.push(voice)
    else end.push(voice)
  }
  return { end, wait, hold, begun }
}

/** When the leases of which host fell silent. Those of one host that may have done so together are one span. */
class Falls<V extends Voice> {
  readonly #voices: readonly V[]
  readonly #hostOf: (voice: V) => string
  /** In the order of their beginnings. */
  #spans: { readonly fromMs: number; toMs: number; readonly host: string }[] | undefined
  #longestMs = 0

  constructor(voices: readonly V[], hostOf: (voice: V) => string) {
    this.#voices = voices
    this.#hostOf = hostOf
  }

  /** Whether leases of so many hosts may have fallen silent within a span that one cause is likelier. */
  areOfManyHosts(span: Span): boolean {
    this.#spans ??= this.#sorted()
    const hosts = new Set<string>()
    for (let index = this.#firstFrom(span.fromMs - this.#longestMs); index < this.#spans.length; index++) {
      const item = this.#spans[index]!
      if (item.fromMs > span.toMs) break
      if (item.toMs >= span.fromMs && hosts.add(item.host).size === HOSTS) return true
    }
    return false
  }

  #sorted() {
    const spans: { fromMs: number; toMs: number; host: string }[] = []
    const last = new Map<string, { toMs: number }>()
    for (const voice of [...this.#voices].sort((a, b) => a.heardMs - b.heardMs)) {
      const host = this.#hostOf(voice)
      const { fromMs, toMs } = fallOf(voice)
      const before = last.get(host)
      if (before && before.toMs >= fromMs) {
        before.toMs = Math.max(before.toMs, toMs)
        continue
      }
      const span = { fromMs, toMs, host }
      last.set(host, span)
      spans.push(span)
    }
    for (const { fromMs, toMs } of spans) this.#longestMs = Math.max(this.#longestMs, toMs - fromMs)
    return spans
  }

  #firstFrom(fromMs: number): number {
    const spans = this.#spans!
    let low = 0
    for (let high = spans.length; low < high;) {
      const middle = (low + high) >>> 1
      if (spans[middle]!.fromMs < fromMs) low = middle + 1
      else high = middle
    }
    return low
  }
}
