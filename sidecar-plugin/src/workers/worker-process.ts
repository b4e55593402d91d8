import { fork, type SendHandle } from 'node:child_process'
import type { ToWorker } from './messages.ts'

/** A connection of the system's, without the stream that Node makes of it. */
export interface RawConnection {
  close(): void
}

/** A process that was started for a worker, or what plays one. */
export interface WorkerProcess {
  readonly pid: number | undefined
  /** @param connection is shared with the process; closing it here leaves it open there */
  send(message: ToWorker, connection?: RawConnection): void
  /** At once. */
  kill(): void
}

export interface WorkerProcessEvents {
  readonly message: (message: unknown) => void
  /** Once, and the last. */
  readonly ended: (reason: string) => void
}

export type Fork = (events: WorkerProcessEvents) => WorkerProcess

/**
 * Starts a process. It ends with this one: at once where this one ends by its own decision, and when it has finished
 * what it has where this one dies.
 * @param program its file
 */
export function forkWorker(program: string, events: WorkerProcessEvents): WorkerProcess {
  const child = fork(program, [], {
    // As objects are, with what is undefined, which JSON would make null of.
    serialization: 'advanced',
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const kill = () => void child.kill('SIGKILL')
  process.once('exit', kill)
  let isEnded = false
  const end = (reason: string) => {
    if (isEnded) return
    isEnded = true
    process.off('exit', kill)
    events.ended(reason)
  }
  child.on('message', events.message)
  // Where it could not be started at all there is no exit.
  child.on('error', (error) => (child.pid === undefined ? end(error.message) : undefined))
  child.once('exit', (code, signal) => end(signal ? `killed by ${signal}` : `ended with ${code ?? 'nothing'}`))
  return {
    pid: child.pid,
    send(message, connection) {
      // That it is gone its exit tells.
      if (child.connected) child.send(message, connection as unknown as SendHandle, {}, () => {})
    },
    kill,
  }
}
