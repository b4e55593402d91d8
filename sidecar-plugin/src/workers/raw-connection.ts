import { Socket } from 'node:net'
import type { RawConnection } from './worker-process.ts'

interface Handled {
  _handle: RawConnection | null
}

/**
 * Takes a connection that is paused out of its stream: a process is sent what is the system's.
 * @returns undefined when it has closed already
 */
export function rawOf(socket: Socket): RawConnection | undefined {
  const handled = socket as unknown as Handled
  const raw = handled._handle
  handled._handle = null
  return raw ?? undefined
}

/** The stream of a connection, paused, as a server makes it. */
export function socketOf(raw: RawConnection): Socket {
  const options = { handle: raw, allowHalfOpen: true, pauseOnCreate: true, readable: true, writable: true }
  return new Socket(options)
}
