export { connect, RegistryClient, ResolveError } from './client.ts'
export type {
  ClientStatus,
  ConnectOptions,
  PickOptions,
  Resolved,
  ResolveOptions,
  ServiceOptions,
  Source,
} from './client.ts'
export { RefusedError, UnreachableError } from './connection.ts'
export type { Disk } from './disk.ts'
export type { Log } from './log.ts'
export { silentLog } from './log.ts'
export type { HttpAnswer, HttpCall, Network, Stream, StreamHandlers } from './network.ts'
export type { NodeRegistration, Registration, RegistrationState } from './registrar.ts'
export { NoNodesError } from './selector.ts'
export type { NodeReport, Outcome, Pick } from './selector.ts'
export type { Cursor, PolicyDocument, ServiceNode, View } from './protocol.ts'
