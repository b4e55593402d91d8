export { loadConfig, sidecarSettings } from './config.ts'
export type { SidecarConfig } from './config.ts'
export { REASONS, REFUSALS, SidecarError } from './errors.ts'
export type { ErrorSource, Reason } from './errors.ts'
export { stack, Whole } from './layer.ts'
export type {
  Body,
  Content,
  Destination,
  Direction,
  Ending,
  Exchange,
  Known,
  Layer,
  Reply,
  Sink,
  Service,
  ViewSource,
} from './layer.ts'
export type { LocalSpec } from './local/local-spec.ts'
export { createSidecar } from './sidecar.ts'
export type { Sidecar, SidecarClient, SidecarOptions } from './sidecar.ts'
