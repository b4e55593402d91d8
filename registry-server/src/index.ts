export { createRegistry, type Registry, type RegistryOptions } from './server.ts'
export { settings, type RegistryConfig } from './config.ts'
export { openEmbeddedStore, type EmbeddedDirectoryOptions } from './store/embedded/embedded-store.ts'
export {
  StoreRefused,
  StoreUnavailable,
  type Committed,
  type Lease,
  type NodeEntry,
  type NodeRef,
  type Store,
  type StoreListener,
  type StoreState,
  type Transaction,
} from './store/store.ts'
