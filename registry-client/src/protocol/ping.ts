/** The longest time over which a registry asks its clients to spread, and to which they agree. */
export const MAX_SPREAD_MS = 30_000
/** A year: what is said to be older counts as this, since JSON may hold a number without end. */
const MAX_AGE_MS = 365 * 86_400_000

/** The `data` of a ping. Advice, not state: what a client cannot read of it, it does without. */
export interface PingData {
  /** When this registry is lost: the time, in milliseconds, over which its clients come back, each at random. */
  readonly spread?: number
  /** For how many milliseconds what this registry knows may have been overtaken; absent when it is current. */
  readonly age?: number
  /** All that the `subscribe` message of this `ref`, and those before it, asked for has been sent. */
  readonly subscribed?: number
}

/** What a client has read of a ping's data. */
export interface Ping {
  readonly spreadMs?: number
  readonly ageMs?: number
  readonly subscribed?: number
}

export function decodePing(input: unknown): Ping {
  const { spread, age, subscribed } = (input ?? {}) as Record<keyof PingData, unknown>
  return {
    ...(isDuration(spread) && { spreadMs: Math.min(spread, MAX_SPREAD_MS) }),
    ...(isDuration(age) && age > 0 && { ageMs: Math.min(age, MAX_AGE_MS) }),
    ...(Number.isSafeInteger(subscribed) && { subscribed: subscribed as number }),
  }
}

function isDuration(input: unknown): input is number {
  return typeof input === 'number' && input >= 0
}
