/** What a running registry is made of, as the HTTP edge sees it. */

import type { Leases } from './leases.ts'
import type { Store } from './store/store.ts'
import type { WatchHub } from './watch/watch-hub.ts'

export interface RegistryParts {
  readonly store: Store
  readonly hub: WatchHub
  readonly leases: Leases
}

export type Phase = 'loading' | 'ready' | 'stopping'

/** The state of the whole, which every edge asks before it answers. */
export interface Lifecycle {
  readonly phase: Phase
  /** Undefined while loading. */
  readonly parts: RegistryParts | undefined
}
