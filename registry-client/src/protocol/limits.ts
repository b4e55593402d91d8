/** What a registry takes at most. */

/** What a stranger may send at most, in the unit the name ends in. A larger value is refused, never cut. */
export const LIMITS = {
  nameChars: 128,
  namespaceChars: 63,
  nodeIdChars: 128,
  hostChars: 253,
  labels: 64,
  labelKeyChars: 63,
  labelValueChars: 256,
  weight: 1000,
  ownerChars: 128,
  leaseTtlMinMs: 2_000,
  leaseTtlMaxMs: 3_600_000,
  batchNodes: 10_000,
  bodyBytes: 1_048_576,
  /** Services named in one subscribe message or one stream's query. */
  subscribeServices: 10_000,
} as const
