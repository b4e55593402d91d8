import type { Socket } from 'node:net'

/** What the library reads from and writes to, past the socket. */
export interface Handle {
  /** @returns 0 when it was not being read, and an error when it is or cannot be */
  readStart(): number
  /** Bytes that the system has not taken yet. */
  readonly writeQueueSize: number
}

/** @returns null once the socket has closed */
export function handleOf(socket: Socket): Handle | null {
  return (socket as unknown as { readonly _handle: Handle | null })._handle
}
